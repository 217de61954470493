"""What is looked at before a denoiser is trained: what cannot work, and what a person should know."""

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from data_pipelines.common.errors import UserError
from data_pipelines.dataset import Dataset
from trainer.checkpoints.load import kept
from trainer.distributed.launch import DistributedContext
from trainer.evaluation.extractors import Extractor
from trainer.evaluation.torchscript import build_extractor
from trainer.generation.latents import FOLDER
from trainer.recipe.diffusion import Diffuse
from trainer.recipe.drawing import Drawing
from trainer.recipe.generation import EXTRACTORS, Generation
from trainer.tasks import checks
from trainer.tasks.resources import Sizes, obstacle, sizes_of
from trainer.training.diffusion import build_diffusion


@dataclass(frozen=True)
class Start:
    """A diffusion run that is about to start, in this folder, and what it will draw.

    `size`: side of the images, pixels. `encodes`: bytes of latents that it writes beside the run of `from`.
    """

    recipe: Diffuse
    context: DistributedContext
    dataset: Dataset
    folder: Path
    shapes: dict[str, tuple[int, ...]]
    size: int
    encodes: int = 0

    @cached_property
    def sizes(self) -> Sizes:
        """Raises UserError: the networks do not fit the samples."""
        with torch.device("meta"):
            return sizes_of(self.recipe, build_diffusion(self.recipe, self.shapes))


def check(start: Start) -> list[str]:
    """Finds every mistake that can be found before anything is written: all `CHECKS`, in their order.

    Returns:
        What the run does without, a line each.

    Raises:
        UserError: what a check refuses, in its words.
    """
    return [line for look in CHECKS for line in look(start)]


def check_ranks(start: Start) -> Iterable[str]:
    """Refuses ranks that do not divide the batch, and an optimizer that the engine cannot run."""
    checks.check_training(start.recipe, start.context)
    return ()


def check_data(start: Start) -> Iterable[str]:
    """Refuses images of another source than the recipe's, and a split that is not there."""
    if (data := start.recipe.data) is not None:
        if start.dataset.source != data.source:
            raise checks.other_source(data, start.dataset)
        start.dataset.split(data.train)
    return ()


def check_parts(start: Start) -> Iterable[str]:
    """Refuses keys that speak of a y that is not drawn, and networks that do not fit."""
    check_keys(start.recipe, start.shapes)
    if not kept(start.folder / "checkpoints"):  # a run that has begun goes on as it is
        check_attention(start.recipe, start.shapes)
    assert start.sizes.parameters  # builds the networks
    return ()


def check_keys(recipe: Diffuse, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises UserError: a key speaks of a y that is not drawn, or of more numbers than it has."""
    components = recipe.objective.components
    if components and "y" not in shapes:
        raise UserError(
            f"objective.components={components} are those of a pooled y, and {next(iter(shapes))} is a map; "
            "leave that key out"
        )
    check_drawing(recipe.draw, recipe.objective.process, shapes)
    if components and components > (width := shapes["y"][0]):
        raise UserError(f"objective.components={components}, but y has {width} numbers; give fewer")


def check_attention(recipe: Diffuse, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises UserError: attention is asked for at a side that no level of the U-Net has."""
    options = recipe.objective.map
    side = next(shape[1] for shape in shapes.values() if len(shape) == 3)
    sides = [side // 2**level for level in range(len(options.multipliers))]
    if others := [side for side in options.attention if side not in sides]:
        raise UserError(
            f"objective.map.attention={options.attention}: no level has side {', '.join(map(str, others))}; "
            f"the levels' sides are {', '.join(map(str, sides))} (in the middle, at {sides[-1]}, there is "
            "attention in any case); give some of these, or []"
        )


def check_drawing(options: Drawing, process: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises UserError: the process has no such sampler, or guidance is asked for without a condition."""
    try:
        options.check(process)
    except ValueError as error:
        raise UserError(str(error)) from None
    if options.guidance != 1 and "y" not in shapes:
        raise UserError(
            f"draw.guidance={options.guidance:g} needs a condition, and nothing but a pooled y is one; leave "
            "that key out"
        )


def check_extractor(start: Start) -> Iterable[str]:
    """Refuses a network that cannot compare images, before hours of training; lists too few images for it."""
    options = start.recipe.evaluate
    if not options.at_end or options.extractor is None:
        return ()
    try:
        extractor = network(options)
        blank = torch.zeros(2, 3, start.size, start.size, dtype=torch.uint8)
        features = extractor(blank).shape[1]
    except UserError as error:
        raise UserError(f"{error}; or measure nothing, with evaluate.extractor=null") from None
    if "frechet" in options.measures and options.samples < features:
        return [
            f"evaluate.samples={options.samples:,}: fewer images than the {features:,} features of "
            f"{extractor.name}, so its Fréchet distances will be too large; the run says by how much"
        ]
    return ()


def network(options: Generation) -> Extractor:
    """What images are compared by, on the CPU. Raises UserError: it is not there, or is another one."""
    name = options.extractor
    assert name is not None  # else nothing is compared
    if name not in EXTRACTORS and not Path(name).is_file():
        raise UserError(
            f"evaluate.extractor={name}: no such file; expected a TorchScript, {' or '.join(EXTRACTORS)}"
        )
    return build_extractor(name, options.sha256, options.size, torch.device("cpu"))


def check_latents(start: Start) -> Iterable[str]:
    """Refuses a disk without room for the latents, which lie in the folder of the run that encodes."""
    if start.recipe.from_ is None or not start.encodes:
        return ()
    folder = Path(start.recipe.from_)
    if why := obstacle(folder / FOLDER):
        raise UserError(f"from={folder}: its latents cannot be written there: {why}; mend it")
    if start.encodes > (left := shutil.disk_usage(folder).free):
        raise UserError(
            f"from={folder}: the latents of its training images take {checks.readable(start.encodes)}, and "
            f"{folder} has {checks.readable(left)} left; make room there"
        )
    return ()


def check_room(start: Start) -> Iterable[str]:
    """Refuses a disk without room for checkpoints, or a memory that cannot hold what is trained."""
    lines = [*checks.check_disk_of(start.recipe, start.sizes, 0, 0, start.folder)]
    checks.check_memory_of(start.sizes, start.context)
    return lines


def check_pictures(start: Start) -> Iterable[str]:
    """Lists pictures that cannot be written: they never cost a run."""
    why = obstacle(start.folder / "figures")
    return [f"figures/…: left out, {why}"] if why else ()


CHECKS: tuple[Callable[[Start], Iterable[str]], ...] = (
    *(check_ranks, check_data, check_parts, check_extractor, check_latents, check_room, check_pictures),
)
