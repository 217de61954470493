"""What must hold of a page: its links lead somewhere, its commands are those of today's code."""

import re
from contextlib import redirect_stderr
from functools import cache
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from urllib.parse import unquote, urlsplit

from accelerate.commands.launch import launch_command_parser

from data_pipelines.common.errors import UserError
from data_pipelines.shards import __main__ as shards
from data_pipelines.sources.catalog import SOURCES
from tests.helpers import ROOT
from tests.helpers.readmes import Command, Page, begins_a_command, name
from trainer import cli
from trainer.checkpoints import __main__ as checkpoints
from trainer.main import ALLOWED, QUESTIONS
from trainer.recipe.loading import load
from trainer.tasks import cluster_plan
from trainer.tasks.submission import job as submission

PLACEHOLDERS = re.compile(r"\b(NAME|RUN|CLASS|SOURCE|ROOT|DIR|HOST|FILE|FOLDER|COMMIT|ENGINE)\b|[<>*…{}$]")
# What a page invites its reader to write, or a command writes.
EXAMPLES = {"evaluation/norms.py", "tests/trainer/evaluation/test_norms.py"}
MADE = ("outputs/", "data/")  # by commands; no files of the repository
JOBS = {  # each script -> its recipe where the command line names none
    "slurm/dim_local.sh": "dim_local",
    "slurm/dim_imagenet.sh": "dim_imagenet",
    "slurm/moco_imagenet.sh": "moco_imagenet",
    "slurm/hybrid_imagenet.sh": "hybrid_imagenet",
    "slurm/diffuse.sh": "diffuse_cifar10",
    "slurm/evaluate.sh": "evaluate",
    "slurm/sweep.sh": "dim_local",
}


class Repository:
    """The files of the repository, and the folders that they lie in."""

    def __init__(self, files: list[Path]):
        self.names = {name(path) for path in files}
        self.names |= {str(parent) for file in list(self.names) for parent in Path(file).parents} - {"."}
        self.top = {path.split("/")[0] for path in self.names}

    def has(self, path: Path) -> bool:
        return path == ROOT or name(path) in self.names


# ---- links and paths -------------------------------------------------------------------------------


def link_problems(page: Page, repository: Repository) -> list[str]:
    return [f"{target}: {why}" for target in page.links if (why := broken(target, page, repository))]


def broken(target: str, page: Page, repository: Repository) -> str | None:
    """Why a link leads nowhere; None where it leads somewhere. Nothing is fetched."""
    parts = urlsplit(target)
    if parts.scheme:
        well_formed = parts.scheme == "mailto" or (
            parts.scheme in ("http", "https") and "." in (parts.hostname or "")
        )
        return None if well_formed else "no address"
    path = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
    if not repository.has(path):
        return "no file or folder of the repository"
    if parts.fragment and (path.suffix != ".md" or parts.fragment not in Page(path).anchors):
        return "no heading there is called so"
    return None


def path_problems(page: Page, repository: Repository) -> list[str]:
    """Paths in backticks that are none of the repository's."""
    paths = [span for span in page.spans if is_path(span, repository) and span not in EXAMPLES]
    places = (ROOT, page.path.parent)
    return [path for path in paths if not any(repository.has((at / path).resolve()) for at in places)]


def is_path(text: str, repository: Repository) -> bool:
    """Whether a word can only be a file or a folder of the repository."""
    if not re.fullmatch(r"[\w.\-/]*\w/[\w.\-/]*", text) or PLACEHOLDERS.search(text) or text.startswith(MADE):
        return False
    folder = text.endswith("/") and text.split("/")[0] in repository.top
    return folder or text.endswith((".py", ".md", ".sh", ".yaml", ".toml"))


# ---- commands --------------------------------------------------------------------------------------


def in_sentences(page: Page) -> list[Command]:
    """The commands of a page that stand in backticks; two words only name a program."""
    spans = [span for span in page.spans if len(span.split()) > 2 and "|" not in span]
    return [Command(page.path, 0, span, None) for span in spans if begins_a_command(span)]


def command_problems(command: Command, repository: Repository) -> list[str]:
    """What is not of today: keys and names of recipes, options, sources, files. Nothing runs."""
    problems = []
    for environment, words in command.settings:
        try:
            check(words)
        except (UserError, ValueError) as error:
            problems.append(f"{command.text}: {error}")
        words = [word.partition("=")[2] if word.startswith("--") else word for word in words]
        engine = environment.get("ENGINE", "ddp")
        paths = [*words, f"recipes/launch/{engine}.yaml"]
        paths = [path for path in paths if is_path(path, repository)]
        missing = [path for path in paths if not repository.has((ROOT / path).resolve())]
        problems += [f"{command.text}: no {path} here" for path in missing]
    return problems


