"""Key views that are shuffled across ranks: keys travel home, and nothing depends on the number of ranks."""

import pytest
import torch

from tests.ranks.jobs import fork
from tests.ranks.test_ranks import WORLDS, recipe

pytestmark = pytest.mark.slow
STEPS = 8
VIEW = "{crop: {scale: {low: 0.5, high: 1.0}}, flip: 0.5, grayscale: 0.5}"
SPANNING = [  # a block is the whole batch: of 2 and 4 ranks each makes keys of all others' images
    f"data.views=[{VIEW}, {VIEW}]",
    "objective={kind: moco, momentum: 0.5, shuffle: 4, queue: {keys: 256}, head: {units: 16, width: 8}}",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, digits, forker):
    folder = tmp_path_factory.mktemp("shuffle")
    words = [word for word in recipe(digits.root, "float64") if not word.startswith("objective.")]
    words = [word for word in words if not word.startswith("data.views")] + SPANNING
    jobs = [
        {"name": name, "recipe": [*words, *more], "do": ["free", "resume"], "steps": STEPS}
        for name, more in (("float64", []), ("bf16", ["objective.queue.bf16=true"]))
    ]
    return {world: fork(forker, folder, world, jobs) for world in WORLDS}


@pytest.mark.parametrize("queue", ["float64", "bf16"])
def test_losses_are_equal_on_any_ranks(runs, queue):
    reference = torch.tensor(runs[1][queue]["losses"], dtype=torch.float64)
    assert len(set(reference.tolist())) == STEPS
    for world in WORLDS[1:]:
        losses = torch.tensor(runs[world][queue]["losses"], dtype=torch.float64)
        assert (losses - reference).abs().max() < 1e-9


def test_a_queue_in_bf16_costs_little(runs):
    one, two = (torch.tensor(runs[2][queue]["losses"], dtype=torch.float64) for queue in ("float64", "bf16"))
    assert 0 < (one - two).abs().max() < 1e-2


def test_key_views_are_of_other_ranks_images(runs):
    for rank in runs[2]["float64"]["ids"]:
        for ids, positions in rank:
            (queries, keys), (places, key_places) = ids, positions
            assert set(keys) - set(queries)
            assert set(key_places) - set(places)


@pytest.mark.parametrize("queue", ["float64", "bf16"])
@pytest.mark.parametrize("world", WORLDS)
def test_resumed_bit_for_bit(runs, world, queue):
    assert runs[world][queue]["different"] == [[]] * world
