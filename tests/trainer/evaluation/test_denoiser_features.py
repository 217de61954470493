"""The probe of a denoiser's inner activations: what the features are, and how block and noise are chosen."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from data_pipelines.common.errors import SharedError, UserError
from data_pipelines.dali import in_order
from data_pipelines.draws import permutation
from data_pipelines.reader import Reader
from tests.helpers.labelled_dataset import write_labelled
from tests.helpers.tiny_diffusion import context_of, pixel_diffusion, tiny_unet
from trainer.evaluation import denoiser_features, probes
from trainer.evaluation.denoiser_features import L2, NAME, Choice, checked_layers, measure, time_of
from trainer.evaluation.pixel_diffusion import chosen
from trainer.generation.processes import PROCESSES
from trainer.recipe.pixel_evaluation import DenoiserFeatures

FIGURE = "probe/linear/denoiser_features"
OPTIONS = DenoiserFeatures(layers=["mid", "up.0.1"], noise=[0.1, 0.5], images=300, iterations=300)
QUICK = OPTIONS.model_copy(update={"iterations": 10})


@pytest.fixture
def readers(digits):
    with Reader(digits, "train") as train, Reader(digits, "test") as test:
        yield train, test


def slow_features(context, reader, ids, layer, t, size=1):
    """A few images at a time, the activations behind `layer` by a hook on its module: [n, C], and labels."""
    objective, seen, labels = context.objective, [], []
    process, network = objective.process, objective.average.eval()
    way, *numbers = layer.split(".")
    name = f"{way}.{numbers[0]}.block.{numbers[1]}" if numbers else way  # these have no attention
    hook = network.get_submodule(name).register_forward_hook(lambda m, i, out: seen.append(out.mean((2, 3))))
    for start, (views, classes) in enumerate(in_order(reader, context.images, ids, size)):
        part = ids[start * size : (start + 1) * size]
        x = (views - objective.scaling.mean) / objective.scaling.std
        eps = context.noise(reader, part, "denoiser_features", x[0])
        time = torch.full((len(part),), t, dtype=torch.float64)
        signal, noise = (level[0].item() for level in process.levels(time))
        with torch.no_grad():
            network(process.scaled(signal * x + noise * eps, time), process.embedded(time))
        labels.append(classes)
    hook.remove()
    return torch.cat(seen), torch.cat(labels)


@pytest.mark.parametrize(
    ("name", "share", "time"),
    [("flow", 0.1, 0.1), ("flow", 0.4, 0.4), ("edm", 0.2, 0.25), ("ddim", 0.0484, 11), ("ddim", 0.4, 187)],
)
def test_a_share_of_noise_is_the_nearest_time_of_each_process(name, share, time):
    """As the paper's best for CIFAR-10: step 11 of DDPM has noise 0.05 beside a signal of 0.9987."""
    process = PROCESSES[name]()
    t = time_of(process, share)
    assert t.item() == pytest.approx(time, rel=0.02)
    signal, noise = (part.item() for part in process.levels(t[None]))
    assert noise / (signal + noise) == pytest.approx(share, rel=0.02)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("layer", ["down.0.0", "mid", "up.0.1"])
def test_features_are_activations_of_the_average_on_noisy_images(tmp_path, readers, process, layer):
    context = context_of(pixel_diffusion(tiny_unet(), process), tmp_path, *readers)
    context.objective.eval()
    ids = np.array([3, 5, 200])
    ((views, _),) = in_order(context.test, context.images, ids, 3)
    with torch.no_grad():
        ours = denoiser_features._features(context, context.test, [layer], 0.25, views, ids)[layer]
    t = time_of(context.objective.process, 0.25).item()
    slow, _ = slow_features(context, context.test, ids, layer, t)
    assert ours.shape == (3, {"down.0.0": 8, "mid": 16, "up.0.1": 8}[layer])
    assert torch.allclose(ours, slow, atol=1e-5)


