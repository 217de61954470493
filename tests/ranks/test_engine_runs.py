"""Whole runs through the command line where parameters are sharded: evaluated, exported, continued."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import ROOT
from trainer.checkpoints.load import load
from trainer.exports.encoder import load_encoder


def command(file: str, world: int, outputs: Path, data: Path) -> str:
    """Two steps, measured after each, under a launch file; what it printed."""
    words = [
        *("recipe=quickstart", f"outputs={outputs}", f"data.root={data}", "images=256", "batch=128"),
        "groups.norm=32",
        *("data.size=16", "encoder.channels=[8, 16]", "encoder.fc=32", "objective.critic.units=32"),
        *("save.every=128", "evaluate.every=128", "evaluate.at_end=true", "evaluate.controls=false"),
        *("evaluate.linear=null", "evaluate.mlp=null", "evaluate.online_images=128", "tracking.uri=none"),
    ]
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    launcher += ["--config_file", f"recipes/launch/{file}.yaml", "--num_processes", str(world)]
    done = subprocess.run(
        [*launcher, "--main_process_port", "0", "trainer/main.py", *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("file", ["zero3", "fsdp2"])
def test_a_sharded_run_is_evaluated_exported_and_continued_under_another_engine(tmp_path, digits, file):
    folder = tmp_path / "quickstart"
    assert f"2 ranks x 1 thread, {file}, cpu" in command(file, 2, tmp_path, digits.root)
    assert json.loads((folder / "world.json").read_text())["engine"] == file
    results = json.loads((folder / "results.json").read_text())
    assert 0.2 < results["knn/y"] <= 1.0

    saved = load(folder / "checkpoints/images-000000000256")
    exported = load_encoder(folder / "export/encoder.safetensors").state_dict()
    assert exported
    for name, tensor in exported.items():
        assert torch.equal(tensor, saved[f"model/encoder.{name}"]), name

    shutil.rmtree(folder / "checkpoints/images-000000000256")
    (folder / "done").unlink()
    assert "4 ranks x 1 thread, ddp, cpu" in command("ddp", 4, tmp_path, digits.root)
    again = load_file(folder / "export/encoder.safetensors")
    for name, tensor in again.items():
        assert (tensor - exported[name]).abs().max() < 1e-2, name
