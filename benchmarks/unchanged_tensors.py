"""Reads safetensors files as they lie on the disk, and says where bytes differ; for unchanged_compare.py."""

import json
from pathlib import Path

import numpy as np

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "U8": "u1"}


def header(path: Path) -> tuple[dict, memoryview]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), memoryview(content)[8 + length :]


def first_numbers(dtype: str, old: memoryview, new: memoryview) -> tuple[str, str]:
    """How many numbers of two tensors differ, and the first that do."""
    if dtype == "BF16":
        one, other = ((np.frombuffer(x, "<u2").astype("<u4") << 16).view("<f4") for x in (old, new))
    else:
        one, other = (np.frombuffer(side, DTYPES.get(dtype, "u1")) for side in (old, new))
    bits = [side.view(f"u{side.itemsize}") for side in (one, other)]
    where = np.flatnonzero(bits[0] != bits[1])
    at = where[:3]
    counted = f"{dtype}, {len(where):,} of {len(one):,} numbers, at {at.tolist()}"
    return f"({counted}) {one[at].tolist()}", f"{other[at].tolist()}"


def first_bytes(old: bytes, new: bytes) -> tuple[str, str]:
    at = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    return tuple(f"{len(side):,} bytes, at {at:,} {side[at : at + 8].hex()}" for side in (old, new))
