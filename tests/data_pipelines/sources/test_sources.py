"""The sources read what is published, in every layout, and nothing else."""

import functools
import io
import pickle
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from data_pipelines.common.errors import UserError
from data_pipelines.sources import cifar
from data_pipelines.sources.catalog import open_source
from tests.helpers.synthetic_cifar import BATCHES, CLASSES, python2_pickle, write_archive, write_folder


def test_digits_are_split_by_class_and_encoded_without_loss():
    source = open_source("digits")
    train, test = source.splits["train"], source.splits["test"]
    assert (len(train), len(test)) == (1438, 359)
    for label in range(10):
        counts = [np.count_nonzero(part.labels == label) for part in (train, test)]
        assert counts[1] / sum(counts) == pytest.approx(0.2, abs=0.005)
    both = {image.tobytes() for image in train.images} & {image.tobytes() for image in test.images}
    assert not both  # no image is in both splits
    assert (train.images.min(), train.images.max()) == (0, 255)
    sample = next(test.samples())
    assert (sample.key, sample.label) == ("test_00000", test.labels[0])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(sample.load().encoded))), test.images[0])
    assert np.array_equal(sample.load().values[:, :, 1], test.images[0])


@pytest.mark.parametrize("layout", ["folder", "parent", "archive"])
def test_cifar_layouts_give_the_same_images(tmp_path, layout):
    folder = write_folder(tmp_path / "raw")
    from_ = {"folder": folder, "parent": tmp_path / "raw"}.get(layout)
    if layout == "archive":
        from_ = write_archive(folder, tmp_path / "cifar-10-python.tar.gz")
        shutil.rmtree(folder)
    before = sorted(tmp_path.rglob("*"))
    source = open_source("cifar10", from_)
    assert sorted(tmp_path.rglob("*")) == before  # nothing was extracted
    assert source.classes == [name.decode() for name in CLASSES]
    rows = np.random.default_rng(0).integers(0, 256, (5, 12, 3072), dtype=np.uint8).reshape(60, 3, 32, 32)
    assert np.array_equal(source.splits["train"].images, rows.transpose(0, 2, 3, 1))
    assert source.splits["train"].labels.tolist() == 5 * [i % 10 for i in range(12)]
    assert len(source.splits["test"]) == 12
    sample = list(source.splits["train"].chunks(50)[1].samples())[3]
    assert (sample.key, sample.label) == ("train_00053", 53 % 12 % 10)
    kind, encoded, values = sample.load()
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encoded))), rows[53].transpose(1, 2, 0))
    assert np.array_equal(values, rows[53].transpose(1, 2, 0))
    assert kind == "png"


def write_cifar100(parent, changes=None, count=20):
    """parent/cifar-100-python with `count` images a file."""
    folder = parent / "cifar-100-python"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("train", "test"):
        batch = {
            b"filenames": [b"x.png"] * count,
            b"fine_labels": [99 - i for i in range(count)],
            b"coarse_labels": [0] * count,
            b"data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
        }
        (folder / name).write_bytes(python2_pickle({**batch, **(changes or {})}))
    meta = {b"fine_label_names": [b"fine_%d" % i for i in range(100)], b"coarse_label_names": [b"coarse"]}
    (folder / "meta").write_bytes(python2_pickle(meta))
    return folder


def test_cifar100_has_its_fine_labels(tmp_path):
    folder = write_cifar100(tmp_path)
    with tarfile.open(tmp_path / "cifar-100-python.tar.gz", "w:gz") as archive:
        archive.add(folder, folder.name)
    rows = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8).reshape(-1, 3, 32, 32)
    for from_ in (folder, tmp_path, tmp_path / "cifar-100-python.tar.gz"):
        source = open_source("cifar100", from_)
        assert source.classes == [f"fine_{i}" for i in range(100)]
        assert source.splits["train"].labels.tolist() == list(range(99, 79, -1))
        assert np.array_equal(source.splits["train"].images, rows.transpose(0, 2, 3, 1))
        assert len(source.splits["test"]) == 20
    with pytest.raises(
        UserError, match=r"has no member cifar-10-batches-py/batches.meta; from= takes cifar-10-"
    ):
        open_source("cifar10", tmp_path / "cifar-100-python.tar.gz")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({b"fine_labels": [0] * 19}, r"train: data is uint8 \(20, 3072\), expected uint8 \(19, 3072\)"),
        ({b"fine_labels": b"none"}, r"train: fine_labels are not all whole numbers"),
        ({b"data": np.zeros((20, 3000), np.uint8)}, r"train: data is uint8 \(20, 3000\)"),
    ],
)
def test_wrong_cifar100_files_are_one_clear_line(tmp_path, changes, line):
    with pytest.raises(UserError, match=rf"{line}.*is this CIFAR-100\?"):
        open_source("cifar100", write_cifar100(tmp_path, changes))


