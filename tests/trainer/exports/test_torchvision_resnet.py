"""Weights that travel: torchvision's names and shapes, and facebookresearch/moco's checkpoints."""

import argparse
import pickle
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from data_pipelines.common.errors import UserError
from tests.helpers.torchvision_shapes import torchvision_shapes
from trainer.exports import torchvision_resnet, torchvision_weights
from trainer.exports.encoder import load_encoder
from trainer.networks.build import build_encoder
from trainer.recipe.loading import load
from trainer.runs.folder import RunFolder
from trainer.tasks.report import export_encoder

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
        with pytest.raises(UserError, match=r"no plain ResNet-18: .*1 of 100 tensors differ") as refused:
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


def copy_of(weights: dict, prefix: str) -> dict:
    return {f"{prefix}{name}": tensor.clone() for name, tensor in weights.items()}


def sequential(weights: dict) -> dict:
    """The names in nn.Sequential(*resnet.children())."""
    numbers = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    return {f"{numbers[name.split('.')[0]]}.{name.partition('.')[2]}": w for name, w in weights.items()}


ARRANGEMENTS = {
    "plain": lambda w: w,
    "compiled": lambda w: copy_of(w, "_orig_mod."),
    "compiled inside": lambda w: {n.replace("layer1.", "layer1._orig_mod."): t for n, t in w.items()},
    "ddp": lambda w: {"state_dict": copy_of(w, "module.")},
    "fsdp": lambda w: copy_of(w, "_fsdp_wrapped_module._checkpoint_wrapped_module."),
    "backbone": lambda w: {"model": copy_of(w, "module.backbone.")},
    "encoder and head": lambda w: copy_of(w, "encoder.") | {"encoder.fc.weight": torch.ones(9, 3)},
    "options beside": lambda w: {"args": argparse.Namespace(lr=1), "epoch": 3, "model": copy_of(w, "model.")},
    "moving average": lambda w: {"state_dict": w, "state_dict_ema": copy_of(other(w), "module.")},
    "average alone": lambda w: {"state_dict_ema": copy_of(w, "module.")},
    "byol": lambda w: copy_of(w, "online_network.") | copy_of(other(w), "target_network."),
    "student": lambda w: {"student": copy_of(w, "backbone."), "teacher": copy_of(other(w), "backbone.")},
    "lightly": lambda w: {"state_dict": copy_of(sequential(w), "backbone.")},
    "classifier": lambda w: w | {"fc.weight": torch.ones(10, 64), "projector.0.weight": torch.ones(2)},
    "bf16": lambda w: {name: tensor.bfloat16() for name, tensor in w.items()},
}


def other(weights: dict) -> dict:
    return {name: tensor + 1 for name, tensor in weights.items()}


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("form", ["torch", "safetensors"])
def test_a_network_is_found_behind_prefixes_and_wrappers(tmp_path, arrangement, form):
    network = encoder(18, "encoder.width=8")
    content = ARRANGEMENTS[arrangement](dict(network.state_dict()))
    if form == "torch":
        torch.save(content, tmp_path / "other")
    elif any(not isinstance(value, torch.Tensor) for value in content.values()):
        pytest.skip("safetensors holds tensors alone")
    else:
        save_file(content, tmp_path / "other")
    torchvision_weights.convert(str(tmp_path / "other"), str(tmp_path / "e.safetensors"))
    loaded = load_encoder(tmp_path / "e.safetensors").state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded[name], tensor.bfloat16().float() if arrangement == "bf16" else tensor)


