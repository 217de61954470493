"""The task `sample`: images of a diffusion run, in a folder."""

import json
import os
import platform
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from data_pipelines.common.errors import UserError
from data_pipelines.common.files import cannot_write, replace_text
from trainer.checkpoints.format import folder_name
from trainer.distributed import collectives
from trainer.distributed.launch import DistributedContext
from trainer.evaluation.figures import samples as figures
from trainer.objectives.drawing import Artist
from trainer.recipe.diffusion import Diffuse, SampleRun
from trainer.recipe.drawing import Drawing
from trainer.recipe.loading import ResolvedRecipe
from trainer.runs.folder import RunFolder
from trainer.tasks.checks import readable
from trainer.tasks.drawn_run import DrawnRun
from trainer.tasks.generation_pages import describe, describe_drawing
from trainer.tasks.interruption import ending_on_request
from trainer.tasks.latent_source import CodecSource, artist_of
from trainer.tasks.resources import obstacle
from trainer.tasks.saved_run import load_weights
from trainer.training.data import DTYPES
from trainer.training.diffusion import build_diffusion

ARRAY, PAGE, RECORD, FILES = "samples.npy", "samples.png", "samples.json", "images"
SHOWN = 64  # samples on the page
PNG_BYTES = 1.1  # of a byte of noise, the most that a PNG takes
BEGUN = ".writing"  # the end of the name of a folder that is not whole yet


def run(loaded: ResolvedRecipe[SampleRun], context: DistributedContext) -> int:
    """Draws samples with a checkpoint of a diffusion run; the process's exit status.

    samples.npy holds them, uint8 [samples, 3, H, W]; samples.png is a page of the first, samples.json says
    how they were drawn. Sample i has the same noise on any ranks and in any batch, to the bit. A request to
    stop leaves nothing of them.

    Raises:
        UserError: there is no such run, its latents are of another one, something else lies at the target,
            or the disk has no room.
    """
    options, begun = loaded.recipe, list[Path]()

    def clean() -> None:
        for path in begun:
            shutil.rmtree(path, ignore_errors=True)

    def opened() -> tuple[DrawnRun, Path, dict]:
        drawn = DrawnRun.find(RunFolder(Path(options.from_)), options.checkpoint, options.encoder)
        drawn.check(options.draw)
        record = record_of(drawn, options)
        return drawn, checked_target(drawn, options, record), record

    with ending_on_request(
        context, "nothing was kept; the same command draws them from the beginning", clean
    ):
        drawn, target, record = collectives.run_on_main(opened)
        source = drawn.codec()
        artist = opened_artist(drawn, options, source, context)
        begun.append(collectives.broadcast_object(folder_to_begin(target)))
        try:
            collectives.run_on_main(lambda: prepare(begun[0], target, options, size_of(drawn.recipe, source)))
            collectives.run_on_all(lambda: draw(begun[0], artist, options))
            collectives.run_on_main(lambda: finish(begun[0], target, artist, record))
        finally:
            if context.is_main:
                clean()
    if context.is_main:
        print(f"samples   {target}: {options.samples:,} images in {ARRAY}, the first on {PAGE}")
    return 0


def opened_artist(
    drawn: DrawnRun, options: SampleRun, source: CodecSource | None, context: DistributedContext
) -> Artist:
    """Draws with a checkpoint, in the precision and by the seed of the options."""
    objective = load_weights(build_diffusion(drawn.recipe, drawn.shapes), drawn.checkpoint)
    objective = objective.to(context.device, DTYPES[options.precision])
    artist = artist_of(drawn.recipe, objective, drawn.shapes, source, context.device)
    return replace(artist, options=options.draw, seed=options.seed, bf16=options.precision == "bf16")


def size_of(recipe: Diffuse, source: CodecSource | None) -> int:
    """Side of the images, pixels."""
    data = source.recipe.data if source else recipe.data
    assert data is not None  # either of the two is there
    return data.size


# ---- where they go ---------------------------------------------------------------------------------


def name_of(options: Drawing, process: str, seed: int, images: int) -> str:
    """A name for samples of a checkpoint at so many images: images-000000256000-flow-heun-25-seed-0"""
    words = [folder_name(images), process, options.sampler_of(process), options.steps_of(process)]
    words += [f"eta-{options.eta:g}"] * bool(options.eta)
    words += [f"guidance-{options.guidance:g}"] * (options.guidance != 1)
    return "-".join(map(str, [*words, f"seed-{seed}"]))


def record_of(drawn: DrawnRun, options: SampleRun) -> dict[str, str | int]:
    """What samples.json says: all that the samples are a function of."""
    checkpoint, process = drawn.checkpoint, drawn.recipe.objective.process
    return {
        "run": options.from_,
        "images": checkpoint.images,
        "checkpoint": checkpoint.manifest["digest"],
        "samples": options.samples,
        "seed": options.seed,
        "precision": options.precision,
        "drawn": describe(options.draw, process, options.seed),
    }


def checked_target(drawn: DrawnRun, options: SampleRun, record: dict[str, str | int]) -> Path:
    """The folder of the samples, links resolved; on rank 0.

    Raises:
        UserError: it cannot be made, or something else lies there: anything that this drawing does not write.
    """
    name = name_of(options.draw, drawn.recipe.objective.process, options.seed, drawn.checkpoint.images)
    words = [name, f"samples-{options.samples}"] + [options.precision] * (options.precision != "float32")
    default = drawn.folder.path / "samples" / "-".join(words)
    target = Path(os.path.realpath(options.to or default))
    at = f"to={options.to}" if options.to else str(target)
    if os.path.lexists(target) and not target.is_dir():
        raise UserError(f"{at}: something else lies there (no folder); give another folder with to=")
    if why := obstacle(target) or obstacle(target.parent):
        raise UserError(f"{at}: no folder can be written there: {why}; give another folder with to=")
    check_content(target, record, at)
    if os.path.ismount(target):
        raise UserError(
            f"{at}: a disk is mounted there, which no folder can replace; give a new folder in it"
        )
    return target


