"""The report's forms: what is written can be read back; a terminal's width is kept; a page needs nothing."""

import base64
import csv
import io
import re
from html.parser import HTMLParser

import pytest

from tests.helpers.command_lines import Done, mistake
from tests.helpers.run_folders import WORDS, write_diffusion, write_run
from tests.helpers.tiny_dataset import pictures, png
from trainer import cli
from trainer.report.__main__ import main
from trainer.report.forms import WIDTH
from trainer.report.report import make_report
from trainer.report.tables import Figure


@pytest.fixture
def outputs(tmp_path):
    folder = tmp_path / "outputs"
    for seed in range(2):
        probes = {f"probe/{p}/{f}": 0.4 + seed / 7 for p in ("mlp", "svm") for f in ("conv", "fc", "y")}
        write_run(folder / f"dim{seed}", [*WORDS["dim"], f"seed={seed}"], probes)
        figures = {"probe/linear/y": 0.5 + seed / 9, "reconstruction/sse": 3.0 + seed}
        source = write_run(folder / f"hybrid{seed}", [*WORDS["hybrid"], f"seed={seed}"], figures)
        distances = {f"generation/{row}/frechet_a|b": 100.0 for row in ("test", "samples", "noise_0.3")}
        write_diffusion(folder / f"flow{seed}", source, distances, seed=seed)
    (folder / "photos <b>").mkdir()
    return folder


def report(capsys, *words) -> Done:
    status = main([str(word) for word in words])
    return Done(status, *capsys.readouterr())


def every_cell(folder):
    """(table, row, column) -> text, of all cells."""
    return {
        (table.title, table.data, row.label, column.title): column.text(row.cells[column.title])
        for table in make_report([folder]).tables
        for row in table.rows
        for column in table.columns
        if row.cells.get(column.title)
    }


def test_markdown_reads_back(outputs, capsys):
    read, heading, titles = {}, "", []
    for line in report(capsys, outputs, "--markdown").out.splitlines():
        if line.startswith("## "):
            heading, titles = line[3:], []
        elif line.startswith("|"):
            cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if not titles:
                titles = cells[1:]
            elif not set(cells[0]) <= set("-:"):
                assert len(cells) == len(titles) + 1
                pairs = zip(titles, cells[1:], strict=True)
                read |= {(heading, cells[0], title): text for title, text in pairs if text}
    expected = every_cell(outputs)
    assert read == {(f"{t}, {data}", row, column): text for (t, data, row, column), text in expected.items()}
    assert len(read) > 100


def test_csv_reads_back_in_full_precision(outputs, capsys):
    lines = list(csv.DictReader(io.StringIO(report(capsys, outputs, "--csv").out)))
    cells = {
        (table.title, table.data, row.label, column.title): (row, column)
        for table in make_report([outputs]).tables
        for row in table.rows
        for column in table.columns
        if row.cells.get(column.title)
    }
    assert len(lines) == len(cells) > 100
    for line in lines:
        row, column = cells[line["table"], line["data"], line["row"], line["column"]]
        cell = row.cells[column.title]
        assert line["origin"] == ("published" if column.published else row.origin)
        assert line["source"] == column.published
        if isinstance(cell, Figure):
            spread = float(line["spread"]) if line["spread"] else None
            assert (float(line["value"]), spread, int(line["seeds"])) == (cell.mean, cell.spread, cell.seeds)
        elif column.published:
            assert (line["value"], line["spread"]) == tuple(
                repr(float(part)) if part else "" for part in (*cell.split(" ± "), "")[:2]
            )
        else:
            assert cell in (line["text"], line["value"].removesuffix(".0"))


def test_text_keeps_the_width_and_shows_every_figure(outputs, capsys):
    long = write_run(
        outputs / ("of_a_long_name_" * 6), [*WORDS["hybrid"], "encoder.latent=8"], {"knn/y": 0.3}
    )
    write_run(outputs / ("another_long_name_" * 5), [*WORDS["hybrid"], "optimizer.lr=5e-5"], {"knn/y": 0.2})
    write_diffusion(outputs / "of_it", long, {"generation/samples/frechet_" + "long_" * 20: 3.0})
    out = report(capsys, outputs).out
    assert max(map(len, out.splitlines())) <= WIDTH
    shown = " ".join(out.split())
    for text in every_cell(outputs).values():
        assert " ".join(text.split()) in shown or len(text) > 40  # a folder's long path is wrapped


