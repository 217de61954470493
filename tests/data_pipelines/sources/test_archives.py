"""Where the official archives come from: beside the data set, unpacked or not, or from the network."""

import os
import shutil
import tarfile
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest

from data_pipelines.access import Access
from data_pipelines.common.errors import UserError
from data_pipelines.remote.archive import GZIP, NotFetched, part_of
from data_pipelines.shards.make import make
from data_pipelines.shards.verify import verify
from data_pipelines.sources import archives
from tests.helpers.ranged_server import serving
from tests.helpers.served_archives import NAME, published, write_cifar10
from tests.helpers.synthetic_cifar import write_folder
from tests.helpers.synthetic_stl10 import write_stl10


@pytest.fixture
def www(tmp_path, monkeypatch):
    """A server of archives that stands for the publisher's."""
    write_cifar10(tmp_path / "www")
    with serving(tmp_path / "www") as server:
        substitute(monkeypatch, "cifar10", file=published(server.address, tmp_path / "www" / NAME))
        yield server


@pytest.fixture
def access(tmp_path):
    return Access(retry_seconds=5.0, cache=str(tmp_path / "cache"))


def substitute(monkeypatch, source, **fields):
    monkeypatch.setitem(archives.ARCHIVES, source, replace(archives.ARCHIVES[source], **fields))


def made(source, to, access, **options):
    return make(source, to, workers=1, progress=False, access=access, **options)


def test_what_is_fetched_equals_what_lies_there(www, tmp_path, access):
    to = tmp_path / "data/cifar10"
    assert archives.describe("cifar10", to, access) == (
        f"{NAME} ({www.root.joinpath(NAME).stat().st_size / 1e6:.1f} MB), fetched from "
        f"{www.address.partition('//')[2]} to {tmp_path / 'cache'}"
    )
    assert not to.parent.exists()
    fetched = made("cifar10", to, access)
    assert sorted(os.listdir(tmp_path / "cache")) == [NAME]
    assert sorted(os.listdir(to)) == [".lock", "dataset.json", "test", "train"]
    requests = len(www.requests)
    for place in ("raw/cifar-10-batches-py", "cifar-10-batches-py", f"raw/{NAME}", NAME):
        parent = tmp_path / place.replace("/", "-")
        (parent / place).parent.mkdir(parents=True)
        if place.endswith(".gz"):
            shutil.copy(www.root / NAME, parent / place)
        else:
            shutil.copytree(www.root / "unpacked/cifar-10-batches-py", parent / place)
        assert archives.describe("cifar10", parent / "cifar10", access) == f"{parent / place}"
        assert made("cifar10", parent / "cifar10", access).fingerprint == fetched.fingerprint
    assert archives.describe("cifar10", tmp_path / "other/cifar10", access) == f"{tmp_path / 'cache' / NAME}"
    assert made("cifar10", tmp_path / "other/cifar10", access).fingerprint == fetched.fingerprint
    assert len(www.requests) == requests == 1  # from the cache


