"""The task `evaluate`: the evaluation of a checkpoint, and the delivery of its figures."""

import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace

from data_pipelines.dataset import Dataset
from data_pipelines.dataset_loading import load_dataset
from trainer.checkpoints.load import Checkpoint
from trainer.distributed import collectives, launch
from trainer.distributed.launch import DistributedContext
from trainer.distributed.signals import Stopped, requests_stop
from trainer.evaluation.context import EvaluationContext
from trainer.evaluation.features import FOLDER
from trainer.evaluation.measure import Measured, measure
from trainer.objectives.objective import EncoderObjective
from trainer.recipe import loading
from trainer.recipe.evaluation import Evaluate
from trainer.recipe.schema import EvaluateRun, Pretrain, Tracking
from trainer.runs.folder import RunFolder
from trainer.tasks import report
from trainer.tasks.checks import check_labels
from trainer.tasks.data_making import make_missing
from trainer.tasks.saved_run import choose, encoder_recipe, is_newest, load_weights, with_values_of_run
from trainer.tracking.address import uri_for
from trainer.tracking.follower import Follower
from trainer.tracking.journal import Journal
from trainer.training.build import build_objective
from trainer.training.data import image_options

COPY = "make it writable, or give a copy of the run with from="


def run(loaded: loading.ResolvedRecipe[EvaluateRun], context: DistributedContext) -> int:
    """Evaluates a checkpoint of the run in `from`, the newest or that of `images`.

    Figures of the newest go to the run's results.json, those of an earlier one to a folder of their own in
    evaluations/. The journal and MLflow receive those that were not measured at these images before. On
    SIGTERM or SIGHUP the cache of features is removed and the process ends with status 143.

    Returns:
        The process's exit status: 1 where a measurement failed, and all others were delivered; else 0.
    """
    options, folder, journals = loaded.recipe, RunFolder.of(loaded), []

    def stop(*_: object) -> None:  # raises nothing: in a finalizer of DALI's an exception would be lost
        if context.is_main:
            shutil.rmtree(target.path / FOLDER, ignore_errors=True)
        launch.leave(128 + signal.SIGTERM)

    def opened() -> tuple[Checkpoint, Dataset, RunFolder]:
        journals.append(
            Journal(folder.journal, advice=COPY)
        )  # refused while the run is trained and checkpoints go
        checkpoint = choose(folder, options.images, "images")
        dataset = load_dataset(recipe.data.root, recipe.data.source, recipe.data.access(loaded.commands))
        warnings = check_labels(recipe, options.evaluate, dataset, "so this run cannot be evaluated")
        print("".join(f"warning: {line}\n" for line in warnings), end="")
        earlier = RunFolder(folder.path / "evaluations" / checkpoint.path.name)
        target = folder if is_newest(folder, checkpoint) else earlier
        target.results()  # damaged ones are refused before all is measured
        return checkpoint, dataset, target

    requests = [number for number in (signal.SIGTERM, signal.SIGHUP) if requests_stop(number)]
    before = {number: signal.getsignal(number) for number in requests}
    try:
        recipe = collectives.run_on_main(lambda: encoder_recipe(folder))
        make_missing(recipe.data)
        checkpoint, dataset, target = collectives.run_on_main(opened)
        objective = load_weights(build_objective(recipe), checkpoint)
        say = print if context.is_main else lambda line: None
        say(f"evaluating {checkpoint.path}")
        for number in requests:
            signal.signal(number, stop)
        objective = objective.to(context.device)
        results = evaluate_objective(recipe, options.evaluate, objective, dataset, context, target, say)
        if context.is_main:
            target.merge_results(results.figures, results.left_out)
            report.draw_accuracies(target)
            deliver(folder, journals[0], results.figures, checkpoint.images, tracked(loaded, recipe))
            print(report.summary(target, recipe))
            if results.failed:
                print("error: some figures could not be measured: see `left out` above", file=sys.stderr)
        return int(results.failed)
    except Stopped as why:
        if context.is_main:
            print(f"told to stop ({why}): the data set is not made yet; the same command goes on with it")
        return 128 + (signal.SIGINT if str(why) == "SIGINT" else signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for journal in journals:
            journal.close()


def evaluate_objective(
    recipe: Pretrain,
    options: Evaluate,
    objective: EncoderObjective,
    dataset: Dataset,
    context: DistributedContext,
    folder: RunFolder,
    say: Callable[[str], None],
) -> Measured:
    """The final evaluation of an objective; collective, as `measure`. Pictures go to `folder`."""
    images = image_options(recipe, context.device)
    # Without labels there are no accuracies that decoding "fast" might change: images are those of training.
    with EvaluationContext(
        recipe=recipe,
        options=options,
        objective=objective,
        dataset=dataset,
        distributed=context,
        images=replace(images, decode="exact") if dataset.classes else images,
        folder=folder.path,
        say=say,
        untrained=lambda: build_objective(recipe),
    ) as evaluation:
        return measure(evaluation)


def tracked(loaded: loading.ResolvedRecipe[EvaluateRun], recipe: Pretrain) -> Tracking:
    """Where the run is tracked: the run's `tracking`, with the keys that this evaluation's recipe sets."""
    return with_values_of_run(loaded, "tracking", recipe.tracking)


def deliver(folder: RunFolder, journal: Journal, results: dict, images: int, tracking: Tracking) -> None:
    """Writes figures to the run's journal and its MLflow run; of each, the first at these images stays."""
    figures = {f"results/{name}": value for name, value in results.items()}
    if changed := journal.differing(figures, images):
        print(
            f"{len(changed)} of {len(figures)} figures were measured at {images:,} images before, with other "
            "values: results.json has the new ones, the journal and MLflow keep the first"
        )
    journal.metrics(figures, images)
    if uri := uri_for(tracking.uri, folder.path.parent):
        Follower(folder.path, uri, tracking.experiment, folder.path.name, report=print).close()