def test_text_names_a_row_again_where_a_table_goes_on_below(outputs, capsys):
    out = report(capsys, outputs).out
    runs = out[out.index("\nRuns, ") :].partition("\n\n- ")[0]
    assert sum(line.startswith("hybrid, MoCo-v2") for line in runs.splitlines()) >= 2


# ---- the page ------------------------------------------------------------------------------------


class Links(HTMLParser):
    """What a page loads, its tables' cells, and the tags that are open at its end."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.cells, self.open, self.cell = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "!doctype"):
            self.open.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag == "td":
            self.cell = ""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "td":
            self.cells.append(self.cell)
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data


def test_the_page_is_self_contained_with_every_picture(outputs, tmp_path, capsys):
    drawn = [png(image) for image in pictures(3, 8, 8)]
    for number, content in enumerate(drawn):
        (outputs / "dim0" / "figures").mkdir(exist_ok=True)
        (outputs / "dim0" / "figures" / f"{number}.png").write_bytes(content)
    (outputs / "dim0" / "figures" / "torn.png").write_bytes(b"no picture")
    done = report(capsys, outputs, "--html", tmp_path / "page.html")
    assert (done.status, done.err) == (0, "")
    assert done.out.endswith(" tables, 6 runs, 3 pictures\n")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\(|@import|<script|<link", text)
    links = Links(text)
    assert not links.open
    prefix = "data:image/png;base64,"
    assert [base64.b64decode(source.removeprefix(prefix)) for source in links.sources] == drawn
    assert set(every_cell(outputs).values()) <= set(links.cells)
    assert "photos &lt;b&gt;: no run there" in text
    assert "prefers-color-scheme: dark" in text


def test_a_page_without_pictures_has_no_heading_for_them(outputs, tmp_path, capsys):
    assert report(capsys, outputs, "--html", tmp_path / "page.html").out.endswith(" 0 pictures\n")
    assert "Pictures" not in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_short_heads_stay_on_one_line_and_a_table_of_many_columns_is_small(outputs, tmp_path, capsys):
    figures = {"knn/y": 0.4, "reconstruction/psnr": 30.0, "reconstruction/ssim": 0.9, "probe/linear/w": 0.3}
    write_run(outputs / "more", WORDS["autoencoder"], figures, tensors={"model/encoder.a": [9]})
    report(capsys, outputs, "--html", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert '<th class="short formula">D = |y| + |w|</th>' in text
    assert '<th class="published short">FID, published</th>' in text
    assert '<th class="short">error an image</th>' in text
    many = {part.partition(", ")[0]: '<table class="many">' in part for part in text.split("<h2>")[1:]}
    assert (many["As Table 1 of the hybrid paper"], many["Runs"]) == (False, True)
    assert re.search(r"<td>[0-9.]+ <span>± [0-9.]+</span></td>", text)


# ---- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [[], ["--markdown"], ["--csv"]], ids=["text", "markdown", "csv"])
def test_a_file_holds_what_would_be_printed(outputs, tmp_path, capsys, form):
    printed = report(capsys, outputs, *form).out
    done = report(capsys, outputs, *form, "-o", tmp_path / "file")
    assert (done.status, done.out.count("\n")) == (0, 1)
    assert (tmp_path / "file").read_text(encoding="utf-8") == printed


def test_the_console_command_is_the_same(outputs, capsys):
    assert cli.run(["report", str(outputs)]) == 0
    assert capsys.readouterr().out == report(capsys, outputs).out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "DIR"),
        (["DIR", "--markdown", "--csv"], "not allowed with argument"),
        (["DIR", "--html", "a.html", "-o", "b"], "-o: not together with --html"),
        (["DIR", "--html", "gone/a.html"], "another place with `--html FILE`"),
        (["DIR", "-o", "gone/a.txt"], "another place with `-o FILE`"),
    ],
    ids=range(5),
)
def test_a_mistake_is_one_line_and_leaves_nothing(outputs, tmp_path, capsys, monkeypatch, words, part):
    monkeypatch.chdir(tmp_path)
    done = report(capsys, *(str(outputs) if word == "DIR" else word for word in words))
    assert part in mistake(done)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs"]
