"""SimCLR: NT-Xent against two loops in float64, its gradient, what it refuses, and its held-out estimate."""

import math

import pytest
import torch
from torch import Tensor

from tests.helpers.tiny_moco import BATCH, GROUP, batch_of, encoder, views
from trainer.objectives.simclr import Simclr
from trainer.recipe.objectives import Head, SimclrObjective


def simclr(negatives: int | None = None, norm: str = "group", temperature: float = 0.5) -> Simclr:
    options = SimclrObjective(kind="simclr", temperature=temperature, head=Head(units=5, width=6))
    network = encoder(norm=norm)
    return Simclr(network, options, norm, GROUP, negatives).double()


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> float:
    """Algorithm 1 of arXiv 2002.05709 for projections [n, d] at unit length, one exponential at a time."""
    z, n = torch.cat([first, second]).tolist(), len(first)
    total = 0.0
    for i in range(2 * n):
        scores = [sum(a * b for a, b in zip(z[i], z[k], strict=True)) / temperature for k in range(2 * n)]
        denominator = sum(math.exp(scores[k]) for k in range(2 * n) if k != i)
        total -= math.log(math.exp(scores[(i + n) % (2 * n)]) / denominator)
    return total / (2 * n)


def projections(objective: Simclr, batch) -> list[Tensor]:
    with torch.no_grad():
        return [objective._project(objective.encoder(view)) for view in batch.views]


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_the_loss_is_nt_xent_of_the_whole_batch(temperature):
    objective, batch = simclr(temperature=temperature), batch_of(views(0), 0, shuffle=False)
    values = objective(batch)
    assert values["loss"].item() == pytest.approx(nt_xent(*projections(objective, batch), temperature), 1e-12)
    assert values["contrast"] == values["loss"]
    assert values["contrast/random_guess"] == pytest.approx(math.log(2 * BATCH - 1))


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_negatives_of_groups_are_the_mean_over_the_groups(norm):
    objective, batch = simclr(negatives=GROUP, norm=norm), batch_of(views(0), 0, shuffle=False)
    first, second = projections(objective, batch)
    groups = [nt_xent(a, b, 0.5) for a, b in zip(first.split(GROUP), second.split(GROUP), strict=True)]
    assert objective(batch)["loss"].item() == pytest.approx(sum(groups) / len(groups), 1e-12)


def test_the_gradient_follows_differences():
    objective, batch = simclr(), batch_of(views(0), 0, shuffle=False)
    objective(batch)["loss"].backward()
    for name, parameter in objective.named_parameters():
        if parameter.grad is None:  # the map of w, which nothing reads
            assert "to_map" in name
            continue
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).double()
        expected, ends = (parameter.grad * direction).sum().item(), []
        with torch.no_grad():
            for step in (1e-6, -2e-6):
                parameter += step * direction
                ends.append(objective(batch)["loss"].item())
            parameter += 1e-6 * direction
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(expected, rel=1e-5, abs=1e-7), name


def test_identical_views_of_one_image_leave_no_information():
    objective = simclr().eval()
    same = [view[:1].repeat(BATCH, 1, 1, 1) for view in views(0)]
    values = objective(batch_of([same[0], same[0]], 0, shuffle=False))
    assert values["mi/contrast"].item() == pytest.approx(0.0, abs=1e-9)
    assert values["mi/contrast/ceiling"] == pytest.approx(math.log(GROUP))


def test_batch_norm_over_part_of_the_negatives_is_refused():
    with pytest.raises(
        ValueError, match=r"^negatives=global with encoder\.norm=batch: .* set encoder\.norm=group"
    ):
        simclr(norm="batch")
    with pytest.raises(ValueError, match=r"^negatives=1: a group needs at least 2 images"):
        simclr(negatives=1)
