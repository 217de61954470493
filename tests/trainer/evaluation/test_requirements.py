"""What is measured of which labels, decided before anything is trained."""

from dataclasses import replace

import numpy as np
import pytest

from data_pipelines.common.errors import UserError
from tests.helpers.labelled_dataset import write_labelled
from trainer.evaluation import labels as module
from trainer.evaluation.labels import count_labels
from trainer.evaluation.requirements import left_out_online, requirements
from trainer.recipe.loading import load

MANY, TESTED = [30, 30, 30, 30], [5, 5, 5, 5]


def needs(tmp_path, *words, train=MANY, test=TESTED, online=False, **more):
    dataset = write_labelled(tmp_path / "data", train=train, test=test, **more)
    words = ["evaluate.svm={}", "evaluate.linear_sgd={}", "evaluate.every=128", *words]
    recipe = load(["recipe=quickstart", f"data.root={dataset.root}", "data.source=folder", *words]).recipe
    return requirements(recipe, recipe.evaluate, dataset, online=online)


def test_enough_of_everything_costs_no_line(tmp_path):
    decided = needs(tmp_path, test=[20] * 4, online=True)
    assert (decided.left_out, decided.warnings, decided.mistakes) == ({}, [], [])
    assert decided.options.few_shot
    assert decided.options.mlp


@pytest.mark.parametrize(
    ("train", "test", "missing"),
    [
        ([30, 3, 30, 30], TESTED, "dog (class 1) has 3 training images"),
        ([30, 30, 30, 0], TESTED, "pig (class 3) has no training image"),
        ([30, 30, 30, 4], [5, 5, 5, 0], "pig (class 3) has 4 training images"),
        ([1, 1, 1, 1], TESTED, "cow (class 2) has 1 training image and 1 more class"),
    ],
)
def test_a_class_with_too_few_images_costs_the_few_shot_probe(tmp_path, train, test, missing):
    decided = needs(tmp_path, train=train, test=test)
    assert decided.left_out.keys() == {"few_shot/5/linear/y"}
    why = decided.left_out["few_shot/5/linear/y"]
    assert missing in why
    assert why.endswith("fewer than evaluate.few_shot.shots=5")
    assert f"few_shot/5/linear/y: left out, {why}" in decided.warnings
    assert decided.options.few_shot is None
    assert decided.options.linear
    assert not decided.mistakes


def test_shots_that_someone_asked_for_are_a_mistake_where_there_are_fewer(tmp_path):
    (mistake,) = needs(tmp_path, "evaluate.few_shot.shots=31").mistakes
    assert "has 30 training images" in mistake
    assert mistake.endswith("evaluate.few_shot.shots=31; lower it, or set evaluate.few_shot=null")


def test_a_class_of_the_test_images_alone_is_named(tmp_path):
    lines = needs(tmp_path, train=[30, 0, 30, 30]).warnings
    assert "'train' has no image of dog (class 1), and 'test' has: every probe misses those" in lines


def test_a_gap_in_the_labels_costs_nothing_and_is_named(tmp_path):
    """Labels that begin at 1: no image is of class 0."""
    decided = needs(tmp_path, train=[0, 30, 30, 30], test=[0, 5, 5, 5])
    assert not decided.left_out
    (line,) = decided.warnings
    assert "neither 'train' nor 'test' has an image of cat (class 0)" in line


def test_names_of_classes_are_one_line_of_bounded_length(tmp_path):
    classes = ("cat\ncat", "d" * 300, "cow")
    decided = needs(tmp_path, classes=classes, train=[3, 3, 30], test=[5, 5, 5])
    (line,) = decided.warnings
    assert "cat cat (class 0) has 3" in line
    assert f"{'d' * 39}… (class 1)" in line


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ([60, 0, 0, 0], [20, 0, 0, 0], ["of 'train' and 'test' are of one class, cat (class 0)"]),
        (
            [600, 5, 0, 0],
            TESTED,
            ["99.17% of the labelled images of 'train' are of one class, cat (class 0)"],
        ),
        (MANY, [0, 1, 0, 0], ["all labelled images of 'test' are of one class, dog (class 1)"]),
        ([99, 1, 0, 0], [99, 1, 0, 0], []),  # not beyond 99 %
    ],
)
def test_a_class_that_is_nearly_everything_is_a_line(tmp_path, train, test, words):
    lines = [line for line in needs(tmp_path, train=train, test=test).warnings if "of one class" in line]
    assert len(lines) == len(words)
    assert all(word in line for word, line in zip(words, lines, strict=True))


