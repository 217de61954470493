"""What a launch file asks for, as the launcher hands it on, and what of it is refused."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from torch import nn

from data_pipelines.common.errors import UserError
from tests.helpers import ROOT
from trainer.distributed import launch
from trainer.distributed.engine_kind import EngineKind
from trainer.engines.engine import Ddp, check_engine

ZERO = {"ACCELERATE_USE_DEEPSPEED": "true"}
FSDP = {"ACCELERATE_USE_FSDP": "true"}
STAGE = "ACCELERATE_DEEPSPEED_ZERO_STAGE"
RANK = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def without_launcher(monkeypatch):
    for name in (*ZERO, *FSDP, STAGE, "FSDP_VERSION", "FSDP_OFFLOAD_PARAMS", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "engine"),
    [
        ({}, "single process"),
        (RANK | {"WORLD_SIZE": "1"}, "single process"),
        (RANK | {"WORLD_SIZE": "2"}, "ddp"),
        (ZERO | RANK | {STAGE: "1", "WORLD_SIZE": "1"}, "zero1"),
        (ZERO | {STAGE: "3", "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none"}, "zero3"),
        (FSDP | {"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "false"}, "fsdp2"),
    ],
)
def test_the_engine_is_the_launch_files(monkeypatch, environment, engine):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    kind = launch.engine_of_launch_file()
    assert isinstance(kind, EngineKind)
    assert kind == engine


def test_an_engine_is_printed_and_stored_by_its_name():
    """world.json, manifests and MLflow tags of old runs have these strings."""
    names = ["single process", "ddp", "zero1", "zero2", "zero3", "fsdp2"]
    assert [f"{kind}" for kind in EngineKind] == [str(kind) for kind in EngineKind] == names
    assert json.dumps(list(EngineKind)) == json.dumps(names)
    assert [kind.stage for kind in EngineKind] == [0, 0, 1, 2, 3, 0]
    assert [kind.is_zero for kind in EngineKind] == [False, False, True, True, True, False]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (ZERO | {STAGE: "0"}, r"ZeRO stage 0; expected 1, 2 or 3: recipes/launch/"),
        (ZERO | {STAGE: "2", "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "offloading"),
        (ZERO | {STAGE: "2", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "mine.json"}, "configuration of its own"),
        (FSDP | {"FSDP_VERSION": "1"}, r"asks for FSDP 1 .* recipes/launch/fsdp2\.yaml"),
        (FSDP | {"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "offloading"),
    ],
)
def test_what_no_engine_does_is_refused_in_one_line(monkeypatch, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message) as mistake:
        launch.engine_of_launch_file()
    assert "\n" not in str(mistake.value)


def test_a_missing_deepspeed_is_one_line(monkeypatch):
    for name, value in (ZERO | {STAGE: "2"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # so no import finds it
    with pytest.raises(UserError, match="ZeRO-2, but DeepSpeed is not installed: pip install deepspeed, or"):
        launch.engine_of_launch_file()


def test_an_engine_that_became_another_is_refused_in_one_line():
    model = nn.Linear(1, 1)
    check_engine(EngineKind.DDP, True, model)
    with pytest.raises(
        UserError, match="asks for ddp, but Linear would run; install the versions of"
    ) as mistake:
        check_engine(EngineKind.DDP, isinstance(model, torch.nn.parallel.DistributedDataParallel), model)
    assert "\n" not in str(mistake.value)


@pytest.mark.parametrize(
    ("environment", "engine"), [(ZERO | {STAGE: "2"}, "zero2"), (FSDP | {"FSDP_VERSION": "2"}, "fsdp2")]
)
def test_an_engine_of_several_ranks_in_a_single_process_is_refused(monkeypatch, environment, engine):
    """As where a program started by hand finds a launch file's environment, but no group of ranks."""
    for name in ("ACCELERATE_USE_CPU", "ACCELERATE_MIXED_PRECISION", "DS_ACCELERATOR"):
        monkeypatch.setenv(name, "cpu" if name == "DS_ACCELERATOR" else "no")  # `start` sets them: undone
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    AcceleratorState._reset_state(True)
    with pytest.raises(UserError, match=f"asks for {engine}, but this is a single process; use ") as mistake:
        launch.start("float32")
    assert "recipes/launch/ddp.yaml" in str(mistake.value)
    assert "\n" not in str(mistake.value)
    AcceleratorState._reset_state(True)


def test_ddp_that_nothing_was_wrapped_for_is_refused():
    """As by an accelerate that believes to be alone; the same of the other engines: tests/ranks."""
    alone = SimpleNamespace(accelerator=SimpleNamespace(prepare=lambda model: model), device=None)
    with pytest.raises(UserError, match="asks for ddp, but Linear would run"):
        Ddp(nn.Linear(1, 1), lambda parameters: torch.optim.SGD(parameters, lr=0.1), alone, "float32", {})


def test_every_launch_file_is_of_its_engine():
    folder = ROOT / "recipes/launch"
    files = {path.stem: yaml.safe_load(path.read_text()) for path in folder.glob("*.yaml")}
    assert files.keys() == {"cpu", "ddp", "zero1", "zero2", "zero3", "fsdp2"}
    for stage in (1, 2, 3):
        assert files[f"zero{stage}"]["distributed_type"] == "DEEPSPEED"
        assert files[f"zero{stage}"]["deepspeed_config"]["zero_stage"] == stage
    assert files["fsdp2"]["fsdp_config"]["fsdp_version"] == 2
