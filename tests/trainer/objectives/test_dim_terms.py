"""DIM(G), both critics, all terms together, negatives over everything: on networks small enough to check."""

import math

import pytest
import torch

from tests.helpers.tiny_dim import BOUNDS, GROUP, batch_of, dot_critic, follows_differences, images, tiny
from trainer.objectives import bounds
from trainer.recipe.objectives import ConcatCritic, DimObjective, Prior, Supervised

CONCAT = ConcatCritic(kind="concat", units=6)
COMPLETE = {
    "alpha": 0.5,
    "beta": 0.7,
    "gamma": 0.1,
    "global_critic": CONCAT,
    "prior": Prior(units=[8, 5]),
}


def perceptron(critic, feature, y):
    """[feature, y] through the three layers, one pair at a time."""
    first = critic.local.weight @ feature + critic.local.bias + critic.y.weight @ y
    hidden = critic.hidden.weight @ torch.relu(first) + critic.hidden.bias
    return critic.out.weight[0] @ torch.relu(hidden) + critic.out.bias[0]


@pytest.mark.parametrize("bound", BOUNDS)
def test_the_global_term_with_the_published_critic_equals_a_loop(bound):
    objective = tiny(bound, alpha=2.0, beta=0.0, global_critic=CONCAT)
    x = images(GROUP)
    features = objective.encoder(x)
    flat, y = features["local"].flatten(1), features["y"]
    rows = [[perceptron(objective.global_critic, flat[j], y[i]) for j in range(GROUP)] for i in range(GROUP)]
    scores = torch.stack([torch.stack(row) for row in rows])[:, :, None]
    values = objective(batch_of(x))
    loss = bounds.LOSSES[bound](bounds.reduce_scores(scores)).item()
    assert values["global"].item() == pytest.approx(loss, abs=1e-12)
    assert values["loss"].item() == pytest.approx(2 * loss, abs=1e-12)
    assert values["mi/global"].item() == pytest.approx(
        bounds.information(bounds.reduce_scores(scores)).item()
    )
    assert "local" not in values
    assert not hasattr(objective, "critic")  # nothing that is not trained


def test_the_global_term_of_the_released_code_equals_a_loop():
    objective = tiny("infonce", alpha=1.0, beta=0.0, global_critic=dot_critic("scaled"))
    x, critic = images(GROUP), objective.global_critic
    features = objective.encoder(x)
    whole, y = critic.local[0](features["local"]), features["y"]
    scores = torch.empty(GROUP, GROUP, 1, dtype=torch.float64)
    for i in range(GROUP):
        for j in range(GROUP):
            one = critic.y.weight @ y[i] + critic.y.bias
            other = critic.local[1].weight @ whole[j] + critic.local[1].bias
            scores[i, j, 0] = one @ other / math.sqrt(6)
    loss = bounds.infonce_loss(bounds.reduce_scores(scores)).item()
    assert objective(batch_of(x))["global"].item() == pytest.approx(loss, abs=1e-12)


