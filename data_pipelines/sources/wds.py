"""Existing WebDataset tars -> indices over them; the tars stay as and where they are.

A sample is the members with one key, and a key ends at the first dot of a member's base name, as webdataset
reads it: 000123.jpg, 000123.txt and 000123.json are the sample 000123. Its image is the first member with a
known extension; its label is the member cls, or the value of a key in the member json, or none.
"""

import glob
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.common.errors import UserError
from data_pipelines.common.processes import IMAGES_PER_WORKER
from data_pipelines.common.shortage import raise_shortage
from data_pipelines.dataset import INDEX, compressed
from data_pipelines.sources import splits
from data_pipelines.sources.images import LARGEST, SUFFIXES, Sums, picture
from data_pipelines.sources.tars import Member, members

MOST_CLASSES = 1_000_000  # a larger label is not the number of a class
LARGEST_TEXT = 1 << 24  # bytes of a json member
ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class TarSample(NamedTuple):
    """A sample with an image; one that cannot be used has the reason in `why`. label: -1: unlabelled."""

    key: str
    image: Member
    label: int = -1
    why: str | None = None


@dataclass(frozen=True)
class Tars:
    """The tars of one split, or the part of them that a hash of the samples' keys gives to it.

    percent: of samples in the test split, None where the tars are of this split alone; label: the key in json
    members, None for cls; classes: their names, None where labels are numbers alone.
    """

    paths: list[str]
    split: str
    percent: int | None
    label: str | None
    classes: tuple[str, ...] | None

    def __len__(self) -> int:
        """An estimate of the images, for the number of processes: one process a tar."""
        return len(self.paths) * IMAGES_PER_WORKER

    def chunks(self, _size: int) -> "list[Tars]":
        """One for each tar."""
        return [Tars([path], self.split, self.percent, self.label, self.classes) for path in self.paths]

    def digest(self) -> str:
        """sha256 (hex) of all that decides the index of the first tar."""
        status = os.stat(self.paths[0])
        state = (self, status.st_size, status.st_mtime_ns)
        return hashlib.sha256(repr(state).encode("utf-8", "surrogateescape")).hexdigest()

    def index(self) -> tuple[np.ndarray, list[dict], Sums]:
        """Decodes the first tar's images: its rows of INDEX, what is left out, and sums over pixels."""
        path, rows, left_out, sums = self.paths[0], [], [], Sums()
        listed, damage = samples(path, self.label, self.classes)
        if damage and self.split == "train":  # once, where two splits share a tar
            left_out.append(
                {"member": splits.printable(path), "why": f"it {damage}; nothing from there on is used"}
            )
        with open(path, "rb") as file:
            for sample in listed:
                if not self._has(sample.key):
                    continue
                try:
                    if sample.why:
                        raise ValueError(sample.why)
                    encoded = os.pread(
                        file.fileno(), min(sample.image.size, LARGEST + 1), sample.image.offset
                    )
                    values = picture(encoded, rewrite=False).values
                except Exception as error:  # image decoders raise nearly anything
                    raise_shortage(error, f"reading {path}")
                    why = " ".join(str(error).split()) or type(error).__name__
                    member = splits.printable(f"{path}: {sample.image.name}")
                    left_out.append({"member": member, "why": splits.printable(why)})
                    continue
                rows.append((sample.image.offset, len(encoded), *values.shape[:2], sample.label))
                sums.count(values)
        return np.array(rows, dtype=INDEX), left_out, sums

    def _has(self, key: str) -> bool:
        return self.percent is None or splits.in_test(key, self.percent) == (self.split == "test")


def samples(
    path: str | Path, label: str | None, classes: Sequence[str] | None
) -> tuple[list[TarSample], str | None]:
    """All samples of a tar, in order, also unusable ones, and what is wrong with the tar, or None.

    Raises UserError when it is compressed; OSError when it cannot be read.
    """
    listed, damage = members(path)
    groups: dict[str, list[tuple[str, Member]]] = {}
    for member in listed:
        folder, slash, base = member.name.rpartition("/")
        stem, _, suffix = base.partition(".")
        if suffix and (member.plain or _rank(suffix) is not None):
            groups.setdefault(folder + slash + stem, []).append((suffix.lower(), member))
    if damage and groups:
        groups.popitem()  # its label may be what was cut off
    in_order: list[TarSample] = []
    with open(path, "rb") as file:
        for key, group in groups.items():
            in_order += _sample(file.fileno(), key, group, label, classes)
    return in_order, damage


def _sample(
    fd: int, key: str, group: list[tuple[str, Member]], label: str | None, classes: Sequence[str] | None
) -> Iterator[TarSample]:
    """Yields the sample itself, and one that cannot be used for each further image in it."""
    # In the order of SUFFIXES, x.jpg before x.left.jpg; Python's sort keeps the tar's order among equals.
    ranked = [
        (suffix.count("."), rank, member) for suffix, member in group if (rank := _rank(suffix)) is not None
    ]
    images = [member for _, _, member in sorted(ranked, key=lambda entry: entry[:2])]
    if not images:
        yield TarSample(key, group[0][1], why="its sample has no image")
        return
    first, others = images[0], images[1:]
    texts = {suffix: member for suffix, member in reversed(group) if member.plain}
    try:
        if not key.rpartition("/")[2]:
            raise ValueError("a hidden file")
        if not first.plain:
            raise ValueError("a link, or no file")
        yield TarSample(key, first, _label(fd, texts, label, classes))
    except ValueError as error:
        yield TarSample(key, first, why=str(error))
    for other in others:
        yield TarSample(
            key, other, why=f"{first.name} is the image of its sample: a key ends at the first dot"
        )


