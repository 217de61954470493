"""Folders of image files -> (file, label): ImageNet, Tiny ImageNet, or any other folder.

DIR/train/CLASS/**/x.jpg, DIR/val/CLASS/...   split folders; a class is a folder of train with images anywhere
                                              below. A split without class folders (ImageNet's test) is
                                              unlabelled, unless val_annotations.txt (Tiny ImageNet) says
                                              more.
DIR/CLASS/**/x.jpg                            class folders; the splits by a hash of each file's path in DIR
DIR/x.jpg                                     no class folders: unlabelled

`layout` decides which of them it is. Files keep their bytes. This module reads names alone; worker processes
open and decode the files.
"""

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_pipelines.common.errors import UserError
from data_pipelines.sources.clutter import HIDDEN_FILE, HIDDEN_FOLDER, SYSTEM_FOLDER
from data_pipelines.sources.folder_names import means_images
from data_pipelines.sources.images import LARGEST, SUFFIXES, Picture, Sample, picture
from data_pipelines.sources.layout import Layout, class_names, find_layout
from data_pipelines.sources.splits import by_hash, few, nfc, of_folder, place, printable
from data_pipelines.sources.tars import ENDINGS
from data_pipelines.sources.tree import ANNOTATIONS, Tree, join, read_tree

NO_SPLIT_FOLDER = "a folder that is no split"
NO_SPLIT = "it lies in no split"
EMPTY_SPLIT = "a split without an image that can be used"


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
    tree = read_tree(root)
    _refuse_unreadable(root, tree, lambda path: not path)
    layout = find_layout(tree, str(root))
    _refuse_unreadable(root, tree, layout.holds)
    classes = sorted(class_names(tree, layout.class_folders["train"]))
    left_out = _left_out(tree, layout)
    pairs = {split: _labelled(root, tree, layout, split, classes, left_out) for split in layout.splits}
    left_out |= {layout.splits[split]: EMPTY_SPLIT for split in pairs if not pairs[split]}
    below = len(layout.base) + 1 if layout.base else 0
    # By the path below the base, so that DIR and DIR/the-only-folder-in-it give the same data set.
    pairs = by_hash(pairs, test_percent, f"from={root}", lambda pair: pair[0][below:])
    for part in pairs.values():
        part.sort(key=lambda pair: (place(pair[0][below:]), pair[0]))
    files = {
        split: Files(str(root), split, 0, *map(list, zip(*part, strict=True)))
        for split, part in pairs.items()
        if part
    }
    if "train" not in files:
        endings = ", ".join(SUFFIXES[:5])
        tars = any(path.lower().endswith(ENDINGS) for path in tree.left_out)
        hint = "it has tars, which source=wds reads" if tars else f"names of images end in {endings}, ..."
        raise UserError(f"from={root} has no image to train on; {hint}")
    entries = [{"member": printable(path), "why": left_out[path]} for path in sorted(left_out)]
    entries.sort(
        key=lambda entry: entry["why"] not in (NO_SPLIT_FOLDER, NO_SPLIT, EMPTY_SPLIT)
    )  # the most telling first
    return [printable(name) for name in classes], files, entries


def _refuse_unreadable(root: Path, tree: Tree, matters: Callable[[str], bool]) -> None:
    for path, error in sorted(tree.unreadable.items()):
        if matters(path):
            what = f"{printable(join(str(root), path))} cannot be read ({error.strerror})"
            raise UserError(f"from={root}: {what}; give a folder of images")


def _left_out(tree: Tree, layout: Layout) -> dict[str, str]:
    """Why a file or folder is not looked at, by path: what lies outside of the splits, and what is no image.

    Of a folder that is left out itself, nothing else is named.
    """
    left_out = dict.fromkeys(layout.others, NO_SPLIT_FOLDER)
    apart = tuple(f"{folder}/" for folder in layout.others)
    for path, why in tree.left_out.items():
        by_system = why in (HIDDEN_FILE, HIDDEN_FOLDER, SYSTEM_FOLDER)
        if (layout.holds(path) or by_system) and not path.startswith(apart):
            left_out[path] = why
    for path, error in tree.unreadable.items():
        if not layout.holds(path) and not path.startswith(apart):
            left_out.setdefault(path, f"a folder that cannot be read ({error.strerror})")
    outside = (path for path in tree.images if not layout.holds(path) and not path.startswith(apart))
    return left_out | dict.fromkeys(outside, NO_SPLIT)


