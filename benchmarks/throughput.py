"""Images a second of recipes on this machine: end to end, of the model alone, of the loader alone.

    python benchmarks/throughput.py recipe=moco_cifar10 [key=value ...] [recipe=... ...] [--seconds 20]

Prints a row of Markdown for each `recipe=`, with the overrides that follow it; those of all recipes alike are
told once. End to end is the training step as `trainer/main.py` takes it, and data wait the share of that time
in which it waited for the next batch. The loader alone hands its batches to nobody. The model alone takes one
batch again and again, with no loader beside it. Each is measured for --seconds, after some steps that do not
count; GPU work that was only started when the time is up is waited for and counted. A recipe's `images` do
not matter: no run ends.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from trainer.distributed import launch

launch.set_environment()

import torch

from data_pipelines.common.errors import UserError
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.loader import Batch
from trainer.distributed import numerics
from trainer.recipe import loading
from trainer.runs import automatic
from trainer.training.build import build_trainer

WARM = 3  # steps before the clock starts: memory, the choice of kernels, the queue's first keys
ENDLESS = 10**12  # images


class Repeated:
    """One batch for ever, in the place of a loader."""

    def __init__(self, batch: Batch):
        self.batch = batch

    def __next__(self) -> Batch:
        return self.batch


def split(words: list[str]) -> list[list[str]]:
    """The words of each recipe: `recipe=` begins one.

    Raises:
        UserError: the first word begins none.
    """
    parts: list[list[str]] = []
    for word in words:
        if word.startswith("recipe="):
            parts.append([])
        elif not parts:
            raise UserError(f"'{word}' comes before any recipe; expected recipe=NAME first")
        parts[-1].append(word)
    return parts


def timed(step: Callable[[], object], warm: int, seconds: float) -> tuple[int, float]:
    """How many steps were taken and the seconds that they took: until `seconds` are over, at least one."""
    for _ in range(warm):
        step()
    finish()
    began, steps = time.perf_counter(), 0
    while not steps or time.perf_counter() - began < seconds:
        step()
        steps += 1
    finish()
    return steps, time.perf_counter() - began


def finish() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def measure(
    loaded: loading.ResolvedRecipe, context: launch.DistributedContext, seconds: float
) -> dict[str, float]:
    """Images a second by what is measured, and the share of waiting."""
    recipe = loaded.recipe.model_copy(update={"images": ENDLESS})
    numerics.configure(context.device, recipe.precision, recipe.tf32, recipe.deterministic)
    trainer = build_trainer(recipe, context, load_dataset(recipe.data.root, recipe.data.source))
    loader = trainer.loader
    try:
        for _ in range(WARM):
            trainer.step()
        finish()
        before = loader.waited
        steps, taken = timed(trainer.step, 0, seconds)
        figures = {"end to end": steps * recipe.batch / taken, "wait": (loader.waited - before) / taken}

        def load() -> Batch:
            return [next(loader) for _ in range(recipe.accumulate)][-1]

        steps, taken = timed(load, recipe.data.prefetch + 1, seconds)  # what was made ahead does not count
        figures["loader"] = steps * recipe.batch / taken

        trainer.loader = Repeated(load())
        loader.close()
        steps, taken = timed(trainer.step, WARM, seconds)
        return figures | {"model": steps * recipe.batch / taken}
    finally:
        trainer.loader = loader
        trainer.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="+", metavar="recipe=NAME key=value")
    parser.add_argument("--seconds", type=float, default=20, help="of each of the three measurements")
    options = parser.parse_args()
    parts = split(options.words)
    recipes = [loading.load(words) for words in parts]
    for loaded in recipes:
        if loaded.recipe.task != "pretrain":
            raise UserError(f"recipe={loaded.name} has task: {loaded.recipe.task}; pretrain was expected")
    context = launch.start(recipes[0].recipe.precision)
    recipes = [automatic.resolved(loaded, context.device) for loaded in recipes]
    if context.world_size > 1:
        raise UserError(f"{context.world_size} processes were started; speeds are measured on one")
    device = torch.cuda.get_device_name() if context.device.type == "cuda" else "CPU"
    cores = len(os.sched_getaffinity(0))
    print(f"{device}, {cores} cores, torch {torch.__version__}; images/s, {options.seconds:g} s each\n")
    common = [word for word in parts[0][1:] if len(parts) > 1 and all(word in words for words in parts)]
    if common:
        print(f"All with {' '.join(common)}\n")
    print("| recipe | px | batch | precision | end to end | model alone | loader alone | data wait |")
    print("|---|---:|---:|---|---:|---:|---:|---:|", flush=True)
    for loaded, words in zip(recipes, parts, strict=True):
        recipe, figures = loaded.recipe, measure(loaded, context, options.seconds)
        label = " ".join([loaded.name, *(word for word in words[1:] if word not in common)])
        cells = [label, recipe.data.size, recipe.batch, recipe.precision]
        cells += [f"{figures[name]:,.1f}" for name in ("end to end", "model", "loader")]
        print("| " + " | ".join(map(str, cells)) + f" | {figures['wait']:.1%} |", flush=True)
    return 0


if __name__ == "__main__":
    try:
        status = main()
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        status = 2
    launch.leave(status)
