"""The entry: reads the recipe and runs its task.

accelerate launch trainer/main.py recipe=NAME [a.b=value ...]
python trainer/main.py --list | recipe=NAME --print | recipe=NAME --plan | recipe=NAME --folder

--allow-commands lets data.root=pipe:COMMAND and s3://... start programs.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

# A script's own folder comes first on the path, and a module of ours might then hide one of Python's.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from data_pipelines.common.errors import SharedError, UserError
from trainer.distributed import launch
from trainer.recipe import loading

ALLOWED = "--allow-commands"
QUESTIONS = ("--list", "--print", "--plan", "--folder")


def main(arguments: list[str]) -> int:
    launch.set_environment()
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    asked = [word for word in arguments if word.startswith("-")]
    arguments = [word for word in arguments if word not in asked]
    commands, asked = ALLOWED in asked, [word for word in asked if word != ALLOWED]
    if unknown := [word for word in asked if word not in QUESTIONS]:
        raise UserError(f"{unknown[0]}: unknown; expected {', '.join((*QUESTIONS, ALLOWED))} or key=value")
    if asked[1:]:
        raise UserError(f"{' '.join(asked)}: expected at most one of {', '.join(QUESTIONS)}")
    if asked == ["--list"]:
        found = list(loading.listing())
        width = max(len(listed.name) for listed in found)
        for listed in found:
            print(f"{listed.name:<{width}} {listed.task:<9} {listed.description}")
        return 0
    loaded = replace(loading.load(arguments), commands=commands)
    if asked == ["--print"]:
        print(loaded.text(), end="")
        return 0
    if asked == ["--folder"]:
        from trainer.runs.folder import RunFolder

        print(RunFolder.of(loaded).path)
        return 0

    if asked == ["--plan"]:
        from trainer.tasks import plan

        return plan.run(loaded)
    precision = getattr(loaded.recipe, "precision", "float32")
    context = launch.start(precision)
    if context.is_main:
        print(
            f"recipe {loaded.name}: {context.world_size} rank{'s' * (context.world_size > 1)} "
            f"x {context.threads} thread{'s' * (context.threads > 1)}, {context.engine}, {context.device.type}, {precision}",
            flush=True,
        )
    from trainer.tasks import evaluate, pretrain

    task = {"pretrain": pretrain, "evaluate": evaluate}[loaded.recipe.task]
    return task.run(loaded, context)


if __name__ == "__main__":
    try:
        status = main(sys.argv[1:])
    except UserError as mistake:
        # A mistake in the recipe is every rank's, and told once; later ones may be one rank's alone.
        everyone = "torch" not in sys.modules or isinstance(mistake, SharedError)
        if os.environ.get("RANK", "0") == "0" or not everyone:
            print(f"error: {mistake}", file=sys.stderr)
        status = 2
    except RuntimeError as error:
        from trainer.distributed import collectives

        if not (line := collectives.peer_lost(error)):
            raise
        print(f"error: {line}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        status = 130
    launch.leave(status)