def test_the_choice_is_made_on_a_tenth_of_training_images_that_no_fit_sees(tmp_path, readers):
    train, test = readers
    context = context_of(pixel_diffusion(tiny_unet()), tmp_path, train, test)
    figures = measure(context, OPTIONS)

    ids = chosen(np.arange(train.images), 300, 3, NAME)
    order = permutation(300, 3, "denoiser_features, judges")
    judges, fitted = order[:30], order[30:]
    accuracies = {}
    for layer in ("mid", "up.0.1"):
        for noise in (0.1, 0.5):
            features, labels = slow_features(context, train, ids, layer, noise, 50)
            x, y = features.double().numpy(), labels.numpy()
            scaled = (x - x[fitted].mean(0)) / x[fitted].std(0)
            fit = LogisticRegression(C=1 / (L2 * 270), max_iter=2000, tol=1e-8).fit(scaled[fitted], y[fitted])
            accuracies[layer, noise] = (fit.predict(scaled[judges]) == y[judges]).mean()
    best = max(accuracies, key=accuracies.get)
    assert figures["denoiser_features/chosen_by"] == pytest.approx(accuracies[best])
    assert figures["denoiser_features/noise"] == best[1]
    names = list(context.objective.average.places())
    assert names[int(figures["denoiser_features/block"])] == best[0]

    rows = [slow_features(context, reader, np.arange(reader.images), *best, 50) for reader in readers]
    accuracy, fit = probes.linear_probe(*rows[0], *rows[1], 10, context.linear)
    assert figures[FIGURE] == pytest.approx(accuracy, abs=0.006)  # two images of 360, by rounding
    assert figures[f"{FIGURE}/converged"] == 1
    assert figures[f"{FIGURE}/objective"] == pytest.approx(fit.objective, rel=1e-3)


def test_other_test_images_change_no_choice(tmp_path, readers):
    train, test = readers
    said = []
    context = context_of(pixel_diffusion(tiny_unet()), tmp_path, train, test, say=said.append)
    first, other = measure(context, QUICK), measure(replace(context, test=train), QUICK)
    assert other[FIGURE] > first[FIGURE]  # the images that the probe has learnt from
    names = [name for name in first if name.startswith("denoiser_features/")]
    assert len(names) == 3
    assert all(other[name] == first[name] for name in names)
    assert "of 2 blocks x 2" in said[0]
    assert "on 30 training images" in said[0]
    with Image.open(tmp_path / "figures/denoiser_features.png") as page:
        assert page.format == "PNG"


def test_images_without_a_label_are_left_out(tmp_path):
    data = write_labelled(tmp_path / "data", train=[20, 20, 20, 20, 50], test=[3, 3, 3, 3, 60])
    with Reader(data, "train") as train, Reader(data, "test") as test:
        context = context_of(pixel_diffusion(tiny_unet(16)), tmp_path, train, test, size=16, classes=4)
        accuracy = 12 * measure(context, QUICK)[FIGURE]
    assert accuracy == pytest.approx(round(accuracy))  # a share of twelve images


def test_the_best_is_the_first_of_equals():
    assert Choice(["a", "b"], [0.1, 0.2], [[0.5, 0.7], [0.7, 0.1]], 10).best == (0, 1)
    assert Choice(["a", "b"], [0.1, 0.2], [[0.5, 0.6], [0.7, 0.1]], 10).best == (1, 0)


def test_layers_are_names_of_blocks_in_the_networks_order():
    network = tiny_unet()
    assert checked_layers(DenoiserFeatures(), network) == list(network.places())
    assert checked_layers(DenoiserFeatures(layers=["up.0.1", "mid"]), network) == ["mid", "up.0.1"]
    with pytest.raises(UserError, match=r"denoiser_features\.layers: the U-Net has no block 'up\.2\.0', but"):
        checked_layers(DenoiserFeatures(layers=["up.2.0"]), network)


def test_a_denoiser_that_diverged_and_a_single_image_are_one_line(tmp_path, readers):
    context = context_of(pixel_diffusion(tiny_unet()), tmp_path, *readers)
    data = write_labelled(tmp_path / "data", train=[1, 0, 0, 0, 5])
    with (
        Reader(data, "train") as one,
        pytest.raises(SharedError, match="with a label, and there are too few"),
    ):
        measure(replace(context, train=one), QUICK)
    with torch.no_grad():
        context.objective.average.mid.block_2.conv2.weight.fill_(torch.nan)
    with pytest.raises(SharedError, match="denoiser_features: an activation is not a number"):
        measure(context, QUICK)
