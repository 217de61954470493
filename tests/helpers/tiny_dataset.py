"""Data sets written from images in memory, many shards in no time, since nothing is flushed to the disk."""

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.common.retry import to_stderr
from data_pipelines.dali import ImageViews
from data_pipelines.dataset import INDEX, Dataset, Shard, Split, describe, fingerprint, index_name
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.image_options import ImageOptions
from data_pipelines.loader import Loader
from data_pipelines.plan import BatchShare, Plan
from data_pipelines.reader import Reader
from data_pipelines.views import View


def pictures(n: int, height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    """Smooth random colours, as photographs are smoother than noise; uint8 [n, height, width, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 6, 6, 3), dtype=np.uint8)
    grown = [Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC) for pixels in coarse]
    return np.stack([np.asarray(image) for image in grown])


def png(image: np.ndarray | Image.Image) -> bytes:
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def write_dataset(root: Path, images: np.ndarray, per_shard: int) -> Dataset:
    """A data set of one split, train; image i has the key f"{i:06d}" and the label i % 10."""
    samples = [(png(pixels), *pixels.shape[:2], i % 10) for i, pixels in enumerate(images)]
    return write_samples(root, {"train": samples}, per_shard)


def samples(n: int) -> list[tuple[bytes, int, int, int]]:
    """Small ones for `write_samples`; each has another label, so no two indices are equal."""
    return [(png(image), 8, 8, i) for i, image in enumerate(pictures(n, 8, 8))]


def write_samples(root: Path, samples: dict[str, list], per_shard: int) -> Dataset:
    """A data set of any splits; a sample is its encoded image, the height and width to expect, its label."""
    splits = {}
    for split, part in samples.items():
        starts = range(0, len(part), per_shard)
        shards = [
            write_shard(root, f"{split}/{start // per_shard:06d}.tar", start, part[start : start + per_shard])
            for start in starts
        ]
        splits[split] = Split(len(part), tuple(shards))
    classes, half = tuple("0123456789"), (0.5, 0.5, 0.5)
    dataset = Dataset(root, "tiny", classes, half, half, per_shard, splits, (), fingerprint(splits))
    (root / "dataset.json").write_text(describe(dataset))
    return load_dataset(root)


def write_shard(root: Path, name: str, first: int, samples: list) -> Shard:
    rows = []
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / name, "w") as tar:
        for i, (image, height, width, label) in enumerate(samples, first):
            kind = "jpg" if image.startswith(b"\xff\xd8") else "png"
            rows.append((tar.offset + tarfile.BLOCKSIZE, len(image), height, width, label))
            for member, data in ((f"{i:06d}.{kind}", image), (f"{i:06d}.cls", b"%d" % label)):
                header = tarfile.TarInfo(member)
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    np.save(root / index_name(name), np.array(rows, INDEX), allow_pickle=False)
    tar, index = (root / name).read_bytes(), (root / index_name(name)).read_bytes()
    digests = [hashlib.sha256(part).hexdigest() for part in (tar, index)]
    return Shard(name, len(rows), len(tar), digests[0], len(index), digests[1])


def image_loader(
    reader: Reader,
    plan: Plan,
    options: ImageOptions,
    views: list[View],
    share: BatchShare,
    *,
    warn=to_stderr,
    **span,
) -> Loader:
    """A loader of DALI's views, as training has it; span: start, stop and prefetch."""
    sources = share.sources(len(views))
    maker = ImageViews(reader, options, views, sources, plan.seed, share.micro_batch, warn)
    return Loader(maker, plan, share, **span)
