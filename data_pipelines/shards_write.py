"""Writes one shard with its index, so that it is there as a whole or not at all."""

import hashlib
import io
import json
import math
import os
import tarfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.dataset import INDEX, compressed, index_name
from data_pipelines.errors import UserError

UNFINISHED = ".making"  # folder inside the data set's, for as long as it is being made
_EXIF_ORIENTATION = 0x0112


@dataclass
class Sums:
    """Over pixels, per channel, of values 0..255: whole numbers, so that their order does not matter."""

    pixels: int = 0
    total: list[int] = field(default_factory=lambda: [0, 0, 0])
    squares: list[int] = field(default_factory=lambda: [0, 0, 0])

    def count(self, values: np.ndarray) -> None:
        """Adds an image, uint8 [h, w, 3]."""
        flat = values.reshape(-1, 3).astype(np.int64)
        self.add(Sums(len(flat), flat.sum(0).tolist(), (flat**2).sum(0).tolist()))

    def add(self, other: "Sums") -> None:
        self.pixels += other.pixels
        self.total = [a + b for a, b in zip(self.total, other.total, strict=True)]
        self.squares = [a + b for a, b in zip(self.squares, other.squares, strict=True)]

    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Of pixels in [0, 1], over all of them alike."""
        mean = tuple(total / self.pixels / 255 for total in self.total)
        # n·Σx² − (Σx)² in whole numbers loses nothing to cancellation.
        pairs = zip(self.total, self.squares, strict=True)
        std = tuple(math.sqrt(self.pixels * square - total**2) / self.pixels / 255 for total, square in pairs)
        return mean, std


def write_shard(chunk, root: Path, name: str, classes: int) -> dict:
    """Writes a chunk's images to root/name, its index beside it, and returns what is to be known of them.

    chunk: has digest() and samples(), as `sources.Pixels`; classes: how many, a label lies in 0..classes-1.
    A sample that cannot be decoded or has another label is left out and named. What was written before, from
    equal input, and still has its digests is kept as it is.

    Returns the shard's entry of dataset.json with "left_out" and "sums" beside it. Raises UserError when the
    disk refuses.
    """
    note = root / UNFINISHED / (name.replace("/", "-") + ".json")
    wanted = chunk.digest()
    if (done := _finished(note, root, name, wanted)) is not None:
        return done
    # Until it is whole it has a name of its own process: a killed run's worker may be at its last write.
    part = root / UNFINISHED / f"{name.replace('/', '-')}.{os.getpid()}.part"
    try:
        (root / name).parent.mkdir(exist_ok=True)
        sizes, left_out, sums = _write_tar(chunk, part, classes)
        index = index_shard(part)
        index["height"], index["width"] = np.reshape(sizes, (-1, 2)).T
        buffer = io.BytesIO()
        np.save(buffer, index, allow_pickle=False)
        size, digest = part.stat().st_size, file_digest(part)
        replace(part, root / name)
        write_durably(root / index_name(name), buffer.getvalue(), part)
        entry = {
            "name": name,
            "images": len(index),
            "bytes": size,
            "sha256": digest,
            "index_bytes": len(buffer.getvalue()),
            "index_sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
            "left_out": left_out,
            "sums": asdict(sums),
        }
        write_durably(note, json.dumps({"input": wanted, "entry": entry}).encode(), part)
    except OSError as error:
        raise UserError(
            f"{root / name} cannot be written ({error.strerror or error}); "
            "mend that and give the same command, which continues from here"
        ) from None
    finally:
        part.unlink(missing_ok=True)
    return entry


def _finished(note: Path, root: Path, name: str, wanted: str) -> dict | None:
    try:
        found = json.loads(note.read_bytes())
        entry = found["entry"]
        if (
            found["input"] == wanted
            and file_digest(root / name) == entry["sha256"]
            and file_digest(root / index_name(name)) == entry["index_sha256"]
        ):
            return entry
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not finished, or torn: it is written again
    return None


def _write_tar(chunk, path: Path, classes: int) -> tuple[list[tuple[int, int]], list[dict], Sums]:
    # Here, because it imports torch, which verifying has no need of. It is what its ShardWriter writes with.
    from webdataset import TarWriter

    sizes, left_out, sums = [], [], Sums()
    with open(path, "wb") as stream:
        # A fixed time and owner: equal input gives equal bytes, and a second run the same digests.
        with TarWriter(stream, encoder=False, mtime=0, user="user", group="user") as tar:
            for key, encoded, label in chunk.samples():
                try:
                    values, height, width = decode(encoded)
                    if not 0 <= label < classes:
                        raise ValueError(f"label {label} is not in 0..{classes - 1}")
                except Exception as error:  # image decoders raise nearly anything
                    left_out.append({"member": key, "why": str(error) or type(error).__name__})
                    continue
                tar.write({"__key__": key, "png": encoded, "cls": str(label).encode()})
                sizes.append((height, width))
                sums.count(values)
        stream.flush()
        os.fsync(stream.fileno())
    return sizes, left_out, sums


def decode(encoded: bytes) -> tuple[np.ndarray, int, int]:
    """The whole image as RGB, uint8 [h, w, 3], and its height and width once its EXIF orientation is obeyed.

    Raises whatever pillow raises for an image that is none, or is cut short.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        values = np.asarray(image.convert("RGB"))
        sideways = image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
        width, height = reversed(image.size) if sideways else image.size
    return values, height, width


def index_shard(path) -> np.ndarray:
    """Walks the headers of a WebDataset shard and gives its index, INDEX [images], height and width still 0.

    Raises UserError when the tar is compressed, cut short or damaged, or when its members are not pairs of
    <key>.png and <key>.cls with a whole number in the latter.
    """
    if why := compressed(path):
        raise UserError(f"{path} {why}")
    images, labels = {}, {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, kind = member.name.rpartition(".")
                known = {"png": images, "cls": labels}.get(kind)
                if known is None or key in known or not member.isreg():
                    raise UserError(f"{path}: member {member.name!r} is not one <key>.png or <key>.cls")
                if kind == "png":
                    images[key] = (member.offset_data, member.size)
                    continue
                text = tar.extractfile(member).read(32)
                if not text.strip().lstrip(b"-").isdigit():
                    raise UserError(f"{path}: member {member.name!r} holds {text!r}, expected a whole number")
                labels[key] = int(text)
            # tarfile takes a tar that is cut between two members, or a damaged header, for its end.
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(1024) != bytes(1024):
                size = os.stat(path).st_size
                raise UserError(f"{path} is damaged or cut short at byte {tar.offset:,} of {size:,}")
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is not a whole tar file ({error})") from None
    if alone := sorted(images.keys() ^ labels.keys()):
        raise UserError(f"{path}: {alone[0]!r} has not both of <key>.png and <key>.cls")
    return np.array([(*images[key], 0, 0, labels[key]) for key in images], dtype=INDEX)


def file_digest(path) -> str:
    """sha256 (hex) of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_durably(path: Path, data: bytes, part: Path) -> None:
    """Writes to `part`, in the same file system, and renames: what has its name is on the disk, whole."""
    with open(part, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    replace(part, path)


def replace(part: Path, path: Path) -> None:
    """Renames and makes the new name durable."""
    os.replace(part, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
