"""A job that is about to be submitted: its script, sbatch's options, its words and its environment."""

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.common.errors import UserError

ALLOWED = "--allow-commands"  # of trainer/main.py
START = re.compile(r'^(on_one_node|over_nodes) (\w+) "\$@"$', re.MULTILINE)
LINE = re.compile(r"^#SBATCH +--([a-z-]+)(?:=(\S+))?", re.MULTILINE)
EXAMPLE = "slurm/hybrid_imagenet.sh"
OURS = {"nodes": "nodes", "gpus": "gpus-per-node"}  # words of a plan -> sbatch's options
TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
UNLIMITED = ("UNLIMITED", "INFINITE", "0")


@dataclass(frozen=True)
class Job:
    """What somebody is about to submit.

    Attributes:
        script: the job's script, as it was named.
        root: the checkout that the job works in.
        submitted_in: where sbatch will be called.
        recipe: of the script, where no word names another.
        over_nodes: whether the script is for several nodes.
        options: sbatch's, by name; those of the command stand above the script's.
        said: those of the command alone.
        words: for trainer/main.py.
        card: GB of a GPU's memory; 0: not known.
        variables: the environment that the job will see.
    """

    script: Path
    root: Path
    submitted_in: Path
    recipe: str
    over_nodes: bool
    options: dict[str, str]
    said: dict[str, str]
    words: list[str]
    card: float
    variables: Mapping[str, str]

    @property
    def nodes(self) -> int:
        """Raises UserError: it is no number."""
        return whole("--nodes", self.options.get("nodes", "1"), 1)

    @property
    def gpus(self) -> int:
        """GPUs of a node. Raises UserError: it is no number."""
        text = self.options.get("gpus-per-node", "0")
        return whole("--gpus-per-node", text.rpartition(":")[2], 0)

    @property
    def processes(self) -> int:
        """Ranks of a node, as slurm/common.sh counts them. Raises UserError: it is no number."""
        processes = self.variables.get("PROCS_PER_NODE", "")
        return whole("PROCS_PER_NODE", processes, 1) if processes else max(1, self.gpus)

    @property
    def works_in(self) -> Path:
        """The folder that Slurm starts it in."""
        return self.submitted_in / self.options.get("chdir", "")

    @property
    def ranks(self) -> int:
        return self.nodes * self.processes

    @property
    def engine(self) -> str:
        """A file of recipes/launch; jobs of one node have one engine."""
        return self.variables.get("ENGINE") or "ddp" if self.over_nodes else "ddp"

    @property
    def lead(self) -> int:
        """Seconds before the limit in which the signal comes. Raises UserError: it is no number."""
        return whole("SIGNAL_SECONDS", self.variables.get("SIGNAL_SECONDS") or "300", 1)

    def command(self) -> list[str]:
        """What submits it."""
        options = [f"--{name}={value}" if value else f"--{name}" for name, value in self.said.items()]
        return ["sbatch", *options, str(self.script), *self.words]

    def __str__(self) -> str:
        return shlex.join(self.command())


def read(words: list[str]) -> Job:
    """The words of `hybrid-infomax check`. Raises UserError."""
    said, rest = options_of(words)
    scripts = [word for word in rest if "=" not in word and word != ALLOWED]
    if len(scripts) != 1:
        what = f"{scripts[1]}: not understood" if scripts else "no script"
        raise UserError(f"{what}; expected one job such as {EXAMPLE}, and words KEY=VALUE")
    script = Path(scripts[0])
    text = text_of(script)
    start, root = START.search(text), root_of(script, said)
    if script.name == "sweep.sh":
        raise UserError(f"{script}: many jobs; check one of its runs as a job of slurm/dim_local.sh")
    if not start and root and "\nsource slurm/common.sh\n" in text:
        raise UserError(f"{script}: runs no recipe; what Slurm says of it: sbatch --test-only {script}")
    if not start or root is None:
        raise UserError(f"{script}: no job of this project; expected one of slurm/ such as {EXAMPLE}")
    keys, card = [], 0.0
    for word in rest:
        name, _, value = word.partition("=")
        if name in OURS and "=" in word:
            said[OURS[name]] = value
        elif name == "card":
            card = number(word, value)
        elif word != scripts[0]:
            keys.append(word)
    options = dict(LINE.findall(text)) | said
    return Job(
        script=script,
        root=root,
        submitted_in=Path.cwd(),
        recipe=start[2],
        over_nodes=start[1] == "over_nodes",
        options=options,
        said=said,
        words=keys,
        card=card,
        variables=exported(options.get("export", "ALL")),
    )


def options_of(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """sbatch's options by name, and the other words. Raises UserError for one in short."""
    options, rest, left = dict[str, str](), list[str](), list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("-") or word == ALLOWED:
            rest.append(word)
            continue
        if not word.startswith("--"):
            raise UserError(f"{word}: expected options of sbatch in full, such as --nodes=16")
        name, _, value = word[2:].partition("=")
        separate = "=" not in word and left and not re.match(r"-|.*=|.*\.sh$", left[0])
        options[OURS.get(name, name)] = left.pop(0) if separate else value
    return options, rest


def text_of(script: Path) -> str:
    """The text of a script. Raises UserError."""
    try:
        return script.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "no text"
        raise UserError(f"{script}: {why}; expected a job such as {EXAMPLE}") from None


def root_of(script: Path, options: Mapping[str, str]) -> Path | None:
    """The checkout that a job works in, which it looks for in this order; None where there is none."""
    places = [Path(options["chdir"])] if options.get("chdir") else []
    places += [Path.cwd(), script.absolute().parent.parent]
    return next((place.absolute() for place in places if (place / "slurm" / "common.sh").is_file()), None)


def exported(option: str) -> dict[str, str]:
    """The variables of a job, of sbatch's --export."""
    names = option.split(",")
    variables = dict(os.environ) if "ALL" in names else {}
    for name, mark, value in (word.partition("=") for word in names):
        if mark:
            variables[name] = value
        elif name in os.environ:
            variables[name] = os.environ[name]
    return variables


def whole(name: str, text: str, least: int) -> int:
    """A whole number. Raises UserError for anything else."""
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise UserError(f"{name}={text}: expected a whole number from {least}")
    return int(text)


def number(word: str, text: str) -> float:
    """A number above 0. Raises UserError for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise UserError(f"{word}: expected a number above 0")
    return value


def seconds(text: str) -> int | None:
    """Slurm's M, M:S, H:M:S, D-H, D-H:M and D-H:M:S; None for no limit. Raises UserError."""
    if text.upper() in UNLIMITED:
        return None
    if not (match := TIME.fullmatch(text)):
        raise UserError(
            f"--time={text}: expected DAYS-HOURS:MINUTES:SECONDS, HOURS:MINUTES:SECONDS or MINUTES"
        )
    days, parts = match[1], [int(part) for part in match.groups()[1:] if part is not None]
    if days is not None or len(parts) == 3:
        hours, minutes, rest = [*parts, 0, 0][:3]
    else:
        hours, minutes, rest = 0, parts[0], [*parts, 0][1]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + rest
