"""The faults that are not random: each function makes one happen, and fails unless the run survives it."""

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from tests.helpers.faults import tiny_runs
from tests.helpers.faults.fault_hooks import PART, PHASES
from tests.helpers.faults.fault_stand import PATIENCE, Calm, Stand
from tests.helpers.faults.forked_ranks import Ranks
from tests.helpers.faults.random_kills import arrived
from tests.helpers.faults.tiny_runs import (
    BATCH,
    CLOCKS,
    EVALUATE_EVERY,
    IMAGES,
    SAVE_EVERY,
    figures,
    newest,
    weights,
)
from trainer.checkpoints.format import folder_name
from trainer.checkpoints.load import kept, load

BOUND = 30.0  # seconds, of which a step and a save of a tiny run take a tenth of one
KILLED = -signal.SIGKILL
# Of a step, in their order, as the watchdog names them.
STAGES = ("zero_grad", "data", "forward", "backward", "clip", "step", "after_step")

# ---- kills in a save -------------------------------------------------------------------------------


def meets(rank: int, phase: str) -> bool:
    """Whether a rank comes to a phase: only the first publishes."""
    return rank == 0 or phase in PART


def killed_in_every_phase(stand: Stand, recipe: str, world: int) -> None:
    """One run, every start of which dies in another phase of its first or second save.

    Every checkpoint that is seen in between has the bits of the undisturbed run's, and the next start goes on
    from the newest of them.
    """
    often = f"save.every={2 * BATCH}"
    calm, outputs, seen = stand.calm(recipe, world, often), stand.fresh(), []
    moments = [(phase, rank) for phase in PHASES for rank in range(world) if meets(rank, phase)]
    for number, (phase, rank) in enumerate(moments):
        die = {"rank": rank, "phase": phase, "time": 1 + number % 2}
        ranks = stand.start(outputs, recipe, world, often, die=die)
        assert ranks.wait(PATIENCE)[rank] == KILLED, ranks.text()
        if found := newest(outputs / "run"):
            assert found.images >= max(seen, default=0)
            seen.append(found.images)
            same = calm.run / "checkpoints" / folder_name(found.images)
            tiny_runs.assert_same_bits(load(same), load(found))
        else:
            assert not seen
    stand.finish(outputs, recipe, world, often)
    assert tiny_runs.resumed(outputs / "run") == seen
    tiny_runs.assert_undisturbed(calm.run, outputs / "run")


# ---- other ranks and engines -----------------------------------------------------------------------


class Start(NamedTuple):
    """One start of an elastic run, and what ends it after `until` images; None: it ends the run.

    fault: SIGKILL before that step ("kill") or in the first save of the start ("save"), a rank that hangs in
    that step ("hang"), or SIGTERM to all once it has begun ("stop").
    """

    world: int
    engine: str
    until: int | None
    victim: int = 0
    fault: str = "kill"


def elastic(stand: Stand, recipe: str, starts: list[Start], *more: str) -> tuple[Calm, Path]:
    """Every start but the last meets a fault; the same samples must come in the same global batches.

    Returns what to compare: the undisturbed run on the ranks of the first start, and this one.
    """
    calm, outputs, logs = stand.calm(recipe, starts[0].world, *more), stand.fresh(), []
    for world, engine, until, victim, fault in starts:
        options = {"engine": engine, "record": True}
        at = {"rank": victim, "images": until}
        if until is None:
            ranks = stand.finish(outputs, recipe, world, *more, **options)
        elif fault == "kill":
            ranks = stand.start(outputs, recipe, world, *more, **options, die=at)
            assert ranks.wait(PATIENCE)[victim] == KILLED, ranks.text()
        elif fault == "save":
            die = {"rank": victim, "phase": "part half written", "time": 1}
            ranks = stand.start(outputs, recipe, world, *more, **options, die=die)
            assert ranks.wait(PATIENCE)[victim] == KILLED, ranks.text()
        elif fault == "hang":
            short = ("step_timeout=5", "data.patience=0")
            ranks = stand.start(outputs, recipe, world, *more, *short, **options, hang=at | {"where": "data"})
            assert f"rank {victim} had last finished" in ended_but(victim, ranks)
        else:
            ranks = stand.start(outputs, recipe, world, *more, **options, slow=0.1)
            while ranks.stage(0)[1] < until:
                assert ranks.running(), ranks.text()
                time.sleep(0.02)
            ranks.signal(signal.SIGTERM)
            assert ranks.wait(BOUND, alone=True) == [1] * world, ranks.text()
        name = engine if world > 1 else "single process"
        assert f"{world} rank" in ranks.text(0)
        assert f"{name}, cpu" in ranks.text(0)
        logs.append(ranks.logs)
    assert samples([calm.logs]) == samples(logs)
    return calm, outputs / "run"