def test_every_way_of_pickling_a_batch_is_read_alike(tmp_path):
    ways = {
        "python2": python2_pickle,
        "protocol2": functools.partial(pickle.dumps, protocol=2),
        "protocol4": functools.partial(pickle.dumps, protocol=4),
        "bytes": lambda batch: pickle.dumps({**batch, b"data": batch[b"data"].tobytes()}, protocol=4),
        "fortran": lambda batch: pickle.dumps({**batch, b"data": np.asfortranarray(batch[b"data"])}, 2),
    }
    read = {way: cifar.read(write_folder(tmp_path / way, dump=dump)) for way, dump in ways.items()}
    for way in ways:
        for split in ("train", "test"):
            assert np.array_equal(read[way][1][split][0], read["python2"][1][split][0]), (way, split)
            assert np.array_equal(read[way][1][split][1], read["python2"][1][split][1]), (way, split)
    # The hand-made Python 2 form is one: the unrestricted reader agrees.
    batch = pickle.loads((tmp_path / "python2/cifar-10-batches-py/test_batch").read_bytes(), encoding="bytes")
    images = batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    assert np.array_equal(images, read["bytes"][1]["test"][0])


class Runs:
    """What a malicious pickle looks like: a call of any function by its name."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def object_array():
    return np.array([{"a": 1}, "b"], dtype=object)


@pytest.mark.parametrize("where", ["data_batch_2", "batches.meta"])
def test_a_pickle_that_calls_something_is_refused(tmp_path, where):
    folder = write_folder(tmp_path)
    mark = tmp_path / "was-run"
    (folder / where).write_bytes(pickle.dumps({b"data": Runs(open, str(mark), "w")}, protocol=2))
    with pytest.raises(UserError, match=rf"{where} cannot be read \(it asks for '(builtins|io|_io)\.open'"):
        open_source("cifar10", folder)
    assert not mark.exists()


@pytest.mark.parametrize(
    "value",
    [
        Runs(eval, "1"),
        Runs(getattr, 1, "real"),
        Runs(np.dtype, "O"),
        Runs(bytearray, 10),
        object_array(),
        np.zeros((12, 3072), np.int64),
        np.zeros((11, 3072), np.uint8),
        b"short",
        None,
    ],
    ids=["eval", "getattr", "dtype", "bytearray", "objects", "int64", "rows", "short", "none"],
)
def test_data_that_is_no_cifar_batch_is_one_clear_line(tmp_path, value):
    folder = write_folder(tmp_path)
    (folder / "data_batch_3").write_bytes(pickle.dumps({b"data": value, b"labels": [0] * 12}, protocol=4))
    with pytest.raises(UserError, match=r"data_batch_3.*is this CIFAR-10\?") as error:
        open_source("cifar10", folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("labels", [None, [0] * 11, [0.5] * 12, [1 << 40] * 12, [True] * 12])
def test_labels_are_checked(tmp_path, labels):
    folder = write_folder(tmp_path)
    batch = {b"data": np.zeros((12, 3072), np.uint8), b"labels": labels}
    (folder / "test_batch").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(UserError, match="test_batch: labels are not 12 whole numbers"):
        open_source("cifar10", folder)


def test_damaged_and_missing_files_are_named(tmp_path):
    folder = write_folder(tmp_path / "raw")
    whole = (folder / "data_batch_4").read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"\x00" * 100, b"not a pickle at all\n"):
        (folder / "data_batch_4").write_bytes(damaged)
        with pytest.raises(UserError, match="data_batch_4 cannot be read"):
            open_source("cifar10", folder)
    (folder / "data_batch_4").unlink()
    with pytest.raises(UserError, match=r"data_batch_4 cannot be read \(No such file"):
        open_source("cifar10", tmp_path / "raw")
    (tmp_path / "empty").mkdir()
    for missing in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"cannot be read \(No such file.*from= takes cifar-10-python"):
            open_source("cifar10", missing)


def test_wrong_archives_are_one_clear_line(tmp_path):
    folder = write_folder(tmp_path)
    whole = write_archive(folder, tmp_path / "whole.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.tar.gz").write_text("<html>not found</html>")
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz") as archive:
        archive.add(folder, "cifar-100-python")
    with tarfile.open(tmp_path / "links.tar.gz", "w:gz") as archive:
        for name in [*BATCHES, "batches.meta"]:
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.type, member.linkname = tarfile.SYMTYPE, str(folder / name)
            archive.addfile(member)
    for name, why in (
        ("cut", "cannot be read"),
        ("text", "cannot be read"),
        ("other", "has no member cifar-10-batches-py/batches.meta"),
        ("links", "has no member cifar-10-batches-py/batches.meta"),
    ):
        with pytest.raises(UserError, match=f"{name}.tar.gz {why}.*from= takes") as error:
            open_source("cifar10", tmp_path / f"{name}.tar.gz")
        assert "\n" not in str(error.value)


def test_unknown_source_and_needless_from():
    with pytest.raises(UserError, match="did you mean 'cifar10'"):
        open_source("cifar")
    with pytest.raises(UserError, match="test_percent=5: source=cifar10 has no use for it"):
        open_source("cifar10", test_percent=5)
    for source in ("cifar10", "cifar100", "stl10", "folder", "wds"):
        with pytest.raises(UserError, match="from= is missing"):
            open_source(source)
    with pytest.raises(UserError, match="leave from= out"):
        open_source("digits", "data/raw")
