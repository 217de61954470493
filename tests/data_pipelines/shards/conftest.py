"""A small CIFAR-like data set: its archive's folder, its shards, and a copy of them to damage."""

import shutil
from pathlib import Path

import pytest

from data_pipelines.shards.make import make
from tests.helpers.synthetic_cifar import write_folder


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("raw"), per_batch=30)


@pytest.fixture(scope="module")
def untouched(raw, tmp_path_factory) -> Path:
    to = tmp_path_factory.mktemp("untouched")
    make("cifar10", to, raw, images_per_shard=60, workers=1, progress=False)
    return to


@pytest.fixture
def made(untouched, tmp_path) -> Path:
    """A small data set: train 150 images in 3 shards, test 30 in 1."""
    return shutil.copytree(untouched, tmp_path / "made")
