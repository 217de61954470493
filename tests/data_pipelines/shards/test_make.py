"""Shards hold what the source holds, and a user's mistake leaves nothing behind."""

import functools
import hashlib
import io
import itertools
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import webdataset
from PIL import Image

from data_pipelines.common.errors import UserError
from data_pipelines.dataset import INDEX
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.shards.__main__ import main
from data_pipelines.shards.make import make
from data_pipelines.shards.verify import verify
from data_pipelines.shards.write import write_shard
from data_pipelines.sources.catalog import open_source
from data_pipelines.sources.images import Sample, Sums, picture
from tests.helpers.file_digests import digests
from tests.helpers.synthetic_cifar import write_folder

ROOT = Path(__file__).resolve().parents[3]


def test_dataset_index_and_webdataset_agree_with_the_source(raw, made):
    dataset, source = load_dataset(made), open_source("cifar10", raw)
    assert {name: part.images for name, part in dataset.splits.items()} == {"train": 150, "test": 30}
    assert [shard.images for shard in dataset.splits["train"].shards] == [60, 60, 30]
    pixels = source.splits["train"].images / 255
    assert dataset.mean == pytest.approx(pixels.mean((0, 1, 2)), abs=1e-12)
    assert dataset.std == pytest.approx(pixels.std((0, 1, 2)), abs=1e-12)
    assert dataset.classes == tuple(source.classes)
    for split, part in dataset.splits.items():
        number = 0
        for shard in part.shards:
            index = np.load((made / shard.name).with_suffix(".npy"), allow_pickle=False)
            assert index.dtype == INDEX
            samples = list(webdataset.WebDataset(str(made / shard.name), shardshuffle=False))
            assert len(samples) == len(index) == shard.images
            with open(made / shard.name, "rb") as file:
                for row, sample in zip(index, samples, strict=True):
                    encoded = os.pread(file.fileno(), int(row["size"]), int(row["offset"]))
                    assert encoded == sample["png"]
                    assert sample["__key__"] == f"{split}_{number:05d}"
                    assert row["label"] == int(sample["cls"]) == source.splits[split].labels[number]
                    assert (row["height"], row["width"]) == (32, 32)
                    image = np.asarray(Image.open(io.BytesIO(encoded)))
                    assert np.array_equal(image, source.splits[split].images[number])
                    number += 1
    assert verify(made, progress=False) == []


@pytest.mark.slow
def test_equal_input_gives_equal_bytes_whatever_the_workers(raw, made, tmp_path):
    before = set(
        psutil.Process().children()
    )  # what other tests of this process have started, and that starts more
    again = make("cifar10", tmp_path / "again", raw, images_per_shard=60, workers=2, progress=False)
    assert digests(tmp_path / "again") == digests(made)
    assert again.fingerprint == load_dataset(made).fingerprint
    started = set(psutil.Process().children()) - before
    started |= {grandchild for child in started for grandchild in child.children(recursive=True)}
    commands = [" ".join(child.cmdline()) for child in started]
    assert not [command for command in commands if "resource_tracker" not in command]  # no worker is left


def test_a_finished_data_set_is_found_and_another_is_refused(raw, made):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    assert make("cifar10", made, "/does/not/matter", workers=1) == load_dataset(made)
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before
    with pytest.raises(UserError, match="was begun with source=cifar10 shard=60"):
        make("digits", made)
    with pytest.raises(UserError, match="was begun with source=cifar10 shard=60"):
        make("cifar10", made, raw, images_per_shard=50)


def test_lost_shards_are_written_again_alike(raw, made):
    before = digests(made)
    (made / "train/000001.tar").unlink()
    (made / "test/000000.npy").write_bytes(b"short")
    make("cifar10", made, raw, workers=1, progress=False)
    assert digests(made) == before


def test_two_splits_of_digits_are_made_on_first_use(tmp_path):
    dataset = make("digits", tmp_path / "deep/er/digits", progress=False)
    assert [shard.images for shard in dataset.splits["train"].shards] == [500, 500, 438]
    assert dataset.splits["test"].images == 359
    assert verify(tmp_path / "deep/er/digits", progress=False) == []
    # DALI and pillow see RGB in the grey images: three equal channels.
    assert dataset.mean[0] == dataset.mean[1] == dataset.mean[2]


def test_what_another_archive_left_unfinished_is_not_kept(raw, made, tmp_path):
    to = tmp_path / "to"
    other = open_source("cifar10", write_folder(tmp_path, per_batch=40, seed=1))
    (to / ".making").mkdir(parents=True)
    (to / ".making/plan.json").write_text('{"source": "cifar10", "images_per_shard": 60}')
    for number, chunk in enumerate(other.splits["train"].chunks(60)):
        write_shard(chunk, to, f"train/{number:06d}.tar", 10)
    assert len(list(to.glob("train/*.tar"))) == 4
    make("cifar10", to, raw, workers=1, progress=False)
    assert digests(to) == digests(made)


class Folder:
    """A chunk as a source of files gives it: encoded images, of which some are none."""

    def __init__(self, samples):
        self.listed = samples

    def digest(self):
        return hashlib.sha256(repr(self.listed).encode()).hexdigest()

    def samples(self):
        for name, data, label in self.listed:
            yield Sample(f"{name}.png", name, label, functools.partial(picture, data))


def encoded(shape, kind="PNG", **options) -> bytes:
    image = io.BytesIO()
    Image.fromarray(np.full(shape, 100, np.uint8)).save(image, kind, **options)
    return image.getvalue()


