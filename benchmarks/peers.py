"""MoCo-v2 of ResNet-18 on CIFAR-10 beside lightly's example: loader, model, both, and the wait for data.

    python benchmarks/peers.py outputs/peers/venv/bin/python [recipe=moco_cifar10 key=value ...] [--steps 8]

The argument is the Python of an environment that has lightly (`benchmarks/peers.sh` makes it). The two sides
take turns in processes of their own; each measures so many steps a turn, and medians of turns are compared,
behind one that does not count. A turn begins without the batches that were made ahead, and ends when they
are there again, so that neither side works in the turn of the other. Network, batch, head, queue,
augmentation and threads are equal; batch-norm of lightly is over the whole batch. Without data/cifar10
pictures are drawn.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from trainer.distributed import launch

launch.set_environment()

import numpy as np
import psutil

from benchmarks import drawn_pictures
from benchmarks.throughput import ENDLESS, Repeated
from data_pipelines.common.errors import UserError
from data_pipelines.dataset import Dataset
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.pillow import decoded
from data_pipelines.reader import Reader
from trainer.recipe import loading
from trainer.recipe.schema import Pretrain
from trainer.runs import automatic, machine
from trainer.training.build import build_trainer

WHAT = {"loader": "loader alone", "model": "model alone", "end": "end to end"}
DEFAULTS = ["batch=128", "groups.norm=16", "precision=float32", "data.resident=auto", "outputs=outputs/peers"]


class Ours:
    """The trainer's step, in this process."""

    def __init__(self, recipe: Pretrain, dataset: Dataset, context: launch.DistributedContext):
        recipe = recipe.model_copy(update={"images": ENDLESS})
        self.trainer = build_trainer(recipe, context, dataset)
        self.loader = self.trainer.loader
        self.same = Repeated(next(self.loader))

    def turn(self, what: str, steps: int) -> list[float]:
        """Seconds of so many steps, of waiting for data in them, of the processor a batch or step."""
        ahead = 0 if what == "model" else self.trainer.recipe.data.prefetch + 1
        worked = time.process_time()
        self.trainer.loader = self.same if what == "model" else self.loader
        step = self.loader.__next__ if what == "loader" else self.trainer.step
        for _ in range(ahead):
            next(self.loader)
        waited, began = self.loader.waited, time.perf_counter()
        for _ in range(steps):
            step()
        taken = time.perf_counter() - began
        time.sleep(ahead * taken / steps)
        return [taken, self.loader.waited - waited, (time.process_time() - worked) / (steps + ahead)]

    def close(self) -> None:
        self.trainer.loader = self.loader
        self.trainer.close()


