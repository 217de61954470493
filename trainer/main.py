"""The entry: reads the recipe and runs its task. `accelerate launch trainer/main.py recipe=NAME`"""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

# The folder of a script comes first on the path, where a module of ours might hide one of Python's.
# `-m trainer.main` has a spec, and the working directory comes first there.
if __name__ == "__main__" and __spec__ is None:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # type: ignore[unreachable]  # a script has no spec

from data_pipelines.common.arguments import HELP_WORDS, MISTAKE, help_page
from data_pipelines.common.errors import SharedError, UserError
from data_pipelines.common.output import outlive_readers
from data_pipelines.common.paths import refused_paths
from trainer.distributed import interfaces, launch, spare_ranks
from trainer.recipe import loading
from trainer.recipe.recipes import AnyTraining
from trainer.tracking import mlflow_store

ALLOWED = "--allow-commands"
QUESTIONS = ("--list", "--print", "--plan", "--folder")
HELP = help_page(
    "Trains, evaluates or draws what a recipe describes. The same command continues a run that was stopped "
    "or killed.",
    [
        "accelerate launch trainer/main.py recipe=NAME [KEY=VALUE ...] [OPTION ...]",
        "accelerate launch --config_file recipes/launch/ENGINE.yaml --num_processes N trainer/main.py ...",
        "accelerate launch -m trainer.main recipe=NAME ...     (outside a checkout)",
    ],
    {
        "recipe=NAME": "one of --list, or the path of a .yaml file",
        "KEY=VALUE": "any key of the recipe, such as optimizer.lr=3e-4; values are YAML. recipes/README.md "
        "has all keys with units and defaults",
        "run=NAME": "the run's name, which its folder bears; default: the recipe's",
        "ENGINE": "ddp, zero1, zero2, zero3 or fsdp2, for several processes; cpu for one",
        "--list": "prints the recipes, a line each",
        "--print": "prints every value of the recipe and where it came from",
        "--plan": "prints what the recipe will do and cost: parameters, memory, steps, ranks; with nodes=N "
        "gpus=M on that many, with speed=IMAGES/S of a GPU the hours, with card=GB whether it fits",
        "--folder": "prints the folder of the run",
        "--allow-commands": "lets data.root=pipe:COMMAND and s3://... start programs; default: refused",
    },
    [
        "accelerate launch trainer/main.py recipe=quickstart",
        "accelerate launch trainer/main.py recipe=dim_local objective.bound=infonce run=infonce",
        "accelerate launch trainer/main.py recipe=evaluate from=outputs/quickstart",
        "python trainer/main.py recipe=dim_local --plan",
        "python trainer/main.py recipe=hybrid_imagenet --plan nodes=2 gpus=8 speed=1000 card=80",
    ],
    {
        0: "finished, also by an earlier start",
        1: "stopped on request and saved, or failed: the last line says which",
        2: MISTAKE,
        130: "interrupted before training began",
    },
)


def main(arguments: list[str]) -> int:
    """The command; its exit status. Raises UserError for what its user can mend."""
    launch.set_environment()
    if HELP_WORDS & set(arguments):
        print(HELP)
        return 0
    options = [word for word in arguments if word.startswith("-")]
    arguments = [word for word in arguments if word not in options]
    commands, questions = ALLOWED in options, [word for word in options if word != ALLOWED]
    if unknown := [word for word in questions if word not in QUESTIONS]:
        raise UserError(f"{unknown[0]}: unknown; expected {', '.join((*QUESTIONS, ALLOWED))} or key=value")
    if questions[1:]:
        raise UserError(f"{' '.join(questions)}: expected at most one of {', '.join(QUESTIONS)}")
    if questions == ["--list"]:
        recipes = loading.listing()
        width = max(len(listed.name) for listed in recipes)
        for listed in recipes:
            print(f"{listed.name:<{width}} {listed.task:<9} {listed.description}")
        return 0
    cluster = None
    if questions == ["--plan"]:
        from trainer.tasks import cluster_plan

        cluster, arguments = cluster_plan.taken(arguments)
    loaded = replace(loading.load(arguments), commands=commands)
    for line in loaded.notices if os.environ.get("RANK", "0") == "0" else ():
        print(f"note: {line}", file=sys.stderr)
    if questions == ["--print"]:
        print(loaded.text(), end="")
        return 0
    if questions == ["--folder"]:
        print(loaded.recipe.folder(loaded.name))
        return 0
    if questions == ["--plan"]:
        from trainer.tasks import plan

        return plan.run(loaded, cluster)
    return train(loaded)


def train(loaded: loading.ResolvedRecipe) -> int:
    """Runs the recipe's task on this rank; the process's exit status."""
    if isinstance(loaded.recipe, AnyTraining):
        from trainer.training.groups import check_batch_division

        if spare_ranks.leaves(partial(check_batch_division, loaded.recipe)):
            return 0
    mlflow_store.configure()  # DeepSpeed imports MLflow, which reads its settings then
    context = launch.start(loaded.recipe.launch_precision)
    from trainer.distributed import numerics
    from trainer.runs import automatic

    loaded = automatic.resolved(loaded, context.device)
    recipe = loaded.recipe
    tf32, deterministic = (recipe.tf32, recipe.deterministic) if recipe.trains else (False, True)
    arithmetic = numerics.configure(context.device, recipe.launch_precision, tf32, deterministic)
    if context.is_main:
        ranks = f"{context.world_size} rank{'s' * (context.world_size > 1)}"
        threads = f"{context.threads} thread{'s' * (context.threads > 1)}"
        setting = f"{context.engine}, {context.device.type}, {arithmetic}{interfaces.chosen()}"
        print(f"recipe {loaded.name}: {ranks} x {threads}, {setting}", flush=True)
    from trainer.tasks import diffuse, evaluate, measure, pretrain, sample

    task = {"pretrain": pretrain, "evaluate": evaluate}
    task |= {"diffuse": diffuse, "sample": sample, "measure": measure}
    return task[loaded.recipe.task].run(loaded, context)


def exit_status(command: Callable[[], int]) -> int:
    """Runs a command. What its user can mend, or the loss of another rank, is one line on stderr."""
    outlive_readers()
    try:
        with refused_paths():
            return command()
    except UserError as mistake:
        # All ranks make a mistake in the recipe, and the first reports it; later mistakes may be one rank's.
        of_all_ranks = "torch" not in sys.modules or isinstance(mistake, SharedError)
        if os.environ.get("RANK", "0") == "0" or not of_all_ranks:
            print(f"error: {mistake}", file=sys.stderr)
        return 2
    except ImportError as error:
        if (error.name or "trainer").partition(".")[0] in ("trainer", "data_pipelines"):
            raise
        print(f"error: {broken_package(error)}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        from trainer.distributed import collectives

        if not (line := collectives.peer_lost(error)):
            raise
        print(f"error: {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def broken_package(error: ImportError) -> str:
    """The line about a package of others that is missing, or cannot be imported."""
    why = str(error).partition("\n")[0]
    return f"{error.name} cannot be imported ({why}); install it: pip install -c constraints.txt -e ."


if __name__ == "__main__":
    launch.leave(exit_status(lambda: main(sys.argv[1:])))
