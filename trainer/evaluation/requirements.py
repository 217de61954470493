"""What an evaluation requires of a data set's labels, and what of it these labels cannot give.

It is looked at before the first step, and again by the evaluation, so that both decide alike: what the data
cannot give is left out with a reason, and never what else is measured with it. A key of the recipe that asks
for more than there is (a number of shots, a split without labels) is a mistake of its user's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from data_pipelines.dataset import Dataset
from data_pipelines.reader import Reader
from trainer.evaluation.features import has_labels
from trainer.evaluation.figures.tsne import FEWEST
from trainer.evaluation.labels import Labels, about_classes, count_labels, counted, few_have_images
from trainer.evaluation.overlap import HELD_OUT, about_overlap, trained_and_tested
from trainer.recipe.evaluation import Evaluate, FewShot
from trainer.recipe.schema import Pretrain

PROBES = ("linear", "linear_sgd", "mlp", "svm", "few_shot")  # keys of `evaluate`; null: not measured


@dataclass
class Requirements:
    """What is decided about an evaluation before it.

    Attributes:
        options: what can be measured: the section `evaluate` with the probes that cannot be had as null.
        left_out: why a figure, or all whose names begin so, is missing, by that name.
        warnings: a line each, for a person.
        mistakes: lines about keys that ask for more than there is; a run is refused with the first.
        without_labels: such a line about a split of which no image has a label; empty where there is none.
    """

    options: Evaluate
    left_out: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)
    without_labels: str = ""

    def leave_out(self, names: Sequence[str], why: str, options: Sequence[str] = ()) -> None:
        """Figures of these names are not measured; `options` are the keys that asked for them."""
        self.left_out |= dict.fromkeys(names, why)
        self.warnings.append(f"{', '.join(names)}: left out, {why}")
        self.options = self.options.model_copy(update=dict.fromkeys(options))


def requirements(
    recipe: Pretrain, options: Evaluate, dataset: Dataset, final: bool = True, online: bool = False
) -> Requirements:
    """Compares what `options` ask for with the data set.

    Args:
        final: looks at what is measured of the frozen encoder.
        online: looks at what is measured during pretraining.

    Raises:
        UserError: as `count_labels`.
    """
    needs = Requirements(options)
    needs.warnings += about_overlap(recipe, dataset)
    if online:
        _check_online(needs, recipe, dataset)
    if final:
        _check_images(needs, recipe, dataset)
    points = min(dataset.split(recipe.data.test).images, options.online_images)
    if dataset.classes:
        shots = options.few_shot.shots if options.few_shot else 1
        train = count_labels(dataset, recipe.labelled_split, shots)
        test = count_labels(dataset, recipe.data.test, 1)
        if train.images and test.images:
            points = test.images
            if final:
                _check_probes(needs, dataset, train, test)
            needs.warnings += about_classes(dataset, train, test)
        else:
            _without_labels(needs, recipe, dataset, train, final)
    if final and points < FEWEST:
        needs.leave_out(["figures/tsne.png"], f"t-SNE takes {FEWEST} test images or more, and gets {points}")
    return needs


def left_out_online(recipe: Pretrain, dataset: Dataset) -> dict[str, str]:
    """What the splits cannot give of what is measured during pretraining, as `Requirements.left_out`."""
    needs = Requirements(recipe.evaluate)
    if recipe.evaluate.every:
        _check_online(needs, recipe, dataset)
    return needs.left_out


# ---- what the numbers of images decide -------------------------------------------------------------


def _check_online(needs: Requirements, recipe: Pretrain, dataset: Dataset) -> None:
    test, options = dataset.split(recipe.data.test).images, needs.options
    seen = min(test, options.online_images)
    cause = f"'{recipe.data.test}' has {test:,}"
    if seen < test:
        cause = f"evaluate.online_images={options.online_images}"
    unit = recipe.objective.heldout_batch(recipe.groups, recipe.batch)
    negatives = recipe.objective.uses_batch_negatives or recipe.objective.momentum_queue is not None
    if negatives and (why := trained_and_tested(recipe, dataset)):
        needs.leave_out([HELD_OUT], why)
    elif negatives and seen < unit:
        groups, takes = recipe.groups, "a group of negatives takes"
        if groups.negatives not in (None, "global", unit):
            takes = f"whole groups (groups.norm={groups.norm}, groups.negatives={groups.negatives}) take"
        needs.leave_out([HELD_OUT], f"{takes} {unit:,} test images, and {cause}")
    if seen < 2:
        needs.leave_out(["health/…"], f"it compares 2 test images or more, and {cause}")


def _check_images(needs: Requirements, recipe: Pretrain, dataset: Dataset) -> None:
    options = needs.options
    train, test = (dataset.split(split).images for split in (recipe.data.train, recipe.data.test))
    if recipe.objective.reconstructs and test < 2:
        needs.leave_out(["reconstruction/swap_ratio"], f"it exchanges 2 test images, and there is {test}")
    if not dataset.classes or recipe.encoder.norm != "batch" or not (options.controls or options.recalibrate):
        return
    if options.online_images < 2:
        needs.mistakes.append(
            f"evaluate.online_images={options.online_images}: batch-norm is re-estimated on them and needs 2 "
            "at least; raise it, or set evaluate.controls=false and evaluate.recalibrate=false"
        )
    if train < 2:
        names = ["control/untrained_recalibrated"] * options.controls
        names += ["not_recalibrated"] * options.recalibrate
        why = f"batch-norm is re-estimated on 2 training images or more, and there is {train}"
        needs.leave_out(names, why)
        needs.options = needs.options.model_copy(update={"recalibrate": False})


# ---- labels ----------------------------------------------------------------------------------------


def names_of_probes(options: Evaluate) -> list[str]:
    """How the names of all figures begin that need labels."""
    heads = {"linear": options.linear, "linear_sgd": options.linear_sgd, "mlp": options.mlp}
    names = [f"probe/{name}" for name, head in (heads | {"svm": options.svm}).items() if head]
    names += [few_shot_name(options.few_shot)] if options.few_shot else []
    return [*names, "knn/y"]


def few_shot_name(few: FewShot) -> str:
    """The few-shot probe's figure."""
    return f"few_shot/{few.shots}/linear/y"


