"""The life of a run that trains, whatever it trains: start, loop, saves, stops, end.

A run's progress is the number of images seen. Whatever happens at a step (learning rate, samples,
augmentations, what is logged, measured and saved) is a function of the recipe and that number, so the
same command continues a run that was killed, as if nothing had happened.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from typing import Generic, TypeVar

import torch

from data_pipelines.common.errors import SharedError, UserError
from data_pipelines.common.paths import refused_paths
from data_pipelines.common.retry import Interrupted
from trainer.distributed import collectives
from trainer.distributed.launch import DistributedContext
from trainer.distributed.progress import event_of
from trainer.distributed.signals import Stopped, status_of_stopped
from trainer.distributed.watchdog import Watchdog
from trainer.recipe.automatic import Split
from trainer.recipe.loading import ResolvedRecipe
from trainer.recipe.recipes import AnyTraining
from trainer.runs import automatic
from trainer.runs.folder import RunFolder
from trainer.runs.run import Run
from trainer.tasks import commands, data_making, report
from trainer.tasks.clock import Clock
from trainer.tasks.memory import memory_named
from trainer.training.schedules import interval_passed, learning_rate, whole_batches
from trainer.training.trainer import Trainer

Recipe = TypeVar("Recipe", bound=AnyTraining)


class TrainingTask(ABC, Generic[Recipe]):
    """What a task that trains does in its own way. Every method but `check` is called on every rank."""

    def __init__(self, loaded: ResolvedRecipe[Recipe], context: DistributedContext):
        self.loaded, self.recipe, self.context = loaded, loaded.recipe, context

    @abstractmethod
    def open(self) -> str:
        """Opens what the run is trained on; its fingerprint.

        Raises:
            UserError: it is not there, or not whole.
            Stopped: a signal came while it was made; the argument is its name.
        """

    @property
    @abstractmethod
    def training_split(self) -> Split | None:
        """The opened training split; None of latents."""

    def resolve(self) -> None:
        """Resolves each `auto` that needed the data set; collective, after `open`. Raises UserError."""
        self.loaded = automatic.resolved(self.loaded, self.context.device, self.training_split)
        self.recipe = self.loaded.recipe

    @abstractmethod
    def check(self) -> None:
        """Finds every mistake that can be found before anything is written; on rank 0, after `open`.

        Raises:
            UserError: naming the key that does not fit.
        """

    @abstractmethod
    def check_finished(self, folder: RunFolder) -> None:
        """Checks on rank 0 that a finished run was trained on what the recipe names now. Raises UserError."""

    @abstractmethod
    def offers(self, folder: RunFolder) -> list[str]:
        """Commands for what may come next, each behind a word for it."""

    @abstractmethod
    def build(self, run: Run) -> Trainer:
        """The trainer, with the state that the run continues from."""

    @abstractmethod
    def notes(self, trainer: Trainer) -> Iterator[str]:
        """Lines that a person should read when training starts."""

    @abstractmethod
    def evaluate_online(self, trainer: Trainer, run: Run) -> None:
        """Measures and reports what is trained, as it stands. Raises Stopped."""

    @abstractmethod
    def finish(self, trainer: Trainer, run: Run) -> None:
        """After the last step: exports, measures and draws."""


def run_training(task: TrainingTask) -> int:
    """Trains from the start or from the newest checkpoint to the end; the process's exit status.

    0: finished, also by an earlier start. 1: stopped on request, the same command continues. 130: the same,
    by Ctrl-C before training began.
    """
    recipe, context, folder = task.recipe, task.context, RunFolder.of(task.loaded)
    total = whole_batches(recipe.images, recipe.batch)
    if collectives.run_on_main(lambda: folder.is_done(total)):
        collectives.run_on_main(lambda: folder.check(task.loaded))
        collectives.run_on_main(lambda: task.check_finished(folder))
        if context.is_main:
            print(f"{folder.path} is finished; run=NAME starts another")
            print(report.summary(folder, recipe, task.offers(folder)))
        return 0
    try:
        fingerprint = task.open()
    except Stopped as stop:
        return data_making.stopped(folder, context, str(stop))
    task.resolve()
    collectives.run_on_main(task.check)
    run = Run(task.loaded, context, fingerprint, context.description())
    watchdog, trainer = Watchdog(recipe.stage_timeout, run.on_hang, event_of(context.device)), None
    try:
        with refused_paths(), memory_named(recipe.accumulate):
            trainer = task.build(run)
            train_to_the_end(task, trainer, run, watchdog)
    except BaseException as error:
        lost = collectives.peer_lost(error)
        # A rank that is asked to stop in the final evaluation leaves without a vote.
        if isinstance(error, Stopped) or (lost and (folder.path / "stopped").exists()):
            return stopped(run)
        run.fail(lost or (str(error) if isinstance(error, UserError) else repr(error)))
        run.end("FAILED")
        if trainer is None and isinstance(error, UserError):
            run.withdraw()
        raise
    finally:
        watchdog.close()
        if trainer:
            trainer.close()
        run.stop_request.close()
    if context.is_main:
        print(report.summary(folder, recipe, task.offers(folder)))
    return 0


def train_to_the_end(task: TrainingTask, trainer: Trainer, run: Run, watchdog: Watchdog) -> None:
    """The steps that are left, the final evaluation, and the file that says that all is done.

    Raises:
        Stopped: a stop was requested.
    """
    trainer.on_stage = watchdog.stage_done
    run.begin(run_tags(task.loaded, trainer))
    for line in task.notes(trainer):
        run.progress.say(line)
    train(task, trainer, run, watchdog)
    run.stop_request.raise_immediately()
    task.finish(trainer, run)
    if not run.context.is_main:  # it waits where no signal is heard, and has nothing to stop
        run.stop_request.ignore()
    collectives.barrier()  # while the watchdog looks
    run.end("FINISHED")
    if run.context.is_main:
        run.folder.write_status("done", trainer.total)
    # No rank restores its signal handlers, and dies of a signal, before all is reported; the loss of a rank
    # changes nothing any more.
    with suppress(RuntimeError):
        collectives.barrier()


def stopped(run: Run) -> int:
    """Ends a run that was asked to stop, and has saved; the process's exit status."""
    run.stop_request.ignore()
    why = run.stop_request.received or "another rank was told"
    images = run.saved or 0  # where the same command goes on
    if run.context.is_main:
        run.folder.write_status("stopped", images, why)
    elif run.stop_request.received:
        run.folder.write_status_once("stopped", images, why)
    run.progress.say(f"told to stop ({why}): {run.last_checkpoint()}")
    again = commands.continuation()
    run.progress.say(f"the same command continues it{f': {again}' * bool(again)}")
    run.end("KILLED")
    return status_of_stopped()


