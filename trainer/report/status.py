"""How each run stands, a row a run. Reads the end of a journal alone, and imports no torch."""

import argparse
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.common.arguments import MISTAKE, Parser, help_page
from data_pipelines.common.errors import UserError
from data_pipelines.common.locks import is_locked_elsewhere
from data_pipelines.common.paths import refused_paths
from trainer.report.folders import run_folders
from trainer.report.run_files import checkpoint_manifests, content_of, recipe_as_it_stands, world
from trainer.runs.folder import RunFolder
from trainer.tracking import journal

PROGRAM = "hybrid-infomax status"
TAIL = 2**18  # bytes of a journal that are read: its last records, a thousand or two
COLUMNS = ("run", "state", "images", "of", "images/s", "saved", "written", "job", "remark")
TEXT = {"run", "state", "job", "remark"}  # aligned to the left
HELP = help_page(
    "Shows how each run stands: its state, the images that it has seen, images a second, the images of the "
    "newest checkpoint, how long ago it wrote anything, and the Slurm job that started it last. States: "
    "running; done, stopped, failed; ended, for one that was killed, lost its node, or waits to start again.",
    [f"{PROGRAM} DIR [DIR ...]"],
    {"DIR": "a folder of runs such as outputs/, at any depth, or one run"},
    [f"{PROGRAM} outputs"],
    {0: "shown, whatever became of the runs", 2: MISTAKE},
)


@dataclass(frozen=True)
class Status:
    """How a run stands; None where it is not known.

    Attributes:
        state: running, done, stopped, failed or ended.
        images: seen at the journal's last record.
        total: images of the recipe.
        rate: images a second, as logged last.
        saved: images of the newest checkpoint.
        written: seconds since 1970 of the last change of the journal.
        job: Slurm's number of the job that started it last.
        remark: why it stopped or failed; what cannot be read.
    """

    folder: Path
    state: str
    images: int = 0
    total: int | None = None
    rate: float | None = None
    saved: int | None = None
    written: float | None = None
    job: str | None = None
    remark: str = ""

    def cells(self, now: float) -> list[str]:
        """The row of COLUMNS at `now`, seconds since 1970."""
        age = None if self.written is None else f"{duration(now - self.written)} ago"
        rate = None if self.rate is None else f"{self.rate:,.0f}" if self.rate >= 100 else f"{self.rate:.2g}"
        numbers = [None if n is None else f"{n:,}" for n in (self.images, self.total)]
        saved = None if self.saved is None else f"{self.saved:,}"
        cells = [str(self.folder), self.state, *numbers, rate, saved, age, self.job]
        return [*("-" if cell is None else cell for cell in cells), self.remark]


def duration(seconds: float) -> str:
    """Such as "3 min": at most two digits and a unit, or days."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def read_status(path: Path) -> Status:
    """How the run in a folder stands."""
    folder, remarks = RunFolder(path), []
    total, job = None, None
    try:
        total = recipe_as_it_stands(path / "recipe.yaml").get("images")
    except UserError as error:
        remarks.append(str(error))
    try:
        job = world(folder).get("job")
    except ValueError:
        remarks.append("world.json is damaged: the job is not known")
    state, why = _state(folder, remarks)
    images, rate, written = _journal(folder, remarks)
    return Status(
        path,
        state,
        images,
        total if isinstance(total, int) else None,
        rate,
        max(checkpoint_manifests(folder), default=None),
        written,
        job if isinstance(job, str) else None,
        "; ".join(filter(None, [why, *remarks])),
    )


def _state(folder: RunFolder, remarks: list[str]) -> tuple[str, str]:
    """The state, and why. Whoever trains has the journal locked."""
    try:
        if is_locked_elsewhere(folder.journal):
            return "running", "asked to stop, by the file stop" if folder.stop.exists() else ""
    except OSError as error:
        remarks.append(f"journal.jsonl: {error.strerror}, so whether it is running is not known")
    for state in ("done", "failed", "stopped"):
        content = content_of(folder.path / state)
        if content is not None:
            return state, " ".join(content.partition("\n")[2].split())
    return "ended", ""


def _journal(folder: RunFolder, remarks: list[str]) -> tuple[int, float | None, float | None]:
    """Images at the last record, images a second as logged last, and the time of the last change."""
    images, rate, written = 0, None, None
    try:
        stat = folder.journal.stat()
        for record, _ in journal.read(folder.journal, max(0, stat.st_size - TAIL)):
            if record["kind"] in ("metric", "resumed", "end"):
                images = record["images"]
            if record["name"] == "images_per_second" and math.isfinite(record["value"]):
                rate = record["value"]
        written = stat.st_mtime
    except FileNotFoundError:
        pass  # a run that has not begun
    except OSError as error:
        remarks.append(f"journal.jsonl cannot be read: {error.strerror}")
    return images, rate, written


def table(statuses: list[Status], now: float) -> str:
    """Aligned columns, a line a run; `now` is in seconds since 1970."""
    rows = [list(COLUMNS), *(status.cells(now) for status in statuses)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(COLUMNS, row, widths, strict=True)
        aligned = (c.ljust(width) if name in TEXT else c.rjust(width) for name, c, width in cells)
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line. Raises UserError."""
    parser = Parser(prog=PROGRAM, page=HELP)
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns 0. Raises UserError."""
    options, lines = parse(arguments), list[str]()
    with refused_paths():
        folders = run_folders(options.folders, lines)
        print(table([read_status(folder) for folder in folders], time.time()))
    for line in lines:
        print(line, file=sys.stderr)
    return 0
