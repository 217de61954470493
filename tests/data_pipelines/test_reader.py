"""Random access to shards, and one line for whatever may be wrong with them."""

import os
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipelines import reader as reader_module
from data_pipelines.common.errors import UserError
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.reader import Reader
from tests.helpers.tiny_dataset import pictures, png, write_dataset, write_samples


@pytest.fixture
def root(digits, tmp_path) -> Path:
    """A copy of the digits that a test may damage."""
    return Path(shutil.copytree(digits.root, tmp_path / "data"))


def members(dataset, split: str) -> list[tuple[str, bytes, int]]:
    """(key, PNG, label) of every sample in order, read by tarfile alone."""
    samples = []
    for shard in dataset.splits[split].shards:
        with tarfile.open(dataset.root / shard.name) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}
        keys = [name[:-4] for name in files if name.endswith(".png")]
        samples += [(key, files[key + ".png"], int(files[key + ".cls"])) for key in keys]
    return samples


@pytest.mark.parametrize("split", ["train", "test"])
def test_samples_are_the_tars_members_in_any_order(digits, split):
    expected, reader = members(digits, split), Reader(digits, split)
    assert reader.images == len(expected) == digits.splits[split].images
    order = np.random.default_rng(0).permutation(reader.images)
    for ids in (order, order[:1], np.array([0, 0, reader.images - 1, 0])):
        entries = reader.entries(ids)
        for sample, image, entry in zip(ids, reader.read(ids), entries, strict=True):
            assert image.dtype == np.uint8
            assert (image.tobytes(), entry["label"]) == expected[sample][1:]
            assert (entry["height"], entry["width"]) == (8, 8)
    for sample in order[:5]:
        assert reader.describe(sample).startswith(f"{expected[sample][0]}.png in {digits.root / split}")
    assert reader.read(np.array([], np.int64)) == []
    reader.close()


def handles() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_open_files_are_bounded(tmp_path):
    dataset = write_dataset(tmp_path, pictures(300, 8, 8), per_shard=2)
    assert len(dataset.splits["train"].shards) == 150
    expected, reader, before = members(dataset, "train"), Reader(dataset, "train"), handles()
    for ids in np.array_split(np.random.default_rng(0).permutation(reader.images), 20):
        assert [image.tobytes() for image in reader.read(ids)] == [expected[sample][1] for sample in ids]
        assert handles() - before <= reader_module.OPEN_SHARDS
    assert handles() - before == reader_module.OPEN_SHARDS
    reader.close()
    assert handles() == before
    assert reader.read(np.array([5]))[0].tobytes() == expected[5][1]  # opened again when asked again
    reader.close()


def test_threads_may_share_a_reader(digits, monkeypatch):
    """Training and evaluation do; with few handles, one closes what the other is about to read."""
    monkeypatch.setattr(reader_module, "OPEN_SHARDS", 2)
    expected, reader = members(digits, "train"), Reader(digits, "train")

    def reads_right(seed: int) -> bool:
        orders = np.random.default_rng(seed).integers(0, reader.images, (20, 300))
        return all(
            image.tobytes() == expected[sample][1]
            for ids in orders
            for sample, image in zip(ids, reader.read(ids), strict=True)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(reads_right, range(8)))
    reader.close()


def test_long_indices_are_read_in_parts(digits, monkeypatch):
    order = np.random.default_rng(0).permutation(1438)
    reader = Reader(digits, "train")
    whole = reader.entries(order)
    reader.close()
    for rows in (1, 7, 499, 500):
        monkeypatch.setattr(reader_module, "INDEX_ROWS", rows)
        reader = Reader(digits, "train")
        assert np.array_equal(reader.entries(order), whole)
        reader.close()


def two_splits() -> dict[str, list]:
    images = [png(image) for image in pictures(25, 8, 8)]
    samples = [(image, 8, 8, i % 10) for i, image in enumerate(images)]
    unlabelled = [(*sample[:3], -1) for sample in samples[9:]]
    return {"train": samples[:9], "unlabelled": unlabelled}


