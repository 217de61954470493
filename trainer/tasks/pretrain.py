"""Pretraining: the loop, and everything it does once in a while.

A run's progress is the number of images seen. Whatever happens at a step (learning rate, samples,
augmentations, what is logged, measured and saved) is a function of the recipe and that number, so the
same command continues a run that was killed, as if nothing had happened.
"""

import time
from contextlib import contextmanager, suppress

import torch

from data_pipelines.common.errors import SharedError, UserError
from data_pipelines.common.retry import Interrupted
from trainer.distributed import collectives
from trainer.distributed.launch import DistributedContext
from trainer.distributed.signals import Stopped
from trainer.distributed.watchdog import Watchdog
from trainer.evaluation import online
from trainer.evaluation.context import EvaluationContext
from trainer.recipe.loading import ResolvedRecipe
from trainer.runs.folder import RunFolder
from trainer.runs.run import Run
from trainer.tasks import evaluate, report
from trainer.tasks.preflight import check, check_finished, notes, open_data
from trainer.training.build import build_trainer
from trainer.training.schedules import interval_passed, learning_rate, whole_batches
from trainer.training.trainer import Trainer


def run(loaded: ResolvedRecipe, context: DistributedContext) -> int:
    """Pretrains, evaluates and exports; the process's exit status (1: stopped on request, run it again)."""
    recipe = loaded.recipe
    folder = RunFolder.of(loaded)
    total = whole_batches(recipe.images, recipe.batch)
    if collectives.broadcast_object(folder.is_done(total)):
        collectives.run_on_main(lambda: folder.check(loaded))
        collectives.run_on_main(lambda: check_finished(folder, recipe.data, loaded.commands))
        if context.is_main:
            print(f"{folder.path} is finished; run=NAME starts another")
            print(report.summary(folder, recipe))
        return 0
    dataset = open_data(recipe.data, loaded.commands)
    collectives.run_on_main(lambda: check(recipe, context, dataset))
    run = Run(loaded, context, dataset.fingerprint, context.description())
    limit = recipe.step_timeout and recipe.step_timeout + recipe.data.retry_seconds
    watchdog, trainer = Watchdog(limit, run.on_hang), None
    try:
        trainer = build_trainer(
            *(recipe, context, dataset, run.load(), run.images, run.warn),
            # Of several ranks none may leave a step that the others are in.
            stopping=lambda: context.world_size == 1 and run.stop_request.received is not None,
        )
        trainer.on_stage = watchdog.stage_done
        run.begin(run_tags(loaded, trainer))
        for line in notes(recipe, trainer.data.samples, context.world_size, context.device, context.engine):
            run.progress.say(line)
        train(trainer, run, watchdog)
        run.stop_request.raise_immediately()
        finish(trainer, run)
        if not context.is_main:  # it waits where no signal is heard, and has nothing to stop
            run.stop_request.ignore()
        collectives.barrier()  # while the watchdog looks
        run.end("FINISHED")
        if context.is_main:
            folder.write_status("done", total)
        with suppress(
            RuntimeError
        ):  # no rank restores its signal handlers, and dies of one, before all is reported;
            collectives.barrier()  # one that dies nevertheless changes nothing: all is done
    except BaseException as error:
        # A rank that is asked to stop in the final evaluation leaves without a vote.
        if isinstance(error, Stopped) or (
            collectives.peer_lost(error) and (folder.path / "stopped").exists()
        ):
            return stopped(run)
        run.fail(
            collectives.peer_lost(error) or (str(error) if isinstance(error, UserError) else repr(error))
        )
        run.end("FAILED")
        raise
    finally:
        watchdog.close()
        if trainer:
            trainer.close()
        run.stop_request.close()
    if context.is_main:
        print(report.summary(folder, recipe))
    return 0


def stopped(run: Run) -> int:
    """Ends a run that was asked to stop, and has saved; the process's exit status."""
    run.stop_request.ignore()
    why = run.stop_request.received or "another rank was told"
    if run.context.is_main:
        run.folder.write_status("stopped", run.images, why)
    elif run.stop_request.received:
        run.folder.write_status_once("stopped", run.images, why)
    run.progress.say(f"told to stop ({why}): {run.last_checkpoint()}")
    run.progress.say("the same command continues it")
    run.end("KILLED")
    return 1


