"""The official archives of CIFAR-10, CIFAR-100 and STL-10: where they lie, or where they are fetched from.

A data set ROOT is made of what lies beside it, in the folder `raw` there or directly: the unpacked folder, or
the archive. Where neither does, the archive is fetched into the cache of this machine, and stays there.
"""

import os
import shutil
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from data_pipelines.access import Access, cache_root
from data_pipelines.common.errors import UserError
from data_pipelines.remote.archive import Published, arrived, fetch
from data_pipelines.sources import cifar, stl10

CHUNK = 1 << 20  # bytes unpacked at once


@dataclass(frozen=True)
class Archive:
    """An official archive.

    Args:
        file: what is fetched.
        folder: what it unpacks to.
        made: bytes of the shards that are made of it, about.
        unpacked: bytes that are unpacked to the disk for as long as shards are made; 0 where images are read
            out of the archive.
    """

    file: Published
    folder: str
    made: int
    unpacked: int = 0


ARCHIVES = {
    "cifar10": Archive(
        Published(
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            "c58f30108f718f92721af3b95e74349a",
            170_498_071,
        ),
        cifar.CIFAR10.folder,
        made=246_025_053,
    ),
    "cifar100": Archive(
        Published(
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            "eb9058c3a382ffc7106e4002c42a8d85",
            169_001_437,
        ),
        cifar.CIFAR100.folder,
        made=244_725_690,
    ),
    "stl10": Archive(
        Published(
            "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
            "91f7769df0f17e558f3565bffb0c7dfb",
            2_640_397_119,
        ),
        stl10.FOLDER,
        made=2_900_000_000,  # estimated: PNG makes 0.85 of its pixels
        unpacked=113_000 * stl10.IMAGE,
    ),
}


def obtain(
    source: str, from_: str | Path | None, to: Path, scratch: Path, access: Access, progress: bool
) -> str | Path | None:
    """What a source is read from: `from_`, or where that is left out the official archive or its folder.

    Args:
        to: the data set's folder. scratch: a folder for what must be unpacked; the caller removes it.
        access: its `cache` receives what is fetched, its `retry_seconds` are those of `archive.fetch`.

    Raises:
        NotFetched: the archive lies nowhere, and cannot be fetched.
        UserError: the disk has no room for it and for what is made of it, or an archive cannot be unpacked.
        OSError: the scratch folder cannot be written.
    """
    archive = ARCHIVES.get(source)
    if archive is None:
        return from_
    path = local_copy(archive, to) if from_ is None else Path(from_)
    if path is None:
        check_room(archive, to, access)
        by_hand = f"download it by hand to {to.parent / 'raw'}"
        path = fetch(archive.file, cache_root(access), by_hand, access.retry_seconds, progress)
    return _unpack(path, archive, scratch, progress) if archive.unpacked and path.is_file() else path


def local_copy(archive: Archive, to: Path) -> Path | None:
    """The unpacked folder or the archive beside a data set's folder `to`; None where neither lies there."""
    for place in (to.parent / "raw", to.parent):
        if os.path.isdir(place / archive.folder):
            return place / archive.folder
        if os.path.isfile(place / archive.file.name):
            return place / archive.file.name
    return None


def describe(source: str, to: Path, access: Access) -> str:
    """What the data set `to` would be made of, and where that lies or comes from; nothing is fetched."""
    archive = ARCHIVES[source]
    if (path := local_copy(archive, to)) is not None:
        return f"{path}"
    file, cache = archive.file, cache_root(access)
    have = arrived(file, cache)
    if have >= file.bytes:
        return f"{cache / file.name}"
    there = f", of which {_size(have)} are there" if have else ""
    return f"{file.name} ({_size(file.bytes)}{there}), fetched from {file.host} to {cache}"


def check_room(archive: Archive, to: Path, access: Access) -> None:
    """Raises UserError where the disks lack room for the rest of the archive and what is made of it."""
    cache, shards = cache_root(access), archive.made + archive.unpacked
    written = sum(os.path.getsize(path) for path in to.rglob("*") if path.is_file())
    needs = [
        (cache, max(0, archive.file.bytes - arrived(archive.file, cache))),
        (to.parent, shards - min(written, shards)),
    ]
    disks: dict[int, tuple[Path, int]] = {}
    for folder, size in needs:
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
        device = there.stat().st_dev
        disks[device] = (there, disks.get(device, (there, 0))[1] + size)
    for there, size in disks.values():
        free = shutil.disk_usage(there).free
        if size > free:
            raise UserError(
                f"{to} needs {_size(size)} on the disk of {there}, which has {_size(free)} left: "
                f"{_size(needs[0][1])} of {archive.file.name} to {cache}, {_size(needs[1][1])} for shards"
                f"{' and what is unpacked' * bool(archive.unpacked)}; make room, or choose other folders: "
                "data.cache (or XDG_CACHE_HOME) for the archive, data.root for the shards"
            )


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _unpack(path: Path, archive: Archive, scratch: Path, progress: bool) -> Path:
    """Unpacks an archive's files below `scratch`, or takes what an earlier start has unpacked of this one."""
    status = path.stat()
    into, partial = scratch / f"unpacked-{status.st_size}-{status.st_mtime_ns}", scratch / "unpacking"
    if into.is_dir():
        return into
    shutil.rmtree(partial, ignore_errors=True)
    (partial / archive.folder).mkdir(parents=True)
    try:
        _unpack_members(path, archive, partial, None if progress else True)
        os.replace(partial, into)
    except (EOFError, zlib.error, tarfile.TarError) as error:
        why = str(error).partition("\n")[0]
        raise UserError(f"{path} cannot be read ({why}); {stl10.EXPECTED}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return into


def _unpack_members(path: Path, archive: Archive, to: Path, hidden: bool | None) -> None:
    """Writes the archive's files to to/FOLDER; `hidden` None: a bar is shown on a terminal."""
    name, missing = f"unpacking {path.name}", set(stl10.MEMBERS)
    with (
        tqdm(desc=name, total=archive.unpacked, unit="B", unit_scale=True, disable=hidden) as bar,
        tarfile.open(path, "r|*") as members,
    ):
        for member in members:
            folder, _, name = member.name.removeprefix("./").rpartition("/")
            if folder != archive.folder or name not in missing or not member.isreg():
                continue
            content = members.extractfile(member)
            assert content is not None  # it is a regular file
            with open(to / folder / name, "wb") as file:
                while chunk := content.read(CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
            missing.remove(name)
    if missing:
        raise UserError(f"{path} has no member {archive.folder}/{min(missing)}; {stl10.EXPECTED}")
