"""Training of a denoiser, of a run's latents or of images: what this task does in its own way."""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress

from data_pipelines.common.errors import UserError
from data_pipelines.dataset import Dataset
from trainer.checkpoints.format import Damaged, folder_name, read_manifest
from trainer.checkpoints.load import kept
from trainer.distributed import collectives
from trainer.distributed.launch import DistributedContext
from trainer.generation.scaling import Scaling
from trainer.objectives.drawing import Artist
from trainer.objectives.objective import Objective
from trainer.recipe.automatic import Split
from trainer.recipe.diffusion import Diffuse
from trainer.recipe.loading import ResolvedRecipe
from trainer.runs import machine
from trainer.runs.folder import RunFolder
from trainer.runs.run import Run
from trainer.tasks import commands, diffusion_checks, generation_pages, generation_run, preflight, report
from trainer.tasks.checks import check_training
from trainer.tasks.data_making import open_data
from trainer.tasks.generation_run import Pixels, measurement
from trainer.tasks.latent_makers import may_have_made
from trainer.tasks.latent_source import (
    LatentSource,
    artist_of,
    decoding_recipe,
    open_source,
    source_folder,
    tables_of,
)
from trainer.tasks.training_run import TrainingTask, run_training
from trainer.training.compiling import compile_networks
from trainer.training.data import ImageData, RowData, TrainingData
from trainer.training.diffusion import build_diffusion, fit_scalings, sample_shapes
from trainer.training.trainer import Trainer

DiffusionTrainer = Trainer[Diffuse, TrainingData, Objective]
SHOWN = 64  # samples on a page during training
FIGURES = ("generation/", "probe/", "denoiser_features/")  # how names of figures of a denoiser begin


def run(loaded: ResolvedRecipe[Diffuse], context: DistributedContext) -> int:
    """Trains a denoiser and draws with it; the process's exit status (1: stopped on request)."""
    return run_training(Diffusing(loaded, context))


