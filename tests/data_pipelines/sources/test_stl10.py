"""STL-10 as it is published: columns first, labels from 1, a part without labels."""

import io

import numpy as np
import pytest
from PIL import Image

from data_pipelines.common.errors import UserError
from data_pipelines.reader import Reader
from data_pipelines.shards.make import make
from data_pipelines.shards.verify import verify
from tests.helpers.synthetic_stl10 import CLASSES, write_stl10
from tests.helpers.tiny_dataset import pictures


@pytest.fixture
def raw(tmp_path):
    return write_stl10(tmp_path / "raw")


def test_images_and_labels_are_those_published(raw, tmp_path):
    dataset = make("stl10", tmp_path / "to", raw.parent, images_per_shard=10, workers=1, progress=False)
    assert dataset.classes == tuple(CLASSES)
    assert {name: part.images for name, part in dataset.splits.items()} == {
        "train": 12,
        "test": 5,
        "unlabelled": 23,
    }
    for seed, split in enumerate(("train", "test", "unlabelled")):
        reader = Reader(dataset, split)
        ids = np.arange(reader.images)
        images = np.stack([np.asarray(Image.open(io.BytesIO(data.tobytes()))) for data in reader.read(ids)])
        assert np.array_equal(images, pictures(len(ids), 96, 96, seed))
        labels = reader.entries(ids)["label"]
        assert labels.tolist() == [-1 if split == "unlabelled" else i % 10 for i in ids]
    assert dataset.mean == pytest.approx(pictures(12, 96, 96, 0).mean((0, 1, 2)) / 255, abs=1e-12)
    assert verify(tmp_path / "to", progress=False) == []


def test_files_of_another_length_are_one_clear_line(raw, tmp_path):
    def refused(match):
        with pytest.raises(UserError, match=match) as error:
            make("stl10", tmp_path / "to", raw)
        assert "\n" not in str(error.value)

    (raw / "test_y.bin").write_bytes(bytes(4))
    refused(r"test_y\.bin has 4 bytes, expected 5, one a label")
    (raw / "train_X.bin").write_bytes(bytes(1000))
    refused(r"train_X\.bin has 1,000 bytes, expected a multiple of 27,648")
    (raw / "train_X.bin").unlink()
    refused(
        r"train_X\.bin cannot be read \(No such file.*from= takes stl10_binary\.tar\.gz, its unpacked folder"
    )
    for name, images in (("train", 5000), ("test", 8000), ("unlabeled", 99_999)):  # cut between two images
        with open(raw / f"{name}_X.bin", "wb") as file:
            file.truncate(images * 3 * 96 * 96)
        if images < 10_000:
            (raw / f"{name}_y.bin").write_bytes(bytes([1]) * images)
    refused(r"unlabeled_X\.bin has 99,999 images, expected 100,000: is it whole\?")
    assert not (tmp_path / "to").exists()
