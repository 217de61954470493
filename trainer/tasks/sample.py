"""The task `sample`: images of a diffusion run, in a folder."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.common.errors import UserError
from data_pipelines.common.files import cannot_write, replace_text
from trainer.checkpoints.format import folder_name
from trainer.checkpoints.load import Checkpoint
from trainer.distributed import collectives
from trainer.distributed.launch import DistributedContext
from trainer.evaluation.figures import samples as figures
from trainer.objectives.drawing import Artist
from trainer.recipe.diffusion import Diffuse, SampleRun
from trainer.recipe.loading import ResolvedRecipe
from trainer.runs.folder import RunFolder
from trainer.tasks import diffusion_checks
from trainer.tasks.checks import readable
from trainer.tasks.generation_pages import describe_drawing
from trainer.tasks.latent_source import LatentSource, artist_of, open_source
from trainer.tasks.saved_run import choose, diffusion_recipe, load_weights
from trainer.training.data import DTYPES
from trainer.training.diffusion import build_diffusion, sample_shapes

ARRAY, PAGE, RECORD, FILES = "samples.npy", "samples.png", "samples.json", "images"
SHOWN = 64  # samples on the page
PNG_BYTES = 1.1  # of a byte of noise, the most that a PNG takes


def run(loaded: ResolvedRecipe[SampleRun], context: DistributedContext) -> int:
    """Draws samples with a checkpoint of a diffusion run; the process's exit status.

    samples.npy holds them, uint8 [samples, 3, H, W]; samples.png is a page of the first, samples.json says
    how they were drawn. Sample i has the same noise on any ranks and in any batch, to the bit.

    Raises:
        UserError: there is no such run, its latents are of another one, or the disk has no room.
    """
    options = loaded.recipe
    folder = RunFolder(Path(options.from_))
    recipe = collectives.run_on_main(lambda: diffusion_recipe(folder))
    checkpoint = collectives.run_on_main(lambda: choose(folder, options.checkpoint, "checkpoint"))
    source = None
    if recipe.data is None:
        source = open_source(recipe, loaded.commands, checkpoint.manifest["data"])
    shapes = sample_shapes(recipe, source.shapes if source else {})
    diffusion_checks.check_drawing(options.draw, recipe.objective.process, shapes)
    artist = opened_artist(recipe, options, checkpoint, source, context)
    target = Path(options.to or folder.path / "samples" / name_of(artist, checkpoint))
    side = size_of(recipe, source)
    begun = target.with_name(f"{target.name}.{collectives.broadcast_object(os.getpid())}.writing")
    try:
        collectives.run_on_main(lambda: prepare(begun, target, options, side))
        collectives.run_on_all(lambda: draw(begun, artist, options))
        collectives.run_on_main(lambda: finish(begun, target, artist, options, checkpoint))
    except OSError as error:
        raise cannot_write(target, error, "to=") from None
    finally:
        if context.is_main:
            shutil.rmtree(begun, ignore_errors=True)
    if context.is_main:
        print(f"samples   {target}: {options.samples:,} images in {ARRAY}, the first on {PAGE}")
    return 0


def opened_artist(
    recipe: Diffuse,
    options: SampleRun,
    checkpoint: Checkpoint,
    source: LatentSource | None,
    context: DistributedContext,
) -> Artist:
    """Draws with a checkpoint, in the precision and by the seed of the options."""
    shapes = sample_shapes(recipe, source.shapes if source else {})
    objective = load_weights(build_diffusion(recipe, shapes), checkpoint)
    objective = objective.to(context.device, DTYPES[options.precision])
    artist = artist_of(recipe, objective, shapes, source, context.device)
    return replace(artist, options=options.draw, seed=options.seed, bf16=options.precision == "bf16")


def size_of(recipe: Diffuse, source: LatentSource | None) -> int:
    """Side of the images, pixels."""
    data = source.recipe.data if source else recipe.data
    assert data is not None  # either of the two is there
    return data.size


def name_of(artist: Artist, checkpoint: Checkpoint) -> str:
    """The name of a folder: images-000000256000-flow-heun-25-seed-0"""
    options, process = artist.options, artist.process
    words = [folder_name(checkpoint.images), process, options.sampler_of(process), options.steps_of(process)]
    words += [f"eta-{options.eta:g}"] * bool(options.eta)
    words += [f"guidance-{options.guidance:g}"] * (options.guidance != 1)
    return "-".join(map(str, [*words, f"seed-{artist.seed}"]))


def prepare(begun: Path, target: Path, options: SampleRun, side: int) -> None:
    """Makes the folder, and the whole array in it; on rank 0.

    Raises:
        UserError: there is something else at the target, or the disk has no room.
    """
    if target.exists() and not (target / RECORD).exists():
        raise UserError(f"to={target}: something else lies there (no {RECORD}); give another folder")
    size = options.samples * 3 * side * side
    there = next(folder for folder in begun.absolute().parents if folder.exists())
    needed, left = int(size * (1 + PNG_BYTES * options.files)), shutil.disk_usage(there).free
    if needed > left:
        raise UserError(
            f"samples={options.samples}: they take {readable(needed)}, and {there} has "
            f"{readable(left)} left; draw fewer, or give another folder with to="
        )
    begun.mkdir(parents=True)
    np.lib.format.open_memmap(begun / ARRAY, "w+", np.uint8, (options.samples, 3, side, side)).flush()
    with open(begun / ARRAY, "r+b") as array:  # a mapped file has no room yet: a full disk would be a signal
        os.posix_fallocate(array.fileno(), 0, os.fstat(array.fileno()).st_size)
    if options.files:
        (begun / FILES).mkdir()


def draw(begun: Path, artist: Artist, options: SampleRun) -> None:
    """Draws this rank's batches and writes them."""
    rank, world = collectives.rank(), collectives.world_size()
    array = np.lib.format.open_memmap(begun / ARRAY, "r+")
    for ids in list(artist.batches(np.arange(options.samples)))[rank::world]:
        array[ids] = artist.images(ids).numpy()
        for number in ids if options.files else ():
            path = begun / FILES / f"{number:0{len(str(options.samples - 1))}}.png"
            Image.fromarray(array[number].transpose(1, 2, 0)).save(path)
        if rank == 0:
            print(f"  {int(ids[-1]) + 1:,} of {options.samples:,}", flush=True)
    array.flush()


def finish(begun: Path, target: Path, artist: Artist, options: SampleRun, checkpoint: Checkpoint) -> None:
    """Draws the page, says how the samples were drawn, and puts the folder into its place; on rank 0."""
    array = np.load(begun / ARRAY, mmap_mode="r", allow_pickle=False)
    figures.grid(begun / PAGE, list(array[:SHOWN]), describe_drawing(artist))
    record = {"run": options.from_, "images": checkpoint.images, "samples": options.samples}
    record |= {"seed": options.seed, "precision": options.precision, "drawn": describe_drawing(artist)}
    replace_text(begun / RECORD, json.dumps(record, indent=1) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    os.rename(begun, target)