def test_members_that_are_no_images_are_left_out_and_named(tmp_path):
    good, turned = encoded((5, 7, 3)), Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees: 5x7 becomes 7x5
    samples = [
        ("good", good, 1),
        ("text", b"not an image", 1),
        ("cut", good[: len(good) // 2], 1),
        ("empty", b"", 1),
        ("label", good, 10),
        ("turned", encoded((5, 7, 3), exif=turned), 9),
        ("unlabelled", good, None),
    ]
    (tmp_path / ".making").mkdir()
    entry = write_shard(Folder(samples), tmp_path, "train/000000.tar", classes=10)
    left = {left["member"]: left["why"] for left in entry["left_out"]}
    assert list(left) == ["text.png", "cut.png", "empty.png", "label.png"]
    assert left["text.png"] == "cannot identify it as an image"
    assert left["empty.png"] == "an empty file"
    assert left["label.png"] == "label 10 is not in 0..9"
    index = np.load(tmp_path / "train/000000.npy", allow_pickle=False)
    assert index[["height", "width", "label"]].tolist() == [(5, 7, 1), (7, 5, 9), (5, 7, -1)]
    assert Sums(**entry["sums"]).mean_and_std() == ((100 / 255,) * 3, (0.0,) * 3)


def test_labels_out_of_range_are_counted_in_the_data_set(tmp_path, capsys):
    folder = write_folder(tmp_path)
    batch = {b"data": np.zeros((12, 3072), np.uint8), b"labels": [0, 1, -1, 10, *range(8)]}
    (folder / "data_batch_2").write_bytes(pickle.dumps(batch, protocol=2))
    assert main(["source=cifar10", f"from={folder}", f"to={tmp_path / 'to'}"]) == 0
    assert "left out: train_00014: label -1 is not in 0..9" in capsys.readouterr().out
    dataset = load_dataset(tmp_path / "to")
    assert [left["member"] for left in dataset.left_out] == ["train_00014", "train_00015"]
    assert dataset.splits["train"].images == 58
    assert verify(tmp_path / "to", progress=False) == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("source=cifar11 to=TO", "source=cifar11: unknown source; did you mean 'cifar10'"),
        ("sorce=digits to=TO", "unknown key 'sorce'; did you mean 'source'"),
        ("source=digits", "to= is missing"),
        ("to=TO", "source= is missing"),
        ("source=digits to=TO shard=0", "shard=0: expected a whole number of at least 1"),
        ("source=digits to=TO workers=two", "workers=two: expected a whole number of at least 1"),
        ("source=digits to=TO to=TO", "to= once"),
        ("source=digits to=", "to=: has no value"),
        ("source=digits from=x to=TO", "leave from= out"),
        ("source=cifar10 from=TO/none to=TO", "cannot be read"),
        ("source=digits to=FILE", "is a file; choose a folder"),
        ("source=digits to=FILE/below", "cannot be written"),
        ("source=digits to=OTHER", "holds something else ('thesis.tex')"),
        ("source=folder to=TO", "from= is missing"),
        ("source=folder from=TO/none to=TO", "none cannot be read (No such file or directory)"),
        ("source=folder from=OTHER to=TO", "has no image to train on; names of images end in jpg, jpeg"),
        ("source=folder from=FILE to=TO", "cannot be read (Not a directory)"),
        ("source=folder from=OTHER to=TO test_percent=100", "expected a whole number from 0 to 99"),
        ("source=digits to=TO label=y", "label=y: source=digits has no use for it; leave label= out"),
        ("source=wds from=OTHER to=TO", "no tar is there; give a folder of tars or a quoted pattern"),
        ("source=stl10 from=OTHER to=TO", "class_names.txt cannot be read (No such file or directory)"),
    ],
)
def test_a_users_mistake_is_one_line_and_leaves_nothing(tmp_path, capsys, arguments, line):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    for name in ("TO", "FILE", "OTHER"):
        arguments = arguments.replace(f"={name}", f"={tmp_path / name.lower()}")
    assert main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert line in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("arguments", [[], ["verify"], ["verify", "a", "b"], ["make"], ["--list"]])
def test_without_sense_the_usage_is_printed(capsys, arguments):
    assert main(arguments) == 2
    assert "python -m data_pipelines.shards verify DIR" in capsys.readouterr().err


def test_help_is_no_mistake(capsys):
    assert main(["--help"]) == 0
    assert "python -m data_pipelines.shards verify DIR" in capsys.readouterr().out


def test_what_was_made_before_is_not_told_as_made_anew(tmp_path, capsys):
    arguments = ["source=digits", f"to={tmp_path / 'digits'}"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.endswith(" s\n")
    assert main(arguments) == 0
    assert capsys.readouterr().out.endswith("; made before, its source was not read again\n")


def test_a_full_disk_is_one_line_and_what_is_done_is_kept(raw, tmp_path):
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
        "from data_pipelines.shards.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["source=cifar10", f"from={raw}", f"to={tmp_path / 'to'}", "shard=140", "workers=1"]
    done = subprocess.run(
        [sys.executable, "-c", limited, *arguments], cwd=ROOT, text=True, capture_output=True
    )
    assert done.returncode == 2
    assert "000000.tar cannot be written (File too large); mend that and give the same command" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(itertools.chain((tmp_path / "to").glob("*/*.tar"), (tmp_path / "to").rglob("*.part")))
    make("cifar10", tmp_path / "to", raw, workers=1, progress=False)
    assert verify(tmp_path / "to", progress=False) == []