def check(words: list[str]) -> None:
    """Raises UserError or ValueError where a command's words are not understood."""
    program, *words = words
    if program == "accelerate":
        words = launcher_words(words)
        program = "python"
    if program in ("python", "python3") and words[:1] == ["-m"]:
        check_door(words[1], words[2:])
    elif program in ("python", "python3") and words[:1] == ["trainer/main.py"]:
        check_main(words[1:])
    elif program in ("python", "python3", "bash") and words[:1] and words[0].startswith("benchmarks/"):
        check_options(words[0], words[1:])
    elif program == "hybrid-infomax":
        check_console(words)
    elif program == "sbatch":
        check_job(words)


def launcher_words(words: list[str]) -> list[str]:
    """`launch OPTIONS SCRIPT WORDS` -> SCRIPT WORDS, by accelerate's own parser."""
    said = StringIO()
    try:
        with redirect_stderr(said):
            options = launcher().parse_args(words[1:])
    except SystemExit:
        raise ValueError(said.getvalue().splitlines()[-1]) from None
    if words[:1] != ["launch"]:
        raise ValueError(f"accelerate {words[0]}: expected launch")
    script = [options.training_script, *options.training_script_args]
    return ["-m", *script] if options.module else script


@cache
def launcher():
    return launch_command_parser()


def check_main(words: list[str]) -> None:
    options = [word for word in words if word.startswith("-")]
    if unknown := set(options) - {*QUESTIONS, ALLOWED, "--help"}:
        raise ValueError(f"trainer/main.py has no {unknown.pop()}")
    words = [word for word in words if word not in options]
    if "--plan" in options:
        _, words = cluster_plan.taken(words)
    if (words or not {"--list", "--help"} & set(options)) and not any(map(PLACEHOLDERS.search, words)):
        load(words)


def check_door(module: str, words: list[str]) -> None:
    if module.startswith(("trainer.", "data_pipelines.")) and not find_spec(module):
        raise ValueError(f"no module {module}")
    if not words:
        return
    if module == "trainer.main":
        check_main(words)
    elif module == "data_pipelines.shards":
        check_shards(words)
    elif module == "trainer.checkpoints" and "--help" not in words:
        checkpoints.parse(words)
    elif module == "trainer.tracking" and words[:1] not in (["sync"], ["--help"]):
        raise ValueError(f"{module} expects sync DIR")


def check_shards(words: list[str]) -> None:
    if "--help" in words or (words[:1] == ["verify"] and len(words) == 2):
        return
    if not words or not all("=" in word for word in words):
        raise ValueError("shards expects verify DIR, or key=value")
    source = shards._options(words)["source"]
    if source not in SOURCES and not PLACEHOLDERS.search(source):
        raise ValueError(f"no source {source}")


def check_console(words: list[str]) -> None:
    if not {"-h", "--help"} & set(words):
        cli.parse(words[:1])
        door, words = words[0], words[1:]
        if door in ("train", "print", "plan") and not words[0].startswith("launch/"):
            check_main([*words, "--plan"] if door == "plan" else words)
        elif door == "print":
            cli.launch_file(words)
        elif door == "check":
            if not any(map(PLACEHOLDERS.search, words)):
                job = submission.read(words)
                check_job(["sbatch", str(job.script), *job.words])
        elif door in ("shards", "checkpoints", "tracking"):
            check_door(f"data_pipelines.{door}" if door == "shards" else f"trainer.{door}", words)


def check_job(words: list[str]) -> None:
    """`sbatch OPTIONS SCRIPT WORDS`; of the options only the form is known here."""
    start = next((i for i, word in enumerate(words) if not word.startswith("-")), len(words))
    if start == len(words):
        raise ValueError("sbatch without a script")
    script, words = words[start], words[start + 1 :]
    words = words[script == "slurm/sweep.sh" :]  # its first word is a file
    if script in JOBS and not any(map(PLACEHOLDERS.search, words)):
        named = any(word.startswith("recipe=") for word in words)
        load(words if named else [f"recipe={JOBS[script]}", *words])


def check_options(script: str, words: list[str]) -> None:
    """A benchmark's options stand in its source; words `recipe=…` are a recipe's."""
    path = ROOT / script
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    for word in words:
        if word.startswith("--") and word.partition("=")[0] not in text:
            raise ValueError(f"{script} has no {word}")
    if any(word.startswith("recipe=") for word in words) and not any(map(PLACEHOLDERS.search, words)):
        load([word for word in words if re.match(r"[a-z][\w.]*=", word)])
