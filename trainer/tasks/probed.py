"""What a run is probed on at its end, and whether it can be: looked at before anything is trained."""

from pathlib import Path

from data_pipelines.dataset import Dataset
from data_pipelines.errors import UserError
from data_pipelines.reader import Reader
from trainer.evaluation.features import check_room, has_labels
from trainer.recipe import Pretrain
from trainer.recipe_evaluation import Evaluate

PIXELS = 3 * 64 * 64  # numbers of an image: ImageNet's at 224 px would be 771 GB of features


def check(recipe: Pretrain, dataset: Dataset) -> None:
    """Whether what the run will be asked for at its end can be measured on this data.

    The online monitor asks for the splits alone: without labels it leaves out the kNN.

    Raises:
        UserError: the split `data.labelled` is not there; or there are no classes, a split has no label, or
            too few images to re-estimate batch-norm.
    """
    dataset.split(labelled_split(recipe))
    if recipe.evaluate.at_end:
        check_labels(recipe, recipe.evaluate, dataset, "leave the probes out with evaluate.at_end=false")


def check_labels(recipe: Pretrain, options: Evaluate, dataset: Dataset, way_out: str) -> None:
    """Raises UserError as `check` does; `way_out` ends a line about missing labels."""
    if not dataset.classes:
        raise UserError(f"{dataset.where} has no classes, and probes learn to tell them; {way_out}")
    for key, split in (("data.labelled", labelled_split(recipe)), ("data.test", recipe.data.test)):
        reader = Reader(dataset, split)
        if not has_labels(reader):
            raise UserError(
                f"{dataset.where}: no image of '{split}' ({key}) has a label, and probes need them; {way_out}"
            )
        reader.close()
    if (options.controls or options.recalibrate) and options.online_images < 2:
        raise UserError(
            f"evaluate.online_images={options.online_images}: batch-norm is re-estimated on them and needs 2 "
            "at least; raise it, or set evaluate.controls=false and evaluate.recalibrate=false"
        )


def check_disk(recipe: Pretrain, dataset: Dataset, widths: dict[str, int], outputs: Path) -> None:
    """Raises UserError where the features to be probed at the end, of these widths, find no room."""
    if not recipe.evaluate.at_end:
        return
    width = max(sum(widths.values()), recipe.evaluate.controls * compared_pixels(recipe))
    images = dataset.split(labelled_split(recipe)).images
    there = next(path for path in (outputs, *outputs.absolute().parents) if path.exists())
    check_room(there, images, width)


def compared_pixels(recipe: Pretrain) -> int:
    """How many numbers of an image are probed as a control; of a large image none are."""
    numbers = 3 * recipe.data.size**2
    return numbers if numbers <= PIXELS else 0


def labelled_split(recipe: Pretrain) -> str:
    """The split that probes learn from."""
    return recipe.data.labelled or recipe.data.train
