"""The probe of a denoiser's inner activations: what the features are, and how block and noise are chosen."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from data_pipelines.common.errors import UserError
from tests.helpers.tiny_diffusion import context_of, digit_images, pixel_diffusion, tiny_unet
from trainer.evaluation import denoiser_features, probes
from trainer.evaluation.denoiser_features import L2, Choice, checked_layers, measure, time_of
from trainer.evaluation.pixel_diffusion import Images
from trainer.generation.processes import PROCESSES
from trainer.objectives.denoiser import Diffusion
from trainer.recipe.pixel_evaluation import DenoiserFeatures

FIGURE = "probe/linear/denoiser_features"
OPTIONS = DenoiserFeatures(layers=["mid", "up.0.1"], noise=[0.1, 0.5], images=300, iterations=300)


def objective_of(train: Images, process: str = "flow") -> Diffusion:
    objective = pixel_diffusion(tiny_unet(), train, process)
    with torch.no_grad():  # the average is not the network
        for parameter in objective.average.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return objective


def slow_features(context, images: Images, rows: np.ndarray, layer: str, t: float, size: int = 1):
    """A few images at a time, the activations behind `layer` by a hook on its module: [n, C]."""
    objective, seen = context.objective, []
    process, network = objective.process, objective.average.eval()
    way, *numbers = layer.split(".")
    name = f"{way}.{numbers[0]}.block.{numbers[1]}" if numbers else way  # these have no attention
    hook = network.get_submodule(name).register_forward_hook(lambda m, i, out: seen.append(out.mean((2, 3))))
    for part in np.split(rows, range(size, len(rows), size)):
        x = (torch.from_numpy(images.pixels[part]) / 127.5 - 1 - objective.mean) / objective.std
        eps = context.noise(images, part, "denoiser_features")
        time = torch.full((len(part),), t, dtype=torch.float64)
        signal, noise = (level[0].item() for level in process.levels(time))
        with torch.no_grad():
            network(process.scaled(signal * x + noise * eps, time), process.embedded(time))
    hook.remove()
    return torch.cat(seen)


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
def test_features_are_activations_of_the_average_on_noisy_images(tmp_path, process, layer):
    train, test = digit_images()
    context = context_of(objective_of(train, process), tmp_path, train, test)
    context.objective.eval()
    rows = np.array([3, 5, 200])
    with torch.no_grad():
        ours = denoiser_features._features(context, test, [layer], 0.25, rows)[layer]
    t = {"flow": 0.25, "edm": 1 / 3, "ddim": time_of(context.objective.process, 0.25).item()}[process]
    slow = slow_features(context, test, rows, layer, t)
    assert ours.shape == (3, {"down.0.0": 8, "mid": 16, "up.0.1": 8}[layer])
    assert torch.allclose(ours, slow, atol=2e-3 if process == "edm" else 1e-5)  # EDM's grid is coarse there


def test_the_choice_is_made_on_a_tenth_of_training_images_that_no_fit_sees(tmp_path):
    train, test = digit_images(300, 100)
    context = context_of(objective_of(train), tmp_path, train, test)
    figures = measure(context, OPTIONS)

    order = denoiser_features.permutation(300, 3, "denoiser_features, judges")
    judges, fitted = np.sort(order[:30]), np.sort(order[30:])
    accuracies = {}
    for layer in ("mid", "up.0.1"):
        for noise in (0.1, 0.5):
            x = slow_features(context, train, np.arange(300), layer, noise, 50).double().numpy()
            scaled = (x - x[fitted].mean(0)) / x[fitted].std(0)
            fit = LogisticRegression(C=1 / (L2 * 270), max_iter=2000, tol=1e-8)
            fit.fit(scaled[fitted], train.labels[fitted])
            accuracies[layer, noise] = (fit.predict(scaled[judges]) == train.labels[judges]).mean()
    best = max(accuracies, key=accuracies.get)
    assert figures["denoiser_features/chosen_by"] == pytest.approx(accuracies[best])
    assert figures["denoiser_features/noise"] == best[1]
    names = list(context.objective.average.places())
    assert names[int(figures["denoiser_features/block"])] == best[0]

    features = [
        slow_features(context, images, np.arange(len(images)), *best, 50).float() for images in (train, test)
    ]
    labels = [torch.from_numpy(images.labels) for images in (train, test)]
    accuracy, fit = probes.linear_probe(features[0], labels[0], features[1], labels[1], 10, context.linear)
    assert figures[FIGURE] == pytest.approx(accuracy, abs=0.011)  # one image of a hundred, by rounding
    assert figures[f"{FIGURE}/converged"] == 1
    assert figures[f"{FIGURE}/objective"] == pytest.approx(fit.objective, rel=1e-3)


def test_other_test_images_change_no_choice_and_unlabelled_ones_are_left_out(tmp_path):
    train, test = digit_images(300, 100)
    said = []
    context = context_of(objective_of(train), tmp_path, train, test, say=said.append)
    first = measure(context, OPTIONS)
    shuffled = Images("test", test.pixels, np.roll(test.labels, 1))
    other = measure(replace(context, test=shuffled), OPTIONS)
    assert other[FIGURE] < first[FIGURE] - 0.2
    chosen = [name for name in first if name.startswith("denoiser_features/")]
    assert len(chosen) == 3
    assert all(other[name] == first[name] for name in chosen)

    partly = test.labels.copy()
    partly[::2] = -1
    halved = Images("test", test.pixels, partly)
    measured = measure(replace(context, test=halved), OPTIONS)[FIGURE]
    assert measured * 50 == pytest.approx(round(measured * 50))  # a share of 50 images
    assert "of 2 blocks x 2" in said[0]
    assert "on 30 training images" in said[0]
    with Image.open(tmp_path / "figures/denoiser_features.png") as page:
        assert page.format == "PNG"


def test_the_best_is_the_first_of_equals():
    assert Choice(["a", "b"], [0.1, 0.2], [[0.5, 0.7], [0.7, 0.1]], 10).best == (0, 1)
    assert Choice(["a", "b"], [0.1, 0.2], [[0.5, 0.6], [0.7, 0.1]], 10).best == (1, 0)


def test_layers_are_names_of_blocks_in_the_networks_order():
    network = tiny_unet()
    assert checked_layers(DenoiserFeatures(), network) == list(network.places())
    assert checked_layers(DenoiserFeatures(layers=["up.0.1", "mid"]), network) == ["mid", "up.0.1"]
    with pytest.raises(UserError, match=r"denoiser_features\.layers: the U-Net has no block 'up\.2\.0', but"):
        checked_layers(DenoiserFeatures(layers=["up.2.0"]), network)


def test_a_denoiser_that_diverged_and_a_single_image_are_one_line(tmp_path):
    train, test = digit_images(300, 100)
    context = context_of(objective_of(train), tmp_path, train, test)
    one = Images("train", train.pixels[:1], train.labels[:1])
    with pytest.raises(UserError, match="chosen on training images with a label, and there is one"):
        measure(replace(context, train=one), OPTIONS)
    with torch.no_grad():
        context.objective.average.mid.block_2.conv2.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="denoiser_features: an activation is not a number"):
        measure(context, OPTIONS)
