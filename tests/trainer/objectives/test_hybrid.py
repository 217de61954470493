"""The hybrid's loss against its formula, what reconstructs what, and what sends a gradient where."""

import math

import pytest
import torch
from pydantic import ValidationError

from data_pipelines.views import Normalize
from tests.helpers.tiny_dim import batch_of as dim_batch
from tests.helpers.tiny_moco import BATCH, batch_of, encoder, hybrid, moco, views
from trainer.objectives.autoencoder import Autoencoder
from trainer.objectives.dim import Dim
from trainer.objectives.hybrid import Hybrid
from trainer.recipe.loading import load
from trainer.recipe.objectives import DimObjective, DotCritic, HybridObjective, MocoObjective


def squared_error(objective, images, target=None) -> float:
    """Summed by loops over the pixels, a mean over images."""
    features = objective.encoder(images)
    made = objective.decoder(features["y"], features["w"])
    wanted = (images if target is None else target) * 0.5 + 0.5
    total = 0.0
    for one, other in zip(made, wanted, strict=True):
        for row, expected in zip(one.flatten().tolist(), other.flatten().tolist(), strict=True):
            total += (row - expected) ** 2
    return total / len(images)


@pytest.mark.parametrize("layout", ["map", "pooled"])
def test_the_loss_is_the_contrastive_one_and_omega_squared_errors(layout):
    objective = hybrid(moco(layout=layout), omega=0.25)
    batch = batch_of(views(0), 0)
    values = objective(batch)
    contrast = objective.contrast(batch)["loss"].item()
    error = squared_error(objective, batch.views[0])
    assert abs(values["sse"].item() - error) < 1e-9
    assert abs(values["loss"].item() - (contrast + 0.25 * error)) < 1e-9


def test_beside_the_sum_of_two_bounds_the_error_counts_twice():
    objective = hybrid(moco(symmetric=True, queue={"keys": 2 * BATCH}), omega=0.25)
    batch = batch_of(views(0), 0)
    values = objective(batch)
    contrast = objective.contrast(batch)["loss"].item()
    error = squared_error(objective, batch.views[0])
    assert abs(values["loss"].item() - (contrast + 2 * 0.25 * error)) < 1e-9


def test_alpha_and_sigma_are_an_omega():
    contrast = MocoObjective(kind="moco")
    for alpha, sigma in ((0.5, None), (0.1, 2.0)):
        made = HybridObjective(kind="hybrid", contrast=contrast, alpha=alpha, sigma=sigma)
        omega, same, width = made.weighed()
        assert omega == pytest.approx(alpha / ((1 - alpha) * 2 * (sigma or 1) ** 2), rel=1e-15)
        assert (same, width) == (alpha, sigma or 1)
    omega, alpha, sigma = HybridObjective(kind="hybrid", contrast=contrast, omega=0.3).weighed()
    assert alpha / ((1 - alpha) * 2 * sigma**2) == pytest.approx(0.3, rel=1e-15)


@pytest.mark.parametrize(
    "weights",
    [{}, {"alpha": 0.5, "omega": 1.0}, {"omega": 1.0, "sigma": 2.0}, {"alpha": 1.0}, {"alpha": 0.0}],
)
def test_other_weights_are_refused(weights):
    with pytest.raises(ValidationError):
        HybridObjective(kind="hybrid", contrast=MocoObjective(kind="moco"), **weights)


def test_a_clean_view_is_encoded_again_and_decoded():
    objective = hybrid(reconstruct="clean")
    assert objective.views == 3
    first, second, clean = views(0, count=3)
    values = objective(batch_of([first, second, clean], 0))
    assert abs(values["sse"].item() - squared_error(objective, clean)) < 1e-9
    assert abs(values["sse"].item() - squared_error(objective, first)) > 1e-3