def run_tags(loaded: ResolvedRecipe[AnyTraining], trainer: Trainer) -> dict[str, object]:
    """Tags of the MLflow run."""
    return {
        "recipe": loaded.name,
        "mlflow.source.name": f"trainer/main.py recipe={loaded.name}",  # the page's column "Source"
        "mlflow.source.type": "LOCAL",
        "dataset": trainer.data.name,
        "train images": trainer.data.samples,
        **trainer.sizes,
        "learning rate": loaded.recipe.optimizer.rate(loaded.recipe.batch),
        "processes at start": trainer.context.world_size,
        "engine at start": trainer.context.engine,
    }


# ---- the loop ------------------------------------------------------------------------------------


def train(task: TrainingTask, trainer: Trainer, run: Run, watchdog: Watchdog) -> None:
    """Steps until the end of the run.

    Raises:
        Stopped: a stop was requested, and all is saved.
    """
    recipe, clock, profiler = trainer.recipe, Clock(trainer), start_profiler(trainer, run)
    while trainer.images < trainer.total:
        before = trainer.images
        try:
            values = trainer.step()
        except Interrupted:  # a stop was requested while a shard cannot be read: nothing of the step was done
            save(trainer, run)
            run.drain()
            raise Stopped from None
        except UserError:  # a shard that stays away: several ranks cannot leave a step together, and save
            if trainer.context.world_size == 1:
                save(trainer, run)
                run.drain()
            raise
        now = trainer.images
        if profiler:
            profiler.step()
        run.step(now)
        if interval_passed(recipe.log.every, before, now) or before == 0 or now == trainer.total:
            log(trainer, run, values, clock)
        watchdog.step_done()
        if interval_passed(recipe.evaluate.every, before, now) or (
            recipe.evaluate.every and now == trainer.total
        ):
            with clock.aside():
                task.evaluate_online(trainer, run)
        stop = run.stop_request.should_stop()
        if interval_passed(recipe.save.every, before, now) or now == trainer.total or stop:
            with clock.aside():
                save(trainer, run)
        if stop or now == trainer.total:
            run.drain()
        if stop:
            raise Stopped


def start_profiler(trainer: Trainer, run: Run) -> "torch.profiler.profile | None":
    """A profiler that records `profile` steps of rank 0 and writes them for chrome://tracing or Perfetto."""
    steps = trainer.recipe.profile
    if not steps or not trainer.context.is_main:
        return None
    profiler = torch.profiler.profile(
        schedule=torch.profiler.schedule(wait=8, warmup=2, active=steps, repeat=1),
        on_trace_ready=lambda p: p.export_chrome_trace(str(run.folder.path / "profile.json")),
    )
    profiler.start()
    return profiler


def log(trainer: Trainer, run: Run, values: dict, clock: Clock) -> None:
    """Writes the figures of this step, the mean over ranks, to journal and screen."""
    check_finite(trainer, run, weights_only=True)
    tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
    means = collectives.all_reduce_mean(torch.stack([value.double() for value in tensors.values()])).tolist()
    figures = dict(zip(tensors, means, strict=True))
    figures |= {name: value for name, value in values.items() if name not in tensors}
    figures |= clock.read()
    figures["lr"] = learning_rate(trainer.recipe, trainer.images - trainer.recipe.batch)
    figures["epoch"] = trainer.images / trainer.data.samples
    run.metrics(figures, trainer.images)
    run.progress.status(trainer.images, figures)


def check_finite(trainer: Trainer, run: Run, weights_only: bool = False) -> None:
    """Raises:
    UserError: a loss since the start was not finite, or what a checkpoint would hold is not; nothing of it
        was saved.
    """
    if not trainer.all_finite(weights_only):
        run.drain()  # the checkpoint that is being written is named
        raise SharedError(
            f"the loss or a weight is not finite (seen at {trainer.images:,} images) and was not saved; "
            f"{run.last_checkpoint()}. Start anew with a lower optimizer.lr or optimizer.clip=1, and run=NAME"
        )


def save(trainer: Trainer, run: Run) -> None:
    """A checkpoint, if all losses were finite, and all of it is."""
    check_finite(trainer, run)
    run.save(trainer.state(), trainer.images)
