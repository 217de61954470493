"""Folders of image files, tidy and untidy, become data sets; what is left out has a name."""

import io
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.common.errors import UserError
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.reader import Reader
from data_pipelines.shards.__main__ import main
from data_pipelines.shards.make import make
from data_pipelines.shards.verify import verify
from data_pipelines.sources.catalog import open_source
from data_pipelines.sources.splits import in_test
from tests.helpers.tiny_dataset import pictures

IMAGES = pictures(40, 20, 30)


def put(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(IMAGES[number]).save(path)
    return path


def classes_of(split) -> dict[str, int]:
    return dict(zip(split.paths, split.labels, strict=True))


def test_images_keep_their_bytes_labels_and_sizes(tmp_path):
    raw, to = tmp_path / "raw", tmp_path / "to"
    for number, ending in enumerate(["JPEG", "png", "webp", "bmp", "jpg"] * 8):
        put(raw / ("train", "val")[number % 4 == 3] / "cdb"[number % 3] / f"{number}.x.{ending}", number)
    dataset = make("folder", to, raw, images_per_shard=8, workers=1, progress=False)
    assert dataset.classes == ("b", "c", "d")
    assert {name: part.images for name, part in dataset.splits.items()} == {"train": 30, "val": 10}
    assert [shard.images for shard in dataset.splits["train"].shards] == [8, 8, 8, 6]
    for split in dataset.splits:
        reader, seen = Reader(dataset, split), set()
        ids = np.arange(reader.images)
        for encoded, row, sample in zip(reader.read(ids), reader.entries(ids), ids, strict=True):
            name, number = re.fullmatch(
                rf"({split}_\d{{8}}_(\d+)-x)\.\w+ in .*", reader.describe(sample)
            ).groups()
            seen.add(int(number))
            (path,) = (raw / split).glob(f"*/{number}.x.*")
            assert encoded.tobytes() == path.read_bytes()
            assert dataset.classes[row["label"]] == path.parent.name
            assert (row["height"], row["width"]) == (20, 30)
            assert "." not in name
        assert seen == {n for n in range(40) if (n % 4 == 3) == (split == "val")}
    assert verify(to, progress=False) == []
    labels = Reader(dataset, "train").entries(np.arange(30))["label"]
    assert len(set(labels[:8])) > 1  # a shard is not of one class
    values = np.concatenate(
        [np.asarray(Image.open(p).convert("RGB")).reshape(-1, 3) for p in raw.glob("train/*/*")]
    )
    assert dataset.mean == pytest.approx(values.mean(0) / 255, abs=1e-12)


def test_a_folder_without_splits_is_split_by_a_hash_that_stays(tmp_path):
    for number in range(200):
        path = tmp_path / f"raw/{'ab'[number % 2]}/deep/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()  # only names are looked at when a source is opened
    before = open_source("folder", tmp_path / "raw", test_percent=20).splits
    assert set(before) == {"train", "test"}
    assert 20 <= len(before["test"]) <= 60
    assert classes_of(before["train"]) | classes_of(before["test"]) == {
        f"{'ab'[n % 2]}/deep/{n}.png": n % 2 for n in range(200)
    }
    for number in range(100):
        (tmp_path / f"raw/a/more{number}.png").touch()
    after = open_source("folder", tmp_path / "raw", test_percent=20).splits
    for split in before:
        assert set(before[split].paths) == {path for path in after[split].paths if "more" not in path}
    assert set(open_source("folder", tmp_path / "raw", test_percent=0).splits) == {"train"}
    assert sum(in_test(f"{n}", 10) for n in range(10_000)) == pytest.approx(1000, abs=100)


def test_tiny_imagenet_as_it_is_published(tmp_path):
    lines = []
    for number in range(6):
        wnid = f"n0000000{number % 2}"
        put(tmp_path / f"train/{wnid}/images/{wnid}_{number}.JPEG", number)
        (tmp_path / f"train/{wnid}/{wnid}_boxes.txt").write_text("boxes")
        put(tmp_path / f"val/images/val_{number}.JPEG", number)
        put(tmp_path / f"test/images/test_{number}.JPEG", number)
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t9\t9")
    (tmp_path / "val/val_annotations.txt").write_text("\n".join(lines))
    (tmp_path / "wnids.txt").write_text("n00000000")
    source = open_source("folder", tmp_path)
    assert source.classes == ["n00000000", "n00000001"]
    assert list(source.splits) == ["train", "test", "val"]
    assert classes_of(source.splits["val"]) == {f"val/images/val_{n}.JPEG": n % 2 for n in range(6)}
    assert set(source.splits["test"].labels) == {None}
    assert [left["member"] for left in source.left_out] == [
        f"train/n0000000{n}/n0000000{n}_boxes.txt" for n in range(2)
    ]


def test_images_without_class_folders_are_unlabelled(tmp_path):
    for number in range(40):
        put(tmp_path / f"raw/{number}.png", number)
    dataset = make("folder", tmp_path / "to", tmp_path / "raw", workers=1, progress=False, test_percent=25)
    assert dataset.classes == ()
    assert sum(part.images for part in dataset.splits.values()) == 40
    for split in ("train", "test"):
        reader = Reader(dataset, split)
        assert set(reader.entries(np.arange(reader.images))["label"]) == {-1}
    assert verify(tmp_path / "to", progress=False) == []


def test_a_folder_of_mixed_files_is_counted_and_nothing_stops_it(tmp_path, capsys):
    raw = tmp_path / "raw"
    good = put(raw / "a/good.jpg", 1)
    put(raw / "b/good.jpg", 2)
    Image.fromarray(IMAGES[3]).save(raw / "b/moving.gif")
    Image.fromarray(IMAGES[4]).save(raw / "b/a png.jpg", "PNG")
    (raw / "a/cut.jpg").write_bytes(good.read_bytes()[:-100])
    for name in ("a/empty.png", "a/.DS_Store", "a/Thumbs.db", "a/notes.txt", "a/png", "stray.png"):
        (raw / name).write_bytes(b"")
    os.mkfifo(raw / "a/pipe.jpg")
    (raw / "a/gone.jpg").symlink_to(raw / "nowhere.jpg")
    (raw / "a/round").symlink_to(raw / "a")
    (raw / "b/linked.png").symlink_to(put(tmp_path / "elsewhere/x.png", 5))
    put(Path(os.fsdecode(os.fsencode(raw / "b") + b"/\xff.png")), 6)
    assert main(["source=folder", f"from={raw}", f"to={tmp_path / 'to'}", "test_percent=0", "workers=1"]) == 0
    printed = capsys.readouterr().out
    assert "2 classes; images: train 6 in 1 shards; left out: 10;" in printed
    assert "left out: a/empty.png: an empty file\n" in printed
    dataset = load_dataset(tmp_path / "to")
    left = {entry["member"]: entry["why"] for entry in dataset.left_out}
    assert "runcated" in left.pop("a/cut.jpg")
    assert left == {
        "a/.DS_Store": "a hidden file",
        "a/Thumbs.db": "its name is no image's",
        "a/empty.png": "an empty file",
        "a/gone.jpg": "a link to nothing",
        "a/notes.txt": "its name is no image's",
        "a/pipe.jpg": "no regular file",
        "a/png": "its name is no image's",
        "a/round": "a link to a folder that it lies in",
        "stray.png": "it lies in no class folder",
    }
    with tarfile.open(tmp_path / "to/train/000000.tar") as tar:
        names = [name[15:] for name in tar.getnames() if not name.endswith(".cls")]
        moving = next(tar.extractfile(name).read() for name in tar.getnames() if "moving.png" in name)
    assert sorted(names) == ["-.png", "a-png.png", "good.jpg", "good.jpg", "linked.png", "moving.png"]
    shown = Image.open(raw / "b/moving.gif").convert("RGB")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(moving))), np.asarray(shown))
    assert verify(tmp_path / "to", progress=False) == []


