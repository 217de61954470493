"""Weights that travel: torchvision's names and shapes, and facebookresearch/moco's checkpoints."""

import pickle
import subprocess
import sys

import pytest
import torch

from data_pipelines.common.errors import UserError
from tests.helpers.torchvision_shapes import torchvision_shapes
from trainer.exports import torchvision_resnet, torchvision_weights
from trainer.exports.encoder import load_encoder
from trainer.networks.build import build_encoder
from trainer.recipe.loading import load

# (parameters and buffers in all, without the classifier, of torchvision's networks)
TORCHVISION = {18: (11_176_512, 120), 34: (21_284_672, 216), 50: (23_508_032, 318), 101: (42_500_160, 624)}


def encoder(depth: int, *overrides: str):
    recipe = load(["recipe=moco_imagenet", f"encoder.depth={depth}", *overrides]).recipe
    torch.manual_seed(0)
    return build_encoder(recipe.encoder_options())


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_resnets_have_torchvisions_names_and_shapes(depth):
    shapes = {name: tuple(tensor.shape) for name, tensor in encoder(depth).state_dict().items()}
    expected = torchvision_shapes(depth)
    parameters = {n: s for n, s in expected.items() if "running" not in n and "num_batches" not in n}
    total, tensors = TORCHVISION[depth]
    assert sum(torch.Size(shape).numel() for shape in parameters.values()) == total
    assert len(expected) == tensors
    assert shapes == {name: shape for name, shape in expected.items() if "num_batches" not in name}


def checkpoint(depth: int) -> dict:
    """What main_moco.py saves, of MoCo-v2: query and key encoder with their projections, queue, optimizer."""
    network = encoder(depth, "encoder.width=8")
    state = {}
    for prefix in ("encoder_q", "encoder_k"):
        for name, tensor in network.state_dict().items():
            state[f"module.{prefix}.{name}"] = tensor + (prefix == "encoder_k")
            if name.endswith("running_var"):
                counter = name.replace("running_var", "num_batches_tracked")
                state[f"module.{prefix}.{counter}"] = torch.tensor(5)
        for layer in (0, 2):
            state[f"module.{prefix}.fc.{layer}.weight"] = torch.zeros(3, 3)
            state[f"module.{prefix}.fc.{layer}.bias"] = torch.zeros(3)
    state |= {"module.queue": torch.zeros(128, 16), "module.queue_ptr": torch.zeros(1)}
    return {"epoch": 200, "arch": f"resnet{depth}", "state_dict": state, "optimizer": {"state": {}}}


@pytest.mark.parametrize("depth", [18, 50])
def test_mocos_checkpoint_becomes_an_encoder(tmp_path, depth):
    torch.save(checkpoint(depth), tmp_path / "moco.pth.tar")
    command = [sys.executable, "-m", "trainer.exports.torchvision_resnet", f"from={tmp_path}/moco.pth.tar"]
    done = subprocess.run(
        [*command, f"to={tmp_path}/e.safetensors"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = load_encoder(tmp_path / "e.safetensors")
    images = torch.randn(2, 3, 64, 64)
    expected = encoder(depth, "encoder.width=8").eval()(images)["y"]
    assert torch.equal(loaded(images)["y"], expected)


def test_networks_of_other_layers_are_refused_and_nothing_is_written(tmp_path):
    plain = dict(encoder(18, "encoder.width=8").state_dict())
    lacking = {name: tensor for name, tensor in plain.items() if name != "layer2.1.bn1.running_mean"}
    wide = plain | {"layer1.0.conv1.weight": torch.zeros(9, 8, 3, 3)}
    for weights in (lacking, wide, plain | {"layer1.0.se.weight": torch.zeros(3)}):
        torch.save(weights, tmp_path / "other.pt")
        with pytest.raises(UserError, match=r"no plain ResNet-18: 1 tensors") as refused:
            torchvision_weights.convert(tmp_path / "other.pt", tmp_path / "e.safetensors")
        assert "\n" not in str(refused.value)
        assert not (tmp_path / "e.safetensors").exists()
    torch.save({name: tensor.half() for name, tensor in plain.items()}, tmp_path / "half.pt")
    torchvision_weights.convert(tmp_path / "half.pt", tmp_path / "e.safetensors")
    loaded = load_encoder(tmp_path / "e.safetensors")
    assert loaded(torch.randn(1, 3, 64, 64))["y"].dtype == torch.float32


def test_other_files_are_one_line(tmp_path):
    (tmp_path / "text").write_text("hello world")
    torch.save({"state_dict": {"visual.conv1": torch.zeros(1)}}, tmp_path / "other.pt")
    (tmp_path / "code.pt").write_bytes(pickle.dumps({"state_dict": subprocess.run}))
    for name in ("text", "other.pt", "code.pt", "missing"):
        with pytest.raises(UserError, match=name) as refused:
            torchvision_weights.read(tmp_path / name)
        assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="from=CHECKPOINT"):
        torchvision_resnet.main(["from=a"])