def samples(logs: list[Path]) -> dict[tuple[int, int, int], int]:
    """(images seen before the batch, view, place in the run) -> the sample, also of all that was replayed."""
    found: dict[tuple[int, int, int], int] = {}
    for path in (path for folder in logs for path in folder.glob("ids-*.jsonl")):
        for line in path.read_text().splitlines():
            seen, positions, ids = json.loads(line)
            for view, pairs in enumerate(zip(positions, ids, strict=True)):
                for position, sample in zip(*pairs, strict=True):
                    assert found.setdefault((seen, view, position), sample) == sample
    assert {seen for seen, *_ in found} == set(range(0, IMAGES, BATCH))
    return found


def assert_close(calm: Path, other: Path, until: int, tolerance: float, apart: tuple[str, ...] = ()) -> None:
    """All figures but `apart` up to so many images, each once; with `until=IMAGES` the final weights, too."""
    one, two = (figures(run, "metric") for run in (calm, other))
    assert one.keys() == two.keys()
    for key, value in one.items():
        if key[0] not in (*CLOCKS, *apart) and key[1] <= until:
            assert abs(two[key] - value) <= tolerance * max(1.0, abs(value)), (key, value, two[key])
    if until == IMAGES:
        one, two = weights(calm), weights(other)
        assert one.keys() == two.keys()
        for name, tensor in one.items():
            assert (two[name].double() - tensor.double()).abs().max() <= tolerance, name


# ---- told to stop ----------------------------------------------------------------------------------


def told_to_stop(stand: Stand, tell: Callable[[Ranks, Path], object]) -> None:
    """All ranks end by themselves within a bound, saved; the file `stopped` says where; the run continues."""
    recipe, world = "moco", 2
    calm, outputs = stand.calm(recipe, world), stand.fresh()
    ranks, run = stand.start(outputs, recipe, world, slow=0.1), outputs / "run"
    assert arrived(ranks, 0.3), ranks.text()
    tell(ranks, run)
    assert ranks.wait(BOUND, alone=True) == [1] * world, ranks.text()
    images = newest(run).images
    assert 0 < images < IMAGES
    assert (run / "stopped").read_text().startswith(f"{images}\n")
    assert "the same command continues it" in ranks.text(0)
    stand.finish(outputs, recipe, world)
    assert tiny_runs.resumed(run) == [images]
    assert not (run / "stopped").exists()
    tiny_runs.assert_undisturbed(calm.run, run)


# ---- a full disk, a hung rank, numbers that are none ------------------------------------------------


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
    """The lines that say what went wrong; nothing else may look like a failure."""
    assert "Traceback" not in text, text
    return [line for line in text.splitlines() if line.startswith("error: ")]


