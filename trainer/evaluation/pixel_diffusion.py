"""What evaluators of pixel diffusion read: a denoiser, and images that it was trained on and is tested on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_pipelines.dali import in_order
from data_pipelines.image_options import ImageOptions
from data_pipelines.plan import sample
from data_pipelines.reader import Reader
from trainer.distributed import collectives
from trainer.evaluation.features import has_labels
from trainer.evaluation.suite import Job, Outcome, linear_figures, run_all
from trainer.objectives.denoiser import Diffusion
from trainer.objectives.drawing import SampleNoise
from trainer.recipe.evaluation import LinearProbe

LABEL = "label"
Compute = Callable[[Tensor, np.ndarray], dict[str, Tensor]]
"""Normalised images [n, 3, H, W] and their ids [n] -> numbers by name, each [n, ...]."""


def chosen(ids: np.ndarray, count: int, seed: int, purpose: str) -> np.ndarray:
    """A fixed random choice of `count` of these ids, all where they are fewer; ascending."""
    return ids[sample(seed, purpose, len(ids), count)]


@dataclass(frozen=True, kw_only=True)
class PixelDiffusion:
    """All of it is the same on every rank.

    Attributes:
        objective: of images, with all parameters on every rank; its average is read.
        train: the split that it was trained on, which probes learn from.
        test: the split that is reported on.
        images: how images are decoded for the denoiser.
        classes: how many there are.
        linear: the probe.
        seed: of the run.
        folder: of the run, or of one of its evaluations: figures/.
        say: receives lines for a person; prints on rank 0 alone.
        batch: images at a time.
        threads: of a fit.
        bf16: whether the denoiser computes in bfloat16 autocast.
    """

    objective: Diffusion
    train: Reader
    test: Reader
    images: ImageOptions
    classes: int
    linear: LinearProbe
    seed: int
    folder: Path
    say: Callable[[str], None] = lambda line: None
    batch: int = 500
    threads: int = 1
    bf16: bool = False

    @property
    def device(self) -> torch.device:
        return self.images.device

    @property
    def supervised(self) -> bool:
        """Whether both splits have images with a label."""
        return self.classes > 0 and has_labels(self.train) and has_labels(self.test)

    def pixels(self, views: Tensor) -> Tensor:
        """Normalised images [n, 3, H, W] as pixels, about [0, 1]."""
        mean, std = (
            torch.tensor(values, dtype=views.dtype, device=views.device)[:, None, None]
            for values in (self.images.normalize.mean, self.images.normalize.std)
        )
        return views * std + mean

    def noise(self, reader: Reader, ids: np.ndarray, purpose: str, like: Tensor) -> Tensor:
        """Noise of a standard normal [n, ...] for images `ids`: of seed, purpose, split and id alone."""
        return SampleNoise(self.seed, ids, f"{purpose} {reader.split}", like)()

    # ---- over ranks ----------------------------------------------------------------------------------

    @torch.no_grad()
    def on_main(self, reader: Reader, ids: np.ndarray, compute: Compute) -> dict[str, Tensor]:
        """What is computed of images, by name [len(ids), ...], in the memory of rank 0; nothing elsewhere.

        Collective: ranks divide the batches, which hold the same images on any number of them. `label` is
        added, int64; -1 where an image has none, or was replaced as it could not be decoded.

        Raises:
            SharedError: on every rank, where `compute` raised a UserError on one.
        """
        batches = np.split(ids, range(self.batch, len(ids), self.batch))
        shares = np.array_split(np.arange(len(batches)), collectives.world_size())
        local = np.concatenate([ids[:0], *(batches[number] for number in shares[collectives.rank()])])
        parts: list[dict[str, Tensor]] = []

        def compute_share() -> None:
            few = local if len(local) else ids[:1]  # a rank without a batch still needs names and shapes
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                for number, (views, labels) in enumerate(in_order(reader, self.images, few, self.batch)):
                    part = few[number * self.batch : (number + 1) * self.batch]
                    parts.append(compute(views, part) | {LABEL: labels})

        collectives.run_on_all(compute_share)
        gathered = {
            name: collectives.gather_to_main(torch.cat([part[name] for part in parts])[: len(local)])
            for name in parts[0]
        }
        return {name: values for name, values in gathered.items() if values is not None}

    def probe(
        self, feature: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
    ) -> dict[str, float]:
        """The figures of a feature's linear probe, on rank 0: of float32 [n, d] and labels, -1 left out.

        Raises:
            UserError: a number is not finite, or `linear` needs more images than there are.
        """
        figure = f"probe/linear/{feature}"

        def fit() -> Outcome:
            (train_x, train_y), (test_x, test_y) = (self._labelled_rows(*part) for part in (train, test))
            data = train_x, train_y, test_x, test_y, self.classes
            return linear_figures(figure, data, self.linear, self.seed)

        outcome = run_all([Job(figure, 0, fit)], self.threads, self.device)[figure]
        return {name: float(value) for name, value in outcome.items()}

    def _labelled_rows(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        rows = labels >= 0
        return (x if rows.all() else x[rows]).to(self.device), labels[rows].to(self.device)
