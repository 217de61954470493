"""Files of a run's folder, read one by one without torch, whatever their state."""

import json
import re
from pathlib import Path
from typing import Any

from data_pipelines.common.errors import UserError
from trainer.recipe.trees import strip_origins
from trainer.recipe.yaml12 import parse
from trainer.runs.folder import RunFolder

CHECKPOINT = re.compile(r"images-([0-9]{12,})")  # trainer.checkpoints.load has it too, behind torch
NO_RECIPE = "recipe.yaml is no recipe of a run; put the file back, or remove the folder"


def recipe_as_it_stands(path: Path) -> dict[str, Any]:
    """The tree of a recipe.yaml of any version, unchecked.

    Raises UserError where the file cannot be read, or is no YAML of a recipe.
    """
    try:
        tree = strip_origins(parse(path.read_text(encoding="utf-8"), "recipe.yaml"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe.yaml cannot be read: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(NO_RECIPE)
    return tree


def world(folder: RunFolder) -> dict[str, Any]:
    """What the run ran on last: world.json; empty where there is none. Raises ValueError: it is damaged."""
    content = content_of(folder.path / "world.json")
    if content is None:
        return {}
    try:
        record = json.loads(content)
    except RecursionError:
        record = None
    if not isinstance(record, dict):
        raise ValueError("expected an object")
    return record


def checkpoint_manifests(folder: RunFolder) -> dict[int, Path]:
    """Images -> the manifest of each checkpoint."""
    try:
        paths = list(folder.checkpoints.iterdir())
    except OSError:
        return {}
    return {
        int(match[1]): path / "manifest.json" for path in paths if (match := CHECKPOINT.fullmatch(path.name))
    }


def content_of(path: Path) -> str | None:
    """A small file; None where there is none, '' for what is there and no file that can be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError:
        return ""
