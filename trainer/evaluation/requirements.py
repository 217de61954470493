"""What an evaluation requires of a data set's labels, and what of it these labels cannot give.

It is looked at before the first step, and again by the evaluation, so that both decide alike: what the data
cannot give is left out with a reason, and never what else is measured with it. A key of the recipe that asks
for more than there is (a number of shots, a split without labels) is a mistake of its user's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from data_pipelines.common.errors import UserError
from data_pipelines.dataset import Dataset
from data_pipelines.reader import Reader
from trainer.evaluation.features import SCAN, has_labels
from trainer.evaluation.figures.tsne import FEWEST
from trainer.recipe.evaluation import Evaluate, FewShot
from trainer.recipe.schema import Pretrain

COUNTED = 2**17  # images of a split whose labels are counted; of a longer one, more where a class lacks some
NAMED = 3  # classes that a line names
LETTERS = 40  # of a class's name in a line
MOST = 0.99  # share of the images in one class beyond which an accuracy says little


@dataclass(frozen=True)
class Labels:
    """Labelled images of a split by class, int64 [classes]; of a long one, those that were counted."""

    split: str
    counts: np.ndarray

    @property
    def images(self) -> int:
        return int(self.counts.sum())


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


def count_labels(dataset: Dataset, split: str, enough: int) -> Labels:
    """The labels of a split, of a very long one as far as each class has `enough` images.

    Raises:
        UserError: a label is none of the classes, or an index cannot be read.
    """
    classes = len(dataset.classes)
    counts = np.zeros(classes, np.int64)
    with Reader(dataset, split) as reader:
        for start in range(0, reader.images, SCAN):
            stop = min(start + SCAN, reader.images)
            labels = reader.entries(np.arange(start, stop))["label"]
            if labels.max() >= classes:
                raise UserError(
                    f"{dataset.where}: an image of '{split}' has the label {labels.max()}, and there are "
                    f"{classes} classes, 0 to {classes - 1}; make the data set anew"
                )
            counts += np.bincount(labels[labels >= 0], minlength=classes)
            if stop >= COUNTED and counts.min() >= enough:
                break
    return Labels(split, counts)


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
            needs.warnings += _about_classes(dataset, train, test)
        else:
            _without_labels(needs, recipe, dataset, train, final)
    if final and points < FEWEST:
        needs.leave_out(["figures/tsne.png"], f"t-SNE takes {FEWEST} test images or more, and gets {points}")
    return needs


# ---- what the numbers of images decide -------------------------------------------------------------


def _check_online(needs: Requirements, recipe: Pretrain, dataset: Dataset) -> None:
    test, options = dataset.split(recipe.data.test).images, needs.options
    seen = min(test, options.online_images)
    cause = f"'{recipe.data.test}' has {test:,}"
    if seen < test:
        cause = f"evaluate.online_images={options.online_images}"
    unit = recipe.objective.heldout_batch(recipe.groups, recipe.batch)
    negatives = recipe.objective.uses_batch_negatives or recipe.objective.momentum_queue is not None
    if negatives and seen < unit:
        needs.leave_out(["mi/…/held_out"], f"a group of negatives takes {unit:,} test images, and {cause}")
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
    options = needs.options
    few = options.few_shot
    if few and len(short := _classes_short(train, test, few.shots)):
        why = f"{_counted(dataset, short, train)}, fewer than evaluate.few_shot.shots={few.shots}"
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


# ---- lines -----------------------------------------------------------------------------------------


def class_name(dataset: Dataset, label: int) -> str:
    """A class for a line on the screen: `cat (class 1)`."""
    name = " ".join(dataset.classes[label].split())
    name = name if len(name) <= LETTERS else name[: LETTERS - 1] + "…"
    return f"{name} (class {label})"


def _listed(dataset: Dataset, labels: np.ndarray) -> str:
    names = [class_name(dataset, label) for label in labels[:NAMED].tolist()]
    return ", ".join(names) + (f" and {len(labels) - NAMED:,} more" if len(labels) > NAMED else "")


def _counted(dataset: Dataset, labels: np.ndarray, train: Labels) -> str:
    """`cat (class 1) has 3 training images, dog (class 2) has no training image and 7 more classes`."""
    parts = []
    for label in labels[:NAMED].tolist():
        count = int(train.counts[label])
        parts.append(f"{class_name(dataset, label)} has {count or 'no'} training image{'s' * (count > 1)}")
    more = len(labels) - NAMED
    return ", ".join(parts) + (f" and {more:,} more class{'es' * (more > 1)}" if more > 0 else "")


def _about_classes(dataset: Dataset, train: Labels, test: Labels) -> Iterator[str]:
    """What accuracies on these labels hide."""
    unseen = np.flatnonzero((train.counts == 0) & (test.counts > 0))
    if len(unseen):
        yield (
            f"'{train.split}' has no image of {_listed(dataset, unseen)}, and '{test.split}' has: "
            "every probe misses those"
        )
    empty = np.flatnonzero((train.counts == 0) & (test.counts == 0))
    if len(empty):
        yield (
            f"neither '{train.split}' nor '{test.split}' has an image of {_listed(dataset, empty)}: "
            "accuracies are of the other classes"
        )
    single: dict[int, list[str]] = {}
    for labels in (train,) if train.split == test.split else (train, test):
        largest = int(labels.counts.argmax())
        share = labels.counts[largest] / labels.images
        if labels.counts[largest] == labels.images:
            single.setdefault(largest, []).append(f"'{labels.split}'")
        elif share > MOST:
            yield (
                f"{share:.2%} of the labelled images of '{labels.split}' are of one class, "
                f"{class_name(dataset, largest)}: who always guesses it has that accuracy"
            )
    for label, splits in single.items():
        yield (
            f"all labelled images of {' and '.join(splits)} are of one class, {class_name(dataset, label)}: "
            "accuracies say nothing about the encoder"
        )
