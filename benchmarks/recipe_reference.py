"""Writes the table of recipes and the reference of keys in recipes/README.md.

python benchmarks/recipe_reference.py            rewrites both, from recipes/*.yaml and the schema
python benchmarks/recipe_reference.py --check    prints the lines that differ; status 1 if there are any
"""

import difflib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from inspect import getdoc
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from data_pipelines.common.section import Section
from trainer.recipe.fingerprint import may_change
from trainer.recipe.generation import Generation
from trainer.recipe.loading import RECIPES, Listed, listing, load
from trainer.recipe.messages import Expected, fields, tag
from trainer.recipe.recipes import TASKS, AnyTask
from trainer.recipe.yaml12 import parse, to_yaml_line

README = ROOT / "recipes" / "README.md"
GROUPS = (
    *("Quickstart", "Deep InfoMax", "MoCo-v2 and SimCLR", "The hybrid and its controls"),
    *("Diffusion", "Evaluation and samples"),
)
COLUMNS = ("recipe", "data set", "px", "encoder", "objective", "batch", "images", "what")
RIGHT = {"px", "batch", "images", "default"}  # columns of numbers
IMAGES_MAY_CHANGE = "while `schedule.kind` is `constant`"


def pages() -> dict[str, str]:
    """What stands between the marks of each name in the README."""
    return {"recipes": recipe_tables(), "keys": key_reference()}


# ---- the table of recipes --------------------------------------------------------------------------


def recipe_tables() -> str:
    """A table for each group of recipes, `_small` ones behind those that they are the twins of."""
    groups: dict[str, list[Listed]] = {group: [] for group in GROUPS}
    for listed in sorted(listing(), key=_roots_first):
        groups[group_of(listed)].append(listed)
    return "\n\n".join(f"### {group}\n\n{recipe_table(recipes)}" for group, recipes in groups.items())


