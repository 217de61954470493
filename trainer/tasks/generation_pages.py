"""Pictures of a diffusion run: samples, their steps, their nearest training images, noise on latents."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from trainer.evaluation.figures import samples as figures
from trainer.evaluation.generation import Row
from trainer.evaluation.image_sources import ImageSource
from trainer.evaluation.pictures import drawing
from trainer.generation.processes import PROCESSES
from trainer.objectives.drawing import Artist, as_uint8
from trainer.recipe.drawing import Drawing

LINES = 6  # samples whose steps are drawn
COLUMNS = 9  # of their steps, the first and the last among them
PAIRS = 24  # samples beside their nearest training images


def draw_page(artist: Artist, folder: Path, name: str, count: int) -> Path:
    """Draws the first samples on a page in `folder`/figures; on rank 0. Its path."""
    with drawing(folder, name) as path:
        ids = np.arange(count)
        shown = torch.cat([artist.images(part) for part in artist.batches(ids)])
        figures.grid(path, list(shown), describe_drawing(artist))
    return folder / "figures" / name


def describe_drawing(artist: Artist) -> str:
    """How samples are drawn, in words: "flow, 25 steps of heun, seed 0"."""
    return describe(artist.options, artist.process, artist.seed)


def describe(options: Drawing, process: str, seed: int) -> str:
    """As `describe_drawing`; it says so where a process takes another number of steps than are asked for."""
    asked = options.steps_of(process)
    words = [f"{process}, {asked} steps of {options.sampler_of(process)}"]
    taken = len(PROCESSES[process]().grid(asked)) - 1
    words += [f"{taken:,} evaluations"] * (taken != asked)
    words += [f"eta {options.eta:g}"] * bool(options.eta)
    words += [f"guidance {options.guidance:g}"] * (options.guidance != 1)
    return ", ".join([*words, f"seed {seed}"])


def draw_steps(artist: Artist, folder: Path) -> None:
    """Draws how the first samples come about; on rank 0."""
    with drawing(folder, "sample_steps.png") as path:
        seen, times = artist.steps(np.arange(LINES))
        columns = np.unique(np.linspace(0, len(seen) - 1, COLUMNS).round().astype(int))
        lines = [[as_uint8(seen[column])[line].cpu() for column in columns] for line in range(LINES)]
        figures.steps(path, {"": lines}, [times[column] for column in columns])


def draw_rows(
    folder: Path, artist: Artist, rows: Mapping[str, Row], training: ImageSource, distance: str
) -> None:
    """Draws samples beside their nearest training images, and what noise on latents costs; on rank 0.

    `distance`: the name of the Fréchet distance among the figures of a row.
    """
    if "samples" in rows and rows["samples"].neighbours is not None:
        with drawing(folder, "nearest.png") as path:
            _draw_nearest(path, artist, rows, training)
    scales = {0.0: "reconstruction"} | {float(name[6:]): name for name in rows if name.startswith("noise_")}
    curve = {scale: rows[name].figures for scale, name in sorted(scales.items()) if name in rows}
    if len(curve) > 1:
        with drawing(folder, "noise_on_latents.png") as path:
            errors = [row["sse"] for row in curve.values()]
            known = all(distance in row for row in curve.values())
            distances = [row[distance] for row in curve.values()] if known else None
            figures.noise_curve(path, list(curve), errors, distances, distance)


def _draw_nearest(path: Path, artist: Artist, rows: Mapping[str, Row], training: ImageSource) -> None:
    distances, numbers = rows["samples"].distances, rows["samples"].neighbours
    assert distances is not None  # they come with the neighbours
    assert numbers is not None
    count = min(PAIRS, len(distances))
    near = [training.images(number, 1)[0] for number in numbers[:count].tolist()]
    of_test = rows["test"].distances if "test" in rows else None
    typical = None if of_test is None else of_test.median().item()
    figures.neighbours(path, list(artist.images(np.arange(count))), near, distances[:count].tolist(), typical)
