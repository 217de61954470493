"""A recipe's tree against the schema: complete with defaults, valid, or one line that says what to mend."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from data_pipelines.common.errors import UserError
from data_pipelines.common.suggest import closest, did_you_mean
from trainer.recipe.messages import (
    Expected,
    Sections,
    choices,
    either,
    expected,
    fields,
    meant_key,
    paths,
    shown,
    tag,
)
from trainer.recipe.optimizers import MissingKey
from trainer.recipe.recipes import AnyTask, Recipe
from trainer.recipe.trees import defaults, first_source, merge, origins, strip_origins
from trainer.recipe.yaml12 import COMMAND_LINE, DEFAULT, LARGEST, SourcedValue, Tree, parse, to_yaml_line

RECIPE = expected(Recipe)


def check(tree: dict, file: str) -> tuple[AnyTask, dict[str, str]]:
    """A merged tree, read from `file` and the command line -> the recipe and the origin of each dotted key.

    Raises UserError with the first mistake and the number of the others. Unknown keys come first, because
    they explain missing ones.
    """
    return _Check(file).run(tree)


class _Check:
    def __init__(self, file: str):
        self.file = file
        self.structure: list[str] = []  # unknown keys, unknown kinds
        self.values: list[str] = []
        self.meant: set[str] = set()  # keys that misspelt ones probably mean: not reported as missing too
        self.everywhere = paths(RECIPE.sections)

    def run(self, tree: dict[str, Tree]) -> tuple[AnyTask, dict[str, str]]:
        recipe: Any = None
        complete: Tree = tree
        section = self._member(RECIPE.sections, tree, "")
        if section:
            self.everywhere = paths((section,))
            complete = self._complete(Expected(section), tree, "")
            try:
                recipe = section.model_validate(strip_origins(complete))
            except ValidationError as error:
                for mistake in error.errors(include_url=False):
                    if mistake["type"] != "value_error" or not self.structure:  # an unknown key explains it
                        self._translate(mistake, section, complete)
        mistakes = list(dict.fromkeys(" ".join(text.split()) for text in self.structure + self.values))
        if mistakes:
            more = len(mistakes) - 1
            raise UserError(mistakes[0] + (f" (and {more} more mistake{'s' * (more > 1)})" if more else ""))
        return recipe, origins(complete)

    # -- structure: which keys, which kinds, defaults

    def _complete(self, what: Expected, tree: Tree, at: str) -> Tree:
        """The tree without unknown keys and with every default; `at` ends in a dot, or is empty."""
        if what.item and isinstance(tree, list):
            return [self._complete(what.item, item, f"{at}{index}.") for index, item in enumerate(tree)]
        if what.sections and isinstance(tree, dict):
            section = self._member(what.sections, tree, at)
            if section is None:
                return tree
            known, name = fields(section), tag(what.sections)
            unknown = [key for key in tree if key not in known]
            # a misspelt `kind` explains the keys that came with it
            for key in [
                key for key in unknown if name and meant_key(key, list(known), []) == name
            ] or unknown:
                self._unknown(key, tree[key], section, what.sections, at)
            return {
                key: self._complete(child, _with_default(child, tree.get(key), f"{at}{key}."), f"{at}{key}.")
                for key, child in known.items()
                if key in tree or child.default is not ...
            }
        if isinstance(tree, SourcedValue) and isinstance(tree.value, float):
            if what.type is int and tree.value.is_integer() and abs(tree.value) < LARGEST:
                return replace(tree, value=int(tree.value))  # 5e7 images are as whole as 50000000
            if what.type is float and not math.isfinite(tree.value):  # pydantic accepts them
                self.values.append(f"{tree.where}: {at[:-1]}: expected {what.words()}, got {tree.raw}")
        return tree

    def _member(self, sections: Sections, tree: dict[str, Tree], at: str) -> type[BaseModel] | None:
        """The member of a tagged union that a section's `kind` (a recipe's `task`) chooses, if it does."""
        name = tag(sections)
        if name is None:
            return sections[0]
        options, choice = choices(sections), tree.get(name)
        if isinstance(choice, SourcedValue) and choice.value in options:
            return options[choice.value]
        words = either([f"'{option}'" for option in options])
        if choice is not None:
            got = shown(strip_origins(choice))
            near = did_you_mean(closest(strip_origins(choice), options))
            self.structure.append(f"{self._where(choice)}: {at}{name}: expected {words}, got {got}{near}")
            return None
        known = [key for section in sections for key in fields(section)]
        for key in tree:
            if key not in known:
                self._unknown(key, tree[key], None, sections, at)
        if not self.meant & {f"{at}{name}", "base"}:
            self.structure.append(f"{self.file}: {at}{name}: missing, expected {words}")
        return None

    def _unknown(
        self, key: str, node: Tree, section: type[BaseModel] | None, sections: Sections, at: str
    ) -> None:
        """`section` is the member of `sections` that holds the key, None where that is not known."""
        candidates = (section,) if section else sections
        siblings = list(dict.fromkeys(key for one in candidates for key in fields(one)))
        where, source = self._where(node), first_source(node)
        if not at:
            siblings.append("recipe" if source and source.origin == COMMAND_LINE else "base")
        tagged = choices(sections) if section and tag(sections) else {}
        kinds = [option for option, one in tagged.items() if key in fields(one)]
        meant = meant_key(key, siblings, self.everywhere)
        if kinds:
            hint = f"; it belongs to {at}{tag(sections)} {either(kinds)}"
        elif meant:
            self.meant.add(at + meant)
            hint = did_you_mean(meant)
        else:
            hint = f"; expected {either(siblings)}"
        self.structure.append(f"{where}: {at}{key}: unknown key{hint}")

    # -- values: pydantic finds what is wrong, the schema says what is right

    def _translate(self, error: ErrorDetails, section: type[BaseModel], tree: Tree) -> None:
        if error["type"].startswith("union_tag"):
            return  # reported by _member
        dotted, what, node, holder, what_holds = _locate(error["loc"], section, tree)
        if error["type"] == "missing":
            if not self.meant & {dotted, "base"} and not _kind_is_wrong(what_holds, holder):
                place = self.file if holder is tree else self._where(first_source(holder), line=False)
                why = _dropped(holder, dotted)
                self.values.append(f"{place}: {dotted}: missing, expected {what.words()}{why}")
        elif error["type"] == "value_error":
            name, what = f"{dotted}: " if dotted else "", error["ctx"]["error"]
            why = _dropped(node, f"{dotted}.") if isinstance(what, MissingKey) else ""
            self.values.append(f"{self._where(node)}: {name}{what}{why}")
        else:
            raw = node.raw if isinstance(node, SourcedValue) and not isinstance(node.value, str) else None
            got = raw or shown(strip_origins(node))
            hint = _hint(what, node, dotted)
            self.values.append(f"{self._where(node)}: {dotted}: expected {what.words()}, got {got}{hint}")

    def _where(self, node: Tree | None, line: bool = True) -> str:
        """File and line of a value; the file of a section; the recipe's file for defaults."""
        source = first_source(node)
        if source is None or source.origin == DEFAULT:
            return self.file
        return source.where if line and not isinstance(node, dict) else source.origin


