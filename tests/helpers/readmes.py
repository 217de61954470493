"""Pages of Markdown as GitHub reads them: headings, links, code, and the commands in it."""

import re
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.helpers import ROOT

PROGRAMS = {
    *("accelerate", "python", "python3", "hybrid-infomax", "pip", "pytest", "bash", "sh", "mlflow", "ruff"),
    *("sbatch", "srun", "squeue", "sinfo", "sacct", "scancel", "scontrol", "docker", "git", "mypy"),
    *("shellcheck", "pre-commit", "coverage", "tail", "head", "touch", "cat", "ls", "cp", "mv", "rm"),
    *("mkdir", "echo", "export", "source", "cd", "curl", "ssh", "apt-get", "sudo", "tar", "unzip"),
}
SHELLS = {"bash", "sh", "shell", "console"}
ASSIGNMENT = re.compile(r"[A-Z][A-Z0-9_]*=")


@dataclass(frozen=True)
class Block:
    """A piece of code: its language ("" where none is named), the number of its first line, its lines."""

    language: str
    first: int
    lines: list[str]

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    @property
    def is_python(self) -> bool:
        first = next((line for line in self.lines if line.strip()), "")
        return self.language == "python" or (not self.language and bool(re.match(r"(from|import) \w", first)))


@dataclass(frozen=True)
class Command:
    """A line of a shell on a page; `needs` is what its comment `# needs …` names, or None."""

    page: Path
    line: int
    text: str
    needs: str | None

    def __str__(self) -> str:
        return f"{name(self.page)}:{self.line}"

    @property
    def parts(self) -> list[list[str]]:
        """The words of each command of the line, redirections and what begins it (`NAME=value`) left out."""
        return [words for _, words in self.settings]

    @property
    def settings(self) -> list[tuple[dict[str, str], list[str]]]:
        """For each command of the line its environment (`NAME=value` before it) and its words."""
        lexer = shlex.shlex(self.text, posix=True, punctuation_chars="&|;<>")
        lexer.whitespace_split, lexer.commenters = True, ""
        parts, words, skip = [], [], False
        for token in [*lexer, ";"]:
            if skip or set(token) <= set("<>"):
                skip = not skip
            elif set(token) <= set("&|;"):
                parts, words = ([*parts, words] if words else parts), []
            else:
                words.append(token)
        return [split_environment(words) for words in parts]


def split_environment(words: list[str]) -> tuple[dict[str, str], list[str]]:
    count = next((i for i, word in enumerate(words) if not ASSIGNMENT.match(word)), len(words))
    return dict(word.split("=", 1) for word in words[:count]), words[count:]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


@dataclass(frozen=True)
class Page:
    """A page of Markdown."""

    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def blocks(self) -> list[Block]:
        return self._split[0]

    @cached_property
    def prose(self) -> str:
        """The page with the lines of its code emptied."""
        return "\n".join(self._split[1])

    @cached_property
    def _split(self) -> tuple[list[Block], list[str]]:
        blocks, prose, lines = [], [], self.text.splitlines()
        number = 0
        while number < len(lines):
            end, block = fenced(lines, number) or indented(lines, number) or (number + 1, None)
            if block:
                blocks.append(block)
            prose += [""] * (end - number) if block else lines[number:end]
            number = end
        return blocks, prose

    @cached_property
    def anchors(self) -> set[str]:
        """What a link to a place on this page may say behind `#`, by GitHub's rules."""
        anchors = set(re.findall(r'<\w+ (?:id|name)="([^"]+)"', self.prose))
        for title in re.findall(r"^ {0,3}#{1,6} +(.*?)(?: +#+)? *$", self.prose, re.MULTILINE):
            title = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", title)
            slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
            count = 0
            while (anchor := f"{slug}-{count}" if count else slug) in anchors:
                count += 1
            anchors.add(anchor)
        return anchors

    @cached_property
    def links(self) -> list[str]:
        """The targets of all links and pictures."""
        text = re.sub(r"(`+).+?\1", "", self.prose, flags=re.DOTALL)
        patterns = [r"\]\(\s*<?([^)\s>]+)", r"^ {0,3}\[[^\]]+\]: +<?([^\s>]+)", r"<(https?://[^>\s]+)>"]
        patterns += [r'<\w+ [^>]*?\b(?:href|src|srcset)="([^"]+)"']
        return [target for pattern in patterns for target in re.findall(pattern, text, re.MULTILINE)]

    @cached_property
    def spans(self) -> list[str]:
        """Code within sentences."""
        spans = re.findall(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", self.prose, re.DOTALL)
        return [" ".join(span.split()) for _, span in spans]

    @cached_property
    def commands(self) -> list[Command]:
        return [command for block in self.blocks for command in self._commands(block)]

    def _commands(self, block: Block) -> list[Command]:
        commands, above, lines = [], None, list(enumerate(block.lines, block.first))
        if block.is_python or block.language not in {"", *SHELLS}:
            return []
        while lines:
            number, line = lines.pop(0)
            while line.endswith("\\") and lines:
                line = f"{line[:-1].rstrip()} {lines.pop(0)[1].strip()}"
            text, comment = split_comment(line.strip().removeprefix("$ "))
            needs = comment.removeprefix("needs ") if comment.startswith("needs ") else None
            if not text:
                above = needs if comment else None  # a comment counts up to an empty line, or the next one
            elif block.language in SHELLS or begins_a_command(text):
                commands.append(Command(self.path, number, text, needs or above))
        return commands


def fenced(lines: list[str], number: int) -> tuple[int, Block] | None:
    """The block that a fence opens on this line, and the line behind it."""
    opening = re.match(r"( *)(```+|~~~+) *(\w*)[^`]*$", lines[number])
    if not opening:
        return None
    indent, fence, language = opening.groups()
    end = number + 1
    while end < len(lines) and not re.fullmatch(rf" *{fence[0]}{{{len(fence)},}} *", lines[end]):
        end += 1
    inside = [line.removeprefix(indent) for line in lines[number + 1 : end]]
    return min(end + 1, len(lines)), Block(language, number + 2, inside)


def indented(lines: list[str], number: int) -> tuple[int, Block] | None:
    """The block of lines indented by four that begins here, after an empty line; and the line behind it."""
    if not lines[number].startswith("    ") or (number and lines[number - 1].strip()):
        return None
    end = number
    while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
        end += 1
    while not lines[end - 1].strip():
        end -= 1
    return end, Block("", number + 1, [line[4:] for line in lines[number:end]])


def split_comment(line: str) -> tuple[str, str]:
    """A line of a shell -> the command, and its comment without `#`."""
    quote = ""
    for place, sign in enumerate(line):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign == "#" and (place == 0 or line[place - 1].isspace()):
            return line[:place].rstrip(), line[place + 1 :].strip()
    return line, ""


def begins_a_command(text: str) -> bool:
    try:
        words = split_environment(shlex.split(text))[1]
    except ValueError:  # a quote that is none: this is no command
        return False
    return bool(words) and (words[0] in PROGRAMS or words[0].endswith(".sh") or words[0].endswith(".ci/run"))
