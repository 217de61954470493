"""Faults inside a rank, made by wrapping real functions: it notes its stage, dies, hangs or fails there."""

import builtins
import errno
import io
import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

# The phases of a save, in their order. Ranks but the first have those of their part only.
PART = ("part half written", "part written", "part flushed", "part described")
PUBLISHED = ("manifest written", "manifest named", "before the rename", "after the rename")
REMOVED = ("old one hidden", "old one half removed", "old one removed")
PHASES = PART + PUBLISHED + REMOVED


def install(
    rank: int,
    logs: Path,
    die: dict | None = None,
    hang: dict | None = None,
    record: bool = False,
    nan: int | None = None,
    slow: float = 0.0,
    linger: float = 0.0,
    misread: dict | None = None,
    archive: dict | None = None,
) -> None:
    """Prepares this process, before it runs main.py.

    Args:
        die: {"rank", "phase", "time"}: SIGKILL to itself when that rank reaches the phase of a save for the
            time-th time; {"rank", "images"}: before the step after so many images, and, with {"behind"},
            not before that path exists: a checkpoint is written beside the steps that follow it.
        hang: {"rank", "images", "where"}: SIGSTOP to itself before it makes a step ("step"), evaluates
            ("evaluate_online"), saves ("save"), starts the final evaluation ("finish") or logs a step
            ("log"), after so many images; "data": its loader returns nothing any more, "disk": its next
            checkpoint's write does not end, and it lives.
        record: write its samples to logs/ids-RANK.jsonl. nan: a weight is NaN after so many images.
        slow, linger: seconds that every step, and the page of views at the end, take longer.
        misread: {"rank", "images"}: the next read of that rank after so many images fails, once.
        archive: {"source", "address", "path"}: the source's archive is this file at this address.
    """
    if archive:
        from tests.helpers.served_archives import publish  # here, since it imports numpy

        publish(**archive)
    note_stages(logs / f"stage-{rank}")
    if record:
        record_ids(logs / f"ids-{rank}.jsonl")
    if nan is not None:
        before("step", nan, make_nan)
    if slow:
        before("step", None, lambda trainer: time.sleep(slow))
    if linger:
        linger_over_views(linger)
    if misread and misread["rank"] == rank:
        before("step", misread["images"], lambda trainer: fail_a_read())
    if die and die["rank"] == rank:
        if "phase" in die:
            follow_saves(dying(die["phase"], die["time"]))
        else:
            before("step", die["images"], lambda trainer: kill_self(die.get("behind")))
    if hang and hang["where"] == "disk":
        wait_for_disk(**hang, this_rank=rank)
    elif hang and hang["rank"] == rank and hang["where"] == "data":
        before("step", hang["images"], lambda trainer: setattr(trainer, "loader", Silent()))
    elif hang and hang["rank"] == rank:
        before(hang["where"], hang["images"], lambda trainer: os.kill(os.getpid(), signal.SIGSTOP))


class Silent:
    """A loader that never gives a batch."""

    waited = 0.0

    def __next__(self):
        time.sleep(3600)


def wait_for_disk(rank: int, images: int, this_rank: int, **_: object) -> None:
    """The write at `images` does not end on `rank`; every rank waits for seconds instead of minutes."""
    from trainer.runs import run

    inner, run.PART_TIMEOUT = run.write, 6.0

    def write(snapshot, folder, seen, *arguments, **options):
        if this_rank == rank and seen == images:
            time.sleep(3600)
        return inner(snapshot, folder, seen, *arguments, timeout=3.0, **options)

    run.write = write


def kill_self(behind: str | None = None) -> None:
    while behind and not os.path.exists(behind):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def dying(phase: str, number: int) -> Callable[[str], None]:
    """A function of the phases reached that kills the process at a phase for the number-th time."""
    assert phase in PHASES
    counts = Counter()

    def reached(name: str) -> None:
        counts[name] += 1
        if counts[phase] == number:
            kill_self()

    return reached


# ---- where a rank is -------------------------------------------------------------------------------


def note_stages(path: Path) -> None:
    """Keeps the stage and the images seen in a file: start, step, evaluation, save or finish."""
    from trainer.runs import run
    from trainer.tasks import pretrain, training_run
    from trainer.training.trainer import Trainer

    file = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
    now = {"stage": "start", "images": 0, "writing": 0}

    def note(**changes) -> None:
        now.update(changes)
        stage = "save" if now["writing"] else now["stage"]
        os.pwrite(file, f"{stage:<12}{now['images']:>12}\n".encode(), 0)

    def during(owner, name: str, stage: str) -> None:
        """Wraps a function whose first argument is the trainer: notes its stage, and `step` after it."""
        inner = getattr(owner, name)

        def noting(trainer, *arguments):
            note(stage=stage, images=trainer.images)
            try:
                return inner(trainer, *arguments)
            finally:
                note(stage="step", images=trainer.images)

        setattr(owner, name, noting)

    def write(*arguments, **options):
        note(writing=1)
        try:
            return inner_write(*arguments, **options)
        finally:
            note(writing=0)

    during(Trainer, "step", "step")
    during(pretrain, "evaluate_online", "evaluation")
    during(training_run, "save", "save")
    during(pretrain, "finish", "finish")
    inner_write, run.write = run.write, write


