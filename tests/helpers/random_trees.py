"""Random folders and random tars of tiny pictures, tidy and untidy, for the fuzz of the sources."""

import io
import json
import random
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

SPLITS = ["train", "val", "test", "Train", "VALID", "training", "validation", "testing", "unlabelled"]
CLASSES = [
    "cat",
    "dog",
    "Cat",
    "1",
    "2",
    "10",
    "caf\u00e9",
    "cafe\u0301",
    "a b",
    "a_b",
    "x.png",
    "animals",
    "images",
]
CLUTTER = [
    "@eaDir",
    "#recycle",
    "lost+found",
    "__MACOSX",
    ".Trash-1000",
    ".ipynb_checkpoints",
    "$RECYCLE.BIN",
]
CLUTTER += ["System Volume Information", ".hidden", "@Recycle"]
OTHERS = ["docs", "annotations", "masks", "seg_train", "seg_test", "my", "wrap", "bullet train"]
OTHERS += ["trainset", "testset", "cat_masks", "dev", "photos"]


def tiny_png(value: int = 0) -> bytes:
    """A picture of 3 x 3 pixels; another for each value up to 255."""
    file = io.BytesIO()
    Image.fromarray(np.full((3, 3, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


PICTURES = [tiny_png(value) for value in range(0, 250, 50)]
BROKEN = {"empty": b"", "cut": PICTURES[0][:40], "text": b"no picture"}


def plant(rng: random.Random, root: Path) -> None:
    """Fills an empty folder: splits or classes with what people leave in them, wrapped or not; or all."""
    at = root
    for _ in range(rng.choice([0, 0, 0, 0, 1, 1, 2])):
        at = at / rng.choice([*OTHERS, *CLASSES])
    at.mkdir(parents=True, exist_ok=True)
    shape = rng.random()
    if shape < 0.45:
        classes = rng.sample(CLASSES, rng.randint(1, 4))
        others = rng.choice([[], ["val"], ["VALID"], ["test"], ["val", "test"], ["unlabelled", "Testing"]])
        splits = [rng.choice(["train", "train", "Training"]), *others]
        for split in splits if rng.random() < 0.85 else rng.sample(SPLITS, 2):
            _plant_classes(rng, at / split, classes if rng.random() < 0.85 else rng.sample(CLASSES, 2))
        for other in rng.sample(OTHERS, rng.choice([0, 0, 1, 2])):
            _plant_classes(rng, at / other, rng.sample(CLASSES, rng.choice([0, 1])))
    elif shape < 0.75:
        _plant_classes(rng, at, rng.sample([*CLASSES, *OTHERS, "train"], rng.randint(0, 5)))
    else:
        _plant_anything(rng, at, 3)
    if rng.random() < 0.3:
        _plant_classes(rng, at / rng.choice(CLUTTER), ["cat"])


def _plant_classes(rng: random.Random, folder: Path, classes: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    if rng.random() < 0.15:
        folder = folder / rng.choice(["images", "data", folder.name])  # all one level deeper
        folder.mkdir(exist_ok=True)
    for name in classes:
        below = folder / name / "deep" if rng.random() < 0.15 else folder / name
        below.mkdir(parents=True, exist_ok=True)
        _plant_files(rng, below, rng.choice([0, 1, 2, 3]))
        if rng.random() < 0.15:
            _plant_classes(rng, below / rng.choice(CLUTTER), [])
    if rng.random() < (0.9 if not classes else 0.1):
        _plant_files(rng, folder, rng.choice([1, 2, 5]))
    if rng.random() < 0.05:
        lines = [f"{rng.randint(0, 9)}.png\t{name}\t0\n" for name in [*classes, "none"]]
        (folder / "val_annotations.txt").write_text("".join(lines))


def _plant_anything(rng: random.Random, folder: Path, depth: int) -> None:
    for name in rng.sample([*SPLITS, *CLASSES, *CLUTTER, *OTHERS], rng.randint(1, 3)):
        (folder / name).mkdir(exist_ok=True)
        if depth > 1 and rng.random() < 0.6:
            _plant_anything(rng, folder / name, depth - 1)
        if rng.random() < 0.5:
            _plant_files(rng, folder / name, 2)


def _plant_files(rng: random.Random, folder: Path, images: int) -> None:
    for number in rng.sample(range(10), images):
        name = rng.choice([f"{number}.png", f"{number}.PNG", f"photo {number}.5 x.png", f"{number}.jpg"])
        (folder / name).write_bytes(rng.choice(PICTURES))
    while rng.random() < 0.2:
        name = rng.choice(
            ["empty.png", "cut.png", "text.png", "notes.txt", "png", ".DS_Store", "._1.png", "Thumbs.db"]
        )
        (folder / name).write_bytes(BROKEN.get(name.split(".")[0], b"junk"))
    if rng.random() < 0.05:
        gone = folder / rng.choice(["gone.png", "gone", "notes.txt", "val"])
        if not gone.exists():
            gone.symlink_to(folder / "nowhere")
    if rng.random() < 0.05:
        (folder / "round").symlink_to(folder)


# ---- tars ----------------------------------------------------------------------------------------------

STEMS = [
    "1",
    "2",
    "3",
    "4",
    "d/1",
    "./1",
    "photo 3",
    "UPPER",
    "n" * 120,
    "caf\u00e9",
    "__MACOSX/._1",
    "d/.hid",
    ".git/1",
]
ENDINGS = ["png"] * 6 + [
    "PNG",
    "jpg",
    "left.png",
    "5 final.png",
    "5 final.cls",
    "txt",
    "CLS",
    "other.cls",
    "png.cls",
    "png.json",
    "",
    "a.json",
]
LABELS = [
    b"0",
    b"1",
    b" 2\n",
    b"3",
    b"3",
    b"-1",
    b"3.0",
    b"",
    b"cat",
    b"dog",
    b"-2",
    b"1000000",
    b"\xff",
    b"0" * 300,
]
ENTRIES = [0, 1, 3, None, "2", "cat", "x", 1.0, True, -1, -7, [1], 10**9]


def fill_tars(rng: random.Random, folder: Path) -> dict:
    """Writes one to three tars into a folder, and perhaps classes.txt; returns options for the source."""
    names = rng.choice(
        [["a.tar"], ["a.tar", "deep/b.tar"], ["train-0.tar", "val-0.tar"], ["train/0.tar", "test/0.tar"]]
    )
    label = rng.choice([None, None, "kind"])
    for name in [*names, *rng.choice([[], [], [], ["#recycle/z.tar"], ["odd.tar"]])]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        data = b"".join(_archive(rng, label) for _ in range(rng.choice([1, 1, 1, 2, 3])))
        data = _mangle(rng, data) if rng.random() < 0.2 else data
        (folder / name).write_bytes(data)
    if rng.random() < 0.3:
        (folder / "classes.txt").write_text(
            rng.choice(["cat\ndog\n", "\ufeffcat\ndog\nemu\nfox", "a\n\nb\n"])
        )
    named = "train" in names[0]  # a percentage is refused where tars name splits
    return {"label": label, "test_percent": None if named else rng.choice([None, 0, 40])}


def _archive(rng: random.Random, label: str | None) -> bytes:
    file = io.BytesIO()
    tar_format = rng.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
    with tarfile.open(fileobj=file, mode="w", format=tar_format) as tar:
        stems = rng.sample(STEMS, rng.choice([0, 2, 4, 6]))
        for stem in stems:
            members = [
                f"{stem}.{ending}" if ending else stem for ending in rng.sample(ENDINGS, rng.randint(1, 3))
            ]
            if rng.random() < 0.7:
                members += [f"{stem}.cls" if label is None or rng.random() < 0.1 else f"{stem}.json"]
            if rng.random() < 0.1:
                members += members[:2]
            for name in members:
                _add(rng, tar, name, label)
    return file.getvalue()


def _add(rng: random.Random, tar: tarfile.TarFile, name: str, label: str | None) -> None:
    member = tarfile.TarInfo(name)
    ending = name.split(".")[-1].lower()
    data = rng.choice(PICTURES) if rng.random() < 0.9 else rng.choice(list(BROKEN.values()))
    if ending == "cls":
        data = rng.choice(LABELS)
    elif ending == "json":
        entry = rng.choice(
            [{"kind": rng.choice(ENTRIES)}, {"kind": rng.choice(ENTRIES)}, {"other": 1}, [], None]
        )
        data = json.dumps(entry).encode() if entry is not None else b"{"
    draw = rng.random()
    if draw < 0.04:
        member.type, member.linkname = (
            rng.choice([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE]),
            "1.png",
        )
        tar.addfile(member)
    elif draw < 0.08 and len(name) < 100 and name.isascii():
        _add_sparse(tar, member, data)
    else:
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))


def _add_sparse(tar: tarfile.TarFile, member: tarfile.TarInfo, data: bytes) -> None:
    """A file of GNU's sparse kind: `data`, and then a hole of a gigabyte."""
    member.size = len(data)
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:410] = b"%011o\0%011o\0" % (0, len(data))
    header[483:495] = b"%011o\0" % (len(data) + 2**30)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    blocks = bytes(header) + data + bytes(-len(data) % 512)
    tar.fileobj.write(blocks)  # type: ignore[union-attr]
    tar.offset += len(blocks)


def _mangle(rng: random.Random, data: bytes) -> bytes:
    return rng.choice(
        [
            data[: rng.randrange(len(data))],
            data[: rng.randrange(len(data)) // 512 * 512],
            data + b"garbage" * 100,
            data + bytes(5120),
            b"",
            bytes(10240),
            b"not a tar" * 100,
        ]
    )