class Diffusing(TrainingTask[Diffuse]):
    """A denoiser of the latents of a frozen run, or of the images of a data set."""

    warnings: Sequence[str] = ()  # of the checks before the start, on rank 0
    source: LatentSource | None = None
    dataset: Dataset | None = None

    def open(self) -> str:
        collectives.run_on_main(self._check_before_data)
        if self.recipe.data is None:
            before = collectives.run_on_main(lambda: trained_on(RunFolder.of(self.loaded)))
            self.source = open_source(self.recipe, self.loaded.commands, before)
            self.dataset = self.source.dataset
            return self.source.digest
        self.dataset = open_data(self.recipe.data, self.loaded.commands)
        return self.dataset.fingerprint

    @property
    def training_split(self) -> Split | None:
        if self.recipe.data is None:
            return None
        assert self.dataset is not None  # since `open`
        return machine.training_split(self.dataset, self.recipe.data)

    def _check_before_data(self) -> None:
        RunFolder.of(self.loaded).check(self.loaded)
        check_training(self.recipe, self.context)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of what is drawn, by name."""
        return sample_shapes(self.recipe, self.source.shapes if self.source else {})

    def check(self) -> None:
        assert self.dataset is not None  # since `open`
        folder = self.recipe.folder(self.loaded.name)
        data = self.source.recipe.data if self.source else self.recipe.data
        assert data is not None  # either of the two is there
        start = diffusion_checks.Start(
            *(self.recipe, self.context, self.dataset, folder, self.shapes, data.size),
            encodes=self.source.missing_bytes if self.source else 0,
        )
        self.warnings = diffusion_checks.check(start)

    def check_finished(self, folder: RunFolder) -> None:
        if self.recipe.data is not None:
            preflight.check_finished(folder, self.recipe.data, self.loaded.commands)
            return
        source, digest = source_folder(self.recipe), trained_on(folder)
        if digest is None or not (source.path / "recipe.yaml").exists():
            return  # nothing can be compared any more
        if not may_have_made(source, decoding_recipe(source), digest):
            raise UserError(
                f"{folder.path} is finished, and {self.recipe.other_samples[0]}; start another with "
                "run=NAME, or give that run"
            )

    def offers(self, folder: RunFolder) -> list[str]:
        again = [f"measure   {commands.measure(folder)}"] if self.recipe.evaluate.extractor else []
        return [f"draw      {commands.sample(folder)}", *again]

    def build(self, run: Run) -> DiffusionTrainer:
        recipe, device = self.recipe, self.context.device
        scalings: dict[str, Scaling] | None = None
        data: TrainingData
        if self.source is None:
            assert recipe.data is not None  # either of the two is there
            assert self.dataset is not None  # since `open`
            pixels = Pixels(recipe.seed, recipe.precision, recipe.batch, recipe.data)
            # Of several ranks none may leave a step that the others are in.
            alone = self.context.world_size == 1
            data = ImageData(
                *(pixels, self.dataset, device, run.warn),
                stopping=lambda: alone and run.stop_request.received is not None,
            )
        else:
            for line in self.source.unfinished:
                run.progress.say(f"warning: {line}")
            run.progress.say(f"latents of {self.source.checkpoint.path} ...")
            self.source = self.source.kept()
            tables = tables_of(self.source.latents(device), self.shapes)
            if not run.checkpoint:  # which has them
                scalings = collectives.run_on_main(lambda: fit_scalings(recipe, tables))
            data = RowData(f"latents of {self.source.folder.path}", tables, recipe, device)
        objective = build_diffusion(recipe, self.shapes, scalings).to(device)
        compile_networks(recipe, self.context.engine, objective, run.warn)
        return Trainer(recipe, self.context, objective, data, run.load(), run.images)

    def notes(self, trainer: DiffusionTrainer) -> Iterator[str]:
        context = self.context
        yield from (f"warning: {line}" for line in self.warnings)
        yield describe_samples(self.shapes, self.recipe.objective.components)
        yield from preflight.notes(
            self.recipe, trainer.data.samples, context.world_size, context.device, context.engine
        )

    def artist(self, trainer: DiffusionTrainer) -> Artist:
        """Draws with the average as it stands; collective."""
        return artist_of(self.recipe, trainer.unsharded(), self.shapes, self.source, self.context.device)

    def evaluate_online(self, trainer: DiffusionTrainer, run: Run) -> None:
        """A page of samples, the same ones each time."""
        artist = self.artist(trainer)
        if run.context.is_main:
            page = generation_pages.draw_page(
                artist, run.folder.path, f"samples-{trainer.images:012d}.png", SHOWN
            )
            run.artifact(page, trainer.images)

    def finish(self, trainer: DiffusionTrainer, run: Run) -> None:
        """Draws a page of samples, measures them and draws the curves."""
        artist, folder = self.artist(trainer), run.folder
        earlier, figures = collectives.run_on_main(lambda: measured_before(folder)), dict[str, float]()
        if self.recipe.evaluate.at_end:
            run.progress.say("drawing samples ...")
            if run.context.is_main:
                generation_pages.draw_page(artist, folder.path, "samples.png", self.recipe.evaluate.shown)
                generation_pages.draw_steps(artist, folder.path)
            assert self.dataset is not None  # since `open`
            what = measurement(
                *(self.recipe, self.recipe.evaluate, artist, self.source, self.dataset),
                *(folder.path, folder.path.parent, self.context.device, run.progress.say),
            )
            figures = generation_run.measure(what)
        if run.context.is_main:
            if earlier or figures:
                folder.merge_results(figures, outdated=earlier)
            if figures:
                run.metrics({f"results/{name}": value for name, value in figures.items()}, trainer.images)
                run.artifact(folder.path / "results.json", trainer.images)
            report.draw_curves(folder)
            for path in sorted((folder.path / "figures").glob("*.png")):
                run.artifact(path, trainer.images)


def trained_on(folder: RunFolder) -> str | None:
    """Digest of the samples of the run in a folder; None where it has no checkpoint that can be read."""
    for images in reversed(kept(folder.checkpoints)):
        with suppress(Damaged):
            return read_manifest(folder.checkpoints / folder_name(images))["data"]
    return None


def measured_before(folder: RunFolder) -> list[str]:
    """The names of the figures of earlier checkpoints in results.json, which say nothing of the last one."""
    return [name for name in folder.results() if name.startswith(FIGURES)]


def describe_samples(shapes: dict[str, tuple[int, ...]], components: int | None) -> str:
    """What is drawn, in words: "samples: y of 128 numbers, then w of 3 x 16 x 16; D = 896"."""
    words = []
    for name, shape in shapes.items():
        text = " x ".join(map(str, shape)) + " numbers" * (len(shape) == 1)
        if len(shape) == 1 and components:
            text += f" in {components} components"
        words.append(f"{name} of {text}")
    numbers = sum(math.prod(shape) for shape in shapes.values())
    return f"samples: {', then '.join(words)}; D = {numbers:,}"