def test_of_several_networks_one_is_chosen_by_its_prefix(tmp_path):
    weights = dict(encoder(18, "encoder.width=8").state_dict())
    torch.save({"a": weights, "b": other(weights)}, tmp_path / "two.pt")
    with pytest.raises(UserError, match=r"2 ResNets in it; choose one with prefix=a\., prefix=b\."):
        torchvision_weights.read(tmp_path / "two.pt")
    with pytest.raises(UserError, match=r"no ResNet under prefix=c; expected prefix=a\., prefix=b\."):
        torchvision_weights.read(tmp_path / "two.pt", "c")
    target = tmp_path / "e.safetensors"
    assert torchvision_resnet.main([f"from={tmp_path}/two.pt", f"to={target}", "prefix=b"]) == 0
    loaded = load_encoder(target).state_dict()
    assert torch.equal(loaded["conv1.weight"], weights["conv1.weight"] + 1)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    network = encoder(18, "encoder.width=8")
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for bad in (float("nan"), float("inf"), 1e300):
        spoilt = weights | {"layer2.0.bn1.running_var": torch.full((16,), bad, dtype=torch.float64)}
        torch.save(spoilt, tmp_path / "bad.pt")
        with pytest.raises(UserError, match=r"bad.pt: layer2.0.bn1.running_var holds NaN or infinity"):
            torchvision_weights.convert(str(tmp_path / "bad.pt"), str(tmp_path / "e.safetensors"))
        assert not (tmp_path / "e.safetensors").exists()
    network.bn1.running_var[0] = float("inf")
    with pytest.raises(UserError, match=r"encoder.safetensors is not written: bn1.running_var holds NaN"):
        export_encoder(None, SimpleNamespace(encoder=network), RunFolder(tmp_path))
    assert not (tmp_path / "export").exists()
    torch.save(weights, tmp_path / "good.pt")
    torchvision_weights.convert(str(tmp_path / "good.pt"), str(tmp_path / "e.safetensors"))
    rewrite(tmp_path / "e.safetensors", lambda tensors: tensors["conv1.weight"].fill_(float("inf")))
    with pytest.raises(UserError, match=r"e.safetensors: conv1.weight holds NaN or infinity"):
        load_encoder(tmp_path / "e.safetensors")


