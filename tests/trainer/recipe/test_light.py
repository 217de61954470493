"""Recipes are read before torch is: a mistake is answered at once, and the environment is set in time."""

import json
import sys

import pytest

from tests.helpers.command_lines import ROOT, process

MODULES = sorted(
    f"trainer.recipe.{path.stem}".removesuffix(".__init__") for path in (ROOT / "trainer/recipe").glob("*.py")
)
SLOW = ("torch", "numpy", "accelerate", "mlflow", "nvidia")


def loaded_by(*modules: str) -> list[str]:
    """Which of the large libraries a fresh process holds when it has imported these modules."""
    code = (
        f"import json, sys, {', '.join(modules)}; print(json.dumps([m for m in {SLOW} if m in sys.modules]))"
    )
    return json.loads(process(sys.executable, "-c", code).out)


def test_the_modules_are_found():
    assert {"trainer.recipe", "trainer.recipe.loading", "trainer.recipe.schema"} <= set(MODULES)


def test_no_module_of_the_recipe_imports_torch_or_numpy():
    if loaded := loaded_by(*MODULES):
        pytest.fail(f"{loaded} by {[module for module in MODULES if loaded_by(module)]}")


def test_neither_do_the_entries():
    assert loaded_by("trainer.main", "trainer.cli") == []
