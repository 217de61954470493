"""The format of a data set on disk, and the cheap check that all of it is there.

ROOT/dataset.json            written last, so a folder that has it is whole
ROOT/train/000000.tar        WebDataset shard: members such as <key>.png, and <key>.cls (the label in ASCII)
ROOT/train/000000.npy        its index, one row an image, of dtype INDEX

The tars of an existing WebDataset are indexed where they lie: ROOT has their indices alone. ROOT may also be
a folder behind a web server or a command (`access`); its files come into a cache.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from data_pipelines.access import ONCE, Access
from data_pipelines.common.errors import UserError

FORMAT = 1

# offset and size, bytes, are those of the encoded image inside the tar: os.pread(fd, size, offset) returns
# the PNG or JPEG. Height and width are pixels of the decoded image, its EXIF orientation applied. A label of
# -1 means unlabelled.
INDEX = np.dtype([("offset", "<u8"), ("size", "<u4"), ("height", "<u4"), ("width", "<u4"), ("label", "<i8")])

_COMPRESSIONS = {
    b"\x1f\x8b": ("gzip", "gzip -dc"),
    b"BZh": ("bzip2", "bzip2 -dc"),
    b"\xfd7zXZ\x00": ("xz", "xz -dc"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -dc"),
}


@dataclass(frozen=True)
class Shard:
    """A shard's entry in dataset.json: a tar and its index.

    Args:
        name: such as train/000000.tar.
        images: rows of the index.
        bytes, index_bytes: lengths of the tar and the index.
        sha256, index_sha256: their digests, in hex.
        path: where the tar lies, relative to the data set's folder or absolute, if it is not at its name
            (source=wds). Two shards may share a tar: a shard holds the images in its index.
    """

    name: str
    images: int
    bytes: int
    sha256: str
    index_bytes: int
    index_sha256: str
    path: str | None = None


@dataclass(frozen=True)
class Split:
    images: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Dataset:
    """The contents of dataset.json, and where the data set lies.

    A sample's id is its running number through the shards of its split, in this order.

    Args:
        root: the data set's folder; of a remote one, its cache.
        source: what it was made from, a name of `sources.catalog`.
        classes: names by label; empty where nothing is labelled.
        mean, std: of the train split per channel (red, green, blue), pixels in [0, 1].
        images_per_shard: of all shards but the last; 0 where existing tars were indexed in place.
        left_out: what the source had and no shard has, {"member", "why"}.
        fingerprint: of the contents (`fingerprint`).
        made_with: options of the command that made it, such as "from".
        remote: the address that it is fetched from; None for a folder.
        access: how its files are read.
    """

    root: Path
    source: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    images_per_shard: int
    splits: dict[str, Split]
    left_out: tuple[dict, ...]
    fingerprint: str
    made_with: dict = field(default_factory=dict)
    remote: str | None = None
    access: Access = ONCE

    @property
    def where(self) -> str:
        """The folder or address, for messages."""
        return self.remote or str(self.root)

    @property
    def name(self) -> str:
        """The last part of `where`."""
        return self.where if " " in self.where else Path(self.where).name

    def split(self, name: str) -> Split:
        """A split, or several joined by "+": the images of the first, then the second's.

        Raises:
            UserError: there is no such split, or it is empty, or named twice.
        """
        parts = name.split("+")
        for part in parts:
            if part not in self.splits:
                raise UserError(f"{self.where}: no split '{part}'; it has {', '.join(self.splits)}")
            if not self.splits[part].images:
                raise UserError(f"{self.where}: the split '{part}' has no images")
        if len(set(parts)) < len(parts):
            raise UserError(f"{self.where}: '{name}' names a split twice; name each once")
        shards = tuple(shard for part in parts for shard in self.splits[part].shards)
        return Split(sum(self.splits[part].images for part in parts), shards)


def describe(dataset: Dataset) -> str:
    """The text of dataset.json."""
    description = {"format": FORMAT, **asdict(dataset)}
    for key in ("root", "remote", "access"):
        del description[key]
    if not dataset.made_with:
        del description["made_with"]
    for split in description["splits"].values():
        for shard in split["shards"]:
            if shard["path"] is None:
                del shard["path"]
    return json.dumps(description, indent=1) + "\n"


def fingerprint(splits: dict[str, Split]) -> str:
    """sha256 (hex) over the digests of every shard and index, in order: equal data, equal fingerprint."""
    digest = hashlib.sha256()
    for split in splits.values():
        for shard in split.shards:
            digest.update(f"{shard.sha256} {shard.index_sha256}\n".encode())
    return digest.hexdigest()


def missing_parts(root: Path, shard: Shard) -> list[str]:
    """The problems of a shard, a line each: its tar or index is missing or of another length."""
    problems = []
    index = root / index_name(shard.name)
    for path, size in ((tar_path(root, shard), shard.bytes), (index, shard.index_bytes)):
        try:
            length = path.stat().st_size
        except OSError as error:
            problems.append(f"{path} cannot be found ({error.strerror})")
            continue
        if length != size:
            why = compressed(path) or f"has {length:,} bytes where dataset.json says {size:,}"
            problems.append(f"{path} {why}")
    return problems


def tar_path(root: Path, shard: Shard) -> Path:
    """Where a shard's tar lies."""
    return root / (shard.path or shard.name)


def index_name(shard_name: str) -> str:
    """train/000000.tar -> train/000000.npy"""
    return shard_name.removesuffix(".tar") + ".npy"


def compressed(path: str | Path) -> str | None:
    """How a file is compressed and which command rewrites it, for a message; None where it is not."""
    with open(path, "rb") as file:
        start = file.read(6)
    for magic, (kind, command) in _COMPRESSIONS.items():
        if start.startswith(magic):
            return (
                f"is compressed ({kind}) and cannot be indexed in place: "
                f"rewrite it with `{command} {path} > {path}.plain && mv {path}.plain {path}`"
            )
    return None
