"""y and w that learn side by side against a loop, and dropout that no rank changes."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_pipelines.loader import Batch
from data_pipelines.noise import Noise
from trainer.generation.processes import PROCESSES, Process
from trainer.generation.scaling import Components, Scaling
from trainer.networks.denoising_mlp import DenoisingMlp
from trainer.networks.dropout import GroupDropout, keyed
from trainer.networks.unet import UNet
from trainer.objectives.denoiser import Averaging, Diffusion, PooledDiffusion

NUMBERS, COMPONENTS = 4, 3


def batch_of(*views: torch.Tensor, first: int = 0, seen: int = 64) -> Batch:
    n = len(views[0])
    places = np.arange(first, first + n)[None].repeat(len(views), 0)
    labels = torch.zeros(n, dtype=torch.int64)
    return Batch(list(views), places, places + seen, labels, seen, Noise(7, seen, first, n))


def random_weights(module: torch.nn.Module) -> torch.nn.Module:
    """No weight is zero, as some are at first."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return module.double()


def pooled(process: Process, predict: str = "v", dropout: float = 0.0, drop: float = 0.3) -> PooledDiffusion:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(NUMBERS, COMPONENTS).double())[0]
    of_y = Components(torch.randn(NUMBERS).double(), basis, torch.tensor([2.0, 1.0, 0.5]).double())
    of_w = Scaling(torch.randn(2, 1, 1).double(), torch.tensor([2.0, 0.5]).double()[:, None, None])
    mlp = random_weights(DenoisingMlp(COMPONENTS, 8, 1))
    unet = UNet(2, 4, 8, (1, 2), 1, (2,), dropout, condition=COMPONENTS)
    options = {"averaging": Averaging(100.0), "batch": 8}
    return PooledDiffusion(
        Diffusion(mlp, process, predict, of_y, **options, purpose="diffusion y"),
        Diffusion(
            *(random_weights(unet), process, predict, of_w),
            **options,
            drop=drop,
            conditional=True,
            purpose="diffusion w",
        ),
    )


def samples(n: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(n, NUMBERS, generator=generator).double(),
        torch.randn(n, 2, 4, 4, generator=generator).double(),
    )


@pytest.mark.parametrize(("name", "predict"), [("ddim", "eps"), ("flow", "v"), ("edm", "x")])
def test_the_loss_is_that_of_a_loop_over_samples_and_parts(name, predict):
    process = PROCESSES[name]()
    module, (y, w) = pooled(process, predict), samples()
    batch, parts, dropped = batch_of(y, w), {"y": 0.0, "w": 0.0}, 0
    for part, of in (("y", module.y), ("w", module.w)):
        for pair, generator in enumerate(batch.noise.groups(f"diffusion {part}", 2, torch.device("cpu"))):
            u = torch.rand(1, generator=generator, dtype=torch.float64)
            kept = torch.rand(2, generator=generator) >= (0.3 if part == "w" else 0)
            shape = (2, COMPONENTS) if part == "y" else (2, 2, 4, 4)
            eps = torch.randn(shape, generator=generator, dtype=torch.float64)
            for half in (0, 1):
                i = 2 * pair + half
                scaled_y = (y[i] - module.y.scaling.mean) @ module.y.scaling.basis / module.y.scaling.std
                x = scaled_y if part == "y" else (w[i] - of.scaling.mean) / of.scaling.std
                t = process.times(u if half == 0 else 1 - u)
                signal, noise = process.levels(t)
                noisy = (signal * x + noise * eps[half])[None]
                condition = scaled_y[None] if part == "w" and kept[half] else None
                dropped += part == "w" and not kept[half]
                said = of.network(process.scaled(noisy, t), process.embedded(t), condition)[0]
                a, b = process.velocity(t)
                target = {"eps": eps[half], "x": x, "v": a * eps[half] - b * x}[predict]
                parts[part] += ((said - target) ** 2).sum().item() / 8
    assert 0 < dropped < 8
    values = module(batch)
    assert values["loss"].item() == pytest.approx(parts["y"] + parts["w"], rel=1e-10)
    assert values["denoising/y"].item() == pytest.approx(parts["y"] / COMPONENTS, rel=1e-10)
    assert values["denoising/w"].item() == pytest.approx(parts["w"] / 32, rel=1e-10)


def test_parts_of_a_batch_see_what_the_whole_sees_with_dropout_too():
    y, w = samples()
    module = pooled(PROCESSES["flow"](), dropout=0.5).train()
    whole = module(batch_of(y, w))["loss"].item()
    parts = [module(batch_of(y[i : i + 4], w[i : i + 4], first=i))["loss"].item() for i in (0, 4)]
    assert sum(parts) / 2 == pytest.approx(whole, rel=1e-12)
    assert module(batch_of(y, w))["loss"].item() == whole
    assert module(batch_of(y, w, seen=128))["loss"].item() != pytest.approx(whole, rel=1e-3)
    none = pooled(PROCESSES["flow"](), dropout=0.0).train()
    assert none(batch_of(y, w))["loss"].item() != pytest.approx(whole, rel=1e-3)
    assert module.eval()(batch_of(y, w))["loss"].item() == none(batch_of(y, w))["loss"].item()


def test_the_average_drops_nothing_in_either_mode_and_both_follow():
    module, (y, w) = pooled(PROCESSES["flow"](), dropout=0.5), samples()
    before = copy.deepcopy(module.state_dict())
    for mode in (True, False, True):
        module.train(mode)
        assert module.w.network.training is mode
        assert not any(part.training for part in module.w.average.modules())
        noisy, t = torch.randn(2, 2, 4, 4).double(), torch.tensor([0.2, 0.7])
        assert torch.equal(module.w.denoiser()(noisy, t), module.w.denoiser()(noisy, t))
    module(replace(batch_of(y, w)))["loss"].backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 if parameter.requires_grad else 0.0
    module.after_step()
    m = 0.5 ** (8 / (0.05 * 64))
    names = [name for name in before if ".average." in name]
    assert len(names) > 20
    for name in names:
        fast = before[name.replace("average", "network")] + 0.1
        assert torch.allclose(module.state_dict()[name], m * before[name] + (1 - m) * fast, atol=1e-12), name


# ---- dropout ---------------------------------------------------------------------------------------


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_a_generator_draws_the_masks_of_its_samples_alone():
    layer, x = GroupDropout(0.25), torch.ones(6, 40, 10)
    with keyed(layer, generators(1, 2, 3)):
        whole, later = layer(x), layer(x)
    with keyed(layer, generators(2)):
        assert torch.equal(layer(x[2:4]), whole[2:4])
        assert torch.equal(layer(x[2:4]), later[2:4])
    assert not torch.equal(whole, later)
    assert whole.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (whole == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    with keyed(layer.eval(), generators(1, 2, 3)):
        assert torch.equal(layer(x), x)


def test_without_generators_it_is_torchs():
    layer, x = GroupDropout(0.5), torch.ones(4, 50)
    with keyed(layer, generators(1, 2)):
        pass
    torch.manual_seed(0)
    ours = layer(x)
    torch.manual_seed(0)
    assert torch.equal(ours, torch.nn.functional.dropout(x, 0.5))
