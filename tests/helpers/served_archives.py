"""Official archives at an address of a test's own: a synthetic one takes the place of the publisher's."""

import hashlib
from dataclasses import replace
from pathlib import Path

from data_pipelines.remote.archive import Published
from data_pipelines.sources import archives
from tests.helpers.synthetic_cifar import write_archive, write_folder

NAME = "cifar-10-python.tar.gz"


def write_cifar10(folder: Path, per_batch: int = 12) -> Path:
    """folder/cifar-10-python.tar.gz, of random images."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = write_folder(folder / "unpacked", per_batch)
    return write_archive(raw, folder / NAME)


def published(address: str, path: Path) -> Published:
    """The file at `path` as its publisher describes it, at a server of its folder."""
    data = path.read_bytes()
    return Published(f"{address}/{path.name}", hashlib.md5(data).hexdigest(), len(data))


def publish(source: str, address: str, path: str | Path) -> None:
    """Replaces the address, md5 and length of a source's archive in this process."""
    archive = archives.ARCHIVES[source]
    archives.ARCHIVES[source] = replace(archive, file=published(address, Path(path)))
