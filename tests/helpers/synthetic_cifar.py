"""A tiny CIFAR-10 in the official layout, for tests."""

import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np

CLASSES = b"airplane automobile bird cat deer dog frog horse ship truck".split()
BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def write_folder(parent: Path, per_batch: int = 12, seed: int = 0, dump=None) -> Path:
    """parent/cifar-10-batches-py, per_batch random images a file; returns it. Labels: 0, 1, .. 9, 0, ..."""
    dump = dump or (lambda batch: pickle.dumps(batch, protocol=2))
    folder = parent / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for name in BATCHES:
        batch = {
            b"batch_label": name.encode(),
            b"labels": [i % 10 for i in range(per_batch)],
            b"data": rng.integers(0, 256, (per_batch, 3072), dtype=np.uint8),
            b"filenames": [b"%s_%d.png" % (name.encode(), i) for i in range(per_batch)],
        }
        (folder / name).write_bytes(dump(batch))
    meta = {b"num_cases_per_batch": per_batch, b"label_names": CLASSES, b"num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    return folder


def write_archive(folder: Path, path: Path) -> Path:
    """The folder as cifar-10-python.tar.gz has it."""
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, "cifar-10-batches-py")
    return path


def python2_pickle(batch: dict) -> bytes:
    """What Python 2 and its numpy write for a batch (protocol 2): text and pixels are plain strings."""

    def string(value: bytes) -> bytes:
        short = len(value) < 256
        return (b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<i", len(value))) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    def array(value: np.ndarray) -> bytes:
        head = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        head += number(0) + b"\x85" + string(b"b") + b"\x87R"
        dtype = b"cnumpy\ndtype\n" + string(b"u1") + number(0) + number(1) + b"\x87R"
        dtype += b"(" + number(3) + string(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
        shape = number(value.shape[0]) + number(value.shape[1]) + b"\x86"
        return head + b"(" + number(1) + shape + dtype + b"\x89" + string(value.tobytes()) + b"tb"

    def any_value(value) -> bytes:
        if isinstance(value, list):
            return b"](" + b"".join(any_value(item) for item in value) + b"e"
        return {bytes: string, int: number, np.ndarray: array}[type(value)](value)

    items = b"".join(string(key) + any_value(value) for key, value in batch.items())
    return b"\x80\x02}(" + items + b"u."
