"""What a job reads and writes, before it queues: its log, the run, the data set, MLflow."""

import os
import urllib.error
import urllib.request
from pathlib import Path

from data_pipelines.common.errors import UserError
from data_pipelines.common.locks import is_locked_elsewhere
from trainer.recipe.recipes import AnyTask, AnyTraining
from trainer.report.status import read_status
from trainer.runs.folder import RunFolder
from trainer.tasks.data_making import folder_to_make
from trainer.tasks.plan_parts import look_at
from trainer.tasks.resources import obstacle
from trainer.tasks.saved_run import diffusion_recipe, encoder_recipe
from trainer.tasks.submission.job import ALLOWED
from trainer.tasks.submission.look import Look
from trainer.tracking.address import uri_for

ANSWER = 10  # seconds for MLflow's answer
USER = "MLFLOW_TRACKING_USERNAME"
LATER = "the run would train without it, and what it logs be delivered later; tracking.uri=none leaves it out"


def check_log(look: Look) -> str:
    """Refuses a folder of the log that is not there: Slurm fails without a word then."""
    options = look.job.options
    for name in ("output", "error"):
        if not (pattern := options.get(name)):
            continue
        parts = Path(pattern).parent.parts
        known = next((i for i, part in enumerate(parts) if "%" in part), len(parts))
        folder = look.job.works_in.joinpath(*parts[:known])
        if why := "there is no such folder" if not folder.is_dir() else obstacle(folder):
            raise UserError(f"--{name}={pattern}: {folder}: {why}, and Slurm fails without a word; make it")
    return str(look.job.works_in / options.get("output", "slurm-%j.out"))


def check_run(look: Look) -> str:
    """Refuses a run that another process writes, or of another recipe; a run to read that is not there."""
    loaded = look.loaded
    recipe, folder = loaded.recipe, RunFolder.of(loaded)
    if not isinstance(recipe, AnyTraining):
        return _run_to_read(look, recipe, folder)
    if why := obstacle(folder.path):
        raise UserError(f"{folder.path} cannot be written: {why}; mend it, or give another outputs= or run=")
    folder.check(loaded)
    if is_locked_elsewhere(folder.journal):
        job = read_status(folder.path).job
        raise UserError(
            f"{folder.path}: another process is writing this run{f', job {job}' * bool(job)}; let it end, or "
            "start another with run=NAME"
        )
    if folder.is_done(recipe.images):
        return f"{folder.path}: finished already, nothing is left to train"
    if folder.is_begun():
        return f"{folder.path}: goes on from {read_status(folder.path).saved or 0:,} images"
    return f"{folder.path}: new"


def _run_to_read(look: Look, recipe: AnyTask, folder: RunFolder) -> str:
    """A run that is evaluated, or drawn of."""
    if "dependency" in look.job.options and not (folder.path / "recipe.yaml").exists():
        return f"{folder.path}: not there yet; the job waits for another"
    if recipe.task == "evaluate":
        encoder_recipe(folder)
    else:
        diffusion_recipe(folder)
    return f"{folder.path}: {read_status(folder.path).state}"


def check_data(look: Look) -> str | None:
    """Refuses a data set that the run cannot make and that is not there, or lacks what the recipe wants."""
    recipe, what = look.loaded.recipe, look.planned
    if what is None or not isinstance(recipe, AnyTraining):
        return None
    if recipe.data is not None:
        dataset, missing = look_at(recipe.data, ALLOWED in look.job.words)
        if dataset is None:
            if folder_to_make(recipe.data) is None:
                raise UserError(missing)
            return f"{missing}; where nodes have no network, make it first"
    return what.samples[0].partition(" ")[2].strip()


def check_tracking(look: Look) -> str | None:
    """Refuses an address of MLflow that does not answer; other tasks than training have their run's."""
    recipe = look.loaded.recipe
    if not isinstance(recipe, AnyTraining):
        return None
    address = uri_for(recipe.tracking.uri, Path(recipe.outputs))
    if address is None:
        return "none"
    if not address.startswith("http"):
        return address
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=ANSWER):
            return f"{address} answers"
    except urllib.error.HTTPError as error:
        if error.code == 401 and USER in os.environ:
            return f"{address} answers, and wants the password of {USER}"
        wanted = f"export {USER} and MLFLOW_TRACKING_PASSWORD" if error.code == 401 else "is it an MLflow?"
        raise UserError(
            f"tracking.uri={address} answers with status {error.code}: {wanted}; {LATER}"
        ) from None
    except OSError as error:
        why = error.reason if isinstance(error, urllib.error.URLError) else error
        raise UserError(f"tracking.uri={address} does not answer from here: {why}; {LATER}") from None
