import errno
import json
import os
import resource
import stat
from contextlib import contextmanager

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from data_pipelines.common.errors import UserError
from data_pipelines.common.files import replace_text
from tests.helpers.checkpoint_states import edit, flip, keep_in_use, refuse, same, save, state
from trainer.checkpoints.load import load, newest
from trainer.checkpoints.retention import clean
from trainer.checkpoints.save import Snapshot, snapshot, write
from trainer.distributed.rows import TensorShard
from trainer.exports.encoder import export

# ---- what stays and what goes ----------------------------------------------------------------------


def visible(folder):
    return [int(name.removeprefix("images-")) for name in sorted(os.listdir(folder))]


def test_the_newest_by_images_are_kept_whatever_their_times(tmp_path):
    for images in (900, 1000, 1100):
        os.utime(save(tmp_path, images), (5000 - images, 5000 - images))
    save(tmp_path, 1200, keep=3)
    assert visible(tmp_path) == [1000, 1100, 1200]
    save(tmp_path, 1300, keep=1)
    assert visible(tmp_path) == [1300]


def test_a_damaged_later_one_never_pushes_out_what_is_good(tmp_path):
    edit(save(tmp_path, 900) / "manifest.json", flip(5))
    save(tmp_path, 100, keep=1)
    save(tmp_path, 200, keep=1)
    assert visible(tmp_path) == [200, 900]
    assert newest(tmp_path, lambda _: None).images == 200
    save(tmp_path, 900, keep=1)
    assert visible(tmp_path) == [900]
    assert same(load(newest(tmp_path, refuse)), state(900))


def test_saving_the_same_images_again_keeps_what_is_whole(tmp_path):
    before = os.stat(save(tmp_path, world=2)).st_ino
    assert os.stat(save(tmp_path, world=3, attempt="b")).st_ino == before
    assert visible(tmp_path) == [100]
    (tmp_path / "images-000000000100" / "part-00001-of-00002.safetensors").unlink()
    assert os.stat(save(tmp_path, world=3, attempt="c")).st_ino != before
    assert same(load(newest(tmp_path, refuse)), state())
    assert visible(tmp_path) == [100]


def test_clean_removes_leftovers_only(tmp_path):
    path = save(tmp_path)
    for leftover in (".images-000000000200.old.partial", ".images-000000000050.removing"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "part-00000-of-00001.safetensors").write_bytes(b"torn")
    (tmp_path / ".keep").touch()
    assert newest(tmp_path, refuse).path == path
    clean(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".keep", path.name]
    clean(tmp_path / "nowhere")


def test_a_leftover_that_resists_is_told_and_left(tmp_path, monkeypatch, capsys):
    for name in ("a", "b"):
        leftover = tmp_path / f".images-000000000200.{name}.partial"
        leftover.mkdir()
        for part in (".nfs0001", "part-00000-of-00001.safetensors"):
            (leftover / part).write_bytes(b"torn")
    path = save(tmp_path)
    with monkeypatch.context() as patch:
        keep_in_use(patch, ".nfs0001")
        clean(tmp_path)
        lines = []
        clean(tmp_path, lines.append)
    err = capsys.readouterr().err.splitlines()
    assert err == [f"warning: {line}" for line in lines]
    assert len(lines) == 2
    assert "a.partial (Device or resource busy)" in lines[0]
    assert [path.name for path in sorted(tmp_path.glob(".*/*"))] == 2 * [".nfs0001"]  # the rest made room
    clean(tmp_path, refuse)
    assert os.listdir(tmp_path) == [path.name]


# ---- what goes wrong while saving ------------------------------------------------------------------


