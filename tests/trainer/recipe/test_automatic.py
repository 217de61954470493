"""`auto`: by which facts it is resolved, how a run keeps it, and which machine is refused."""

from dataclasses import replace

import pytest

from data_pipelines.common.errors import UserError
from trainer.recipe import automatic
from trainer.recipe.automatic import Facts, Rule, automatic_keys, check_machine, choices, kept, with_values
from trainer.recipe.loading import load, load_saved

CPU = Facts("cpu", memory=8 * 2**30)
H100 = Facts("cuda", (9, 0), 80 * 2**30, triton=True)
A100 = replace(H100, capability=(8, 0))
T4 = replace(H100, capability=(7, 5))
AUTO = ["recipe=dim_local", "precision=auto"]


def test_bf16_on_cards_that_have_it_and_float32_elsewhere():
    recipe = load(AUTO).recipe
    precisions = [choices(recipe, facts)["precision"] for facts in (CPU, H100, A100, T4)]
    assert precisions == ["float32", "bf16", "bf16", "float32"]


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
    fits = Rule(lambda recipe, facts: None if facts.images is None else f"up-to-{facts.images}")
    monkeypatch.setitem(automatic.RULES, "tracking.experiment", fits)
    loaded = load([*AUTO, "tracking.experiment=auto"])
    assert automatic_keys(loaded.recipe) == ["precision", "tracking.experiment"]
    assert choices(loaded.recipe, CPU) == {"precision": "float32"}
    values = choices(loaded.recipe, replace(CPU, images=500))
    done = with_values(loaded, values, "auto").recipe
    assert done.tracking.experiment == "up-to-500"
    assert kept(loaded, done).recipe == done
