"""Reads CIFAR-10 and CIFAR-100 in their official python layout, without running code from their pickles.

The archives (https://www.cs.toronto.edu/~kriz/cifar.html) hold cifar-10-batches-py/ with data_batch_1..5,
test_batch and batches.meta, and cifar-100-python/ with train, test and meta: pickled dicts written by
Python 2, the pixels a uint8 array [n, 3072], each row the red, green and blue planes of 32x32 pixels.
"""

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from data_pipelines.common.errors import UserError


@dataclass(frozen=True)
class Layout:
    """The contents of an archive; names and labels are keys of the pickled dicts."""

    title: str
    archive: str
    folder: str
    meta: str
    files: dict[str, list[str]]
    names: bytes
    labels: bytes

    @property
    def expected(self) -> str:
        return f"from= takes {self.archive}, its unpacked folder {self.folder}, or the folder above that one"


CIFAR10 = Layout(
    "CIFAR-10",
    "cifar-10-python.tar.gz",
    "cifar-10-batches-py",
    "batches.meta",
    {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
    b"label_names",
    b"labels",
)
CIFAR100 = Layout(
    "CIFAR-100",
    "cifar-100-python.tar.gz",
    "cifar-100-python",
    "meta",
    {"train": ["train"], "test": ["test"]},
    b"fine_label_names",
    b"fine_labels",
)
LARGEST = 1 << 29  # bytes; CIFAR-100's train has 155 MB. Keeps a wrong archive from filling the memory.


def read(path: Path, layout: Layout = CIFAR10) -> tuple[list[str], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Reads a whole data set from the folder of its layout, the folder above it, or the archive.

    Returns the class names and {"train": (images, labels), "test": ...}: uint8 [n, 32, 32, 3], int64 [n].
    Raises UserError when a file is missing or cannot be read, or when its shapes or counts do not agree.
    """
    names = [layout.meta, *layout.files["train"], *layout.files["test"]]
    files = (_read_folder if path.is_dir() else _read_archive)(path, names, layout)
    meta = _unpickle(files[layout.meta], f"{path}: {layout.meta}", layout)
    classes, count = meta.get(layout.names), meta.get(b"num_cases_per_batch")
    counted = type(count) is int or layout is CIFAR100  # which has no such key
    if not isinstance(classes, list) or not all(isinstance(name, bytes) for name in classes) or not counted:
        wanted = layout.names.decode() + " and num_cases_per_batch" * (layout is CIFAR10)
        raise UserError(f"{path}: {layout.meta} holds no {wanted}; is this {layout.title}?")
    splits = {}
    for split, members in layout.files.items():
        batches = [_batch(files.pop(name), f"{path}: {name}", count, layout) for name in members]
        images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        splits[split] = (images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels)
    return [name.decode("utf-8", "replace") for name in classes], splits


def _read_folder(path: Path, names: Iterable[str], layout: Layout) -> dict[str, bytes]:
    folder = path / layout.folder if (path / layout.folder).is_dir() else path
    files = {}
    for name in names:
        try:
            if (folder / name).stat().st_size > LARGEST:
                raise UserError(f"{folder / name} is too large for a {layout.title} file; {layout.expected}")
            files[name] = (folder / name).read_bytes()
        except OSError as error:
            raise UserError(f"{folder / name} cannot be read ({error.strerror}); {layout.expected}") from None
    return files


def _read_archive(path: Path, names: Collection[str], layout: Layout) -> dict[str, bytes]:
    """Members are read out of the stream one by one; nothing is ever extracted to the disk."""
    files = {}
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                folder, _, name = member.name.removeprefix("./").rpartition("/")
                if folder == layout.folder and name in names and member.isreg() and member.size <= LARGEST:
                    content = archive.extractfile(member)
                    assert content is not None  # it is a regular file
                    files[name] = content.read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        why = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise UserError(f"from={path} cannot be read ({why}); {layout.expected}") from None
    for name in names:
        if name not in files:
            raise UserError(f"from={path} has no member {layout.folder}/{name}; {layout.expected}")
    return files


def _batch(data: bytes, where: str, count: int | None, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """The pixels and labels of one file, uint8 [count, 3072], int64 [count]; None: one image a label."""
    batch = _unpickle(data, where, layout)
    pixels, labels = batch.get(b"data"), batch.get(layout.labels)
    hint = f"; is this {layout.title}?"
    if not _whole_numbers(labels) or len(labels) != (count or len(labels)):
        name = layout.labels.decode()
        raise UserError(f"{where}: {name} are not {count or 'all'} whole numbers, one an image{hint}")
    if isinstance(pixels, _Array):
        pixels = pixels.array()
    elif isinstance(pixels, bytes) and len(pixels) == len(labels) * 3072:  # rewritten without numpy
        pixels = np.frombuffer(pixels, np.uint8).reshape(-1, 3072)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3072):
        kind = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise UserError(f"{where}: data is {kind}, expected uint8 ({len(labels)}, 3072){hint}")
    return pixels, np.array(labels, dtype=np.int64)


def _whole_numbers(labels: object) -> TypeGuard[list[int]]:
    return isinstance(labels, list) and all(type(n) is int and abs(n) < 1 << 31 for n in labels)


class _Array:
    """Stands in for numpy.ndarray while a batch is read: keeps the parts of the pickled state as they are."""

    state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def array(self) -> np.ndarray | None:
        """The uint8 array that was pickled; None where it is anything else."""
        try:
            _version, shape, dtype, fortran, raw = self.state
            if dtype.code in (b"u1", "u1"):
                return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")
        except (TypeError, ValueError, AttributeError):
            pass  # a state of another form is not such an array
        return None


class _Dtype:
    """Stands in for numpy.dtype: keeps its code, such as "u1"."""

    def __init__(self, code: object = None, *_: object):
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Byte order, alignment and flags say nothing about single bytes."""


def _encode(text: str, encoding: str) -> bytes:
    """What Python 3 writes for bytes into a pickle that Python 2 can read: _codecs.encode(text, "latin1")."""
    return text.encode(encoding if encoding == "latin1" else "ascii")


class _Unpickler(pickle.Unpickler):
    """Admits containers, numbers, text, bytes and uint8 arrays. No name in a pickle is ever imported.

    Even numpy's reconstruction is not admitted: a crafted dtype state can make it read foreign memory.
    """

    admitted: dict[tuple[str, str], Callable] = {
        ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
        ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module: str, name: str) -> Callable:
        if (module, name) not in self.admitted:
            wanted = f"{module}.{name}"
            raise pickle.UnpicklingError(f"it asks for {wanted!r}, which no CIFAR file needs")
        return self.admitted[module, name]


def _unpickle(data: bytes, where: str, layout: Layout) -> dict:
    try:
        value = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # damaged pickles raise nearly anything
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{where} cannot be read ({why}); is this {layout.title}?") from None
    if not isinstance(value, dict):
        raise UserError(f"{where} holds a {type(value).__name__}, expected a dict; is this {layout.title}?")
    return value
