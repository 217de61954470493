"""After a data set is made, its classes, its labels and what belongs to no image are printed."""

import io
import tarfile
from pathlib import Path

import pytest

from data_pipelines.shards.__main__ import main
from tests.helpers.tiny_dataset import pictures, png

PICTURE = png(pictures(1, 8, 8)[0])


def printed(capsys, tmp_path: Path, source: str) -> list[str]:
    """The lines of the command that makes a data set of tmp_path/raw."""
    arguments = [f"source={source}", f"from={tmp_path / 'raw'}", f"to={tmp_path / 'to'}", "workers=1"]
    assert main([*arguments, "test_percent=0"]) == 0
    return capsys.readouterr().out.splitlines()


def index(tmp_path: Path, labels: list[bytes | None]) -> None:
    (tmp_path / "raw").mkdir()
    with tarfile.open(tmp_path / "raw/a.tar", "w") as tar:
        for n, label in enumerate(labels):
            for ending, data in (("png", PICTURE), ("cls", label)):
                if data is not None:
                    member = tarfile.TarInfo(f"{n}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def test_classes_and_labels_of_a_folder(tmp_path, capsys):
    names = [*(f"c{n:02d}" for n in range(11)), "two\nlines"]
    for name in names:
        (tmp_path / "raw" / name).mkdir(parents=True)
        (tmp_path / "raw" / name / "x.png").write_bytes(PICTURE if name != "c03" else b"")
        (tmp_path / "raw" / name / "x.txt").touch()
    (tmp_path / "raw/Thumbs.db").touch()
    lines = printed(capsys, tmp_path, "folder")
    assert lines[:4] == [
        "classes: c00, c01, c02, c03, c04, c05, c06, c07, c08, c09, and 2 more",
        "images with a label: 11 of 11 in train",
        "classes without an image in train: 1 of 12: c03",
        "files that belong to no image: 13",
    ]
    assert "12 classes; images: train 11 in 1 shards; left out: 14;" in lines[4]
    assert printed(capsys, tmp_path, "folder")[:4] == lines[:4]  # made before


@pytest.mark.parametrize(
    ("labels", "lines"),
    [
        ([b"0", b"1"], ["classes: 0, 1", "images with a label: 2 of 2 in train"]),
        (
            [b"1", b"2", None, b"-1"],
            [
                "classes: 0, 1, 2",
                "images with a label: 2 of 4 in train",
                "classes without an image in train: 1 of 3: 0; labels count from 0, and these begin at 1",
            ],
        ),
        (
            [b"0", b"5", b"7"],
            [
                "classes: 0, 1, 2, 3, 4, 5, 6, 7",
                "images with a label: 3 of 3 in train",
                "classes without an image in train: 5 of 8: 1, 2, 3, 4, 6",
            ],
        ),
        ([None, None], ["classes: none, no image has a label"]),
    ],
)
def test_labels_with_gaps_are_named_when_they_are_indexed(tmp_path, capsys, labels, lines):
    index(tmp_path, labels)
    assert printed(capsys, tmp_path, "wds")[:-1] == lines


def test_members_that_belong_to_no_image_are_counted(tmp_path, capsys):
    index(tmp_path, [b"0", b"0"])
    with tarfile.open(tmp_path / "raw/a.tar", "a") as tar:
        for name in ("LICENSE", "alone.cls", "alone.txt"):
            tar.addfile(tarfile.TarInfo(name))
    lines = printed(capsys, tmp_path, "wds")
    assert lines[2] == "files that belong to no image: 3"
    assert "left out: 3;" in lines[3]
    assert [line.rpartition("/")[2] for line in lines[4:]] == [
        f"a.tar: {name}: its sample has no image" for name in ("LICENSE", "alone.cls", "alone.txt")
    ]


def test_a_split_without_labels_is_counted(tmp_path, capsys):
    for path in ("train/a", "train/b", "test/images"):
        (tmp_path / "raw" / path).mkdir(parents=True)
        (tmp_path / "raw" / path / "x.png").write_bytes(PICTURE)
    arguments = [f"from={tmp_path / 'raw'}", f"to={tmp_path / 'to'}", "workers=1"]
    assert main(["source=folder", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["classes: a, b", "images with a label: 2 of 2 in train, 0 of 1 in test"]


def test_a_damaged_index_is_one_line(tmp_path, capsys):
    index(tmp_path, [b"0", b"1"])
    printed(capsys, tmp_path, "wds")
    path = tmp_path / "to/train/000000.npy"
    path.write_bytes(bytes(path.stat().st_size))
    arguments = ["source=wds", f"from={tmp_path / 'raw'}", f"to={tmp_path / 'to'}"]
    assert main([*arguments, "test_percent=0"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path} cannot be read as an index (")
    assert error.endswith("remove it and make it again\n")
    assert error.count("\n") == 1
