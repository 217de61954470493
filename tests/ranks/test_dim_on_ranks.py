"""All terms of Deep InfoMax on 1, 2 and 4 real gloo processes: losses equal to 1e-9, resume to the bit."""

import pytest
import torch

from tests.ranks.jobs import fork
from tests.ranks.test_ranks import WORLDS, recipe

STEPS = 8
COMPLETE = [
    "objective.bound=dv",  # with MINE's running mean, fed by the groups of all ranks
    "objective.critic.score=tanh",
    "objective.alpha=0.5",
    "objective.gamma=0.5",
    "objective.prior.units=[16, 8]",
    "objective.coordinates=0.3",
    "objective.occlusion=0.4",
    "objective.supervised={classes: 10, units: 8}",
    "objective.locations=9",
    "optimizer.clip=0.5",
]
EVERYONE = ["encoder.norm=group", "groups.negatives=global", "objective.alpha=0.5"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, digits, forker):
    folder = tmp_path_factory.mktemp("dim")
    base = recipe(digits.root, "float64")
    jobs = [{"name": "complete", "recipe": base + COMPLETE, "do": ["free"], "steps": STEPS}]
    jobs += [{"name": "resume", "recipe": base + COMPLETE, "do": ["resume"], "steps": 4}]
    for bound in ("infonce", "jsd", "dv"):
        options = [*base, *EVERYONE, f"objective.bound={bound}", "objective.critic.score=tanh"]
        jobs.append({"name": bound, "recipe": options, "do": ["free"], "steps": STEPS})
    return {world: fork(forker, folder, world, jobs) for world in WORLDS}


@pytest.mark.parametrize("job", ["complete", "infonce", "jsd", "dv"])
def test_losses_are_equal_on_any_ranks(runs, job):
    reference = torch.tensor(runs[1][job]["losses"], dtype=torch.float64)
    assert len(reference) == STEPS
    assert reference.max() - reference.min() > 0.1  # it moves: the comparison is of something
    for world in WORLDS[1:]:
        losses = torch.tensor(runs[world][job]["losses"], dtype=torch.float64)
        assert (losses - reference).abs().max() < 1e-9


@pytest.mark.parametrize("world", WORLDS)
def test_resumed_with_every_term_bit_for_bit(runs, world):
    assert runs[world]["resume"]["different"] == [[]] * world
