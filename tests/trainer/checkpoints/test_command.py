"""Which checkpoints stay, and `python -m trainer.checkpoints list|verify|prune DIR`."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import ROOT
from tests.helpers.checkpoint_states import edit, flip, keep_in_use, refuse, save
from tests.trainer.checkpoints.test_save import DAMAGE
from trainer.checkpoints.__main__ import main
from trainer.checkpoints.format import manifest_digest, part_name
from trainer.checkpoints.load import kept, newest
from trainer.checkpoints.retention import retained
from trainer.checkpoints.save import snapshot
from trainer.recipe.loading import load
from trainer.tracking.journal import Journal

SMALL = snapshot({"images": torch.tensor(1)}, 0, 1)


@pytest.fixture
def run(tmp_path):
    """outputs/tiny, a run's folder with two checkpoints of two ranks, 100 and 200 images."""
    folder = tmp_path / "outputs" / "tiny"
    for images in (100, 200):
        save(folder / "checkpoints", images, world=2, extra={"engine": "ddp"})
    (folder / "recipe.yaml").write_text(load(["recipe=quickstart", "save.keep=1"]).text())
    return folder


def named(folder: Path, images: int) -> Path:
    return folder / f"images-{images:012d}"


def output_of(capsys, *arguments) -> tuple[int, list[str], str]:
    """Status, lines and errors of the command."""
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return status, out.splitlines(), err


def mistake(capsys, *arguments) -> str:
    status, out, err = output_of(capsys, *arguments)
    assert (status, out) == (2, [])
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


# ---- which stay ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_saves_restarts_and_prune_keep_the_same(tmp_path, capsys, seed):
    """Training, save by save and with restarts from older ones, keeps what one prune of everything keeps."""
    dice = random.Random(seed)
    keep, keep_every, images, saved = dice.randint(1, 3), dice.choice([0, 70, 200]), 0, set()
    training, everything = tmp_path / "training" / "checkpoints", tmp_path / "all" / "checkpoints"
    for _ in range(14):
        if saved and dice.random() < 0.2:  # killed, and started again
            images = newest(training, refuse).images
        images += dice.randint(20, 60)
        saved.add(images)
        save(training, images, keep=keep, attempt=f"at-{images}", shares=[SMALL], keep_every=keep_every)
        assert set(kept(training)) == retained(saved, keep, keep_every)
        assert newest(training, refuse).images == images
        save(everything, images, keep=99, shares=[SMALL])
    options = [f"--keep={keep}", f"--keep-every={keep_every}"]
    status, out, err = output_of(capsys, "prune", everything, *options, "--dry-run")
    assert (status, err, kept(everything)) == (0, "", sorted(saved))
    assert f"{len(kept(training))} kept" in out[-1]
    assert len(out) == 1 + len(saved) - len(kept(training))
    assert output_of(capsys, "prune", everything, *options)[0] == 0
    assert kept(everything) == kept(training)
    assert len(saved) > len(kept(training))
    before = contents(everything)
    assert output_of(capsys, "prune", everything, *options)[0] == 0
    assert contents(everything) == before


