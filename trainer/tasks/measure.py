"""The task `measure`: images of a diffusion run measured again, and the delivery of the figures."""

from dataclasses import dataclass, replace

from data_pipelines.common.errors import UserError
from data_pipelines.dataset import Dataset
from trainer.distributed import collectives
from trainer.distributed.launch import DistributedContext
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
from trainer.tasks.diffusion_checks import network
from trainer.tasks.drawn_run import DrawnRun
from trainer.tasks.evaluate import COPY, deliver
from trainer.tasks.interruption import ending_on_request
from trainer.tasks.latent_source import LatentSource, artist_of
from trainer.tasks.resources import obstacle
from trainer.tasks.sample import name_of
from trainer.tasks.saved_run import diffusion_recipe, is_newest, load_weights, with_values_of_run
from trainer.tracking.journal import Journal
from trainer.training.diffusion import build_diffusion


@dataclass(frozen=True)
class Settings:
    """How a run is measured: as its own recipe says, but for the keys that this command's recipe sets."""

    draw: Drawing
    evaluate: Generation
    tracking: Tracking
    seed: int


@dataclass(frozen=True)
class Measured:
    """What is measured: a run and its checkpoint, how, and where the figures go.

    Attributes:
        name: of this drawing.
        target: the run's folder, or one of its evaluations.
        as_trained: whether samples are drawn as the run draws them itself.
    """

    drawn: DrawnRun
    chosen: Settings
    name: str
    target: RunFolder
    as_trained: bool


def run(loaded: ResolvedRecipe[MeasureRun], context: DistributedContext) -> int:
    """Measures images of a checkpoint of the run in `from`; the process's exit status.

    Figures of the last checkpoint of a finished run, drawn as the run draws, go to its results.json; all
    others to a folder of their own in evaluations/. The journal and MLflow receive those that were not
    measured before.

    Raises:
        UserError: there is no such run, its latents or images are other ones, nothing compares images, or
            the figures cannot be written.
    """
    folder, journals = RunFolder.of(loaded), list[Journal]()

    def opened() -> Measured:
        diffusion_recipe(folder)  # a journal makes a folder
        journals.append(Journal(folder.journal, advice=COPY))  # refused while the run is trained
        return find(loaded)

    try:
        with ending_on_request(context, "nothing was measured; the same command measures from the beginning"):
            what = collectives.run_on_main(opened)
            measure(what, journals, loaded.commands, context)
        return 0
    finally:
        for journal in journals:
            journal.close()


def measure(what: Measured, journals: list[Journal], commands: bool, context: DistributedContext) -> None:
    """Draws, measures and delivers; collective. `journals` has one on rank 0, none on others."""
    drawn, chosen, target = what.drawn, what.chosen, what.target
    recipe, folder, images = drawn.recipe, drawn.folder, drawn.checkpoint.images
    source, dataset = open_samples(drawn, commands)
    artist = opened_artist(drawn, chosen, source, context)
    say = print if context.is_main else lambda line: None
    say(f"measuring {drawn.checkpoint.path}: {generation_pages.describe_drawing(artist)}")
    figures = generation_run.measure(
        generation_run.measurement(
            *(recipe, chosen.evaluate, artist, source, dataset),
            *(target.path, folder.path.parent, context.device, say),
        )
    )
    if context.is_main:
        target.merge_results(figures, outdated=outdated(target.results(), figures))
        generation_pages.draw_page(artist, target.path, "samples.png", chosen.evaluate.shown)
        named = (
            figures if what.as_trained else {f"{what.name}/{key}": value for key, value in figures.items()}
        )
        deliver(folder, journals[0], named, images, chosen.tracking)
        print(report.summary(target, recipe))


def find(loaded: ResolvedRecipe[MeasureRun]) -> Measured:
    """The run and how it is measured, looked at before anything is drawn; on rank 0.

    Raises:
        UserError: as `run`.
    """
    options, folder = loaded.recipe, RunFolder.of(loaded)
    drawn = DrawnRun.find(folder, options.checkpoint, options.encoder)
    recipe, checkpoint = drawn.recipe, drawn.checkpoint
    chosen = settings(loaded, recipe)
    drawn.check(chosen.draw)
    if chosen.evaluate.extractor:
        network(chosen.evaluate)  # missing packages and other digests are refused before all is opened
    as_trained = chosen.draw == recipe.draw and chosen.seed == recipe.seed
    name = name_of(chosen.draw, recipe.objective.process, chosen.seed, checkpoint.images)
    target = RunFolder(folder.path / "evaluations" / name)
    if as_trained and is_newest(folder, checkpoint) and folder.is_done(checkpoint.images):
        target = folder
    if why := obstacle(target.path):
        raise UserError(f"{target.path}: its results.json cannot be written there: {why}; {COPY}")
    if why := obstacle(target.path / "figures"):  # pictures cost nobody the figures
        print(f"warning: figures/…: left out, {why}")
    target.results()  # damaged ones are refused before all is measured
    return Measured(drawn, chosen, name, target, as_trained)


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


def open_samples(drawn: DrawnRun, commands: bool) -> tuple[LatentSource | None, Dataset]:
    """What the run was trained on: the run of its latents, if they are, and its images; collective.

    Raises:
        UserError: it is not there, or not what the run was trained on.
        Stopped: a signal came while the data set was made.
    """
    recipe = drawn.recipe
    if recipe.data is None:
        source = drawn.source(commands)
        assert source is not None  # the run draws latents
        return source, source.dataset
    dataset = open_data(recipe.data, commands)
    if dataset.fingerprint != drawn.checkpoint.manifest["data"]:
        raise UserError(f"{recipe.other_samples[0]}; put that one back")
    return None, dataset


def opened_artist(
    drawn: DrawnRun, chosen: Settings, source: LatentSource | None, context: DistributedContext
) -> Artist:
    """Draws with a checkpoint, in the precision of the run."""
    objective = load_weights(build_diffusion(drawn.recipe, drawn.shapes), drawn.checkpoint)
    artist = artist_of(drawn.recipe, objective.to(context.device), drawn.shapes, source, context.device)
    return replace(artist, options=chosen.draw, seed=chosen.seed)


def outdated(before: dict[str, float], figures: dict[str, float]) -> list[str]:
    """The names of earlier figures of rows that are now measured on another number of images."""
    rows = [name.removesuffix("images") for name in figures if name.endswith("/images")]
    changed = tuple(row for row in rows if before.get(f"{row}images") != figures[f"{row}images"])
    return [name for name in before if name.startswith(changed)]
