"""DIM(L): groups, gradients, locations and what it tells, on networks small enough to check by hand."""

import math
from dataclasses import replace
from itertools import chain

import pytest
import torch

from data_pipelines.loader import Batch
from tests.helpers.tiny_dim import BOUNDS, GROUP, batch_of, dot_critic, follows_differences, images, tiny
from trainer.networks.batch_norm import GroupBatchNorm
from trainer.objectives import bounds
from trainer.objectives.dim import Dim


def gradients(objective: Dim) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in objective.parameters()])


@pytest.mark.parametrize("bound", BOUNDS)
def test_several_groups_are_the_mean_over_batches_of_one_group(bound):
    x = images(3 * GROUP)
    whole = tiny(bound)
    values = whole(batch_of(x))
    values["loss"].backward()
    alone = tiny(bound)
    parts = [alone(batch_of(part, first=GROUP * i)) for i, part in enumerate(x.split(GROUP))]
    torch.stack([part["loss"] for part in parts]).mean().backward()
    for name in ("loss", "local", "mi/local"):
        mean = torch.stack([part[name] for part in parts]).mean().item()
        assert values[name].item() == pytest.approx(mean, abs=1e-13)
    assert torch.allclose(gradients(whole), gradients(alone), rtol=1e-10, atol=1e-13)


def test_the_loss_is_the_bound_of_scores_computed_by_hand():
    objective = tiny("infonce", beta=0.5)
    x = images(GROUP)
    features = objective.encoder(x)
    local = objective.critic.local(features["local"])
    y = objective.critic.y(features["y"][:, :, None, None])[:, :, 0, 0]
    scores = torch.empty(GROUP, GROUP, 16, dtype=torch.float64)
    for i in range(GROUP):
        for j in range(GROUP):
            for place in range(16):
                scores[i, j, place] = y[i] @ local[j, :, place // 4, place % 4]
    values = objective(batch_of(x))
    loss = bounds.infonce_loss(bounds.reduce_scores(scores)).item()
    assert values["local"].item() == pytest.approx(loss, abs=1e-12)
    assert values["loss"].item() == pytest.approx(0.5 * loss, abs=1e-12)
    assert values["mi/local"].item() == pytest.approx(
        bounds.information(bounds.reduce_scores(scores)).item(), abs=1e-12
    )


@pytest.mark.parametrize("bound", BOUNDS)
def test_negatives_never_cross_groups(bound):
    x = images(2 * GROUP).requires_grad_()
    objective = tiny(bound)
    seen = {}
    scored = objective.critic.scores
    objective.critic.scores = lambda local, y: seen.setdefault(len(seen), scored(local, y))
    objective(batch_of(x))
    first, second = seen.values()
    assert first.shape == second.shape == (GROUP, GROUP, 16)
    moved = torch.autograd.grad(first.square().sum(), x, retain_graph=True)[0]
    assert (moved[:GROUP].flatten(1).abs().sum(1) > 0).all()
    assert (moved[GROUP:] == 0).all()
    before = first.detach().clone()
    seen.clear()
    with torch.no_grad():
        x[GROUP:] += 10
    objective(batch_of(x))
    assert torch.equal(seen[0].detach(), before)


def test_groups_of_negatives_may_be_smaller_than_groups_of_batch_norm():
    x = images(8)
    objective = tiny("jsd", group=8, negatives=2)
    features = objective.encoder(x)
    local, y = objective.critic(features["local"], features["y"])
    losses = [
        bounds.jsd_loss(bounds.reduce_scores(objective.critic.scores(local[i : i + 2], y[i : i + 2]))).item()
        for i in range(0, 8, 2)
    ]
    values = objective(batch_of(x))
    assert values["local"].item() == pytest.approx(sum(losses) / 4, abs=1e-12)
    assert values["mi/local/ceiling"] == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("name", "group", "negatives"), [("norm", 1, 1), ("norm", 1, None), ("negatives", 4, 1)]
)
def test_a_group_of_one_image_is_refused(name, group, negatives):
    with pytest.raises(ValueError, match=rf"^{name}=1: a group needs at least 2 images"):
        tiny(group=group, negatives=negatives)


# ---- gradient ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"locations": 5}, {"critic": dot_critic("tanh")}])
@pytest.mark.parametrize("bound", BOUNDS)
def test_the_gradient_equals_finite_differences(bound, options):
    objective = tiny(bound, **options)
    batch = batch_of(images(2 * GROUP))
    follows_differences(objective, batch)


# ---- locations --------------------------------------------------------------------------------------


def picked(objective: Dim, batch: Batch) -> list[list[int]]:
    """Which locations count, group by group."""
    places = torch.arange(16, dtype=torch.float64).expand(len(batch.views[0]), 16)[:, :, None]
    drawn = objective._locations(batch, places)[:, :, 0].long()
    groups = drawn.split(objective.negatives)
    for group in groups:
        assert (group == group[0]).all()  # one draw a group, the same for its images
    return [group[0].tolist() for group in groups]


