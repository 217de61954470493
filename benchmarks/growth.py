"""How the cost of each part grows with its size: the expected exponent beside the measured one.

    python benchmarks/growth.py [--only AXIS ...] [--device cuda] [--quick]

Along each axis one size changes and the others stand still. A measurement is the median of --repeats, whose
sizes take turns, in processor time of one thread (on a GPU: by the clock, behind a synchronize). Data sets
are opened in processes of their own. The exponent is the slope of a straight line through the logarithms of
the three largest sizes, by least squares: 1 is proportional, 0 is no growth; at smaller sizes fixed costs
count. Sizes end where free memory would not hold them.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from trainer.distributed import launch

launch.set_environment()

import numpy as np
import psutil
import torch
import torch.nn.functional as F

from benchmarks.drawn_pictures import links
from trainer.networks.resnet import ResNet
from trainer.objectives import bounds
from trainer.objectives.momentum_queue import MomentumQueue

WIDTH, TAU, UNITS = 128, 0.2, 256
LARGEST = 3  # sizes, by which the exponent is taken
Work = Callable[[], object]


@dataclass(frozen=True)
class Axis:
    """One size that grows.

    Attributes:
        what: the size, and what is done at each.
        expected: the exponent of its cost in the size.
        sizes: in rising order; `quick` of a trial.
        work: a size and a device -> what is timed, ready to run.
        bytes: about how much memory a size takes.
    """

    what: str
    expected: float
    sizes: Sequence[int]
    quick: Sequence[int]
    work: Callable[[int, torch.device], Work]
    bytes: Callable[[int], int]


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of log cost over log size, by least squares.

    Raises:
        ValueError: there are fewer than two sizes, or a cost is not above 0.
    """
    if len(sizes) < 2 or min(costs) <= 0:
        raise ValueError(f"sizes {list(sizes)} with costs {list(costs)} have no exponent")
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


# ---- what grows --------------------------------------------------------------------------------------


