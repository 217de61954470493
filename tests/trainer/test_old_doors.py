"""Commands and imports of the time before the rooms: each works, and says in one line where it went."""

import importlib
import sys
import warnings

import torch

from tests.helpers.command_lines import ROOT, Done, mistake, process
from tests.helpers.torchvision_shapes import torchvision_shapes
from trainer.exports.encoder import load_encoder


def through(old: str, new: str, *words: str) -> Done:
    """How the old door ends, without its line."""
    done = process(sys.executable, "-m", old, *words)
    first, _, rest = done.err.partition("\n")
    assert first == f"{old} is {new} now"
    return done._replace(err=rest)


def test_checkpoints(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    done = through("trainer.runtime.checkpoint", "trainer.checkpoints", "list", str(tmp_path))
    assert done == (0, f"{tmp_path}/run/checkpoints: none yet\n", "")
    line = mistake(through("trainer.runtime.checkpoint", "trainer.checkpoints", "prune", str(tmp_path)))
    assert line == f"{tmp_path}/run/checkpoints has no recipe.yaml with save.keep beside it; pass --keep N"


def test_tracking(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "journal.jsonl").touch()
    done = through("trainer.runtime.tracking", "trainer.tracking", "sync", str(tmp_path))
    assert done == (0, f"{tmp_path}/run: nothing new\n", "")


def test_foreign_weights(tmp_path):
    weights = {name: torch.zeros(shape) for name, shape in torchvision_shapes(18).items()}
    torch.save(weights, tmp_path / "resnet18.pt")
    target = tmp_path / "encoder.safetensors"
    words = [f"from={tmp_path}/resnet18.pt", f"to={target}"]
    done = through("trainer.networks.foreign", "trainer.exports.torchvision_resnet", *words)
    assert (done.status, done.err) == (0, "")
    assert load_encoder(target)(torch.zeros(1, 3, 32, 32))["y"].shape == (1, 512)


def test_load_encoder_of_its_old_place():
    sys.modules.pop("trainer.assembly", None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        old = importlib.import_module("trainer.assembly")
        assert importlib.import_module("trainer.assembly").load_encoder is load_encoder is old.load_encoder
    assert [one.category for one in caught] == [FutureWarning]  # once
    assert "from trainer.exports.encoder import load_encoder" in str(caught[0].message)


def test_the_shims_hold_no_logic():
    for name in (
        "assembly",
        "runtime/__init__",
        "runtime/checkpoint",
        "runtime/tracking",
        "networks/foreign",
    ):
        assert len((ROOT / "trainer" / f"{name}.py").read_text().splitlines()) <= 15