@pytest.mark.parametrize("layout", ["map", "pooled"])
def test_a_detached_y_is_read_and_not_moved_by_the_decoder(layout):
    gradients = {}
    for detach_y in (False, True):
        objective = hybrid(moco(layout=layout), omega=1.0, detach_y=detach_y)
        encoder, batch = objective.encoder, batch_of(views(0), 0)
        values = objective(batch)
        (values["loss"] - objective.contrast(batch)["loss"]).backward()
        if layout == "pooled":
            makes_y, makes_w = next(encoder.to_vector.parameters()), encoder.to_map.weight
            assert objective.decoder.from_vector.weight.grad.abs().max() > 0  # y is read
        else:
            makes_y, makes_w = encoder.to_map.weight, encoder.to_map.weight
        moved, other = (0.0 if p.grad is None else p.grad for p in (makes_y, makes_w))
        if layout == "map":  # y is the first half of the channels
            moved, other = moved.chunk(2)
        gradients[detach_y] = abs(moved).max().item() if isinstance(moved, torch.Tensor) else moved
        assert other.abs().max() > 1e-6
    assert gradients[False] > 1e-6
    assert gradients[True] < 1e-12


def test_the_pixels_of_the_data_are_the_target():
    normalize = Normalize(mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4])
    objective = Autoencoder(encoder(), normalize).double()
    images = views(0)[0]
    pixels = torch.stack(
        [images[:, i] * s + m for i, (m, s) in enumerate([(0.4, 0.2), (0.5, 0.3), (0.6, 0.4)])], 1
    )
    assert torch.allclose(objective.codec.pixels(images), pixels, atol=1e-15)
    features = objective.encoder(images)
    made = objective.decoder(features["y"], features["w"])
    wanted = (made - pixels).square().sum() / len(images)
    assert abs(objective(batch_of([images], 0, shuffle=False))["loss"].item() - wanted.item()) < 1e-9


def test_it_holds_any_contrastive_objective():
    options = DimObjective(kind="dim", bound="infonce", critic=DotCritic(kind="dot", units=6), locations=5)
    torch.manual_seed(0)
    dim = Dim(encoder(), options, "batch", 4, 4).double()
    chosen = HybridObjective(kind="hybrid", contrast=options, omega=0.5)
    objective = Hybrid(dim, chosen, Normalize()).double()
    assert objective.views == 1
    batch = dim_batch(views(0)[0])
    values = objective(batch)
    contrast = objective.contrast(batch)
    assert values["loss"].item() == pytest.approx(
        contrast["loss"].item() + 0.5 * values["sse"].item(), abs=1e-9
    )
    values["loss"].backward()
    assert all(p.grad is not None for p in objective.parameters())
    objective.after_step()


def test_it_learns_both_tasks():
    objective = hybrid(moco(layout="pooled", temperature=0.2), omega=0.2)
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], lr=1e-2)
    history = []
    for step in range(60):
        values = objective(batch_of(views(step % 4), step))
        optimizer.zero_grad()
        values["loss"].backward()
        optimizer.step()
        objective.after_step()
        history.append((values["contrast"].item(), values["sse"].item()))
    contrast, error = (torch.tensor(column) for column in zip(*history, strict=True))
    assert contrast[-4:].mean() < contrast[4:8].mean() - 0.3
    assert error[-4:].mean() < error[:4].mean() - 2  # sixteen numbers for 192 random pixels


def test_what_evaluation_reads():
    objective = hybrid(moco(layout="pooled"))
    images = views(0)[0]
    features = objective.features(images)
    assert list(features) == ["z", "w", "y", "head"]  # the last is that of the contrast
    assert torch.equal(features["z"], torch.cat([features["y"], features["w"]], 1))
    assert features["y"].shape == features["w"].shape == (BATCH, 8)
    y, w = objective.codec.encode(images)
    assert objective.codec.decode(y, w).shape == images.shape
    assert math.isfinite(objective.codec.decode(y, w).sum().item())


def test_the_controls_of_the_small_resnet_share_all_but_the_objective():
    names = (
        "hybrid_cifar10_resnet_small",
        "contrastive_cifar10_resnet_small",
        "autoencoder_cifar10_resnet_small",
    )
    whole, contrastive, autoencoder = (load([f"recipe={name}"]).recipe for name in names)
    assert contrastive.objective == whole.objective.contrast
    assert contrastive.data == whole.data
    assert contrastive.encoder == whole.encoder.model_copy(update={"w": None})  # which it would never train
    assert autoencoder.encoder == whole.encoder
    assert autoencoder.data.views == whole.data.views[:1]
    for control in (contrastive, autoencoder):
        for key in ("batch", "groups", "images", "precision", "optimizer", "schedule", "seed"):
            assert getattr(control, key) == getattr(whole, key), key