def attention(keys: int, batch: int, device: torch.device) -> Work:
    """The loss over a queue, its gradient, and the enqueue."""
    queue = MomentumQueue(keys, WIDTH, batch)
    queue.shard = F.normalize(torch.randn(keys // batch, batch, WIDTH, device=device), dim=2)
    q, k = (F.normalize(torch.randn(batch, WIDTH, device=device), dim=1) for _ in range(2))
    q.requires_grad_()

    def step() -> None:
        F.softplus(queue.log_sum_exp(q, TAU, 0) - (q * k).sum(1) / TAU).mean().backward()
        queue.enqueue(k, 0)

    return step


def local_infonce(images: int, locations: int, device: torch.device) -> Work:
    """DIM's local InfoNCE of encodings that are there, and its gradient."""
    local = torch.randn(images, locations, UNITS, device=device, requires_grad=True)
    y = torch.randn(images, UNITS, device=device, requires_grad=True)

    def score(local: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.einsum("iu,jlu->ijl", y, local) / UNITS**0.5

    def step() -> None:
        pairs = bounds.reduce_in_pieces(score, local, y, 4, 0, "infonce")
        bounds.infonce_loss(pairs).backward()

    return step


def encoder(size: int, device: torch.device) -> Work:
    """A narrow ResNet-18 forward and backward on 16 images."""
    network = ResNet(size, 18, "cifar", 16, "layer4", None, group=16).to(device)
    images = torch.randn(16, 3, size, size, device=device)

    def step() -> None:
        network(images)["y"].square().mean().backward()

    return step


ATTENTION_BYTES = 4 * WIDTH * 3  # a key, its like while the queue is made
AXES = {
    "keys": Axis(
        "queue's keys: loss, gradient, enqueue of 256",
        1,
        [4**n * 4096 for n in range(6)],
        [1024, 4096, 16384],
        lambda keys, device: attention(keys, min(256, keys), device),
        lambda keys: ATTENTION_BYTES * keys,
    ),
    "queries": Axis(
        "batch: the same with 65,536 keys",
        1,
        [64, 128, 256, 512, 1024],
        [64, 128, 256],
        lambda batch, device: attention(65536, batch, device),
        lambda batch: ATTENTION_BYTES * 65536,
    ),
    "batch": Axis(
        "batch: local InfoNCE and gradient, 64 locations of 256 units",
        2,
        [32, 64, 128, 256, 512],
        [16, 32, 64],
        lambda images, device: local_infonce(images, 64, device),
        lambda images: 4 * 64 * images * (4 * UNITS + 4 * images),
    ),
    "locations": Axis(
        "locations: local InfoNCE and gradient, 64 images of 256 units",
        1,
        [16, 64, 256, 1024],
        [16, 32, 64],
        lambda locations, device: local_infonce(64, locations, device),
        lambda locations: 4 * 64 * locations * (4 * UNITS + 4 * 64),
    ),
    "side": Axis(
        "image's side: a narrow ResNet-18 and gradient, 16 images",
        2,
        [32, 64, 128, 256],
        [16, 32, 64],
        encoder,
        lambda size: 16 * size**2 * 4 * 16 * 60,
    ),
}


def measured(axis: Axis, sizes: Sequence[int], device: torch.device, repeats: int) -> list[float]:
    """Seconds at each size: medians of turns, behind one that does not count."""
    works = [axis.work(size, device) for size in sizes]
    seconds: list[list[float]] = [[] for _ in works]
    for turn in range(repeats + 1):
        for number, work in enumerate(works):
            spent = timed(work, device)
            if turn:
                seconds[number].append(spent)
    return [statistics.median(each) for each in seconds]


def timed(work: Work, device: torch.device) -> float:
    """Seconds of one run, or of each of several where one is too short for the clock."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    runs, began = 0, clock()
    while not runs or clock() - began < 0.02:
        work()
        runs += 1
        if device.type == "cuda":
            torch.cuda.synchronize()
    return (clock() - began) / runs


# ---- data sets -----------------------------------------------------------------------------------------

SETS = {  # what grows, the expected exponents of seconds and of memory
    "images": ("images in the set, in as many shards: open, plan and look up a batch", 0, 0),
    "shards": ("shards of a set of as many images: the same", 1, 1),
}


def sets(axis: str, quick: bool) -> list[tuple[int, int, int]]:
    """(size, images, shards) of each data set of an axis."""
    if axis == "images":
        return [(10**n, 10**n, 100 if quick else 1000) for n in (range(4, 7) if quick else range(4, 10))]
    return [(10**n, 10**5 if quick else 10**7, 10**n) for n in (range(1, 4) if quick else range(1, 6))]


def opened(axis: str, quick: bool, repeats: int) -> tuple[list[int], list[list[float]]]:
    """The sizes, and of each the medians of processor seconds and of MB to open, plan and look up a batch."""
    costs: list[list[list[float]]] = [[] for _ in sets(axis, quick)]
    with tempfile.TemporaryDirectory() as folder:
        for size, images, shards in sets(axis, quick):
            links(Path(folder) / str(size), shards, images // shards)
        for _ in range(repeats):
            for number, (size, *_) in enumerate(sets(axis, quick)):
                root = str(Path(folder) / str(size))
                command = [sys.executable, str(ROOT / "benchmarks" / "planning.py"), root]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                costs[number].append(json.loads(done.stdout)[1:])
    medians = [[statistics.median(column) for column in zip(*each, strict=True)] for each in costs]
    return [size for size, *_ in sets(axis, quick)], medians


# ---- the table -----------------------------------------------------------------------------------------


def rows(options: argparse.Namespace) -> Iterator[str]:
    """A line of the table for each axis."""
    device = torch.device(options.device)
    free = psutil.virtual_memory().available
    if device.type == "cuda":
        free = torch.cuda.mem_get_info()[0]
    for name in options.only or [*AXES, *SETS]:
        if name in AXES:
            axis = AXES[name]
            sizes = [
                size for size in (axis.quick if options.quick else axis.sizes) if 2 * axis.bytes(size) < free
            ]
            costs = measured(axis, sizes, device, options.repeats)
            yield line(axis.what, sizes, [1e3 * cost for cost in costs], "ms", axis.expected)
        else:
            what, *expected = SETS[name]
            sizes, both = opened(name, options.quick, options.repeats)
            for index, unit, factor in ((0, "ms", 1e3), (1, "MB", 1.0)):
                costs = [factor * cost[index] for cost in both]
                yield line(what, sizes, costs, unit, expected[index])


def line(what: str, sizes: Sequence[int], costs: Sequence[float], unit: str, expected: float) -> str:
    ends = f"{sizes[0]:,} | {sizes[-1]:,} | {costs[0]:,.3g} {unit} | {costs[-1]:,.3g} {unit}"
    return f"| {what} | {ends} | {expected:g} | {exponent(sizes[-LARGEST:], costs[-LARGEST:]):.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--only", nargs="+", choices=[*AXES, *SETS], metavar="AXIS", help=", ".join([*AXES, *SETS])
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, for a trial: their exponents mean little"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{options.device}, torch {torch.__version__}, medians of {options.repeats}\n")
    print("| what grows | from | to | cost there | cost here | expected | measured |")
    print("|---|---:|---:|---:|---:|---:|---:|", flush=True)
    for text in rows(options):
        print(text, flush=True)


if __name__ == "__main__":
    main()