def contents(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


def test_a_damaged_newest_one_pushes_out_nothing_good(run, capsys):
    checkpoints = run / "checkpoints"
    for images in (300, 400):
        edit(save(checkpoints, images) / "part-00000-of-00001.safetensors", flip(-1))
    status, out, err = output_of(capsys, "prune", run)
    assert status == 0
    assert [line.split(": ")[0] for line in out] == [str(named(checkpoints, 100)), str(checkpoints)]
    assert err.count("is damaged") == 2
    assert kept(checkpoints) == [200, 300, 400]
    assert newest(checkpoints, lambda _: None).images == 200


def test_where_nothing_is_whole_nothing_goes(run, capsys):
    for images in (100, 200):
        (named(run / "checkpoints", images) / "manifest.json").unlink()
    status, out, err = output_of(capsys, "prune", run, "--keep=1")
    assert (status, out) == (1, [])
    assert "no checkpoint is whole; nothing was removed" in err
    assert kept(run / "checkpoints") == [100, 200]


# ---- list and verify -------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["", "checkpoints", ".."])
def test_list_tells_each_and_where_the_next_start_continues(run, capsys, where):
    status, out, err = output_of(capsys, "list", run / where if where != ".." else run.parent)
    assert (status, err, len(out)) == (0, "", 3)
    assert out[0].startswith(f"{run / 'checkpoints'}: 2 checkpoints, 0.0 MB")
    for line, images in zip(out[1:], (100, 200), strict=True):
        assert re.search(
            rf"^  images-0*{images}  +0\.0 MB  \d{{4}}-\d\d-\d\d \d\d:\d\d +2 ranks  ddp +complete", line
        )
    assert out[1].endswith("  complete, not read")
    assert out[2].endswith("  complete, not read; the next start continues from it, if verify finds it whole")


def test_list_is_cheap_and_verify_reads_every_byte(run, capsys):
    part = named(run / "checkpoints", 200) / "part-00001-of-00002.safetensors"
    edit(part, flip(-1))
    status, out, _ = output_of(capsys, "list", run)
    assert (status, "  complete, not read; " in out[2]) == (0, True)
    status, out, _ = output_of(capsys, "verify", run)
    assert (status, len(out)) == (1, 2)
    assert out[0].startswith(f"{named(run / 'checkpoints', 100)}: whole, ")
    assert out[1] == f"{part.parent}: damaged: the digest of {part.name} does not hold"
    assert output_of(capsys, "verify", part.parent)[0] == 1
    assert output_of(capsys, "verify", named(run / "checkpoints", 100))[0] == 0

    edit(part, lambda data: data[:-1])
    status, out, _ = output_of(capsys, "list", run)
    assert "damaged: part-00001-of-00002.safetensors has" in out[2]
    assert "; the next start continues from it" in out[1]


@pytest.mark.parametrize("kind", DAMAGE)
def test_verify_names_the_checkpoint_and_what_is_wrong(run, capsys, kind):
    name, change, why = DAMAGE[kind]
    target = named(run / "checkpoints", 200) / name
    edit(target, change) if change else target.unlink()
    status, out, err = output_of(capsys, "verify", run)
    assert (status, err) == (1, "")
    assert re.search(why, out[1])
    assert str(target.parent) in out[1]


@pytest.mark.parametrize(
    "entries",
    [
        {"world": 10**12},
        {"world": "2"},
        {"world": 0, "parts": {}},
        {"parts": {"../../recipe.yaml": {"size": 1, "sha256": ""}, "/etc/passwd": {"size": 1, "sha256": ""}}},
        {"parts": []},
        {"images": "200"},
        {"tensors": {"w": {"dtype": "load", "shape": [1]}}},
        {"tensors": {"w": {"dtype": "float32", "shape": [10**6, 10**6]}}},
        {"tensors": {"w": {"dtype": "float32", "shape": [-1, -1]}}},
        {"tensors": ["w"]},
        {"engine": None},
        {"parts": {part_name(rank, 2): {"size": 10**6} for rank in range(2)}},
        {"parts": {part_name(rank, 2): {"size": 10**6, "sha256": None} for rank in range(2)}},
    ],
)
def test_a_manifest_that_somebody_made_up_is_damage_like_any_other(run, capsys, entries):
    def forge(data):
        manifest = json.loads(data) | entries
        return json.dumps(manifest | {"digest": manifest_digest(manifest)}).encode()

    edit(named(run / "checkpoints", 200) / "manifest.json", forge)
    status, out, _ = output_of(capsys, "verify", run)
    assert (status, out[1].partition(": ")[2]) == (1, "damaged: manifest.json does not describe a checkpoint")
    assert newest(run / "checkpoints", lambda _: None).images == 100
    status, out, _ = output_of(capsys, "list", run)
    assert (status, out[2].endswith("damaged: manifest.json does not describe a checkpoint")) == (0, True)


def test_a_run_that_is_called_like_a_checkpoint_is_none(run, capsys):
    called = run.rename(run.parent / "images-5")
    for folder in (called, called.parent):
        status, out, err = output_of(capsys, "list", folder)
        assert (status, err, len(out)) == (0, "", 3)
        assert out[0].startswith(f"{called / 'checkpoints'}: 2 checkpoints")


def test_a_run_without_a_checkpoint_and_a_folder_of_runs(run, capsys):
    Journal(run.parent / "young" / "journal.jsonl").close()
    (run.parent / "older" / "checkpoints").mkdir(parents=True)
    assert output_of(capsys, "list", run.parent / "young")[1] == [f"{run.parent}/young/checkpoints: none yet"]
    assert output_of(capsys, "verify", run.parent / "young")[0] == 0
    out = output_of(capsys, "list", run.parent)[1]
    assert [line.split(": ")[0] for line in out if line[0] != " "] == [
        str(run.parent / name / "checkpoints") for name in ("older", "tiny")
    ]


# ---- prune -----------------------------------------------------------------------------------------


def test_prune_follows_the_recipe_and_takes_leftovers_along(run, capsys):
    checkpoints = run / "checkpoints"
    for leftover in (".images-000000000300.old.partial", ".images-000000000050.removing"):
        shutil.copytree(named(checkpoints, 100), checkpoints / leftover)
    size = sum(path.stat().st_size for path in named(checkpoints, 100).iterdir())
    assert "left by a killed run" in output_of(capsys, "list", run)[1][-1]
    before = contents(checkpoints)
    status, out, err = output_of(capsys, "prune", run, "--dry-run")
    assert (status, err, len(out), contents(checkpoints)) == (0, "", 4, before)
    assert out[-1].endswith("would be freed")
    status, out, err = output_of(capsys, "prune", run)
    assert (status, err, len(out)) == (0, "", 4)
    assert out[-1] == f"{checkpoints}: 1 kept, {3 * size / 1e6:,.1f} MB freed"
    assert os.listdir(checkpoints) == [named(checkpoints, 200).name]


def test_prune_refuses_a_run_that_is_live_and_prunes_the_others(run, capsys):
    shutil.copytree(run, run.parent / "other")
    journal = Journal(run / "journal.jsonl")
    assert "a run is writing there" in mistake(capsys, "prune", run)
    status, out, err = output_of(capsys, "prune", run.parent)
    assert status == 2
    assert f"{run}: a run is writing there" in err
    assert f"{run.parent}/other/checkpoints: 1 kept" in out[-1]
    assert kept(run / "checkpoints") == [100, 200]
    assert output_of(capsys, "verify", run)[0] == 0  # reading is always allowed
    journal.close()
    assert output_of(capsys, "prune", run)[0] == 0
    assert kept(run / "checkpoints") == [200]
    Journal(run / "journal.jsonl").close()  # it has let go


def test_prune_says_what_it_cannot_remove(run, capsys, monkeypatch):
    leftover = run / "checkpoints" / ".images-000000000300.old.partial"
    leftover.mkdir()
    (leftover / ".nfs0001").touch()
    keep_in_use(monkeypatch, ".nfs0001")
    status, _, err = output_of(capsys, "prune", run)
    assert (status, err.count("\n")) == (2, 1)
    assert f"error: cannot remove {leftover} (Device or resource busy)" in err


def test_a_linked_checkpoint_loses_its_link_alone(run, capsys):
    kept_elsewhere = run.parent / "archive" / named(run, 100).name
    kept_elsewhere.parent.mkdir()
    named(run / "checkpoints", 100).rename(kept_elsewhere)
    named(run / "checkpoints", 100).symlink_to(kept_elsewhere)
    assert output_of(capsys, "prune", run)[0] == 0
    assert os.listdir(run / "checkpoints") == [named(run, 200).name]
    assert output_of(capsys, "verify", kept_elsewhere)[0] == 0


# ---- mistakes --------------------------------------------------------------------------------------


def test_mistakes_are_one_line(run, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "nowhere", run / "recipe.yaml"):
        assert f"{folder}: no checkpoints there; expected a run's folder" in mistake(capsys, "list", folder)
    assert "does not exist" in mistake(capsys, "verify", tmp_path / "nowhere" / "checkpoints")
    assert "is one checkpoint" in mistake(capsys, "prune", named(run / "checkpoints", 100))
    assert "--keep: expected a whole number of at least 1, got '0'" in mistake(
        capsys, "prune", run, "--keep=0"
    )
    assert "got 'many'" in mistake(capsys, "prune", run, "--keep-every=many")
    assert "invalid choice: 'lisst'" in mistake(capsys, "lisst", run)
    assert "required" in mistake(capsys)
    (run / "recipe.yaml").unlink()
    assert "pass --keep N" in mistake(capsys, "prune", run)


def test_the_command_itself(run):
    command = [sys.executable, "-m", "trainer.checkpoints"]
    done = subprocess.run([*command, "list", run], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 3)
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
