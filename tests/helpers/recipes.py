"""Names of the recipes, and recipe files that tests write."""

from pathlib import Path

from trainer.recipe.loading import RECIPES

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
EVERY_SECTION = [  # overrides that open the sections which the recipes leave out
    "data.views.0.crop={scale: {low: 0.2, high: 1}}",
    "data.views.0.jitter={hue: 0.1}",
    "data.views.0.blur={sigma: {low: 0.1, high: 2}}",
    "schedule={kind: cosine, final: 0.1}",
]


def write(folder: Path, name: str, text: str) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return f"recipe={path}"
