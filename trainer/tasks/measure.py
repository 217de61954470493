"""The task `measure`: images of a diffusion run measured again, and the delivery of the figures."""

import signal
from dataclasses import dataclass, replace

from data_pipelines.common.errors import UserError
from data_pipelines.dataset import Dataset
from trainer.checkpoints.load import Checkpoint
from trainer.distributed import collectives
from trainer.distributed.launch import DistributedContext
from trainer.distributed.signals import Stopped
from trainer.objectives.drawing import Artist
from trainer.recipe.diffusion import Diffuse, MeasureRun
from trainer.recipe.drawing import Drawing
from trainer.recipe.generation import Generation
from trainer.recipe.loading import ResolvedRecipe
from trainer.recipe.schema import Tracking
from trainer.recipe.yaml12 import DEFAULT
from trainer.runs.folder import RunFolder
from trainer.tasks import generation_pages, generation_run, report
from trainer.tasks.data_making import open_data
from trainer.tasks.diffusion_checks import check_drawing, network
from trainer.tasks.evaluate import deliver
from trainer.tasks.latent_source import LatentSource, artist_of, open_source
from trainer.tasks.sample import name_of
from trainer.tasks.saved_run import choose, diffusion_recipe, is_newest, load_weights, with_values_of_run
from trainer.tracking.journal import Journal
from trainer.training.diffusion import build_diffusion, sample_shapes


@dataclass(frozen=True)
class Settings:
    """How a run is measured: as its own recipe says, but for the keys that this command's recipe sets."""

    draw: Drawing
    evaluate: Generation
    tracking: Tracking
    seed: int


def run(loaded: ResolvedRecipe[MeasureRun], context: DistributedContext) -> int:
    """Measures images of a checkpoint of the run in `from`; the process's exit status.

    Figures of the newest, drawn as the run draws, go to the run's results.json; all others to a folder of
    their own in evaluations/. The journal and MLflow receive those that were not measured before.

    Raises:
        UserError: there is no such run, its latents or images are other ones, or nothing compares images.
    """
    options, folder = loaded.recipe, RunFolder.of(loaded)
    journals: list[Journal] = []

    def opened() -> tuple[Settings, Checkpoint]:
        chosen = settings(loaded, recipe)
        if chosen.evaluate.extractor:
            network(chosen.evaluate)  # missing packages and other digests are refused before all is opened
        journals.append(Journal(folder.journal))  # refused while the run is trained and checkpoints go
        return chosen, choose(folder, options.checkpoint, "checkpoint")

    try:
        recipe = collectives.run_on_main(lambda: diffusion_recipe(folder))
        chosen, checkpoint = collectives.run_on_main(opened)
        source, dataset = open_samples(recipe, checkpoint, loaded.commands)
        artist = opened_artist(recipe, chosen, checkpoint, source, context)
        as_trained = artist.options == recipe.draw and artist.seed == recipe.seed
        name = name_of(artist, checkpoint)
        target = RunFolder(folder.path / "evaluations" / name)
        if collectives.run_on_main(lambda: as_trained and is_newest(folder, checkpoint)):
            target = folder
        collectives.run_on_main(target.results)  # damaged ones are refused before all is measured
        say = print if context.is_main else lambda line: None
        say(f"measuring {checkpoint.path}: {generation_pages.describe_drawing(artist)}")
        what = generation_run.measurement(
            *(recipe, chosen.evaluate, artist, source, dataset),
            *(target.path, folder.path.parent, context.device, say),
        )
        figures = generation_run.measure(what)
        if context.is_main:
            target.merge_results(figures, outdated=outdated(target.results(), figures))
            generation_pages.draw_page(artist, target.path, "samples.png", chosen.evaluate.shown)
            named = figures if as_trained else {f"{name}/{key}": value for key, value in figures.items()}
            deliver(folder, journals[0], named, checkpoint.images, chosen.tracking)
            print(report.summary(target, recipe))
        return 0
    except Stopped as why:
        if context.is_main:
            print(f"told to stop ({why}): the data set is not made yet; the same command goes on with it")
        return 128 + (signal.SIGINT if str(why) == "SIGINT" else signal.SIGTERM)
    finally:
        for journal in journals:
            journal.close()


def settings(loaded: ResolvedRecipe[MeasureRun], recipe: Diffuse) -> Settings:
    """How the run of `recipe` is measured.

    Raises:
        UserError: nothing is there to compare images by, or keys of another kind of run are set.
    """
    draw = with_values_of_run(loaded, "draw", recipe.draw)
    evaluate = with_values_of_run(loaded, "evaluate", recipe.evaluate)
    if loaded.origin["evaluate.extractor"] != DEFAULT and loaded.origin["evaluate.sha256"] == DEFAULT:
        evaluate = evaluate.model_copy(update={"sha256": None})  # the run's is of another file
    of_images = evaluate.inversion or evaluate.denoiser_features
    if of_images and recipe.data is None:
        raise UserError(
            "evaluate.denoiser_features and evaluate.inversion are of a denoiser of images, and this one "
            "draws latents; leave them out"
        )
    if evaluate.extractor is None and not of_images:
        raise UserError(
            "evaluate.extractor=null: nothing compares images; give efficientnet_lite0, or the path of a "
            "TorchScript such as inception-2015-12-05.pt"
        )
    tracking = with_values_of_run(loaded, "tracking", recipe.tracking)
    seed = recipe.seed if loaded.recipe.seed is None else loaded.recipe.seed
    return Settings(draw, evaluate, tracking, seed)


def open_samples(
    recipe: Diffuse, checkpoint: Checkpoint, commands: bool
) -> tuple[LatentSource | None, Dataset]:
    """What the run was trained on: the run of its latents, if they are, and its images; collective.

    Raises:
        UserError: it is not there, or not what the run was trained on.
        Stopped: a signal came while the data set was made.
    """
    if recipe.data is None:
        source = open_source(recipe, commands, checkpoint.manifest["data"])
        return source, source.dataset
    dataset = open_data(recipe.data, commands)
    if dataset.fingerprint != checkpoint.manifest["data"]:
        raise UserError(f"{recipe.other_samples[0]}; put that one back")
    return None, dataset


def opened_artist(
    recipe: Diffuse,
    chosen: Settings,
    checkpoint: Checkpoint,
    source: LatentSource | None,
    context: DistributedContext,
) -> Artist:
    """Draws with a checkpoint, in the precision of the run."""
    shapes = sample_shapes(recipe, source.shapes if source else {})
    check_drawing(chosen.draw, recipe.objective.process, shapes)
    objective = load_weights(build_diffusion(recipe, shapes), checkpoint).to(context.device)
    artist = artist_of(recipe, objective, shapes, source, context.device)
    return replace(artist, options=chosen.draw, seed=chosen.seed)


def outdated(before: dict[str, float], figures: dict[str, float]) -> list[str]:
    """The names of earlier figures of rows that are now measured on another number of images."""
    rows = [name.removesuffix("images") for name in figures if name.endswith("/images")]
    changed = tuple(row for row in rows if before.get(f"{row}images") != figures[f"{row}images"])
    return [name for name in before if name.startswith(changed)]
