"""`auto` at the start of a run: the run's values where it has begun, else those of this machine."""

import torch

from trainer.distributed import collectives
from trainer.recipe import automatic, loading
from trainer.runs import machine
from trainer.runs.folder import RunFolder


def resolved(
    loaded: loading.ResolvedRecipe, device: torch.device, split: automatic.Split | None = None
) -> loading.ResolvedRecipe:
    """The recipe without the `auto` that can be resolved now; collective, and the same on every rank.

    Rank 0 decides. What needs the training split stays until `split` is passed.

    Raises:
        UserError: the machine of a rank cannot do what the recipe, or the run's own recipe.yaml, says.
    """
    facts, recipe = machine.facts(device, split), loaded.recipe
    if automatic.automatic_keys(recipe):
        loaded = collectives.run_on_main(lambda: _with_values_of_the_run(loaded))
        chosen = collectives.run_on_main(lambda: automatic.choices(loaded.recipe, facts))
        loaded = automatic.with_values(loaded, chosen, f"auto, for a {device.type} at the first start")
    collectives.run_on_all(lambda: automatic.check_machine(loaded.recipe, facts))
    return loaded


def _with_values_of_the_run(loaded: loading.ResolvedRecipe) -> loading.ResolvedRecipe:
    path = RunFolder.of(loaded).path / "recipe.yaml"
    return automatic.kept(loaded, loading.load_saved(path).recipe) if path.exists() else loaded
