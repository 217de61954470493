"""The speeds of a recipe on drawn pictures, and of the same step in plain PyTorch, as figures of a row."""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import drawn_pictures
from benchmarks.gpu_rows import KERNELS, OPERATIONS, Row, idle, of_trace, speed
from benchmarks.momentum_queue import MEMORY
from benchmarks.plain_steps import PlainStep
from benchmarks.throughput import ENDLESS, Repeated, finish, timed
from data_pipelines.dataset import Dataset
from data_pipelines.dataset_loading import load_dataset
from trainer.distributed import numerics
from trainer.distributed.launch import DistributedContext
from trainer.recipe import loading
from trainer.recipe.schema import Pretrain
from trainer.runs import automatic, machine
from trainer.training.build import build_trainer

Opened = tuple[Pretrain, Dataset]
TRACED = 3  # steps under the profiler
SMALL = ["batch=16", "groups.norm=8"]
RECIPES: dict[str, dict[str, list[str]]] = {  # by sizes: the overrides of each recipe
    "full": {name: [] for name in ("dim_local", "moco_cifar10", "hybrid_cifar10", "moco_imagenet")},
    "tiny": {
        "dim_local": [*SMALL, "encoder.channels=[8, 16, 32]", "encoder.fc=32", "objective.critic.units=32"],
        "moco_cifar10": [*SMALL, "encoder.width=8", "objective.queue.keys=64", "objective.shuffle=2"],
        "hybrid_cifar10": [
            *SMALL,
            *("encoder.width=8", "encoder.cells=1", "encoder.tower=1", "encoder.decoder_tower=1"),
            *("objective.contrast.queue.keys=64", "objective.contrast.shuffle=2"),
        ],
        "moco_imagenet": [
            *SMALL,
            *("encoder.width=4", "encoder.depth=18", "data.size=64"),
            *("objective.queue.keys=64", "objective.shuffle=2", "precision=float32"),
        ],
    },
}


def drawn(folder: Path, size: int, sizes: str) -> Path:
    """Shards of pictures of a size, drawn at the first call: CIFAR-10's files, or square PNGs."""
    name = "cifar10" if size == 32 else f"squares_{size}"
    target = folder / name
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            made = Path(unfinished) / name
            made.mkdir()
            if size == 32:
                drawn_pictures.cifar10(made)
            else:
                drawn_pictures.squares(made, 1024 if sizes == "full" else 64, size)
            made.rename(target)
    return target / "shards"


def opened(name: str, words: list[str], folder: Path, sizes: str, device: torch.device) -> Opened:
    """A recipe with its `auto` resolved, on drawn pictures that are kept decoded, and these."""
    # in the pictures' folder no run lies whose recipe.yaml would decide what `auto` is
    words = ["precision=auto", "data.resident=true", f"outputs={folder}", *RECIPES[sizes][name], *words]
    size = loading.load([f"recipe={name}", *words]).recipe.data.size
    root = drawn(folder, size, sizes)
    loaded = loading.load([f"recipe={name}", *words, f"data.root={root}"])
    dataset = load_dataset(root)
    split = machine.training_split(dataset, loaded.recipe.data)
    return automatic.resolved(loaded, device, split).recipe, dataset


def product(device: torch.device, sizes: str, seconds: float) -> Row:
    """The rate of a large bf16 product on random numbers, operations a second."""
    side = 8192 if sizes == "full" else 512
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    steps, taken = timed(lambda: a @ b, 3, seconds)
    return {"side": side, "bf16_rate": 2 * side**3 * steps / taken}


def watched(step: Callable[[], object], device: torch.device, seconds: float) -> tuple[float, Row]:
    """Steps a second, and what a step does: launches, the share of time without any, memory at its peak."""
    _, highest, forget = MEMORY[device.type]
    forget()
    steps, taken = timed(step, 2, seconds)
    peak = highest() / 1e9
    launches, busy = traced(step, device)
    figures = {"launches": launches / TRACED, "idle": idle(busy, TRACED, taken / steps), "peak_gb": peak}
    return steps / taken, figures


def operations(step: Callable[[], object]) -> float:
    """Floating-point operations of the products and convolutions of a step, a multiply-add being two."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def traced(step: Callable[[], object], device: torch.device) -> tuple[int, float]:
    """Launches of `TRACED` steps, and the seconds in which something ran; on a CPU, of torch's operations."""
    finish()
    activities = [getattr(torch.profiler.ProfilerActivity, device.type.upper())]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(TRACED):
            step()
        finish()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        return of_trace(json.loads(path.read_bytes()), KERNELS if device.type == "cuda" else OPERATIONS)


def described(recipe: Pretrain, name: str, step: str) -> Row:
    cells = {"px": recipe.data.size, "batch": recipe.batch, "precision": recipe.precision}
    return {"recipe": name, "step": step} | cells


def ours(name: str, opened: Opened, context: DistributedContext, seconds: float, peak: float | None) -> Row:
    """The training step as `trainer/main.py` takes it, end to end, then on one batch.

    Launches, idle time and memory are those end to end, with the kernels that make views.
    """
    recipe, dataset = opened
    numerics.configure(context.device, recipe.precision, recipe.tf32, recipe.deterministic)
    trainer = build_trainer(recipe.model_copy(update={"images": ENDLESS}), context, dataset)
    loader = trainer.loader
    try:
        trainer.step()
        waited, began = loader.waited, time.perf_counter()
        rate, figures = watched(trainer.step, context.device, seconds)
        wait = (loader.waited - waited) / (time.perf_counter() - began)
        figures |= {"end_to_end": rate * recipe.batch, "wait": wait}
        trainer.loader = Repeated(next(loader))
        loader.close()
        flop = operations(trainer.step)
        steps, taken = timed(trainer.step, 2, seconds)
        return described(recipe, name, "eager") | figures | speed(recipe.batch, steps / taken, flop, peak)
    finally:
        trainer.loader = loader
        trainer.close()


def plain(name: str, opened: Opened, context: DistributedContext, seconds: float, peak: float | None) -> Row:
    """The same network and sizes by `PlainStep`, on one batch of equal views, with torch's own settings."""
    recipe, dataset = opened
    trainer = build_trainer(recipe.model_copy(update={"images": ENDLESS}), context, dataset)
    batch = next(trainer.loader)
    trainer.close()
    del trainer
    plain_step = PlainStep(recipe, context.device)

    def step() -> object:
        return plain_step(batch)

    step()
    flop = operations(step)
    rate, figures = watched(step, context.device, seconds)
    return described(recipe, name, plain_step.by) | figures | speed(recipe.batch, rate, flop, peak)
