"""Existing WebDataset tars -> indices over them; the tars stay as and where they are.

A sample is the members with one key, and a key ends at the first dot of a member's base name, as webdataset
reads it: 000123.jpg, 000123.txt and 000123.json are the sample 000123, and so is ./000123.cls. Its image is
the first member with a known extension; its label is the member cls, or the value of a key in the member
json, or none (`tar_labels`). A file that is several tars, one behind the other, is read as several tars: a
sample lies in one of them. Images and labels that become nothing are left out by name.
"""

import hashlib
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
from data_pipelines.sources.clutter import NO_IMAGE, clutter_in
from data_pipelines.sources.images import LARGEST, SUFFIXES, Sums, picture
from data_pipelines.sources.tar_files import by_split, find_tars
from data_pipelines.sources.tar_labels import (
    check_label,
    label_ending,
    label_suffixes,
    read_classes,
    read_label,
)
from data_pipelines.sources.tars import Listing, Member, list_members

_Group = list[tuple[str, Member]]  # suffixes, in lower case, and members of one key


class TarSample(NamedTuple):
    """A sample with an image, or a member of which nothing becomes, and then why.

    label: -1: unlabelled; labelled: whether a member is there that holds the label.
    """

    key: str
    image: Member
    label: int = -1
    why: str | None = None
    labelled: bool = True


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
        listed, remark = samples(path, self.label, self.classes)
        if remark and (self.percent is None or self.split == "train"):  # once, where two splits share a tar
            left_out.append({"member": splits.printable(path), "why": remark})
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
    """All samples of a tar, in order, also what cannot be used, and what is wrong with the tar, or None.

    Raises UserError when it is compressed; OSError when it cannot be read.
    """
    listing = list_members(path)
    in_order: list[TarSample] = []
    with open(path, "rb") as file:
        for group in _groups(listing).values():
            # Where members of one sample are named x and ./x, it has the key of the first.
            in_order += _samples_of(file.fileno(), _key(group[0][1].name), group, label, classes)
    if listing.damage and any(sample.label >= 0 for sample in in_order):
        why = "it has no label, which may have been in the part of the tar that is lost"
        in_order = [s if s.labelled or s.why else s._replace(why=why) for s in in_order]
    remark = None
    if listing.damage:
        remark = f"it {listing.damage}; neither the sample before that nor what follows is used"
    elif listing.surplus:
        remark = f"it has {listing.surplus}; they are not used"
    elif not listing.members:
        remark = "it has no members"
    elif inner := _inner_splits(listing):
        remark = (
            f"its folders {', '.join(inner)} are not read as splits; write a tar for each, with the split in "
            "its name"
        )
    return in_order, remark


def _groups(listing: Listing) -> dict[tuple[int, str], _Group]:
    """The members that may matter by archive and key, in order; one without a suffix has its own group."""
    groups: dict[tuple[int, str], _Group] = {}
    for member in listing.members:
        suffix = member.name.rpartition("/")[2].partition(".")[2]
        # Links and devices matter where an image or a label is looked for.
        matters = member.why is None or _rank(suffix) is not None or _ending(suffix) in ("cls", "json")
        if matters and not member.folder:
            key = _key(member.name)
            while key.startswith("./"):
                key = key[2:]
            groups.setdefault((member.archive, key), []).append((suffix.lower(), member))
    if listing.damage:
        keys = [key for key in groups if key[0] == listing.archives - 1 and not key[1].endswith("\0")]
        if keys:
            del groups[keys[-1]]  # its label may be what was cut off
    return groups


def _key(name: str) -> str:
    """The key of a member's name; one without a suffix has its own."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem if suffix else f"{name}\0"


def _inner_splits(listing: Listing) -> list[str]:
    """The folders in a tar that are named after splits, if several are and one is train."""
    folders = {folder for member in listing.members for folder in member.name.split("/")[:-1]}
    names = {split: folder for folder in sorted(folders) if (split := splits.of_folder(folder))}
    return list(names.values()) if "train" in names and len(names) > 1 else []


def _samples_of(
    fd: int, key: str, group: _Group, label: str | None, classes: Sequence[str] | None
) -> Iterator[TarSample]:
    """Yields the sample itself, and each of its members that becomes nothing."""
    usable: _Group = []
    names: set[str] = set()
    for suffix, member in group:
        if why := clutter_in(member.name):
            yield TarSample(key, member, why=why)
        elif member.name in names:
            yield TarSample(key, member, why="a member of the same name lies before it in the tar")
        else:
            usable.append((suffix, member))
            names.add(member.name)
    # In the order of SUFFIXES, x.jpg before x.left.jpg; Python's sort keeps the tar's order among equals.
    ranked = [
        (suffix.count("."), rank, suffix, member)
        for suffix, member in usable
        if (rank := _rank(suffix)) is not None
    ]
    ranked.sort(key=lambda entry: entry[:2])
    if not ranked:
        yield from (TarSample(key, member, why=NO_IMAGE) for _, member in usable)
        return
    *_, suffix, image = ranked[0]
    wanted, by_suffix = label_suffixes(suffix, label_ending(label)), dict(reversed(usable))
    label_member = next((by_suffix[one] for one in wanted if one in by_suffix), None)
    why, value = image.why, -1
    try:
        value = -1 if why else read_label(fd, label_member, label, classes)
    except ValueError as error:
        why = str(error)
    yield TarSample(key, image, value, why, label_member is not None)
    others = {suffix.rpartition(".")[0]: member for *_, suffix, member in ranked[1:]}
    for _, _, _, other in ranked[1:]:
        yield TarSample(
            key, other, why=f"{image.name} is the image of its sample: a key ends at the first dot"
        )
    for suffix, member in usable:
        stem, _, ending = suffix.rpartition(".")
        if ending == label_ending(label) and member is not label_member and stem not in others:
            yield TarSample(key, member, why=f"it is not the label of {image.name}, the image of its sample")


def _ending(suffix: str) -> str:
    return suffix.rpartition(".")[2].lower()


def _rank(suffix: str) -> int | None:
    ending = _ending(suffix)
    return SUFFIXES.index(ending) if ending in SUFFIXES else None


def read(from_: str, test_percent: int | None, label: str | None) -> tuple[list[str] | None, dict[str, Tars]]:
    """The class names, None where labels are numbers alone, and {split: tars}, of a folder or a glob pattern.

    Raises UserError when there is no tar, one is compressed, names of splits are amiss, or `label` is
    no key of the first json member.
    """
    base, names = find_tars(from_)
    paths = [os.path.abspath(os.path.join(base, name)) for name in names]
    for path in paths:
        try:
            why = compressed(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from None
        if why:
            raise UserError(f"{path} {why}")
    classes = read_classes(Path(base, "classes.txt"))
    if label is not None:
        check_label(paths, label, classes)
    parts = by_split(from_, names)
    options = (label, tuple(classes) if classes is not None else None)
    if len(parts) == 1:
        percent = splits.TEST_PERCENT if test_percent is None else test_percent
        halves = ("train", "test") if percent else ("train",)
        return classes, {split: Tars(paths, split, percent, *options) for split in halves}
    splits.by_hash(parts, test_percent, f"from={from_}", str)  # has splits: refuses a percentage
    of_name = dict(zip(names, paths, strict=True))
    order = sorted(parts, key=lambda split: split != "train")
    return classes, {s: Tars([of_name[name] for name in parts[s]], s, None, *options) for s in order}
