"""Which files are tars and which splits they are of, or a line that says what is amiss with them."""

import os

import pytest

from data_pipelines.common.errors import UserError
from data_pipelines.sources.catalog import open_source
from tests.data_pipelines.sources.test_tars import ALL, PICTURES, labelled, left_out, made, taken, tar_bytes


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["val-000.tar"], "has val but no train; give the folder above them, or rename val-000.tar if"),
        (["test/0.tar", "test/1.tar"], "has test but no train"),
        (["trainset-0.tar", "testset-0.tar"], "would be read as one split; name splits test and train"),
        (["trainimages/0.tar", "a.tar", "valimages/0.tar"], "name splits train and val"),
        (["testset.tar"], "testset.tar would be read as one split; name splits test"),
    ],
)
def test_tars_without_a_train_or_with_names_near_to_splits_are_refused(tmp_path, names, words):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=words) as error:
        open_source("wds", tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("link", ["b.tar", "deep/b.tar", "val"])
def test_links_to_tars_that_are_gone_are_refused(tmp_path, link):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/a.tar").write_bytes(tar_bytes(labelled(range(3))))
    (tmp_path / "deep/notes.txt").symlink_to("gone")
    assert set(open_source("wds", tmp_path).splits) == {"train", "test"}
    (tmp_path / link).symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=f"{link} is a link to nothing; mend it, or remove it if unused"):
        open_source("wds", tmp_path)
    if link == "b.tar":
        with pytest.raises(UserError, match=r"b\.tar is a link to nothing"):
            open_source("wds", tmp_path / "*.tar")


def test_a_folder_of_tars_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    for name in ("train/0.tar", "val/0.tar"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(tar_bytes(labelled(range(3))))
    scandir = os.scandir

    def scan(path):
        if str(path) == str(tmp_path / "val"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(UserError, match=r"/val cannot be read \(Permission denied\); let it be read, or"):
        open_source("wds", tmp_path)


def test_folders_in_a_tar_that_are_named_after_splits_are_said(tmp_path):
    members = {"train/cat/0.png": PICTURES[0], "val/cat/1.png": PICTURES[1], "train/cat/2.png": PICTURES[2]}
    dataset = made(tmp_path, a=tar_bytes(members))
    assert len(taken(dataset)) == 3
    ((member, why),) = left_out(dataset)
    assert (member, why.partition(";")[0]) == ("a.tar", "its folders train, val are not read as splits")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"PK\3\4" + bytes(600), "a zip archive; unpack it"),
        (b"\n<!DOCTYPE html><html>not here</html>" + b"x" * 5000, "a web page, as a download that failed"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"PAR1" + b"x" * 2000, "a Parquet file"),
    ],
)
def test_another_file_named_as_a_tar_is_said_to_be_one(tmp_path, data, what):
    dataset = made(tmp_path, a=tar_bytes(labelled(range(3))), b=data)
    assert taken(dataset) == ALL[:3]
    ((member, why),) = left_out(dataset)
    assert member == "b.tar"
    assert why.startswith(f"it is not a whole tar file ({what}")
