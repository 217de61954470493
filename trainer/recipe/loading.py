"""Recipes from YAML files and the command line: inherit, override, validate, and say where values came from.

One rule merges everything, from the bottom up: the schema's defaults, the chain of `base` recipes, the
recipe, the command line. Sections merge key by key, lists replace, and where a section's `kind` changes, the
keys that it inherited are dropped. Laid on a list, a section keyed by numbers changes those items
(`data.views.0.flip`). Before that, in each file and on the command line, old names of keys become those of
today.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from data_pipelines.common.errors import UserError
from data_pipelines.common.home import expand_home
from data_pipelines.common.suggest import closest, did_you_mean
from trainer.recipe.checking import check
from trainer.recipe.fingerprint import fingerprint
from trainer.recipe.messages import shown
from trainer.recipe.recipes import AnyTask, AnyTraining
from trainer.recipe.trees import merge, nested, rename, source_of, strip_origins
from trainer.recipe.yaml12 import COMMAND_LINE, SourcedValue, Tree, parse, to_yaml_line

CHECKOUT = Path(__file__).resolve().parents[2]
INSTALLED = CHECKOUT / "trainer" / "_recipes"  # setup.py installs recipes/ there; no checkout has it
RECIPES = INSTALLED if INSTALLED.is_dir() else CHECKOUT / "recipes"
LONGEST_CHAIN = 50  # recipes, each the base of the one before

# Names that keys had before -> their names now. Either is valid, in every file and on the command line.
OLD_NAMES = {"data.patience": "data.retry_seconds"}


Recipe = TypeVar("Recipe", bound=AnyTask, covariant=True)


@dataclass(frozen=True)
class ResolvedRecipe(Generic[Recipe]):
    """A valid recipe, its file's name, and for each dotted key a file's name, "command line" or "default".

    commands: whether `--allow-commands` was given, which no recipe can say: `data.root` may start programs.
    notices: a line for each old name of a key in the recipe's files or on the command line.
    """

    recipe: Recipe
    name: str
    origin: dict[str, str]
    commands: bool = False
    notices: tuple[str, ...] = ()

    def resolved(self) -> dict:
        """The recipe as plain nested values, in the schema's order, every default filled in."""
        return self.recipe.model_dump(by_alias=True)

    def text(self) -> str:
        """The resolved recipe as YAML, each value's origin beside it. `load_saved` reads it back equal."""
        lines = list(_lines(self.resolved(), "", 0, self.origin))
        width = max(len(line) for line, origin in lines if origin)
        body = [f"{line:<{width}}  # {origin}" if origin else line for line, origin in lines]
        return "\n".join([f"# {self.name}, resolved: every value, and where it came from", *body, ""])

    def fingerprint(self) -> dict[str, Any]:
        """The values, by dotted key, that must be the same when a run is resumed."""
        return fingerprint(self.resolved())


class Listed(NamedTuple):
    """A recipe as `--list` shows it."""

    name: str
    task: str
    description: str


def load(arguments: list[str]) -> ResolvedRecipe[AnyTask]:
    """`["recipe=dim_local", "optimizer.lr=3e-4", ...]` -> the recipe, validated.

    `recipe` is a name in `recipes/` or a path to a .yaml file; values are YAML (`schedule={kind: cosine}`).
    Raises UserError, one line, for anything that the user can mend.
    """
    notices: list[str] = []
    path, overrides = _command_line(arguments, notices)
    return _loaded(path, overrides, notices)


def load_saved(path: str | Path) -> ResolvedRecipe[AnyTask]:
    """The recipe.yaml of a run's folder. Raises UserError, with its path, as `load` does."""
    try:
        return replace(_loaded(Path(path), {}, []), notices=())  # a run of an older version keeps its names
    except UserError as error:
        message = str(error) if str(path) in str(error) else f"{path}: {error}"
        raise UserError(
            f"{message} (the run wrote it otherwise; mend it, or remove the run's folder)"
        ) from None


def saved_training(path: str | Path) -> AnyTraining:
    """The recipe of a run's recipe.yaml, as `load_saved`; a UserError where that is of no run that trains."""
    recipe = load_saved(path).recipe
    if not recipe.trains:
        raise UserError(
            f"{path}: task: expected a recipe that trains, got {recipe.task} (the run wrote it otherwise; "
            "mend it, or remove the run's folder)"
        )
    return recipe


def listing() -> list[Listed]:
    """Every recipe of `recipes/`; an unreadable one has the error as its description."""
    recipes = []
    for path in sorted(RECIPES.glob("*.yaml")):
        try:
            first = path.read_text(encoding="utf-8").partition("\n")[0]
            description = first.lstrip("# ") if first.startswith("#") else ""
            task = strip_origins(_inherited(path, []).get("task", "?"))
            recipes.append(Listed(path.stem, str(task), description))
        except (UserError, OSError, UnicodeDecodeError) as error:
            recipes.append(Listed(path.stem, "?", f"cannot be read: {error}"))
    return recipes


def _loaded(path: Path, overrides: dict[str, Tree], notices: list[str]) -> ResolvedRecipe[AnyTask]:
    recipe, origin = check(merge(_inherited(path, notices), overrides), path.name)
    return ResolvedRecipe(recipe, path.stem, origin, notices=tuple(notices))


