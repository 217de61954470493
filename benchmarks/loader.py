"""CPU time of an image: this project's loader against webdataset + DataLoader + PIL, on the same shards.

    python benchmarks/loader.py [--images 5000] [--repeats 3] [--data data/cifar10]

Both sides make batches of 512 from the same 32-px PNG shards, with two worker threads or processes. A figure
is the user and system time of the whole process tree, worker processes included, for --images source images:
the difference of a long and a short run, so that starting up counts for neither side. The sides take turns;
the median of the repeats is printed. Without the data set, random pictures in CIFAR-10's layout are made.
"""

import argparse
import os
import pickle
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as trainer/main.py does, before torch is imported

import numpy as np
import torch
import webdataset
from PIL import Image

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from pil_views import moco_view, plain_view

from data_pipelines.dataset import Dataset, load_dataset
from data_pipelines.errors import UserError
from data_pipelines.loader import Images, Loader
from data_pipelines.plan import Plan
from data_pipelines.reader import Reader
from data_pipelines.shards import make
from data_pipelines.spec import Blur, Crop, Jitter, Normalize, Range, View

BATCH, SIZE, WORKERS, SHORT = 512, 32, 2, 2  # SHORT: batches of the run that is subtracted
BAR = 0.20
MOCO = View(
    crop=Crop(scale=Range(low=0.2, high=1.0)),
    jitter=Jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, probability=0.8),
    grayscale=0.2,
    blur=Blur(sigma=Range(low=0.1, high=2.0), probability=0.5),
    flip=0.5,
)
ROWS = {"two MoCo-v2 views": ([MOCO, MOCO], [moco_view] * 2), "one plain view": ([View()], [plain_view])}


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--images", type=int, default=5000, help="source images a measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", default="data/cifar10")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            data = load_dataset(options.data)
        except UserError as error:
            print(f"{error}\nmeasuring on random pictures instead")
            data = synthetic(Path(folder))
        steps = max(1, options.images // BATCH)
        print(f"{data.root}: {steps * BATCH} source images of {SIZE} px, median of {options.repeats}\n")
        print("| views | side | CPU ms an image | images/s | ratio |\n|---|---|---|---|---|")
        ratios = [report(name, data, steps, options.repeats) for name in ROWS]
    print(f"\nbar: at most {BAR:.2f} with two views; {'met' if ratios[0] <= BAR else 'MISSED'}")
    return int(ratios[0] > BAR)


def report(name: str, data: Dataset, steps: int, repeats: int) -> float:
    """Measures and prints both sides of a row of the table; the ratio of their CPU times."""
    views, transforms = ROWS[name]
    sides = {
        "DALI, this project": lambda batches: run_ours(data, views, batches),
        "webdataset + DataLoader + PIL": lambda batches: run_pil(data, transforms, batches),
    }
    taken = {side: [] for side in sides}
    for _ in range(repeats):
        for side, run in sides.items():
            taken[side].append(steady(run, steps))
    cpu = {side: median(seconds for seconds, _ in times) / (steps * BATCH) for side, times in taken.items()}
    wall = {side: median(seconds for _, seconds in times) / (steps * BATCH) for side, times in taken.items()}
    ours, theirs = cpu.values()
    for side in sides:
        ratio = f"{ours / theirs:.3f}" if cpu[side] == ours else ""
        print(f"| {name} | {side} | {1e3 * cpu[side]:.3f} | {1 / wall[side]:,.0f} | {ratio} |", flush=True)
    return ours / theirs


def steady(run: Callable[[int], None], steps: int) -> tuple[float, float]:
    """CPU and wall seconds that `steps` batches more cost."""
    long, short = cost(run, SHORT + steps), cost(run, SHORT)
    return long[0] - short[0], long[1] - short[1]


def cost(run: Callable[[int], None], batches: int) -> tuple[float, float]:
    """CPU seconds of this process and of the workers it has waited for, and wall seconds."""
    before, began = cpu_seconds(), time.perf_counter()
    run(batches)
    return cpu_seconds() - before, time.perf_counter() - began


def cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def run_ours(data: Dataset, views: list[View], batches: int) -> None:
    reader = Reader(data, "train")
    plan = Plan(0, reader.shards, window=16)
    images = Images(SIZE, Normalize(), WORKERS, torch.device("cpu"))
    loader = Loader(reader, plan, images, views, batch=BATCH, start=0, stop=batches * BATCH)
    for batch in loader:
        assert batch.views[-1].shape == (BATCH, 3, SIZE, SIZE)
    loader.close()
    reader.close()


def run_pil(data: Dataset, transforms: list[Callable], batches: int) -> None:
    urls = [str(data.root / shard.name) for shard in data.splits["train"].shards]

    def views(sample: tuple[Image.Image, int]) -> tuple:
        return *(transform(sample[0]) for transform in transforms), sample[1]

    samples = webdataset.WebDataset(urls, shardshuffle=len(urls), nodesplitter=None, seed=0)
    samples = samples.repeat().shuffle(1000).decode("pil").to_tuple("png", "cls").map(views)
    loader = torch.utils.data.DataLoader(samples, batch_size=BATCH, num_workers=WORKERS)
    iterator = iter(loader)
    for batch in islice(iterator, batches):
        assert batch[0].shape == (BATCH, 3, SIZE, SIZE)
    iterator._shutdown_workers()  # and waits for them, so that their time is counted


def synthetic(folder: Path) -> Dataset:
    """Smooth random pictures as CIFAR-10's official files hold them, made into shards."""
    source, random = folder / "cifar-10-batches-py", np.random.default_rng(0)
    source.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        coarse = random.integers(0, 256, (1000, 12, 12, 3), dtype=np.uint8)
        grown = [Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for pixels in coarse]
        rows = np.stack([np.asarray(image) for image in grown]).transpose(0, 3, 1, 2).reshape(1000, -1)
        (source / name).write_bytes(pickle.dumps({b"data": rows, b"labels": [0] * 1000}, protocol=2))
    names = {b"label_names": [b"%d" % i for i in range(10)], b"num_cases_per_batch": 1000}
    (source / "batches.meta").write_bytes(pickle.dumps(names, protocol=2))
    return make("cifar10", folder / "shards", source, images_per_shard=500, progress=False)


if __name__ == "__main__":
    sys.exit(main())