def test_joined_splits_are_read_one_after_the_other(tmp_path):
    samples = two_splits()
    dataset = write_samples(tmp_path, samples, 4)
    for order in (["train", "unlabelled"], ["unlabelled", "train"], ["unlabelled"]):
        expected = [sample for name in order for sample in samples[name]]
        reader = Reader(dataset, "+".join(order))
        assert reader.images == sum(reader.shards) == len(expected)
        ids = np.random.default_rng(0).permutation(reader.images)
        assert [image.tobytes() for image in reader.read(ids)] == [expected[i][0] for i in ids]
        assert reader.entries(ids)["label"].tolist() == [expected[i][3] for i in ids]
        assert reader.describe(0).endswith(f".png in {tmp_path / order[0] / '000000.tar'}")
        assert f" in {tmp_path / order[-1]}/" in reader.describe(reader.images - 1)
        reader.close()


def test_a_joined_split_that_is_wrong_is_named(tmp_path):
    dataset = write_samples(tmp_path, {**two_splits(), "none": []}, 4)
    for split, message in {
        "train+valid": "no split 'valid'; it has train, unlabelled, none",
        "train+": "no split ''",
        "train+none": "the split 'none' has no images",
        "train+unlabelled+train": "names a split twice",
    }.items():
        with pytest.raises(UserError, match=message):
            Reader(dataset, split)
    reader = Reader(dataset, "train+unlabelled")
    (tmp_path / "unlabelled/000001.tar").unlink()
    with pytest.raises(UserError, match=r"unlabelled/000001.tar cannot be read"):
        reader.read(np.arange(reader.images))
    reader.close()


def test_a_tar_may_lie_elsewhere(tmp_path):
    samples = {"train": two_splits()["train"]}
    dataset = write_samples(tmp_path / "data", samples, 4)
    for path in ("../tars/a.tar", str(tmp_path / "tars/b.tar")):
        shard = dataset.splits["train"].shards[1]
        (tmp_path / "tars").mkdir(exist_ok=True)
        target = dataset.root / path
        target.write_bytes((dataset.root / shard.name).read_bytes())
        shards = (dataset.splits["train"].shards[0], replace(shard, path=path))
        split = replace(dataset.splits["train"], images=8, shards=shards)
        reader = Reader(replace(dataset, splits={"train": split}), "train")
        assert reader.read(np.array([5]))[0].tobytes() == samples["train"][5][0]
        assert reader.describe(5) == f"000005.png in {dataset.root / path}"
        reader.close()


# ---- what may be wrong -------------------------------------------------------------------------------


def refusal(root: Path, damage, ids=range(1400)) -> str:
    """The line that a reader answers when shards were damaged after the data set was loaded."""
    reader = Reader(load_dataset(root), "train")
    damage()
    with pytest.raises(UserError) as error:
        reader.read(np.array(ids))
    reader.close()
    assert "\n" not in str(error.value)
    assert f"python -m data_pipelines.shards verify {root}" in str(error.value)
    return str(error.value)


def test_a_split_that_is_not_there(digits):
    with pytest.raises(UserError, match="no split 'valid'; it has train, test"):
        Reader(digits, "valid")


def test_a_shard_that_vanished(root):
    shard = root / "train/000001.tar"
    assert refusal(root, shard.unlink).startswith(f"{shard} cannot be read (No such file")


def test_a_shard_that_was_cut_short_while_open(root):
    shard = root / "train/000002.tar"
    message = refusal(root, lambda: os.truncate(shard, 1000))
    assert message.startswith(f"{shard}: ends before byte ")


def test_a_missing_index(root):
    index = root / "train/000000.npy"
    assert refusal(root, index.unlink).startswith(f"{index}: the shard's index cannot be read")


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"no index at all",
        np.lib.format.MAGIC_PREFIX + b"\x01\x00",
        "half",
        np.zeros(499, reader_module.INDEX),
        np.zeros((500, 2), reader_module.INDEX),
        np.zeros(500, np.int64),
        np.array([{"a": "pickle"}] * 500, dtype=object),
    ],
    ids=["empty", "text", "header", "half", "short", "shape", "type", "pickle"],
)
def test_a_broken_index(root, broken):
    index = root / "train/000001.npy"

    def damage():
        if isinstance(broken, np.ndarray):
            np.save(index, broken, allow_pickle=True)
        else:
            index.write_bytes(index.read_bytes()[:9000] if broken == "half" else broken)

    assert refusal(root, damage).startswith(f"{index}: ")
