"""Pretraining of an encoder on images: what this task does in its own way, on top of `training_run`."""

from collections.abc import Iterator, Sequence

from data_pipelines.common.retry import Interrupted
from trainer.distributed import collectives
from trainer.distributed.launch import DistributedContext
from trainer.distributed.signals import Stopped
from trainer.evaluation import online
from trainer.evaluation.context import EvaluationContext
from trainer.evaluation.measure import Measured
from trainer.evaluation.requirements import left_out_online
from trainer.recipe.automatic import Split
from trainer.recipe.loading import ResolvedRecipe
from trainer.recipe.schema import Pretrain
from trainer.runs import machine
from trainer.runs.folder import RunFolder
from trainer.runs.run import Run
from trainer.tasks import commands, evaluate, report
from trainer.tasks.checks import check_training
from trainer.tasks.data_making import open_data
from trainer.tasks.preflight import check, check_finished, notes
from trainer.tasks.training_run import TrainingTask, run_training
from trainer.training.build import ImageTrainer, build_trainer


def run(loaded: ResolvedRecipe[Pretrain], context: DistributedContext) -> int:
    """Pretrains, evaluates and exports; the process's exit status (1: stopped on request, run it again)."""
    return run_training(Pretraining(loaded, context))


class Pretraining(TrainingTask[Pretrain]):
    """An objective on the images of a data set."""

    warnings: Sequence[str] = ()  # of the checks before the start, on rank 0

    def open(self) -> str:
        collectives.run_on_main(self._check_before_data)  # which may be hours of fetching
        self.dataset = open_data(self.recipe.data, self.loaded.commands)
        return self.dataset.fingerprint

    @property
    def training_split(self) -> Split:
        return machine.training_split(self.dataset, self.recipe.data)

    def _check_before_data(self) -> None:
        RunFolder.of(self.loaded).check(self.loaded)
        check_training(self.recipe, self.context)

    def check(self) -> None:
        folder = self.recipe.folder(self.loaded.name)
        self.warnings = check(self.recipe, self.context, self.dataset, folder)

    def check_finished(self, folder: RunFolder) -> None:
        check_finished(folder, self.recipe.data, self.loaded.commands)

    def offers(self, folder: RunFolder) -> list[str]:
        if not (folder.encoder.exists() and commands.has_labels(self.recipe.data)):
            return []
        return [f"evaluate  {commands.evaluate(folder)}"]

    def build(self, run: Run) -> ImageTrainer:
        return build_trainer(
            *(self.recipe, self.context, self.dataset, run.load(), run.images, run.warn),
            # Of several ranks none may leave a step that the others are in.
            stopping=lambda: self.context.world_size == 1 and run.stop_request.received is not None,
        )

    def notes(self, trainer: ImageTrainer) -> Iterator[str]:
        context = self.context
        yield from (f"warning: {line}" for line in self.warnings)
        yield from notes(
            self.recipe, trainer.data.samples, context.world_size, context.device, context.engine
        )

    def evaluate_online(self, trainer: ImageTrainer, run: Run) -> None:
        evaluate_online(trainer, run)

    def finish(self, trainer: ImageTrainer, run: Run) -> None:
        finish(trainer, run)


def evaluate_online(trainer: ImageTrainer, run: Run) -> None:
    """The online kNN, and the information on held-out images.

    Raises:
        Stopped: a stop was requested while a shard cannot be read. Nothing is saved: the same command goes
            on from the checkpoint before, and measures all of this again.
    """
    data = trainer.data
    try:
        with EvaluationContext(
            recipe=trainer.recipe,
            options=trainer.recipe.evaluate,
            objective=trainer.unsharded(),
            dataset=data.dataset,
            distributed=trainer.context,
            images=data.options,
            folder=run.folder.path,
            say=run.progress.say,
            stopping=data.reader.stopping,
        ) as context:
            figures = online.evaluate_online(context)
    except Interrupted:
        run.drain()
        raise Stopped from None
    run.metrics(figures, trainer.images)
    line = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
    run.progress.say(f"{trainer.images:>12,} images  {line}")


def finish(trainer: ImageTrainer, run: Run) -> None:
    """Exports the encoder, evaluates it and draws the pictures."""
    recipe, folder, objective = trainer.recipe, run.folder, trainer.unsharded()
    if trainer.context.is_main:
        report.draw_views(trainer, folder)
        report.export_encoder(trainer, objective, folder)
        run.artifact(folder.encoder, trainer.images)
    dataset, results = trainer.data.dataset, Measured({}, {}, failed=False)
    if recipe.evaluate.at_end:
        run.progress.say("evaluating ...")
    if recipe.evaluate.at_end or not dataset.classes:
        results = evaluate.evaluate_objective(
            recipe, recipe.evaluate, objective, dataset, trainer.context, folder, run.progress.say
        )
    if trainer.context.is_main:
        left_out = results.left_out | left_out_online(recipe, dataset)
        if results.figures or left_out:
            folder.merge_results(results.figures, left_out)
            figures = {f"results/{name}": value for name, value in results.figures.items()}
            run.metrics(figures, trainer.images)
            report.draw_accuracies(folder)
            run.artifact(folder.path / "results.json", trainer.images)
        report.draw_curves(folder)
        for path in sorted((folder.path / "figures").glob("*.png")):
            run.artifact(path, trainer.images)
