"""The console command `hybrid-infomax`: every door of the project, one sub-command each."""

import argparse
import sys
from collections.abc import Callable

from data_pipelines.common.arguments import Parser
from data_pipelines.common.errors import UserError
from data_pipelines.common.suggest import closest, did_you_mean
from trainer import main as trainer_main
from trainer.distributed import launch
from trainer.recipe.loading import RECIPES
from trainer.recipe.messages import either

PROGRAM = "hybrid-infomax"
HELP = """\
Pretraining of image encoders by mutual information.

{commands}

{program} COMMAND --help says more. Examples:

  {program} train recipe=quickstart
  {program} print recipe=dim_local optimizer.lr=3e-4
  {program} shards source=cifar10 to=data/cifar10

`train` is one process. Several are started by accelerate, with the file of an engine:

  accelerate launch --config_file "$({program} print launch/ddp)" \\
      --num_processes 4 -m trainer.main recipe=dim_local
"""


def train(words: list[str]) -> int:
    return trainer_main.main(words)


def list_recipes(words: list[str]) -> int:
    return trainer_main.main(["--list", *words])


def print_recipe(words: list[str]) -> int:
    """A recipe, or the path of an engine's file: `print launch/zero2`."""
    if words and words[0].startswith("launch/"):
        print(launch_file(words))
        return 0
    return trainer_main.main(["--print", *words])


def launch_file(words: list[str]) -> str:
    """The path of an engine's file for `accelerate launch --config_file`. Raises UserError."""
    engines = sorted(f"launch/{path.stem}" for path in (RECIPES / "launch").glob("*.yaml"))
    if len(words) > 1 or words[0] not in engines:
        hint = did_you_mean(closest(words[0], engines)) if words[0] not in engines else ""
        raise UserError(f"print {' '.join(words)}: expected {either(engines)} alone{hint}")
    return str(RECIPES / f"{words[0]}.yaml")


def plan(words: list[str]) -> int:
    return trainer_main.main(["--plan", *words])


def shards(words: list[str]) -> int:
    from data_pipelines.shards.__main__ import main

    return main(words)


def checkpoints(words: list[str]) -> int:
    from trainer.checkpoints.__main__ import main

    return main(words)


def tracking(words: list[str]) -> int:
    from trainer.tracking.__main__ import main

    return main(words)


def import_weights(words: list[str]) -> int:
    from trainer.exports import torchvision_resnet

    if {"-h", "--help"} & set(words):
        print(torchvision_resnet.__doc__)
        return 0
    return torchvision_resnet.main(words)


DOORS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "train": (train, "run a recipe in this process: recipe=NAME [a.b=value ...]"),
    "list": (list_recipes, "the recipes, a line each"),
    "print": (print_recipe, "every value of recipe=NAME; the path of launch/ENGINE"),
    "plan": (plan, "what recipe=NAME will do and cost, before anything runs"),
    "shards": (shards, "make or verify data: source=SOURCE to=DIR | verify DIR"),
    "checkpoints": (checkpoints, "look at them, make room: list|verify|prune DIR"),
    "tracking": (tracking, "deliver later what MLflow does not have yet: sync DIR"),
    "import": (import_weights, "others' ResNet as an encoder: from=CHECKPOINT to=FILE"),
}


def parse(words: list[str]) -> Callable[[list[str]], int]:
    """The command line without a door's words -> the door. Raises UserError."""
    summaries = "\n".join(f"  {name:<12} {summary}" for name, (_, summary) in DOORS.items())
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND ...",
        description=HELP.format(program=PROGRAM, commands=summaries),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", help=argparse.SUPPRESS)
    for name, (door, _) in DOORS.items():
        commands.add_parser(name, add_help=False).set_defaults(door=door)
    if words and not words[0].startswith("-") and words[0] not in DOORS:
        hint = did_you_mean(closest(words[0], DOORS))
        raise UserError(f"{words[0]}: no command; expected {either(list(DOORS))}{hint}")
    return parser.parse_args(words).door


def run(words: list[str]) -> int:
    """One door with its words; its exit status. Raises UserError."""
    return parse(words[:1])(words[1:])  # the rest is the door's, its --help too


def main() -> None:
    """The console script. Ends the process."""
    launch.set_environment()
    words = sys.argv[1:]
    status = trainer_main.exit_status(lambda: run(words))
    if words[:1] == ["train"]:
        launch.leave(status)  # with ranks and threads of torch
    sys.exit(status)


if __name__ == "__main__":
    main()
