"""MLflow's SQLite file: its address, where `?` begins options and %20 is decoded, and whether it is whole."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote

from data_pipelines.common.errors import UserError
from trainer.tracking.outage import Outage

SQLITE = "sqlite:///"
MAGIC = b"SQLite format 3\0"
HEADER = 100  # bytes
SPECIAL = re.compile("[%?#]")


def sqlite_uri(path: Path) -> str:
    """The address of a file, by an absolute path. Raises UserError where SQLAlchemy has none for it."""
    text = str(path)
    if not SPECIAL.search(text):
        return f"{SQLITE}{text}"
    from sqlalchemy import make_url  # costs a moment, which other names need not pay

    quoted = SPECIAL.sub(lambda letter: f"%{ord(letter[0]):02X}", text)
    for uri in (f"{SQLITE}{quoted}", f"{SQLITE}{text}"):  # from SQLAlchemy 2.1 on, before it
        if make_url(uri).database == text:
            return uri
    raise UserError(
        f"{path}: this SQLAlchemy opens no SQLite file in a folder with % ? or # in its name; choose another "
        "folder with outputs=, or set tracking.uri"
    )


def sqlite_path(uri: str) -> Path:
    """The file of an address."""
    text = uri.removeprefix(SQLITE)
    path = Path(unquote(text))
    return path if uri == sqlite_uri(path) else Path(text)


@contextmanager
def without_stray_folder(uri: str) -> Iterator[None]:
    """Removes the empty folder that MLflow makes where it does not decode the path of an address."""
    folder = Path(uri.removeprefix(SQLITE)).parent
    stray = None if folder.exists() else folder
    try:
        yield
    finally:
        if stray:
            with suppress(OSError):
                stray.rmdir()


def is_there(path: Path) -> bool:
    """Whether there is a SQLite file, and not an empty one, which SQLite takes for a new one.

    MLflow would try to open a damaged one for minutes.

    Raises Outage where it is damaged or something else, OSError where it cannot be opened for writing.
    """
    try:
        with open(path, "r+b") as file:
            header, size = file.read(HEADER), os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return False
    if not size:
        return False
    # https://www.sqlite.org/fileformat2.html: the number of pages counts where two counters are equal.
    page, pages = int.from_bytes(header[16:18]), int.from_bytes(header[28:32])
    cut = header[24:28] == header[92:96] and size < pages * (65_536 if page == 1 else page)
    if len(header) < HEADER or not header.startswith(MAGIC) or cut:
        what = "cut short" if cut and header.startswith(MAGIC) else "no SQLite file"
        raise Outage(f"{path} is {what}; move it away, and MLflow makes a new one")
    return True