def _without_labels(
    needs: Requirements, recipe: Pretrain, dataset: Dataset, train: Labels, final: bool
) -> None:
    """One of the two splits has no label at all: a mistake where a key can name one that has some."""
    roles = {"data.test": recipe.data.test}
    if not train.images:
        roles = {("data.labelled" if recipe.data.labelled else "data.train"): recipe.labelled_split}
    ((key, split),) = roles.items()
    used = {*recipe.labelled_split.split("+"), *recipe.data.test.split("+")}
    others = [name for name in dataset.splits if name not in used and _has_labels(dataset, name)]
    why = f"no image of '{split}' ({key}) has a label"
    if final and (others or key == "data.labelled"):
        mends = key.replace("data.train", "data.labelled")
        ways = f"; set {mends}={others[0]}" if others else ""
        needs.without_labels = f"{dataset.where}: {why}, and probes need them{ways}"
    needs.leave_out(names_of_probes(needs.options) if final else ["knn/y/online"], why)


def _has_labels(dataset: Dataset, split: str) -> bool:
    if not dataset.splits[split].images:
        return False
    with Reader(dataset, split) as reader:
        return has_labels(reader)


def _check_probes(needs: Requirements, dataset: Dataset, train: Labels, test: Labels) -> None:
    """What the labelled images of each class decide."""
    if why := few_have_images(train, test):
        *probes, _ = names_of_probes(needs.options)  # kNN has no weights
        needs.leave_out(probes, why, PROBES)
        return
    options = needs.options
    few = options.few_shot
    if few and len(short := _classes_short(train, test, few.shots)):
        why = f"{counted(dataset, short, train)}, fewer than evaluate.few_shot.shots={few.shots}"
        if few.shots != FewShot().shots:
            needs.mistakes.append(f"{dataset.where}: {why}; lower it, or set evaluate.few_shot=null")
        needs.leave_out([few_shot_name(few)], why, ["few_shot"])
    if options.mlp and options.mlp.batch < options.mlp.fewest_images:
        needs.mistakes.append(
            f"evaluate.mlp.batch={options.mlp.batch}: its batch-norm takes statistics over a mini-batch; "
            f"give {options.mlp.fewest_images} or more"
        )
    if options.mlp and train.images < options.mlp.fewest_images:
        needed = options.mlp.fewest_images
        why = f"its batch-norm takes {needed} images, and '{train.split}' has {train.images} with a label"
        needs.leave_out(["probe/mlp"], why, ["mlp"])


def _classes_short(train: Labels, test: Labels, shots: int) -> np.ndarray:
    """Classes with fewer training images than `shots`; one without any image at all is no class of theirs."""
    there = (train.counts > 0) | (test.counts > 0)
    return np.flatnonzero(there & (train.counts < shots))
