"""The plan of a diffusion: what its samples are, and what its networks cost."""

import math
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from data_pipelines.common.errors import UserError
from trainer.generation.latents import stored_bytes
from trainer.objectives.denoiser import Diffusion
from trainer.objectives.objective import Objective, size
from trainer.recipe import loading
from trainer.recipe.diffusion import Diffuse
from trainer.recipe.schema import Pretrain
from trainer.runs.folder import RunFolder
from trainer.tasks import commands
from trainer.tasks.diffuse import describe_samples
from trainer.tasks.diffusion_checks import check_attention, check_keys
from trainer.tasks.latent_source import check_decodes, decoding_recipe, latent_shapes
from trainer.tasks.plan_parts import Planned, describe_data, look_at, megabytes, planned_split, stored
from trainer.tasks.resources import sizes_of
from trainer.tasks.saved_run import choose
from trainer.training.diffusion import build_diffusion, numbers_of, sample_shapes

Shapes = dict[str, tuple[int, ...]]


def planned(recipe: Diffuse, allowed: bool) -> Planned:
    """The samples and the networks of a diffusion.

    Args:
        allowed: whether its data set's root may start programs.

    Raises:
        UserError: `from` is not there, and no recipe makes it; or parts do not fit together.
    """
    if recipe.data is not None:
        shapes = sample_shapes(recipe, {})
        made = partial(build_diffusion, recipe, shapes), list(shapes.values())
        dataset, missing = look_at(recipe.data, allowed)
        lines = [describe_samples(shapes, None), missing]
        if dataset is None:
            return Planned(under("data", lines), describe_model(recipe, shapes), *made)
        lines[1] = describe_data(recipe.data, dataset)
        images, train = dataset.split(recipe.data.train).images, recipe.data.train
        model, split = describe_model(recipe, shapes), planned_split(dataset, recipe.data)
        return Planned(
            *(under("data", lines), model, *made), count=images, stored=stored(dataset, train), split=split
        )
    assert recipe.from_ is not None  # either of the two is there
    folder = RunFolder(Path(recipe.from_))
    encoder, origin = encoder_of(folder)
    if not origin:
        try:
            checkpoint = choose(folder, recipe.checkpoint, "checkpoint")
            origin = f"of checkpoint {checkpoint.path}"
        except UserError as error:
            origin = f"not there yet: {error}"
    latent = latent_shapes(encoder)
    shapes = sample_shapes(recipe, latent)
    made = partial(build_diffusion, recipe, shapes), list(shapes.values())
    dataset, missing = look_at(encoder.data, allowed)
    count, lines = None, [describe_samples(shapes, recipe.objective.components), f"latents {origin}"]
    if dataset is None:
        lines.append(f"of images {missing}")
    else:
        images = dataset.split(encoder.data.train).images
        count = images * (1 + recipe.mirrored)
        mirrored = " and their mirror images" * recipe.mirrored
        room = megabytes(stored_bytes(latent, images))
        lines.append(f"{count:,} rows, of {images:,} images{mirrored}; {room} in {folder.path}, mapped")
    return Planned(under("data", lines), describe_model(recipe, shapes), *made, count=count, unit="rows")


def encoder_of(folder: RunFolder) -> tuple[Pretrain, str]:
    """The recipe of the run in a folder, or of that which its name says, and then how it is trained first.

    Raises:
        UserError: the run has no decoder; or there is none, and no recipe has its name.
    """
    if (folder.path / "recipe.yaml").exists():
        return decoding_recipe(folder), ""
    name, recipe = folder.path.name, None
    with suppress(UserError):
        recipe = loading.load([f"recipe={name}"]).recipe
    if recipe is not None and recipe.task == "pretrain":
        check_decodes(recipe, folder)
        return recipe, f"of {folder.path}, which is not there yet; train it first: {commands.train(name)}"
    raise UserError(
        f"from={folder.path}: no run there yet; train a hybrid or an autoencoder there first, such as "
        f"recipe=hybrid_cifar10_pooled run={name}"
    )


def describe_model(recipe: Diffuse, shapes: Shapes) -> list[str]:
    """Parameters by part, what a forward pass costs, and the memory that a rank holds beside activations.

    Raises:
        UserError: keys or networks do not fit the samples.
    """
    check_keys(recipe, shapes)
    check_attention(recipe, shapes)
    with torch.device("meta"):
        objective = build_diffusion(recipe, shapes)
        lines = [describe_part(recipe, name, part, shapes) for name, part in parts_of(objective).items()]
    state, kept = sizes_of(recipe, objective), sum(p.numel() for p in objective.parameters())
    numbers = sum(math.prod(shape) for shape in shapes.values())
    batch = recipe.batch // recipe.accumulate * numbers * (8 if recipe.precision == "float64" else 4)
    return [
        *under("parameters", [*lines, f"in all {kept:,}"]),
        f"memory     beside activations: parameters {megabytes(state.parameters)}, "
        f"gradients {megabytes(state.gradients)}, moments {megabytes(state.moments)}, "
        f"samples of a batch {megabytes(batch)} shared by the ranks; "
        f"a checkpoint {megabytes(state.checkpoint)} on disk",
    ]


def parts_of(objective: Objective) -> dict[str, Diffusion]:
    """The denoisers of an objective: of y and w, or one whose name is ''."""
    modules = {"": objective, **dict(objective.named_children())}
    return {name: part for name, part in modules.items() if isinstance(part, Diffusion)}


def describe_part(recipe: Diffuse, name: str, part: Diffusion, shapes: Shapes) -> str:
    """One denoiser: "y: network 12,345  average 12,345; 0.21 GFLOP an image forward"."""
    options, sample = recipe.objective, shapes[name] if name else next(iter(shapes.values()))
    if len(sample) == 1:
        sample = (numbers_of(options, sample),)
    condition = (numbers_of(options, shapes["y"]),) if part.views == 2 else None
    flop = forward_flop(part, sample, condition)
    counts = f"network {size(part.network):,}  average {size(part.average):,}"
    return f"{f'{name}: ' if name else ''}{counts}; {flop / 1e9:.2g} GFLOP an image forward"


def forward_flop(part: Diffusion, sample: tuple[int, ...], condition: tuple[int, ...] | None) -> int:
    """Floating-point operations of one prediction for one sample, two a multiplication and addition.

    Args:
        part: on the device `meta`.
        sample: shape of one.
        condition: shape of its condition; None: it has none.
    """
    weight = next(part.average.parameters())
    y = None if condition is None else weight.new_empty(1, *condition)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        part.denoiser(y)(weight.new_empty(1, *sample), weight.new_empty(1))
    return counter.get_total_flops()


def under(heading: str, lines: list[str]) -> list[str]:
    """Lines below a heading, which stands before the first."""
    return [f"{heading if number == 0 else '':<10} {line}" for number, line in enumerate(lines)]
