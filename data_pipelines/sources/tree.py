"""What lies below a folder: the files that are named as images are, the folders, and what is neither."""

import errno
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from data_pipelines.sources.clutter import NOT_NAMED_AS_IMAGE, clutter
from data_pipelines.sources.images import SUFFIXES

ANNOTATIONS = "val_annotations.txt"  # of Tiny ImageNet: lines of file name, class, and a box
LINK_TO_NOTHING = "a link to nothing"
KNOWN = frozenset(SUFFIXES)


@dataclass
class Tree:
    """The entries below a folder, by paths with "/" in no particular order; "" is the folder itself.

    Args:
        images: files named as images are.
        folders: all folders that may hold data.
        left_out: why another entry is no image, by path; nothing below it was looked at.
        unreadable: what the system says of a folder that cannot be listed, by path.
    """

    images: list[str] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)
    left_out: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, OSError] = field(default_factory=dict)

    @cached_property
    def subfolders(self) -> dict[str, set[str]]:
        """The names of the folders in each folder."""
        names: dict[str, set[str]] = defaultdict(set)
        for folder in self.folders:
            parent, _, name = folder.rpartition("/")
            names[parent].add(name)
        return names

    @cached_property
    def direct(self) -> set[str]:
        """The folders that images lie in, not only below."""
        return {path.rpartition("/")[0] for path in self.images}

    @cached_property
    def filled(self) -> dict[str, set[str]]:
        """The names of the folders in each folder that have images in them or below."""
        names: dict[str, set[str]] = defaultdict(set)
        for folder in self.direct:
            while folder:
                folder, _, name = folder.rpartition("/")
                names[folder].add(name)
        return names


def read_tree(root: Path) -> Tree:
    """Lists a folder with all below it; links to folders are followed, but not in a circle."""
    tree = Tree()
    below: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(root),))]
    while below:
        at, above = below.pop()
        try:
            with os.scandir(os.path.join(root, at)) as entries:
                for entry in entries:
                    path = f"{at}/{entry.name}" if at else entry.name
                    real = os.path.join(above[-1], entry.name)
                    real = os.path.realpath(entry.path) if entry.is_symlink() else real
                    folder = _is(entry.is_dir)
                    if why := _no_data(entry, folder, real in above):
                        tree.left_out[path] = why
                    elif folder:
                        tree.folders.add(path)
                        below.append((path, (*above, real)))
                    elif entry.name != ANNOTATIONS:
                        tree.images.append(path)
        except OSError as error:
            tree.unreadable[at] = error
    return tree


def _no_data(entry: os.DirEntry, folder: bool, circle: bool) -> str | None:
    """Why an entry is neither a folder to look into nor an image; None: it is."""
    if (why := clutter(entry.name, folder)) or circle:
        return why or "a link to a folder that it lies in"
    if entry.is_symlink() and leads_nowhere(entry.path):
        return LINK_TO_NOTHING
    if folder or entry.name == ANNOTATIONS:
        return None
    if "." not in entry.name or entry.name.rpartition(".")[2].lower() not in KNOWN:
        return NOT_NAMED_AS_IMAGE
    return None if _is(entry.is_file) else "no regular file"


def _is(kind: Callable[[], bool]) -> bool:
    """Whether an entry is of a kind; a link in a circle or to where nobody may look is of none."""
    try:
        return kind()
    except OSError:
        return False


def leads_nowhere(path: str) -> bool:
    """Whether a link's target is gone, or it leads in a circle; a target that may not be seen is not gone."""
    try:
        os.stat(path)
    except OSError as error:
        return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
    return False


def join(folder: str, name: str) -> str:
    """A path below the root; the folder may be "", the root."""
    return f"{folder}/{name}" if folder and name else folder or name