def test_what_cannot_be_fetched_leaves_nothing_behind(www, tmp_path, access):
    www.spoil(NAME, "status", 404)
    (tmp_path / "mine").mkdir()
    for to in (tmp_path / "data/cifar10", tmp_path / "mine"):
        with pytest.raises(NotFetched, match=rf"404 Not Found\); download it by hand to {to.parent}/raw"):
            made("cifar10", to, access)
        www.spoil(NAME, "status", 404)
    assert not (tmp_path / "data").exists()
    assert os.listdir(tmp_path / "mine") == []  # it was there before
    assert os.listdir(tmp_path / "cache") == []


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda raw: (raw / NAME).write_bytes((raw / NAME).read_bytes()[:-9000]), "cannot be read"),
        (lambda raw: (raw / NAME).write_text("<html>Please log in</html>"), "cannot be read"),
        (lambda raw: write_folder(raw).joinpath("test_batch").unlink(), "test_batch cannot be read"),
    ],
    ids=["cut short", "a page", "a file is missing"],
)
def test_what_lies_there_but_is_damaged_is_named_and_not_fetched(www, tmp_path, access, spoil, words):
    (tmp_path / "data/raw").mkdir(parents=True)
    shutil.copy(www.root / NAME, tmp_path / "data/raw")
    spoil(tmp_path / "data/raw")
    with pytest.raises(UserError, match=words) as error:
        made("cifar10", tmp_path / "data/cifar10", access)
    assert "\n" not in str(error.value)
    assert f"{tmp_path}/data/raw" in str(error.value)
    assert not (tmp_path / "data/cifar10").exists()
    assert not www.requests


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    ("free", "there", "words"),
    [
        (449_999_999, 0, "needs 450.0 MB on the disk of .*, which has 450.0 MB left: 200.0 MB of"),
        (450_000_000, 0, ""),
        (350_000_000, 100_000_000, ""),
        (349_999_999, 100_000_000, "needs 350.0 MB .*100.0 MB of cifar-10-python"),
    ],
)
def test_room_is_looked_for_before_the_first_byte(www, tmp_path, access, monkeypatch, free, there, words):
    file = replace(archives.ARCHIVES["cifar10"].file, bytes=200_000_000)
    substitute(monkeypatch, "cifar10", file=file, made=250_000_000)
    (tmp_path / "cache").mkdir()
    if there:
        with open(part_of(tmp_path / "cache" / NAME), "wb") as part:
            part.write(GZIP)
            part.truncate(there)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: Usage(10**9, 0, free))
    with pytest.raises(UserError, match=words or "has .* bytes where") as error:  # else the server is asked
        made("cifar10", tmp_path / "data/cifar10", access)
    assert bool(www.requests) == (not words)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "data").exists()


@pytest.fixture
def stl10(tmp_path):
    """stl10_binary.tar.gz, as published."""
    folder = write_stl10(tmp_path / "published")
    with tarfile.open(tmp_path / "published/stl10_binary.tar.gz", "w:gz") as archive:
        archive.add(folder, folder.name)
    return tmp_path / "published/stl10_binary.tar.gz"


def test_stl10_is_unpacked_for_as_long_as_it_is_made(stl10, tmp_path, access, monkeypatch):
    with serving(stl10.parent) as server:
        substitute(monkeypatch, "stl10", file=published(server.address, stl10))
        fetched = made("stl10", tmp_path / "data/stl10", access)
        assert server.names() == [stl10.name]
    assert {name: split.images for name, split in fetched.splits.items()} == {
        "train": 12,
        "test": 5,
        "unlabelled": 23,
    }
    assert verify(tmp_path / "data/stl10", progress=False) == []
    assert not (tmp_path / "data/stl10/.making").exists()
    assert os.listdir(tmp_path / "cache") == [stl10.name]
    for number, from_ in enumerate((stl10, stl10.parent, stl10.parent / "stl10_binary")):
        other = made("stl10", tmp_path / f"by hand {number}", access, from_=from_)
        assert other.fingerprint == fetched.fingerprint


def test_an_stl10_archive_that_is_not_whole_is_one_line(stl10, tmp_path, access):
    whole = stl10.read_bytes()
    stl10.write_bytes(whole[:-5000])
    with pytest.raises(UserError, match=r"stl10_binary\.tar\.gz cannot be read \(") as error:
        made("stl10", tmp_path / "to", access, from_=stl10)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "to").exists()
    with tarfile.open(stl10, "w:gz") as archive:
        archive.add(stl10.parent / "stl10_binary/test_X.bin", "stl10_binary/test_X.bin")
    with pytest.raises(UserError, match=r"has no member stl10_binary/class_names\.txt"):
        made("stl10", tmp_path / "to", access, from_=stl10)
    assert not (tmp_path / "to").exists()


def test_an_interrupted_start_unpacks_stl10_once(stl10, tmp_path, access, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("data_pipelines.shards.request.open_source", interrupted)
        with pytest.raises(KeyboardInterrupt):
            made("stl10", tmp_path / "to", access, from_=stl10)
    [unpacked] = (tmp_path / "to/.making").iterdir()
    before = unpacked.stat().st_mtime_ns
    assert (
        archives.obtain("stl10", stl10, tmp_path / "to", tmp_path / "to/.making", access, False) == unpacked
    )
    assert unpacked.stat().st_mtime_ns == before
    dataset = made("stl10", tmp_path / "to", access, from_=stl10)
    assert np.sum([split.images for split in dataset.splits.values()]) == 40
    assert not (tmp_path / "to/.making").exists()