def _lines(
    section: dict[str, Any], at: str, indent: int, origin: dict[str, str]
) -> Iterator[tuple[str, str | None]]:
    """A section as lines of YAML, each with the origin of its value (None where it only opens a section)."""
    for key, value in section.items():
        pad, dotted = " " * indent, f"{at}{key}"
        if isinstance(value, dict):
            yield f"{pad}{key}:", None
            yield from _lines(value, f"{dotted}.", indent + 2, origin)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield f"{pad}{key}:", None
            for index, item in enumerate(value):
                (first, where), *rest = _lines(item, f"{dotted}.{index}.", indent + 4, origin)
                yield f"{pad}  - {first.lstrip()}", where
                yield from rest
        else:
            yield f"{pad}{key}: {to_yaml_line(value)}", origin[dotted]


# ---- from arguments and files to one tree ----------------------------------------------------------


def _command_line(arguments: list[str], notices: list[str]) -> tuple[Path, dict[str, Tree]]:
    """Arguments -> the recipe's file and one tree of overrides; of a key given twice, the last stands."""
    path: Path | None = None
    overrides: dict[str, Tree] = {}
    for argument in arguments:
        dotted, equals, text = argument.partition("=")
        if not equals or not all(dotted.split(".")):
            recipe = argument if argument in _names() else closest(argument, _names(), cutoff=0.8)
            hint = did_you_mean(recipe and f"recipe={recipe}")
            raise UserError(
                f"{COMMAND_LINE}: expected key=value, such as optimizer.lr=3e-4, got '{argument}'{hint}"
            )
        if dotted == "recipe":
            path = _find(text, Path(), COMMAND_LINE)
            continue
        overrides = merge(overrides, nested(dotted, _value(dotted, text)))
    if path is None:
        near = did_you_mean("recipe" if any(closest(key, ["recipe"]) for key in overrides) else None)
        raise UserError(
            f"{COMMAND_LINE}: no recipe given; expected recipe=NAME, such as recipe=quickstart, one of the "
            f"{len(_names())} that --list prints{near}"
        )
    return path, _with_names_of_today(overrides, notices)


def _value(dotted: str, text: str) -> Tree:
    try:
        value = parse(text, COMMAND_LINE, lines=False)
    except UserError as error:
        advice = "; text with special characters goes in quotes" if "not valid YAML" in str(error) else ""
        raise UserError(f"{error}, in '{dotted}={text}'{advice}") from None
    if value is None:
        raise UserError(f"{COMMAND_LINE}: {dotted}: expected a value after '='; null says that there is none")
    return value


def _names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def _find(name: str, folder: Path, where: str) -> Path:
    """A recipe's name, or its path from `folder` when it ends in .yaml -> its file."""
    is_path = name.endswith(".yaml")
    try:
        name = expand_home(name) if is_path else name
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    if is_path and os.path.exists(folder / name):  # False, too, for one in a folder that is closed to us
        if not Path(name).stem.strip("."):
            raise UserError(f"{where}: '{name}': a recipe's file needs a name, which its runs bear")
        return folder / name
    if not is_path and name in _names():
        return RECIPES / f"{name}.yaml"
    what = f"no file '{folder / name}'" if is_path else f"unknown recipe '{name}'"
    hint = did_you_mean(closest(Path(name).stem, _names()))
    expected = f"; expected one of the {len(_names())} that --list prints, or a path to a .yaml file"
    raise UserError(f"{where}: {what}{hint or expected}")


def _inherited(path: Path, notices: list[str], chain: tuple[Path, ...] = ()) -> dict[str, Tree]:
    """A recipe's file merged onto the chain of its bases; old names of keys are added to `notices`."""
    path = path.resolve()
    if path in chain:
        names = [one.name for one in (*chain[chain.index(path) :], path)]
        raise UserError(
            f"{path.name}: base: these recipes inherit from each other in a circle: {' -> '.join(names)}"
        )
    if len(chain) == LONGEST_CHAIN:
        raise UserError(f"{path.name}: base: more than {LONGEST_CHAIN} recipes inherit from each other")
    try:
        tree = parse(path.read_text(encoding="utf-8"), path.name)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not text in UTF-8; expected a recipe in YAML") from None
    if not isinstance(tree, dict):
        raise UserError(
            f"{path.name}: expected a recipe, lines of key: value, got {shown(strip_origins(tree))}"
        )
    tree = _with_names_of_today(tree, notices)
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, SourcedValue) or not isinstance(base.value, str):
        where = base.where if isinstance(base, SourcedValue) else path.name
        raise UserError(f"{where}: base: expected the name of a recipe, got {shown(strip_origins(base))}")
    below = _find(base.value, path.parent, f"{base.where}: base")
    return merge(_inherited(below, notices, (*chain, path)), tree)


def _with_names_of_today(tree: dict[str, Tree], notices: list[str]) -> dict[str, Tree]:
    """The tree of one file, or of the command line, without old names of keys, which go into `notices`."""
    for old, new in OLD_NAMES.items():
        renamed = rename(tree, old, new)
        if renamed is not tree:
            notices.append(f"{source_of(renamed).origin}: {old} is {new} now")
        tree = renamed
    return tree