def test_locations_are_drawn_per_group_whatever_the_micro_batches():
    objective = tiny(locations=7)
    x = images(4 * GROUP)
    whole = picked(objective, batch_of(x, seen=64))
    assert [len(places) for places in whole] == [7] * 4
    assert len({tuple(places) for places in whole}) == 4  # each group has its own
    for micro in (GROUP, 2 * GROUP):
        parts = [
            picked(objective, batch_of(x[at : at + micro], seen=64, first=at)) for at in range(0, 16, micro)
        ]
        assert list(chain.from_iterable(parts)) == whole
    assert picked(objective, batch_of(x, seen=64)) == whole
    assert picked(objective, batch_of(x, seen=80)) != whole
    assert picked(objective, batch_of(x, seen=64, seed=1)) != whole


def test_locations_are_drawn_with_replacement_from_all_of_the_map():
    objective = tiny(locations=40)
    (drawn,) = picked(objective, batch_of(images(GROUP)))
    assert len(drawn) == 40
    assert len(set(drawn)) > 10
    assert set(drawn) <= set(range(16))


@pytest.mark.parametrize("bound", BOUNDS)
def test_the_loss_with_drawn_locations_is_that_of_micro_batches(bound):
    x = images(4 * GROUP)
    objective = tiny(bound, locations=3)
    whole = objective(batch_of(x))
    halves = [objective(batch_of(x[at : at + 8], first=at)) for at in (0, 8)]
    for name in ("loss", "mi/local"):
        mean = sum(half[name].item() for half in halves) / 2
        assert whole[name].item() == pytest.approx(mean, abs=1e-13)
    assert whole["local/random_guess"] == bounds.random_guess(bound, GROUP, 3)


# ---- what the loop sees -----------------------------------------------------------------------------


def test_constants_beside_the_figures():
    values = tiny("infonce")(batch_of(images(2 * GROUP)))
    assert set(values) == {"loss", "local", "local/random_guess", "mi/local", "mi/local/ceiling"}
    assert values["local/random_guess"] == pytest.approx(math.log(1 + 3 * 16))
    assert values["mi/local/ceiling"] == pytest.approx(math.log(GROUP))
    assert tiny("jsd")(batch_of(images(GROUP)))["local/random_guess"] == 0
    assert values["loss"].requires_grad
    assert not values["local"].requires_grad
    assert not values["mi/local"].requires_grad


@pytest.mark.parametrize("bound", BOUNDS)
def test_a_critic_that_knows_nothing_gives_the_random_guess(bound):
    objective = tiny(bound)
    torch.nn.init.zeros_(objective.critic.y.norm.weight)
    values = objective(batch_of(images(2 * GROUP)))
    at_zero = math.exp(-1) if bound == "nwj" else 0.0  # its best constant is 1, not 0
    assert values["loss"].item() == pytest.approx(values["local/random_guess"] + at_zero, abs=1e-12)
    assert values["mi/local"].item() == pytest.approx(0, abs=1e-12)


def test_running_statistics_move_after_the_step_in_every_layer():
    objective = tiny()
    norms = [module for module in objective.modules() if isinstance(module, GroupBatchNorm)]
    objective(batch_of(images(2 * GROUP)))
    assert all((norm.running_mean == 0).all() for norm in norms)
    objective.after_step()
    assert len(norms) == 5  # two convolutions, fc, and both sides of the critic
    assert all((norm.running_mean != 0).any() and (norm.running_var != 1).any() for norm in norms)


def test_features_are_what_evaluation_reads():
    objective = tiny().eval()
    x = images(3)
    features = objective.features(x)
    assert {name: tuple(value.shape) for name, value in features.items()} == {
        "conv": (3, 16),
        "fc": (3, 5),
        "y": (3, 3),
    }
    assert torch.equal(features["y"], objective.encoder(x)["y"])


def test_it_learns_which_map_belongs_to_which_y():
    """Eight images that differ by a colour: after some steps the bound is well above chance."""
    torch.manual_seed(0)
    objective = tiny("infonce", group=8, negatives=8)
    colours = torch.eye(8, 3, dtype=torch.float64) + 0.3 * torch.randn(8, 3, dtype=torch.float64)
    batch = batch_of(colours[:, :, None, None] + 0.1 * images(8))
    optimizer = torch.optim.Adam(objective.parameters(), 1e-2)
    for step in range(60):
        batch = replace(batch, images_seen=8 * step)
        optimizer.zero_grad()
        values = objective(batch)
        values["loss"].backward()
        optimizer.step()
    assert values["loss"].item() < 0.5 * values["local/random_guess"]
    assert 1.0 < values["mi/local"].item() <= math.log(8)
