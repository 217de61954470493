"""The command that inspects checkpoints: python -m trainer.checkpoints list|verify|prune DIR"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from data_pipelines.common.arguments import MISTAKE, Parser, help_page
from data_pipelines.common.errors import UserError
from data_pipelines.common.output import outlive_readers
from data_pipelines.common.paths import refused_paths

PROGRAM = "python -m trainer.checkpoints"
DIR = "a run's folder, its checkpoints/ folder, a folder of runs such as outputs/, or one checkpoint images-N"
HELP = help_page(
    "Checkpoints at rest: what is there, whether it is whole, and how room is made.",
    [f"{PROGRAM} list DIR", f"{PROGRAM} verify DIR", f"{PROGRAM} prune DIR [OPTION ...]"],
    {
        "list": "what is there: size, time, ranks, and which one the next start continues from",
        "verify": "reads every byte",
        "prune": "removes older ones as training does, never the newest whole one",
        "DIR": DIR,
        "OPTION": f"of prune; {PROGRAM} prune --help shows them",
    },
    [
        f"{PROGRAM} list outputs",
        f"{PROGRAM} verify outputs/dim_local",
        f"{PROGRAM} prune outputs/dim_local --keep 1 --dry-run",
    ],
    {0: "done; verify: all are whole", 1: "verify: one is damaged; prune: none is whole", 2: MISTAKE},
)
LIST_HELP = help_page(
    "Lists checkpoints with size, time, ranks and engine, and shows which one the next start continues from. "
    "It reads manifests and sizes only.",
    [f"{PROGRAM} list DIR"],
    {"DIR": DIR},
    [f"{PROGRAM} list outputs", f"{PROGRAM} list outputs/dim_local"],
    {0: "listed", 2: MISTAKE},
)
VERIFY_HELP = help_page(
    "Reads every byte of checkpoints and compares it with the digests in their manifests.",
    [f"{PROGRAM} verify DIR"],
    {"DIR": DIR},
    [f"{PROGRAM} verify outputs/dim_local"],
    {0: "all are whole", 1: "a line for each that is damaged", 2: MISTAKE},
)
PRUNE_HELP = help_page(
    "Removes older checkpoints as training does, never the newest whole one. A run that is being written is "
    "refused.",
    [f"{PROGRAM} prune DIR [--keep N] [--keep-every M] [--dry-run]"],
    {
        "DIR": "a run's folder, its checkpoints/ folder, or a folder of runs such as outputs/",
        "--keep N": "the newest N checkpoints stay; default: the recipe's save.keep",
        "--keep-every M": "of each M images the first one stays; default: the recipe's save.keep_every",
        "--dry-run": "prints what would be removed, and removes nothing",
    },
    [f"{PROGRAM} prune outputs/dim_local --keep 1 --dry-run", f"{PROGRAM} prune outputs --keep 2"],
    {0: "done", 1: "no checkpoint is whole; nothing was removed", 2: MISTAKE},
)


def number(least: int) -> Callable[[str], int]:
    """The argparse type of a whole number of at least `least`."""

    def read(text: str) -> int:
        try:
            value = int(float(text)) if float(text).is_integer() else -1  # 1e6 images, as in recipes
        except (ValueError, OverflowError):
            value = -1
        if value < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got '{text}'")
        return value

    return read


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line. Raises UserError."""
    parser = Parser(prog=PROGRAM, page=HELP)
    commands = parser.add_subparsers(dest="command", required=True, metavar="list|verify|prune")
    for name, page in (("list", LIST_HELP), ("verify", VERIFY_HELP), ("prune", PRUNE_HELP)):
        command = commands.add_parser(name, page=page)
        command.add_argument("folder", metavar="DIR", type=Path)
    command.add_argument("--keep", type=number(1), metavar="N")
    command.add_argument("--keep-every", type=number(0), metavar="M")
    command.add_argument("--dry-run", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns 0, 1 where a checkpoint is damaged, 2 for a user's mistake."""
    try:
        options = parse(arguments)
        from trainer.checkpoints import inspection  # torch: help does not wait for it

        with refused_paths():
            return inspection.run(options, DIR)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    outlive_readers()
    sys.exit(main())
