"""What a run takes of a machine, and what the machine has left: bytes of disk and of memory."""

import os
import resource
import shutil
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import nn

from trainer.distributed.engine_kind import EngineKind
from trainer.distributed.launch import DistributedContext
from trainer.distributed.variables import local_world_size
from trainer.objectives.objective import Objective
from trainer.recipe.training_recipe import TrainingRecipe
from trainer.tasks.environment.machine import cgroup_limits
from trainer.training.data import DTYPES
from trainer.training.schedules import whole_batches

SMALL_FILES = 2**20  # bytes of recipe, journal and results, at the least
SHARDED = (EngineKind.ZERO1, EngineKind.ZERO2, EngineKind.ZERO3, EngineKind.FSDP2)


@dataclass(frozen=True)
class Sizes:
    """Bytes of what is trained, whole, on no rank in particular."""

    parameters: int
    gradients: int
    moments: int
    queue: int
    exported: int

    @property
    def checkpoint(self) -> int:
        return self.parameters + self.moments + self.queue


def sizes_of(recipe: TrainingRecipe, objective: Objective, exported: nn.Module | None = None) -> Sizes:
    """The sizes of an objective, which may be on the device `meta`; `exported`: its part that is."""
    size = DTYPES[recipe.precision].itemsize
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    return Sizes(
        parameters=size * sum(p.numel() for p in objective.parameters()),
        gradients=size * trained,
        moments=size * recipe.optimizer.slots * trained,
        queue=queue_bytes(recipe),
        exported=size * sum(p.numel() for p in exported.parameters()) if exported else 0,
    )


def queue_bytes(recipe: TrainingRecipe) -> int:
    """Bytes of the whole momentum queue; 0 where the objective has none."""
    queue = recipe.objective.momentum_queue
    if queue is None:
        return 0
    storage = torch.bfloat16 if queue.bf16 else DTYPES[recipe.precision]
    return queue.keys * recipe.objective.key_width * storage.itemsize


# ---- disk ------------------------------------------------------------------------------------------


def disk_needed(recipe: TrainingRecipe, sizes: Sizes, features: int) -> int:
    """The most bytes of a run's folder: checkpoints while one more is written, or export and `features`.

    What `save.keep_every` keeps comes on top: it grows with the run.
    """
    saves = max(1, whole_batches(recipe.images, recipe.batch) // recipe.save.every)
    training = min(recipe.save.keep + 1, saves) * sizes.checkpoint
    end = min(recipe.save.keep, saves) * sizes.checkpoint + sizes.exported + features
    return max(training, end) + SMALL_FILES


def disk_left(folder: Path) -> int:
    """Bytes that may be written below a folder that may not exist yet, those of its checkpoints included."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    return shutil.disk_usage(there).free + sum(_file_sizes(folder / "checkpoints"))


def _file_sizes(folder: Path) -> Iterator[int]:
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # another process of this run, which is ending, may remove it
                yield os.path.getsize(os.path.join(parent, name))


def obstacle(folder: Path) -> str | None:
    """Why no file can be written in a folder, which may have to be made first; None where one can."""
    for path in (folder, *folder.absolute().parents):
        if os.path.lexists(path):
            if not os.path.isdir(path):
                return f"{path} is no folder"
            return None if os.access(path, os.W_OK | os.X_OK) else f"{path} is not writable"
    return None


# ---- memory ----------------------------------------------------------------------------------------


def memory_needed(sizes: Sizes, context: DistributedContext) -> int:
    """The bytes that a rank's state takes at the least, without activations and batches.

    On the CPU the copy that a checkpoint is written from is among them. Engines that shard keep at least a
    rank's part of everything.
    """
    state = sizes.parameters + sizes.gradients + sizes.moments
    if context.engine in SHARDED:
        state //= context.world_size
    state += sizes.queue // context.world_size
    copy = sizes.checkpoint // context.world_size if context.device.type == "cpu" else 0
    return state + copy


def memory_left(context: DistributedContext) -> tuple[int, str]:
    """The bytes that this rank can still take, and what limits them."""
    if context.device.type == "cuda":
        return torch.cuda.mem_get_info(context.device)[0], "the GPU"
    process, ranks = psutil.Process().memory_info(), local_world_size()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # psutil: some containers do not say how much was swapped
        swap = psutil.swap_memory().free
    machine = (psutil.virtual_memory().available + swap) // ranks
    limits = [(machine, "the machine")]
    if group := cgroup_limits()[1]:
        limits.append((group // ranks - process.rss, "the control group"))
    addresses = resource.getrlimit(resource.RLIMIT_AS)[0]
    if addresses != resource.RLIM_INFINITY:
        limits.append((addresses - process.vms, "`ulimit -v`"))
    left, what = min(limits)
    return max(0, left), what
