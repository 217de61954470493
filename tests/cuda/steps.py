"""Steps of recipes on CUDA tensors that do not exist, in a process that has `device.cpp` loaded.

    python -m tests.cuda.steps RECIPE[@WAY] ...     # prints a line of JSON each; `device.py` starts it

WAY is how batch-norm's groups are computed (`grouped_statistics.WAYS`); by default as on a GPU with Triton.

The trainer and everything below it are the product's; the batches are made here, with no data read.
"""

import json
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from data_pipelines.loader import Batch, Loader
from data_pipelines.noise import Noise
from data_pipelines.plan import BatchShare, Plan, shuffled
from data_pipelines.rows import Rows
from data_pipelines.views import Shuffle
from tests.cuda.spy import Spy
from trainer.checkpoints.save import PinnedMemory, snapshot
from trainer.checkpoints.state import StateValue
from trainer.distributed import numerics
from trainer.distributed.engine_kind import EngineKind
from trainer.distributed.launch import DistributedContext
from trainer.distributed.rows import TensorShard
from trainer.evaluation.heads import Mlp, fit
from trainer.networks.grouped_statistics import computed_by
from trainer.objectives import queue_attention
from trainer.objectives.objective import Objective
from trainer.objectives.queue_attention import Kernel
from trainer.recipe.diffusion import Diffuse
from trainer.recipe.evaluation import MlpProbe
from trainer.recipe.loading import load
from trainer.recipe.training_recipe import TrainingRecipe
from trainer.tasks.latent_source import latent_shapes
from trainer.training.build import build_objective
from trainer.training.data import DTYPES, TrainingData
from trainer.training.diffusion import build_diffusion, sample_shapes
from trainer.training.trainer import Trainer

DEVICE = torch.device("cuda", 0)
BATCH, QUEUE, PROBE, MISUSE = "batch", "queue", "probe", "misuse"  # in the place of a recipe's name
Shapes = list[tuple[int, ...]]


class Batches(TrainingData):
    """Batches of a run whose views are empty memory on the device, in the layout that the loader makes."""

    name, samples = "none", 1_000_000

    def __init__(self, recipe: TrainingRecipe, shapes: Shapes):
        self.recipe, self.shapes = recipe, shapes

    def loader(self, share: BatchShare, start: int, stop: int) -> Iterator[Batch]:
        recipe, dtype, n = self.recipe, DTYPES[self.recipe.precision], share.micro_batch
        for seen in range(start, stop, share.batch):
            order = None
            if share.shuffle:
                sizes = share.shuffle.group, share.shuffle.groups
                order = shuffled(recipe.seed, seen, share.batch, *sizes)
            for micro in share.slices:
                views = [torch.empty(n, *shape, dtype=dtype, device=DEVICE) for shape in self.shapes]
                views = [
                    view.to(memory_format=torch.channels_last) if view.dim() == 4 else view for view in views
                ]
                places = np.stack([seen + np.arange(share.batch)[micro]] * len(views))
                labels = torch.zeros(n, dtype=torch.int64)
                noise = Noise(recipe.seed, seen, micro.start, n)
                yield Batch(views, places, places, labels, seen, noise, order)

    def close(self) -> None:
        return


def built(name: str) -> tuple[TrainingRecipe, Objective, Shapes]:
    """A recipe, its objective on the host, and the shapes of a sample of each view."""
    recipe = load([f"recipe={name}"]).recipe
    if isinstance(recipe, Diffuse):
        latent = {}
        if recipe.data is None:
            latent = latent_shapes(load([f"recipe={recipe.from_.rpartition('/')[2]}"]).recipe)
        shapes = sample_shapes(recipe, latent)
        return recipe, build_diffusion(recipe, shapes), list(shapes.values())
    return recipe, build_objective(recipe), [(3, recipe.data.size, recipe.data.size)] * len(recipe.data.views)


def step(words: str) -> dict:
    """What the second step of a recipe does; the first also makes the optimizer's state and the queue."""
    began = time.perf_counter()
    name, _, way = words.partition("@")
    recipe, objective, shapes = built(name)
    numerics.configure(DEVICE, recipe.precision, recipe.tf32, recipe.deterministic)
    context = DistributedContext(0, 1, 1, EngineKind.SINGLE_PROCESS, DEVICE, None)
    spy = Spy()
    with FakeTensorMode(allow_non_fake_inputs=True), computed_by(way or "kernels"):
        trainer = Trainer(recipe, context, objective.to(DEVICE), Batches(recipe, shapes))
        trainer.step()
        with spy:
            trainer.step()
        looks = [look_at(trainer, weights_only) for weights_only in (True, False)]
        saves = saved(trainer)
        seconds = time.perf_counter() - began
    return {
        "recipe": words,
        "launches": spy.launches.total(),
        "megabytes": spy.bytes / 1e6,
        "copies": dict(spy.copies),
        "faults": dict(spy.faults),
        "nondeterministic": dict(spy.nondeterministic),
        "operations": dict(spy.launches.most_common()),
        "seconds": seconds,
        "looks": dict(zip(("log", "save"), looks, strict=True)),
        "saves": saves,
    }


