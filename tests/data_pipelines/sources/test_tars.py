"""Tars as people have them: joined, sparse, doubled, damaged, with any labels; nothing is lost unnamed."""

import gzip
import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.common.errors import UserError
from data_pipelines.dataset import Dataset, tar_path
from data_pipelines.reader import Reader
from data_pipelines.shards.make import make
from data_pipelines.shards.verify import verify
from data_pipelines.sources.catalog import open_source
from data_pipelines.sources.tars import list_members
from tests.helpers.tiny_dataset import pictures, png

PICTURES = [png(picture) for picture in pictures(40, 8, 8)]


def tar_bytes(members: dict[str, bytes], **options) -> bytes:
    """A tar of these members, by name."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as tar:
        for name, data in members.items():
            add(tar, name, data)
    return file.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def labelled(numbers, first: int = 0) -> dict[str, bytes]:
    """Pictures named by their numbers from `first`, with the label number % 3."""
    members = {}
    for key, n in enumerate(numbers, first):
        members |= {f"{key}.png": PICTURES[n], f"{key}.cls": b"%d" % (n % 3)}
    return members


def made(tmp_path: Path, **tars: bytes) -> Dataset:
    """Indexes tars, all of them train; what it made is as it was written."""
    return make_labelled(tmp_path, None, **tars)


def make_labelled(tmp_path: Path, label: str | None, **tars: bytes) -> Dataset:
    raw = tmp_path / "raw"
    raw.mkdir()
    for name, data in tars.items():
        (raw / f"{name}.tar").write_bytes(data)
    options = {} if label is None else {"label": label}
    dataset = make("wds", tmp_path / "to", raw, workers=1, progress=False, test_percent=0, **options)
    assert verify(tmp_path / "to", progress=False) == []
    return dataset


def taken(dataset: Dataset) -> list[tuple[int, int]]:
    """(number of the picture, label) of each image, in order, through the reader."""
    with Reader(dataset, "train") as reader:
        ids = np.arange(reader.images)
        images = [PICTURES.index(image.tobytes()) for image in reader.read(ids)]
        return list(zip(images, reader.entries(ids)["label"].tolist(), strict=True))


def left_out(dataset: Dataset) -> list[tuple[str, str]]:
    return [(entry["member"].rpartition("/")[2], entry["why"]) for entry in dataset.left_out]


ALL = [(n, n % 3) for n in range(6)]


@pytest.mark.parametrize("first", [0, 3], ids=["the same names", "other names"])
@pytest.mark.parametrize("gap", [0, 512, 10240, 3 << 20])
def test_tars_one_behind_the_other_are_all_read(tmp_path, first, gap):
    parts = [tar_bytes(labelled(range(3))), bytes(gap), tar_bytes(labelled(range(3, 6), first))]
    dataset = made(tmp_path, a=b"".join(parts))
    assert taken(dataset) == ALL
    assert left_out(dataset) == []


def test_a_label_is_that_of_the_same_archive(tmp_path):
    second = {"0.png": PICTURES[3], "1.png": PICTURES[4], "1.cls": b"2"}
    dataset = made(tmp_path, a=tar_bytes(labelled(range(3))) + tar_bytes(second))
    assert taken(dataset) == [*ALL[:3], (3, -1), (4, 2)]


def test_an_appended_tar_and_one_of_many_formats_are_read(tmp_path):
    formats = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT}
    for name, number in formats.items():
        deep = {f"{'folder/' * 40}{key}": data for key, data in labelled(range(6)).items()}
        path = tmp_path / f"{name}/raw/a.tar"
        path.parent.mkdir(parents=True)
        options = {"pax_headers": {"comment": "a commit"}} if name == "pax" else {}  # as git archive writes
        path.write_bytes(tar_bytes(dict(list(deep.items())[:8]), format=number, **options))
        with tarfile.open(path, "a", format=number) as tar:
            add(tar, *list(deep.items())[8])
            tar.addfile(tarfile.TarInfo("folder.png/"))
            for rest in list(deep.items())[9:]:
                add(tar, *rest)
        dataset = make("wds", tmp_path / f"{name}/to", path.parent, workers=1, progress=False, test_percent=0)
        assert taken(dataset) == ALL
        assert verify(tmp_path / f"{name}/to", progress=False) == []


def test_what_is_behind_a_tar_and_is_none_is_named(tmp_path):
    whole = tar_bytes(labelled(range(3)))
    dataset = made(tmp_path, a=whole + b"x" * 700, b=bytes(10240), c=whole + whole[:1200])
    assert taken(dataset) == [*ALL[:3], *ALL[:3]]
    surplus = (
        f"it has 700 bytes behind its end, from byte {len(whole):,} on, that are no tar; they are not used"
    )
    assert left_out(dataset)[:2] == [("a.tar", surplus), ("b.tar", "it has no members")]
    member, why = left_out(dataset)[2]
    assert member == "c.tar"
    assert "damaged or cut short at byte" in why or "not a whole tar file" in why


def test_a_damaged_tar_of_any_split_is_named_and_lost_labels_are_no_missing_ones(tmp_path):
    pictures_first = {f"{n}.png": PICTURES[n] for n in range(6)} | {f"{n}.cls": b"1" for n in range(6)}
    data = tar_bytes(pictures_first)
    places = [member.offset for member in list_members(written(tmp_path / "x.tar", data)).members]
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("train-0.tar", "val-0.tar"):
        (raw / name).write_bytes(data[: places[9] - 512])  # before the label 3.cls
    dataset = make("wds", tmp_path / "to", raw, workers=1, progress=False)
    assert {split: part.images for split, part in dataset.splits.items()} == {"train": 3, "val": 3}
    why = "it has no label, which may have been in the part of the tar that is lost"
    lines = left_out(dataset)
    for tar in ("train-0.tar", "val-0.tar"):
        assert [(member, reason) for member, reason in lines if member.startswith(f"{tar}: ")] == [
            (f"{tar}: 3.png", why),
            (f"{tar}: 4.png", why),
        ]
        assert [member for member, _ in lines].count(tar) == 1
    assert verify(tmp_path / "to", progress=False) == []


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
@pytest.mark.parametrize(
    "kind", [["--format=gnu"], ["--format=posix"], ["--format=posix", "--sparse-version=0.1"]]
)
def test_a_sparse_member_is_left_out_alone(tmp_path, kind):
    source = tmp_path / "source"
    source.mkdir()
    for name, data in labelled(range(6)).items():
        (source / name).write_bytes(data)
    for name in ("2.png", "4.cls"):
        with open(source / name, "ab") as file:
            file.truncate(1 << 20)  # the rest is a hole
    names = [f"{n}.{ending}" for n in range(6) for ending in ("png", "cls")]
    command = ["tar", "-C", str(source), *kind, "--sparse", "-cf", str(tmp_path / "a.tar"), *names]
    subprocess.run(command, check=True)
    dataset = made(tmp_path, a=(tmp_path / "a.tar").read_bytes())
    assert taken(dataset) == [pair for pair in ALL if pair[0] not in (2, 4)]
    sparse = "a sparse file, whose bytes do not lie in one piece"
    assert left_out(dataset) == [("a.tar: 2.png", sparse), ("a.tar: 4.png", f"its label 4.cls is {sparse}")]


def test_links_are_left_out_and_so_is_an_image_whose_label_is_one(tmp_path):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in labelled(range(3)).items():
            add(tar, name, data)
        add(tar, "3.png", PICTURES[3])
        for name, kind in (
            ("3.cls", tarfile.LNKTYPE),
            ("4.png", tarfile.LNKTYPE),
            ("5.png", tarfile.SYMTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "2.cls" if name == "3.cls" else "2.png"
            tar.addfile(member)
    dataset = made(tmp_path, a=file.getvalue())
    assert taken(dataset) == ALL[:3]
    assert left_out(dataset) == [
        ("a.tar: 3.png", "its label 3.cls is a link, or no file"),
        ("a.tar: 4.png", "a link, or no file"),
        ("a.tar: 5.png", "a link, or no file"),
    ]


def test_doubled_names_and_keys_are_named(tmp_path):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, number in (("0.png", 0), ("0.cls", 0), ("0.png", 1), ("0.cls", 1), ("0.PNG", 2)):
            add(tar, name, PICTURES[number] if "cls" not in name else b"%d" % number)
    again = tar_bytes({"0.png": PICTURES[3], "0.cls": b"2"})  # the same key in another tar is another image
    dataset = made(tmp_path, a=file.getvalue(), b=again)
    assert taken(dataset) == [(0, 0), (3, 2)]
    before = "a member of the same name lies before it in the tar"
    assert sorted(left_out(dataset)) == [
        ("a.tar: 0.PNG", "0.png is the image of its sample: a key ends at the first dot"),
        ("a.tar: 0.cls", before),
        ("a.tar: 0.png", before),
    ]


@pytest.mark.parametrize(
    ("members", "images", "names"),
    [
        (["photo 3.5 final.png", "photo 3.5 final.cls"], [(0, 1)], []),
        (["photo 3.5 final.PNG", "photo 3.5 final.cls"], [(0, 1)], []),
        (["v1.2/a.b.c.png", "v1.2/a.b.c.cls"], [(0, 1)], []),
        (["a.left.png", "a.cls"], [(0, 1)], []),
        (["p 3.5 a.png", "p 3.7 b.png", "p 3.5 a.cls", "p 3.7 b.cls"], [(0, 1)], ["p 3.7 b.png"]),
        (["a.png", "a.teacher.cls"], [(0, -1)], ["a.teacher.cls"]),
        (["./a.png", "a.cls"], [(0, 1)], []),
        (["d/a.png", "././d/a.cls"], [(0, 1)], []),
        (["0.png", "0.png.cls"], [(0, 1)], []),
        (["0.PNG", "0.png.cls"], [(0, 1)], []),
        (["0.left.png", "0.left.png.cls"], [(0, 1)], []),
        (["0.png", "0.cls", "0.png.cls"], [(0, 1)], ["0.png.cls"]),
        (["0.png", "0.jpg.cls"], [(0, -1)], ["0.jpg.cls"]),
        (["a.png", "b.cls", "b.txt", "LICENSE"], [(0, -1)], ["LICENSE", "b.cls", "b.txt"]),
        (["a.png", "__MACOSX/._a.png", "@eaDir/a.png", ".Trash-0/b.png", "x/._b.cls"], [(0, -1)], None),
    ],
)  # fmt: skip
def test_image_and_label_find_their_key_alike_or_a_line_says_so(tmp_path, members, images, names):
    data = {name: PICTURES[0] if name.lower().endswith("png") else b"1" for name in members}
    dataset = made(tmp_path, a=tar_bytes(data))
    assert taken(dataset) == images
    wanted = members[1:] if names is None else names
    assert sorted(entry["member"].partition("a.tar: ")[2] for entry in dataset.left_out) == sorted(wanted)


@pytest.mark.parametrize("first", [{}, {"kind": None}, {"other": 1}])
def test_a_label_that_is_null_or_not_there_is_none(tmp_path, first):
    entries = [first, {"kind": 1}, {"kind": None}, {"other": 2}, {"kind": "2"}]
    members = {}
    for n, entry in enumerate(entries):
        members |= {f"{n}.png": PICTURES[n], f"{n}.json": json.dumps(entry).encode()}
    dataset = make_labelled(tmp_path, "kind", a=tar_bytes(members), b=tar_bytes({"z.png": PICTURES[9]}))
    assert taken(dataset) == [(0, -1), (1, 1), (2, -1), (3, -1), (4, 2), (9, -1)]
    assert left_out(dataset) == []


def test_json_labels_that_are_none_are_named_and_a_key_that_none_has_is_refused(tmp_path):
    values = [
        b"{",
        b"[]",
        b'{"kind": 1.0}',
        b'{"kind": true}',
        b'{"kind": [1]}',
        b'{"kind": -2}',
        b'{"kind": 0}',
    ]
    members = {}
    for n, value in enumerate(values):
        members |= {f"{n}.png": PICTURES[n], f"{n}.json": value}
    dataset = make_labelled(tmp_path, "kind", a=tar_bytes(members))
    assert taken(dataset) == [(6, 0)]
    whys = [why for _, why in left_out(dataset)]
    assert whys[0].startswith("0.json cannot be read (")
    assert whys[1] == "1.json holds no dict"
    assert [why.partition(",")[0] for why in whys[2:]] == [
        f"its label is '{value}'" for value in ("1.0", "True", "[1]", "-2")
    ]
    with pytest.raises(
        UserError, match=r"label=kin: 2\.json in .*a\.tar has no such key; it has kind; did you"
    ):
        open_source("wds", tmp_path / "raw", label="kin")


@pytest.mark.parametrize(
    ("text", "label"),
    [(b"2", 2), (b" 2\r\n", 2), (b"\xef\xbb\xbf2", 2), (b"-1", -1), (b"007", 7),
     (b"3.0", None), (b"-2", None), (b"", None), (b"1000000", None), (b"1 2", None), (b"\xff", None)],
)  # fmt: skip
def test_labels_in_text_are_whole_numbers_or_named(tmp_path, text, label):
    dataset = made(tmp_path, a=tar_bytes({"0.png": PICTURES[0], "0.cls": text, **labelled([3], first=1)}))
    assert taken(dataset)[-1] == (3, 0)
    if label is None:
        assert "expected a whole number in 0..999999" in left_out(dataset)[0][1]
    else:
        assert taken(dataset)[0] == (0, label)


def test_classes_by_name_keep_their_numbers(tmp_path):
    classes = tmp_path / "raw/classes.txt"
    classes.parent.mkdir()
    names = ["0", "cafe\u0301", "crane", "crane"]
    members = {}
    for n, text in enumerate(["caf\u00e9", "cafe\u0301", "crane", "3", "4"]):
        members |= {f"{n}.png": PICTURES[n], f"{n}.cls": text.encode()}
    (tmp_path / "raw/a.tar").write_bytes(tar_bytes(members))
    classes.write_text("\ufeff" + "\r\n".join(names) + "\r\n\r\n", "utf-8")
    dataset = make("wds", tmp_path / "to", tmp_path / "raw", workers=1, progress=False, test_percent=0)
    assert dataset.classes == ("0", "caf\u00e9", "crane", "crane")
    assert taken(dataset) == [(0, 1), (1, 1), (3, 3)]
    assert [why for _, why in left_out(dataset)] == [
        "its label is 'crane', the name of several classes; expected a number",
        "its label is '4', expected a whole number in 0..3",
    ]
    for text, line in (("a\n\nb\n", 2), ("\na\n", 1), ("", 1)):
        classes.write_text(text)
        with pytest.raises(UserError, match=rf"classes\.txt: line {line} is empty; write the name of class"):
            open_source("wds", tmp_path / "raw")


def test_tars_among_deleted_and_hidden_files_are_not_read(tmp_path):
    for folder in ("", "#recycle", "@eaDir", ".cache", "deep"):
        (tmp_path / "raw" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / folder / "a.tar").write_bytes(tar_bytes(labelled(range(3))))
        (tmp_path / "raw" / folder / "._a.tar").write_bytes(b"AppleDouble")
    dataset = make("wds", tmp_path / "to", tmp_path / "raw", workers=1, progress=False, test_percent=0)
    shards = dataset.splits["train"].shards
    assert [tar_path(dataset.root, shard).resolve().parent.name for shard in shards] == ["raw", "deep"]


def test_a_compressed_tar_that_is_named_as_one_is_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(gzip.compress(tar_bytes(labelled(range(3)))))
    with pytest.raises(UserError, match=r"a\.tar is compressed \(gzip\) .* rewrite it with"):
        open_source("wds", tmp_path)