def rewrite(path, change) -> None:
    """Changes the tensors of an exported encoder; its metadata stay."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    changed = change(tensors)
    save_file(changed if isinstance(changed, dict) else tensors, path, metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {f"module.{n}": w for n, w in t.items()}, None),
        (lambda t: {n: w.half() for n, w in t.items()}, None),
        (
            lambda t: t | {"fc.weight": torch.ones(2, 2)},
            "fc.weight has the shape [2, 2], which the network does not",
        ),
        (lambda t: {n: w for n, w in t.items() if n != "bn1.bias"}, "bn1.bias is missing (1 of 100 tensors"),
        (
            lambda t: t | {"conv1.weight": torch.ones(8, 3, 7, 6)},
            "conv1.weight has the shape [8, 3, 7, 6], expected [8, 3, 7, 7]",
        ),
    ],
)
def test_an_export_that_was_changed_loads_or_names_the_first_tensor(tmp_path, change, message):
    torch.save(dict(encoder(18, "encoder.width=8").state_dict()), tmp_path / "good.pt")
    path = tmp_path / "e.safetensors"
    torchvision_weights.convert(str(tmp_path / "good.pt"), str(path))
    rewrite(path, change)
    if message is None:
        assert load_encoder(path).state_dict()["bn1.bias"].shape == (8,)
        return
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        load_encoder(path)
    assert str(path) in str(refused.value)


def test_files_that_are_no_export_are_one_line(tmp_path):
    weights = dict(encoder(18, "encoder.width=8").state_dict())
    torch.save(weights, tmp_path / "pickle")
    save_file(weights, tmp_path / "foreign")
    (tmp_path / "cut").write_bytes((tmp_path / "foreign").read_bytes()[:5000])
    (tmp_path / "shorter").write_bytes((tmp_path / "foreign").read_bytes()[:-8])
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    messages = {
        "foreign": "no entry `encoder` in its metadata); others' ResNets are imported by",
        "pickle": "no exported encoder, or one cut short",
        "cut": "no exported encoder, or one cut short",
        "shorter": "no exported encoder, or one cut short",
        "empty": "no exported encoder, or one cut short",
        "folder": "cannot be read",
        "missing": "cannot be read: No such file",
    }
    for name, message in messages.items():
        with pytest.raises(UserError, match=re.escape(message)) as refused:
            load_encoder(tmp_path / name)
        assert str(refused.value).startswith(f"{tmp_path / name}: ")
        assert "\n" not in str(refused.value)
    for name in ("cut", "shorter", "empty", "folder", "missing"):
        with pytest.raises(UserError, match=name) as refused:
            torchvision_weights.read(tmp_path / name)
        assert "\n" not in str(refused.value)
    vit = {"model": {"patch_embed.proj.weight": torch.ones(3), "cls_token": torch.ones(1)}}
    torch.save(vit, tmp_path / "vit.pt")
    with pytest.raises(UserError, match=r"it holds model.cls_token, model.patch_embed.proj.weight"):
        torchvision_weights.read(tmp_path / "vit.pt")


def test_a_target_that_cannot_be_written_names_to(tmp_path):
    torch.save(dict(encoder(18, "encoder.width=8").state_dict()), tmp_path / "good.pt")
    for target in (tmp_path / "good.pt" / "e.safetensors", tmp_path / ("n" * 256)):
        with pytest.raises(UserError, match=r"cannot write .*choose another place with `to=`"):
            torchvision_weights.convert(str(tmp_path / "good.pt"), str(target))


KERNEL, VARIANCE = "layer1.0.conv1.weight", "layer4.1.bn2.running_var"
NO_WEIGHTS = {  # the tensor, what becomes of it, what the line says
    "meta": (KERNEL, lambda t: t.to("meta"), "is on the device meta, without its numbers"),
    "sparse": (KERNEL, lambda t: t.to_sparse(), "is a tensor of layout sparse_coo; expected dense"),
    "csr": (
        KERNEL,
        lambda t: t.flatten(1).to_sparse_csr(),
        "is a tensor of layout sparse_csr; expected dense",
    ),
    "nested": (
        KERNEL,
        lambda t: torch.nested.nested_tensor([t[0], t[1, :2]]),
        "is a tensor of layout nested",
    ),
    "quantized": (KERNEL, lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "is of torch.qint8"),
    "complex": (KERNEL, lambda t: t.to(torch.complex64), "is of torch.complex64"),
    "whole numbers": (KERNEL, lambda t: t.int(), "is of torch.int32; expected weights in floating point"),
    "truth values": (KERNEL, lambda t: t.bool(), "is of torch.bool; expected weights in floating point"),
    "negative variance": (VARIANCE, lambda t: t - 3, "holds -2; expected variances, which are 0 or more"),
    "infinite in float32": (KERNEL, lambda t: t.double() * 1e300, "holds NaN or infinity"),
}


@pytest.mark.filterwarnings("ignore:.*(quantize|beta state|prototype).*")
@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_tensors_that_are_no_weights_are_one_line(tmp_path, kind):
    name, changed, expected = NO_WEIGHTS[kind]
    weights = dict(encoder(18, "encoder.width=8").state_dict())
    torch.save(weights | {name: changed(weights[name])}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=re.escape(f"other.pt: {name} {expected}")) as refused:
        torchvision_weights.convert(tmp_path / "other.pt", tmp_path / "e.safetensors")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "e.safetensors").exists()


def test_tensors_in_lists_are_named_by_their_numbers(tmp_path):
    weights = dict(encoder(18, "encoder.width=8").state_dict())
    contents = {
        "but it holds 0, 1, 10 …": list(weights.values()),
        "but it holds 0.1, 1.1, 10.1 …": list(weights.items()),
        "but it holds one tensor without a name …": weights[KERNEL],
        "but it holds no tensor at all": [1, {"a": ()}],
    }
    for expected, content in contents.items():
        torch.save(content, tmp_path / "list.pt")
        with pytest.raises(UserError, match=re.escape(expected)):
            torchvision_weights.read(tmp_path / "list.pt")
    torch.save({"epoch": 3, "models": [weights, {"head": torch.zeros(1)}]}, tmp_path / "list.pt")
    assert torchvision_weights.read(tmp_path / "list.pt").keys() == weights.keys()
