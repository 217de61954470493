"""Data sets for the benchmarks: random pictures, where no real ones are at hand, and any number of images.

python -m benchmarks.drawn_pictures FOLDER cifar10           # FOLDER/shards of 6,000 of 32 px, ten classes
python -m benchmarks.drawn_pictures FOLDER COUNT [SIDE]      # of so many photographs
"""

import hashlib
import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.dataset import INDEX, Dataset, Shard, Split, describe, fingerprint, index_name
from data_pipelines.shards.make import make
from data_pipelines.shards.write import UNFINISHED, write_shard
from data_pipelines.sources.pixels import Pixels

LINKS = 30_000  # to one file


def cifar10(folder: Path) -> Dataset:
    """Smooth random pictures as CIFAR-10's official files hold them, made into shards."""
    source, random = folder / "cifar-10-batches-py", np.random.default_rng(0)
    source.mkdir(parents=True)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        coarse = random.integers(0, 256, (1000, 12, 12, 3), dtype=np.uint8)
        grown = [np.asarray(smooth(pixels, 32, 32)) for pixels in coarse]
        rows = np.stack(grown).transpose(0, 3, 1, 2).reshape(1000, -1)
        (source / name).write_bytes(
            pickle.dumps({b"data": rows, b"labels": [i % 10 for i in range(1000)]}, protocol=2)
        )
    names = {b"label_names": [b"%d" % i for i in range(10)], b"num_cases_per_batch": 1000}
    (source / "batches.meta").write_bytes(pickle.dumps(names, protocol=2))
    return make("cifar10", folder / "shards", source, images_per_shard=500, progress=False)


def photographs(folder: Path, count: int = 100) -> Dataset:
    """JPEGs of the sizes of ImageNet's (500 x 375 px and about) and a little more than their bytes."""
    random = np.random.default_rng(0)
    for i in range(count):
        height, width = (375, 500) if i % 4 else (500, 375)
        noise = random.normal(0, 12, (height, width, 1))
        pixels = smooth(random.integers(0, 256, (12, 16, 3), dtype=np.uint8), height, width) + noise
        path = folder / "images" / "train" / f"{i % 10}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(np.clip(pixels, 0, 255))).save(path, quality=90, subsampling=0)
    return make("folder", folder / "shards", folder / "images", images_per_shard=25, progress=False)


def squares(folder: Path, count: int, side: int) -> Dataset:
    """PNGs of one size as folder/shards, of a set named folder, made where no DALI is too."""
    root, random = folder / "shards", np.random.default_rng(0)
    coarse = random.integers(0, 256, (count, 12, 12, 3), dtype=np.uint8)
    images = np.stack([smooth(pixels, side, side) for pixels in coarse])
    (root / UNFINISHED).mkdir(parents=True)
    shards = []
    for number, chunk in enumerate(Pixels("train", 0, images, np.arange(count) % 10).chunks(256)):
        entry = write_shard(chunk, root, f"train/{number:06d}.tar", 10)
        names = ("name", "images", "bytes", "sha256", "index_bytes", "index_sha256")
        shards.append(Shard(*(entry[name] for name in names)))
    shutil.rmtree(root / UNFINISHED)
    return described(root, tuple(str(i) for i in range(10)), Split(count, tuple(shards)), 256)


def smooth(coarse: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def links(root: Path, shards: int, images_per_shard: int) -> None:
    """A data set without pixels: every shard is a link to one of 512 bytes, every index to one."""
    index = np.zeros(images_per_shard, INDEX)
    index["offset"] = np.arange(images_per_shard)
    (root / "train").mkdir(parents=True)
    np.save(root / "index.npy", index, allow_pickle=False)
    (root / "shard.tar").write_bytes(bytes(512))
    digests = [hashlib.sha256((root / name).read_bytes()).hexdigest() for name in ("shard.tar", "index.npy")]
    length, entries = (root / "index.npy").stat().st_size, []
    for number in range(shards):
        name = f"train/{number:06d}.tar"
        if number % LINKS == 0 and number:  # file systems limit the links to one file, ext4 to 65,000
            for file in ("shard.tar", "index.npy"):
                shutil.copy(root / file, root / "copy")
                (root / "copy").replace(root / file)
        os.link(root / "shard.tar", root / name)
        os.link(root / "index.npy", root / index_name(name))
        entries.append(Shard(name, images_per_shard, 512, digests[0], length, digests[1]))
    described(root, ("one",), Split(shards * images_per_shard, tuple(entries)), images_per_shard)


def described(root: Path, classes: tuple[str, ...], train: Split, images_per_shard: int) -> Dataset:
    """Writes dataset.json of a set named folder with one split; returns it."""
    splits, half = {"train": train}, (0.5, 0.5, 0.5)
    dataset = Dataset(root, "folder", classes, half, half, images_per_shard, splits, (), fingerprint(splits))
    (root / "dataset.json").write_text(describe(dataset))
    return dataset


if __name__ == "__main__":
    if sys.argv[2] == "cifar10":
        cifar10(Path(sys.argv[1]))
    else:
        photographs(Path(sys.argv[1]), int(sys.argv[2]))
