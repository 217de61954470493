"""The split of an image: by the name of its folder or tar, else by a hash of the image's name."""

import hashlib
import os
import re
import unicodedata
from collections.abc import Callable
from typing import TypeVar

from data_pipelines.common.errors import UserError

# Names of splits in folders and tars -> names in a data set.
NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
    "unlabelled": "unlabelled",
    "unlabeled": "unlabelled",
}
TEST_PERCENT = 10


def named(path: str) -> str | None:
    """The split that a path names, folder by folder: imagenet-train-000000.tar -> train."""
    for word in re.split(r"[^a-z]+", path.lower()):
        if word in NAMES:
            return NAMES[word]
    return None


def of_folder(name: str) -> str | None:
    """The split that a folder is named after, whatever the case of its letters; None: none."""
    return NAMES.get(name.strip().lower())


def nfc(name: str) -> str:
    """A name in the normal form in which names are compared: macOS decomposes letters with accents."""
    return unicodedata.normalize("NFC", name)


def printable(path: str) -> str:
    """A name that can be printed and written as UTF-8, whatever bytes the file system has."""
    return os.fsencode(path).decode("utf-8", "replace")


Item = TypeVar("Item")


def by_hash(
    parts: dict[str, list[Item]], percent: int | None, where: str, name: Callable[[Item], str]
) -> dict[str, list[Item]]:
    """{split: items}: unchanged where there are several, else cut into train and test by each name(item).

    percent: how many in 100 become the test split; None: TEST_PERCENT. Raises UserError where there is a
    percentage for a set that has splits; `where` says where it is from.
    """
    if len(parts) > 1:
        if percent is not None:
            has = ", ".join(parts)
            raise UserError(f"test_percent={percent}: {where} has splits ({has}); leave test_percent= out")
        return parts
    percent = TEST_PERCENT if percent is None else percent
    return {
        split: [item for item in parts["train"] if in_test(name(item), percent) == (split == "test")]
        for split in ("train", "test")
    }


def in_test(name: str, percent: int) -> bool:
    """Whether an image of this name is one of the `percent` in 100 that are the test split.

    The answer depends on the name alone, whatever else is added or removed.
    """
    return _number(name, b"split") * 100 < percent << 64


def place(name: str) -> int:
    """A random number of 64 bits for a name: sorted by it, images come mixed, whatever order they had."""
    return _number(name, b"order")


def _number(name: str, purpose: bytes) -> int:
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8, person=purpose).digest()
    return int.from_bytes(digest, "little")
