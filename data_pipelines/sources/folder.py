"""Folders of image files -> (file, label): ImageNet, Tiny ImageNet, or any other folder.

DIR/train/CLASS/**/x.jpg, DIR/val/CLASS/...   split folders; a class is a folder of train with images anywhere
                                              below. A split without class folders (ImageNet's test) is
                                              unlabelled, unless val_annotations.txt (Tiny ImageNet) says
                                              more.
DIR/CLASS/**/x.jpg                            class folders; the splits by a hash of each file's path in DIR
DIR/x.jpg                                     no class folders: unlabelled

Files keep their bytes. This module reads names alone; worker processes open and decode the files.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_pipelines.common.errors import UserError
from data_pipelines.sources.images import LARGEST, SUFFIXES, Picture, Sample, picture
from data_pipelines.sources.splits import NAMES, by_hash, place, printable

ANNOTATIONS = "val_annotations.txt"  # lines of file name, class, and a box
KNOWN = frozenset(SUFFIXES)


@dataclass(frozen=True)
class Files:
    """Image files of one split, in order, as paths below root with their labels (None: unlabelled).

    File i has the key f"{prefix}_{first + i:08d}_{its name, cut and without dots}".
    """

    root: str
    prefix: str
    first: int
    paths: list[str]
    labels: list[int | None]

    def __len__(self) -> int:
        return len(self.paths)

    def chunks(self, size: int) -> "list[Files]":
        """Consecutive pieces of `size` files, the last one shorter."""
        return [
            Files(self.root, self.prefix, self.first + i, self.paths[i : i + size], self.labels[i : i + size])
            for i in range(0, len(self), size)
        ]

    def digest(self) -> str:
        """sha256 (hex) over names, labels, lengths and times of change, to recognise a finished shard."""
        digest = hashlib.sha256(f"{self.prefix} {self.first}\n".encode())
        for path, label in zip(self.paths, self.labels, strict=True):
            try:
                status = os.stat(os.path.join(self.root, path))
                state = (status.st_size, status.st_mtime_ns)
            except OSError:
                state = None
            digest.update(os.fsencode(path) + f"\0{label} {state}\n".encode())
        return digest.hexdigest()

    def samples(self) -> Iterator[Sample]:
        for number, (path, label) in enumerate(zip(self.paths, self.labels, strict=True), self.first):
            stem = re.sub("[^A-Za-z0-9_-]+", "-", Path(path).stem)[:48]
            load = partial(_load, os.path.join(self.root, path))
            yield Sample(printable(path), f"{self.prefix}_{number:08d}_{stem}", label, load)


def _load(path: str) -> Picture:
    try:
        with open(path, "rb") as file:
            return picture(file.read(LARGEST + 1))
    except OSError as error:
        if error.errno is None:  # pillow's, about what the file holds
            raise
        raise ValueError(f"cannot be read ({error.strerror})") from None


def read(root: Path, test_percent: int | None) -> tuple[list[str], dict[str, Files], list[dict]]:
    """The class names, {split: files} and what is left out, {"member", "why"}, of a folder.

    test_percent: how many in 100 become the test split where the folder has no splits; None: TEST_PERCENT.
    Raises UserError when it is no folder, holds no image, or its layout is not one of the above.
    """
    left_out: list[dict] = []
    try:
        splits = _split_folders(root, left_out)
        listed = {split: _images(root, folder, left_out) for split, folder in splits.items()}
    except OSError as error:
        why = f"{error.filename} cannot be read ({error.strerror})"
        raise UserError(f"from={root}: {why}; give a folder of images") from None
    classes = sorted({path.split("/")[0] for path in listed["train"] if "/" in path})
    numbers = {name: number for number, name in enumerate(classes)}
    pairs: dict[str, list[tuple[str, int | None]]] = {}
    for split, paths in listed.items():
        folder = splits[split] and f"{splits[split]}/"
        labels = _labels(root / folder, split, paths, numbers)
        pairs[split] = []
        for path, name in zip(paths, labels, strict=True):
            if name is None or name in numbers:
                pairs[split].append((folder + path, None if name is None else numbers[name]))
            else:
                why = f"{printable(name)!r} is no class of train" if name else "it lies in no class folder"
                left_out.append({"member": printable(folder + path), "why": why})
    pairs = by_hash(pairs, test_percent, f"from={root}", lambda pair: pair[0])
    for part in pairs.values():
        part.sort(key=lambda pair: (place(pair[0]), pair[0]))
    files = {
        split: Files(str(root), split, 0, *map(list, zip(*part, strict=True)))
        for split, part in pairs.items()
        if part
    }
    if "train" not in files:
        endings = ", ".join(SUFFIXES[:5])
        raise UserError(f"from={root} has no image to train on; names of images end in {endings}, ...")
    left_out.sort(key=lambda entry: entry["member"])
    return [printable(name) for name in classes], files, left_out


def _split_folders(root: Path, left_out: list[dict]) -> dict[str, str]:
    """{split: its folder's name}; {"train": ""}, the root itself, where no folders are named after splits."""
    with os.scandir(root) as entries:
        folders = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    splits: dict[str, str] = {}
    for folder in folders:
        if (split := NAMES.get(folder.lower())) is not None:
            if split in splits:
                raise UserError(
                    f"from={root}: {splits[split]} and {folder} are both {split}; remove one of them"
                )
            splits[split] = folder
    others = [folder for folder in folders if folder not in splits.values()]
    if "train" not in splits and splits and not others:
        raise UserError(
            f"from={root} has {', '.join(splits.values())} but no train; give the folder above them"
        )
    if "train" not in splits or (len(splits) == 1 and others):
        return {"train": ""}  # the folder "train" may be a class, of trains
    left_out += [{"member": printable(name), "why": "a folder that is no split"} for name in others]
    return dict(sorted(splits.items(), key=lambda item: item[0] != "train"))


def _images(root: Path, folder: str, left_out: list[dict]) -> list[str]:
    """Paths below root/folder of all files that are named as images are; the others are left out."""
    images = []
    start = os.path.join(root, folder)
    below: list[tuple[str, str, tuple[str, ...]]] = [(start, "", (os.path.realpath(start),))]
    while below:
        at, prefix, above = below.pop()
        with os.scandir(at) as entries:
            for entry in entries:
                path, why = prefix + entry.name, None
                link = entry.is_symlink()
                real = os.path.realpath(entry.path) if link else os.path.join(above[-1], entry.name)
                if entry.name.startswith("."):
                    why = "a hidden file"
                elif real in above:
                    why = "a link to a folder that it lies in"
                elif entry.is_dir():
                    below.append((entry.path, f"{path}/", (*above, real)))
                elif entry.name.rpartition(".")[2].lower() not in KNOWN or "." not in entry.name:
                    why = "its name is no image's" if entry.name != ANNOTATIONS else None
                elif not entry.is_file():
                    why = "no regular file"
                else:
                    images.append(path)
                if why:
                    left_out.append({"member": printable(os.path.join(folder, path)), "why": why})
    return images


def _labels(folder: Path, split: str, paths: list[str], classes: dict[str, int]) -> list[str | None]:
    """The class name of each path below a split's folder, "" where it has none; all None if unlabelled."""
    within = [path.split("/")[0] if "/" in path else "" for path in paths]
    if (folder / ANNOTATIONS).is_file():
        text = (folder / ANNOTATIONS).read_text("utf-8", "replace")
        annotated = dict(line.split("\t")[:2] for line in text.splitlines() if "\t" in line)
        return [annotated.get(path.rpartition("/")[2], "") for path in paths]
    strange = sorted(set(within) - classes.keys() - {""})
    if not classes.keys() & set(within):
        if len(strange) > 1:
            few = ", ".join(map(printable, strange[:3]))
            raise UserError(
                f"{folder}: no folder of {split} ({few}, ...) is a class of train; name them alike"
            )
        return [None] * len(paths)
    return list(within)
