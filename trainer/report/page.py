"""The report as one page of HTML: tables and the runs' pictures, nothing outside the file."""

import base64
from html import escape
from pathlib import Path

from trainer.report.report import Report
from trainer.report.tables import Column, Table

SHORT = len("error an image")  # letters of a head that is not wrapped
MANY = 10  # columns, above which a table's cells are small and a spread may stand below its mean
PNG = b"\x89PNG\r\n\x1a\n"
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --pale: #57606a; --paper: #ffffff; --line: #d0d7de;
  --control: #f6f8fa; --published: #fff8e6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --pale: #9aa4af; --paper: #0f1318;
  --line: #30363d; --control: #171c22; --published: #2a2313; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 100rem; padding: 0 1.2rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .8rem; }
th, td { padding: .28rem .4rem; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; }
td { white-space: nowrap; }
thead th { vertical-align: bottom; font-weight: 600; color: var(--pale); max-width: 7.5rem; }
th.short, td span { white-space: nowrap; }
table.many { font-size: .72rem; } .many th, .many td { padding: .25rem .22rem; }
.many td, .many th.short { white-space: normal; } .many thead th { max-width: 5rem; }
.many th.short.formula { white-space: nowrap; }
.many th:first-child { min-width: 9rem; max-width: 13rem; padding-left: .4rem; }
th:first-child { text-align: left; min-width: 14rem; max-width: 24rem; font-weight: 400; position: sticky;
  left: 0; background: var(--paper); }
tr.control, tr.control th:first-child { background: var(--control); }
td:last-child, th:last-child { padding-right: .65rem; }
td.published, th.published { background: var(--published); }
ul { color: var(--pale); font-size: .85rem; padding-left: 1.2rem; }
details { border-bottom: 1px solid var(--line); padding: .5rem 0; } summary { cursor: pointer; }
figure { display: inline-block; margin: .8rem .8rem .2rem 0; vertical-align: top; }
img { max-width: min(100%, 44rem); border-radius: 4px; background: #ffffff; }
figcaption { color: var(--pale); font-size: .8rem; }
"""


def page(report: Report) -> tuple[str, int]:
    """The page, and how many pictures it holds."""
    parts = [_table(table) for table in report.tables]
    pictures, count = _pictures(report)
    parts += [pictures] if count else []
    if report.lines:
        items = "".join(f"<li>{escape(line)}</li>" for line in report.lines)
        parts.append(f"<h2>What is amiss</h2>\n<ul>{items}</ul>")
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Report of runs</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<h1>Report of runs</h1>\n{body}\n</body>\n</html>\n"
    ), count


def _table(table: Table) -> str:
    kinds = [' class="published"' * bool(column.published) for column in table.columns]
    many = ' class="many"' * (len(table.columns) > MANY)
    head = "<th></th>" + "".join(map(_head, table.columns))
    rows = []
    for row, (label, *cells) in zip(table.rows, table.lines(), strict=True):
        data = "".join(
            f"<td{kind}>{_spread_apart(escape(cell))}</td>" for kind, cell in zip(kinds, cells, strict=True)
        )
        rows.append(f'<tr class="{row.origin}"><th>{escape(label)}</th>{data}</tr>')
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return (
        f"<h2>{escape(f'{table.title}, {table.data}')}</h2>\n"
        f'<div class="wide"><table{many}>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{chr(10).join(rows)}\n</tbody>\n</table></div>\n" + f"<ul>{notes}</ul>\n" * bool(notes)
    )


def _head(column: Column) -> str:
    """The head of a column; a short one stays on one line, in a table of many columns a formula alone."""
    words = ["published"] * bool(column.published) + ["short"] * (len(column.title) <= SHORT)
    words += ["formula"] * ("=" in column.title)
    kind = f' class="{" ".join(words)}"' if words else ""
    title = column.title.replace(", %", ",\u00a0%")
    return f"<th{kind}>{escape(title).replace('_', '_<wbr>')}</th>"


def _spread_apart(cell: str) -> str:
    """A cell whose spread is never cut."""
    mean, sign, spread = cell.partition("± ")
    return f"{mean}<span>{sign}{spread}</span>" if sign else cell


def _pictures(report: Report) -> tuple[str, int]:
    """The pictures of every run, each as a data URI."""
    parts, count = ["<h2>Pictures</h2>"], 0
    for record in report.runs:
        figures = [_picture(path) for path in sorted((record.folder / "figures").glob("*.png"))]
        shown = [figure for figure in figures if figure]
        count += len(shown)
        if shown:
            parts.append(
                f"<details><summary>{escape(str(record.folder))}</summary>{''.join(shown)}</details>"
            )
    return "\n".join(parts), count


def _picture(path: Path) -> str:
    """A picture with its name; '' for a file that is none."""
    try:
        content = path.read_bytes()
    except OSError:
        return ""
    if not content.startswith(PNG):
        return ""
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    name = escape(path.stem)
    return f'<figure><img src="{source}" alt="{name}"><figcaption>{name}</figcaption></figure>'
