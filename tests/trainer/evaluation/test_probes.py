"""The probes against scikit-learn, on data whose answer is known, and on bad input."""

import pytest
import torch

from data_pipelines.common.errors import UserError
from trainer.evaluation import probes
from trainer.evaluation.heads import head_probes
from trainer.evaluation.probes import few_shot_probe, linear_probe, svm_probe
from trainer.evaluation.softmax import fit_softmax
from trainer.recipe.evaluation import FewShot, LinearProbe, MlpProbe, SvmProbe

LINEAR, MLP, FEW = LinearProbe(), MlpProbe(epochs=4), FewShot(draws=2)


def mlp_probe(*data, options=MLP, seed=3):
    return head_probes(*data, {"mlp": options}, seed)["mlp"][0]


PROBES = {
    "linear": lambda *data: linear_probe(*data, LINEAR)[0],
    "svm": lambda *data: svm_probe(*data, SvmProbe(l2=1.0))[0],
    "mlp": mlp_probe,
    "few_shot": lambda *data: few_shot_probe(*data, LINEAR, FEW, seed=3)[0],
}
each_probe = pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)


def test_linear_probe_does_not_see_the_scale_of_features_nor_constants(pixels):
    train_x, train_y, test_x, test_y, classes = pixels
    plain, _ = linear_probe(train_x, train_y, test_x, test_y, classes, LinearProbe(l2=1e-2))
    factor, offset = torch.logspace(-4, 4, 64), torch.linspace(-5, 5, 64)

    def moved(x):
        return torch.cat([(x + offset) * factor, torch.full((len(x), 2), 1e4 / 3)], dim=1)

    moved_test = moved(test_x)
    moved_test[:, -1] = 1e9  # a feature that is constant in training has no say
    accuracy, fit = linear_probe(moved(train_x), train_y, moved_test, test_y, classes, LinearProbe(l2=1e-2))
    assert fit.converged
    assert accuracy == pytest.approx(plain, abs=0.003)


def test_mlp_probe_learns_what_no_linear_one_can():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2400, 2, generator=generator)
    y = ((x[:, 0] > 0) ^ (x[:, 1] > 0)).long()  # exclusive or
    data = x[:2000], y[:2000], x[2000:], y[2000:], 2
    assert linear_probe(*data, LINEAR)[0] < 0.65
    assert mlp_probe(*data, options=MlpProbe(epochs=20, batch=100), seed=0) > 0.95


def test_mlp_probe_is_as_good_as_the_linear_probe_on_digits(pixels):
    assert mlp_probe(*pixels, options=MlpProbe(), seed=0) > linear_probe(*pixels, LINEAR)[0] - 0.005


def test_mlp_probe_takes_a_training_set_of_one_batch_and_an_image(pixels):
    train_x, train_y, test_x, test_y, classes = pixels
    # 256 and 1: the 1 has no variance for a batch-norm
    few = mlp_probe(train_x[:257], train_y[:257], test_x, test_y, classes, options=MlpProbe(), seed=0)
    fewer = mlp_probe(train_x[:50], train_y[:50], test_x, test_y, classes, options=MlpProbe(), seed=0)
    assert few > 0.5
    assert fewer > 0.5


def test_mlp_probe_uses_its_seed_and_its_options(pixels):
    train_x, train_y, test_x, test_y, classes = pixels
    data = train_x[:300], train_y[:300], test_x, test_y, classes
    same = [mlp_probe(*data, options=MLP, seed=seed) for seed in (0, 0)]
    assert same[0] == same[1]
    assert len({mlp_probe(*data, options=MLP, seed=seed) for seed in range(4)}) > 1
    assert mlp_probe(*data, options=MlpProbe(epochs=4, dropout=0.95), seed=0) < same[0]
    assert mlp_probe(*data, options=MlpProbe(epochs=4, lr=1e-5), seed=0) < same[0]


def test_few_shot_probe_with_every_image_is_the_linear_probe(pixels):
    train_x, train_y, test_x, test_y, classes = pixels
    chosen = torch.cat([torch.nonzero(train_y == label).flatten()[:40] for label in range(classes)])
    data = train_x[chosen], train_y[chosen], test_x, test_y, classes
    linear, _ = linear_probe(*data, LinearProbe(l2=probes.FEW_SHOT_L2))
    few, fits = few_shot_probe(*data, LINEAR, FewShot(shots=40, draws=2), seed=0)
    assert few == pytest.approx(linear, abs=0.003)
    assert [fit.converged for fit in fits] == [True, True]


