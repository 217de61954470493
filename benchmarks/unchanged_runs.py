"""Makes and compares everything of benchmarks/unchanged.sh, whose header says what that is.

python benchmarks/unchanged_runs.py OLD_FOLDER NEW_FOLDER [--only NAME]... | --list
"""

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from unchanged_compare import Report, compare_mlflow, compare_runs
from unchanged_recipes import BREAK, DIGITS, EVALUATE, RUNS, UNTRACKED, Run, launch
from unchanged_sides import Side, draw, end, own_modules

REPOSITORY = Path(__file__).resolve().parent.parent
# Where today's commands are, and where they will be: the later one is used as well where it exists.
CHECKPOINTS = ("trainer.runtime.checkpoint", "trainer.checkpoints")
TRACKING = ("trainer.runtime.tracking", "trainer.tracking")


class Comparison:
    """Both sides, and the reports on what was compared."""

    def __init__(self, old: Side, new: Side):
        self.old, self.new = old, new
        self.reports: list[Report] = []
        self.log = new.folder.parent / "differences.txt"
        self.log.unlink(missing_ok=True)

    def report(self, name: str, interrupted: bool = False) -> Report:
        self.reports.append(Report(name, interrupted, self.log))
        return self.reports[-1]

    def must(self, report: Report, side: Side, name: str, words: list[str], **environment: str) -> bool:
        """Runs a command that is to end well; whether it did."""
        status = side.run(name, words, **environment)
        if status:
            words = f"status {status}: {side.tail(name)} ({side.log(name)})"
            report.differs("command", name, "status 0", f"{side.name} ended with {words}")
        return status == 0

    # ---- code and shards ------------------------------------------------------------------------

    def shards(self) -> None:
        """Both sides make every data set of the same sources; runs then read OLD's."""
        draw(self.old.folder.parent / "raw")
        sources = {
            "cifar10": ("from=../../raw", "shard=300"),
            "digits": (),
            "folder": ("from=../../raw/folder", "shard=50"),
            "wds": ("from=../../raw/tars",),
        }
        for side in (self.old, self.new):
            (side.folder / "data").unlink(missing_ok=True)  # a link to the shards that runs read
            shutil.rmtree(side.folder / "made", ignore_errors=True)
        for source, options in sources.items():
            report = self.report(f"shards {source}")
            words = [
                "python",
                "-m",
                "data_pipelines.shards",
                f"source={source}",
                *options,
                f"to=../made/{source}",
            ]
            done = [self.must(report, side, f"shards-{source}", words) for side in (self.old, self.new)]
            if all(done):
                compare_runs(report, *(side.folder / "made" / source for side in (self.old, self.new)))
            verified = ["python", "-m", "data_pipelines.shards", "verify", f"../made/{source}"]
            self.must(report, self.new, f"shards-verify-{source}", verified)
        for side in (self.old, self.new):
            (side.folder / "data").symlink_to(self.old.folder / "made")

    def own_code(self) -> None:
        """Whether each side's ranks and workers import its own tree, and nothing of another."""
        report = self.report("own code")
        words = (
            "recipe=quickstart",
            "outputs=../tried",
            *DIGITS,
            UNTRACKED,
            "images=256",
            "evaluate.at_end=false",
        )
        for side in (self.old, self.new):
            shards = ["python", "-m", "data_pipelines.shards", "source=cifar10", "from=../../raw"]
            self.must(report, side, "code-shards", [*shards, "to=../tried/data"], PYTHONVERBOSE="1")
            self.must(report, side, "code-ranks", launch("ddp", *words), PYTHONVERBOSE="1")
            for name, first in (("code-shards", "data_pipelines"), ("code-ranks", "trainer")):
                ours, foreign = own_modules(side.log(name), side.tree, REPOSITORY)
                wanted = {"data_pipelines/__init__.py", f"{first}/__init__.py"}
                for path in sorted(wanted - set(ours)):
                    report.differs(name, f"{side.name} must import", side.tree / path, "not imported")
                for path in foreign:
                    report.differs(name, f"{side.name} must not import", "nothing of another tree", path)
                print(
                    f"{side.name:4} {name}: {first}.__file__ is {side.tree / first / '__init__.py'}; "
                    f"{len(ours)} files, {len(foreign)} of another tree",
                    flush=True,
                )
            shutil.rmtree(side.folder / "tried", ignore_errors=True)

    # ---- runs -----------------------------------------------------------------------------------

    def full(self, run: Run) -> bool:
        """Both sides' whole run, compared; whether OLD's is there."""
        report, folders = self.report(run.name, run.fails), self.folders("runs", run)
        there, made = self.beside(
            not run.engine,
            lambda: self.old.once(
                run.name, run.command(), folders[0], lambda: self.train(report, self.old, run)
            ),
            lambda: self.train(report, self.new, run),
        )
        if there and made:
            compare_runs(report, *folders)
            if run.tracked:
                compare_mlflow(report, *(folder.parent / "mlflow.db" for folder in folders))
        return there

    def beside(self, small: bool, *works: Callable[[], bool]) -> list[bool]:
        """OLD's work and NEW's, of one process each at the same time."""
        with ThreadPoolExecutor(len(works) if small else 1) as pool:
            return [done.result() for done in [pool.submit(work) for work in works]]

    def train(self, report: Report, side: Side, run: Run) -> bool:
        """One side's whole run; whether it ended as it should."""
        if run.tracked:
            (side.folder / "runs" / "mlflow.db").unlink(missing_ok=True)
        if not run.fails:
            return self.must(report, side, run.name, run.command())
        status = side.run(run.name, run.command())
        if not status:
            report.differs("command", run.name, "an error", f"{side.name} ended with status 0")
        return status != 0

    def folders(self, kind: str, run: Run) -> list[Path]:
        return [side.folder / kind / run.name for side in (self.old, self.new)]

    def half(self, run: Run) -> None:
        """OLD begins, NEW continues: in the end it is OLD's own run."""
        report, name = self.report(f"{run.name} continued", interrupted=True), f"half-{run.name}"
        begun, command = self.old.folder / "halves" / run.name, run.command("../halves")
        if not self.old.once(name, [*command, run.ended, BREAK], begun, partial(self.begin, run, report)):
            return
        continued = self.new.folder / "halves" / run.name
        shutil.copytree(begun, continued)
        if self.must(report, self.new, name, command):
            compare_runs(report, self.old.folder / "runs" / run.name, continued, continued=True)

    def begin(self, run: Run, report: Report) -> bool:
        """OLD's half of a run; whether it was ended in the middle."""
        folder, began = self.old.folder / "halves" / run.name, time.monotonic()
        process = self.old.start(f"half-{run.name}", run.command("../halves"))
        while not (folder / "checkpoints" / BREAK).exists() and process.poll() is None:
            time.sleep(0.05)
        if process.poll() is None and run.ended == "stop":
            (folder / "stop").touch()
            process.wait(300)
        elif process.poll() is None:
            end(process, getattr(signal, run.ended))
        self.old.took(f"half-{run.name}", time.monotonic() - began, f"ended by {run.ended}")
        reached = (folder / "checkpoints" / BREAK).exists() and not (folder / "done").exists()
        if not reached:
            report.differs("command", "OLD's half", "ended half way", self.old.tail(f"half-{run.name}"))
        return reached

    # ---- what OLD left, read by NEW --------------------------------------------------------------

    def doors(self, names: tuple[str, str]) -> list[str]:
        later = self.new.tree / names[1].replace(".", "/")
        return [names[0], *([names[1]] if (later / "__main__.py").exists() else [])]

    def verify(self, runs: list[Run]) -> None:
        """One of OLD's runs, and all that are there."""
        report = self.report("checkpoints verified")
        for door in self.doors(CHECKPOINTS):
            for what in (f"runs/{runs[0].name}", "runs"):
                command = ["python", "-m", door, "verify", f"{self.old.folder}/{what}"]
                self.must(report, self.new, f"verify-{door}-{what.replace('/', '-')}", command)

    def evaluate(self, run: Run) -> None:
        report, name = self.report(f"{run.name} evaluated"), f"evaluate-{run.name}"
        command = launch("ddp" if run.evaluated > 1 else "", *EVALUATE, f"from=../evaluated/{run.name}")
        folders = self.folders("evaluated", run)

        def made(side: Side, folder: Path) -> bool:
            (folder.parent / "mlflow.db").unlink(missing_ok=True)
            copy(self.old.folder / "runs" / run.name, folder)
            return self.must(report, side, name, command)

        done = self.beside(
            run.evaluated == 1,
            lambda: self.old.once(name, command, folders[0], lambda: made(self.old, folders[0])),
            lambda: made(self.new, folders[1]),
        )
        if all(done):
            compare_runs(report, *folders)

    def sync(self, runs: list[Run]) -> None:
        """What is delivered of OLD's journals."""
        report, old = self.report("tracking sync"), self.old.folder / "synced"
        shutil.rmtree(old, ignore_errors=True)
        jobs = [(self.old, TRACKING[0]), *((self.new, door) for door in self.doors(TRACKING))]
        for side, door in jobs:
            outputs = side.folder / "synced" / door
            for run in runs:
                copy(self.old.folder / "runs" / run.name, outputs / run.name, checkpoints=False)
            command = ["python", "-m", door, "sync", f"../synced/{door}"]
            if self.must(report, side, f"sync-{door}", command) and side is self.new:
                compare_mlflow(report, old / TRACKING[0] / "mlflow.db", outputs / "mlflow.db")