def _with_default(child: Expected, node: Tree | None, at: str) -> Tree:
    """A key's node, or None, laid on the schema's default as on a base recipe; one of the two is there."""
    if child.default is ...:
        assert node is not None
        return node
    default = child.default
    if child.sections and default is not None:
        default = default.model_dump(by_alias=True)
    elif child.item and default is not None:
        default = [item.model_dump(by_alias=True) if child.item.sections else item for item in default]
    return defaults(default) if node is None else merge(defaults(default), node, at)


class Located(NamedTuple):
    """A key of a recipe: its dotted name, what is expected and what is there, and the same of its section."""

    dotted: str
    what: Expected
    node: Tree | None
    holder: Tree | None
    what_holds: Expected


def _locate(loc: tuple[int | str, ...], section: type[BaseModel], tree: Tree) -> Located:
    """The key that pydantic's location names."""
    node: Tree | None = tree
    what, names = Expected(section), []
    holder, what_holds = node, what
    for step in loc:
        # pydantic names the member of a union, which is no key of the recipe
        if isinstance(step, str) and tag(what.sections):
            what = Expected(choices(what.sections)[step])
            continue
        if isinstance(step, str) and not what.sections:  # a number or a word: pydantic names each in turn
            continue
        holder, what_holds = node, what
        if isinstance(step, int):
            assert what.item is not None and isinstance(node, list)  # noqa: PT018
            what, node = what.item, node[step]
        else:
            assert isinstance(node, dict)
            what, node = fields(what.sections[0])[step], node.get(step)
        names.append(str(step))
    return Located(".".join(names), what, node, holder, what_holds)


def _kind_is_wrong(what: Expected, section: Tree | None) -> bool:
    """Whether a section's `kind` is no choice: then keys that it dropped are not reported as missing too."""
    kind = section.get("kind") if isinstance(section, dict) else None
    return kind is not None and strip_origins(kind) not in fields(what.sections[0])["kind"].options


def _dropped(section: Tree | None, dotted: str) -> str:
    kind = section.get("kind") if isinstance(section, dict) else None
    if not isinstance(kind, SourcedValue) or kind.was is None:
        return ""
    parent = dotted.rpartition(".")[0]
    return f" ({parent}.kind went from {kind.was} to {kind.value}, which drops the keys it inherited)"


def _hint(what: Expected, node: Tree | None, dotted: str) -> str:
    """How the value was probably meant."""
    if what.item and what.item.sections and isinstance(node, dict):
        return f"; give a list, or address an item as {dotted}.0"
    if not isinstance(node, SourcedValue) or node.value is None:
        return ""
    if what.type is str and not isinstance(node.value, str):
        line = f"'{dotted}=\"{node.raw}\"'" if node.origin == COMMAND_LINE else f'"{node.raw}"'
        return f"; text that looks like a number or a word of YAML is quoted: {line}"
    if not isinstance(node.value, str):
        return ""
    if what.type in (int, float):
        number = _number(node.value)
        return f"; write {number}" if number else ""
    return did_you_mean(closest(node.value, what.options))


def _number(text: str) -> str | None:
    """`50_000`, `50,000` and the quoted `"50000"` -> `50000`; None for what is no number."""
    try:
        leaf = parse(text.strip().replace("_", "").replace(",", ""), "", lines=False)
    except UserError:
        return None
    if not isinstance(leaf, SourcedValue) or type(leaf.value) not in (int, float):
        return None
    return to_yaml_line(leaf.value)
