"""From the noise of sample i to its image: whatever the batch, guidance, given y, noise in the steps."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from data_pipelines.common.errors import UserError
from tests.trainer.objectives.test_pooled_diffusion import pooled
from trainer.generation.processes import PROCESSES
from trainer.generation.samplers import heun
from trainer.objectives.drawing import Artist, SampleNoise, as_uint8
from trainer.recipe.drawing import Drawing

SHAPES = {"y": (4,), "w": (2, 4, 4)}
MIX = torch.randn(36, 3 * 16, generator=torch.Generator().manual_seed(3)).double() / 20


def decode(samples: dict[str, Tensor]) -> Tensor:
    """Pixels [n, 3, 4, 4] that every number of y and w has a part in."""
    z = torch.cat([samples["y"], samples["w"].flatten(1)], 1)
    return (0.5 + z @ MIX.to(z)).unflatten(1, (3, 4, 4))


def artist(process: str = "flow", dtype: torch.dtype = torch.float64, **options: object) -> Artist:
    objective = pooled(PROCESSES[process](), "eps" if process == "ddim" else "v", dropout=0.5).to(dtype)
    return Artist(objective, SHAPES, decode, Drawing(**({"steps": 4} | options)), seed=5)


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_noise_of_a_sample_is_equal_to_the_bit_in_any_batch(dtype):
    like = torch.empty(3, 4, dtype=dtype)
    together = SampleNoise(5, np.arange(10), "w", like)
    first, second = together(), together()
    assert first.dtype is dtype
    for number in (0, 3, 9):
        alone = SampleNoise(5, ids(number), "w", like)
        assert torch.equal(alone()[0], first[number])
        assert torch.equal(alone()[0], second[number])
    several = [
        first,
        second,
        SampleNoise(6, np.arange(10), "w", like)(),
        SampleNoise(5, np.arange(10), "y", like)(),
    ]
    assert all(not torch.isclose(a, b).any() for a, b in itertools.combinations(several, 2))
    many = SampleNoise(5, np.arange(2000), "w", like)()
    assert many.mean().item() == pytest.approx(0, abs=0.03)
    assert many.std().item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(
    ("process", "options"),
    [
        ("flow", {}),
        ("flow", {"guidance": 2}),
        ("edm", {"sampler": "euler"}),
        ("ddim", {}),
        ("ddim", {"eta": 1}),
    ],
)
def test_images_of_a_sample_are_equal_in_any_batch(process, options):
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
        drawing = artist(process, dtype, **options)
        whole = drawing.pixels(drawing.samples(np.arange(7)))
        assert whole.dtype is dtype
        assert whole.std().item() > 0.05
        for part in (ids(6), ids(5, 0, 3)):
            parts = drawing.pixels(drawing.samples(part))
            assert (parts - whole[torch.from_numpy(part)]).abs().max() <= tolerance
        again = artist(process, dtype, **options)
        assert torch.equal(again.pixels(again.samples(np.arange(7))), whole)


def test_batches_are_a_matter_of_the_options_alone():
    parts = list(artist(batch=4).batches(np.arange(10)))
    assert [part.tolist() for part in parts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def expected_w(drawing: Artist, y: Tensor, numbers: np.ndarray, guidance: float) -> Tensor:
    """w by Heun, of a denoiser that is guided by hand."""
    part, scaled = drawing.objective.w, drawing.objective.y.scaling(y)
    noise = SampleNoise(drawing.seed, numbers, "w", torch.empty(2, 4, 4).double())()

    def denoise(noisy: Tensor, t: Tensor) -> Tensor:
        with_y, without = part.average(noisy, t, scaled), part.average(noisy, t)
        return guidance * with_y + (1 - guidance) * without

    with torch.no_grad():
        x = heun(part.process, part.predict, denoise, noise, part.process.grid(4))
        return x * part.scaling.std + part.scaling.mean


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.0, 0.5])
def test_guidance_mixes_what_w_is_with_and_without_its_y(guidance):
    drawing, numbers = artist(guidance=guidance), np.arange(5)
    drawn = drawing.samples(numbers)
    assert torch.allclose(drawn["w"], expected_w(drawing, drawn["y"], numbers, guidance), atol=1e-10)
    assert torch.equal(drawn["y"], artist().samples(numbers)["y"])
    if guidance != 1:
        assert not torch.allclose(drawn["w"], artist().samples(numbers)["w"], atol=1e-3)


def test_w_is_drawn_for_the_y_that_is_given():
    drawing, numbers = artist(), np.arange(5)
    y = torch.randn(5, 4, generator=torch.Generator().manual_seed(9)).double()
    drawn = drawing.samples(numbers, y)
    assert torch.equal(drawn["y"], y)
    assert torch.allclose(drawn["w"], expected_w(drawing, y, numbers, 1.0), atol=1e-10)
    free = drawing.samples(numbers)
    assert torch.equal(drawing.samples(numbers, free["y"])["w"], free["w"])
    assert torch.equal(drawing.images(numbers, y), as_uint8(drawing.pixels(drawn)))


def test_y_has_the_directions_of_its_components_alone():
    drawing = artist()
    scaling = drawing.objective.y.scaling
    off = (drawing.samples(np.arange(5))["y"] - scaling.mean) @ (
        torch.eye(4).double() - scaling.basis @ scaling.basis.T
    )
    assert off.abs().max() < 1e-12


def test_eta_adds_noise_of_each_sample_and_step():
    numbers = np.arange(6)
    still, noisy, half = (artist("ddim", eta=eta).samples(numbers)["w"] for eta in (0.0, 1.0, 0.5))
    assert not torch.allclose(still, noisy, atol=1e-2)
    assert not torch.allclose(half, noisy, atol=1e-2)
    assert torch.equal(artist("ddim", eta=1.0).samples(numbers)["w"], noisy)
    drawing = artist("ddim", eta=1.0)
    other = replace(drawing, seed=6).samples(numbers)["w"]
    assert not torch.allclose(other, noisy, atol=1e-2)


def test_bytes_are_rounded_to_the_nearest():
    pixels = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 1.0, 127.5 / 255 + 1e-4]).reshape(1, 1, 1, 5)
    assert as_uint8(pixels).flatten().tolist() == [0, 0, 1, 255, 128]


def test_a_network_that_diverged_draws_no_picture():
    drawing = replace(artist(), decode=lambda samples: decode(samples) * torch.nan)
    with pytest.raises(UserError, match=r"not a number: the network diverged"):
        drawing.images(ids(0))
