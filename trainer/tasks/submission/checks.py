"""The checks of `hybrid-infomax check`: each looks at one thing that would end a job, or waste its time.

A check returns what it has seen, in a line, or None where there is nothing to see. It raises UserError for
what speaks against the job.
"""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import which

from data_pipelines.common.errors import UserError
from trainer.distributed.engine_kind import EngineKind
from trainer.recipe import loading
from trainer.recipe.recipes import AnyTraining
from trainer.tasks import cluster_plan
from trainer.tasks.activations import saved_bytes
from trainer.tasks.cluster_plan import counted, gigabytes
from trainer.tasks.resources import sizes_of
from trainer.tasks.submission.folders import check_data, check_log, check_run, check_tracking
from trainer.tasks.submission.job import Job, seconds
from trainer.tasks.submission.look import PROGRAMS, SITE, Look, ended, last_line
from trainer.training.groups import check_batch_division
from trainer.training.optimizers import check_engine

EARLY = 60  # seconds that Slurm may send a signal before its time
Check = Callable[[Look], str | None]


def check_shape(look: Look) -> str:
    """Refuses nodes, tasks and arrays that the script is not for, as slurm/common.sh does."""
    job = look.job
    options = job.options
    if not job.over_nodes and job.nodes > 1:
        raise UserError(
            f"--nodes={job.nodes}: {job.script} is for one node; slurm/hybrid_imagenet.sh runs any "
            "recipe on several"
        )
    tasks = {"ntasks-per-node": "1", "ntasks": str(job.nodes)}
    for name, wanted in tasks.items():
        if options.get(name, wanted) != wanted:
            raise UserError(
                f"--{name}={options[name]}: expected {wanted}; a launcher starts the processes, as many as "
                "--gpus-per-node or PROCS_PER_NODE says"
            )
    if "array" in options:
        raise UserError(
            f"--array={options['array']}: an array would train one run several times: slurm/sweep.sh "
            "trains one for each element"
        )
    if job.over_nodes and job.ranks < 2:
        raise UserError("one process in all: ask for more --nodes or --gpus, or set PROCS_PER_NODE")
    if job.gpus and job.processes > job.gpus:
        raise UserError(f"PROCS_PER_NODE={job.processes}: more than the {counted(job.gpus, 'GPU')} of a node")
    shape = f"{counted(job.nodes, 'node')} with {counted(job.gpus, 'GPU')}"
    return f"{job.script}: {shape}, {counted(job.ranks, 'rank')}; works in {job.root}"


def check_time(look: Look) -> str:
    """Refuses a limit no longer than the signal's lead, and a signal that training does not expect."""
    job = look.job
    signal, expected = job.options.get("signal", ""), f"B:USR1@{job.lead}"
    if signal != expected:
        raise UserError(
            f"--signal={signal or 'none'} and SIGNAL_SECONDS={job.lead}: expected --signal={expected}, or "
            "the same number in both"
        )
    limit = job.options.get("time", "")
    length = seconds(limit) if limit else None
    if length is None:
        return f"{limit or 'the limit of the partition'}; the signal comes {job.lead} s before"
    if length <= job.lead + EARLY:
        raise UserError(
            f"--time={limit}: the signal to stop comes up to {job.lead + EARLY} s before the limit, so at "
            "once: ask for more time, or set both --signal=B:USR1@SECONDS and SIGNAL_SECONDS"
        )
    return f"{limit}; the signal comes {job.lead} s before"


def check_engine_file(look: Look) -> str | None:
    """Refuses an engine without a file, and DeepSpeed's where that is not installed."""
    job = look.job
    if not job.over_nodes:
        return None
    engines = sorted(path.stem for path in (loading.RECIPES / "launch").glob("*.yaml"))
    if job.engine not in engines:
        raise UserError(
            f"ENGINE={job.engine}: no recipes/launch/{job.engine}.yaml; there are {', '.join(engines)}"
        )
    if job.engine.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            f"ENGINE={job.engine}: DeepSpeed is not installed: pip install deepspeed, or ENGINE=ddp"
        )
    return f"{job.engine}: recipes/launch/{job.engine}.yaml"


