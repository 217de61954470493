"""The console command `hybrid-infomax`: every door of the project, one sub-command each."""

import sys
from collections.abc import Callable

from data_pipelines.common.arguments import HELP_WORDS, MISTAKE, Parser, help_page
from data_pipelines.common.errors import UserError
from data_pipelines.common.suggest import closest, did_you_mean
from trainer import main as trainer_main
from trainer.distributed import launch
from trainer.recipe.loading import RECIPES
from trainer.recipe.messages import either

PROGRAM = "hybrid-infomax"
RECIPE_WORDS = {
    "recipe=NAME": "a recipe of `list`, or the path of a .yaml file",
    "KEY=VALUE": "any key of the recipe, such as optimizer.lr=3e-4",
}
STATUS = {0: "printed", 2: MISTAKE}
LIST_HELP = help_page(
    "Lists the recipes: name, task and what it is, a line each.",
    [f"{PROGRAM} list"],
    {"-h, --help": "this page"},
    [f"{PROGRAM} list"],
    STATUS,
)
PRINT_HELP = help_page(
    "Prints a recipe with every default filled in and where each value came from, or the path of an engine's "
    "file for accelerate launch --config_file.",
    [f"{PROGRAM} print recipe=NAME [KEY=VALUE ...]", f"{PROGRAM} print launch/ENGINE"],
    {**RECIPE_WORDS, "launch/ENGINE": "launch/cpu, ddp, zero1, zero2, zero3 or fsdp2"},
    [f"{PROGRAM} print recipe=dim_local optimizer.lr=3e-4", f"{PROGRAM} print launch/zero2"],
    STATUS,
)
PLAN_HELP = help_page(
    "Prints what a recipe that trains will do and cost before anything runs: parameters, memory, steps, "
    "checkpoints, and what each number of ranks reads.",
    [f"{PROGRAM} plan recipe=NAME [KEY=VALUE ...] [nodes=N gpus=M [speed=S] [network=B] [card=GB]]"],
    {
        **RECIPE_WORDS,
        "nodes=N gpus=M": "machines (default: 1), and GPUs of each (8): what a rank keeps and sends",
        "speed=S": "images/s of one GPU: the hours, the jobs, what the storage has to deliver",
        "network=B": "GB/s that a GPU sends to other machines; default: 12.5",
        "card=GB": "memory of a GPU: what does not fit is marked",
    },
    [
        f"{PROGRAM} plan recipe=dim_local",
        f"{PROGRAM} plan recipe=hybrid_imagenet nodes=2 gpus=8 speed=1000 card=80",
    ],
    STATUS,
)


def train(words: list[str]) -> int:
    return trainer_main.main(words)


def asks_for_help(words: list[str], page: str) -> bool:
    """Prints the page of a command where its words ask for it."""
    if not HELP_WORDS & set(words):
        return False
    print(page)
    return True


def list_recipes(words: list[str]) -> int:
    if asks_for_help(words, LIST_HELP):
        return 0
    return trainer_main.main(["--list", *words])


def print_recipe(words: list[str]) -> int:
    """A recipe, or the path of an engine's file: `print launch/zero2`."""
    if asks_for_help(words, PRINT_HELP):
        return 0
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
    if asks_for_help(words, PLAN_HELP):
        return 0
    return trainer_main.main(["--plan", *words])


def check(words: list[str]) -> int:
    from trainer.tasks.submission.command import main

    return main(words)


def shards(words: list[str]) -> int:
    from data_pipelines.shards.__main__ import main

    return main(words)


def checkpoints(words: list[str]) -> int:
    from trainer.checkpoints.__main__ import main

    return main(words)


def tracking(words: list[str]) -> int:
    from trainer.tracking.__main__ import main

    return main(words)


def report(words: list[str]) -> int:
    from trainer.report.__main__ import main

    return main(words)


def status(words: list[str]) -> int:
    from trainer.report.status import main

    return main(words)


def import_weights(words: list[str]) -> int:
    from trainer.exports.torchvision_resnet import main

    return main(words)


def environment(words: list[str]) -> int:
    from trainer.tasks.environment.command import main

    return main(words)


DOORS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "train": (train, "run a recipe in this process: recipe=NAME [a.b=value ...]"),
    "list": (list_recipes, "the recipes, a line each"),
    "print": (print_recipe, "every value of recipe=NAME; the path of launch/ENGINE"),
    "plan": (plan, "what recipe=NAME will do and cost, before anything runs"),
    "check": (check, "what can be known of a Slurm job before it queues: SCRIPT --nodes N --gpus M"),
    "shards": (shards, "make or verify data: source=SOURCE to=DIR | verify DIR"),
    "checkpoints": (checkpoints, "look at them, make room: list|verify|prune DIR"),
    "tracking": (tracking, "deliver later what MLflow does not have yet: sync DIR"),
    "report": (report, "runs gathered into the papers' tables: DIR, as text, Markdown, CSV or HTML"),
    "status": (status, "how each run stands, a row a run: DIR"),
    "import": (import_weights, "others' ResNet as an encoder: from=CHECKPOINT to=FILE"),
    "env": (environment, "versions, machine and engines, for a question or a bug report"),
}


def page() -> str:
    """The help of the command: every door on one screen."""
    return help_page(
        "Pretraining of image encoders by mutual information.",
        [f"{PROGRAM} COMMAND ...", f"{PROGRAM} COMMAND --help"],
        {name: summary for name, (_, summary) in DOORS.items()},
        [
            f"{PROGRAM} train recipe=quickstart     (one process; several are started by accelerate:)",
            f'accelerate launch --config_file "$({PROGRAM} print launch/ddp)" \\',
            "    --num_processes 4 -m trainer.main recipe=dim_local",
        ],
        {0: "done", 1: "stopped, damaged or not delivered: the last line says which", 2: MISTAKE},
    )


def parse(words: list[str]) -> Callable[[list[str]], int]:
    """The command line without a door's words -> the door. Raises UserError."""
    parser = Parser(prog=PROGRAM, page=page())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
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
    words = sys.argv[1:]
    if words[:1] != ["env"]:  # which shows what its user has set
        launch.set_environment()
    status = trainer_main.exit_status(lambda: run(words))
    if words[:1] == ["train"]:
        launch.leave(status)  # with ranks and threads of torch
    sys.exit(status)


if __name__ == "__main__":
    main()
