"""Heads trained by mini-batches: against loops by hand, scikit-learn, and each alone against all together."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from data_pipelines.common.errors import UserError
from data_pipelines.draws import permutation
from trainer.evaluation import heads, probes
from trainer.evaluation.heads import Mlp, build, fit, head_probes, hinge
from trainer.recipe.evaluation import MlpProbe, SgdProbe, SvmProbe

EVERY = {"linear_sgd": SgdProbe(), "mlp": MlpProbe(), "svm": SvmProbe()}


def clusters(n=100, d=7, classes=3):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % classes
    centres = torch.randn(classes, d, generator=generator, dtype=torch.float64)
    return centres[y] + torch.randn(n, d, generator=generator, dtype=torch.float64), y


def trained(x, y, wanted, classes=3, seed=5):
    """The heads, trained together."""
    made = [build(options, x, classes, seed) for options in wanted]
    fit(made, x, y, *probes.statistics(x), seed)
    return made


def test_hinge_and_its_gradient_equal_a_loop():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(6, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 2, 0, 1])
    total = hinge(values, labels)
    total.sum().backward()
    for image, run, label in torch.cartesian_prod(torch.arange(6), torch.arange(2), torch.arange(3)).tolist():
        sign = 1.0 if labels[image] == label else -1.0
        expected = max(0.0, 1 - sign * values[image, run, label].item())
        assert total[image, run, label].item() == pytest.approx(expected, abs=1e-15)
        assert values.grad[image, run, label].item() == (-sign if expected > 0 else 0)


def slopes_by_hand(values, label, kind):
    """d loss / d value of one image's values."""
    if kind == "svm":
        signs = [1.0 if c == label else -1.0 for c in range(len(values))]
        return [-sign if sign * value < 1 else 0.0 for sign, value in zip(signs, values, strict=True)]
    exponentials = [math.exp(value) for value in values]
    return [e / sum(exponentials) - (c == label) for c, e in enumerate(exponentials)]


def train_by_hand(x, y, weight, options, l2, kind, seed):
    """SGD with momentum and a half cosine, image by image, in float64: weight [classes, d] and bias."""
    n, d = x.shape
    x = (x - x.mean(0)) / x.std(0, correction=0) / math.sqrt(d)
    weight, bias = weight.clone(), torch.zeros(len(weight), dtype=torch.float64)
    speed, bias_speed = torch.zeros_like(weight), torch.zeros_like(bias)
    steps = n // options.batch
    for epoch in range(options.epochs):
        order = permutation(n, seed, "probe epochs", epoch).tolist()
        for step in range(steps):
            slope, bias_slope = l2 / d * weight, torch.zeros_like(bias)
            for image in order[step * options.batch : (step + 1) * options.batch]:
                values = (weight @ x[image] + bias).tolist()
                for c, s in enumerate(slopes_by_hand(values, y[image].item(), kind)):
                    slope[c] += s * x[image] / options.batch
                    bias_slope[c] += s / options.batch
            speed, bias_speed = 0.9 * speed + slope, 0.9 * bias_speed + bias_slope
            rate = (
                options.lr * (1 + math.cos(math.pi * (epoch * steps + step) / (options.epochs * steps))) / 2
            )
            weight, bias = weight - rate * speed, bias - rate * bias_speed
    return weight, bias


def test_linear_sgd_equals_a_loop():
    x, y = clusters()
    options = SgdProbe(epochs=3, batch=16, lr=0.7)
    (head,) = trained(x, y, [options])
    weight, bias = train_by_hand(x, y, torch.zeros(3, 7).double(), options, 0.0, "softmax", seed=5)
    assert (head.weight - weight).abs().max() < 1e-12
    assert (head.bias - bias).abs().max() < 1e-12
    assert weight.abs().max() > 0.1


def test_each_svm_equals_a_loop():
    x, y = clusters()
    options = SvmProbe(runs=2, epochs=3, batch=16, lr=0.7, l2=0.3)
    starts = build(options, x, 3, 5).weight.detach().clone()
    (head,) = trained(x, y, [options])
    for run, (start, weights) in enumerate(zip(starts.split(3), head.weight.split(3), strict=True)):
        weight, bias = train_by_hand(x, y, start, options, options.l2, "svm", seed=5)
        assert (weights - weight).abs().max() < 1e-12
        assert (head.bias[run] - bias).abs().max() < 1e-12
    assert (starts[:3] - starts[3:]).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_head_alone_equals_itself_beside_the_others(dtype):
    """The products are cut otherwise, so equal to rounding; heads of fewer epochs stop earlier."""
    x, y = clusters(200)
    x = x.to(dtype)
    wanted = [
        MlpProbe(units=20, epochs=3, batch=16),
        SgdProbe(epochs=5, batch=16),
        SvmProbe(runs=3, epochs=4, batch=16),
    ]
    alone = [trained(x, y, [options])[0] for options in wanted]
    for order in ([0, 1, 2], [2, 1, 0]):
        together = trained(x, y, [wanted[number] for number in order])
        for number, head in zip(order, together, strict=True):
            for one, other in zip(alone[number].parameters(), head.parameters(), strict=True):
                assert (one - other).abs().max() < (1e-11 if dtype == torch.float64 else 1e-3)
    single = trained(x, y, [SvmProbe(runs=1, epochs=4, batch=16)])[0]  # nor do the runs know of each other
    assert (single.weight - alone[2].weight[:3]).abs().max() < (1e-11 if dtype == torch.float64 else 1e-4)