@pytest.mark.parametrize("bound", BOUNDS)
def test_the_local_term_with_the_concat_critic_equals_a_loop(bound):
    objective = tiny(bound, critic=CONCAT)
    x = images(GROUP)
    features = objective.encoder(x)
    scores = torch.empty(GROUP, GROUP, 16, dtype=torch.float64)
    for i in range(GROUP):
        for j in range(GROUP):
            for place in range(16):
                feature = features["local"][j, :, place // 4, place % 4]
                scores[i, j, place] = perceptron(objective.critic, feature, features["y"][i])
    loss = bounds.LOSSES[bound](bounds.reduce_scores(scores)).item()
    assert objective(batch_of(x))["local"].item() == pytest.approx(loss, abs=1e-12)


@pytest.mark.parametrize("bound", BOUNDS)
def test_pieces_change_nothing(bound, monkeypatch):
    results = []
    for piece in (2**22, 100):
        monkeypatch.setattr(bounds, "PIECE", piece)
        objective = tiny(bound, alpha=1.0, critic=CONCAT, global_critic=CONCAT)
        values = objective(batch_of(images(2 * GROUP)))
        values["loss"].backward()
        results.append((values["loss"].item(), torch.cat([p.grad.flatten() for p in objective.parameters()])))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    assert torch.allclose(results[0][1], results[1][1], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("bound", BOUNDS)
def test_the_gradient_of_all_terms_equals_finite_differences(bound):
    options = {**COMPLETE, "gamma": 0.0, "coordinates": 0.3, "occlusion": 0.5}
    options["supervised"] = Supervised(classes=2, units=4, weight=0.5)
    follows_differences(tiny(bound, **options), batch_of(images(2 * GROUP)))


def test_the_loss_is_the_weighted_sum_of_its_parts():
    values = tiny("jsd", **COMPLETE, coordinates=0.3)(batch_of(images(2 * GROUP)))
    parts = 0.5 * values["global"] + 0.7 * values["local"] + 0.3 * values["coordinates"]
    assert values["loss"].item() == pytest.approx((parts + values["prior/discriminator"]).item(), abs=1e-12)
    wanted = {"global", "local", "prior", "prior/discriminator", "prior/penalty", "coordinates", "mi/global"}
    assert wanted <= set(values)
    assert not any(value.requires_grad for name, value in values.items() if name != "loss" and name in wanted)


@pytest.mark.parametrize("options", [COMPLETE, {"occlusion": 0.5}, {"bound": "dv"}])
def test_micro_batches_give_the_gradient_of_the_whole(options):
    """Prior samples and hidden squares belong to groups; the running mean moves once, by all of them."""
    options = dict(options)
    bound, x = options.pop("bound", "jsd"), images(4 * GROUP)
    whole, parted = (tiny(bound, **options) for _ in range(2))
    for step in range(2):
        whole(batch_of(x, seen=16 * step))["loss"].backward()
        for at in (0, 8):
            (parted(batch_of(x[at : at + 8], seen=16 * step, first=at))["loss"] / 2).backward()
        for objective in (whole, parted):
            objective.after_step()
    for one, other in zip(whole.parameters(), parted.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-9, atol=1e-12)
    for one, other in zip(whole.buffers(), parted.buffers(), strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-14)


def test_occlusion_hides_from_y_and_not_from_the_map():
    objective, x = tiny("infonce", occlusion=0.5), images(GROUP).requires_grad_()
    local, y = {}, {}
    encode = objective.critic.forward

    def noted(a, b):
        local["map"], y["y"] = a, b
        return encode(a, b)

    objective.critic.forward = noted
    objective(batch_of(x))
    (through_map,) = torch.autograd.grad(local["map"].square().sum(), x, retain_graph=True)
    (through_y,) = torch.autograd.grad(y["y"].square().sum(), x)
    assert (through_map != 0).all()
    assert ((through_y == 0).sum((1, 2, 3)) == 3 * 16).all()  # a square of 4 x 4 in three channels


# ---- negatives over everything ------------------------------------------------------------------------


@pytest.mark.parametrize("bound", BOUNDS)
def test_global_negatives_are_one_group_of_the_whole_batch(bound):
    x = images(3 * GROUP)
    results = []
    for negatives in (None, 3 * GROUP):
        objective = tiny(bound, norm="group", negatives=negatives, alpha=0.5, global_critic=CONCAT)
        values = objective(batch_of(x))
        values["loss"].backward()
        numbers = {name: torch.as_tensor(value).item() for name, value in values.items()}
        results.append((numbers, torch.cat([p.grad.flatten() for p in objective.parameters()])))
    (one, gradient), (other, wanted) = results
    assert one == pytest.approx(other, rel=1e-12)
    assert torch.allclose(gradient, wanted, rtol=1e-9, atol=1e-13)


def test_an_evaluation_takes_groups_where_training_takes_everything():
    objective = tiny("infonce", norm="group", negatives=None).eval()
    assert objective(batch_of(images(2 * GROUP)))["mi/local/ceiling"] == pytest.approx(math.log(GROUP))


def test_global_negatives_with_statistics_over_images_are_refused():
    with pytest.raises(ValueError, match=r"^negatives=global with encoder\.norm=batch"):
        tiny(negatives=None)


# ---- what the loop asks -------------------------------------------------------------------------------


def test_the_discriminator_is_clipped_for_itself():
    objective = tiny(**COMPLETE)
    others, discriminator = objective.clip_groups()
    assert {id(p) for p in discriminator} == {id(p) for p in objective.prior.parameters()}
    assert len(others) + len(discriminator) == len(list(objective.parameters()))
    assert len(tiny().clip_groups()) == 1


def test_every_parameter_gets_a_gradient():
    objective = tiny("dv", **COMPLETE, coordinates=1.0, supervised=Supervised(classes=2), critic=CONCAT)
    objective(batch_of(images(2 * GROUP)))["loss"].backward()
    assert all(p.grad is not None for p in objective.parameters())  # engines wait for all of them


def test_nothing_to_learn_is_refused():
    with pytest.raises(ValueError, match="alpha and beta are both 0"):
        DimObjective(kind="dim", bound="jsd", alpha=0.0, beta=0.0)


@pytest.mark.parametrize(
    ("bound", "score"), [("jsd", "dot"), ("infonce", "dot"), ("dv", "tanh"), ("nwj", "tanh")]
)
def test_scores_are_bounded_by_default_where_the_bound_needs_it(bound, score):
    assert tiny(bound, critic=dot_critic(None)).critic.score == score
