"""What a run survives: SIGKILLs at random moments on 1, 2 and 4 processes, and every other kind of fault.

python benchmarks/survival.py [--kills 200] [--seed N] [--only kills|faults] [--to FILE]

The kills are dealt evenly over recipes and numbers of processes. After its kills every run is let end, and is
compared with one that nothing happened to: all tensors of the last checkpoint and of the export bit by bit,
all of the journal but the clocks. The other faults are those of `tests/faults`, which are run.
Prints two tables; ends with an error where anything differs.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FAULT_TESTS = ROOT / "tests" / "faults"
sys.path[0] = str(ROOT)

import pytest

from data_pipelines.shards.make import make
from tests.helpers.faults.fault_harness import FaultHarness
from tests.helpers.faults.random_kills import kill_at_random
from tests.helpers.faults.tiny_runs import RECIPES
from tests.helpers.forked_ranks import RankForker

WORLDS = (1, 2, 4)
STAGES = ("start", "step", "evaluation", "save", "finish")
# The fault, what becomes of the run, and the tests that make the one and look for the other.
SURVIVED = [
    (
        "SIGKILL in each of 11 phases of a save: a part half written, flushed, before and after the rename, "
        "an older one half removed",
        "the newest whole checkpoint, always there, is gone on from; ends bit for bit",
        ["test_save_phases.py"],
    ),
    (
        "SIGKILL of one rank, of everything, of the launcher, under `accelerate launch`",
        "no rank is left waiting: without a launcher they save and end; ends bit for bit",
        ["test_launcher_kills.py", "test_ends.py::test_the_others_end_when_a_rank_dies_in_a_save"],
    ),
    (
        "SIGKILL in the final evaluation",
        "the next start measures all of it; equal figures",
        ["test_ends.py::test_a_kill_in_the_final_evaluation"],
    ),
    (
        "SIGTERM or SIGUSR1, to one rank or to all, in training or in the final evaluation; a stop file",
        "saves within seconds, says so in `stopped`, continues bit for bit",
        [
            "test_ends.py::test_a_signal",
            "test_ends.py::test_a_signal_in_the_final_evaluation",
            "test_ends.py::test_a_signal_while_a_picture_is_drawn",
            "test_ends.py::test_the_stop_file",
        ],
    ),
    (
        "4 -> 2 -> 1 -> 2 ranks with kills in between",
        "the same samples in the same global batches; in float64 losses and weights to 1e-8",
        ["test_elastic.py::test_four_ranks_then_two_then_one_then_two"],
    ),
    (
        "DDP on 4 -> FSDP2 on 2 -> ZeRO-2 on 4 ranks with kills in between",
        "the same samples; the losses to 1e-8, under ZeRO to 1e-2",
        ["test_elastic.py::test_the_engine_changes_with_the_ranks"],
    ),
    (
        "DDP on 4, told to stop -> FSDP2 on 2, killed in a save -> FSDP2 on 4, a rank hangs -> one process",
        "the same samples; in float64 losses and weights to 1e-8",
        ["test_elastic.py::test_after_other_faults_too"],
    ),
    (
        "a full disk",
        "one line names folder and cause; the checkpoint before stays; with room, continues bit for bit",
        ["test_ends.py::test_a_full_disk"],
    ),
    (
        "a rank that dies by itself",
        "the others say so in one line, and end",
        ["test_ends.py::test_a_rank_that_loses_another_says_so_in_one_line"],
    ),
    (
        "a rank that hangs in a step, answers nothing any more, or does not get its part of a checkpoint "
        "written",
        "every other rank names it and its last finished stage, and ends; continues bit for bit",
        [
            "test_ends.py::test_a_hung_rank_is_named_by_the_others",
            "test_ends.py::test_a_first_rank_that_hangs_is_named_too",
            "test_ends.py::test_a_checkpoint_that_a_disk_does_not_take_is_told",
        ],
    ),
    (
        "numbers that are not finite",
        "one line; no checkpoint holds them; continues from the last one",
        ["test_ends.py::test_numbers_that_are_not_finite"],
    ),
    (
        "a read that fails once; shards that vanish or are cut short, and come back; a network that is slow, "
        "breaks off, is down",
        "reads wait and are tried again; ends bit for bit",
        [
            "test_shard_faults.py::test_a_read_that_fails_once_changes_nothing",
            "test_shard_faults.py::test_shards_that_come_back_change_nothing",
            "test_shard_faults.py::test_a_run_over_a_bad_network_is_the_same_run",
        ],
    ),
    (
        "shards that stay away",
        "one line after `data.retry_seconds`; one rank that is in a step saves first, several go on from the "
        "last "
        "checkpoint; bit for bit",
        ["test_shard_faults.py::test_shards_that_stay_away_end_the_run_and_are_gone_on_with"],
    ),
    (
        "images that cannot be decoded",
        "replaced, with a warning, by the same ones after any start",
        ["test_shard_faults.py::test_images_that_cannot_be_decoded_are_replaced_alike_on_any_start"],
    ),
    (
        "an MLflow server killed, refusing, slow, answering wrongly, its database locked; no network",
        "training goes on; every point is delivered once, equal to the journal",
        ["test_tracking_faults.py"],
    ),
]


def killed(kills: int, seed: int) -> Iterator[str]:
    """The table of random kills, line by line."""
    yield f"| recipe | processes | kills | {' | '.join(f'in {stage}' for stage in STAGES)} | equal runs | s |"
    yield "|---|---:" + "|---:" * (len(STAGES) + 3) + "|"
    cases = [(recipe, world) for recipe in RECIPES for world in WORLDS]
    total, all_runs, began = Counter(), 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder, RankForker() as forker:
        data = Path(folder) / "digits"
        make("digits", to=data, workers=1, progress=False)
        harness = FaultHarness(forker, Path(folder), data)
        for number, (recipe, world) in enumerate(cases):
            share = kills // len(cases) + (number < kills % len(cases))
            start = time.monotonic()
            made, runs = kill_at_random(
                harness, recipe, world, share, random.Random(f"{seed} {recipe} {world}")
            )
            fell = Counter(kill.stage for kill in made)
            total, all_runs = total + fell, all_runs + runs
            yield row(recipe, world, len(made), fell, runs, time.monotonic() - start)
    yield row("all", "", kills, total, all_runs, time.monotonic() - began)


def row(recipe: str, world: object, kills: int, fell: Counter, runs: int, seconds: float) -> str:
    places = " | ".join(str(fell[stage]) for stage in STAGES)
    return f"| {recipe} | {world} | {kills} | {places} | {runs} of {runs} | {seconds:.0f} |"


class Outcomes:
    """Of each test that pytest runs how it ended, and the seconds it took with what it needed."""

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)
        self.ended: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition("tests/faults/")[2]
        self.seconds[name] += report.duration
        if self.ended.get(name, "passed") == "passed":
            self.ended[name] = report.outcome


def survived() -> Iterator[str]:
    """Runs the tests of the other faults; their table, line by line. Exits where one is not survived."""
    outcomes = Outcomes()
    tests = [str(FAULT_TESTS / test) for *_, tests in SURVIVED for test in tests]
    status = pytest.main(["-q", "-m", "slow or not slow", "-p", "no:cacheprovider", *tests], [outcomes])
    yield "| fault | what becomes of the run | tests passed | s |"
    yield "|---|---|---:|---:|"
    for fault, becomes, tests in SURVIVED:
        names = [name for name in outcomes.ended if name.startswith(tuple(tests))]
        passed = sum(outcomes.ended[name] == "passed" for name in names)
        seconds = sum(outcomes.seconds[name] for name in names)
        yield f"| {fault} | {becomes} | {passed} of {len(names)} | {seconds:.0f} |"
    if status:
        raise SystemExit(f"not all of it was survived: pytest ended with status {int(status)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--to", type=Path, help="also write the tables here")
    parser.add_argument("--only", choices=["kills", "faults"], help="one of the two tables")
    options = parser.parse_args()
    lines = []

    def write(line: str) -> None:
        print(line, flush=True)
        lines.append(line)
        if options.to:
            options.to.write_text("\n".join(lines) + "\n")

    write(f"`python benchmarks/survival.py --kills {options.kills} --seed {options.seed}`\n")
    if options.only != "faults":
        for line in killed(options.kills, options.seed):
            write(line)
        write("")
    if options.only != "kills":
        for line in survived():
            write(line)


if __name__ == "__main__":
    main()
