"""The recipe's schema in plain words: what a key expects, and which key, name or choice was meant."""

import types
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from data_pipelines.common.suggest import closest, likeness
from trainer.recipe.yaml12 import to_yaml_line

Sections: TypeAlias = tuple[type[BaseModel], ...]


@dataclass(frozen=True)
class Expected:
    """What the schema expects at a key: a type, without Annotated and `| None`, its rules, its default."""

    type: Any
    rules: dict = field(default_factory=dict)  # gt, ge, lt, le, min_length, max_length, pattern, wording
    nullable: bool = False
    default: Any = ...  # ... : the key is required

    @property
    def sections(self) -> Sections:
        """The section classes that may stand here: one, or the members of a tagged union; else none."""
        members = get_args(self.type) if _is_union(self.type) else (self.type,)
        return (
            members
            if all(isinstance(member, type) and issubclass(member, BaseModel) for member in members)
            else ()
        )

    @property
    def item(self) -> "Expected | None":
        """What a list's items are expected to be; None where no list is expected."""
        return expected(get_args(self.type)[0]) if get_origin(self.type) is list else None

    @property
    def options(self) -> tuple:
        """The choices, where the schema names them."""
        members = get_args(self.type) if _is_union(self.type) else (self.type,)
        return tuple(c for member in members if get_origin(member) is Literal for c in get_args(member))

    def words(self, many: bool = False) -> str:
        """In plain words, such as "a whole number above 0, or null"; `many` names several of them."""
        text = self.rules.get("wording") or self._words(many)
        return f"{text}, or null" if self.nullable else text

    def _words(self, many: bool) -> str:
        rules = self.rules
        if self.item:
            low, high = rules.get("min_length", 0), rules.get("max_length")
            count = (
                f"{low}"
                if low == high
                else f"{low} to {high}"
                if high
                else "one or more"
                if low
                else "any number of"
            )
            return f"a list of {count} {self.item.words(many=True)}"
        if self.sections:
            keys = [name for section in self.sections for name in fields(section)]
            return "sections" if many else f"a section with keys {', '.join(dict.fromkeys(keys))}"
        if _is_union(self.type):
            return either([expected(member).words(many) for member in get_args(self.type)])
        if self.options:
            return either([shown(choice) for choice in self.options])
        name = {int: "whole number", float: "number", bool: "true or false", str: "text"}[self.type]
        if self.type in (int, float):
            name = f"{name}s" if many else f"a {name}"
        if "gt" in rules:
            name += f" above {rules['gt']}" + (f" and below {rules['lt']}" if "lt" in rules else "")
        if "ge" in rules:
            bound = "le" if "le" in rules else "lt"
            upper = {"le": "to", "lt": "to below"}[bound]
            name += (
                f" from {rules['ge']} {upper} {rules[bound]}"
                if bound in rules
                else f" of at least {rules['ge']}"
            )
        return name + (", not empty" if self.type is str and rules.get("min_length") else "")


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def expected(annotation: Any, info: FieldInfo | None = None) -> Expected:
    """The annotation of a key, or of a list's items, with the rules attached to it at any depth."""
    rules: dict[str, Any] = {}
    nullable = False
    _collect(info, rules)
    while True:
        if get_origin(annotation) is Annotated:
            for extra in annotation.__metadata__:
                _collect(extra, rules)
            annotation = annotation.__origin__
        elif _is_union(annotation) and type(None) in get_args(annotation):
            nullable = True
            annotation = Union[tuple(part for part in get_args(annotation) if part is not type(None))]  # noqa: UP007
        else:
            break
    default = ... if info is None or info.is_required() else info.get_default(call_default_factory=True)
    return Expected(annotation, rules, nullable, default)


def _collect(extra: object, rules: dict[str, Any]) -> None:
    if isinstance(extra, FieldInfo):
        for inner in extra.metadata:
            _collect(inner, rules)
    for name in ("gt", "ge", "lt", "le", "min_length", "max_length", "pattern", "wording"):
        value = getattr(extra, name, None)
        if value is not None:
            rules.setdefault(name, value)


@cache
def fields(section: type[BaseModel]) -> dict[str, Expected]:
    """The keys of a section class as a recipe writes them (`from`, not `from_`)."""
    return {
        info.alias or name: expected(info.annotation, info) for name, info in section.model_fields.items()
    }


def tag(sections: Sections) -> str | None:
    """The key that distinguishes the members of a tagged union: `task` of recipes, `kind` of sections."""
    return next(
        (name for name in ("task", "kind") if len(sections) > 1 and name in fields(sections[0])), None
    )


def choices(sections: Sections) -> dict[str, type[BaseModel]]:
    """The tag's choices, each with its section class; none where it is no tagged union."""
    name = tag(sections)
    return {choice: one for one in sections for choice in fields(one)[name].options} if name else {}


@cache
def paths(sections: Sections, at: str = "") -> list[str]:
    """Every dotted key of these sections; of a list of sections the keys of its first item."""
    dotted = []
    for section in sections:
        for name, what in fields(section).items():
            dotted.append(at + name)
            item = what.item
            dotted += paths(item.sections, f"{at}{name}.0.") if item else paths(what.sections, f"{at}{name}.")
    return list(dict.fromkeys(dotted))


def either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def shown(value: object, limit: int = 60) -> str:
    """A value as it is shown in a message: text in quotes, anything long cut."""
    text = repr(value) if isinstance(value, str) else to_yaml_line(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


# ---- what was probably meant -----------------------------------------------------------------------


def meant_key(key: str, siblings: list[str], everywhere: list[str]) -> str | None:
    """The key that an unknown one probably means: of the same section by name, or another by its path."""
    sibling = closest(key, siblings)
    if sibling and likeness(key, sibling) >= 0.8:
        return sibling
    exact = [path for path in everywhere if path.rpartition(".")[2] == key]
    if exact:
        return min(exact, key=lambda path: path.count("."))
    if sibling:
        return sibling
    elsewhere = closest(key, [path.rpartition(".")[2] for path in everywhere], cutoff=0.75)
    return next((path for path in everywhere if path.rpartition(".")[2] == elsewhere), None)
