"""Streamed features, and the statistics of training images that are kept in a folder."""

import os
from dataclasses import replace

import pytest
import torch

from data_pipelines.common import files
from data_pipelines.common.errors import SharedError
from data_pipelines.image_options import ImageOptions
from data_pipelines.reader import Reader
from data_pipelines.views import Normalize
from tests.helpers.tiny_dataset import pictures, write_dataset
from tests.helpers.tiny_extractors import CPU, Linear
from trainer.evaluation import feature_statistics as module
from trainer.evaluation.distances import Moments
from trainer.evaluation.feature_statistics import PIECES, Reference, feature_statistics, pieces
from trainer.evaluation.image_sources import InMemory, Split

COUNT, SIDE, WIDTH = 90, 8, 5
IDENTITY = {"data": "fingerprint", "split": "train", "ids": "digest", "size": SIDE}


@pytest.fixture(scope="module")
def source():
    return InMemory("train", torch.from_numpy(pictures(COUNT, SIDE, SIDE)).permute(0, 3, 1, 2))


@pytest.fixture
def extractor():
    return Linear(WIDTH, SIDE)


def equal(one, two) -> bool:
    moments = [getattr(one.moments, name) for name in ("mean", "scatter")]
    others = [getattr(two.moments, name) for name in ("mean", "scatter")]
    same = all(map(torch.equal, moments, others)) and one.images == two.images
    rows = (one.rows, two.rows)
    return same and (rows == (None, None) or torch.equal(*rows))


@pytest.mark.parametrize(("count", "batch"), [(1, 7), (7, 7), (8, 7), (50_000, 250), (5_000, 250), (640, 1)])
def test_pieces_hold_every_image_once(count, batch):
    cut = pieces(count, batch)
    assert [image for first, n in cut for image in range(first, first + n)] == list(range(count))
    assert len(cut) <= PIECES
    assert all(n >= min(batch, count) for _, n in cut[:-1])


def test_streamed_moments_are_those_of_all_rows(source, extractor):
    found = feature_statistics(source, extractor, 80, 7, keep=True)
    assert torch.allclose(found.rows, extractor(source.pixels[:80]), rtol=1e-12, atol=1e-12)
    expected = Moments.of(found.rows)
    assert torch.allclose(found.moments.mean, expected.mean, rtol=1e-12)
    assert torch.allclose(found.moments.covariance(), expected.covariance(), rtol=1e-10)


def test_no_row_is_kept_where_only_moments_are_wanted_but_of_few_images(source):
    assert feature_statistics(source, Linear(WIDTH, SIDE), COUNT, 7, keep=False).rows is None
    few = feature_statistics(source, Linear(COUNT + 1, SIDE), COUNT, 7, keep=False)
    assert few.rows.shape == (COUNT, COUNT + 1)


@pytest.mark.parametrize("keep", [False, True])
def test_what_is_kept_is_read_to_the_same_bits_and_extracted_once(tmp_path, source, extractor, keep):
    reference = Reference(source, IDENTITY, tmp_path / "cache")
    lines = []
    made = reference.statistics(extractor, 1000, 7, keep, lines.append)
    images = extractor.images
    read = reference.statistics(extractor, COUNT, 7, keep, lines.append)
    assert extractor.images == images
    assert equal(made, read)
    assert equal(made, Reference(source, IDENTITY).statistics(extractor, COUNT, 7, keep, lines.append))
    assert lines == []
    (file,) = (tmp_path / "cache").iterdir()
    assert file.suffix == ".safetensors"


def test_moments_alone_are_not_enough_where_rows_are_wanted(tmp_path, source, extractor):
    reference = Reference(source, IDENTITY, tmp_path)
    reference.statistics(extractor, COUNT, 7, False, print)
    assert reference.statistics(extractor, COUNT, 7, True, print).rows.shape == (COUNT, WIDTH)
    images = extractor.images
    assert reference.statistics(extractor, COUNT, 7, True, print).rows is not None
    assert extractor.images == images  # the file has the rows now