@contextmanager
def no_file_beyond(size: int):
    """A disk with little room: the operating system refuses to let a file grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("big", [0, 1])
def test_a_full_disk_is_one_line_and_leaves_the_older_checkpoint_alone(tmp_path, big):
    save(tmp_path)
    rows = [torch.zeros(1), torch.zeros(1)]
    rows[big] = torch.zeros(1 << 20)
    shares = [Snapshot(r, 2, {f"w{r}": TensorShard(tuple(rows[r].shape), 0, rows[r])}) for r in range(2)]
    with no_file_beyond(1 << 20), pytest.raises(UserError) as error:
        save(tmp_path, 200, keep=1, shares=shares)
    assert f"cannot write {tmp_path}: " in str(error.value)
    assert "File too large" in str(error.value)
    assert ("rank 1" in str(error.value)) == (big == 1)
    assert "\n" not in str(error.value)
    if big == 0:  # rank 1's part may come after rank 0 has given up
        clean(tmp_path)
    assert visible(tmp_path) == [100]
    save(tmp_path, 200, keep=1)
    assert visible(tmp_path) == [200]


def test_an_older_checkpoint_that_resists_ends_no_training(tmp_path, monkeypatch, capsys):
    save(tmp_path, 100)
    rename = os.rename

    def unless_older(path, to):
        if path == tmp_path / "images-000000000100":
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
        rename(path, to)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", unless_older)
        assert save(tmp_path, 200, keep=1) == tmp_path / "images-000000000200"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: cannot remove the older checkpoint ")
    assert "images-000000000100 (Device or resource busy)" in line
    assert same(load(newest(tmp_path, refuse)), state(200))
    save(tmp_path, 300, keep=1)
    assert visible(tmp_path) == [300]
    assert capsys.readouterr().err == ""


def test_a_part_that_does_not_come_is_named(tmp_path):
    shares = [snapshot(state(), rank, 3) for rank in (0, 2)]
    with pytest.raises(UserError, match=r"still lacks part-00001-of-00003\.safetensors;"):
        save(tmp_path, shares=shares, timeout=0.3)
    clean(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_rank_whose_part_is_described_cannot_fail_any_more(tmp_path, monkeypatch):
    """Rank 0 may have published the folder, and renamed it, before that rank does anything else."""
    replace = os.replace

    def published_at_once(source, to):
        replace(source, to)
        if str(to).endswith("part-00001-of-00002.json"):
            os.rename(os.path.dirname(to), tmp_path / "images-000000000100")

    monkeypatch.setattr(os, "replace", published_at_once)
    assert write(snapshot(state(), 1, 2), tmp_path, 100, {}, "a", 9) is None
    part, described = sorted(os.listdir(tmp_path / "images-000000000100"), reverse=True)
    assert (part, described) == ("part-00001-of-00002.safetensors", "part-00001-of-00002.json")


def test_a_folder_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for act in (
        lambda: save(tmp_path / "file" / "checkpoints"),
        lambda: export(tmp_path / "file" / "encoder.safetensors", {}, {}),
        lambda: replace_text(tmp_path / "file" / "results.json", "{}"),
    ):
        with pytest.raises(
            UserError, match=r"cannot write .*file.*: (Not a directory|File exists); .*outputs="
        ):
            act()


# ---- single files ----------------------------------------------------------------------------------


def test_export_is_one_plain_safetensors_file(tmp_path):
    path = tmp_path / "export" / "encoder.safetensors"
    tensors = state()
    tensors["tied"] = tensors["float64"]
    export(path, {"old": torch.zeros(1)}, {})
    export(path, tensors, {"recipe": "encoder: {}"})
    assert os.listdir(path.parent) == ["encoder.safetensors"]
    assert same(load_file(path), tensors)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "recipe": "encoder: {}"}
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    del header["__metadata__"]
    assert all(place["data_offsets"][0] % tensors[name].itemsize == 0 for name, place in header.items())
    replace_text(tmp_path / "world.json", "{}")  # readable by whoever may read any other file made here
    assert stat.S_IMODE(os.stat(path).st_mode) == stat.S_IMODE(os.stat(tmp_path / "world.json").st_mode)
    with no_file_beyond(100), pytest.raises(UserError, match="File too large"):
        export(path, {"w": torch.zeros(99)}, {})
    assert os.listdir(path.parent) == ["encoder.safetensors"]
    assert same(load_file(path), tensors)


def test_text_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results.json"
    replace_text(path, "línea\r\n")
    assert path.read_bytes() == "línea\r\n".encode()
    with no_file_beyond(100), pytest.raises(UserError, match="File too large"):
        replace_text(path, "x" * 1000)
    assert path.read_bytes() == "línea\r\n".encode()
    assert os.listdir(tmp_path) == ["results.json"]
