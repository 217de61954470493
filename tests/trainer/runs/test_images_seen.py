"""What a run that failed says of the images that it has seen, also after its last save."""

import json
from pathlib import Path

import pytest
import torch

from data_pipelines.common.errors import UserError
from tests.helpers.command_lines import script, tiny
from trainer.checkpoints.load import kept
from trainer.runs import run as run_module
from trainer.runs.run import Run
from trainer.training.trainer import Trainer

BATCH, SAVE_EVERY = 64, 256
FAILS_AT = SAVE_EVERY + 2 * BATCH


@pytest.fixture
def words(tmp_path, digits):
    return tiny(
        tmp_path,
        digits.root,
        *(f"images={8 * BATCH}", f"batch={BATCH}", "groups.norm=32"),
        *(f"save.every={SAVE_EVERY}", f"log.every={BATCH}"),
    )


def end_of(folder: Path) -> dict:
    """The journal's last record."""
    record = json.loads((folder / "journal.jsonl").read_text().splitlines()[-1])
    assert record["kind"] == "end"
    return record


def assert_failed(folder: Path, images: int) -> None:
    assert (folder / "failed").read_text().splitlines()[0] == str(images)
    assert (end_of(folder)["value"], end_of(folder)["images"]) == ("FAILED", images)


def test_a_run_whose_weights_become_nan(capsys, monkeypatch, tmp_path, words):
    step = Trainer.step

    def with_nan(trainer):
        if trainer.images == FAILS_AT - BATCH:
            with torch.no_grad():
                next(trainer.objective.parameters())[0] = float("nan")
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", with_nan)
    done = script(capsys, *words)
    assert done.status == 2
    assert f"is not finite (seen at {FAILS_AT} images)" in done.err
    assert kept(tmp_path / "quickstart/checkpoints") == [SAVE_EVERY]
    assert_failed(tmp_path / "quickstart", FAILS_AT)


def test_a_run_that_meets_a_users_mistake(capsys, monkeypatch, tmp_path, words):
    metrics = Run.metrics

    def refused(run, values, images):
        if images == FAILS_AT:
            raise UserError("the disk is full")
        metrics(run, values, images)

    monkeypatch.setattr(Run, "metrics", refused)
    assert script(capsys, *words).status == 2
    assert kept(tmp_path / "quickstart/checkpoints") == [SAVE_EVERY]
    assert_failed(tmp_path / "quickstart", FAILS_AT)
    monkeypatch.undo()
    assert script(capsys, *words).status == 0  # goes on from the checkpoint
    assert end_of(tmp_path / "quickstart")["images"] == 8 * BATCH


def test_a_run_that_cannot_write_its_checkpoint(capsys, monkeypatch, tmp_path, words):
    write, step, seen = run_module.write, Run.step, []

    def full(snapshot, folder, images, *arguments, **options):
        if images > SAVE_EVERY:
            raise UserError("the disk is full")
        return write(snapshot, folder, images, *arguments, **options)

    def noted(run, images):
        seen.append(images)
        step(run, images)

    monkeypatch.setattr(run_module, "write", full)
    monkeypatch.setattr(Run, "step", noted)
    words = [*words, f"images={20 * BATCH}"]
    assert script(capsys, *words).status == 2
    assert kept(tmp_path / "quickstart/checkpoints") == [SAVE_EVERY]
    assert seen[-1] >= 2 * SAVE_EVERY
    assert_failed(tmp_path / "quickstart", seen[-1])


def test_a_resumed_run_that_fails_before_its_first_step(capsys, monkeypatch, tmp_path, words):
    step = Run.step

    def stopping(run, images):
        step(run, images)
        if images == FAILS_AT:
            raise UserError("the disk is full")

    def away(trainer):
        raise UserError("a shard cannot be read")

    monkeypatch.setattr(Run, "step", stopping)
    assert script(capsys, *words).status == 2
    assert_failed(tmp_path / "quickstart", FAILS_AT)
    monkeypatch.undo()
    monkeypatch.setattr(Trainer, "step", away)
    assert script(capsys, *words).status == 2
    assert_failed(tmp_path / "quickstart", SAVE_EVERY)
