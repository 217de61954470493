"""Trees of sections and lists whose leaves are `SourcedValue`: laid on each other, searched, taken apart."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, overload

from data_pipelines.common.errors import UserError
from trainer.recipe.yaml12 import COMMAND_LINE, DEFAULT, Empty, SourcedValue, Tree


@overload
def merge(base: dict[str, Tree], over: dict[str, Tree], at: str = "") -> dict[str, Tree]: ...


@overload
def merge(base: Tree, over: Tree, at: str = "") -> Tree: ...


def merge(base: Tree, over: Tree, at: str = "") -> Tree:
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
                    f"{source_of(value).origin}: {at}{key}: the list {at[:-1]} has {len(items)} item(s), "
                    f"counted from 0; to lengthen it, give it whole"
                )
            items[int(key)] = merge(items[int(key)], value, f"{at}{key}.")
        return items
    return over


def rename(tree: dict[str, Tree], old: str, new: str) -> dict[str, Tree]:
    """The tree with the key `new` in place of `old` (both dotted), if it has that. Changes nothing in place.

    Raises:
        UserError: it has both.
    """
    value = _at(tree, old)
    if value is None:
        return tree
    if _at(tree, new) is not None:
        raise UserError(
            f"{source_of(value).where}: {old}: the old name of {new}, which is set as well; leave one out"
        )
    return merge(_without(tree, old), nested(new, value))


def nested(dotted: str, value: Tree) -> dict[str, Tree]:
    """The sections that hold a value at a dotted key, and nothing else."""
    first, *others = dotted.split(".")
    for name in reversed(others):
        value = {name: value}
    return {first: value}


def _at(tree: Tree | None, dotted: str) -> Tree | None:
    """What a tree of sections holds at a dotted key; None where it has no such key."""
    for name in dotted.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _without(tree: dict[str, Tree], dotted: str) -> dict[str, Tree]:
    name, _, rest = dotted.partition(".")
    section = tree.get(name)
    if rest and isinstance(section, dict):
        return tree | {name: _without(section, rest)}
    return {key: value for key, value in tree.items() if key != name}


def strip_origins(tree: Any) -> Any:
    """A tree with the bare values at its leaves."""
    if isinstance(tree, dict):
        return {key: strip_origins(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [strip_origins(item) for item in tree]
    return tree.value if isinstance(tree, SourcedValue) else tree


def flatten(tree: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of each leaf; a list of plain values is one leaf, a list of sections is not."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from flatten(value, f"{at}.{key}" if at else key)
    elif isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        for index, item in enumerate(tree):
            yield from flatten(item, f"{at}.{index}")
    else:
        yield at, tree


def first_source(tree: Tree | None) -> SourcedValue | None:
    """The leaf that stands for a tree's origin: one of the command line, else of a file, else a default."""
    leaves = list(_leaves(tree))
    ranks = {COMMAND_LINE: 0, DEFAULT: 2}
    return min(leaves, key=lambda leaf: ranks.get(leaf.origin, 1), default=None)


def source_of(tree: Tree) -> SourcedValue:
    """`first_source` of a tree that was written somewhere, and so has a leaf."""
    source = first_source(tree)
    assert source is not None
    return source


def _leaves(tree: Tree | None) -> Iterator[SourcedValue]:
    if isinstance(tree, SourcedValue | Empty):
        yield tree if isinstance(tree, SourcedValue) else tree.source
    for part in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _leaves(part)


def defaults(value: Any) -> Tree:
    """A plain value of the schema as a tree whose origin is "default"."""
    if isinstance(value, dict):
        return {key: defaults(part) for key, part in value.items()}
    if isinstance(value, list):
        return [defaults(part) for part in value]
    return SourcedValue(value, DEFAULT)


def origins(tree: Tree) -> dict[str, str]:
    """Dotted key -> origin of each leaf; a list of values from several places names them all."""
    return {
        key: ", ".join(dict.fromkeys(leaf.origin for leaf in _leaves(value))) for key, value in flatten(tree)
    }