def run_tags(loaded: ResolvedRecipe, trainer: Trainer) -> dict[str, object]:
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


def train(trainer: Trainer, run: Run, watchdog: Watchdog) -> None:
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
                evaluate_online(trainer, run)
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


def log(trainer: Trainer, run: Run, values: dict, clock: "Clock") -> None:
    """Writes the figures of this step, the mean over ranks, to journal and screen."""
    check_finite(trainer, run)
    tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
    means = collectives.all_reduce_mean(torch.stack([value.double() for value in tensors.values()])).tolist()
    figures = dict(zip(tensors, means, strict=True))
    figures |= {name: value for name, value in values.items() if name not in tensors}
    figures |= clock.read()
    figures["lr"] = learning_rate(trainer.recipe, trainer.images - trainer.recipe.batch)
    figures["epoch"] = trainer.images / trainer.data.samples
    run.metrics(figures, trainer.images)
    run.progress.status(trainer.images, figures)


def check_finite(trainer: Trainer, run: Run) -> None:
    """Raises:
    UserError: a loss since the start was not finite; nothing of it was saved.
    """
    if not trainer.all_finite():
        run.drain()  # the checkpoint that is being written is named
        raise SharedError(
            f"the loss or a weight is not finite (seen at {trainer.images:,} images) and was not saved; "
            f"{run.last_checkpoint()}. Start anew with a lower optimizer.lr or optimizer.clip=1, and run=NAME"
        )


def evaluate_online(trainer: Trainer, run: Run) -> None:
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
            stopping=data.reader.stopping,
        ) as context:
            figures = online.evaluate_online(context)
    except Interrupted:
        run.drain()
        raise Stopped from None
    run.metrics(figures, trainer.images)
    line = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
    run.progress.say(f"{trainer.images:>12,} images  {line}")


def save(trainer: Trainer, run: Run) -> None:
    """A checkpoint, if all losses were finite."""
    check_finite(trainer, run)
    run.save(trainer.state(), trainer.images)


class Clock:
    """Images a second and the share of time spent waiting for data, between two readings."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self._mark()

    def _mark(self) -> None:
        self._began, self._images = time.perf_counter(), self.trainer.images
        self._waited, self._left_out = self.trainer.loader.waited, 0.0

    def read(self) -> dict[str, float]:
        """The figures since the last reading."""
        seconds = time.perf_counter() - self._began - self._left_out
        images, waited = self.trainer.images - self._images, self.trainer.loader.waited - self._waited
        self._mark()
        return {"images_per_second": images / seconds, "data_wait": min(1.0, waited / seconds)}

    @contextmanager
    def aside(self):
        """Time that does not count: evaluation and saving."""
        began = time.perf_counter()
        yield
        self._left_out += time.perf_counter() - began


# ---- the end -------------------------------------------------------------------------------------


def finish(trainer: Trainer, run: Run) -> None:
    """Exports the encoder, evaluates it and draws the pictures."""
    recipe, folder, objective = trainer.recipe, run.folder, trainer.unsharded()
    if trainer.context.is_main:
        report.draw_views(trainer, folder)
        report.export_encoder(trainer, objective, folder)
        run.artifact(folder.encoder, trainer.images)
    dataset, results = trainer.data.dataset, {}
    if recipe.evaluate.at_end:
        run.progress.say("evaluating ...")
    if recipe.evaluate.at_end or not dataset.classes:
        results = evaluate.evaluate_objective(
            recipe, recipe.evaluate, objective, dataset, trainer.context, folder, run.progress.say
        )
    if trainer.context.is_main:
        if results:
            folder.merge_results(results)
            run.metrics({f"results/{name}": value for name, value in results.items()}, trainer.images)
            report.draw_accuracies(folder)
            run.artifact(folder.path / "results.json", trainer.images)
        report.draw_curves(folder)
        for path in sorted((folder.path / "figures").glob("*.png")):
            run.artifact(path, trainer.images)
