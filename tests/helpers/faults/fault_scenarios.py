"""Faults that are not random: each function makes one happen, and fails unless the run survives it."""

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.helpers.faults import tiny_runs
from tests.helpers.faults.fault_harness import BOUND, KILLED, PATIENCE, FaultHarness
from tests.helpers.faults.fault_hooks import PART, PHASES
from tests.helpers.faults.random_kills import arrived
from tests.helpers.faults.tiny_runs import (
    BATCH,
    EVALUATE_EVERY,
    IMAGES,
    SAVE_EVERY,
    newest,
)
from tests.helpers.forked_ranks import ForkedRanks
from trainer.checkpoints.format import folder_name
from trainer.checkpoints.load import kept, load

# The stages of a step, in their order, as the watchdog names them.
STAGES = ("zero_grad", "data", "forward", "backward", "clip", "step", "after_step")

# ---- kills in a save -------------------------------------------------------------------------------


def has_phase(rank: int, phase: str) -> bool:
    """Whether a rank has a phase in its saves: only the first publishes."""
    return rank == 0 or phase in PART


def killed_in_every_phase(harness: FaultHarness, recipe: str, world: int) -> None:
    """A run each start of which is killed in another phase of its first or second save.

    After each kill the newest checkpoint has the bits of the undisturbed run's, and the next start goes on
    from it.
    """
    often = f"save.every={2 * BATCH}"
    undisturbed, outputs, seen = harness.undisturbed_run(recipe, world, often), harness.new_outputs(), []
    moments = [(phase, rank) for phase in PHASES for rank in range(world) if has_phase(rank, phase)]
    for number, (phase, rank) in enumerate(moments):
        die = {"rank": rank, "phase": phase, "time": 1 + number % 2}
        ranks = harness.start(outputs, recipe, world, often, die=die)
        assert ranks.wait(PATIENCE)[rank] == KILLED, ranks.text()
        if checkpoint := newest(outputs / "run"):
            assert checkpoint.images >= max(seen, default=0)
            seen.append(checkpoint.images)
            same = undisturbed.folder / "checkpoints" / folder_name(checkpoint.images)
            tiny_runs.assert_same_bits(load(same), load(checkpoint))
        else:
            assert not seen
    harness.finish(outputs, recipe, world, often)
    assert tiny_runs.resumed(outputs / "run") == seen
    tiny_runs.assert_undisturbed(undisturbed.folder, outputs / "run")


# ---- requests to stop ------------------------------------------------------------------------------


def requested_to_stop(harness: FaultHarness, request: Callable[[ForkedRanks, Path], object]) -> None:
    """All ranks save and end by themselves within a bound; `stopped` has the images; the run continues."""
    recipe, world = "moco", 2
    undisturbed, outputs = harness.undisturbed_run(recipe, world), harness.new_outputs()
    ranks, run = harness.start(outputs, recipe, world, slow=0.1), outputs / "run"
    assert arrived(ranks, 0.3), ranks.text()
    request(ranks, run)
    assert ranks.wait(BOUND, alone=True) == [1] * world, ranks.text()
    images = newest(run).images
    assert 0 < images < IMAGES
    assert (run / "stopped").read_text().startswith(f"{images}\n")
    assert "the same command continues it" in ranks.text(0)
    harness.finish(outputs, recipe, world)
    assert tiny_runs.resumed(run) == [images]
    assert not (run / "stopped").exists()
    tiny_runs.assert_undisturbed(undisturbed.folder, run)


# ---- a full disk, a hung rank, numbers that are not finite ------------------------------------------