def before(name: str, images: int | None, act: Callable) -> None:
    """Calls `act` with the trainer before a step, a log, a save, an evaluation or the end; None: always."""
    from trainer.tasks import pretrain, training_run
    from trainer.training.trainer import Trainer

    owners = {"step": Trainer, "log": training_run, "save": training_run}
    owner = owners.get(name, pretrain)
    inner = getattr(owner, name)

    def acting(trainer, *arguments):
        if images in (None, trainer.images):
            act(trainer)
        return inner(trainer, *arguments)

    setattr(owner, name, acting)


def make_nan(trainer) -> None:
    import torch

    with torch.no_grad():
        next(iter(trainer.objective.parameters()))[0] = float("nan")


def linger_over_views(seconds: float) -> None:
    from trainer.evaluation.figures import images

    inner = images.views

    def slow(*arguments):
        time.sleep(seconds)
        inner(*arguments)

    images.views = slow


def fail_a_read() -> None:
    real = os.pread

    def failing(*_):
        os.pread = real
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    os.pread = failing


def record_ids(path: Path) -> None:
    """Appends a line for each batch: images seen before it, positions and ids of the samples of each view."""
    from data_pipelines.loader import Loader

    inner = Loader.__next__

    def recording(loader):
        batch = inner(loader)
        reader = getattr(loader.view_maker, "reader", None)  # rows of tables have none
        if reader is None or reader.split == "train":  # evaluation has loaders of its own
            with open(path, "a") as file:
                line = [batch.images_seen, batch.positions.tolist(), batch.ids.tolist()]
                file.write(json.dumps(line) + "\n")
        return batch

    Loader.__next__ = recording


# ---- where a save is -------------------------------------------------------------------------------


def follow_saves(reached: Callable[[str], None]) -> None:
    """Calls `reached` with each of PHASES that a save of this process reaches, judged by its calls on files.

    It replaces, until the process ends, the functions of `os` that a save calls.
    """
    real = {name: getattr(os, name) for name in ("fsync", "replace", "rename", "unlink", "rmdir")}
    hidden = set()  # by this process: a start also removes what dead processes have hidden

    def opened(path, mode="r", *arguments, **options):
        if mode == "wb" and is_part(path):
            return Halting(path, reached)
        return real_open(path, mode, *arguments, **options)

    def fsync(descriptor):
        part = is_part(os.readlink(f"/proc/self/fd/{descriptor}"))
        if part:
            reached("part written")
        real["fsync"](descriptor)
        if part:
            reached("part flushed")

    def replace(source, to, **options):
        name = os.path.basename(to)
        if name == "manifest.json":
            reached("manifest written")
        real["replace"](source, to, **options)
        if name == "manifest.json":
            reached("manifest named")
        elif re.fullmatch(r"part-\d+-of-\d+\.json", name):
            reached("part described")

    def rename(source, to, **options):
        published = re.fullmatch(r"images-\d+", os.path.basename(to))
        if published:
            reached("before the rename")
        real["rename"](source, to, **options)
        if published:
            reached("after the rename")
        elif str(to).endswith(".removing"):
            hidden.add(str(to))
            reached("old one hidden")

    def unlink(path, *, dir_fd=None):
        folder = os.path.dirname(path) if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
        real["unlink"](path, dir_fd=dir_fd)
        if str(folder) in hidden:
            reached("old one half removed")

    def rmdir(path, *, dir_fd=None):
        real["rmdir"](path, dir_fd=dir_fd)
        if str(path) in hidden:
            reached("old one removed")

    real_open, builtins.open = builtins.open, opened
    os.fsync, os.replace, os.rename, os.unlink, os.rmdir = fsync, replace, rename, unlink, rmdir


def is_part(path) -> bool:
    return re.fullmatch(r"part-\d+-of-\d+\.safetensors", os.path.basename(path)) is not None


class Halting(io.BufferedWriter):
    """A part's file that reports when its header and some of its tensors are written."""

    def __init__(self, path, reached: Callable[[str], None]):
        super().__init__(io.FileIO(path, "w"))
        self._reached, self._writes = reached, 0

    def write(self, content) -> int:
        written = super().write(content)
        self._writes += 1
        if self._writes == 4:
            self.flush()
            self._reached("part half written")
        return written
