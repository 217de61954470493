"""One result whatever runs it, and resuming to the bit, on 1, 2 and 4 real gloo processes.

(a) float64: 20 steps give equal losses to 1e-9. (b) float32: one step from the same state gives equal
losses and gradients. (c) float32, free: the same samples, losses within 1e-2. And a run resumed after
any step ends with the bits of one that was not.
"""

from itertools import chain
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.ranks.jobs import fork

WORLDS = (1, 2, 4)
KEEP = (0, 1, 5, 19)
STEPS = 20


def recipe(data: Path, precision: str) -> list[str]:
    """A network of a few thousand parameters, with everything random that a view can have."""
    return [
        "recipe=quickstart",
        f"data.root={data}",
        f"precision={precision}",
        "batch=64",
        "groups.norm=16",
        "data.size=16",
        "encoder.channels=[8, 16]",
        "encoder.fc=32",
        "encoder.y=16",
        "objective.critic.units=32",
        "data.threads=1",
        "data.views=[{crop: {scale: {low: 0.5, high: 1.0}}, flip: 0.5, grayscale: 0.5}]",
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, digits, forker):
    """The folder of the jobs, and their results by number of ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    wide, single = recipe(digits.root, "float64"), recipe(digits.root, "float32")
    jobs = [
        {"name": "float64", "recipe": wide, "do": ["free"], "steps": STEPS},
        {"name": "float32", "recipe": single, "do": ["free"], "steps": STEPS, "keep": KEEP},
        {"name": "one step", "recipe": single, "do": ["one_step"], "from": ["float32"], "at": KEEP},
        {"name": "resume", "recipe": single, "do": ["resume"], "steps": 6},
    ]
    results_on = {1: fork(forker, folder, 1, jobs)}
    jobs[1].pop("keep")  # one process has kept them for all
    return folder, results_on | {world: fork(forker, folder, world, jobs) for world in WORLDS[1:]}


def test_float64_losses_are_equal_on_any_ranks(runs):
    _, results_on = runs
    reference = torch.tensor(results_on[1]["float64"]["losses"], dtype=torch.float64)
    assert len(reference) == STEPS
    assert reference.max() - reference.min() > 0.1  # it moves: the comparison is of something
    for world in WORLDS[1:]:
        losses = torch.tensor(results_on[world]["float64"]["losses"], dtype=torch.float64)
        assert (losses - reference).abs().max() < 1e-9


@pytest.mark.parametrize("world", WORLDS)
def test_float32_one_step_from_the_same_state(runs, world):
    folder, results_on = runs
    assert results_on[world]["one step"]["restored"] == [[]] * world
    for step in KEEP:
        expected, loss = (results_on[w]["one step"]["one step"][f"float32 {step}"] for w in (1, world))
        assert abs(loss - expected) < 1e-6
        names = [f"gradient one step {w} float32 {step}.safetensors" for w in (1, world)]
        assert distance(*(load_file(folder / name)["gradient"] for name in names)) < 1e-5


def distance(expected: torch.Tensor, gradient: torch.Tensor) -> float:
    """Between gradients of all parameters as one vector, relative."""
    assert expected.norm() > 0
    return ((gradient - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("world", WORLDS[1:])
def test_float32_free_runs_see_the_same_samples(runs, world):
    _, results_on = runs

    def global_batches(ranks: list) -> list:
        """[step][ids or positions] -> those of all ranks in a row."""
        return [
            [list(chain.from_iterable(rank[step][what][0] for rank in ranks)) for what in (0, 1)]
            for step in range(STEPS)
        ]

    reference = global_batches(results_on[1]["float32"]["ids"])
    assert reference[3][1] == list(range(3 * 64, 4 * 64))
    assert global_batches(results_on[world]["float32"]["ids"]) == reference
    losses = [torch.tensor(results_on[w]["float32"]["losses"]) for w in (1, world)]
    assert (losses[0] - losses[1]).abs().max() < 1e-2


@pytest.mark.parametrize("world", WORLDS)
def test_resumed_after_any_step_bit_for_bit(runs, world):
    _, results_on = runs
    assert results_on[world]["resume"]["tensors"] > 50
    assert results_on[world]["resume"]["different"] == [[]] * world