def disk_full_in_a_save(stand: Stand, world: int) -> None:
    """It fills in the second save: one line; what was saved stays and nothing else; with room it goes on."""
    recipe = "hybrid"
    calm = stand.calm(recipe, world)
    of_one = sum(path.stat().st_size for path in newest(calm.run).path.iterdir())
    assert of_one > 2 * (calm.run / "journal.jsonl").stat().st_size  # the room for it, below
    disk = stand.fresh()
    with small_disk(disk, of_one * 7 // 4) as resize:
        ranks, run = stand.start(disk, recipe, world), disk / "run"
        statuses = ranks.wait(PATIENCE, alone=True)
        assert 2 in statuses, ranks.text()
        assert 0 not in statuses, ranks.text()
        (line,) = errors(ranks.text())
        assert f"cannot write {run / 'checkpoints'}: " in line
        assert "No space left on device" in line
        assert [path.name for path in (run / "checkpoints").iterdir()] == [folder_name(SAVE_EVERY)]
        assert newest(run).images == SAVE_EVERY
        resize(1 << 26)
        stand.finish(disk, recipe, world)
        assert tiny_runs.resumed(run) == [SAVE_EVERY]
        tiny_runs.assert_undisturbed(calm.run, run)


def disk_full_to_the_last_byte(stand: Stand, world: int) -> None:
    """Something else fills it while steps are made: one line; with room the run goes on."""
    recipe, disk = "hybrid", stand.fresh()
    calm = stand.calm(recipe, world)
    with small_disk(disk, 1 << 26):
        ranks, run = stand.start(disk, recipe, world, slow=0.1), disk / "run"
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
        stand.finish(disk, recipe, world)
        tiny_runs.assert_undisturbed(calm.run, run)


def fill(path: Path) -> Path:
    """Writes to a file until its file system has no byte left."""
    with suppress(OSError), open(path, "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    return path


def dead_in_a_save(stand: Stand) -> None:
    """A rank dies while it writes its part: the other ends too, though no launcher tells it to."""
    recipe, world = "moco", 2
    calm, outputs = stand.calm(recipe, world), stand.fresh()
    die = {"rank": 1, "phase": "part half written", "time": 2}
    ranks = stand.start(outputs, recipe, world, die=die)
    while ranks.statuses()[1] is None:
        time.sleep(0.02)
    assert ranks.wait(BOUND, alone=True) == [1, KILLED], ranks.text()
    assert newest(outputs / "run").images == SAVE_EVERY
    stand.finish(outputs, recipe, world)
    tiny_runs.assert_undisturbed(calm.run, outputs / "run")


def lost_rank(stand: Stand, engine: str) -> None:
    """A rank dies in the midst of training: the other says so in one line, without a traceback."""
    outputs = stand.fresh()
    die = {"rank": 1, "images": SAVE_EVERY + BATCH}
    ranks = stand.start(outputs, "hybrid", 2, engine=engine, die=die)
    assert ranks.wait(PATIENCE, alone=True) == [1, KILLED], ranks.text()
    (line,) = errors(ranks.text(0))
    assert line.startswith("error: rank 0: another rank has gone (")
    assert (outputs / "run" / "failed").read_text().splitlines()[1] == line.removeprefix("error: ")


def not_finite(stand: Stand) -> None:
    """A weight becomes NaN: one line; no checkpoint holds it; from the last one the run continues."""
    recipe, world = "dim_complete", 2
    calm, outputs = stand.calm(recipe, world), stand.fresh()
    ranks, run = stand.start(outputs, recipe, world, nan=2 * SAVE_EVERY + BATCH), outputs / "run"
    assert set(ranks.wait(PATIENCE, alone=True)) == {2}, ranks.text()
    (line,) = errors(ranks.text())
    assert "is not finite" in line
    assert str(run / "checkpoints") in line
    assert newest(run).images == 2 * SAVE_EVERY
    for images in kept(run / "checkpoints"):
        tensors = load(run / "checkpoints" / folder_name(images))
        assert all(tensor.isfinite().all() for tensor in tensors.values())
    stand.finish(outputs, recipe, world)
    tiny_runs.assert_undisturbed(calm.run, run)


def hung_disk(stand: Stand) -> None:
    """One of two ranks writes a checkpoint for ever: a line names it, all end, and the run continues."""
    recipe, world = "moco", 2
    calm, outputs = stand.calm(recipe, world), stand.fresh()
    hang = {"rank": 1, "images": 2 * SAVE_EVERY, "where": "disk"}
    ranks = stand.start(outputs, recipe, world, hang=hang)
    assert ranks.wait(PATIENCE, alone=True) == [2, 2], ranks.text()
    (line,) = errors(ranks.text())
    assert "still lacks part-00001-of-00002.safetensors" in line
    assert "rank 1 has not written its part of the checkpoint" in line
    assert newest(outputs / "run").images == SAVE_EVERY
    stand.finish(outputs, recipe, world)
    tiny_runs.assert_undisturbed(calm.run, outputs / "run")


def hung_rank(stand: Stand, where: str, hung: int = 2) -> None:
    """One of four ranks stops, or waits for data for ever: all others name it and end; the run continues."""
    recipe, world = "hybrid", 4
    calm, outputs = stand.calm(recipe, world), stand.fresh()
    places = {"watch": EVALUATE_EVERY, "save": 2 * SAVE_EVERY, "finish": IMAGES}
    hang = {"rank": hung, "images": places.get(where, 2 * SAVE_EVERY + BATCH), "where": where}
    short = ("step_timeout=5", "data.patience=0")  # with which a rank tells where it is twice a second
    ranks, run = stand.start(outputs, recipe, world, *short, hang=hang, slow=0.2), outputs / "run"
    ended_but(hung, ranks)
    for rank in set(range(world)) - {hung}:
        (line,) = [line for line in ranks.text(rank).splitlines() if f"rank {hung} " in line]
        told = re.search(r"had last finished '(\w+)' of the step after ([\d,]+) images", line)
        stage, images = told[1], int(told[2].replace(",", ""))
        if where == "data":  # it lives, and tells to the last
            assert (stage, images) == ("zero_grad", hang["images"])
        else:  # stopped: what it told last may be a moment old
            assert stage in STAGES
            assert hang["images"] - 10 * BATCH <= images < hang["images"]
        assert ranks.statuses()[rank] == 3
    stand.finish(outputs, recipe, world)
    tiny_runs.assert_undisturbed(calm.run, run)


def ended_but(hung: int, ranks: Ranks) -> str:
    """Waits until all other ranks have ended by themselves, ends this one; what all have said."""
    deadline = time.monotonic() + PATIENCE
    while not all(status for rank, status in enumerate(ranks.statuses()) if rank != hung):
        assert time.monotonic() < deadline, ranks.text()
        time.sleep(0.05)
    ranks.kill()
    return ranks.text()
