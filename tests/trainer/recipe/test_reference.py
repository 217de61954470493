"""recipes/README.md: its tables are those of the recipes and the schema; no key is without a meaning."""

import re
import sys
from typing import get_args

from benchmarks import recipe_reference as reference
from tests.helpers.command_lines import process
from tests.helpers.recipes import NAMES
from trainer.recipe.loading import listing
from trainer.recipe.messages import Expected, expected, paths
from trainer.recipe.recipes import TASKS

CHAPTERS = reference.chapters()
KEYS = [key for chapter in CHAPTERS for key in chapter.keys]


def is_number(what: Expected) -> bool:
    """Whether a number may stand here, or a list of them."""
    if what.item:
        return is_number(what.item)
    members = [expected(member).type for member in get_args(what.type)] if what.options else []
    return bool({int, float} & {what.type, *members}) or any(type(one) is int for one in what.options)


def test_the_readme_says_what_the_recipes_and_the_schema_say():
    done = process(sys.executable, "benchmarks/recipe_reference.py", "--check")
    assert (done.status, done.out) == (0, ""), "python benchmarks/recipe_reference.py mends it"


def test_a_difference_is_shown_and_mended(tmp_path, monkeypatch, capsys):
    old = reference.README.read_text(encoding="utf-8")
    row = next(line for line in old.splitlines() if line.startswith("| `queue.keys` |"))
    wrong = row.replace("`65536`", "`65537`")
    readme = tmp_path / "README.md"
    readme.write_text(old.replace(row, wrong), encoding="utf-8")
    monkeypatch.setattr(reference, "README", readme)
    assert reference.main(["--check"]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert [line for line in shown if "queue.keys" in line] == [f"-{wrong}", f"+{row}"]
    assert wrong in readme.read_text(encoding="utf-8")  # a question changes nothing
    assert reference.main([]) == 0
    assert readme.read_text(encoding="utf-8") == old


def test_every_key_of_the_schema_is_in_the_reference():
    schema = paths(TASKS)
    schema = [re.sub(r"\.\d+\.", ".", path) for path in schema if not path.endswith(("kind", "task"))]
    # said once: the objectives that a hybrid contains, and the critics of both terms
    once = {path.replace(".contrast.", ".").replace("global_critic.", "critic.") for path in schema}
    assert {key.path for key in KEYS} == once
    assert len({chapter.title for chapter in CHAPTERS}) == len(CHAPTERS)


def test_every_task_and_kind_has_a_chapter():
    titles = [chapter.title for chapter in CHAPTERS]
    tasks = [title.removeprefix("task: ") for title in titles if title.startswith("task: ")]
    assert tasks == ["pretrain", "evaluate", "diffuse", "sample", "measure"]
    assert {"objective, kind: diffusion", "draw", "evaluate", "evaluate, of a diffusion"} <= set(titles)
    keys = {chapter.title: {key.name: key.changes for key in chapter.keys} for chapter in CHAPTERS}
    assert {"map.width", "vector.layers", "components"} <= set(keys["objective, kind: diffusion"])
    assert "kind" not in keys["objective, kind: diffusion"]
    assert (keys["task: diffuse"]["from"], keys["task: diffuse"]["objective"]) == ("yes", "")
    assert "changes" not in reference.text_of(CHAPTERS[titles.index("task: sample")])


def test_every_key_has_a_meaning_and_every_number_a_unit():
    assert not [key.path for key in KEYS if len(key.meaning.split(": [")[0]) < 5]
    numbers = {key.path for key in KEYS if is_number(key.expected)}
    assert {
        "batch",
        "encoder.depth",
        "groups.negatives",
        "data.normalize.mean",
        "data.views.blur.sigma.low",
    } < (numbers)
    assert {key.path for key in KEYS if key.unit} == numbers


def test_units_and_defaults_come_from_the_section_around():
    rows = {key.path: (key.unit, key.default) for key in KEYS}
    assert rows["data.views.blur.sigma.low"] == ("pixels", "required")
    assert rows["data.views.crop.ratio.low"] == ("1", "`0.75`")


def test_what_may_change_is_marked():
    changes = {key.path: key.changes for key in KEYS if key.changes}
    assert {"data.root", "accumulate", "save.every", "evaluate.svm.lr", "images"} <= set(changes)
    assert not {"seed", "data.size", "groups.norm", "optimizer.lr", "encoder.y"} & set(changes)
    assert "constant" in changes["images"]


def test_recipes_stand_in_groups_by_what_they_train():
    groups = dict(
        part.split("\n\n", 1) for part in reference.recipe_tables().removeprefix("### ").split("\n### ")
    )
    assert list(groups) == list(reference.GROUPS)
    rows = {re.match(r"\| `(\w+)`", row)[1]: row for row in groups["Diffusion"].splitlines() if "`" in row}
    assert {"diffuse_cifar10", "ddim_cifar10"} <= set(rows)
    assert "latents of hybrid_cifar10_pooled |" in rows["diffuse_cifar10"]
    assert "| cifar10 | 32 | ddim eps | 128 |" in rows["ddim_cifar10"]
    assert {"evaluate", "sample", "measure"} <= set(
        re.findall(r"^\| `(\w+)`", groups["Evaluation and samples"], re.M)
    )


def test_every_recipe_has_a_row_and_its_description():
    tables = reference.recipe_tables()
    assert sorted(re.findall(r"^\| `(\w+)` \|", tables, re.MULTILINE)) == NAMES
    for listed in listing():
        row = next(line for line in tables.splitlines() if line.startswith(f"| `{listed.name}` |"))
        assert row.endswith(f" {listed.description.removeprefix(reference.twin_of(listed.name)).strip()} |")