class NotHere(Exception):
    """This fault cannot be made on this machine; the text says why."""


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[int], None]]:
    """A file system of `size` bytes at `folder`; yields what changes its size. Raises NotHere."""

    def mount(*words: object) -> None:
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
        if done.returncode:
            raise NotHere(f"no small file system can be mounted here: {done.stderr.strip()}")

    folder.mkdir()
    mount("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
    try:
        yield lambda size: mount("mount", "-o", f"remount,size={size}", folder)
    finally:
        mount("umount", folder)


def errors(text: str) -> list[str]:
    """The lines of errors; nothing else may look like a failure."""
    assert "Traceback" not in text, text
    return [line for line in text.splitlines() if line.startswith("error: ")]


def disk_full_in_a_save(harness: FaultHarness, world: int) -> None:
    """It fills in the second save: one line; what was saved stays and nothing else; with room it goes on."""
    recipe = "hybrid"
    undisturbed = harness.undisturbed_run(recipe, world)
    of_one = sum(path.stat().st_size for path in newest(undisturbed.folder).path.iterdir())
    assert of_one > 2 * (undisturbed.folder / "journal.jsonl").stat().st_size  # the room for it, below
    disk = harness.new_outputs()
    with small_disk(disk, 1 << 26) as resize:
        ranks, run = harness.start(disk, recipe, world, slow=0.1), disk / "run"
        assert arrived(ranks, 1 / 64), ranks.text()  # a disk that is too small from the start is refused
        resize(of_one * 7 // 4)
        statuses = ranks.wait(PATIENCE, alone=True)
        assert 2 in statuses, ranks.text()
        assert 0 not in statuses, ranks.text()
        (line,) = errors(ranks.text())
        assert f"cannot write {run / 'checkpoints'}: " in line
        assert "No space left on device" in line
        assert [path.name for path in (run / "checkpoints").iterdir()] == [folder_name(SAVE_EVERY)]
        assert newest(run).images == SAVE_EVERY
        resize(1 << 26)
        harness.finish(disk, recipe, world)
        assert tiny_runs.resumed(run) == [SAVE_EVERY]
        tiny_runs.assert_undisturbed(undisturbed.folder, run)


def disk_full_to_the_last_byte(harness: FaultHarness, world: int) -> None:
    """Something else fills it while steps are made: one line; with room the run goes on."""
    recipe, disk = "hybrid", harness.new_outputs()
    undisturbed = harness.undisturbed_run(recipe, world)
    with small_disk(disk, 1 << 26):
        ranks, run = harness.start(disk, recipe, world, slow=0.1), disk / "run"
        assert arrived(ranks, 0.3), ranks.text()
        filled = fill(disk / "ballast")
        statuses = ranks.wait(PATIENCE, alone=True)
        assert 2 in statuses, ranks.text()
        assert 0 not in statuses, ranks.text()
        (line,) = errors(ranks.text(0))  # the others lose rank 0, and say so as they can
        assert str(run) in line
        assert "No space left on device" in line
        assert newest(run).images >= SAVE_EVERY
        filled.unlink()
        harness.finish(disk, recipe, world)
        tiny_runs.assert_undisturbed(undisturbed.folder, run)


def images_of(run: Path, status: str) -> int:
    """The images seen, by a run's status file."""
    return int((run / status).read_text().splitlines()[0])


def fill(path: Path) -> Path:
    """Writes to a file until its file system has no byte left."""
    with suppress(OSError), open(path, "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    return path


def dead_in_a_save(harness: FaultHarness) -> None:
    """A rank dies while it writes its part: the other ends too, though no launcher tells it to."""
    recipe, world = "moco", 2
    undisturbed, outputs = harness.undisturbed_run(recipe, world), harness.new_outputs()
    die = {"rank": 1, "phase": "part half written", "time": 2}
    ranks = harness.start(outputs, recipe, world, die=die)
    while ranks.statuses()[1] is None:
        time.sleep(0.02)
    assert ranks.wait(BOUND, alone=True) == [1, KILLED], ranks.text()
    assert newest(outputs / "run").images == SAVE_EVERY
    harness.finish(outputs, recipe, world)
    tiny_runs.assert_undisturbed(undisturbed.folder, outputs / "run")


def lost_rank(harness: FaultHarness, engine: str) -> None:
    """A rank dies in the midst of training: the other says so in one line, without a traceback."""
    outputs = harness.new_outputs()
    die = {"rank": 1, "images": SAVE_EVERY + BATCH}
    ranks = harness.start(outputs, "hybrid", 2, engine=engine, die=die)
    assert ranks.wait(PATIENCE, alone=True) == [1, KILLED], ranks.text()
    (line,) = errors(ranks.text(0))
    assert line.startswith("error: rank 0: another rank has gone (")
    assert (outputs / "run" / "failed").read_text().splitlines()[1] == line.removeprefix("error: ")
    assert images_of(outputs / "run", "failed") == die["images"]


def not_finite(harness: FaultHarness) -> None:
    """A weight becomes NaN: one line; no checkpoint holds it; from the last one the run continues."""
    recipe, world = "dim_complete", 2
    undisturbed, outputs = harness.undisturbed_run(recipe, world), harness.new_outputs()
    before = 2 * SAVE_EVERY + BATCH
    ranks, run = harness.start(outputs, recipe, world, nan=before), outputs / "run"
    assert set(ranks.wait(PATIENCE, alone=True)) == {2}, ranks.text()
    (line,) = errors(ranks.text())
    assert "is not finite" in line
    assert str(run / "checkpoints") in line
    assert newest(run).images == 2 * SAVE_EVERY
    assert images_of(run, "failed") == before + BATCH  # each step is logged, and looked at
    for images in kept(run / "checkpoints"):
        tensors = load(run / "checkpoints" / folder_name(images))
        assert all(tensor.isfinite().all() for tensor in tensors.values())
    harness.finish(outputs, recipe, world)
    tiny_runs.assert_undisturbed(undisturbed.folder, run)


def hung_disk(harness: FaultHarness) -> None:
    """One of two ranks writes a checkpoint for ever: a line names it, all end, and the run continues."""
    recipe, world = "moco", 2
    undisturbed, outputs = harness.undisturbed_run(recipe, world), harness.new_outputs()
    hang = {"rank": 1, "images": 2 * SAVE_EVERY, "where": "disk"}
    ranks = harness.start(outputs, recipe, world, hang=hang)
    assert ranks.wait(PATIENCE, alone=True) == [2, 2], ranks.text()
    (line,) = errors(ranks.text())
    assert "still lacks part-00001-of-00002.safetensors" in line
    assert "rank 1 has not written its part of the checkpoint" in line
    assert newest(outputs / "run").images == SAVE_EVERY
    harness.finish(outputs, recipe, world)
    tiny_runs.assert_undisturbed(undisturbed.folder, outputs / "run")


def hung_rank(harness: FaultHarness, where: str, hung: int = 2) -> None:
    """One of four ranks stops, or waits for data for ever: all others name it and end; the run continues."""
    recipe, world = "hybrid", 4
    undisturbed, outputs = harness.undisturbed_run(recipe, world), harness.new_outputs()
    places = {"evaluate_online": EVALUATE_EVERY, "save": 2 * SAVE_EVERY, "finish": IMAGES}
    hang = {"rank": hung, "images": places.get(where, 2 * SAVE_EVERY + BATCH), "where": where}
    short = ("step_timeout=5", "data.retry_seconds=0")  # with which a rank publishes twice a second
    ranks, run = harness.start(outputs, recipe, world, *short, hang=hang, slow=0.2), outputs / "run"
    ended_but(hung, ranks)
    for rank in set(range(world)) - {hung}:
        (line,) = [line for line in ranks.text(rank).splitlines() if f"rank {hung} " in line]
        match = re.search(r"had last finished '(\w+)' of the step after ([\d,]+) images", line)
        stage, images = match[1], int(match[2].replace(",", ""))
        if where == "data":  # it lives, and its watchdog publishes
            assert (stage, images) == ("zero_grad", hang["images"])
        else:  # stopped: what it published last may be a moment old
            assert stage in STAGES
            assert hang["images"] - 10 * BATCH <= images < hang["images"]
        assert ranks.statuses()[rank] == 3
    assert images_of(run, "failed") == hang["images"]
    harness.finish(outputs, recipe, world)
    tiny_runs.assert_undisturbed(undisturbed.folder, run)


def ended_but(hung: int, ranks: ForkedRanks) -> str:
    """Waits until all other ranks have ended by themselves, kills this one; returns the output of all."""
    deadline = time.monotonic() + PATIENCE
    while not all(status for rank, status in enumerate(ranks.statuses()) if rank != hung):
        assert time.monotonic() < deadline, ranks.text()
        time.sleep(0.05)
    ranks.kill()
    return ranks.text()