def test_few_test_images_cost_the_map_and_what_is_estimated_in_groups(tmp_path):
    decided = needs(tmp_path, test=[1, 1, 1, 1], online=True)
    assert decided.left_out == {
        "mi/…/held_out": "a group of negatives takes 64 test images, and 'test' has 4",
        "figures/tsne.png": "t-SNE takes 10 test images or more, and gets 4",
    }
    one = needs(tmp_path / "one", test=[1, 0, 0, 0], online=True)
    assert one.left_out["health/…"] == "it compares 2 test images or more, and 'test' has 1"


def test_smaller_groups_of_negatives_come_in_whole_groups_of_batch_norm(tmp_path):
    decided = needs(tmp_path, "groups.negatives=4", test=[2, 2], online=True)
    why = "whole groups (groups.norm=64, groups.negatives=4) take 64 test images, and 'test' has 4"
    assert decided.left_out["mi/…/held_out"] == why


def test_few_online_images_are_the_key_that_asked_for_them(tmp_path):
    decided = needs(tmp_path, "evaluate.online_images=32", test=[20] * 4, online=True)
    assert decided.left_out == {
        "mi/…/held_out": "a group of negatives takes 64 test images, and evaluate.online_images=32"
    }


def test_one_training_image_costs_what_batch_norm_computes(tmp_path):
    decided = needs(tmp_path, "evaluate.recalibrate=true", train=[1, 0, 0, 0], test=TESTED)
    assert decided.left_out.keys() == {
        "control/untrained_recalibrated",
        "not_recalibrated",
        "probe/mlp",
        "few_shot/5/linear/y",
    }
    assert not decided.options.recalibrate
    assert decided.options.mlp is None
    assert decided.options.svm


def test_keys_that_can_never_work_are_mistakes(tmp_path):
    assert "evaluate.mlp.batch=1:" in needs(tmp_path, "evaluate.mlp.batch=1").mistakes[0]
    assert "evaluate.online_images=1:" in needs(tmp_path, "evaluate.online_images=1").mistakes[0]


# ---- splits without labels ---------------------------------------------------------------------------


@pytest.mark.parametrize(("lacking", "key"), [("train", "data.train"), ("test", "data.test")])
def test_a_split_without_labels_costs_every_probe(tmp_path, lacking, key):
    decided = needs(tmp_path, **{lacking: [0, 0, 0, 0, 20]})
    assert decided.left_out == dict.fromkeys(
        ["probe/linear", "probe/linear_sgd", "probe/mlp", "probe/svm", "few_shot/5/linear/y", "knn/y"],
        f"no image of '{lacking}' ({key}) has a label",
    )
    assert not decided.without_labels


def test_a_split_without_labels_is_refused_where_a_key_can_name_one_that_has_some(tmp_path):
    unlabelled, labelled = [0, 0, 0, 0, 20], [5, 5, 5, 5]
    line = needs(tmp_path / "test", test=unlabelled, val=labelled).without_labels
    assert line.endswith("of 'test' (data.test) has a label, and probes need them; set data.test=val")
    words = ["data.train=more"]
    line = needs(tmp_path / "train", *words, train=labelled, more=unlabelled).without_labels
    assert line.endswith("(data.train) has a label, and probes need them; set data.labelled=train")
    words = ["data.train=train+more", "data.labelled=more"]
    assert "'more' (data.labelled)" in needs(tmp_path / "labelled", *words, more=unlabelled).without_labels
    # Labels of some of the images that are trained on are enough.
    assert not needs(tmp_path / "part", "data.train=train+more", more=unlabelled).left_out


# ---- counting ------------------------------------------------------------------------------------------


