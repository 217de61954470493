"""SimCLR on 1, 2 and 4 real gloo processes: the global NT-Xent, equal to two loops in float64."""

import pytest
import torch

from data_pipelines.dataset_loading import load_dataset
from data_pipelines.plan import BatchShare
from tests.ranks.jobs import fork
from tests.ranks.test_ranks import WORLDS, recipe
from tests.trainer.objectives.test_simclr import nt_xent, projections
from trainer.recipe.loading import load
from trainer.training.build import build_objective
from trainer.training.data import ImageData

pytestmark = pytest.mark.slow  # ranks are started three times

STEPS = 8
SIMCLR = [
    "objective={kind: simclr, head: {units: 16, width: 8}}",
    "encoder.norm=group",
    "groups.negatives=global",
    "data.views=[{crop: {scale: {low: 0.5, high: 1.0}}, flip: 0.5}, {crop: {scale: {low: 0.5, high: 1.0}}}]",
]


@pytest.fixture(scope="module")
def words(digits) -> list[str]:
    critic = "objective.critic.units=32"  # of the objective that is replaced
    return [word for word in recipe(digits.root, "float64") if word != critic] + SIMCLR


@pytest.fixture(scope="module")
def runs(tmp_path_factory, words, forker):
    folder = tmp_path_factory.mktemp("simclr")
    jobs = [{"name": "simclr", "recipe": words, "do": ["free", "resume"], "steps": STEPS}]
    return {world: fork(forker, folder, world, jobs) for world in WORLDS}


def first_loss(words: list[str]) -> float:
    """The slow NT-Xent of the run's first global batch under its first weights."""
    chosen = load(words).recipe
    data = ImageData(chosen, load_dataset(chosen.data.root), torch.device("cpu"))
    loader = data.loader(BatchShare(chosen.batch), 0, chosen.batch)
    try:
        return nt_xent(*projections(build_objective(chosen), next(loader)), chosen.objective.temperature)
    finally:
        loader.close()
        data.close()


def test_the_first_loss_is_the_slow_one_on_any_ranks(runs, words):
    slow = first_loss(words)
    for world in WORLDS:
        assert runs[world]["simclr"]["losses"][0] == pytest.approx(slow, abs=1e-9)


def test_losses_are_equal_on_any_ranks(runs):
    reference = torch.tensor(runs[1]["simclr"]["losses"], dtype=torch.float64)
    assert reference.max() - reference.min() > 0.01
    for world in WORLDS[1:]:
        losses = torch.tensor(runs[world]["simclr"]["losses"], dtype=torch.float64)
        assert (losses - reference).abs().max() < 1e-9


@pytest.mark.parametrize("world", WORLDS)
def test_resumed_bit_for_bit(runs, world):
    assert runs[world]["simclr"]["different"] == [[]] * world