def test_layouts_that_cannot_be_meant_are_one_clear_line(tmp_path):
    def refused(match, *paths, **options):
        raw = tmp_path / str(len(list(tmp_path.iterdir())))
        for path in paths:
            (raw / path).parent.mkdir(parents=True, exist_ok=True)
            (raw / path).touch()
        with pytest.raises(UserError, match=match) as error:
            open_source("folder", raw, **options)
        assert "\n" not in str(error.value)

    refused("valid and validation are both val", "train/a/x.png", "valid/a/x.png", "validation/a/x.png")
    refused("has test, val but no train", "val/a/x.png", "test/a/x.png")
    refused(
        "no folder of val .dog, fish. is a class of train",
        "train/a/x.png",
        "val/dog/x.png",
        "val/fish/x.png",
    )
    refused("test_percent=5: .* has splits .train, val.", "train/a/x.png", "val/a/x.png", test_percent=5)
    refused("no image to train on", "train/a/x.txt", "val/a/x.png")


def test_a_class_of_trains_is_no_split(tmp_path):
    for name in ("car", "train", "boat"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").touch()
    source = open_source("folder", tmp_path, test_percent=0)
    assert source.classes == ["boat", "car", "train"]
    (tmp_path / "test").mkdir()  # with a test beside it, it is one, and the others are named
    source = open_source("folder", tmp_path)
    assert [left["member"] for left in source.left_out] == ["boat", "car", "test"]


def test_a_made_data_set_is_not_taken_for_another_folders(tmp_path):
    for name in ("cats", "dogs"):
        for number in range(3):
            put(tmp_path / name / f"{number}.png", number)
    made = make("folder", tmp_path / "to", tmp_path / "cats", workers=1, test_percent=0)
    assert make("folder", tmp_path / "to", tmp_path / "cats", workers=1) == made
    with pytest.raises(UserError, match=r"was begun with source=folder shard=1000 from=.*cats"):
        make("folder", tmp_path / "to", tmp_path / "dogs")
    with pytest.raises(UserError, match=r"lies in from=.* among the images"):
        make("folder", tmp_path / "dogs/shards", tmp_path / "dogs")
    assert not (tmp_path / "dogs/shards").exists()
    (tmp_path / "to/train/000000.tar").unlink()
    with pytest.raises(UserError, match=r"make it with `.* source=folder from=.*cats test_percent=0 to="):
        load_dataset(tmp_path / "to")
