"""The cache of features: what is in it, what is left of it, and what a killed evaluation leaves."""

import shutil

import numpy as np
import pytest
import torch

from data_pipelines.common.errors import UserError
from data_pipelines.dali import in_order
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.image_options import ImageOptions
from data_pipelines.reader import Reader
from data_pipelines.views import Normalize
from trainer.evaluation.features import cached, gathered, has_labels, labelled_ids, subset

IMAGES = ImageOptions(8, Normalize(), 1, torch.device("cpu"))


def encode(view):
    flat = view.flatten(1).double()  # whatever its type, float32 is kept
    return {"a/b": flat[:, ::2], "y": flat.sum(1, keepdim=True)}


@pytest.fixture
def copied(digits, tmp_path):
    """A copy of the digits, to be changed."""
    return shutil.copytree(digits.root, tmp_path / "digits")


def relabel(root, split, change):
    """Writes other labels into the index of a split's first shard."""
    path = root / split / "000000.npy"
    index = np.load(path, allow_pickle=False)
    change(index["label"])
    np.save(path, index, allow_pickle=False)


def test_the_cache_holds_what_was_encoded_and_leaves_nothing(digits, tmp_path):
    train, test = Reader(digits, "train"), Reader(digits, "test")
    ids = np.array([3, 700, 701, 1400, 9])
    folder = tmp_path / "features"
    folder.mkdir()
    (folder / "0").write_bytes(b"of a killed run")
    with cached(folder, encode, [(train, ids), (test, labelled_ids(test))], IMAGES, batch=2) as sets:
        for examples, reader in zip(sets, (train, test), strict=True):
            views, labels = zip(*in_order(reader, IMAGES, examples.ids, 100), strict=True)
            expected = encode(torch.cat(views))
            assert list(examples.features) == ["a/b", "y"]
            for name, rows in examples.features.items():
                assert rows.dtype == torch.float32
                assert torch.equal(rows, expected[name].float())
            assert torch.equal(examples.labels, torch.cat(labels))
        assert sets[0].ids.tolist() == ids.tolist()
        assert len(sets[1].labels) == test.images
        kept = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        assert kept == (5 + test.images) * (96 + 1) * 4
    assert not folder.exists()


def test_the_cache_is_removed_where_something_fails(digits, tmp_path):
    reader = Reader(digits, "test")
    with (
        pytest.raises(KeyError, match="later"),
        cached(tmp_path / "features", encode, [(reader, np.arange(4))], IMAGES, batch=2),
    ):
        raise KeyError("later")
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_an_error_before_the_encoding(digits, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    reader = Reader(digits, "test")
    with (
        pytest.raises(UserError, match="features of 4 images to probe take"),
        cached(tmp_path / "features", encode, [(reader, np.arange(4))], IMAGES, batch=2),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(digits, tmp_path):
    (tmp_path / "run").write_text("a file where the folder should be")
    reader = Reader(digits, "test")
    with (
        pytest.raises(UserError, match=r"cannot write features to .*run"),
        cached(tmp_path / "run" / "features", encode, [(reader, np.arange(4))], IMAGES, batch=2),
    ):
        pass


def test_samples_without_a_label_are_left_out(copied, tmp_path):
    relabel(copied, "train", lambda labels: labels.__setitem__(slice(0, 490), -1))
    reader = Reader(load_dataset(copied), "train")
    ids = labelled_ids(reader)
    assert ids.tolist() == list(range(490, reader.images))
    assert has_labels(reader)

    # Sample 490 cannot be decoded, nor be replaced by the next one, which has no label.
    relabel(copied, "train", lambda labels: labels.__setitem__(491, -1))
    row = np.load(copied / "train" / "000000.npy", allow_pickle=False)[490]
    with open(copied / "train" / "000000.tar", "r+b") as tar:
        tar.seek(int(row["offset"]))
        tar.write(bytes(int(row["size"])))
    reader = Reader(load_dataset(copied), "train")
    with cached(tmp_path / "features", encode, [(reader, np.arange(490, 495))], IMAGES, batch=5) as (
        examples,
    ):
        assert examples.ids.tolist() == [492, 493, 494]
        assert len(examples.labels) == len(examples.features["y"]) == 3

    for shard in range(len(reader.shards)):
        path = copied / "train" / f"{shard:06d}.npy"
        index = np.load(path, allow_pickle=False)
        index["label"] = -1
        np.save(path, index, allow_pickle=False)
    reader = Reader(load_dataset(copied), "train")
    assert not has_labels(reader)
    assert len(labelled_ids(reader)) == 0


def test_gathered_features_are_those_of_the_images(digits):
    reader = Reader(digits, "test")
    ids = subset(reader, 30, seed=1)
    assert len(set(ids.tolist())) == 30
    assert ids.tolist() == sorted(ids.tolist())
    assert ids.tolist() != subset(reader, 30, seed=2).tolist()
    assert subset(reader, 10**6, seed=1).tolist() == list(range(reader.images))
    features, labels = gathered(encode, reader, ids, IMAGES, batch=7)
    views, expected = zip(*in_order(reader, IMAGES, ids, 30), strict=True)
    assert torch.equal(features["a/b"], encode(views[0])["a/b"].float())
    assert torch.equal(labels, expected[0])
