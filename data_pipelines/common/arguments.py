"""Command lines: one style of help for every command, and mistakes in one line."""

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from data_pipelines.common.errors import UserError

WIDTH = 100  # columns of a help page
HELP_WORDS = frozenset({"-h", "--help"})
MISTAKE = "a mistake in the command or its files: one line on stderr says what to change"


def help_page(
    summary: str,
    usage: Sequence[str],
    arguments: Mapping[str, str],
    examples: Sequence[str],
    status: Mapping[int, str],
) -> str:
    """The help of a command, in the order that all commands share.

    Args:
        summary: what the command does; its lines are wrapped.
        usage: command lines with words in capitals for what the user replaces.
        arguments: each word or option -> what it is, with its unit and default.
        examples: command lines that work as they stand; they are not wrapped.
        status: each exit status -> what it says.
    """
    parts = [
        *(textwrap.fill(line, WIDTH) for line in summary.splitlines()),
        *_section("usage", usage),
        *_section("arguments", _rows(arguments)),
        *_section("examples", examples),
        *_section("exit status", _rows({str(number): text for number, text in status.items()})),
    ]
    return "\n".join(parts)


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return ["", f"{title}:", *(f"  {line}" for line in lines)]


def _rows(texts: Mapping[str, str]) -> list[str]:
    """Two columns; the second is wrapped."""
    width, rows = max(map(len, texts)) + 2, []
    for name, text in texts.items():
        first, *rest = textwrap.wrap(text, WIDTH - 2 - width)
        rows += [f"{name:<{width}}{first}", *(f"{'':<{width}}{line}" for line in rest)]
    return rows


class Parser(argparse.ArgumentParser):
    """A parser that raises UserError instead of printing its usage and leaving; `page` is its help."""

    def __init__(self, *, page: str = "", **options: Any):
        super().__init__(**options)
        self.page = page

    def format_help(self) -> str:
        return f"{self.page}\n"

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")