def saved(trainer: Trainer) -> dict:
    """What the second save of a run does; the first also makes the memory that is copied to."""
    memory = PinnedMemory()
    first = snapshot(trainer.state(), 0, 1, memory)
    with Spy() as spy:
        second = snapshot(trainer.state(), 0, 1, memory)
    copies = spy.launches.pop("copy_", 0)
    on_device = [name for name, value in trainer.state().items() if rows_of(value).is_cuda]
    return {
        "copies": copies,
        "tensors": len(on_device),
        "others": dict(spy.launches),
        "faults": dict(spy.faults),
        "kept": all(second.parts[name].rows is first.parts[name].rows for name in on_device),
    }


def rows_of(value: StateValue) -> torch.Tensor:
    return value.rows if isinstance(value, TensorShard) else value


def look_at(trainer: Trainer, weights_only: bool) -> dict:
    """What the engine's look for numbers that are not finite does, before a log line and before a save."""
    with Spy() as spy:
        trainer.engine.finite(DEVICE, weights_only)
    return {"launches": spy.launches.total(), "copies": dict(spy.copies), "faults": dict(spy.faults)}


def batch() -> dict:
    """What a loader does to make a batch of rows in memory, whose second view is shuffled."""
    share = BatchShare(64, shuffle=Shuffle(group=8, groups=2, views=(1,)))
    table = np.zeros((1000, 3), np.float32)
    loader = Loader(Rows([table, table], device=DEVICE), Plan(7, [1000], 2), share, start=0, stop=0)
    with FakeTensorMode(allow_non_fake_inputs=True), Spy() as spy:
        made = loader._batch(0, share.slices[0])
    loader.close()
    assert all(view.is_cuda for view in made.views)
    return {
        "recipe": BATCH,
        "copies": dict(spy.copies),
        "faults": dict(spy.faults),
        "labels": str(made.label.device),
    }


def probe() -> dict:
    """What two steps of the MLP probe do, whose dropout is drawn on the host."""
    head = Mlp(8, 10, MlpProbe(epochs=1, batch=32, units=16), seed=0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x, y = torch.empty(64, 8, device=DEVICE), torch.zeros(64, dtype=torch.int64, device=DEVICE)
        mean, scale = torch.zeros(8, device=DEVICE), torch.ones(8, device=DEVICE)
        head.to(DEVICE)
        with Spy() as spy:
            fit([head], x, y, mean, scale, seed=0)
    return {"recipe": PROBE, "copies": dict(spy.copies), "faults": dict(spy.faults)}


def queue() -> dict:
    """In how many pieces the published queue is attended to where it is kept in bf16, by way."""
    calls = {"fused": 0, "chunked": 0}

    def counted(way: str, kernel: Kernel) -> Kernel:
        def call(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
            calls[way] += 1
            return kernel(*arguments)

        return call

    queue_attention.fused = counted("fused", queue_attention.fused)
    queue_attention.chunk = counted("chunked", queue_attention.chunk)
    with FakeTensorMode():
        keys = torch.empty(2**16, 128, dtype=torch.bfloat16, device=DEVICE)
        for way in calls:
            queue_attention.attend(torch.empty(256, 128, device=DEVICE), keys, 0.2, way)
    return {"recipe": QUEUE, "pieces": calls}


def misuse() -> dict:
    """What a spy says of a few lines that do all that is not allowed: that it says something is tested."""
    spy, host = Spy(), torch.ones(2)
    with FakeTensorMode(allow_non_fake_inputs=True):
        maps = torch.ones(2, 3, 4, 4, device=DEVICE)
        with spy:
            maps.to("cpu")
            host.to(DEVICE)
            host.pin_memory().to(DEVICE, non_blocking=True)
            torch.nn.functional.conv2d(maps, torch.ones(5, 3, 1, 1, device=DEVICE))
            maps[0, 0, 0, :2].cumsum(0)
            for not_allowed in (maps.sum().item, lambda: maps[maps > 0]):
                with suppress(Exception):  # of the fake tensors, which have no values
                    not_allowed()
    return {
        "recipe": MISUSE,
        "copies": dict(spy.copies),
        "faults": dict(spy.faults),
        "nondeterministic": dict(spy.nondeterministic),
    }


def pretend_cuda_build() -> None:
    """What torch's Python code asks of a build for CUDA, as one for CUDA 13 answers."""

    def pinned(tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.clone()
        copy.pinned = True
        return copy

    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *_, **__: True
    torch.version.cuda = "13.0"
    torch.Tensor.pin_memory = pinned


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    pretend_cuda_build()
    for recipe_name in sys.argv[1:]:
        others = {BATCH: batch, QUEUE: queue, PROBE: probe, MISUSE: misuse}
        done = others[recipe_name]() if recipe_name in others else step(recipe_name)
        print(json.dumps(done), flush=True)
