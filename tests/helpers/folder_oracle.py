"""What source=folder takes of a tree, by the rules of data_pipelines/README.md, read slowly and on its own.

It shares no code with the product: a folder is a dict of its entries here, and every rule walks that again.
"""

import os
import re
import unicodedata
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
SPLITS |= {"test": "test", "testing": "test", "unlabelled": "unlabelled", "unlabeled": "unlabelled"}
IMAGES = ["jpg", "jpeg", "png", "webp", "bmp", "ppm", "pgm", "pbm", "pnm", "jp2", "jpe", "jfif", "j2k", "dib"]
IMAGES += ["gif", "tif", "tiff", "avif"]
SYSTEM_FOLDERS = [
    "__macosx",
    "@eadir",
    "#recycle",
    "#snapshot",
    "@recycle",
    "@recently-snapshot",
    "lost+found",
]
SYSTEM_FOLDERS += ["$recycle.bin", "found.000", "__pycache__", "system volume information"]
SYSTEM_FOLDERS += ["network trash folder", "temporary items"]
THE_IMAGES = ["images", "image", "imgs", "img", "jpegimages"]
COMPANION = re.compile("(.*[-_ ])?(masks?|labels?|annotations?|segmentations?|trimaps?|ground.?truth|gt)")
PARTS = "sets?|datasets?|images?|imgs?|data|splits?|folders?|dirs?|files?|a|b"
SET = re.compile(f"(({'|'.join(SPLITS)})({PARTS}))|(({PARTS})({'|'.join(SPLITS)}))")
DEV = ["dev", "devel", "development", "eval", "evaluation", "holdout"]


class Refused(Exception):
    """The tree is refused by a line that holds the words of `args`."""


