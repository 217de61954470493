"""Prior matching against the game of two optimizers with automatic differentiation, in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import ks_2samp
from torch import nn

from trainer.objectives.bounds import softplus
from trainer.objectives.prior import Discriminator, PriorMatching
from trainer.recipe.objectives import Prior

WIDTH = 5


def game(gamma: float = 0.3, penalty: float = 1.0, reach: float | None = None) -> PriorMatching:
    """In float64; `reach`: logits of points of the cube span about [-reach, reach]."""
    torch.manual_seed(0)
    prior = PriorMatching(WIDTH, Prior(units=[12, 7], penalty=penalty), gamma).double()
    if reach:
        last = prior.discriminator.layers[-1]
        with torch.no_grad():
            t = prior.discriminator(torch.rand(2000, WIDTH, dtype=torch.float64))[0]
            low, high = t.min(), t.max()
            last.weight *= 2 * reach / (high - low)
            last.bias.copy_((last.bias - (low + high) / 2) * 2 * reach / (high - low))
    return prior


def points(n: int, seed: int) -> torch.Tensor:
    return torch.rand(n, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def encoder() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(6, WIDTH).double()


def logits(discriminator: Discriminator, u):
    """The plain network, without the closed form."""
    for layer in discriminator.layers[:-1]:
        u = F.relu(layer(u))
    return discriminator.layers[-1](u).squeeze(1)


def simultaneous(encoder, prior: PriorMatching, x, real):
    """Gradients of encoder and discriminator when each follows its own loss, by double backward."""
    u, discriminator = torch.sigmoid(encoder(x)), prior.discriminator
    fake, real = u.detach().requires_grad_(), real.clone().requires_grad_()
    t_fake, t_real = logits(discriminator, fake), logits(discriminator, real)
    slopes = [
        torch.autograd.grad(t.sum(), at, create_graph=True)[0] for t, at in ((t_fake, fake), (t_real, real))
    ]
    penalty = 0.5 * sum(slope.square().sum(1).mean() for slope in slopes)
    theirs = softplus(t_fake).mean() + softplus(-t_real).mean() + prior.penalty * penalty
    ours = prior.gamma * softplus(-logits(discriminator, u)).mean()
    return (
        torch.autograd.grad(ours, list(encoder.parameters()), retain_graph=True),
        torch.autograd.grad(theirs, list(discriminator.parameters())),
        (ours.item(), theirs.item()),
    )


def test_the_closed_form_is_the_gradient_of_the_logit():
    discriminator, u = game().discriminator, points(50, 3).requires_grad_()
    t, slope = discriminator(u)
    assert torch.allclose(t, logits(discriminator, u), rtol=1e-13)
    (wanted,) = torch.autograd.grad(t.sum(), u)
    assert torch.allclose(slope, wanted, rtol=1e-12, atol=1e-14)
    assert slope.abs().sum() > 0


@pytest.mark.parametrize("reach", [None, 1.0, 260.0])
def test_one_backward_is_the_simultaneous_step_of_two_optimizers(reach):
    prior, net = game(reach=reach), encoder()
    x = 4 * torch.randn(200, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    other_prior, other = copy.deepcopy(prior), copy.deepcopy(net)
    one = torch.optim.Adam([*net.parameters(), *prior.parameters()], 1e-2)
    two = [torch.optim.Adam(part.parameters(), 1e-2) for part in (other, other_prior)]
    for step in range(3):
        real = points(200, step)
        values = prior(net(x), real)
        one.zero_grad()
        values["loss"].backward()
        t = prior.discriminator(torch.sigmoid(net(x)))[0]
        if reach == 260 and step == 0:
            assert t.min() < -100  # far beyond where a sigmoid is 0 or 1
            assert t.max() > 90
        for_encoder, for_discriminator, (ours, theirs) = simultaneous(other, other_prior, x, real)
        for trained, wanted in (
            (net.parameters(), for_encoder),
            (prior.discriminator.parameters(), for_discriminator),
        ):
            for parameter, gradient in zip(trained, wanted, strict=True):
                scale = gradient.abs().max().clamp_min(1e-30)
                assert ((parameter.grad - gradient).abs().max() / scale) < 1e-12
        assert values["prior"].item() == pytest.approx(ours, rel=1e-12)
        assert values["prior/discriminator"].item() == pytest.approx(theirs, rel=1e-12)
        assert values["loss"].item() == pytest.approx(theirs, rel=1e-12)
        one.step()
        for optimizer, module, gradients in (
            (two[0], other, for_encoder),
            (two[1], other_prior.discriminator, for_discriminator),
        ):
            for parameter, gradient in zip(module.parameters(), gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
        for trained, wanted in zip(
            [*net.parameters(), *prior.parameters()],
            [*other.parameters(), *other_prior.parameters()],
            strict=True,
        ):
            assert torch.allclose(trained, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("logit", [-100.0, -30.0, 0.0, 30.0, 100.0])
def test_the_encoder_is_pulled_as_by_the_non_saturating_loss_at_any_logit(logit):
    prior, y = game(), torch.randn(4, WIDTH, dtype=torch.float64).requires_grad_()
    with torch.no_grad():
        prior.discriminator.layers[-1].bias.fill_(logit)
    prior(y, points(4, 0))["loss"].backward()
    u = torch.sigmoid(y)
    (wanted,) = torch.autograd.grad(
        prior.gamma * softplus(-logits(prior.discriminator, u)).mean(), y, retain_graph=True
    )
    assert torch.allclose(y.grad, wanted, rtol=1e-12, atol=1e-60)
    assert wanted.abs().max() > 0


def test_the_encoder_gets_no_gradient_from_the_penalty():
    gradients, others = [], []
    for penalty in (0.0, 5.0):
        prior, y = game(penalty=penalty), points(20, 1).requires_grad_()
        prior(y, points(20, 2))["loss"].backward()
        gradients.append(y.grad)
        others.append(prior.discriminator.layers[0].weight.grad)
    assert torch.equal(*gradients)
    assert not torch.allclose(*others)


@pytest.mark.slow
def test_y_reaches_its_prior_on_a_toy():
    """Two numbers out of Gaussian noise that start far from uniform: no test tells them in the end."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    with torch.no_grad():
        net[-1].bias.fill_(3.0)
    prior = PriorMatching(2, Prior(units=[64, 64]), 1.0)
    optimizer = torch.optim.Adam([*net.parameters(), *prior.parameters()], 1e-3, betas=(0.5, 0.999))
    steps = 4000
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)

    def smallest_p() -> float:
        generator = torch.Generator().manual_seed(9)
        u = torch.sigmoid(net(torch.randn(500, 4, generator=generator))).detach()
        real = torch.rand(500, 2, generator=generator)
        directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0]])  # each, sum, difference
        return min(ks_2samp((u @ d).numpy(), (real @ d).numpy()).pvalue for d in directions)

    assert smallest_p() < 1e-6
    for _ in range(steps):
        loss = prior(net(torch.randn(256, 4)), torch.rand(256, 2))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert smallest_p() > 0.01
