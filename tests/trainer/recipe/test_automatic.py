"""`auto`: by which facts it is resolved, how a run keeps it, and which machine is refused."""

from dataclasses import replace

import pytest

from data_pipelines.common.errors import UserError
from trainer.recipe import automatic
from trainer.recipe.automatic import (
    Facts,
    Rule,
    Split,
    automatic_keys,
    check_machine,
    choices,
    kept,
    with_values,
)
from trainer.recipe.loading import load, load_saved

CPU = Facts("cpu", memory=8 * 2**30)
H100 = Facts("cuda", (9, 0), 80 * 2**30)
A100 = replace(H100, capability=(8, 0))
T4 = replace(H100, capability=(7, 5))
AUTO = ["recipe=dim_local", "precision=auto"]


def test_bf16_on_cards_that_have_it_and_float32_elsewhere():
    recipe = load(AUTO).recipe
    precisions = [choices(recipe, facts)["precision"] for facts in (CPU, H100, A100, T4)]
    assert precisions == ["float32", "bf16", "bf16", "float32"]


def test_bf16_for_denoisers_on_processors_that_multiply_its_tiles():
    tiles, words = replace(CPU, tiles=True), ["recipe=diffuse_cifar10_small", "from=somewhere"]
    assert choices(load(words).recipe, CPU) == {"precision": "float32"}
    assert choices(load(words).recipe, tiles) == {"precision": "bf16"}
    assert choices(load(AUTO).recipe, tiles) == {"precision": "float32"}  # others have depthwise convolutions


@pytest.mark.parametrize("word", ["float64", "float32", "bf16"])
def test_a_word_of_the_recipe_stands_above_the_machine(word):
    recipe = load(["recipe=dim_local", f"precision={word}"]).recipe
    assert "precision" not in automatic_keys(recipe)
    assert "precision" not in choices(recipe, H100)


def test_the_resolved_recipe_is_that_of_the_explicit_word():
    loaded = load(AUTO)
    done = with_values(loaded, {"precision": "bf16"}, "auto, for a cuda at the first start")
    assert loaded.recipe.precision == "auto"
    assert done.recipe == load(["recipe=dim_local", "precision=bf16"]).recipe
    assert done.fingerprint() == load(["recipe=dim_local", "precision=bf16"]).fingerprint()
    line = next(line for line in done.text().splitlines() if line.startswith("precision"))
    value, _, origin = line.partition("#")
    assert (value.strip(), origin.strip()) == ("precision: bf16", "auto, for a cuda at the first start")


def test_a_written_recipe_is_read_back_resolved(tmp_path):
    done = with_values(load(AUTO), {"precision": "bf16"}, "auto")
    path = tmp_path / "recipe.yaml"
    path.write_text(done.text(), encoding="utf-8")
    assert load_saved(path).recipe == done.recipe
    assert kept(load(AUTO), load_saved(path).recipe).recipe == done.recipe


def test_an_explicit_word_is_not_replaced_by_the_value_of_the_run():
    run = load(["recipe=dim_local", "precision=bf16"]).recipe
    assert kept(load(["recipe=dim_local", "precision=float32"]), run).recipe.precision == "float32"


def test_a_card_without_bf16_is_refused_in_one_line():
    recipe = load(["recipe=dim_local", "precision=bf16"]).recipe
    for facts in (CPU, H100, A100):
        check_machine(recipe, facts)
    with pytest.raises(UserError) as refused:
        check_machine(recipe, T4)
    assert str(refused.value) == (
        "precision=bf16: this GPU has no bf16 (compute capability 7.5, 8.0 is needed); use a machine that "
        "has it, or start another with run=NAME and precision=float32"
    )
    check_machine(load(AUTO).recipe, T4)


def test_a_nested_key_that_needs_the_data_set_waits_for_it(monkeypatch):
    """As a section's key joins: a rule, and the value in its type (this one takes any text)."""
    fits = Rule(lambda recipe, facts: facts.split and f"up-to-{facts.split.images}")
    monkeypatch.setitem(automatic.RULES, "tracking.experiment", fits)
    loaded = load([*AUTO, "tracking.experiment=auto"])
    assert automatic_keys(loaded.recipe) == ["precision", "tracking.experiment"]
    assert choices(loaded.recipe, CPU) == {"precision": "float32"}
    values = choices(loaded.recipe, replace(CPU, split=Split(500)))
    done = with_values(loaded, values, "auto").recipe
    assert done.tracking.experiment == "up-to-500"
    assert kept(loaded, done).recipe == done


RESIDENT = ["recipe=dim_local", "data.resident=auto"]
CIFAR = Split(50_000, 50_000 * 32 * 32 * 3)
BIG = Split(1_000_000, 1_000_000 * 96 * 96 * 3)


@pytest.mark.parametrize(
    ("facts", "split", "words", "value"),
    [
        (CPU, CIFAR, [], True),
        (CPU, CIFAR, ["data.size=48"], False),  # DALI is faster there
        (CPU, Split(1000, 1000 * 96 * 96 * 3), [], False),
        (H100, Split(1000, 1000 * 96 * 96 * 3), ["data.size=64"], True),
        (H100, BIG, [], False),  # more than a quarter of the memory
        (replace(CPU, memory=2**29), CIFAR, [], False),
        (H100, Split(50_000), [], False),  # of several sizes
        (H100, CIFAR, ["data.decode=fast"], False),
    ],
)
def test_images_are_kept_where_that_is_faster_and_a_quarter_of_the_memory(facts, split, words, value):
    recipe = load([*RESIDENT, *words]).recipe
    assert choices(recipe, facts) == {}  # before the data set is open
    assert choices(recipe, replace(facts, split=split)) == {"data.resident": value}


@pytest.mark.parametrize(
    ("split", "words", "line"),
    [
        (BIG, [], "the decoded images of 'train' take 27,648,000,000 bytes, and this rank has 8,589,934,592"),
        (Split(10), [], "the images of 'train' have several sizes"),
        (CIFAR, ["data.decode=fast"], "images are decoded once and whole; set data.decode=exact"),
    ],
)
def test_images_that_cannot_be_kept_are_refused_in_one_line(split, words, line):
    recipe = load(["recipe=dim_local", "data.resident=true", *words]).recipe
    check_machine(recipe, CPU)
    with pytest.raises(UserError, match=f"^data.resident=true: {line}"):
        check_machine(recipe, replace(CPU, split=split))
