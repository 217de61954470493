"""The labels of samples in WebDataset tars: the member cls, or the value of a key in the member json."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_pipelines.common.errors import UserError
from data_pipelines.common.suggest import closest, did_you_mean
from data_pipelines.sources.splits import nfc
from data_pipelines.sources.tars import Member, list_members

MOST_CLASSES = 1_000_000  # a larger label is not the number of a class
LARGEST_TEXT = 1 << 24  # bytes of a json member
LARGEST_NAME = 1024  # bytes of a cls member
NAMES_GO_THERE = "write the class names, one a line, into classes.txt beside the tars"


def label_ending(label: str | None) -> str:
    """The ending of the members that hold labels."""
    return "cls" if label is None else "json"


def label_suffixes(image: str, ending: str) -> tuple[str, ...]:
    """Where the label of an image is, by suffixes (what follows the key and a dot), the first that is there.

    The image a.left.png has the suffix left.png; its label is a.left.cls, else a.left.png.cls, else that of
    the sample, a.cls.
    """
    stem = image.rpartition(".")[0]
    near = f"{stem}.{ending}" if stem else ending
    return near, f"{image}.{ending}", ending


def read_label(fd: int, member: Member | None, label: str | None, classes: Sequence[str] | None) -> int:
    """The label that a member holds; -1: none. Raises ValueError where it is no number or name of a class.

    Without a member, without the key in its json, or where that is null, there is none.
    """
    if member is None:
        return -1
    if member.why:
        raise ValueError(f"its label {member.name} is {member.why}")
    if label is not None:
        value = read_json(fd, member).get(label)
    else:
        text = os.pread(fd, min(member.size, LARGEST_NAME), member.offset)
        value = text.decode("utf-8", "replace").strip().lstrip("\ufeff")
    if value is None:
        return -1
    if isinstance(value, str):
        name = nfc(value)
        if classes and name in classes:
            if classes.count(name) > 1:
                raise ValueError(
                    f"its label is {name[:40]!r}, the name of several classes; expected a number"
                )
            return classes.index(name)
        value = int(value) if value.removeprefix("-").isdecimal() else value
    most = MOST_CLASSES if classes is None else len(classes)
    if type(value) is not int or not -1 <= value < most:
        is_name = isinstance(value, str) and any(letter.isalpha() for letter in value)
        hint = f"; {NAMES_GO_THERE}" if classes is None and is_name else ""
        raise ValueError(f"its label is {str(value)[:40]!r}, expected a whole number in 0..{most - 1}{hint}")
    return value


def read_json(fd: int, member: Member) -> dict:
    """What a json member holds. Raises ValueError where that is no dict."""
    if member.size > LARGEST_TEXT:
        raise ValueError(f"{member.name} has {member.size:,} bytes, expected at most {LARGEST_TEXT:,}")
    try:
        value = json.loads(os.pread(fd, member.size, member.offset))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{member.name} cannot be read ({str(error)[:80]})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{member.name} holds no dict")
    return value


def read_classes(path: Path) -> list[str] | None:
    """The names in classes.txt, one a line; None: there is no such file.

    Raises UserError where a line is empty: the classes behind it would have other numbers.
    """
    try:
        text = path.read_text("utf-8-sig", "replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    names = [nfc(line.strip()) for line in text.rstrip().splitlines()]
    if not names or "" in names:
        line = names.index("") if names else 0
        raise UserError(f"{path}: line {line + 1} is empty; write the name of class {line} there")
    return names


def check_label(paths: Sequence[str], label: str, classes: Sequence[str] | None) -> None:
    """Looks for the first label under the key `label` in the json members of tars.

    Raises UserError where no json member has that key, or it holds names and nothing lists the classes.
    """
    without: tuple[str, Mapping] | None = None
    mistake, is_null = "", False
    for path in paths:
        with open(path, "rb") as file:
            for member in list_members(path).members:
                if not member.name.lower().endswith(".json") or member.why:
                    continue
                try:
                    value = read_json(file.fileno(), member)
                except ValueError as error:
                    mistake = mistake or f"{path}: {error}"
                    continue
                if value.get(label) is not None:
                    _check_text(path, label, value[label], classes)
                    return
                is_null = is_null or label in value
                if without is None:
                    without = (f"{member.name} in {path}", value)
    if is_null:
        return
    if without is not None:
        known = ", ".join(list(without[1])[:12])
        hint = did_you_mean(closest(label, without[1]))
        raise UserError(f"label={label}: {without[0]} has no such key; it has {known}{hint}")
    if mistake:
        raise UserError(f"label={label}: {mistake}")
    raise UserError(f"label={label}: {paths[0]} has no json member to read it from")


def _check_text(path: str, label: str, value: object, classes: Sequence[str] | None) -> None:
    if isinstance(value, str) and not value.removeprefix("-").isdecimal() and classes is None:
        raise UserError(f"label={label} is text in {path} ({value[:40]!r}); {NAMES_GO_THERE}")
