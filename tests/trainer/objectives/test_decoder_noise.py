"""Noise on what a decoder reads: against a loop over groups, equal on any ranks, none without the key."""

from dataclasses import replace

import pytest
import torch

from data_pipelines.loader import Batch
from data_pipelines.noise import Noise
from data_pipelines.views import Normalize
from tests.helpers.tiny_moco import BATCH, GROUP, batch_of, encoder, moco, moco_options, views
from trainer.objectives.autoencoder import Autoencoder
from trainer.objectives.codec import squared_error
from trainer.objectives.decoder_noise import DecoderNoise, spread
from trainer.objectives.hybrid import Hybrid
from trainer.recipe.loading import load
from trainer.recipe.objectives import HybridObjective
from trainer.training.build import build_objective

TAU, SEEN = 0.7, 64
LAYOUTS = pytest.mark.parametrize("layout", ["map", "pooled"])


def by_hand(rows: dict[str, torch.Tensor], shapes: dict[str, tuple[int, ...]], seen: int) -> dict:
    """z + sigma · spread · eps, image by image, channel by channel and number by number."""
    noisy = {name: torch.empty_like(values) for name, values in rows.items()}
    generators = Noise(0, seen, 0, BATCH).groups("decoder noise", GROUP, torch.device("cpu"))
    for number, generator in enumerate(generators):
        images = range(number * GROUP, (number + 1) * GROUP)
        sigma = TAU * torch.rand(GROUP, 1, generator=generator, dtype=torch.float64)
        for name in ("y", "w"):
            values, (channels, *places) = rows[name], shapes[name]
            places = places[0] * places[1] if places else 1
            eps = torch.randn(GROUP, values.shape[1], generator=generator, dtype=torch.float64)
            for channel in range(channels):
                mine = slice(channel * places, (channel + 1) * places)
                numbers = [values[i, j].item() for i in images for j in range(mine.start, mine.stop)]
                mean = sum(numbers) / len(numbers)
                std = (sum((number - mean) ** 2 for number in numbers) / len(numbers)) ** 0.5
                for at, image in enumerate(images):
                    for j in range(mine.start, mine.stop):
                        noisy[name][image, j] = values[image, j] + sigma[at, 0] * std * eps[at, j]
    return noisy


@LAYOUTS
def test_it_is_the_loop(layout):
    network = encoder(layout=layout)
    noise = DecoderNoise.of(TAU, GROUP, network)
    rows = {name: torch.randn(BATCH, network.widths[name], dtype=torch.float64) for name in ("y", "w")}
    rows["w"] *= torch.arange(1.0, 1 + network.widths["w"])
    shapes = {name: network.maps.get(name, (network.widths[name],)) for name in ("y", "w")}
    assert shapes == {"y": (2, 2, 2) if layout == "map" else (8,), "w": (2, 2, 2)}
    y, w = noise(rows["y"], rows["w"], Noise(0, SEEN, 0, BATCH))
    wanted = by_hand(rows, shapes, SEEN)
    assert torch.allclose(y, wanted["y"], rtol=0, atol=1e-12)
    assert torch.allclose(w, wanted["w"], rtol=0, atol=1e-12)
    assert (y != rows["y"]).all()


def test_sigma_is_uniform_up_to_tau_in_units_of_the_spread():
    network = encoder(layout="pooled")
    noise = DecoderNoise(TAU, 1000, (8, 2))
    y = 3 * torch.randn(4000, 8, dtype=torch.float64)
    w = 5 * torch.randn(4000, network.widths["w"], dtype=torch.float64)
    noisy = noise(y, w, Noise(1, 0, 0, 4000))
    for before, after, scale in zip((y, w), noisy, (3, 5), strict=True):
        squares = ((after - before) / scale).square().mean(1)  # E sigma² = tau² / 3
        assert squares.mean().item() == pytest.approx(TAU**2 / 3, rel=0.06)
        assert squares.sqrt().max() < 3 * TAU


@LAYOUTS
def test_parts_of_a_batch_draw_what_the_whole_does(layout):
    """As ranks and micro-batches hold them; bit by bit."""
    network = encoder(layout=layout)
    noise = DecoderNoise.of(TAU, GROUP, network)
    y, w = (torch.randn(BATCH, network.widths[name], dtype=torch.float64) for name in ("y", "w"))
    whole = noise(y, w, Noise(3, SEEN, 0, BATCH))
    for size in (GROUP, 2 * GROUP):
        parts = [
            noise(y[at : at + size], w[at : at + size], Noise(3, SEEN, at, size))
            for at in range(0, BATCH, size)
        ]
        for one, pieces in zip(whole, zip(*parts, strict=True), strict=True):
            assert torch.equal(one, torch.cat(pieces))
    assert not torch.equal(whole[0], noise(y, w, Noise(3, SEEN + BATCH, 0, BATCH))[0])


