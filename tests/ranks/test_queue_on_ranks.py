"""The queue sharded over 1, 2 and 4 gloo processes against a replicated one, as in facebookresearch/moco."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from tests.helpers import ROOT
from tests.ranks import worker_queue as tiny
from trainer.objectives.momentum_queue import unit_keys

WORLDS = [1, 2, pytest.param(4, marks=pytest.mark.slow)]
# Steps from whose state one step is made in float32: a queue of mostly first keys, a wrapped one.
KEPT = (1, 19)
FEW = 12  # steps with accumulation: the queue wraps twice
KINDS = {"asymmetric": False, "symmetric": True}


def replicated(
    symmetric: bool, start: str, dtype: torch.dtype, first: int = 0, state: dict | None = None
) -> dict:
    """The oracle: the whole batch in one process, the queue [D, K] with a pointer, full logits, autograd.

    Source: facebookresearch/moco, moco/builder.py; symmetric as its CIFAR notebook.
    """
    encoder, key_encoder = tiny.encoders(dtype)
    batch = tiny.IMAGES * (1 + symmetric)
    if start == "random":
        queue = unit_keys(tiny.SEED, range(tiny.SLOTS), 0, batch, tiny.WIDTH).flatten(0, 1).T.to(dtype)
    else:
        queue = torch.zeros(tiny.WIDTH, 0, dtype=dtype)
    if state:
        torch.nn.utils.vector_to_parameters(state["encoder"], encoder.parameters())
        torch.nn.utils.vector_to_parameters(state["key_encoder"], key_encoder.parameters())
        queue = state["keys"].transpose(0, 1).flatten(0, 1).T
    history = {"losses": [], "gradients": [], "parameters": [], "states": {}}
    stop = first + 1 if state else tiny.STEPS
    for step in range(first, stop):
        if step in KEPT:
            history["states"][step] = {
                "encoder": tiny.flat(encoder.parameters()),
                "key_encoder": tiny.flat(key_encoder.parameters()),
                "keys": in_slots(queue, batch),
            }
        both = tiny.views(step, dtype)
        q, k = (F.normalize(net(both), dim=2) for net in (encoder, key_encoder))
        loss = 0
        for i, j in ((0, 1), (1, 0))[: 1 + symmetric]:
            positive = torch.einsum("nc,nc->n", q[i], k[j])[:, None]
            logits = torch.cat([positive, torch.einsum("nc,ck->nk", q[i], queue.clone())], dim=1) / tiny.TAU
            loss = loss + F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))
        loss.backward()
        history["losses"].append(loss.detach())
        history["gradients"].append(tiny.gradient_step(encoder, key_encoder))
        history["parameters"].append(tiny.flat([*encoder.parameters(), *key_encoder.parameters()]))
        keys = k.transpose(0, 1).flatten(0, 1) if symmetric else k[1]
        if queue.shape[1] < tiny.SLOTS * batch:
            queue = torch.cat([queue, keys.T], dim=1)
        else:
            place = step % tiny.SLOTS * batch
            queue[:, place : place + batch] = keys.T
    history["queue"] = in_slots(queue, batch)
    return {name: torch.stack(v) if isinstance(v, list) else v for name, v in history.items()}


def in_slots(queue: torch.Tensor, batch: int) -> torch.Tensor:
    """[D, K] -> [batch, slots, D]."""
    return queue.T.reshape(-1, batch, tiny.WIDTH).transpose(0, 1).contiguous()


def jobs() -> list[dict]:
    made = []
    for kind, symmetric in KINDS.items():
        whole = {
            "symmetric": symmetric,
            "dtype": "float64",
            "start": "random",
            "stop": tiny.STEPS,
            "micros": 1,
        }
        made += [whole | {"name": f"{kind}-micros-1"}]
        made += [whole | {"name": f"{kind}-micros-{m}", "micros": m, "stop": FEW} for m in (2, 4)]
        made += [whole | {"name": f"{kind}-empty", "start": "empty"}]
        made += [
            whole | {"name": f"{kind}-one-{s}", "from": kind, "first": s, "stop": s + 1, "dtype": "float32"}
            for s in KEPT
        ]
    return made


@pytest.fixture(scope="module")
def oracles(tmp_path_factory) -> dict:
    """(kind, start) -> the oracle's results; "folder" -> the folder of the states to start from."""
    folder = tmp_path_factory.mktemp("queue")
    (folder / "jobs.json").write_text(json.dumps(jobs()))
    made = {"folder": folder}
    for kind, symmetric in KINDS.items():
        for start in ("random", "empty"):
            made[kind, start] = replicated(symmetric, start, torch.float64)
        for step, state in made[kind, "random"]["states"].items():
            single = {name: tensor.float() for name, tensor in state.items()}
            save_file(single, folder / f"{kind}-{step}.safetensors")
            made[kind, step] = replicated(symmetric, "random", torch.float32, step, single)
    return made


@pytest.fixture(scope="module", params=WORLDS)
def result_of(request, oracles):
    """A function that returns a job's results on that many ranks by its name."""
    world, folder = request.param, oracles["folder"]
    command = [sys.executable, str(Path(__file__).with_name("worker_queue.py")), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(world)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(world)
    ]
    for rank in ranks:
        _, complaints = rank.communicate(timeout=120)
        assert rank.returncode == 0, complaints
    return lambda name: load_file(folder / f"{name}-on-{world}.safetensors")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", ["random", "empty"])
def test_float64_equals_the_replicated_queue(result_of, oracles, kind, start):
    expected = oracles[kind, start]
    assert expected["losses"][-1] < expected["losses"][5] - 0.3  # it learns: the comparison is of something
    assert (expected["parameters"][-1] - expected["parameters"][0]).abs().max() > 0.1
    result = result_of(f"{kind}-micros-1" if start == "random" else f"{kind}-empty")
    for name in ("losses", "gradients", "parameters", "queue"):
        assert result[name].shape == expected[name].shape
        assert (result[name] - expected[name]).abs().max() < 1e-12, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("micros", [2, 4])
def test_accumulation_equals_the_replicated_queue(result_of, oracles, kind, micros):
    result = result_of(f"{kind}-micros-{micros}")
    for name in ("losses", "gradients", "parameters"):
        assert len(result[name]) == FEW
        assert (result[name] - oracles[kind, "random"][name][:FEW]).abs().max() < 1e-9, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", KEPT)
def test_float32_one_step_from_the_same_state(result_of, oracles, kind, step):
    result, expected = result_of(f"{kind}-one-{step}"), oracles[kind, step]
    assert expected["gradients"].norm() > 0.1
    assert (result["losses"] - expected["losses"]).abs().max() < 1e-5
    for name in ("gradients", "parameters", "queue"):
        assert (result[name] - expected[name]).norm() < 1e-5 * expected[name].norm(), name
