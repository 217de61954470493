"""YAML 1.2 core in and out: text to a tree whose every leaf knows where it was written, and scalars back.

PyYAML reads YAML 1.1, where `1e-3` is text, `on` is true, `1:30` is ninety and `010` is eight. Here numbers,
booleans and nulls are those of the YAML 1.2 core schema (https://yaml.org/spec/1.2.2/, section 10.3.2).
"""

import itertools
import re
from dataclasses import dataclass
from typing import Any, TypeAlias

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


Tree: TypeAlias = SourcedValue | dict[str, "Tree"] | list["Tree"]


class Empty(dict[str, "Tree"]):
    """A section without keys. It has no leaf that knows its origin, so `source` does."""

    def __init__(self, source: SourcedValue):
        super().__init__()
        self.source = source


class CoreLoader(yaml.SafeLoader):
    """Reads the YAML 1.2 core schema and refuses tags."""

    yaml_implicit_resolvers = {}  # a new dictionary: without those of YAML 1.1

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
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


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Text of several lines is quoted, and so stays on one line.
    return dumper.represent_scalar(STR, text, style='"' if "\n" in text else None)


CoreDumper.add_representer(str, _represent_text)


def parse(text: str, origin: str, lines: bool = True) -> Tree | None:
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


def _tree(
    node: yaml.Node, origin: str, lines: bool, above: tuple[yaml.Node, ...], counter: "itertools.count[int]"
) -> Tree:
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
    section: dict[str, Tree] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{here}: a key must be one word, not a list or a section")
        if key.value in section:
            line = f", line {key.start_mark.line + 1}" if lines else ""
            raise UserError(f"{origin}{line}: duplicate key '{key.value}'; give it once in a section")
        section[key.value] = _tree(value, origin, lines, above, counter)
    return section


def _scalar(tag: str, text: str) -> Any:
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


def to_yaml_line(value: object) -> str:
    """A plain value as one line of YAML that `parse` reads back equal."""
    wrapped = [value]  # inside a list, a plain scalar needs no document end mark
    return yaml.dump(wrapped, Dumper=CoreDumper, default_flow_style=True, width=10**9, allow_unicode=True)[
        1:-2
    ]
