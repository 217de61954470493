"""The command that gathers runs into tables: python -m trainer.report DIR"""

import argparse
import sys
from pathlib import Path

from data_pipelines.common.arguments import MISTAKE, Parser, help_page
from data_pipelines.common.errors import UserError
from data_pipelines.common.files import cannot_write, replace_bytes
from data_pipelines.common.output import outlive_readers
from data_pipelines.common.paths import refused_paths
from trainer.report import forms
from trainer.report.page import page
from trainer.report.report import make_report

PROGRAM = "python -m trainer.report"
HELP = help_page(
    "Gathers the figures of runs into the papers' tables: ours beside the published ones, seeds as a mean "
    "and its spread, and controls that are made of the runs.",
    [f"{PROGRAM} DIR [DIR ...] [--markdown | --csv] [-o FILE]", f"{PROGRAM} DIR [DIR ...] --html FILE"],
    {
        "DIR": "a folder of runs such as outputs/, at any depth, or one run",
        "--markdown": "tables in Markdown; default: aligned text of at most 120 columns",
        "--csv": "a line a figure, in full precision: table, data, row, origin, column, value, spread, seeds",
        "--html FILE": "one page with the runs' pictures, which needs no other file",
        "-o FILE": "writes text, Markdown or CSV to a file; default: standard output",
    },
    [
        f"{PROGRAM} outputs",
        f"{PROGRAM} outputs --markdown -o report.md",
        f"{PROGRAM} outputs --html report.html",
    ],
    {0: "reported, also where some runs are unfinished or damaged: a line for each", 2: MISTAKE},
)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line. Raises UserError."""
    parser = Parser(prog=PROGRAM, page=HELP)
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", dest="form", action="store_const", const=forms.markdown)
    form.add_argument("--csv", dest="form", action="store_const", const=forms.comma_separated)
    form.add_argument("--html", type=Path, metavar="FILE")
    parser.add_argument("-o", dest="output", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    if options.html and options.output:
        raise UserError("-o: not together with --html, which names its file; leave one of the two out")
    return options


def report(options: argparse.Namespace) -> None:
    """Prints the report, or writes it to a file. Raises UserError."""
    made = make_report(options.folders)
    if options.html:
        text, pictures = page(made)
        write(options.html, text, "--html FILE")
        print(f"{options.html}: {len(made.tables)} tables, {len(made.runs)} runs, {pictures} pictures")
        return
    text = (options.form or forms.text)(made)
    if options.output:
        write(options.output, text, "-o FILE")
        print(f"{options.output}: {len(made.tables)} tables, {len(made.runs)} runs")
    else:
        print(text, end="")


def write(path: Path, text: str, key: str) -> None:
    """Writes a file whole or not at all; `key` names another place. Raises UserError."""
    try:
        replace_bytes(path, text.encode())
    except OSError as error:
        raise cannot_write(path, error, key) from error


def main(arguments: list[str] | None = None) -> int:
    """The command; returns 0, or 2 for a user's mistake."""
    try:
        options = parse(arguments)
        with refused_paths():
            report(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    outlive_readers()
    sys.exit(main())