class Lightly:
    """lightly's step, in its own environment's process."""

    def __init__(self, python: str, recipe: Pretrain, pixels: Path, threads: int):
        command = [python, str(ROOT / "benchmarks" / "peers_lightly.py"), setting(recipe, pixels, threads)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, **pipes)

    def turn(self, what: str, steps: int) -> list[float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        worked = self._worked()
        self.process.stdin.write(f"{what} {steps}\n")
        self.process.stdin.flush()
        if not (answer := self.process.stdout.readline()):
            raise UserError(f"lightly's side ended with status {self.process.wait()}; see above")
        seconds, waited, batches = json.loads(answer)
        return [seconds, waited, (self._worked() - worked) / batches]

    def _worked(self) -> float:
        """Processor seconds of its process and its loader's workers so far."""
        process = psutil.Process(self.process.pid)
        times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
        return sum(one.user + one.system for one in times)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def setting(recipe: Pretrain, pixels: Path, threads: int) -> str:
    """What lightly's side has to know of the recipe, as JSON.

    Raises:
        UserError: it is no MoCo of a ResNet-18 with one linear layer behind it.
    """
    encoder, objective = recipe.encoder, recipe.objective
    kinds = (encoder.kind, objective.kind)
    if kinds != ("resnet", "moco") or (encoder.depth, encoder.stem, objective.head.units) != (18, "cifar", 0):
        raise UserError(
            "recipe: expected moco on resnet with depth=18, stem=cifar and objective.head.units=0"
        )
    values = {
        "pixels": str(pixels),
        "width": encoder.width,
        "head": objective.head.width,
        "keys": objective.queue.keys,
        "temperature": objective.temperature,
        "momentum": objective.momentum,
        "batch": recipe.batch,
        "precision": recipe.precision,
        "lr": recipe.optimizer.rate(recipe.batch),
        "sgd_momentum": recipe.optimizer.momentum,
        "weight_decay": recipe.optimizer.weight_decay,
        "scale": recipe.data.views[0].crop.scale.low,
        "mean": list(recipe.data.normalize.mean),
        "std": list(recipe.data.normalize.std),
        "threads": threads,
        "workers": recipe.data.threads,
    }
    return json.dumps(values)


@contextmanager
def data(words: list[str]) -> Iterator[tuple[loading.ResolvedRecipe, Dataset, Path]]:
    """The recipe on its data set, or on drawn pictures where that is missing; and the pixels as an array."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = loading.load(words)
        if not (Path(loaded.recipe.data.root) / "dataset.json").exists():
            drawn_pictures.cifar10(Path(folder) / "drawn")
            loaded = loading.load([*words, f"data.root={folder}/drawn/shards"])
        dataset = load_dataset(loaded.recipe.data.root, loaded.recipe.data.source)
        pixels = Path(folder) / "pixels.npy"
        with Reader(dataset, "train") as reader:
            ids = np.arange(min(reader.images, 5000))
            np.save(pixels, np.stack([decoded(image) for image in reader.read(ids)]), allow_pickle=False)
        yield loaded, dataset, pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("python", help="of an environment that has lightly")
    parser.add_argument("words", nargs="*", metavar="key=value", help="recipe=moco_cifar10 and what differs")
    parser.add_argument("--steps", type=int, default=8, help="of a turn")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    named = any(word.startswith("recipe=") for word in options.words)
    words = [*(() if named else ("recipe=moco_cifar10",)), *DEFAULTS, *options.words]
    context = launch.start("float32")
    with data(words) as (loaded, dataset, pixels):
        split = machine.training_split(dataset, loaded.recipe.data)
        recipe = automatic.resolved(loaded, context.device, split).recipe
        sides = {
            "lightly": Lightly(options.python, recipe, pixels, context.threads),
            "ours": Ours(recipe, dataset, context),
        }
        try:
            report(recipe, sides, options, context.threads)
        finally:
            for side in sides.values():
                side.close()


def report(recipe: Pretrain, sides: dict, options: argparse.Namespace, threads: int) -> None:
    """Measures, and prints the table."""
    cores = len(os.sched_getaffinity(0))
    print(
        f"width {recipe.encoder.width}, batch {recipe.batch}, {recipe.precision}, {threads} of {cores} cores,"
    )
    print(f"resident={recipe.data.resident}; medians of {options.turns} turns of {options.steps} steps\n")
    print("| | lightly, images/s | ours | ratio | lightly, CPU ms an image | ours | ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for what, label in WHAT.items():
        turns: dict[str, list[list[float]]] = {name: [] for name in sides}
        for turn in range(options.turns + 1):
            for name, side in sides.items():
                took = side.turn(what, options.steps)
                if turn:
                    turns[name].append(took)
        medians = {
            name: [statistics.median(c) for c in zip(*each, strict=True)] for name, each in turns.items()
        }
        theirs, ours = medians["lightly"], medians["ours"]
        cells = [f"{options.steps * recipe.batch / side[0]:,.1f}" for side in (theirs, ours)]
        cells += [f"{theirs[0] / ours[0]:.2f}"]
        # end to end, batches that are made ahead and steps are not equally many
        cells += (
            [""] * 3 if what == "end" else [f"{1e3 * side[2] / recipe.batch:.3f}" for side in (theirs, ours)]
        )
        cells += [] if what == "end" else [f"{theirs[2] / ours[2]:.2f}"]
        print(f"| {label} | " + " | ".join(cells) + " |", flush=True)
    waits = [side[1] / side[0] for side in (theirs, ours)]
    print(f"| data wait, end to end | {waits[0]:.1%} | {waits[1]:.1%} | | | | |")


if __name__ == "__main__":
    try:
        main()
        status = 0
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        status = 2
    launch.leave(status)
