"""DIM's local InfoNCE and its gradient beside a port of the published loss: time and memory.

    python benchmarks/local_infonce.py [--images 64 128 256] [--locations 64] [--units 256] [--repeats 5]

The port (`infonce_of_all_scores` of benchmarks/plain_steps.py) makes all B·L x (1 + B·L) scores, as
rdevon/DIM does. Encodings are drawn, on one thread; the two take turns and medians are compared, behind a
turn that does not count. Memory is the highest beyond what the process held before, in a process for each.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from trainer.distributed import launch

launch.set_environment()

import torch
from torch import Tensor

from benchmarks.momentum_queue import MEMORY
from benchmarks.plain_steps import infonce_of_all_scores
from trainer.objectives import bounds


def in_pieces(local: Tensor, y: Tensor) -> Tensor:
    """Ours, with the scores of the critic `dot`."""

    def score(local: Tensor, y: Tensor) -> Tensor:
        return torch.einsum("iu,jlu->ijl", y, local)

    return bounds.infonce_loss(bounds.reduce_in_pieces(score, local, y, 4, 0, "infonce"))


KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"port": infonce_of_all_scores, "ours": in_pieces}


def encodings(images: int, options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Drawn encodings whose scores have a spread of 1."""
    draws = torch.Generator().manual_seed(images)
    local = torch.randn(images, options.locations, options.units, generator=draws) / options.units**0.5
    return local.requires_grad_(), torch.randn(images, options.units, generator=draws).requires_grad_()


def times(images: int, options: argparse.Namespace) -> dict[str, float]:
    """Medians of seconds by kind, in turns."""
    local, y = encodings(images, options)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    losses = {}
    for turn in range(options.repeats + 1):
        for kind, loss in KINDS.items():
            began = time.perf_counter()
            value = loss(local, y)
            torch.autograd.grad(value, (local, y))
            if turn:
                seconds[kind].append(time.perf_counter() - began)
            losses[kind] = value.item()
    assert abs(losses["port"] - losses["ours"]) < 1e-4 * losses["port"], losses
    return {kind: statistics.median(each) for kind, each in seconds.items()}


def memory(kind: str, images: int, options: argparse.Namespace) -> float:
    """MB beyond the encodings at the highest, of this process."""
    now, highest, forget = MEMORY["cpu"]
    small = encodings(2, options)
    torch.autograd.grad(KINDS[kind](*small), small)  # loads what torch loads late
    local, y = encodings(images, options)
    forget()
    before = now()
    torch.autograd.grad(KINDS[kind](local, y), (local, y))
    return (highest() - before) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--locations", type=int, default=64)
    parser.add_argument("--units", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory_of:
        kind, images = options.memory_of
        print(json.dumps(memory(kind, int(images), options)))
        return
    print(f"L = {options.locations}, {options.units} units, one thread, medians of {options.repeats}\n")
    print("| B | port, ms | ours, ms | ratio | port, MB | ours, MB | ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for images in options.images:
        took = times(images, options)
        held = {}
        for kind in KINDS:
            sizes = ["--locations", str(options.locations), "--units", str(options.units)]
            command = [sys.executable, __file__, *sizes, "--memory-of", kind, str(images)]
            held[kind] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        cells = []
        for unit in ({kind: 1e3 * each for kind, each in took.items()}, held):
            cells += [f"{unit['port']:,.0f}", f"{unit['ours']:,.0f}", f"{unit['port'] / unit['ours']:.1f}"]
        print(f"| {images} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
