"""The plan on a cluster: by hand, against what a step really hands to the collectives, and as printed."""

import pytest
import torch

from data_pipelines.common.errors import UserError
from tests.helpers import tiny_moco
from tests.helpers.command_lines import script
from trainer.distributed import collectives
from trainer.distributed.engine_kind import EngineKind
from trainer.networks.batch_norm import GroupBatchNorm
from trainer.recipe.loading import load
from trainer.tasks import cluster_plan
from trainer.tasks.cluster_plan import Cluster, Traffic, kept, taken, traffic_of
from trainer.tasks.resources import Sizes, sizes_of
from trainer.training.build import build_objective

WEIGHTS = Traffic(parameters=1000, trained=600)
STATE = Sizes(parameters=1000, gradients=600, moments=1200, queue=800, exported=0)


def test_words_about_the_machines_are_taken_from_the_others():
    words = ["recipe=dim_local", "nodes=4", "batch=512", "speed=1e3"]
    assert taken(words) == (Cluster(nodes=4, speed=1000.0), ["recipe=dim_local", "batch=512"])
    assert taken(words[::2]) == (None, words[::2])
    assert Cluster(nodes=4, gpus=2).ranks == 8


@pytest.mark.parametrize(
    "word", ["nodes=0", "gpus=x", "gpus=1.5", "speed=-1", "network=0", "card=nan", "nodes="]
)
def test_numbers_that_make_no_sense_are_refused(word):
    with pytest.raises(UserError, match=rf"^{word}: expected a "):
        taken([word])


@pytest.mark.parametrize(
    ("engine", "bytes_sent", "bytes_kept"),
    [
        (EngineKind.DDP, 2 * 600 * 3 // 4, 1000 + 600 + 1200 + 200),
        (EngineKind.ZERO1, 2 * 600 * 3 // 4, 1000 + 600 + 300 + 200),
        (EngineKind.ZERO2, 2 * 600 * 3 // 4, 1000 + 150 + 300 + 200),
        (EngineKind.ZERO3, (600 + 1000 + 600) * 3 // 4, 250 + 150 + 300 + 200),
        (EngineKind.FSDP2, (600 + 1000 + 600) * 3 // 4, 250 + 150 + 300 + 200),
    ],
)
def test_four_ranks_by_hand(engine, bytes_sent, bytes_kept):
    assert WEIGHTS.sent(engine, 4, 1) == bytes_sent
    assert kept(engine, STATE, 4) == bytes_kept
    assert WEIGHTS.sent(engine, 1, 1) == 0


def test_engines_that_cut_weights_gather_them_for_each_micro_batch():
    assert WEIGHTS.sent(EngineKind.FSDP2, 2, 3) == (600 + 3 * 1600) // 2
    assert WEIGHTS.sent(EngineKind.DDP, 2, 3) == 600


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_step_hands_the_collectives_what_the_plan_says(symmetric, monkeypatch):
    """On one rank every collective is a pass-through: what goes in is what ranks would exchange."""
    seen: dict[str, int] = {}

    def spied(name):
        plain = getattr(collectives, name)

        def call(tensor):
            seen[name] = seen.get(name, 0) + tensor.nbytes
            return plain(tensor)

        monkeypatch.setattr(collectives, name, call)

    for name in ("all_gather", "all_reduce_max", "reduce_scatter", "all_reduce_mean"):
        spied(name)
    words = ["recipe=moco_cifar10_small", "encoder.width=8", "objective.queue.keys=1024", "batch=128"]
    recipe = load([*words, f"objective.symmetric={str(symmetric).lower()}", "groups.norm=32"]).recipe
    objective = build_objective(recipe).train()
    batch = tiny_moco.batch_of([torch.rand(128, 3, 32, 32)] * 2, 0, shuffle=False)
    objective(batch)["loss"].backward()
    objective.after_step()
    traffic = traffic_of(recipe, objective, sizes_of(recipe, objective), 1)
    assert any(isinstance(module, GroupBatchNorm) for module in objective.modules())
    assert traffic.statistics == seen["all_reduce_mean"]
    exchanged = seen["all_gather"] + cluster_plan.RING * seen["all_reduce_max"] + seen["reduce_scatter"]
    assert traffic.contrast == exchanged
    assert traffic.trained == sum(p.nbytes for p in objective.parameters() if p.requires_grad)


def plan(capsys, *words: str):
    return script(capsys, *words, "--plan")


def test_what_is_printed(capsys, tmp_path, digits):
    words = ["recipe=quickstart", f"data.root={digits.root}", f"outputs={tmp_path}"]
    given = plan(capsys, *words, "nodes=2", "gpus=1", "speed=100", "card=0.001")
    assert given.status == 0, given.err
    lines = given.out.splitlines()
    assert "cluster    2 nodes with 1 GPU: 2 ranks, 64 images a rank and step = 1 x 64" in lines
    for engine in cluster_plan.ENGINES:
        (line,) = [line for line in lines if line.split()[:1] == [engine]]
        assert "TOO MUCH" in line
    (line,) = [line for line in lines if line.startswith("time ")]
    assert "at 200 images/s" in line
    assert not list(tmp_path.iterdir())


def test_engines_that_lars_refuses_are_left_out(capsys, tmp_path, digits):
    lars = "optimizer={kind: lars, lr: 0.1}"
    words = ["recipe=quickstart", f"data.root={digits.root}", f"outputs={tmp_path}", lars]
    given = plan(capsys, *words, "nodes=2", "gpus=1")
    assert given.status == 0, given.err
    names = [line.split()[0] for line in given.out.splitlines() if " ms" in line]
    assert names == ["ddp", "fsdp2"]


def test_ranks_that_do_not_divide_are_refused_with_what_would_do(capsys, digits):
    given = plan(capsys, "recipe=quickstart", f"data.root={digits.root}", "nodes=3", "gpus=1")
    assert given.status == 2
    assert given.err.count("\n") == 1
    assert "does not divide over 3 processes" in given.err


def test_lanes_that_do_not_divide_are_refused_too(capsys, digits):
    words = ["recipe=quickstart", f"data.root={digits.root}", "data.lanes=3"]
    given = plan(capsys, *words, "nodes=2", "gpus=1")
    assert given.status == 2
    assert given.err.startswith("error: data.lanes=3 does not divide batch=128; what works: 1, 2, 4, 8, 16")


def test_the_words_are_of_plans_alone(capsys):
    given = script(capsys, "recipe=quickstart", "nodes=2", "--print")
    assert given.status == 2
    assert "nodes" in given.err