def check_site(look: Look) -> str:
    """Refuses a site's file that bash cannot read, or that leaves no environment of the package."""
    named = look.site != SITE
    there = Path(look.site).is_file()
    if named and not there:
        raise UserError(f"SITE={look.site}: no such file; slurm/site.example.sh shows what it may say")
    if there and (done := look.shell("bash", "-n", look.site)).returncode:
        raise UserError(f"{look.site}: {done.stderr.partition(chr(10))[0].partition(': ')[2]}")
    if look.shell("bash", "-c", PROGRAMS).returncode:
        raise UserError(
            "no python or no accelerate in PATH: submit in the environment of the package, or activate it in "
            f"{look.site}"
        )
    return f"{look.site}{': none, as on clusters without modules' * (not there)}"


def check_recipe(look: Look) -> str:
    """Refuses a recipe that cannot be read."""
    loaded = look.loaded
    return f"{loaded.name}, {loaded.recipe.task}, run {loaded.recipe.folder(loaded.name)}"


def check_batch(look: Look) -> str | None:
    """Refuses ranks that the batch does not divide over, and an engine that cannot run the optimizer."""
    recipe, job = look.loaded.recipe, look.job
    if not isinstance(recipe, AnyTraining):
        return None
    check_batch_division(recipe, job.ranks)
    if job.ranks > 1:
        check_engine(recipe.optimizer, EngineKind(job.engine))
    return f"{recipe.batch} images a step, {recipe.batch // job.ranks} a rank"


def check_memory(look: Look) -> str | None:
    """Refuses a rank that does not fit the card, where one is named."""
    recipe, job, what = look.loaded.recipe, look.job, look.planned
    if what is None or not isinstance(recipe, AnyTraining):
        return None
    objective = what.build().train()
    sizes = sizes_of(recipe, objective)
    activations = saved_bytes(recipe, objective, what.views, recipe.batch // job.ranks // recipe.accumulate)
    memory = cluster_plan.memory_of(EngineKind(job.engine), sizes, activations, job.ranks)
    line = f"{gigabytes(memory)} a rank under {job.engine}, as counted"
    if 0 < 1e9 * job.card < memory:
        raise UserError(
            f"card={job.card:g}: {line}; more ranks, accumulate=, a smaller batch, or an engine that shards: "
            "hybrid-infomax plan shows all"
        )
    return line + f", of {job.card:g} GB" * bool(job.card)


def check_slurm(look: Look) -> str:
    """Refuses what Slurm refuses."""
    if not which("sbatch"):
        return "not asked: no sbatch here"
    command = look.job.command()
    done = ended([command[0], "--test-only", *command[1:]], dict(os.environ), str(look.job.submitted_in))
    if done.returncode:
        raise UserError(f"sbatch --test-only: {last_line(done)}")
    return last_line(done).removeprefix("sbatch: ")


# Each check, and the checks without which it has nothing to look at.
CHECKS: dict[str, tuple[Check, set[str]]] = {
    "script": (check_shape, set()),
    "time": (check_time, set()),
    "engine": (check_engine_file, set()),
    "log": (check_log, set()),
    "site": (check_site, set()),
    "recipe": (check_recipe, {"site"}),
    "batch": (check_batch, {"script", "engine", "recipe"}),
    "run": (check_run, {"recipe"}),
    "data": (check_data, {"recipe"}),
    "memory": (check_memory, {"batch", "data"}),
    "tracking": (check_tracking, {"recipe"}),
    "slurm": (check_slurm, set()),
}


def run(job: Job) -> int:
    """Prints a line a check, and in the end the command; the exit status. It works in the checkout."""
    look, left_out, before = Look(job), set[str](), Path.cwd()
    os.chdir(job.root)
    try:
        for name, (check, needs) in CHECKS.items():
            if needs & left_out:
                left_out.add(name)
                continue
            try:
                line = check(look)
            except UserError as error:
                left_out.add(name)
                print(f"error: {name}: {error}", file=sys.stderr, flush=True)
            else:
                if line is not None:
                    print(f"{name:<10} {line}", flush=True)
    finally:
        os.chdir(before)
    if left_out:
        return 2
    print(f"sound      {job}")
    return 0
