"""The node check, on the first node of a job: python -m trainer.tasks.node_check OPTION… KEY=VALUE…

Prints `ready FOLDER` once the nodes may look at that folder and at this node's port. Reads their reports on
stdin until it ends, and prints `sound`, or `faulty` behind a line on stderr for each thing that is wrong.
Behind these words stands the signal that a node has heard, if any.
"""

import argparse
import os
import select
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from data_pipelines.common.arguments import Parser
from data_pipelines.common.errors import UserError
from trainer.recipe import loading
from trainer.recipe.recipes import AnyTraining
from trainer.tasks.node_check import comparison, shared_folder
from trainer.tasks.node_check.network import FirstNode
from trainer.tasks.node_check.report import NodeReport, parse
from trainer.training.groups import check_batch_division

ENOUGH = 2**16  # bytes of a read


def parse_words(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options, and the words of the recipe. Raises UserError."""
    parser = Parser(prog="python -m trainer.tasks.node_check")
    parser.add_argument("--token", required=True)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--nodes", required=True)
    parser.add_argument("--processes", required=True, type=int)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seconds", type=float, required=True)
    return parser.parse_known_args(arguments)


def check_ranks(words: list[str], ranks: int) -> None:
    """Raises UserError: the batch of a recipe that trains does not divide over so many ranks."""
    recipe = loading.load([word for word in words if not word.startswith("-")]).recipe
    if isinstance(recipe, AnyTraining):
        check_batch_division(recipe, ranks)


def received(seconds: float) -> tuple[str, bool]:
    """What comes on stdin until its end, or for so many seconds; and whether it ended."""
    parts, end = list[bytes](), time.monotonic() + seconds
    while select.select([sys.stdin], [], [], max(0.0, end - time.monotonic()))[0]:
        if not (part := os.read(sys.stdin.fileno(), ENOUGH)):
            return b"".join(parts).decode(errors="replace"), True
        parts.append(part)
    return b"".join(parts).decode(errors="replace"), False


def meet(options: argparse.Namespace) -> tuple[dict[str, NodeReport], bool]:
    """Answers the nodes: their reports, and whether all have ended. Raises UserError: the port is taken."""
    folder = shared_folder.nearest(options.folder)
    with ExitStack() as stack:
        there = stack.enter_context(shared_folder.probe(folder, options.token))
        if options.port:
            try:
                stack.enter_context(FirstNode(options.port, options.token, there))
            except OSError as error:
                raise UserError(
                    f"port {options.port} of the first node, where ranks would meet: {error.strerror}; "
                    "submit the job again, or give it another by MASTER_PORT"
                ) from None
        print(f"ready {folder}", flush=True)
        text, ended = received(options.seconds)
        return parse(text.splitlines()), ended


def check(arguments: list[str]) -> int:
    """The check; 0 where all nodes are sound, else 2. Raises UserError."""
    options, words = parse_words(arguments)
    nodes = options.nodes.split()
    check_ranks(words, options.processes * len(nodes))
    reports, ended = meet(options)
    silent = comparison.NO_REPORT if ended else f"no answer within {options.seconds:g} s (NODE_CHECK)"
    lines = comparison.faults(nodes, reports, silent)
    for line in comparison.warnings(list(reports.values())):
        print(f"warning: {line}", file=sys.stderr)
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    signal = next((report.signal for report in reports.values() if report.signal), "")
    print("faulty" if lines else "sound", signal)
    return 2 if lines else 0


def main(arguments: list[str]) -> int:
    """The command; the exit status."""
    try:
        return check(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