def test_other_data_images_or_extractors_are_other_files(tmp_path, source, extractor):
    Reference(source, IDENTITY, tmp_path).statistics(extractor, COUNT, 7, True, print)
    others = [
        (Reference(source, IDENTITY | {"split": "test"}, tmp_path), extractor, COUNT),
        (Reference(source, IDENTITY | {"data": "other"}, tmp_path), extractor, COUNT),
        (Reference(source, IDENTITY, tmp_path), extractor, COUNT - 1),
        (Reference(source, IDENTITY, tmp_path), Linear(WIDTH, SIDE, "other"), COUNT),
        (Reference(source, IDENTITY, tmp_path), Linear(WIDTH, SIDE, seed=1), COUNT),
    ]
    for number, (reference, other, count) in enumerate(others):
        reference.statistics(other, count, 7, True, print)
        assert len(list(tmp_path.iterdir())) == number + 2


def test_the_identity_of_a_split_is_all_that_its_images_depend_on(tmp_path):
    datasets = [write_dataset(tmp_path / str(n), pictures(n, SIDE, SIDE), 10) for n in (20, 21)]
    options = ImageOptions(SIDE, Normalize(), 1, CPU)
    with Reader(datasets[0], "train") as reader, Reader(datasets[1], "train") as other:
        split = Split.sampled("train", reader, 12, 0, options, 8)
        identity = Reference.of_split(split, None).identity
        assert identity == Reference.of_split(replace(split, name="other", batch=4), None).identity
        changed = [
            replace(split, reader=other),
            Split.sampled("train", reader, 12, 1, options, 8),
            Split.sampled("train", reader, 11, 0, options, 8),
            replace(split, options=replace(options, size=4)),
            replace(split, options=replace(options, decode="fast")),
        ]
        keys = {str(Reference.of_split(one, None).identity) for one in changed}
    assert len(keys) == len(changed)
    assert str(identity) not in keys
    assert Split.sampled("train", reader, 99, 0, options, 8).count == 20


def damage(data: bytes, how: str) -> bytes:
    if how == "cut":
        return data[: len(data) // 2]
    if how == "flipped":
        return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
    return {"empty": b"", "other": b"not a file of tensors" * 9}[how]


@pytest.mark.parametrize("how", ["cut", "flipped", "empty", "other"])
def test_a_damaged_file_is_made_anew(tmp_path, source, extractor, how):
    reference, lines = Reference(source, IDENTITY, tmp_path), []
    made = reference.statistics(extractor, COUNT, 7, True, lines.append)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes(), how))
    assert equal(made, reference.statistics(extractor, COUNT, 7, True, lines.append))
    assert lines == [f"warning: {file} is damaged; the reference statistics are made anew"]
    images = extractor.images
    assert equal(made, reference.statistics(extractor, COUNT, 7, True, lines.append))
    assert (extractor.images, len(lines), list(tmp_path.iterdir())) == (images, 1, [file])  # whole again


def test_a_file_under_the_name_of_another_is_not_taken_for_it(tmp_path, source, extractor):
    Reference(source, IDENTITY, tmp_path / "a").statistics(extractor, COUNT, 7, True, print)
    other = Reference(source, IDENTITY | {"split": "test"}, tmp_path / "b")
    expected = other.statistics(extractor, 50, 7, True, print)
    (a,), (b,) = (list((tmp_path / name).iterdir()) for name in "ab")
    b.write_bytes(a.read_bytes())
    assert equal(other.statistics(extractor, 50, 7, True, lambda line: None), expected)


def test_a_writer_that_was_killed_leaves_no_half_file_under_the_name(tmp_path, source, extractor):
    reference = Reference(source, IDENTITY, tmp_path)
    expected = Reference(source, IDENTITY).statistics(extractor, COUNT, 7, True, print)
    if (child := os.fork()) == 0:
        files.flush = lambda path: os._exit(9)  # it has been written, and is not on the disk yet
        reference.statistics(extractor, COUNT, 7, True, print)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not list(tmp_path.glob("*.safetensors"))
    assert equal(reference.statistics(extractor, COUNT, 7, True, print), expected)


def test_a_folder_that_cannot_be_made_or_lacks_room(tmp_path, source, extractor):
    (tmp_path / "file").write_text("")
    reference = Reference(source, IDENTITY, tmp_path / "file")
    with pytest.raises(SharedError, match=r"cannot write .*choose another place with `evaluate.cache=`"):
        reference.statistics(extractor, COUNT, 7, True, print)
    with pytest.raises(module.UserError, match=r"take up to 1\.64e\+07 GB, and .* left; make room there"):
        module._check_room(tmp_path / "x.safetensors", 10**12, 2048)
    ruined = replace(reference, folder=tmp_path / "fine")
    ruined.statistics(extractor, COUNT, 7, True, print)
    assert len(list((tmp_path / "fine").iterdir())) == 1
