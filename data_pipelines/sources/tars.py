"""Reads the headers of tar files without unpacking them."""

import os
import tarfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from data_pipelines.common.errors import UserError
from data_pipelines.dataset import INDEX, compressed
from data_pipelines.sources.images import EXTENSIONS

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_OTHER_KINDS = {
    b"PK\3\4": "a zip archive; unpack it, and write a tar",
    b"7z\xbc\xaf": "a 7z archive; unpack it, and write a tar",
    b"Rar!": "a RAR archive; unpack it, and write a tar",
    b"PAR1": "a Parquet file",
    b"version https://git-lfs": "a pointer of Git LFS; `git lfs pull` fetches the file",
}
_BLOCK = 1 << 20  # bytes read at once in search of a further archive; a multiple of tar's 512


class Member(NamedTuple):
    """A member of a tar.

    Args:
        offset, size: of its data, bytes.
        why: it has no data in one piece, because it is a link or a sparse file, for example; None: it has.
        folder: whether it is one.
        archive: the number of the archive that it lies in, where one file holds several (`cat a.tar b.tar`).
    """

    name: str
    offset: int
    size: int
    why: str | None = None
    folder: bool = False
    archive: int = 0


class Listing(NamedTuple):
    """The members of a tar, in order.

    Args:
        damage: what is wrong with the tar from some place on, such as "is cut short at byte 512"; or None.
        surplus: what lies behind its end without being a tar; or None.
        archives: how many the file holds, one behind the other; the damage lies in the last one.
    """

    members: list[Member]
    damage: str | None = None
    surplus: str | None = None
    archives: int = 1


def list_members(path: str | Path) -> Listing:
    """All complete members of a tar, those of further archives behind its end with them.

    Raises UserError when it is compressed; OSError when it cannot be read.
    """
    if why := compressed(path):
        raise UserError(f"{path} {why}")
    listed: list[Member] = []
    start: int | None = 0
    number, size = 0, os.stat(path).st_size
    with open(path, "rb") as file:
        while start is not None:
            file.seek(start)
            damage, end = _list_archive(file, size, number, listed)
            if damage:
                if not listed and (other := _other_kind(file)):
                    damage = f"is not a whole tar file ({other})"
                return Listing(listed, damage, None, number + 1)
            start, number = _behind(file, end), number + 1
            if start is not None and not _is_header(file, start):
                rest = f"{size - start:,} bytes behind its end, from byte {start:,} on, that are no tar"
                return Listing(listed, None, rest, number)
    return Listing(listed, None, None, number)


def _list_archive(file: BinaryIO, size: int, number: int, listed: list[Member]) -> tuple[str | None, int]:
    """Adds the members of the archive that begins here; returns its damage, or None and where it ends."""
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:", errorlevel=2) as tar:
            for member in tar:
                stored = _stored(member)
                last = member.offset_data + stored * member.isreg()
                if last > size or stored < 0:
                    return f"is cut short at byte {size:,}, within {member.name!r}", end
                place = (member.name, member.offset_data, member.size)
                listed.append(Member(*place, _no_data(member), member.isdir(), number))
            # tarfile mistakes a damaged header, or a cut between two members, for the end of the tar.
            end = tar.offset
            file.seek(end)
            if file.read(1024) != bytes(1024):
                return f"is damaged or cut short at byte {end:,} of {size:,}", end
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        return f"is not a whole tar file ({error})", end
    return None, end


def _other_kind(file: BinaryIO) -> str | None:
    """What a file is that is named as a tar, by its first bytes; None: nobody knows."""
    file.seek(0)
    start = file.read(512)
    if start.lstrip(b"\xef\xbb\xbf \r\n\t")[:9].lower().startswith((b"<html", b"<!doctype", b"<?xml")):
        return "a web page, as a download that failed leaves it"
    return next((kind for magic, kind in _OTHER_KINDS.items() if start.startswith(magic)), None)


def _stored(member: tarfile.TarInfo) -> int:
    """Bytes that the tar has of a member's data; the size of a sparse file is that of its holes, too."""
    parts: Any = member.sparse  # (offset, length) of each
    return member.size if parts is None else sum(length for _, length in parts)


def _behind(file: BinaryIO, end: int) -> int | None:
    """The first block of 512 bytes behind the end of an archive that is not empty; None: all are."""
    file.seek(end)
    while block := file.read(_BLOCK):
        if rest := block.lstrip(b"\0"):
            return end + (len(block) - len(rest)) // 512 * 512
        end += len(block)
    return None


def _is_header(file: BinaryIO, start: int) -> bool:
    file.seek(start)
    try:
        tarfile.TarInfo.frombuf(file.read(512), "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return False
    return True


def _no_data(member: tarfile.TarInfo) -> str | None:
    if not member.isreg():
        return "a link, or no file"
    return "a sparse file, whose bytes do not lie in one piece" if member.issparse() else None


def index_shard(path: str | Path) -> np.ndarray:
    """The index of a shard that this package wrote, from its headers: INDEX [images], image sizes still 0.

    Raises UserError when the tar is compressed, cut short or damaged, or when its members are not pairs of an
    image and <key>.cls with a whole number in the latter.
    """
    listing = list_members(path)
    if listing.damage:
        raise UserError(f"{path} {listing.damage}")
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    with open(path, "rb") as file:
        for member in listing.members:
            key, _, kind = member.name.rpartition(".")
            is_image = kind in EXTENSIONS.values()
            known = images if is_image else labels
            if not (is_image or kind == "cls") or key in known or member.why:
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
