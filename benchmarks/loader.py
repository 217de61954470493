"""CPU time of an image: this project's loader against webdataset + DataLoader + PIL, on the same shards.

    python benchmarks/loader.py [--images 5000] [--repeats 3] [--data data/cifar10] [--hue hsv]
    python benchmarks/loader.py jpeg [--images 640] [--repeats 3] [--data data/imagenet-sample] [--hue hsv]

Both sides make batches from the same shards, with two worker threads or processes: 512 images of 32 px from
PNG, or 64 of 224 px from JPEG photographs, decoded whole or only where the views are (`decode: fast`). The
MoCo views turn hue in HSV, as PIL and the published recipes do; with `--hue yiq` in YIQ. A figure is the user
and system time of the whole process tree, worker processes included, for --images source images: the
difference of a long and a short run, so that starting up counts for neither side. The sides take turns; the
median of the repeats is printed. Without the data set, random pictures are drawn. The exit status is 1 where
the bar is missed.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as trainer/main.py does, before torch is imported

import torch
import webdataset
from PIL import Image

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import drawn_pictures
from pil_views import moco_view, plain_view

from data_pipelines.common.errors import UserError
from data_pipelines.dali import ImageViews
from data_pipelines.dataset import Dataset
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.image_options import ImageOptions
from data_pipelines.loader import Batch, Loader
from data_pipelines.plan import BatchShare, Plan
from data_pipelines.reader import Reader
from data_pipelines.views import Blur, Crop, Jitter, Normalize, Range, View

WORKERS, SHORT = 2, 4  # SHORT: batches of the run that is subtracted, after which all memory is taken
MOCO = View(
    crop=Crop(scale=Range(low=0.2, high=1.0)),
    jitter=Jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, probability=0.8),
    grayscale=0.2,
    blur=Blur(sigma=Range(low=0.1, high=2.0), probability=0.5),
    flip=0.5,
)


@dataclass(frozen=True)
class Case:
    """What is loaded; `bars`: the largest ratios of CPU times with two views, by how images are decoded."""

    size: int
    batch: int
    images: int
    bars: dict[str, float]
    data: str
    draw: Callable[[Path], Dataset]


CASES = {
    "png": Case(32, 512, 5000, {"exact": 0.20}, "data/cifar10", drawn_pictures.cifar10),
    "jpeg": Case(
        224, 64, 640, {"exact": 0.60, "fast": 0.50}, "data/imagenet-sample", drawn_pictures.photographs
    ),
}


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("case", nargs="?", choices=CASES, default="png")
    parser.add_argument("--images", type=int, help="source images a measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", help="a data set made by data_pipelines.shards")
    parser.add_argument("--hue", choices=["hsv", "yiq"], default="hsv", help="of this project's MoCo views")
    options = parser.parse_args()
    case = CASES[options.case]
    with tempfile.TemporaryDirectory() as folder:
        try:
            data = load_dataset(options.data or case.data)
        except UserError as error:
            print(f"{error}\nmeasuring on random pictures instead")
            data = case.draw(Path(folder))
        steps = max(1, (options.images or case.images) // case.batch // WORKERS) * WORKERS
        images = f"{steps * case.batch} source images to {case.size} px"
        print(f"{data.root}: {images}, median of {options.repeats}\n")
        print("| views | side | CPU ms an image | images/s | ratio |\n|---|---|---|---|---|")
        moco = MOCO.model_copy(update={"hue": options.hue})
        rows = [([moco, moco], [moco_view] * 2), ([View()], [plain_view])]
        names = f"two MoCo-v2 views, {options.hue}", "one plain view"
        ratios = [
            report(name, case, data, steps, options.repeats, *row)
            for name, row in zip(names, rows, strict=True)
        ]
        if "fast" in case.bars:
            print(
                f"\ntwo fast crops differ from exact ones by {difference(case, data):.3f} of 255 in the mean"
            )
    missed = False
    for decode, bar in case.bars.items():
        met = ratios[0][decode] <= bar
        missed |= not met
        print(f"\nbar with two views, decode: {decode}: at most {bar:.2f}; {'met' if met else 'MISSED'}")
    return int(missed)


def report(
    name: str,
    case: Case,
    data: Dataset,
    steps: int,
    repeats: int,
    views: list[View],
    transforms: list[Callable],
) -> dict[str, float]:
    """Measures and prints all sides of a row of the table; the ratios of CPU times by how we decode."""
    sides = {f"this project, {decode}": partial(run_ours, case, data, views, decode) for decode in case.bars}
    sides["webdataset + DataLoader + PIL"] = partial(run_pil, case, data, transforms)
    taken = {side: [] for side in sides}
    for _ in range(repeats):
        for side, run in sides.items():
            taken[side].append(steady(run, steps))
    images = steps * case.batch
    cpu = [median(seconds for seconds, _ in times) / images for times in taken.values()]
    wall = [median(seconds for _, seconds in times) / images for times in taken.values()]
    for side, spent, passed in zip(sides, cpu, wall, strict=True):
        print(
            f"| {name} | {side} | {1e3 * spent:.3f} | {1 / passed:,.0f} | {spent / cpu[-1]:.3f} |", flush=True
        )
    return {decode: spent / cpu[-1] for decode, spent in zip(case.bars, cpu, strict=False)}


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


def difference(case: Case, data: Dataset) -> float:
    """Mean absolute difference of pixels, 0..255, over two crops of 64 images, nothing else done to them."""
    views = []
    for decode in ("exact", "fast"):
        (batch,) = ours(case, data, [View(crop=MOCO.crop)] * 2, decode, 1)
        views.append(torch.stack(batch.views))
    return 255 * Normalize().std[0] * (views[0] - views[1]).abs().mean().item()


def run_ours(case: Case, data: Dataset, views: list[View], decode: str, batches: int) -> None:
    for batch in ours(case, data, views, decode, batches):
        assert batch.views[-1].shape == (case.batch, 3, case.size, case.size)


def ours(case: Case, data: Dataset, views: list[View], decode: str, batches: int) -> Iterator[Batch]:
    reader = Reader(data, "train")
    plan = Plan(0, reader.shards, window=16)
    options = ImageOptions(case.size, Normalize(), WORKERS, torch.device("cpu"), decode=decode)
    maker = ImageViews(reader, options, views, [0] * len(views), plan.seed, case.batch)
    loader = Loader(maker, plan, BatchShare(case.batch), start=0, stop=batches * case.batch)
    yield from loader
    loader.close()
    reader.close()


def run_pil(case: Case, data: Dataset, transforms: list[Callable], batches: int) -> None:
    urls = [str(data.root / shard.name) for shard in data.splits["train"].shards]

    def views(sample: tuple[Image.Image, int]) -> tuple:
        return *(transform(sample[0], case.size) for transform in transforms), sample[1]

    samples = webdataset.WebDataset(urls, shardshuffle=len(urls), nodesplitter=None, seed=0)
    samples = samples.repeat().shuffle(1000).decode("pil").to_tuple("jpg;png;webp", "cls").map(views)
    # Each worker makes its share and ends: what it had made ahead in vain would be counted.
    samples = samples.with_epoch(batches // WORKERS * case.batch)
    made = 0
    for batch in torch.utils.data.DataLoader(samples, batch_size=case.batch, num_workers=WORKERS):
        assert batch[0].shape == (case.batch, 3, case.size, case.size)
        made += 1
    assert made == batches


if __name__ == "__main__":
    sys.exit(main())