def test_a_long_split_is_counted_until_every_class_has_enough(tmp_path, monkeypatch):
    dataset = write_labelled(tmp_path / "data", train=[100, 100, 0, 0])
    monkeypatch.setattr(module, "SCAN", 50)
    monkeypatch.setattr(module, "COUNTED", 100)
    assert count_labels(dataset, "train", 1).counts.tolist() == [100, 100, 0, 0]  # two classes may yet come
    two = replace(dataset, classes=dataset.classes[:2])
    assert count_labels(two, "train", 5).counts.tolist() == [100, 50]


def test_a_label_that_is_no_class_is_an_error(tmp_path):
    dataset = replace(write_labelled(tmp_path / "data", train=[1, 1, 1, 1]), classes=("cat", "dog"))
    with pytest.raises(UserError, match="of 'train' has the label 3, and there are 2 classes, 0 to 1"):
        count_labels(dataset, "train", 1)
    assert np.array_equal(count_labels(replace(dataset, classes=tuple("abcd")), "train", 1).counts, [1] * 4)


# ---- labels that are no classes ------------------------------------------------------------------------


def test_one_stray_label_costs_the_probes_and_no_memory(tmp_path):
    """A million classes, of which three have images."""
    classes = tuple(map(str, range(1000)))
    decided = needs(tmp_path, classes=classes, train=[30, 30, *[0] * 997, 1], test=[5, 5])
    names = ["probe/linear", "probe/linear_sgd", "probe/mlp", "probe/svm", "few_shot/5/linear/y"]
    why = decided.left_out["probe/linear"]
    assert decided.left_out == dict.fromkeys(names, why)
    assert why.startswith(
        "3 of 1,000 classes have an image, and a probe has weights for all; the largest label"
    )
    assert " label is 999: mend it if it is no class" in why
    assert not any(
        getattr(decided.options, key) for key in ("linear", "linear_sgd", "mlp", "svm", "few_shot")
    )
    assert not any("neither" in line for line in decided.warnings)


@pytest.mark.parametrize("train", [[20] * 10 + [0] * 990, [20] * 2 + [0] * 996 + [20]])
def test_classes_without_images_cost_nothing_where_they_are_no_million(tmp_path, train):
    """A hundredth of many classes, and a few of fewer."""
    decided = needs(tmp_path, classes=tuple(map(str, range(len(train)))), train=train, test=[20, 20])
    assert "probe/linear" not in decided.left_out
    assert decided.options.linear


# ---- images that are trained on and tested -----------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "line", "held_out"),
    [
        (["data.test=train"], "all 120 test images are also in data.train=train:", True),
        (["data.train=train+test"], "all 64 test images are also in data.train=train+test:", True),
        (["data.test=train+test"], "120 of 184 test images are also in data.train=train:", True),
        (["data.labelled=test"], "all 64 test images are also in data.labelled=test:", False),
        (
            ["data.train=train+test", "data.labelled=test"],
            "are also in data.train=train+test, and all 64 test images are also in data.labelled=test: acc",
            True,
        ),
        (["data.train=train+test", "data.labelled=train"], "also in data.train=train+test: accuracies", True),
        (["data.test=copy"], "all 120 test images are also in data.train=train:", True),  # the same tar
        (["data.train=train+more"], None, False),
    ],
)
def test_figures_on_images_that_were_learned_from_say_so(tmp_path, words, line, held_out):
    more = {"test": [16] * 4, "copy": MANY, "more": [0, 7]}
    decided = needs(tmp_path, *words, online=True, **more)
    about = [text for text in decided.warnings if text.startswith("data.test=")]
    assert len(about) == (line is not None)
    if line:
        assert line in about[0]
        assert "accuracies on them say nothing about new images" in about[0]
    assert ("mi/…/held_out" in decided.left_out) == held_out
    if held_out:
        assert "trained on (data.train=" in decided.left_out["mi/…/held_out"]


def test_what_is_left_out_during_training_is_known_at_its_end(tmp_path):
    root = write_labelled(tmp_path / "data", train=MANY, test=[1, 1, 1, 1])
    words = ["recipe=quickstart", f"data.root={root.root}", "data.source=folder"]
    recipe = load([*words, "evaluate.every=128"]).recipe
    assert left_out_online(recipe, root) == {
        "mi/…/held_out": "a group of negatives takes 64 test images, and 'test' has 4"
    }
    assert not left_out_online(load([*words, "evaluate.every=0"]).recipe, root)
