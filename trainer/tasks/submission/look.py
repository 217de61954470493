"""A job as its checks look at it: what several of them need is read once."""

import os
import subprocess
from collections.abc import Sequence
from functools import cached_property

import torch

from data_pipelines.common.errors import UserError
from trainer.recipe import loading
from trainer.recipe.loading import ResolvedRecipe
from trainer.recipe.recipes import AnyTask
from trainer.runs import automatic
from trainer.tasks import diffusion_plan, plan
from trainer.tasks.plan_parts import Planned
from trainer.tasks.submission.job import ALLOWED, Job

PATIENCE = 60  # seconds for a program; modules of clusters are slow
SITE = "slurm/site.sh"
# As in a job: modules may print, and what they say is not ours.
WORDS = r"""source slurm/inside.sh >&2 && printf '%s\0' ${SITE_WORDS[@]+"${SITE_WORDS[@]}"}"""
PROGRAMS = "source slurm/inside.sh >&2 && inside bash -c 'command -v python && command -v accelerate' >&2"


class Look:
    """A job, in whose checkout this process works meanwhile."""

    def __init__(self, job: Job):
        self.job = job

    @property
    def site(self) -> str:
        """The file of what is particular to the cluster."""
        return self.job.variables.get("SITE") or SITE

    def shell(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Runs a program in the environment of the job. Raises UserError: it does not end."""
        return ended(words, dict(self.job.variables))

    @cached_property
    def loaded(self) -> ResolvedRecipe[AnyTask]:
        """The recipe, as the job will read it. Raises UserError."""
        done = self.shell("bash", "-c", WORDS)
        if done.returncode:
            raise UserError(f"{self.site}: {last_line(done)}")
        words = [word for word in self.job.words if word != ALLOWED]
        if not any(word.startswith("recipe=") for word in words):
            words = [f"recipe={self.job.recipe}", *words]
        site_words = [word for word in done.stdout.split("\0") if word]
        loaded = loading.load([*site_words, *words])
        if not loaded.recipe.trains:
            return loaded
        return automatic.resolved(loaded, torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    @cached_property
    def planned(self) -> Planned | None:
        """What a recipe that trains is trained on; None for one of another task. Raises UserError."""
        recipe, commands = self.loaded.recipe, ALLOWED in self.job.words
        if not recipe.trains:
            return None
        if recipe.task == "diffuse":
            return diffusion_plan.planned(recipe, commands)
        return plan.planned(recipe, commands)


def ended(
    words: Sequence[str], variables: dict[str, str], directory: str | None = None
) -> "subprocess.CompletedProcess[str]":
    """Runs a program to its end. Raises UserError: it takes too long, or cannot be started."""
    # Under --export=NONE the login profile sets it, which is not read here.
    variables = {"PATH": os.environ.get("PATH", os.defpath)} | variables
    try:
        return subprocess.run(
            words, env=variables, cwd=directory, capture_output=True, text=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"{words[0]} has not ended within {PATIENCE} s: {' '.join(words)}") from None
    except OSError as error:
        raise UserError(f"{words[0]} cannot be started: {error.strerror}") from None


def last_line(done: "subprocess.CompletedProcess[str]") -> str:
    """The last thing that a program has said, without `error: `."""
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else f"it ends with status {done.returncode}"