def _labelled(
    root: Path, tree: Tree, layout: Layout, split: str, classes: list[str], left_out: dict[str, str]
) -> list[tuple[str, int | None]]:
    """The paths of a split's images with their labels; those that have no class are added to `left_out`."""
    folder = layout.splits[split]
    numbers = {name: number for number, name in enumerate(classes)}
    pairs: list[tuple[str, int | None]] = []
    paths = [path for path in tree.images if not folder or path.startswith(f"{folder}/")]
    names = _class_names_of(root, layout, split, paths, numbers)
    for path, name in zip(paths, names, strict=True):
        if name is None or name in numbers:
            pairs.append((path, None if name is None else numbers[name]))
        else:
            left_out[path] = (
                f"{printable(name)!r} is no class of train" if name else "it lies in no class folder"
            )
    return pairs


def _class_names_of(
    root: Path, layout: Layout, split: str, paths: list[str], classes: dict[str, int]
) -> list[str | None]:
    """The class name of each path of a split, "" where it has none; all None if the split is unlabelled."""
    annotations = root / layout.splits[split] / ANNOTATIONS
    if annotations.is_file():
        return _annotated(annotations, split, paths, classes)
    at = layout.class_folders[split]
    lower = [path[len(at) + 1 :] if at else path for path in paths]
    within = [nfc(path.split("/")[0]) if "/" in path else "" for path in lower]
    strange = sorted(set(within) - classes.keys() - {""})
    _refuse_other_spelling(root / at, strange, classes)
    if not classes.keys() & set(within):
        _refuse_no_shared_class(root / at, split, strange, classes)
        return [None] * len(paths)
    loose = within.count("")
    if (beside := len(within) - loose) < loose:
        raise UserError(
            f"{printable(str(root / at))}: {loose:,} images lie loose in it, and only {beside:,} "
            f"in folders ({few(sorted(set(within) - {''}))}), the classes; move the loose ones into class "
            "folders, or the folders away if these are no classes"
        )
    return list(within)


def _annotated(file: Path, split: str, paths: list[str], classes: Collection[str]) -> list[str | None]:
    """The class name of each path in a file of annotations, "" where it has none."""
    try:
        text = file.read_text("utf-8-sig", "replace")
    except OSError as error:
        raise UserError(f"{printable(str(file))} cannot be read ({error.strerror})") from None
    annotated = dict(line.split("\t")[:2] for line in text.splitlines() if "\t" in line)
    names = [nfc(annotated.get(path.rpartition("/")[2], "").strip()) for path in paths]
    if paths and not set(names) & set(classes):
        raise UserError(
            f"{printable(str(file))}: no line gives an image of {split} a class of train; expected "
            "NAME<tab>CLASS in each"
        )
    return list(names)


def _refuse_no_shared_class(folder: Path, split: str, strange: list[str], classes: Collection[str]) -> None:
    """A split is unlabelled if it has no folders, or one that says that it is not a class."""
    if len(strange) > 1:
        raise UserError(
            f"{printable(str(folder))}: no folder of {split} ({few(strange)}) is a class of train; "
            "name them alike"
        )
    alone = strange[0] if strange else ""
    no_class = means_images(alone, alone=True) or of_folder(alone) == split or split == "unlabelled"
    if alone and classes and not no_class:
        raise UserError(
            f"{printable(str(folder))}: {printable(alone)}, the folder of {split}, is no class of train; "
            "name it like one, or images if its images have no labels"
        )


def _refuse_other_spelling(folder: Path, strange: list[str], classes: Collection[str]) -> None:
    """Classes may differ in case or spaces alone; a class of one split only is more likely a slip."""
    alike = {_letters(name): name for name in classes}
    for name in strange:
        if (other := alike.get(_letters(name))) is not None:
            cases = name.casefold() == other.casefold()
            shown, known = [printable(text) if cases else repr(printable(text)) for text in (name, other)]
            raise UserError(
                f"{printable(str(folder))}: {shown} is no class of train but {known} is; "
                "name the folders alike"
            )


def _letters(name: str) -> str:
    """A name without what is hardly seen in it: case, kinds of spaces, underscores and hyphens."""
    return " ".join(re.sub("[_-]", " ", name).casefold().split())
