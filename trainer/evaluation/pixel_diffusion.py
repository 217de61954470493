"""What evaluators of pixel diffusion read: images in memory, and the denoiser that was trained on them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_pipelines.draws import stream
from data_pipelines.plan import sample
from trainer.distributed import collectives
from trainer.evaluation.suite import Job, Outcome, linear_figures, run_all
from trainer.objectives.denoiser import Diffusion
from trainer.recipe.evaluation import LinearProbe

MIDDLE = 127.5  # of pixels: uint8 / MIDDLE - 1 lies in [-1, 1]


@dataclass(frozen=True)
class Images:
    """Images of a split, in the memory of every rank.

    Attributes:
        name: of the split; equal rows of two splits get different noise.
        pixels: uint8 [N, 3, H, W].
        labels: int64 [N], -1 for none.
    """

    name: str
    pixels: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def labelled(self) -> np.ndarray:
        """Rows that have a label, int64, ascending."""
        return np.flatnonzero(self.labels >= 0)


def chosen(rows: np.ndarray, count: int, seed: int, purpose: str) -> np.ndarray:
    """A fixed random choice of `count` of these rows, all where they are fewer; ascending."""
    return rows[sample(seed, purpose, len(rows), count)]


@dataclass(frozen=True, kw_only=True)
class PixelDiffusion:
    """All of it is the same on every rank.

    Attributes:
        objective: of images in [-1, 1], with all parameters on every rank; its average is read.
        train: what probes learn from.
        test: what is reported on.
        classes: how many there are.
        linear: the probe.
        seed: of the run.
        device: of the objective.
        folder: of the run, or of one of its evaluations: figures/.
        say: receives lines for a person; prints on rank 0 alone.
        batch: images at a time.
        threads: of a fit.
    """

    objective: Diffusion
    train: Images
    test: Images
    classes: int
    linear: LinearProbe
    seed: int
    device: torch.device
    folder: Path
    say: Callable[[str], None] = lambda line: None
    batch: int = 500
    threads: int = 1

    @property
    def supervised(self) -> bool:
        """Whether both splits have images with a label."""
        return bool(self.classes and len(self.train.labelled()) and len(self.test.labelled()))

    def standardised(self, images: Images, rows: np.ndarray) -> Tensor:
        """Images `rows` as the process sees them without noise, [n, 3, H, W]."""
        mean = self.objective.mean
        pixels = torch.from_numpy(images.pixels[rows]).to(self.device, mean.dtype)
        return self.objective.standardised(pixels / MIDDLE - 1)

    def pixels(self, x: Tensor) -> Tensor:
        """The way back, to pixels in [0, 1] (not clamped)."""
        return (self.objective.restored(x) + 1) / 2

    def noise(self, images: Images, rows: np.ndarray, purpose: str) -> Tensor:
        """Noise of a standard normal [n, 3, H, W] that depends on seed, purpose, split and row alone."""
        shape = images.pixels.shape[1:]
        seeds = [
            int(stream(self.seed, f"{purpose}, {images.name}", row).random_raw()) >> 1
            for row in rows.tolist()
        ]
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(one)) for one in seeds]
        return torch.stack(drawn).to(self.device, self.objective.mean.dtype)

    # ---- over ranks ----------------------------------------------------------------------------------

    def on_main(
        self, rows: np.ndarray, compute: Callable[[np.ndarray], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """What is computed of rows, by name [rows, ...], in the memory of rank 0; nothing elsewhere.

        Collective: ranks divide the batches, which hold the same rows on any number of them.

        Raises:
            SharedError: on every rank, where `compute` raised a UserError on one.
        """
        batches = np.split(rows, range(self.batch, len(rows), self.batch))
        shares = np.array_split(np.arange(len(batches)), collectives.world_size())
        numbers = shares[collectives.rank()].tolist()
        parts: list[dict[str, Tensor]] = []

        def compute_share() -> None:
            # A rank without a batch still needs names and shapes.
            parts.extend(compute(batches[number]) for number in numbers or [0])

        collectives.run_on_all(compute_share)
        count = None if numbers else 0
        gathered = {
            name: collectives.gather_to_main(torch.cat([part[name] for part in parts])[:count])
            for name in parts[0]
        }
        return {name: values for name, values in gathered.items() if values is not None}

    def probe(
        self, feature: str, train: tuple[Tensor, np.ndarray], test: tuple[Tensor, np.ndarray]
    ) -> dict[str, float]:
        """The figures of a feature's linear probe, on rank 0, from float32 [n, d] of the rows int64 [n].

        Raises:
            UserError: a number is not finite, or `linear` asks for more images than there are.
        """
        figure = f"probe/linear/{feature}"
        (train_x, train_rows), (test_x, test_rows) = train, test
        train_y, test_y = self.train.labels[train_rows], self.test.labels[test_rows]

        def fit() -> Outcome:
            data = [train_x, torch.from_numpy(train_y), test_x, torch.from_numpy(test_y)]
            train_on, train_labels, test_on, test_labels = (tensor.to(self.device) for tensor in data)
            on_device = train_on, train_labels, test_on, test_labels, self.classes
            return linear_figures(figure, on_device, self.linear, self.seed)

        outcome = run_all([Job(figure, 0, fit)], self.threads, self.device)[figure]
        return {name: float(value) for name, value in outcome.items()}
