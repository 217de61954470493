"""SIGKILL in every phase of a save, twenty times each: no start from a broken checkpoint, none is lost.

Most of the kills meet a process that does nothing but save; every phase also meets the real training.
"""

import os
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.helpers.faults.fault_hooks import PHASES, REMOVED, dying, follow_saves
from tests.helpers.faults.fault_scenarios import has_phase, killed_in_every_phase
from tests.helpers.faults.tiny_runs import complain
from trainer.checkpoints.format import folder_name, verify
from trainer.checkpoints.load import kept, load, newest
from trainer.checkpoints.retention import clean
from trainer.checkpoints.save import snapshot, write

pytestmark = pytest.mark.slow

KILLS = 20
KEEP = 2

# ---- a process that saves ------------------------------------------------------------------------


def state(images: int) -> dict[str, torch.Tensor]:
    """Five tensors that tell of which save they are."""
    return {f"weights {n}": torch.arange(1000.0).view(100, 10) + images + n for n in range(5)}


def save_on(folder: Path, rank: int, world: int, start: int, before=lambda: None) -> None:
    """A rank of a run that saves again and again."""
    before()
    for images in range(start + 10, start + 100, 10):
        share = snapshot(state(images), rank, world)
        write(share, folder, images, {}, f"from-{start}", KEEP, timeout=0.3)


def fork(work) -> int:
    process = os.fork()
    if process == 0:
        with suppress(Exception):
            work()
        os._exit(0)
    return process


def ended(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.mark.parametrize("phase", PHASES)
def test_twenty_kills_of_what_only_saves(tmp_path, phase):
    """Each is of one or of two processes, of either rank, in the first, second or third save of a start."""
    reached = 0
    for kill in range(KILLS):
        world = 1 + kill % 2
        victim = kill // 2 % world if has_phase(1, phase) else 0
        time = 3 if phase in REMOVED and not reached else 1 + kill % 3
        clean(tmp_path)
        works = [partial(save_on, tmp_path, rank, world, reached) for rank in range(world)]
        works[victim] = partial(works[victim], partial(follow_saves, dying(phase, time)))
        processes = [fork(work) for work in works]
        assert ended(processes[victim]) == -signal.SIGKILL
        for process in set(processes) - {processes[victim]}:
            os.kill(process, signal.SIGKILL)
            ended(process)
        for images in kept(tmp_path):
            verify(tmp_path / folder_name(images))
        checkpoint = newest(tmp_path, complain)
        assert checkpoint or not reached
        if checkpoint:
            assert checkpoint.images >= reached
            loaded = load(checkpoint)
            assert all(torch.equal(loaded[name], t) for name, t in state(checkpoint.images).items())
            reached = checkpoint.images
    assert reached


@pytest.mark.parametrize(("recipe", "world"), [("dim_complete", 1), ("moco", 2)])
def test_the_training_killed_in_every_phase(harness, recipe, world):
    killed_in_every_phase(harness, recipe, world)