def check_content(target: Path, record: dict[str, str | int], at: str) -> None:
    """Raises UserError, which begins with `at`: something else lies at the target."""
    if target.exists() and (why := other_content(target, record)):
        raise UserError(f"{at}: something else lies there ({why}); give another folder with to=")


def other_content(target: Path, record: dict[str, str | int]) -> str | None:
    """What a folder has that a drawing of this record does not write; None where it has nothing else."""
    names = {path.name for path in target.iterdir()}
    if others := sorted(names - {ARRAY, PAGE, RECORD, FILES}):
        return others[0]
    width = len(str(int(record["samples"]) - 1))
    for path in sorted((target / FILES).iterdir()) if FILES in names else ():
        if path.suffix != ".png" or not path.stem.isdecimal() or len(path.stem) != width:
            return f"{FILES}/{path.name}"
    if not names:
        return None
    try:
        before = json.loads((target / RECORD).read_text())
        other = [name for name in record if name != "run" and before.get(name) != record[name]]
    except FileNotFoundError:
        return f"no {RECORD}"
    except (ValueError, AttributeError):
        return f"{RECORD} is damaged"
    if not other:
        return None
    return f"samples with {other[0]} {json.dumps(before.get(other[0]))}, not {json.dumps(record[other[0]])}"


def folder_to_begin(target: Path) -> Path:
    """The folder beside the target that becomes it: its name says which process writes it."""
    return target.with_name(f"{target.name}.{platform.node()}.{os.getpid()}{BEGUN}")


def sweep(target: Path) -> None:
    """Removes what killed processes of this machine have begun for the same target."""
    beginning = f"{target.name}.{platform.node()}."
    for path in target.parent.glob(f"*{BEGUN}"):
        process = path.name.removeprefix(beginning).removesuffix(BEGUN)
        if path.name.startswith(beginning) and process.isdecimal() and not psutil.pid_exists(int(process)):
            shutil.rmtree(path, ignore_errors=True)


# ---- drawing ---------------------------------------------------------------------------------------


def prepare(begun: Path, target: Path, options: SampleRun, side: int) -> None:
    """Makes the folder, and the whole array in it; on rank 0.

    Raises:
        UserError: the disk has no room, or refuses to write.
    """
    sweep(target)
    size = options.samples * 3 * side * side
    there = next(folder for folder in begun.parents if folder.exists())
    needed, left = int(size * (1 + PNG_BYTES * options.files)), shutil.disk_usage(there).free
    if needed > left:
        raise UserError(
            f"samples={options.samples}: they take {readable(needed)}, and {there} has "
            f"{readable(left)} left; draw fewer, or give another folder with to="
        )
    try:
        begun.mkdir(parents=True)
        np.lib.format.open_memmap(begun / ARRAY, "w+", np.uint8, (options.samples, 3, side, side)).flush()
        with open(
            begun / ARRAY, "r+b"
        ) as array:  # a mapped file has no room yet: a full disk would be a signal
            os.posix_fallocate(array.fileno(), 0, os.fstat(array.fileno()).st_size)
        if options.files:
            (begun / FILES).mkdir()
    except OSError as error:
        raise cannot_write(target, error, "to=") from None


def draw(begun: Path, artist: Artist, options: SampleRun) -> None:
    """Draws this rank's batches and writes them. Raises UserError: the disk refuses it."""
    rank, world = collectives.rank(), collectives.world_size()
    try:
        array = np.lib.format.open_memmap(begun / ARRAY, "r+")
        for ids in list(artist.batches(np.arange(options.samples)))[rank::world]:
            array[ids] = artist.images(ids).numpy()
            for number in ids if options.files else ():
                path = begun / FILES / f"{number:0{len(str(options.samples - 1))}}.png"
                Image.fromarray(array[number].transpose(1, 2, 0)).save(path)
            if rank == 0:
                print(f"  {int(ids[-1]) + 1:,} of {options.samples:,}", flush=True)
        array.flush()
    except OSError as error:
        raise cannot_write(begun, error, "to=") from None


def finish(begun: Path, target: Path, artist: Artist, record: dict[str, str | int]) -> None:
    """Draws the page, says how the samples were drawn, and puts the folder into its place; on rank 0.

    Where the same samples lie there, each file takes the place of its like: nothing is removed.

    Raises:
        UserError: the disk refuses it, or something else lies there by now.
    """
    try:
        array = np.load(begun / ARRAY, mmap_mode="r", allow_pickle=False)
        figures.grid(begun / PAGE, list(array[:SHOWN]), describe_drawing(artist))
        replace_text(begun / RECORD, json.dumps(record, indent=1) + "\n")
        check_content(target, record, str(target))  # somebody may have put something there meanwhile
        if not target.exists() or not any(target.iterdir()):
            os.rename(begun, target)  # also onto an empty folder
            return
        for path in sorted(path for path in begun.rglob("*") if path.is_file()):
            place = target / path.relative_to(begun)
            place.parent.mkdir(exist_ok=True)
            os.replace(path, place)
    except OSError as error:
        raise cannot_write(target, error, "to=") from None
