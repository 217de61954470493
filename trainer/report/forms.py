"""Tables as text for a terminal, as Markdown, and as CSV."""

import csv
import io
import textwrap
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from trainer.report.report import Report
from trainer.report.tables import Cell, Column, Figure, Table

WIDTH = 120  # columns of a terminal
LABEL = 44  # columns of a text at most; a longer one is wrapped
TITLE = 14  # columns of a title, before it is wrapped
CSV_FIELDS = ("table", "data", "row", "origin", "column", "value", "spread", "seeds", "text", "source")


# ---- terminal ------------------------------------------------------------------------------------


def text(report: Report) -> str:
    """Aligned columns of at most WIDTH; a wider table goes on below, its rows named again."""
    parts = [_text_table(table) for table in report.tables]
    parts += ["\n".join(_filled(line) for line in report.lines)] if report.lines else []
    return "\n\n".join(parts) + "\n"


def _text_table(table: Table) -> str:
    lines = [textwrap.fill(f"{table.title}, {table.data}", WIDTH, break_on_hyphens=False)]
    for columns in _blocks(table):
        lines += ["", *_aligned(table, columns)]
    lines += [""] * bool(table.notes) + [_filled(note) for note in table.notes]
    return "\n".join(lines)


def _filled(line: str) -> str:
    return textwrap.fill(line, WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)


def _wrapped(title: str, width: int) -> list[str]:
    return textwrap.wrap(title, width, break_on_hyphens=False)


def _cells(table: Table, column: Column) -> list[str]:
    return [column.text(row.cells.get(column.title)) for row in table.rows]


def _width(table: Table, column: Column) -> int:
    cells = max(map(len, _cells(table, column)))
    word = max(map(len, column.title.split()))
    lines = _wrapped(column.title, min(LABEL, max(TITLE, cells, word)))
    return max(min(LABEL, cells), *map(len, lines))


def _label_width(table: Table) -> int:
    return min(LABEL, max(len(row.label) for row in table.rows))


def _blocks(table: Table) -> Iterator[list[Column]]:
    """Columns side by side, as many as fit."""
    room, block = 0, list[Column]()
    for column in table.columns:
        width = _width(table, column) + 2
        if block and room + width > WIDTH - _label_width(table):
            yield block
            room, block = 0, []
        room += width
        block.append(column)
    yield block


def _aligned(table: Table, columns: Sequence[Column]) -> list[str]:
    """The lines of some columns; rows that have nothing there are left out."""
    first, widths = _label_width(table), [_width(table, column) for column in columns]
    titles = [_wrapped(column.title, width) for column, width in zip(columns, widths, strict=True)]
    height = max(map(len, titles))
    lines = _lines([], [[""] * (height - len(title)) + title for title in titles], first, widths)
    for row in table.rows:
        cells = [column.text(row.cells.get(column.title)) for column in columns]
        if any(cells):
            label = textwrap.wrap(row.label, first, subsequent_indent="  ", break_on_hyphens=False)
            parts = [
                textwrap.wrap(cell, width, break_on_hyphens=False)
                for cell, width in zip(cells, widths, strict=True)
            ]
            lines += _lines(label, parts, first, widths)
    return lines


def _lines(label: list[str], cells: list[list[str]], first: int, widths: list[int]) -> list[str]:
    """One row of texts, each of one line or more: the label to the left, the others to the right."""
    lines = []
    for label_line, *cell_lines in zip_longest(label, *cells, fillvalue=""):
        texts = (f"  {cell:>{width}}" for cell, width in zip(cell_lines, widths, strict=True))
        lines.append(f"{label_line:<{first}}{''.join(texts)}".rstrip())
    return lines


# ---- Markdown ------------------------------------------------------------------------------------


def markdown(report: Report) -> str:
    """Headings and tables; published columns say so in their titles."""
    parts = []
    for table in report.tables:
        head = ["", *(column.title for column in table.columns)]
        rows = [head, ["---", *("---:" for _ in table.columns)], *table.lines()]
        parts.append(f"## {table.title}, {table.data}")
        parts.append("\n".join(f"| {' | '.join(map(_escaped, row))} |" for row in rows))
        parts += ["\n".join(f"- {note}" for note in table.notes)] if table.notes else []
    parts += ["\n".join(f"- {line}" for line in report.lines)] if report.lines else []
    return "\n\n".join(parts) + "\n"


def _escaped(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|")


# ---- CSV -----------------------------------------------------------------------------------------


def comma_separated(report: Report) -> str:
    """One line a figure, in full precision and the unit of its column: tables differ in their columns.

    `origin` is ours, control or published; `text` has what is no number.
    """
    file = io.StringIO()
    writer = csv.DictWriter(file, CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    for table in report.tables:
        for row in table.rows:
            for column in table.columns:
                if cell := row.cells.get(column.title):
                    origin = "published" if column.published else row.origin
                    named = {"table": table.title, "data": table.data, "row": row.label, "origin": origin}
                    writer.writerow(
                        named | {"column": column.title, "source": column.published} | _values(cell)
                    )
    return file.getvalue()


def _values(cell: Cell) -> dict[str, object]:
    if isinstance(cell, Figure):
        spread = "" if cell.spread is None else repr(cell.spread)
        return {"value": repr(cell.mean), "spread": spread, "seeds": cell.seeds}
    value, _, spread = str(cell).partition(" ± ")
    try:
        return {"value": repr(float(value)), "spread": spread and repr(float(spread))}
    except ValueError:
        return {"text": cell}