@dataclass
class Expected:
    """classes; {split: {path: class name or None}}; {path: why it is left out}."""

    classes: list[str] = field(default_factory=list)
    images: dict[str, dict[str, str | None]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def expected_of(root: Path, test_percent: int | None) -> Expected:
    """Raises Refused."""
    tree = _tree(root, [os.path.realpath(root)])
    base = _base(tree)
    for number in range(base.count("/") + 2 if base else 1):
        above = _at(tree, "/".join(base.split("/")[:number]))
        if any(why == "a link to nothing" and name.strip().lower() in SPLITS for name, why in above.items()):
            raise Refused("is a link to nothing; mend it")
    folders, others = _splits(_at(tree, base), base)
    expected = Expected(left_out=dict.fromkeys(others, "a folder that is no split"))
    _leave_out(tree, folders, others, expected.left_out)
    holders = {"train": _holder(tree, folders["train"], None)}
    expected.classes = sorted({_nfc(name) for name in _filled(_at(tree, holders["train"]))})
    _refuse_images_beside(_at(tree, holders["train"]))
    for split in folders.keys() - {"train"}:
        holders[split] = _holder(tree, folders[split], expected.classes)
    _refuse_inner_splits(tree, base, folders, holders)
    if folders["train"] != base:
        _refuse_a_split_as_a_class(_at(tree, holders["train"]))
    for folder in folders.values():
        _refuse_masks_within(_at(tree, folder))
    for split, folder in folders.items():
        expected.images[split] = _labelled(root, tree, folder, holders[split], expected)
        if not expected.images[split]:
            expected.left_out[folder] = "a split without an image that can be used"
    if len(folders) > 1 and test_percent is not None:
        raise Refused("has splits")
    if len(folders) == 1:
        _cut(expected, base, 10 if test_percent is None else test_percent)
    if not expected.images["train"]:
        raise Refused("no image to train on")
    expected.images = {split: part for split, part in expected.images.items() if part}
    return expected


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _tree(folder: Path, above: list[str]) -> dict:
    """{name: dict of a folder, "" for an image, or why it is left out}; no entry for the annotations."""
    tree: dict = {}
    for name in os.listdir(folder):
        path = folder / name
        is_folder = path.is_dir()
        if name.startswith("."):
            tree[name] = "a hidden folder" if is_folder else "a hidden file"
        elif path.is_symlink() and not path.exists():
            tree[name] = "a link to nothing"
        elif is_folder and name.lower() in SYSTEM_FOLDERS:
            tree[name] = "a folder of the system"
        elif is_folder and os.path.realpath(path) in above:
            tree[name] = "a link to a folder that it lies in"
        elif is_folder:
            tree[name] = _tree(path, [*above, os.path.realpath(path)])
        elif name == "val_annotations.txt":
            continue
        elif "." not in name or name.split(".")[-1].lower() not in IMAGES:
            tree[name] = "its name is no image's"
        else:
            tree[name] = "" if path.is_file() else "no regular file"
    return tree


def _at(tree: dict, path: str) -> dict:
    for name in path.split("/") if path else []:
        tree = tree[name]
    return tree


def _all(tree: dict, at: str = "") -> dict[str, str]:
    """Every file, and every folder that is left out, by its path: "" or why."""
    entries: dict[str, str] = {}
    for name, entry in tree.items():
        path = f"{at}/{name}" if at else name
        entries |= _all(entry, path) if isinstance(entry, dict) else {path: entry}
    return entries


def _folders(tree: dict) -> list[str]:
    return [name for name, entry in tree.items() if isinstance(entry, dict)]


def _filled(tree: dict) -> list[str]:
    return [name for name in _folders(tree) if "" in _all(tree[name]).values()]


def _named(tree: dict) -> dict[str, str]:
    """{folder: the split that it is named after}; empty ones count only beside a train."""
    named = {name: SPLITS[name.strip().lower()] for name in _folders(tree) if name.strip().lower() in SPLITS}
    return {n: split for n, split in named.items() if "train" in named.values() or n in _filled(tree)}


def _base(tree: dict) -> str:
    path: list[str] = []
    at = tree
    while not _named(at) and "" not in at.values() and len(_filled(at)) == 1:
        path += _filled(at)
        at = at[path[-1]]
    return "/".join(path) if _named(at) or len(_filled(at)) > 1 else ""


def _splits(tree: dict, base: str) -> tuple[dict[str, str], list[str]]:
    """{split: its folder} and the folders that are left out beside them."""
    named, path = _named(tree), f"{base}/" if base else ""
    if len(set(named.values())) < len(named):
        raise Refused("are both")
    others = [name for name in _folders(tree) if name not in named]
    images = [name for name in others if name in _filled(tree)]
    if named and "train" not in named.values():
        raise Refused("but no train")
    if list(named.values()) == ["train"] and images:
        (train,) = named
        classes = _filled(tree[train])
        odd = [n for n in images if n in THE_IMAGES or COMPANION.fullmatch(n.lower()) or n in DEV or _word(n)]
        if not classes and "" in tree[train].values() and (odd or len(images) == 1):
            raise Refused("the split or a class")
        if not classes:
            named = {}
        elif (
            len(classes) == 1
            or "" in tree[train].values()
            or any(name in classes for other in images for name in _filled(tree[other]))
        ):
            raise Refused("the split or a class")
    if named:
        in_order = sorted(named.items(), key=lambda item: (item[1] != "train", item[0]))
        return {split: path + name for name, split in in_order}, [path + name for name in others]
    words = {name: _word(name) for name in _filled(tree) if _word(name)}
    if 2 * len(words) <= len(_filled(tree)):  # few: only names that are a split's and a word for a set
        letters = {name: re.sub("[^a-z]", "", name.lower()) for name in words}
        words = {name: split for name, split in words.items() if SET.fullmatch(letters[name])}
    if len(set(words.values())) > 1 and "train" in words.values():
        raise Refused("would be classes")
    return {"train": base}, []


def _word(name: str) -> str | None:
    """The split that the first word of a name that is one names; else the first with a set's word joined."""
    letters = "".join(c if c in "abcdefghijklmnopqrstuvwxyz" else " " for c in name.lower())
    joined = [match[2] or match[6] for word in letters.split() if (match := SET.fullmatch(word))]
    return next((SPLITS[word] for word in [*letters.split(), *joined] if word in SPLITS), None)


def _refuse_images_beside(tree: dict) -> None:
    """A folder of "the images" beside images or other folders of them; x beside x_masks."""
    filled = _filled(tree)
    masks = [name for name in filled if COMPANION.fullmatch(name.lower())]
    for name in filled:
        lower = name.lower()
        stem = re.sub("(image|images|img|imgs)$", "", re.sub(r"[\W_]", "", lower))
        alone = len(filled) == 1 and "" not in tree.values()
        pairs = [m for m in masks if m != name and not m.lower().endswith(("mask", "label"))]
        if (
            (lower in THE_IMAGES and not alone)
            or (lower in ["pictures", "photos", "data"] and masks)
            or any(re.sub(r"[\W_]", "", m.lower()).startswith(stem) for m in pairs)
        ):
            raise Refused("would be a class, with")


def _refuse_masks_within(tree: dict) -> None:
    names = [name.lower() for name in _filled(tree)]
    if set(names) & set(THE_IMAGES) and any(COMPANION.fullmatch(name) for name in names):
        raise Refused("would be data as those beside")
    for name in _filled(tree):
        _refuse_masks_within(tree[name])


def _refuse_a_split_as_a_class(tree: dict) -> None:
    for name in _filled(tree):
        split = SPLITS.get(name.strip().lower())
        if split and (split != "train" or set(_filled(tree[name])) & set(_filled(tree))):
            raise Refused("so it would be a class")


def _leave_out(tree: dict, folders: dict[str, str], others: list[str], left_out: dict[str, str]) -> None:
    for path, why in _all(tree).items():
        if any(path.startswith(f"{other}/") for other in others):
            continue
        inside = any(not folder or path.startswith(f"{folder}/") for folder in folders.values())
        if why and (inside or "hidden" in why or "system" in why):
            left_out[path] = why
        elif not why and not inside:
            left_out[path] = "it lies in no split"


def _holder(tree: dict, folder: str, classes: list[str] | None) -> str:
    """The folder that the class folders of a split lie in; classes: None for train, which has them all."""
    at = folder
    while "" not in _at(tree, at).values() and len(_filled(_at(tree, at))) == 1:
        (only,) = _filled(_at(tree, at))
        if classes and _nfc(only) in classes:
            return at
        at = f"{at}/{only}" if at else only
    below = {_nfc(name) for name in _filled(_at(tree, at))}
    several = len(_filled(_at(tree, at))) > 1
    if several and (classes is None or below & set(classes)):
        return at
    while "" not in _at(tree, folder).values() and len(_filled(_at(tree, folder))) == 1:
        (only,) = _filled(_at(tree, folder))
        if only.lower() not in [*THE_IMAGES, "pictures", "photos", "data"]:
            break
        folder = f"{folder}/{only}" if folder else only
    return folder


def _labelled(root: Path, tree: dict, folder: str, holder: str, expected: Expected) -> dict[str, str | None]:
    start = f"{folder}/" if folder else ""
    paths = [path for path, why in _all(tree).items() if not why and path.startswith(start)]
    annotations = root / folder / "val_annotations.txt"
    names: dict[str, str | None] = {}
    if annotations.is_file():
        lines = [line.split("\t") for line in annotations.read_text().splitlines()]
        known = {line[0]: _nfc(line[1]) for line in lines if len(line) > 1}
        names = {path: known.get(path.split("/")[-1], "") for path in paths}
        if paths and not set(names.values()) & set(expected.classes):
            raise Refused("NAME<tab>CLASS")
    else:
        below = {path: path[len(holder) + 1 if holder else 0 :].split("/") for path in paths}
        names = {path: _nfc(parts[0]) if len(parts) > 1 else "" for path, parts in below.items()}
        strange = {name for name in names.values() if name and name not in expected.classes}
        if any(_same(name, other) for name in strange for other in expected.classes):
            raise Refused("is no class of train but")
        if not set(names.values()) & set(expected.classes):
            if len(strange) > 1:
                raise Refused("is a class of train; name them alike")
            fine = [*THE_IMAGES, "pictures", "photos", "data"]
            split = SPLITS.get(folder.split("/")[-1].strip().lower())
            for name in strange if expected.classes and split != "unlabelled" else ():
                if name.lower() not in fine and SPLITS.get(name.strip().lower()) != split:
                    raise Refused("is no class of train; name it")
            return dict.fromkeys(paths)
        if 2 * list(names.values()).count("") > len(names):
            raise Refused("images lie loose in it")
    images: dict[str, str | None] = {}
    for path, name in names.items():
        if name in expected.classes:
            images[path] = name
        else:
            expected.left_out[path] = (
                f"{name!r} is no class of train" if name else "it lies in no class folder"
            )
    return images


def _refuse_inner_splits(tree: dict, base: str, folders: dict[str, str], holders: dict[str, str]) -> None:
    """A train with another split, or alone with several folders, deep in what is used."""
    inner = {path.rpartition("/")[0] for path, why in _all(tree).items() if not why}
    inner = {"/".join(path.split("/")[:n]) for path in inner for n in range(1, path.count("/") + 2)}
    for path in inner - {base}:
        used = any(not folder or f"{path}/".startswith(f"{folder}/") for folder in folders.values())
        here = _at(tree, path)
        named = {name: split for name, split in _named(here).items() if name in _filled(here)}
        trains = sorted(f"{path}/{name}/" for name, split in named.items() if split == "train")[-1:]
        passed = any(f"{holder}/".startswith(train) for holder in holders.values() for train in trains)
        if not used or passed or "train" not in named.values():
            continue
        alone = "" not in here.values() and _filled(here) == list(named)
        several = any(len(_filled(here[name])) > 1 for name, split in named.items() if split == "train")
        if len(set(named.values())) > 1 or (alone and several):
            raise Refused("would be part of a class")


def _same(name: str, other: str) -> bool:
    """Whether two names differ in case, spaces and the like alone."""
    return re.split(r"[\s_-]+", f" {name.lower()} ") == re.split(r"[\s_-]+", f" {other.lower()} ")


def _cut(expected: Expected, base: str, percent: int) -> None:
    """Cuts train into train and test by the names below the base."""
    both = expected.images["train"]
    start = len(base) + 1 if base else 0
    test = {path: name for path, name in both.items() if in_test(path[start:], percent)}
    expected.images = {"train": {path: both[path] for path in both.keys() - test.keys()}, "test": test}


def in_test(name: str, percent: int) -> bool:
    number = int.from_bytes(blake2b(os.fsencode(name), digest_size=8, person=b"split").digest(), "little")
    return number / 2**64 < percent / 100