def test_few_shot_probe_reads_only_the_labels_of_its_draws(pixels):
    """All labels but the drawn ones may be wrong; one drawn label that is wrong changes the answer."""
    train_x, train_y, test_x, test_y, classes = pixels
    members = [torch.nonzero(train_y == label).flatten() for label in range(classes)]
    drawn = torch.cat([probes._pick(images, 5, 7, 0, label) for label, images in enumerate(members)])
    assert len(drawn.unique()) == 50
    fit = fit_softmax(
        train_x[drawn], train_y[drawn], classes, probes.statistics(train_x), probes.FEW_SHOT_L2, 1000, False
    )
    expected = probes.accuracy(fit, test_x, test_y)
    few, _ = few_shot_probe(*pixels, LINEAR, FewShot(shots=5, draws=1), seed=7)
    assert few == pytest.approx(expected)
    assert 0.6 < expected < linear_probe(*pixels, LINEAR)[0]


def test_few_shot_probe_is_the_mean_of_different_draws(pixels):
    means = [few_shot_probe(*pixels, LINEAR, FewShot(draws=draws), seed=1)[0] for draws in (1, 2, 3)]
    each = [means[0], 2 * means[1] - means[0], 3 * means[2] - 2 * means[1]]
    assert len({round(accuracy * 360) for accuracy in each}) > 1
    assert all(accuracy * 360 == pytest.approx(round(accuracy * 360), abs=1e-6) for accuracy in each)


def test_picks_are_fixed_for_ever_and_fair():
    images = torch.arange(100, 120)
    assert probes._pick(images, 5, 0, 0, 0).tolist() == [105, 101, 114, 113, 110]
    picks = [
        probes._pick(images, 5, seed, draw, label)
        for seed in (0, 1)
        for draw in range(40)
        for label in range(5)
    ]
    counts = torch.cat(picks).bincount(minlength=120)[100:]  # 400 picks of 5 in 20: 100 each, deviation 9
    assert all(len(set(pick.tolist())) == 5 for pick in picks)
    assert counts.sum() == 2000
    assert (counts - 100).abs().max() < 40
    assert len({tuple(pick.tolist()) for pick in picks}) == 400


@each_probe
def test_probe_is_a_function_of_its_arguments_alone(pixels, probe):
    train_x, train_y, test_x, test_y, classes = pixels
    kept = train_x.clone(), test_x.clone()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = probe(*pixels)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert probe(*pixels) == first
    assert torch.equal(train_x, kept[0])
    assert torch.equal(test_x, kept[1])
    assert probe(train_x.double(), train_y, test_x.double(), test_y, classes) == pytest.approx(
        first, abs=0.02
    )


@each_probe
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_probes_learn_where_the_caller_has_switched_gradients_off(pixels, probe, mode):
    train_x, train_y, test_x, test_y, classes = pixels
    with mode():
        assert probe(train_x * 1, train_y * 1, test_x * 1, test_y * 1, classes) == probe(*pixels)
        assert not torch.is_grad_enabled()


@each_probe
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("split", ["training", "test"])
def test_features_that_are_not_finite_are_refused(pixels, probe, bad, split):
    train_x, train_y, test_x, test_y, classes = pixels
    train_x, test_x = train_x.clone(), test_x.clone()
    (train_x if split == "training" else test_x)[17, 3] = bad
    with pytest.raises(UserError, match=f"the {split} features hold NaN or infinity"):
        probe(train_x, train_y, test_x, test_y, classes)


@each_probe
def test_empty_splits_and_wrong_shapes_are_refused(pixels, probe):
    train_x, train_y, test_x, test_y, classes = pixels
    with pytest.raises(UserError, match="the test split has no features"):
        probe(train_x, train_y, test_x[:0], test_y[:0], classes)
    with pytest.raises(UserError, match="the training split has no features"):
        probe(train_x[:0], train_y[:0], test_x, test_y, classes)
    with pytest.raises(ValueError, match=r"labels must be int64 \[360\]"):
        probe(train_x, train_y, test_x, test_y[:-1], classes)
    with pytest.raises(ValueError, match="expected \\[0, 8\\]"):
        probe(train_x, train_y, test_x, test_y, 9)
    with pytest.raises(ValueError, match="differ in width"):
        probe(train_x, train_y, test_x[:, :-1], test_y, classes)
    with pytest.raises(ValueError, match="must be float32 or float64"):
        probe(train_x.long(), train_y, test_x, test_y, classes)


def test_too_few_images_of_a_class_are_an_error(pixels):
    train_x, train_y, test_x, test_y, classes = pixels
    keep = torch.cat([torch.nonzero(train_y != 4).flatten(), torch.nonzero(train_y == 4).flatten()[:3]])
    with pytest.raises(UserError, match="shots=5, but class 4 has only 3 training images"):
        few_shot_probe(train_x[keep], train_y[keep], test_x, test_y, classes, LINEAR, FEW, seed=0)
    with pytest.raises(UserError, match="at least 2 training images"):
        mlp_probe(train_x[:1], train_y[:1], test_x, test_y, classes, options=MLP, seed=0)
