"""A state with every kind of tensor; functions of the checkpoint tests to save, compare and damage it."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor

import torch

from trainer.checkpoints.save import snapshot, write


def state(images: int = 100) -> dict[str, torch.Tensor]:
    """Every kind of tensor; floats of random bits, including NaNs of many payloads (signalling ones too)."""
    generator = torch.Generator().manual_seed(images)

    def bits(*shape, dtype, nan):
        integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
        limits = torch.iinfo(integer)
        drawn = torch.randint(limits.min, limits.max, shape, dtype=integer, generator=generator)
        drawn.view(-1)[0] = nan
        return drawn.view(dtype)

    return {
        "images": torch.tensor(images),
        "nan": torch.tensor([0x7FF0DEADBEEF0001]).view(torch.float64)[0],
        "float64": bits(5, 3, dtype=torch.float64, nan=0x7FF0000000000123),
        "float32": bits(7, 3, 2, 2, dtype=torch.float32, nan=0x7F800ABC).to(
            memory_format=torch.channels_last
        ),
        "bfloat16": bits(9, 4, dtype=torch.bfloat16, nan=0x7F81),
        "float16": bits(2, 5, dtype=torch.float16, nan=0x7C01),
        "int64": bits(3, 4, dtype=torch.int64, nan=-1).t(),
        "bool": torch.rand(6, generator=generator) < 0.5,
        "uint8": torch.randint(0, 256, (11, 1), dtype=torch.uint8, generator=generator),
        "complex64": torch.randn(4, 2, dtype=torch.complex64, generator=generator),
        "float8": torch.randn(3, 3, generator=generator).to(torch.float8_e4m3fn),
        "one row": bits(1, 6, dtype=torch.float32, nan=0x7F800001),
        "no rows": torch.empty(0, 3, dtype=torch.bfloat16),
        "no columns": torch.empty(4, 0),
    }


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    def content(tensor):
        data = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        return tensor.dtype, tuple(tensor.shape), data

    return a.keys() == b.keys() and all(content(a[name]) == content(b[name]) for name in a)


def save(
    folder, images=100, world=1, attempt="a", keep=9, timeout=30.0, shares=None, extra=None, keep_every=0
):
    """A save by all ranks, each in a thread; returns what rank 0 returns."""
    shares = shares or [snapshot(state(images), rank, world) for rank in range(world)]
    with ThreadPoolExecutor(len(shares)) as pool:
        rest = (folder, images, extra or {}, attempt, keep, timeout, keep_every)
        calls = [pool.submit(write, share, *rest) for share in shares]
    path, *_ = [call.result() for call in calls]
    return path


def refuse(message: str):
    raise AssertionError(f"unexpected warning: {message}")


def keep_in_use(monkeypatch, name: str) -> None:
    """Files of this name cannot be removed, as open files on NFS."""
    unlink = os.unlink

    def unless_in_use(path, **options):
        if os.path.basename(path) == name:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", unless_in_use)


def edit(path, change):
    path.write_bytes(change(bytearray(path.read_bytes())))


def flip(position):
    def change(data):
        data[position] ^= 1
        return data

    return change
