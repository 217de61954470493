"""What is refused before an image is written leaves nothing; what has an image is kept."""

import gzip
import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from data_pipelines.common.errors import UserError
from data_pipelines.shards import make as make_module
from data_pipelines.shards.__main__ import main
from data_pipelines.shards.write import write_shard
from data_pipelines.sources.archives import ARCHIVES
from tests.helpers.synthetic_cifar import write_folder
from tests.helpers.tiny_dataset import pictures, png


def no_images(folder: Path, kind: str) -> None:
    """A source that opens, of which no image can be used."""
    folder.mkdir()
    if kind == "folder":
        (folder / "a.png").write_bytes(b"not an image")
        (folder / "b.png").write_bytes(b"")
        return
    for number in range(2):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for key in ("a", "b"):
                member = tarfile.TarInfo(f"{key}{number}.png")
                member.size = 5 if kind == "wds" else 10**6
                tar.addfile(member, io.BytesIO(bytes(member.size)))
        if kind == "cut short":
            os.truncate(folder / f"{number}.tar", 3000)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", ["folder", "wds", "cut short"])
@pytest.mark.parametrize("there", [False, True])
def test_what_is_refused_before_an_image_is_written_leaves_room_for_another(
    tmp_path, capsys, kind, workers, there
):
    if workers == 2 and (kind, there) != ("wds", False):
        pytest.skip("two workers take seconds to start")
    no_images(tmp_path / "raw", kind)
    to = tmp_path / "new" / "data"
    if there:
        to.mkdir(parents=True)
    source = "folder" if kind == "folder" else "wds"
    command = [f"source={source}", f"from={tmp_path}/raw", f"to={to}", f"workers={workers}"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert list(tmp_path.rglob("new/**/*")) == [to] * there  # a folder that was there stays
    (tmp_path / "other").mkdir()
    for number in range(40):
        (tmp_path / "other" / f"{number}.png").write_bytes(png(pictures(1, 8, 8)[0]))
    assert main(["source=folder", f"from={tmp_path}/other", f"to={to}", "workers=1"]) == 0


def test_what_has_an_image_is_kept_when_the_rest_is_refused(tmp_path, capsys, monkeypatch):
    """And shards that were there before are never taken for those of a refused start."""
    raw, to = write_folder(tmp_path), tmp_path / "to"
    command = ["source=cifar10", f"from={raw}", f"to={to}", "shard=20", "workers=1"]

    def full(chunk, root, name, classes):
        if name == "train/000001.tar":
            raise UserError("the disk is full")
        return write_shard(chunk, root, name, classes)

    with monkeypatch.context() as patch:
        patch.setattr(make_module, "write_shard", full)
        assert main(command) == 2
    assert (to / ".making/plan.json").exists()
    kept = (to / "train/000000.tar").stat().st_mtime_ns
    assert main(command) == 0
    assert (to / "train/000000.tar").stat().st_mtime_ns == kept
    (to / "train/000002.tar").unlink()  # lost, of a finished data set
    with monkeypatch.context() as patch:
        patch.setattr(make_module, "write_shard", lambda *_: full(None, None, "train/000001.tar", 0))
        assert main(command) == 2
    assert (to / "train/000000.tar").stat().st_mtime_ns == kept
    assert main(command) == 0
    assert "error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "content"),
    [
        ("cifar10", b"no gzip"),
        ("cifar100", gzip.compress(b"no tar", mtime=0)),
        ("cifar10", b""),
        ("stl10", gzip.compress(b"no tar", mtime=0)),
    ],
    ids=["no gzip", "no tar", "empty", "no tar of STL-10"],
)
def test_a_wrong_archive_that_lies_there_is_compared_with_the_published_one(
    tmp_path, capsys, source, content
):
    published = ARCHIVES[source].file
    archive = tmp_path / "raw" / published.name
    archive.parent.mkdir()
    archive.write_bytes(content)
    assert main([f"source={source}", f"to={tmp_path / 'data'}"]) == 2
    error = capsys.readouterr().err
    digest = hashlib.md5(content).hexdigest()
    way_out = f"{archive} has md5 {digest}, expected {published.md5}: remove it and it is fetched\n"
    assert error.endswith(way_out)
    assert error.count("\n") == 1
    assert not (tmp_path / "data").exists()
    assert main([f"source={source}", f"to={tmp_path / 'data'}", f"from={archive}"]) == 2
    assert "is fetched" not in capsys.readouterr().err  # it was named
