"""Samples of a trained denoiser: from the noise of sample i to its image."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data_pipelines.common.errors import UserError
from data_pipelines.draws import stream
from trainer.generation.processes import Continuous, Ddim
from trainer.generation.samplers import Denoiser, See, ancestral, euler, guided, heun, unseen
from trainer.objectives.denoiser import Diffusion, PooledDiffusion
from trainer.recipe.drawing import Drawing

WHITE = 255  # of a pixel of eight bits
Decode = Callable[[dict[str, Tensor]], Tensor]
"""Samples by name, as the denoiser was trained on them, [n, ...] -> pixels [n, 3, H, W], about [0, 1]."""


class SampleNoise:
    """The noise of samples: a function of seed, sample and part alone, on any ranks, batch and device.

    Args:
        seed: of the samples.
        ids: their numbers, int64 [n].
        part: which of the drawn things it is for.
        like: has the shape of one sample, the dtype and the device.
    """

    def __init__(self, seed: int, ids: np.ndarray, part: str, like: Tensor):
        purpose, self.like = f"sample {part}", like
        numbers = [int(stream(seed, purpose, int(number)).random_raw()) >> 1 for number in ids]
        self.generators = [torch.Generator().manual_seed(number) for number in numbers]

    def __call__(self) -> Tensor:
        """The next noise of each sample, [n, ...]."""
        shape = self.like.shape
        drawn = [torch.randn(shape, generator=one, dtype=torch.float64) for one in self.generators]
        return torch.stack(drawn).to(self.like.device, self.like.dtype)


@dataclass(frozen=True)
class Artist:
    """Draws samples of a run.

    Attributes:
        objective: the denoisers, on the device; their averages are read, so its mode does not matter.
        shapes: of what is drawn, by name in its order: x, z, or y and w.
        decode: samples to pixels.
        options: how samples are drawn.
        seed: of their noise.
        bf16: whether the denoisers compute in bfloat16 autocast.
    """

    objective: Diffusion | PooledDiffusion
    shapes: dict[str, tuple[int, ...]]
    decode: Decode
    options: Drawing
    seed: int
    bf16: bool = False

    @property
    def process(self) -> str:
        """The name of the process."""
        part = self.objective if isinstance(self.objective, Diffusion) else self.objective.w
        return part.process.name

    @torch.no_grad()
    def samples(self, ids: np.ndarray, y: Tensor | None = None) -> dict[str, Tensor]:
        """Samples of these numbers, int64 [n], by name, each [n, ...], as they were trained on.

        Args:
            y: [n, d], which w is drawn for in place of drawn ones.
        """
        if isinstance(self.objective, Diffusion):
            (name,) = self.shapes
            return {name: self._drawn(self.objective, name, ids)}
        of_y, of_w = self.objective.y, self.objective.w
        if y is None:
            y = self._drawn(of_y, "y", ids)
        return {"y": y, "w": self._drawn(of_w, "w", ids, of_y.scaling(y))}

    def images(self, ids: np.ndarray, y: Tensor | None = None) -> Tensor:
        """The images of these samples, uint8 [n, 3, H, W] on the CPU."""
        return as_uint8(self.pixels(self.samples(ids, y))).cpu()

    @torch.no_grad()
    def pixels(self, samples: dict[str, Tensor]) -> Tensor:
        """Samples by name -> their pixels [n, 3, H, W], clamped to [0, 1]."""
        return self.decode(samples).clamp(0, 1)

    def batches(self, ids: np.ndarray) -> Iterator[np.ndarray]:
        """The ids in batches that are drawn together: what these are does not depend on ranks."""
        return iter(np.split(ids, range(self.options.batch, len(ids), self.options.batch)))

    @torch.no_grad()
    def steps(self, ids: np.ndarray) -> tuple[list[Tensor], list[float]]:
        """How the samples come about: what is predicted of them as each step begins, and the times.

        Each is pixels [n, 3, H, W] in [0, 1]; the last ones are the samples. A y that is drawn first is there
        from the beginning.
        """
        seen: list[Tensor] = []
        *_, name = self.shapes
        known: dict[str, Tensor] = {}
        condition = None
        if isinstance(self.objective, Diffusion):
            part = self.objective
        else:
            part, of_y = self.objective.w, self.objective.y
            known["y"] = self._drawn(of_y, "y", ids)
            condition = of_y.scaling(known["y"])
        x = self._drawn(part, name, ids, condition, lambda step, x: seen.append(part.scaling.inverse(x)))
        times = part.process.grid(self.options.steps_of(part.process.name)).tolist()
        return [self.pixels(known | {name: drawn}) for drawn in (*seen, x)], times

    def _drawn(
        self,
        part: Diffusion,
        name: str,
        ids: np.ndarray,
        condition: Tensor | None = None,
        see: See = unseen,
    ) -> Tensor:
        """Samples of one denoiser, the scaling undone."""
        weight = next(part.average.parameters())
        shape = part.scaling(torch.zeros(1, *self.shapes[name], device=weight.device)).shape[1:]
        fresh = SampleNoise(
            self.seed, ids, name, torch.empty(shape, device=weight.device, dtype=weight.dtype)
        )
        process, predict, options = part.process, part.predict, self.options
        grid = process.grid(options.steps_of(process.name))
        denoiser, noise = self._denoiser(part, condition), fresh()
        with torch.autocast(weight.device.type, torch.bfloat16, enabled=self.bf16):
            if isinstance(process, Ddim) and options.eta:
                eta, add = options.eta, lambda step: fresh()
                x = ancestral(process, predict, denoiser, noise, grid, eta, add, see)
            elif isinstance(process, Continuous) and options.sampler_of(process.name) == "heun":
                x = heun(process, predict, denoiser, noise, grid, see)
            else:
                x = euler(process, predict, denoiser, noise, grid, see)
        return part.scaling.inverse(x)

    def _denoiser(self, part: Diffusion, condition: Tensor | None) -> Denoiser:
        guidance = self.options.guidance
        if condition is None or guidance == 1:
            return part.denoiser(condition)
        if guidance == 0:
            return part.denoiser()
        return guided(part.denoiser(condition), part.denoiser(), guidance)


def as_uint8(pixels: Tensor) -> Tensor:
    """Pixels [n, 3, H, W] in [0, 1], others clamped, as uint8.

    Raises:
        UserError: one is not a number.
    """
    pixels = pixels.float()
    if not pixels.isfinite().all():
        raise UserError(
            "a pixel of a generated image is not a number: the network diverged; lower optimizer.lr"
        )
    return (pixels.clamp(0, 1) * WHITE).round().to(torch.uint8)