def test_every_head_reaches_scikit_learn_on_digits(pixels):
    train_x, train_y, test_x, test_y, _ = pixels
    accuracies = head_probes(*pixels, EVERY, seed=0)
    mean, scale = probes.statistics(train_x)
    x, unseen = ((features - mean) * scale for features in (train_x, test_x))
    logistic = LogisticRegression(C=0.1, max_iter=1000).fit(x, train_y).score(unseen, test_y)
    machines = LinearSVC(loss="hinge", C=0.1, max_iter=20000).fit(x, train_y).score(unseen, test_y)
    assert accuracies["linear_sgd"][0] > logistic - 0.02
    assert accuracies["mlp"][0] > logistic - 0.01
    assert len(accuracies["svm"]) == 5
    assert len(set(accuracies["svm"])) > 1
    assert all(accuracy > machines - 0.02 for accuracy in accuracies["svm"])


def test_heads_of_other_mini_batches_are_trained_too(pixels):
    wanted = {
        "svm": SvmProbe(epochs=2),
        "linear_sgd": SgdProbe(epochs=2, batch=64),
        "mlp": MlpProbe(epochs=2),
    }
    accuracies = head_probes(*pixels, wanted, seed=0)
    assert list(accuracies) == list(wanted)
    for name, options in wanted.items():
        assert accuracies[name] == pytest.approx(
            head_probes(*pixels, {name: options}, seed=0)[name], abs=0.01
        )


def test_a_head_is_tested_after_each_of_its_last_epochs(pixels):
    """The mean of runs that end there: under milestones the rate does not know how long a run is."""
    options = {"milestones": [100], "lr": 1e-3, "batch": 64}
    each = [
        head_probes(*pixels, {"mlp": MlpProbe(epochs=epochs, **options)}, seed=0)["mlp"][0]
        for epochs in (2, 3, 4)
    ]
    assert len(set(each)) > 1
    averaged = head_probes(*pixels, {"mlp": MlpProbe(epochs=4, average=3, **options)}, seed=0)["mlp"][0]
    assert averaged == pytest.approx(sum(each) / 3, abs=1e-12)
    longer = head_probes(*pixels, {"mlp": MlpProbe(epochs=2, average=9, **options)}, seed=0)["mlp"][0]
    assert 0 < longer <= each[0]  # more than there are: all of them


def test_features_that_are_not_standardised_are_read_as_they_are(pixels):
    """Standardised by hand, they give what standardising gives; heads of both kinds stand side by side."""
    train_x, train_y, test_x, test_y, classes = pixels
    mean, scale = probes.statistics(train_x)
    data = (train_x - mean) * scale, train_y, (test_x - mean) * scale, test_y, classes
    raw, usual = MlpProbe(epochs=3, standardise=False), MlpProbe(epochs=3)
    by_hand = head_probes(*data, {"mlp": raw}, seed=0)["mlp"]
    assert by_hand == pytest.approx(head_probes(*pixels, {"mlp": usual}, seed=0)["mlp"], abs=0.01)
    both = head_probes(*pixels, {"mlp": raw, "linear_sgd": SgdProbe(epochs=3)}, seed=0)
    assert both["linear_sgd"] == pytest.approx(
        head_probes(*pixels, {"linear_sgd": SgdProbe(epochs=3)}, seed=0)["linear_sgd"], abs=1e-12
    )
    assert both["mlp"] != by_hand


def test_the_published_schedule_falls_at_its_milestones():
    head = Mlp(4, 2, MlpProbe(epochs=1000, lr=1e-4, milestones=[50, 100]), seed=0)
    assert [head.rate(epochs) for epochs in (0, 49.99, 50, 99.9, 100, 999)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    head = Mlp(4, 2, MlpProbe(epochs=10), seed=0)
    assert [head.rate(epochs) for epochs in (0, 5, 10)] == pytest.approx([1, 0.5, 0])


def test_a_head_that_diverges_is_named(pixels):
    with pytest.raises(UserError, match=r"evaluate\.linear_sgd\.lr=1e\+38: the probe diverged"):
        head_probes(*pixels, {"linear_sgd": SgdProbe(lr=1e38, epochs=2)}, seed=0)


def test_mini_batches_of_one_image_have_no_batch_norm(pixels):
    with pytest.raises(UserError, match="at least 2 training images"):
        head_probes(*pixels, {"mlp": MlpProbe(batch=1, epochs=1)}, seed=0)


def test_heads_of_every_kind_are_known():
    assert set(heads.Options.__args__) == {type(options) for options in EVERY.values()}
