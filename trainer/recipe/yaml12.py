"""YAML 1.2 core in and out: text to a tree whose every leaf knows where it was written, and scalars back.

PyYAML reads YAML 1.1, where `1e-3` is text, `on` is true, `1:30` is ninety and `010` is eight. Here numbers,
booleans and nulls are those of the YAML 1.2 core schema (https://yaml.org/spec/1.2.2/, section 10.3.2).
"""

import itertools
import re
from dataclasses import dataclass, replace
from typing import Any

import yaml

from data_pipelines.common.errors import UserError

COMMAND_LINE, DEFAULT = "command line", "default"
MOST_VALUES = 10_000  # of a recipe, aliases written out: a few lines of them can stand for billions
LARGEST = 2**63  # of whole numbers: seeds and counts are of 64 bits
LONGEST_NUMBER = 400  # characters

NULL, BOOL, INT, FLOAT, STR = (
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str")
)
CORE = [  # tag, what it looks like, its first characters
    (NULL, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (BOOL, r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (INT, r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        FLOAT,
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
]


@dataclass(frozen=True)
class SourcedValue:
    """A value and its origin: a file's name, "command line" or "default".

    `raw` is the text it was written as; `was`, on a section's `kind`, the inherited kind that it replaces.
    """

    value: Any
    origin: str
    line: int | None = None
    raw: str | None = None
    was: Any = None

    @property
    def where(self) -> str:
        return self.origin if self.line is None else f"{self.origin}, line {self.line}"


class Empty(dict):
    """A section without keys. It has no leaf that knows its origin, so `source` does."""

    def __init__(self, source: SourcedValue):
        super().__init__()
        self.source = source


class CoreLoader(yaml.SafeLoader):
    """Reads the YAML 1.2 core schema and refuses tags."""

    yaml_implicit_resolvers = {}  # a new dictionary: without those of YAML 1.1

    def compose_node(self, parent, index):
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            name = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise yaml.MarkedYAMLError(problem=f"the tag {name} is refused", problem_mark=event.start_mark)
        return super().compose_node(parent, index)


class CoreDumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as a number: readers of both read it alike."""


for tag, pattern, first in CORE:
    regexp = re.compile(rf"^(?:{pattern})$")
    CoreLoader.add_implicit_resolver(tag, regexp, first)
    CoreDumper.add_implicit_resolver(tag, regexp, first)


def _represent_text(dumper, text: str):
    # Text of several lines is quoted, and so stays on one line.
    return dumper.represent_scalar(STR, text, style='"' if "\n" in text else None)


CoreDumper.add_representer(str, _represent_text)


def parse(text: str, origin: str, lines: bool = True):
    """YAML text -> dicts and lists with `SourcedValue` at the leaves, or None when the text holds nothing.

    Raises UserError for what is not YAML, and for tags, duplicate keys, an anchor inside itself, and what is
    too deep, too long or, its aliases written out, too large for a recipe.
    """
    try:
        loader = CoreLoader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        raise UserError(f"{origin}: not text: a character that YAML forbids at {error.position}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if lines and mark else ""
        raise UserError(f"{origin}{line}: not valid YAML: {error.problem or error.context}") from None
    except RecursionError:
        raise UserError(f"{origin}: not a recipe: lists or sections nested hundreds deep") from None
    return None if node is None else _tree(node, origin, lines, (), itertools.count(1))


def _tree(node, origin: str, lines: bool, above: tuple, counter: "itertools.count[int]"):
    if next(counter) > MOST_VALUES:
        raise UserError(f"{origin}: more than {MOST_VALUES:,} values, its aliases (*) written out")
    here = f"{origin}, line {node.start_mark.line + 1}" if lines else origin
    if node in above:
        raise UserError(
            f"{here}: this anchor contains itself; an alias (*) may not stand inside its own anchor (&)"
        )
    line = node.start_mark.line + 1 if lines else None
    if isinstance(node, yaml.SequenceNode) and not node.value:
        # A leaf, since an empty list has no items that carry their origin.
        return SourcedValue([], origin, line)
    if isinstance(node, yaml.MappingNode) and not node.value:
        return Empty(SourcedValue({}, origin, line))
    if isinstance(node, yaml.ScalarNode):
        if node.tag in (INT, FLOAT) and len(node.value) > LONGEST_NUMBER:
            raise UserError(f"{here}: a number of {len(node.value):,} characters")
        value = _scalar(node.tag, node.value)
        if node.tag == INT and abs(value) >= LARGEST:
            raise UserError(
                f"{here}: {node.value} is too large; whole numbers are below 2 to the power of 63"
            )
        return SourcedValue(value, origin, line, node.value)
    above = (*above, node)
    if isinstance(node, yaml.SequenceNode):
        return [_tree(item, origin, lines, above, counter) for item in node.value]
    section = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{here}: a key must be one word, not a list or a section")
        if key.value in section:
            line = f", line {key.start_mark.line + 1}" if lines else ""
            raise UserError(f"{origin}{line}: duplicate key '{key.value}'; give it once in a section")
        section[key.value] = _tree(value, origin, lines, above, counter)
    return section


def _scalar(tag: str, text: str):
    if tag == NULL:
        return None
    if tag == BOOL:
        return text.lower() == "true"
    if tag == INT:
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text if base == 10 else text[2:], base)
    if tag == FLOAT:
        return float(text.replace(".", "", 1) if text[-1] in "fFnN" else text)  # .inf, .nan
    return text


def to_yaml_line(value) -> str:
    """A plain value as one line of YAML that `parse` reads back equal."""
    wrapped = [value]  # inside a list, a plain scalar needs no document end mark
    return yaml.dump(wrapped, Dumper=CoreDumper, default_flow_style=True, width=10**9, allow_unicode=True)[
        1:-2
    ]


# ---- trees whose leaves are SourcedValue -----------------------------------------------------------


def merge(base, over, at: str = ""):
    """The tree `over` laid on the tree `base`, by the rule of `trainer.recipe.loading`. Changes neither."""
    if isinstance(base, dict) and isinstance(over, dict):
        old, new = base.get("kind"), over.get("kind")
        if isinstance(old, SourcedValue) and isinstance(new, SourcedValue) and old.value != new.value:
            was = None if old.origin == DEFAULT else old.value
            base, over = {}, over | {"kind": replace(new, was=was)}
        merged = {key: merge(base[key], value, f"{at}{key}.") for key, value in over.items() if key in base}
        return base | over | merged
    if isinstance(base, list) and isinstance(over, dict) and over and all(key.isdecimal() for key in over):
        items = list(base)
        for key, value in over.items():
            if int(key) >= len(items):
                raise UserError(
                    f"{first_source(value).origin}: {at}{key}: the list {at[:-1]} has {len(items)} item(s), "
                    f"counted from 0; to lengthen it, give it whole"
                )
            items[int(key)] = merge(items[int(key)], value, f"{at}{key}.")
        return items
    return over


def rename(tree: dict, old: str, new: str) -> dict:
    """The tree with the key `new` in place of `old` (both dotted), if it has that. Changes nothing in place.

    Raises:
        UserError: it has both.
    """
    value = _at(tree, old)
    if value is None:
        return tree
    if _at(tree, new) is not None:
        raise UserError(
            f"{first_source(value).where}: {old}: the old name of {new}, which is set as well; leave one out"
        )
    for name in reversed(new.split(".")):
        value = {name: value}
    return merge(_without(tree, old), value)


def _at(tree, dotted: str):
    """What a tree of sections holds at a dotted key; None where it has no such key."""
    for name in dotted.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _without(tree: dict, dotted: str) -> dict:
    name, _, rest = dotted.partition(".")
    if not rest:
        return {key: value for key, value in tree.items() if key != name}
    return tree | {name: _without(tree[name], rest)}


def strip_origins(tree):
    """A tree with the bare values at its leaves."""
    if isinstance(tree, dict):
        return {key: strip_origins(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [strip_origins(item) for item in tree]
    return tree.value if isinstance(tree, SourcedValue) else tree


def flatten(tree, at: str = ""):
    """Dotted key and value of each leaf; a list of plain values is one leaf, a list of sections is not."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from flatten(value, f"{at}.{key}" if at else key)
    elif isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        for index, item in enumerate(tree):
            yield from flatten(item, f"{at}.{index}")
    else:
        yield at, tree


def first_source(tree) -> SourcedValue | None:
    """The leaf that stands for a tree's origin: one of the command line, else of a file, else a default."""
    leaves = list(_leaves(tree))
    ranks = {COMMAND_LINE: 0, DEFAULT: 2}
    return min(leaves, key=lambda leaf: ranks.get(leaf.origin, 1), default=None)


def _leaves(tree):
    if isinstance(tree, SourcedValue | Empty):
        yield tree if isinstance(tree, SourcedValue) else tree.source
    for part in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _leaves(part)


def defaults(value):
    """A plain value of the schema as a tree whose origin is "default"."""
    if isinstance(value, dict):
        return {key: defaults(part) for key, part in value.items()}
    if isinstance(value, list):
        return [defaults(part) for part in value]
    return SourcedValue(value, DEFAULT)


def origins(tree) -> dict[str, str]:
    """Dotted key -> origin of each leaf; a list of values from several places names them all."""
    return {
        key: ", ".join(dict.fromkeys(leaf.origin for leaf in _leaves(value))) for key, value in flatten(tree)
    }