def copy(run: Path, to: Path, checkpoints: bool = True) -> None:
    """A copy of a run; of checkpoints, which nothing writes to, links."""

    def put(source: str, target: str) -> None:
        (os.link if source.endswith(".safetensors") else shutil.copy2)(source, target)

    left_out = None if checkpoints else shutil.ignore_patterns("checkpoints", "delivered.json")
    shutil.copytree(run, to, ignore=left_out, copy_function=put)


def table(reports: list[Report]) -> None:
    """What was compared, and whether it is equal."""
    print(f"\n{'what':48} {'files':>6} {'checkpoints':>11} {'tensors':>8} {'lines':>6}")
    for one in reports:
        counts = f"{one.files:6,} {one.checkpoints:11,} {one.tensors:8,} {one.lines:6,}"
        words = f"{one.differences} DIFFERENCES" if one.differences else "equal"
        declared = f", {one.declared} declared" if one.declared else ""
        print(f"{one.run:48} {counts}  {words}{declared}")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("old", type=Path, nargs="?")
    parser.add_argument("new", type=Path, nargs="?")
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    names = [run.name for run in RUNS]
    if options.list:
        print("\n".join(names))
        return 0
    if unknown := set(options.only) - {*names, "shards"}:
        print(
            f"error: {', '.join(sorted(unknown))}: no such run; expected {', '.join(names)}", file=sys.stderr
        )
        return 2
    began, runs = time.monotonic(), [run for run in RUNS if run.name in options.only or not options.only]
    comparison = Comparison(Side("old", options.old), Side("new", options.new))
    comparison.shards()
    comparison.own_code()
    there = [run for run in runs if comparison.full(run)]
    for run in there:
        if run.ended:
            comparison.half(run)
        if run.evaluated:
            comparison.evaluate(run)
    if there:
        comparison.verify(there)
        comparison.sync(there)
    table(comparison.reports)
    differences = sum(report.differences for report in comparison.reports)
    print(
        f"\n{time.monotonic() - began:.0f} s; {f'{differences} differences' if differences else 'all equal'}"
    )
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
