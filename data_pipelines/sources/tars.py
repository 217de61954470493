"""Reads the headers of tar files without unpacking them."""

import os
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.common.errors import UserError
from data_pipelines.dataset import INDEX, compressed
from data_pipelines.sources.images import EXTENSIONS


class Member(NamedTuple):
    """A member of a tar; offset and size of its data, bytes; plain: no link, folder or device."""

    name: str
    offset: int
    size: int
    plain: bool


def members(path: str | Path) -> tuple[list[Member], str | None]:
    """All complete members of a tar, in order, and what is wrong with the tar, or None.

    Raises UserError when it is compressed; OSError when it cannot be read.
    """
    if why := compressed(path):
        raise UserError(f"{path} {why}")
    listed: list[Member] = []
    end, size = 0, os.stat(path).st_size
    try:
        with tarfile.open(path, "r:", errorlevel=2) as tar:
            for member in tar:
                if member.offset_data + member.size * member.isreg() > size:
                    return listed, f"is cut short at byte {size:,}, within {member.name!r}"
                listed.append(Member(member.name, member.offset_data, member.size, _is_plain(member)))
            # tarfile mistakes a damaged header, or a cut between two members, for the end of the tar.
            end = tar.offset
            tar.fileobj.seek(end)
            if tar.fileobj.read(1024) != bytes(1024):
                return listed, f"is damaged or cut short at byte {end:,} of {size:,}"
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        return listed, f"is not a whole tar file ({error})"
    return listed, None


def _is_plain(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.issparse()


def index_shard(path: str | Path) -> np.ndarray:
    """The index of a shard that this package wrote, from its headers: INDEX [images], image sizes still 0.

    Raises UserError when the tar is compressed, cut short or damaged, or when its members are not pairs of an
    image and <key>.cls with a whole number in the latter.
    """
    listed, damage = members(path)
    if damage:
        raise UserError(f"{path} {damage}")
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    with open(path, "rb") as file:
        for member in listed:
            key, _, kind = member.name.rpartition(".")
            is_image = kind in EXTENSIONS.values()
            known = images if is_image else labels
            if not (is_image or kind == "cls") or key in known or not member.plain:
                raise UserError(f"{path}: member {member.name!r} is not one image or <key>.cls")
            if is_image:
                images[key] = (member.offset, member.size)
                continue
            text = os.pread(file.fileno(), min(member.size, 32), member.offset)
            if not text.strip().removeprefix(b"-").isdigit():
                raise UserError(f"{path}: member {member.name!r} holds {text!r}, expected a whole number")
            labels[key] = int(text)
    if alone := sorted(images.keys() ^ labels.keys()):
        raise UserError(f"{path}: {alone[0]!r} has not both of an image and <key>.cls")
    return np.array([(*images[key], 0, 0, labels[key]) for key in images], dtype=INDEX)
