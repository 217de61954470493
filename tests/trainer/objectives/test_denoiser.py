"""The diffusion objective against a loop in float64, its average, and what it learns of a mixture."""

import itertools

import numpy as np
import pytest
import torch

from data_pipelines.loader import Batch
from data_pipelines.noise import Noise
from tests.trainer.generation import mixture
from trainer.generation.processes import PROCESSES
from trainer.generation.samplers import euler
from trainer.generation.scaling import Scaling
from trainer.networks.denoising_mlp import DenoisingMlp
from trainer.objectives.denoiser import Averaging, Diffusion

EVERY = [pytest.param(process(), id=name) for name, process in PROCESSES.items()]


def batch_of(*views: torch.Tensor, seen: int = 0, first: int = 0) -> Batch:
    n = len(views[0])
    places = np.arange(first, first + n)[None].repeat(len(views), 0)
    return Batch(
        list(views), places, places + seen, torch.zeros(n, dtype=torch.int64), seen, Noise(5, seen, first, n)
    )


def objective(
    process, predict="v", condition: int = 0, batch: int = 8, width: int = 16, **options
) -> Diffusion:
    torch.manual_seed(0)
    network = DenoisingMlp(2, width, 2, condition).double()
    for layer in network.modules():
        if isinstance(layer, torch.nn.Linear) and not layer.weight.any():
            torch.nn.init.normal_(layer.weight, std=0.02)
    return Diffusion(
        *(network, process, predict),
        Scaling(torch.tensor([0.5, -1.0]).double(), torch.tensor([2.0, 0.5]).double()),
        options.pop("averaging", Averaging(1000.0)),
        batch,
        conditional=condition > 0,
        **options,
    )


@pytest.mark.parametrize("predict", ["eps", "x", "v"])
@pytest.mark.parametrize("process", EVERY)
def test_the_loss_is_a_sum_over_numbers_and_a_mean_over_samples(process, predict):
    module, x = objective(process, predict), torch.randn(8, 2).double()
    batch, total, zero = batch_of(x), 0.0, 0.0
    generators = batch.noise.groups("diffusion", 2, torch.device("cpu"))
    for pair, generator in enumerate(generators):
        u = torch.rand(1, generator=generator, dtype=torch.float64)
        torch.rand(2, generator=generator)
        eps = torch.randn(2, 2, generator=generator, dtype=torch.float64)
        for half in (0, 1):
            sample = (x[2 * pair + half] - torch.tensor([0.5, -1.0])) / torch.tensor([2.0, 0.5])
            t = process.times(u if half == 0 else 1 - u)
            signal, noise = process.levels(t)
            noisy = (signal * sample + noise * eps[half])[None]
            said = module.network(process.scaled(noisy, t), process.embedded(t))[0]
            a, b = process.velocity(t)
            target = {"eps": eps[half], "x": sample, "v": a * eps[half] - b * sample}[predict]
            total += ((said - target) ** 2).sum().item() / 8
            zero += (target**2).sum().item() / 8
    values = module(batch)
    assert values["loss"].item() == pytest.approx(total, rel=1e-12)
    assert values["denoising"].item() == pytest.approx(total / 2, rel=1e-12)
    assert values["denoising/zero"].item() == pytest.approx(zero / 2, rel=1e-12)


@pytest.mark.parametrize("process", EVERY)
def test_parts_of_a_batch_see_what_the_whole_sees(process):
    module, x = objective(process), torch.randn(8, 2).double()
    parts = [module(batch_of(x[i : i + 4], seen=64, first=i))["loss"].item() for i in (0, 4)]
    assert sum(parts) / 2 == pytest.approx(module(batch_of(x, seen=64))["loss"].item(), rel=1e-12)


def test_a_condition_is_read_and_dropped_for_its_share():
    x, y = torch.randn(400, 2).double(), torch.randn(400, 3).double()
    losses = {
        drop: objective(PROCESSES["flow"](), condition=3, drop=drop, batch=400)(batch_of(x, y))["loss"].item()
        for drop in (0.0, 0.1, 1.0)
    }
    assert len(set(losses.values())) == 3
    deaf = objective(PROCESSES["flow"](), condition=3, drop=1.0, batch=400)(batch_of(x, y + 1))["loss"].item()
    assert deaf == losses[1.0]
    module = objective(PROCESSES["flow"](), condition=3, batch=400, drop=0.1)
    generators = batch_of(x, y).noise.groups("diffusion", 2, x.device)
    kept = module._draws(generators, x)[2]
    assert 0.84 < kept.double().mean().item() < 0.96


def test_the_average_follows_with_the_half_life_in_images_and_its_ramp():
    averaging = Averaging(half_life=1000.0, ramp=0.05)
    assert averaging.momentum(8, 0) == 0
    assert averaging.momentum(8, 400) == pytest.approx(0.5 ** (8 / 20))
    assert averaging.momentum(8, 10**6) == pytest.approx(0.5 ** (8 / 1000))
    assert Averaging(1000.0, ramp=0).momentum(8, 0) == pytest.approx(0.5 ** (8 / 1000))

    module = objective(PROCESSES["flow"](), averaging=averaging)
    slow = [parameter.detach().clone() for parameter in module.network.parameters()]
    for step in range(5):
        module(batch_of(torch.randn(8, 2).double(), seen=400 + 8 * step))["loss"].backward()
        with torch.no_grad():
            for parameter in module.network.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        module.after_step()
        m = 0.5 ** (8 / (0.05 * (400 + 8 * step)))
        slow = [m * a + (1 - m) * p.detach() for a, p in zip(slow, module.network.parameters(), strict=True)]
    for ours, expected in zip(module.average.parameters(), slow, strict=True):
        assert torch.allclose(ours, expected, atol=1e-12)
        assert not ours.requires_grad


def energy(a: torch.Tensor, b: torch.Tensor) -> float:
    """The energy distance of two samples."""
    return (2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()).item()


@pytest.mark.slow
@pytest.mark.parametrize("process", EVERY)
def test_what_is_trained_on_a_mixture_draws_it(process):
    """Most of the time goes into the generators of pairs of images, so batches are small."""
    data, batch, steps = mixture.samples(20_000, 0), 64, 1500
    torch.manual_seed(0)
    module = Diffusion(
        *(DenoisingMlp(2, 64, 2), process, "v", Scaling(data.mean(0).float(), data.std(0).float())),
        Averaging(50_000.0),
        batch,
    )
    optimizer = torch.optim.Adam(module.network.parameters())
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, 2 * (1 - step / steps))
        places = torch.arange(batch * step, batch * (step + 1)) % len(data)
        optimizer.zero_grad()
        module(batch_of(data[places].float(), seen=batch * step))["loss"].backward()
        optimizer.step()
        module.after_step()
    with torch.no_grad():
        noise = mixture.even_noise(1000).float()  # else the luck of the draws is most of the distance
        drawn = module.scaling.inverse(euler(process, "v", module.denoiser(), noise, process.grid(100)))
    real = [mixture.samples(1000, seed) for seed in (2, 3, 4)]
    between = sum(energy(a, b) for a, b in itertools.combinations(real, 2)) / 3
    away = sum(energy(drawn.double(), sample) for sample in real) / 3
    assert away < 3 * between
    blurred = noise.double() * data.std(0) + data.mean(0)  # one Gaussian for all modes
    assert energy(blurred, real[0]) > 3 * between