def _rank(suffix: str) -> int | None:
    ending = suffix.rpartition(".")[2].lower()
    return SUFFIXES.index(ending) if ending in SUFFIXES else None


def _label(fd: int, texts: dict[str, Member], label: str | None, classes: Sequence[str] | None) -> int:
    """The label of a sample; -1: none. Raises ValueError where it is not the number or name of a class."""
    if label is not None:
        value = _json(fd, texts["json"]).get(label, -1) if "json" in texts else -1
    elif "cls" in texts:
        value = (
            os.pread(fd, min(texts["cls"].size, 256), texts["cls"].offset).decode("utf-8", "replace").strip()
        )
    else:
        return -1
    if isinstance(value, str):
        if classes and value in classes:
            return classes.index(value)
        value = int(value) if value.removeprefix("-").isdecimal() else value
    most = MOST_CLASSES if classes is None else len(classes)
    if type(value) is not int or not -1 <= value < most:
        raise ValueError(f"its label is {str(value)[:40]!r}, expected a whole number in 0..{most - 1}")
    return value


def _json(fd: int, member: Member) -> dict:
    if member.size > LARGEST_TEXT:
        raise ValueError(f"{member.name} has {member.size:,} bytes, expected at most {LARGEST_TEXT:,}")
    try:
        value = json.loads(os.pread(fd, member.size, member.offset))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{member.name} cannot be read ({str(error)[:80]})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{member.name} holds no dict")
    return value


def read(from_: str, test_percent: int | None, label: str | None) -> tuple[list[str] | None, dict[str, Tars]]:
    """The class names, None where labels are numbers alone, and {split: tars}, of a folder or a glob pattern.

    Raises UserError when there is no tar, one is compressed, some name a split and others none, or `label` is
    no key of the first json member.
    """
    base, names = _find(from_)
    paths = [os.path.abspath(os.path.join(base, name)) for name in names]
    for path in paths:
        try:
            why = compressed(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from None
        if why:
            raise UserError(f"{path} {why}")
    try:
        text = Path(base, "classes.txt").read_text("utf-8", "replace")
        classes = [line.strip() for line in text.splitlines() if line.strip()]
    except FileNotFoundError:
        classes = None
    if label is not None:
        _check_label(paths[0], label, classes)
    by_name: dict[str, list[str]] = {}
    unnamed: list[str] = []
    for name, path in zip(names, paths, strict=True):
        split = splits.named(name)
        (unnamed if split is None else by_name.setdefault(split, [])).append(path)
    if unnamed and by_name:
        other = next(iter(by_name))
        apart = f"{unnamed[0]} names no split and {by_name[other][0]} names {other}"
        raise UserError(f"from={from_}: {apart}; rename either")
    options = (label, tuple(classes) if classes is not None else None)
    if len(by_name) <= 1:
        percent = splits.TEST_PERCENT if test_percent is None else test_percent
        parts = ("train", "test") if percent else ("train",)
        return classes, {split: Tars(paths, split, percent, *options) for split in parts}
    if "train" not in by_name:
        raise UserError(f"from={from_} has {', '.join(by_name)} but no train; give the folder above them")
    splits.by_hash(by_name, test_percent, f"from={from_}", str)  # has splits: refuses a percentage
    order = sorted(by_name, key=lambda split: split != "train")
    return classes, {split: Tars(by_name[split], split, None, *options) for split in order}


def _find(from_: str) -> tuple[str, list[str]]:
    """A folder and the names below it of all tars, sorted."""
    if os.path.isdir(from_):
        base, pattern = from_, "**"
    else:
        fixed = from_.split("*")[0].split("?")[0].split("[")[0]
        base = os.path.dirname(fixed)
        pattern = os.path.relpath(from_, base or ".")
    matches = glob.glob(pattern, root_dir=base or None, recursive=True)
    names = sorted(
        name
        for name in matches
        if name.lower().endswith(ENDINGS) and os.path.isfile(os.path.join(base, name))
    )
    if not names:
        raise UserError(
            f"from={from_}: no tar is there; give a folder of tars or a quoted pattern, 'DIR/*.tar'"
        )
    return base or ".", names


def _check_label(path: str, label: str, classes: Sequence[str] | None) -> None:
    with open(path, "rb") as file:
        for member in members(path)[0]:
            if not member.name.endswith(".json") or not member.plain:
                continue
            try:
                value = _json(file.fileno(), member)
            except ValueError as error:
                raise UserError(f"label={label}: {path}: {error}") from None
            if label not in value:
                known = ", ".join(list(value)[:12])
                raise UserError(f"label={label}: {member.name} in {path} has no such key; it has {known}")
            if isinstance(value[label], str) and not value[label].lstrip("-").isdecimal() and classes is None:
                raise UserError(
                    f"label={label} is text in {path} ({value[label][:40]!r}); "
                    "write the class names, one a line, into classes.txt beside the tars"
                )
            return
    raise UserError(f"label={label}: {path} has no json member to read it from")
