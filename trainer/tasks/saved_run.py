"""A run that is read again, by a task of another kind: its recipe, one of its checkpoints, its weights."""

from typing import TypeVar

from data_pipelines.common.errors import UserError
from data_pipelines.common.section import Section
from trainer.checkpoints import load as load_module
from trainer.checkpoints.format import Damaged, folder_name, verify
from trainer.checkpoints.load import Checkpoint, load, newest
from trainer.objectives.objective import Trained
from trainer.recipe import loading
from trainer.recipe.diffusion import Diffuse
from trainer.recipe.loading import ResolvedRecipe
from trainer.recipe.recipes import AnyTraining
from trainer.recipe.schema import Pretrain
from trainer.recipe.yaml12 import DEFAULT
from trainer.runs.folder import RunFolder

Part = TypeVar("Part", bound=Section)


def encoder_recipe(folder: RunFolder, key: str = "from") -> Pretrain:
    """The recipe of a run of an encoder, whose folder `key` names.

    Raises:
        UserError: there is no run, or one of another task.
    """
    recipe = _recipe(folder, key)
    if recipe.task == "pretrain":
        return recipe
    raise UserError(
        f"{key}={folder.path}: a run of task {recipe.task}, which has no encoder; give that of one of task "
        "pretrain; recipe=measure measures this one again, recipe=sample draws of it"
    )


def diffusion_recipe(folder: RunFolder) -> Diffuse:
    """The recipe of a run of task diffuse. Raises UserError: there is no run, or one of another task."""
    recipe = _recipe(folder, "from")
    if recipe.task == "diffuse":
        return recipe
    raise UserError(
        f"from={folder.path}: a run of task {recipe.task}, which draws nothing; give that of one of task "
        "diffuse (recipe=diffuse_cifar10 trains one on the latents of a hybrid)"
    )


def _recipe(folder: RunFolder, key: str) -> AnyTraining:
    path = folder.path / "recipe.yaml"
    if not path.exists():
        raise UserError(f"{key}={folder.path}: no run there (recipe.yaml is missing); give a run's folder")
    return loading.saved_training(path)


def choose(folder: RunFolder, images: int | None, key: str) -> Checkpoint:
    """The run's newest checkpoint, or that after so many images, which the recipe's `key` says.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if images is None:
        if checkpoint := newest(folder.checkpoints, print):
            return checkpoint
        raise UserError(f"from={folder.path}: the run has no checkpoint yet")
    path = folder.checkpoints / folder_name(images)
    if not path.is_dir():
        kept = ", ".join(str(images) for images in load_module.kept(folder.checkpoints)) or "none"
        raise UserError(f"{key}={images}: the run has no such checkpoint; it keeps {kept}")
    try:
        return Checkpoint(path, images, verify(path))
    except Damaged as why:
        raise UserError(f"{key}={images}: checkpoint {path} is damaged ({why})") from None


def with_values_of_run(loaded: ResolvedRecipe, name: str, of_run: Part) -> Part:
    """The section `name` of a run's recipe, with the keys that the recipe of this command sets."""
    return _laid_over(of_run, getattr(loaded.recipe, name), loaded.origin, name)


def _laid_over(of_run: Part, section: Section, origin: dict[str, str], at: str) -> Part:
    """`of_run` with the values of `section` that are no defaults; sections inside key by key."""
    changes = {}
    for key, info in type(section).model_fields.items():
        value, before, dotted = getattr(section, key), getattr(of_run, key), f"{at}.{key}"
        leaves = [where for leaf, where in origin.items() if leaf == dotted or leaf.startswith(f"{dotted}.")]
        if isinstance(value, Section) and isinstance(before, Section):
            changes[key] = _laid_over(before, value, origin, dotted)
        elif any(where != DEFAULT for where in leaves) or value != info.get_default():
            changes[key] = value
    return of_run.model_copy(update=changes)


def is_newest(folder: RunFolder, checkpoint: Checkpoint) -> bool:
    return checkpoint.images == load_module.kept(folder.checkpoints)[-1]


def load_weights(objective: Trained, checkpoint: Checkpoint) -> Trained:
    """The objective, on the CPU, with the weights of a checkpoint."""
    names = [name for name in checkpoint.manifest["tensors"] if name.startswith("model/")]
    weights = load(checkpoint, names)
    objective.load_state_dict({name.removeprefix("model/"): rows for name, rows in weights.items()})
    return objective
