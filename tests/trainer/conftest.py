"""What several of these tests build on."""

import pytest
from accelerate.state import AcceleratorState

from data_pipelines.dataset_loading import load_dataset
from trainer.distributed import launch
from trainer.recipe.loading import load
from trainer.tasks import preflight
from trainer.training.build import build_trainer
from trainer.training.trainer import Trainer


@pytest.fixture
def train(digits, monkeypatch):
    """Recipe and overrides -> a Training, closed at the end of the test."""
    for name in ("ACCELERATE_USE_CPU", "ACCELERATE_ALLOW_CPU"):
        monkeypatch.setenv(name, "true")  # as the launcher sets them; gone after the test
    opened = []

    def build(recipe: str, *overrides: str) -> Trainer:
        loaded = load([f"recipe={recipe}", "data.source=digits", f"data.root={digits.root}", *overrides])
        AcceleratorState._reset_state(True)  # a process trains in one precision; a test in several
        context, dataset = launch.start(loaded.recipe.precision), load_dataset(digits.root)
        preflight.check(loaded.recipe, context, dataset)
        opened.append(build_trainer(loaded.recipe, context, dataset))
        return opened[-1]

    yield build
    for training in opened:
        training.close()
    AcceleratorState._reset_state(True)