def _roots_first(listed: Listed) -> tuple[bool, str, bool]:
    """Recipes without a base come first, twins behind those that they are the twins of."""
    name = twin_of(listed.name)
    inherits = "base" in parse((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"), name)
    return inherits, listed.name.removesuffix("_small"), listed.name.endswith("_small")


def twin_of(name: str) -> str:
    """`dim_local_small` -> `dim_local`; the name itself where there is no such recipe."""
    large = name.removesuffix("_small")
    return large if (RECIPES / f"{large}.yaml").exists() else name


@cache
def recipe_of(listed: Listed) -> AnyTask:
    return load([f"recipe={listed.name}"]).recipe


def group_of(listed: Listed) -> str:
    recipe = recipe_of(listed)
    if listed.name.startswith("quickstart"):
        return "Quickstart"
    if not recipe.trains or recipe.task == "diffuse":
        return "Diffusion" if recipe.trains else "Evaluation and samples"
    if recipe.encoder.decodes or listed.name.startswith("contrastive_"):
        return "The hybrid and its controls"
    return "Deep InfoMax" if recipe.objective.kind == "dim" else "MoCo-v2 and SimCLR"


def recipe_table(recipes: list[Listed]) -> str:
    rows = {listed.name: cells(listed) for listed in recipes}
    for name, row in rows.items():  # a twin's row says what differs
        if twin_of(name) != name:
            large = rows[twin_of(name)]
            rows[name] = {column: "" if text == large[column] else text for column, text in row.items()}
    columns = [column for column in COLUMNS if any(row[column] for row in rows.values())]
    return table(columns, [[row[column] for column in columns] for row in rows.values()])


def cells(listed: Listed) -> dict[str, str]:
    """The recipe's text of each column."""
    recipe, twin = recipe_of(listed), twin_of(listed.name)
    what = listed.description.removeprefix(f"{twin} ") if twin != listed.name else listed.description
    row = dict.fromkeys(COLUMNS, "") | {"recipe": f"`{listed.name}`", "what": what}
    if not recipe.trains:
        return row
    row |= {"batch": f"{recipe.batch:,}", "images": f"{recipe.images:,}"}
    if recipe.data is None:
        row["data set"] = f"latents of {Path(recipe.from_).name}"
    else:
        row |= {"data set": Path(recipe.data.root).name, "px": str(recipe.data.size)}
    if recipe.task == "diffuse":
        return row | {"objective": f"{recipe.objective.process} {recipe.objective.prediction}"}
    encoder, objective = recipe.encoder.model_dump(), recipe.objective.model_dump()
    contrast = objective.get("contrast", {})
    kinds = ["hybrid of", contrast["kind"]] if contrast else [objective["kind"]]
    return row | {
        "encoder": f"{encoder['kind']} {encoder.get('depth', encoder.get('layout', ''))}".rstrip(),
        "objective": " ".join([*kinds, (contrast or objective).get("bound", "")]).rstrip(),
    }


# ---- the reference of keys -------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """A row of the reference. `path` is the key from the top of a recipe, `name` what its table calls it."""

    path: str
    name: str
    expected: Expected
    type: str
    unit: str
    default: str
    meaning: str

    @property
    def changes(self) -> str:
        return IMAGES_MAY_CHANGE if self.path == "images" else "yes" if may_change(self.path) else ""


@dataclass(frozen=True)
class Chapter:
    """A heading of the reference: a section, or one kind of a section, and its keys."""

    title: str
    section: type[Section]
    keys: tuple[Key, ...]


def key_reference() -> str:
    return "\n\n".join(text_of(chapter) for chapter in chapters())


def chapters() -> list[Chapter]:
    """A chapter a task, a section of a recipe, a list of sections, and a kind of a section."""
    titles = titles_of_sections()
    return [
        Chapter(title, section, tuple(_keys(section, path, "", titles)))
        for section, (title, path) in titles.items()
    ]


def titles_of_sections() -> dict[type[Section], tuple[str, str]]:
    """Each section that has a chapter -> its title, and the path that its keys have in a recipe."""
    titles: dict[type[Section], tuple[str, str]] = {}
    for task in TASKS:
        titles[task] = (f"task: {fields(task)['task'].options[0]}", "")
        for key, what in fields(task).items():
            for section in what.sections:
                _add_titles(section, key, what.sections, titles)
    titles[Generation] = ("evaluate, of a diffusion", "evaluate.")
    return titles


def _add_titles(section: type[Section], path: str, siblings: tuple, titles: dict) -> None:
    if section in titles:
        return
    kind = fields(section)["kind"].options if "kind" in fields(section) else ()
    titles[section] = (f"{path}, kind: {' or '.join(kind)}" if kind else path, f"{path}.")
    for key, what in fields(section).items():
        below = what.item.sections if what.item else what.sections if tag(what.sections) else ()
        for other in below:
            _add_titles(other, f"{path}.{key}", below, titles)


def _keys(section: type[Section], path: str, name: str, titles: dict, over=None, unit="") -> Iterator[Key]:
    """The keys of a section, and those of sections inside it that have no chapter.

    Args:
        over: the default of the whole section, which holds in place of those of its class.
        unit: of the section's numbers.
    """
    for field, info in section.model_fields.items():
        key = info.alias or field
        if name == "" and key in ("task", "kind"):
            continue  # the chapter's title says it
        what = fields(section)[key]
        default = getattr(over, field) if over is not None else what.default
        extra = info.json_schema_extra or {}
        key_unit = extra.get("unit", unit)
        yield Key(
            path=f"{path}{key}",
            name=f"{name}{key}",
            expected=what,
            type=type_of(what),
            unit=key_unit if not what.sections else "",
            default=default_of(what, default),
            meaning=meaning_of(what, info.description, titles),
        )
        if what.sections and not what.item and not any(one in titles for one in what.sections):
            inside = default if isinstance(default, Section) else None
            yield from _keys(what.sections[0], f"{path}{key}.", f"{name}{key}.", titles, inside, key_unit)


def type_of(what: Expected) -> str:
    if what.sections:
        return "a section" + (", or null" if what.nullable else "")
    return re.sub(r"'([^']*)'", r"`\1`", what.words())


def default_of(what: Expected, default) -> str:
    if default is ...:
        return "required"
    if isinstance(default, Section):
        words = [f"{k}: {to_yaml_line(v)}" for k, v in default.model_dump(exclude_unset=True).items()]
        return f"`{{{', '.join(words)}}}`"
    if what.item and what.item.sections:
        default = [item.model_dump(exclude_unset=True) for item in default]
    return f"`{to_yaml_line(default)}`"


def meaning_of(what: Expected, description: str | None, titles: dict) -> str:
    """The key's meaning, or that of the section that it holds, with links to chapters."""
    sections = what.item.sections if what.item else what.sections
    text = description or (first_sentence(sections[0]) if sections else "")
    headings = [titles[section][0] for section in sections if section in titles]
    links = [f"[{heading.rpartition(': ')[2]}](#{anchor(heading)})" for heading in headings]
    return f"{text}: {', '.join(links)}" if links else text


def first_sentence(section: type[Section]) -> str:
    """Of the section's docstring."""
    return re.split(r"\.(?:\s|$)", " ".join((getdoc(section) or "").split()))[0]


def text_of(chapter: Chapter) -> str:
    """Heading, the section's docstring, and a table."""
    lines = [f"### {chapter.title}", "", getdoc(chapter.section) or ""]
    changes = {key.changes for key in chapter.keys}
    trains = getattr(chapter.section, "trains", True)  # a task that does not is never continued
    columns = ["key", "type", "unit", "default", "meaning"]
    if trains and changes == {"yes"}:
        lines[-1] += "\n\nAll of it may change when a run continues."
    elif trains and changes != {""}:
        columns.append("may change")
    rows = [
        [f"`{key.name}`", key.type, key.unit, key.default, key.meaning, key.changes][: len(columns)]
        for key in chapter.keys
    ]
    return "\n".join([*lines, "", table(columns, rows)] if rows else lines)


# ---- Markdown --------------------------------------------------------------------------------------


def table(columns: list[str], rows: list[list[str]]) -> str:
    rule = ["---:" if column in RIGHT else "---" for column in columns]
    padded = [[f" {cell} " if cell else " " for cell in row] for row in (columns, rule, *rows)]
    return "\n".join(f"|{'|'.join(row)}|" for row in padded)


def anchor(heading: str) -> str:
    """What a link to a heading says behind `#`, by GitHub's rules."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def written(text: str) -> str:
    """The README's text with what stands between its marks made anew."""
    for name, page in pages().items():
        begin, end = (f"<!-- {name}: {word} -->" for word in ("begin", "end"))
        before, opening, rest = text.partition(begin)
        _, closing, after = rest.partition(end)
        if not opening or not closing:
            raise SystemExit(f"error: {README}: expected the lines {begin} and {end}; put them back")
        text = f"{before}{begin}\n\n{page}\n\n{end}{after}"
    return text


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        raise SystemExit(__doc__)
    old = README.read_text(encoding="utf-8")
    new = written(old)
    if not arguments:
        README.write_text(new, encoding="utf-8")
        return 0
    lines = difflib.unified_diff(
        old.splitlines(), new.splitlines(), "README.md", "generated", n=0, lineterm=""
    )
    print(*lines, sep="\n", end="\n" if old != new else "")
    return int(old != new)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
