"""A split that is not there: the line says what to give instead."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from data_pipelines.common.errors import UserError
from tests.helpers.tiny_dataset import samples, write_samples
from trainer.tasks.checks import check_splits


@pytest.mark.parametrize(
    ("source", "splits", "train", "expected"),
    [
        ("folder", ["train"], "train", ["data.test=train", "test_percent=10"]),
        ("wds", ["train", "extra"], "train+extra", ["data.test=train+extra", "test_percent=10"]),
        ("stl10", ["train"], "train", ["data.test=train"]),
        ("folder", ["train", "val"], "train", ["it has train, val; set data.test to one of its splits"]),
    ],
)
def test_without_a_test_split_the_line_offers_what_can_be_done(tmp_path, source, splits, train, expected):
    dataset = replace(write_samples(tmp_path, {name: samples(2) for name in splits}, 2), source=source)
    data = SimpleNamespace(train=train, test="test")
    recipe = SimpleNamespace(data=data, labelled_split="train")
    with pytest.raises(UserError, match=r"data.test=test: ") as refused:
        check_splits(recipe, dataset)
    assert "\n" not in str(refused.value)
    for words in expected:
        assert words in str(refused.value)
    assert ("test_percent" in str(refused.value)) == ("test_percent=10" in expected)
