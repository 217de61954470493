"""A hybrid of a ResNet, noise on its latent, a momentum that rises: on 1, 2 and 4 real gloo processes."""

import pytest
import torch

from tests.ranks.jobs import fork
from tests.ranks.test_ranks import WORLDS

pytestmark = pytest.mark.slow  # ranks are started three times

STEPS = 6
CROP = "crop: {scale: {low: 0.5, high: 1.0}}"
MOCO = "{kind: moco, symmetric: true, momentum: 0.5, final_momentum: 0.9, shuffle: 2, queue: {keys: 384}}"


def words(root) -> list[str]:
    return [
        "recipe=quickstart",
        f"data.root={root}",
        "precision=float64",
        "batch=64",
        "groups.norm=8",
        f"images={STEPS * 64}",
        "data.size=16",
        "data.threads=1",
        f"data.views=[{{{CROP}, flip: 0.5}}, {{{CROP}}}]",
        "encoder={kind: resnet, depth: 18, stem: cifar, width: 2, y: 6, w: {channels: 2}}",
        "encoder.w.decoder={width: 8, tower: 1}",
        f"objective={{kind: hybrid, omega: 0.1, decoder_noise: 0.5, contrast: {MOCO}}}",
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, digits, forker):
    folder = tmp_path_factory.mktemp("hybrid")
    noisy = words(digits.root)
    quiet = [word.replace("decoder_noise: 0.5", "decoder_noise: 0.0") for word in noisy]
    jobs = [
        {"name": "noisy", "recipe": noisy, "do": ["free"], "steps": STEPS},
        {"name": "quiet", "recipe": quiet, "do": ["free"], "steps": 2},
        {"name": "resume", "recipe": noisy, "do": ["resume"], "steps": 3},
    ]
    return {world: fork(forker, folder, world, jobs) for world in WORLDS}


def test_losses_are_equal_on_any_ranks(runs):
    noisy, quiet = (runs[1][name]["losses"] for name in ("noisy", "quiet"))
    assert max(noisy) - min(noisy) > 0.1
    assert noisy[0] != quiet[0]  # the noise has a part in it
    for world in WORLDS[1:]:
        for name in ("noisy", "quiet"):
            losses = torch.tensor(runs[world][name]["losses"], dtype=torch.float64)
            expected = torch.tensor(runs[1][name]["losses"], dtype=torch.float64)
            assert (losses - expected).abs().max() < 1e-9


@pytest.mark.parametrize("world", WORLDS)
def test_resumed_bit_for_bit(runs, world):
    """At every step, whose momentum is that of the images seen."""
    assert runs[world]["resume"]["different"] == [[]] * world