def test_the_spread_carries_no_gradient_and_bf16_is_widened():
    noise = DecoderNoise(TAU, GROUP, (8, 2))
    y, w = (torch.randn(BATCH, 8, requires_grad=True, dtype=torch.float64) for _ in range(2))
    noisy = noise(y, w, Noise(0, 0, 0, BATCH))
    sum(part.sum() for part in noisy).backward()
    assert torch.equal(y.grad, torch.ones_like(y))
    assert torch.equal(w.grad, torch.ones_like(w))
    half = noise(y.detach().bfloat16(), w.detach().bfloat16(), Noise(0, 0, 0, BATCH))
    assert {part.dtype for part in half} == {torch.float32}
    assert spread(torch.full((4, 6), 2.0), 3).tolist() == [0.0] * 6


# ---- in the objectives -----------------------------------------------------------------------------


class Silent(Noise):
    """Noise of which nobody may draw."""

    def groups(self, purpose, group, device):
        raise AssertionError(f"drawn for {purpose}")


def silent(batch: Batch) -> Batch:
    noise = batch.noise
    return replace(batch, noise=Silent(noise.seed, noise.images_seen, noise.first, noise.images))


def hybrid(tau: float, **options) -> Hybrid:
    chosen = HybridObjective(kind="hybrid", contrast=moco_options(), omega=0.1, **options)
    contrast = moco(layout="pooled")
    torch.manual_seed(1)
    return Hybrid(contrast, chosen, Normalize(), DecoderNoise.of(tau, GROUP, contrast.encoder)).double()


def autoencoder(tau: float) -> Autoencoder:
    network = encoder(layout="pooled")
    return Autoencoder(network, Normalize(), DecoderNoise.of(tau, GROUP, network)).double()


@pytest.mark.parametrize("clean", [False, True])
def test_a_hybrid_decodes_the_noisy_latent_while_it_learns(clean):
    objective = hybrid(TAU, reconstruct="clean" if clean else "view")
    batch = batch_of(views(2, 2 + clean), 2)
    images = batch.views[-1] if clean else batch.views[0]
    values = objective(batch)
    features = objective.encoder(images)
    latent = objective.noise(features["y"], features["w"], batch.noise)
    error = squared_error(objective.codec, images, *latent).mean()
    assert values["sse"].item() == pytest.approx(error.item(), abs=1e-12)
    assert values["loss"].item() == pytest.approx((values["contrast"] + 0.1 * error).item(), abs=1e-12)
    plain = squared_error(objective.codec, images, features["y"], features["w"]).mean()
    assert abs(plain.item() - error.item()) > 1e-6
    assert objective.eval()(silent(batch))["sse"].item() == pytest.approx(
        autoencoder_error(objective, images), abs=1e-12
    )


def autoencoder_error(objective, images) -> float:
    y, w = objective.codec.encode(images)
    return squared_error(objective.codec, images, y, w).mean().item()


def test_an_autoencoder_decodes_the_noisy_latent_while_it_learns():
    objective, batch = autoencoder(TAU), batch_of(views(0)[:1], 0, shuffle=False)
    features = objective.encoder(batch.views[0])
    latent = objective.noise(features["y"], features["w"], batch.noise)
    error = squared_error(objective.codec, batch.views[0], *latent).mean()
    assert objective(batch)["loss"].item() == pytest.approx(error.item(), abs=1e-12)
    objective.eval()
    assert objective(silent(batch))["loss"].item() == autoencoder_error(objective, batch.views[0])


@pytest.mark.parametrize("make", [hybrid, autoencoder])
def test_without_noise_nothing_is_drawn(make):
    objective, batch = make(0.0), batch_of(views(1), 1)
    assert objective.noise is None
    objective(silent(batch))["loss"].backward()


@pytest.mark.parametrize("kind", ["hybrid, omega: 0.1, contrast: {kind: simclr}", "autoencoder"])
def test_the_recipe_s_number_reaches_the_decoder(kind):
    views_read = "data.views=[{}, {}]" if kind.startswith("hybrid") else "data.views=[{}]"
    words = [
        "recipe=quickstart",
        views_read,
        "encoder={kind: resnet, depth: 18, stem: cifar, w: {channels: 2}}",
    ]
    with torch.device("meta"):
        objective = build_objective(load([*words, f"objective={{kind: {kind}, decoder_noise: 0.2}}"]).recipe)
        without = build_objective(load([*words, f"objective={{kind: {kind}}}"]).recipe)
    assert objective.noise == DecoderNoise(0.2, 64, (64, 2))  # a group of the recipe; y is a vector of 64
    assert without.noise is None
    assert without.sizes()["latent size"] == 64 + 2 * 16**2
