"""Runs whose images are decoded once: resumed to the bit, and on machines without DALI."""

import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.command_lines import MAIN, mistake, process, script, tiny
from trainer.recipe.loading import load_saved

pytestmark = pytest.mark.slow


def weights(folder):
    return load_file(folder / "export" / "encoder.safetensors")


def test_a_resumed_run_ends_in_equal_bits(capsys, tmp_path, digits):
    def start(*words: str) -> None:
        done = script(capsys, *tiny(tmp_path, digits.root, "images=384", "data.resident=true", *words))
        assert done.status == 0, done.err

    start("run=whole")
    start("run=parts", "images=128")
    start("run=parts")
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(parts[name], value) for name, value in whole.items())


def test_auto_is_true_for_small_images_on_a_cpu_and_kept(capsys, tmp_path, digits):
    done = script(capsys, *tiny(tmp_path, digits.root, "data.resident=auto", "run=a"))
    assert done.status == 0, done.err
    assert load_saved(tmp_path / "a" / "recipe.yaml").recipe.data.resident is True
    line = mistake(script(capsys, *tiny(tmp_path, digits.root, "data.resident=false", "run=a", "images=512")))
    assert "continue it with data.resident=true" in line


WITHOUT_DALI = f"""
import runpy, sys
sys.modules["nvidia"] = None  # as where it is not installed
sys.argv = [{str(MAIN)!r}, *sys.argv[1:]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("resident", ["true", "false"])
def test_a_machine_without_dali_trains_and_evaluates(tmp_path, digits, resident):
    words = [word for word in tiny(tmp_path, digits.root) if not word.startswith("evaluate.at_end")]
    words += [f"data.resident={resident}", "run=a", "evaluate.mlp=null", "evaluate.controls=false"]
    done = process(sys.executable, "-c", WITHOUT_DALI, *words)
    assert done.status == 0, done.err
    assert "linear, y" in done.out
    assert (tmp_path / "a" / "figures" / "views.png").exists()
    assert ("DALI is not installed" in done.err) == (resident == "false")
