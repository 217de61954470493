"""Tars that were there before are indexed, whatever is in them, and are not touched."""

import gzip
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from data_pipelines.common.errors import UserError
from data_pipelines.dataset import tar_path
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.reader import Reader
from data_pipelines.shards.__main__ import main
from data_pipelines.shards.make import make
from data_pipelines.shards.verify import verify
from tests.helpers.tiny_dataset import pictures, png

IMAGES = pictures(60, 24, 16)


def jpeg(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(IMAGES[number]).save(file, "JPEG", quality=95)
    return file.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def img2dataset(numbers) -> list[tuple[str, bytes]]:
    """What img2dataset writes for some images: caption and metadata beside each."""
    members = []
    for n in numbers:
        about = {"caption": f"picture {n}", "kind": n % 3, "name": "xyz"[n % 3], "status": "success"}
        members += [
            (f"{n:09d}.jpg", jpeg(n)),
            (f"{n:09d}.txt", about["caption"].encode()),
            (f"{n:09d}.json", json.dumps(about).encode()),
        ]
    return members


def labelled(numbers, label=lambda n: n % 4) -> list[tuple[str, bytes]]:
    return [pair for n in numbers for pair in ((f"{n}.png", png(IMAGES[n])), (f"{n}.cls", b"%d" % label(n)))]


@pytest.fixture
def laion(tmp_path) -> Path:
    for shard in range(3):
        write_tar(tmp_path / f"laion/{shard:05d}.tar", img2dataset(range(20 * shard, 20 * shard + 20)))
        (tmp_path / f"laion/{shard:05d}.parquet").write_bytes(b"metadata")
    return tmp_path / "laion"


def contents(dataset, split) -> dict[str, tuple[bytes, int]]:
    """{member: (image, label)} through the reader."""
    reader = Reader(dataset, split)
    ids = np.arange(reader.images)
    rows = reader.entries(ids)
    assert set(rows[["height", "width"]].tolist()) == {(24, 16)}
    names = [reader.describe(sample).split(" in ")[0] for sample in ids]
    images = [image.tobytes() for image in reader.read(ids)]
    return dict(zip(names, zip(images, rows["label"].tolist(), strict=True), strict=True))


def written(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """What a rewrite would change of a folder's files; reading changes their time of access alone."""
    status = {path: path.stat() for path in folder.iterdir()}
    return {path: (one.st_ino, one.st_size, one.st_mtime_ns) for path, one in status.items()}


def test_img2dataset_is_indexed_without_a_rewrite(laion, tmp_path):
    before = written(laion)
    dataset = make("wds", tmp_path / "to", laion, workers=1, progress=False, test_percent=30)
    assert written(laion) == before
    assert not list((tmp_path / "to").rglob("*.tar"))
    train, test = contents(dataset, "train"), contents(dataset, "test")
    assert 6 <= len(test) <= 30
    assert train | test == {f"{n:09d}.jpg": (jpeg(n), -1) for n in range(60)}
    assert not train.keys() & test.keys()
    assert dataset.classes == ()
    assert dataset.left_out == ()
    assert verify(tmp_path / "to", progress=False) == []
    values = np.stack([np.asarray(Image.open(io.BytesIO(data))) for data, _ in train.values()]) / 255
    assert dataset.mean == pytest.approx(values.mean((0, 1, 2)), abs=1e-12)
    # Other tars, the same images: each stays in its split.
    write_tar(tmp_path / "again/all.tar", img2dataset(range(59, -1, -1)))
    again = make(
        "wds", tmp_path / "to2", tmp_path / "again/*.tar", workers=1, progress=False, test_percent=30
    )
    assert contents(again, "test") == test


def test_folder_and_tars_may_be_moved_together(laion, tmp_path):
    make("wds", tmp_path / "to", laion, workers=1, progress=False)
    (tmp_path / "moved").mkdir()
    for name in ("laion", "to"):
        shutil.move(tmp_path / name, tmp_path / "moved" / name)
    dataset = load_dataset(tmp_path / "moved/to")
    shard = dataset.splits["train"].shards[0]
    assert tar_path(dataset.root, shard).read_bytes() == (tmp_path / "moved/laion/00000.tar").read_bytes()
    assert len(contents(dataset, "train")) + len(contents(dataset, "test")) == 60
    far = make("wds", tmp_path / "a/b/to", tmp_path / "moved/laion", workers=1, progress=False)
    assert far.splits["train"].shards[0].path == str(tmp_path / "moved/laion/00000.tar")
    (tmp_path / "moved/laion/00000.tar").unlink()
    with pytest.raises(
        UserError, match=r"laion/00000\.tar cannot be found .*make it with `.*source=wds from="
    ):
        load_dataset(tmp_path / "a/b/to")


@pytest.mark.parametrize("layout", ["{split}/{number:03d}.tar", "imagenet-{split}-{number:06d}.tar"])
def test_splits_by_the_names_of_folders_or_tars(tmp_path, layout):
    for start, split, number in ((0, "train", 0), (10, "train", 1), (20, "validation", 0)):
        path = tmp_path / "raw" / layout.format(split=split, number=number)
        write_tar(path, labelled(range(start, start + 10)))
    (tmp_path / "raw/classes.txt").write_text("ant\nbee\ncat\ndog\nemu\n")
    dataset = make("wds", tmp_path / "to", tmp_path / "raw", workers=1, progress=False)
    assert dataset.classes == ("ant", "bee", "cat", "dog", "emu")
    assert contents(dataset, "train") == {f"{n}.png": (png(IMAGES[n]), n % 4) for n in range(20)}
    assert contents(dataset, "val") == {f"{n}.png": (png(IMAGES[n]), n % 4) for n in range(20, 30)}
    for shard in dataset.splits["train"].shards:
        samples = list(webdataset.WebDataset(str(tar_path(dataset.root, shard)), shardshuffle=False))
        assert len(samples) == shard.images
    assert verify(tmp_path / "to", progress=False) == []
    with pytest.raises(UserError, match=r"test_percent=5: .* has splits \(train, val\)"):
        make("wds", tmp_path / "to2", tmp_path / "raw", test_percent=5)


def test_labels_from_json_are_numbers_or_names_of_classes(laion, tmp_path):
    dataset = make("wds", tmp_path / "to", laion, workers=1, progress=False, label="kind", test_percent=0)
    assert dataset.classes == ("0", "1", "2")
    assert [label for _, label in contents(dataset, "train").values()] == [n % 3 for n in range(60)]
    with pytest.raises(UserError, match=r"label=name is text .*'x'.*classes\.txt beside the tars"):
        make("wds", tmp_path / "named", laion, label="name")
    with pytest.raises(UserError, match="has no such key; it has caption, kind, name, status"):
        make("wds", tmp_path / "named", laion, label="lable")
    (laion / "classes.txt").write_text("z\ny\n")
    named = make("wds", tmp_path / "named", laion, workers=1, progress=False, label="name", test_percent=0)
    kept = {f"{n:09d}.jpg": (jpeg(n), 2 - n % 3) for n in range(60) if n % 3}
    assert contents(named, "train") == kept
    assert len(named.left_out) == 20
    assert named.left_out[0]["why"] == "its label is 'x', expected a whole number in 0..1"
    assert verify(tmp_path / "named", progress=False) == []


def test_untidy_tars_are_counted_and_nothing_stops_it(tmp_path, capsys):
    good = png(IMAGES[0])
    members = [
        ("./deep/er/a.b.png", good),  # key a, suffix b.png
        ("two.png", good),
        ("two.jpg", jpeg(1)),
        ("two.seg.png", good),
        ("gap.txt", b"no image"),
        ("empty.jpg", b""),
        ("text.jpg", b"text"),
        ("._two.jpg", b"mac"),
        ("cat.png", good),
        ("cat.cls", b"cat"),
        ("huge.png", good),
        ("huge.cls", b"123456789"),
        ("UPPER.JPG", jpeg(2)),
        ("UPPER.cls", b"2\n"),
        ("array.npy", b"numpy"),
        ("img.0001.png", good),
        ("img.0002.png", good),
        ("none.png", good),
        ("none.cls", b"-1"),
        ("README", b"readme"),
    ]
    path = write_tar(tmp_path / "raw/x.tar", members)
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "two.png"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("moving.gif"), None)
    file = io.BytesIO()
    Image.fromarray(IMAGES[3]).save(file, "GIF")
    write_tar(tmp_path / "raw/y.tar", [("moving.gif", file.getvalue()), ("late.png", good)])
    assert (
        main(
            ["source=wds", f"from={tmp_path / 'raw'}", f"to={tmp_path / 'to'}", "test_percent=0", "workers=1"]
        )
        == 0
    )
    assert "3 classes; images: train 6 in 2 shards; left out: 14;" in capsys.readouterr().out
    dataset = load_dataset(tmp_path / "to")
    assert contents(dataset, "train") == {
        "./deep/er/a.b.png": (good, -1),
        "two.jpg": (jpeg(1), -1),
        "UPPER.JPG": (jpeg(2), 2),
        "img.0001.png": (good, -1),
        "none.png": (good, -1),
        "late.png": (good, -1),
    }
    left = [(entry["member"].rpartition("/")[2], entry["why"]) for entry in dataset.left_out]
    two = "two.jpg is the image of its sample: a key ends at the first dot"
    assert left == [
        ("x.tar: two.png", two),
        ("x.tar: two.seg.png", two),
        ("x.tar: gap.txt", "its sample has no image"),
        ("x.tar: empty.jpg", "an empty file"),
        ("x.tar: text.jpg", "cannot identify it as an image"),
        ("x.tar: ._two.jpg", "a hidden file"),
        (
            "x.tar: cat.png",
            "its label is 'cat', expected a whole number in 0..999999; write the class names, one a line, "
            "into classes.txt beside the tars",
        ),
        ("x.tar: huge.png", "its label is '123456789', expected a whole number in 0..999999"),
        ("x.tar: array.npy", "its sample has no image"),
        ("x.tar: img.0002.png", "img.0001.png is the image of its sample: a key ends at the first dot"),
        ("x.tar: README", "its sample has no image"),
        ("x.tar: link.png", "a link, or no file"),
        ("x.tar: moving.gif", "an empty file"),
        ("y.tar: moving.gif", "this GIF is not what the loader decodes; source=folder writes it as PNG"),
    ]
    assert verify(tmp_path / "to", progress=False) == []


def test_what_lies_before_a_cut_is_used_and_the_tar_named(tmp_path):
    whole = write_tar(tmp_path / "raw/a.tar", labelled(range(20))).read_bytes()
    with tarfile.open(tmp_path / "raw/a.tar") as tar:
        places = [member.offset for member in tar]
    (tmp_path / "raw/b.tar").write_bytes(whole[: places[22] + 600])  # within the 12th image
    (tmp_path / "raw/c.tar").write_bytes(whole[: places[11]])  # before the sixth image's label
    (tmp_path / "raw/d.tar").write_bytes(b"")
    (tmp_path / "raw/e.tar").write_bytes(b"<html>not found</html>")
    dataset = make("wds", tmp_path / "to", tmp_path / "raw", workers=1, progress=False, test_percent=0)
    assert [shard.images for shard in dataset.splits["train"].shards] == [20, 10, 5]
    assert [Path(entry["member"]).name for entry in dataset.left_out] == ["b.tar", "c.tar", "d.tar", "e.tar"]
    assert "cut short at byte" in dataset.left_out[0]["why"]
    assert "damaged or cut short at byte" in dataset.left_out[1]["why"]
    assert dataset.left_out[3]["why"].startswith("it is not a whole tar file")
    assert verify(tmp_path / "to", progress=False) == []


def test_verify_finds_a_changed_tar_and_a_changed_label(laion, tmp_path):
    make("wds", tmp_path / "to", laion, workers=1, progress=False, test_percent=0, label="kind")
    data = bytearray((laion / "00001.tar").read_bytes())
    place = data.index(b'"kind": 2')
    data[place : place + 9] = b'"kind": 1'
    (laion / "00001.tar").write_bytes(data)
    problems = verify(tmp_path / "to", progress=False)
    assert len(problems) == 2
    assert "00001.tar was changed" in problems[0]
    assert "000000020.jpg': its index row is" in problems[1]


def test_mistakes_are_one_clear_line(laion, tmp_path):
    def refused(match, from_=laion, **options):
        with pytest.raises(UserError, match=match) as error:
            make("wds", tmp_path / "to", from_, progress=False, **options)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "to").exists()

    refused("no tar is there; give a folder of tars or a quoted pattern", tmp_path / "laion/*.tgz")
    refused("shard=60: source=wds keeps its tars as they are", images_per_shard=60)
    write_tar(tmp_path / "cls/x.tar", labelled(range(3)))
    refused("label=kind: .*x.tar has no json member", tmp_path / "cls", label="kind")
    write_tar(tmp_path / "empty/x.tar", [("a.txt", b"")])
    with pytest.raises(
        UserError, match=r"no image of train can be used; the first: .*a.txt: its sample has no image"
    ):
        make("wds", tmp_path / "none", tmp_path / "empty", workers=1, progress=False)
    write_tar(laion / "train-0.tar", labelled(range(3)))
    refused("00000.tar names no split and train-0.tar names train; rename either")
    (laion / "train-0.tar").unlink()
    (laion / "00003.tar.gz").write_bytes(gzip.compress((laion / "00000.tar").read_bytes()))
    refused(r"00003\.tar\.gz is compressed \(gzip\) .* rewrite it with `gzip -dc ")


def test_an_interrupted_index_is_continued(laion, tmp_path):
    whole = make("wds", tmp_path / "to", laion, workers=1, progress=False, test_percent=30)
    (tmp_path / "to/test/000001.npy").unlink()
    (tmp_path / "to/dataset.json").unlink()
    (tmp_path / "to/.making").mkdir()
    plan = {"source": "wds", "images_per_shard": 0, "made_with": whole.made_with}
    (tmp_path / "to/.making/plan.json").write_text(json.dumps(plan))
    assert make("wds", tmp_path / "to", workers=1, progress=False) == whole
    with pytest.raises(UserError, match="was begun with source=wds from="):
        make("wds", tmp_path / "to", laion, label="kind")
