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
# Words that make a set's name of a split's, with or without something between them: trainset, images_test.
_SET = "(?:sets?|datasets?|images?|imgs?|data|splits?|folders?|dirs?|files?|a|b)"
_SPLIT = f"({'|'.join(sorted(NAMES, key=len, reverse=True))})"
_NAME_OF_SET = re.compile(f"{_SPLIT}{_SET}|{_SET}{_SPLIT}")


def named(path: str) -> str | None:
    """The split that a path names, folder by folder: imagenet-train-000000.tar -> train."""
    for word in re.split(r"[^a-z]+", path.lower()):
        if word in NAMES:
            return NAMES[word]
    return None


def lookalike(path: str) -> str | None:
    """The split that a path names or resembles: train_set, trainset, testimages, valA."""
    if split := named(path):
        return split
    matches = map(_NAME_OF_SET.fullmatch, re.split(r"[^a-z]+", path.lower()))
    return next((NAMES[match[1] or match[2]] for match in matches if match), None)


def is_set(name: str) -> bool:
    """Whether a name is that of a split and a word such as set, and no more: test_set, TrainImages."""
    return _NAME_OF_SET.fullmatch(re.sub("[^a-z]+", "", name.lower())) is not None


def of_folder(name: str) -> str | None:
    """The split that a folder is named after, whatever the case of its letters; None: none."""
    return NAMES.get(name.strip().lower())


def nfc(name: str) -> str:
    """A name in the normal form in which names are compared: macOS decomposes letters with accents."""
    return unicodedata.normalize("NFC", name)


def printable(path: str) -> str:
    """A name that can be printed and written as UTF-8, whatever bytes the file system has."""
    return os.fsencode(path).decode("utf-8", "replace")


def few(names: list[str]) -> str:
    """The first three names, for a message."""
    return ", ".join(map(printable, names[:3])) + (", ..." if len(names) > 3 else "")


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
