"""A split that is not there: the line says what to give instead."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from data_pipelines.common.errors import UserError
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.shards.__main__ import main
from data_pipelines.shards.summary import more_test_images
from data_pipelines.sources.splits import in_test
from tests.helpers.tiny_dataset import pictures, png, samples, write_samples
from trainer.tasks.checks import check_splits


@pytest.mark.parametrize(
    ("source", "splits", "train", "expected"),
    [
        ("folder", ["train"], "train", ["data.test=train", "or remove the folder ", "test_percent=50"]),
        ("wds", ["train", "extra"], "train+extra", ["data.test=train+extra"]),  # which has splits
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
    assert ("test_percent" in str(refused.value)) == ("test_percent=50" in expected)


@pytest.mark.parametrize(
    ("images", "made_with", "percent"),
    [
        (20, {}, 30),  # made with the default of 10, at which none of them became test
        (1000, {"test_percent": 0}, 10),
        (20, {"test_percent": 30}, 40),
        (200, {"test_percent": 1}, 10),
        (3, {}, 50),
        (20, {"test_percent": 50}, None),
        (1, {}, None),
    ],
)
def test_the_percentage_that_is_offered_gives_test_images(tmp_path, images, made_with, percent):
    dataset = write_samples(tmp_path, {"train": samples(2)}, 2)
    splits = {"train": replace(dataset.splits["train"], images=images)}
    dataset = replace(dataset, source="folder", splits=splits, made_with=made_with)
    way = f"remove the folder {tmp_path} and make it again with test_percent={percent}"
    assert more_test_images(dataset) == (way if percent else "")
    assert more_test_images(replace(dataset, remote="https://example.org/data")) == ""


def test_what_is_offered_to_a_folder_of_few_images_works(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for number in range(20):
        if not in_test(f"{number}.png", 10):
            (tmp_path / "photos" / f"{number}.png").write_bytes(png(pictures(1, 8, 8)[0]))
    command = ["source=folder", f"from={tmp_path}/photos", f"to={tmp_path}/data"]
    assert main(command) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("no image became"))
    assert "a run takes data.test=train, the images trained on; or remove the folder " in line
    shutil.rmtree(tmp_path / "data")
    assert main([*command, line.split()[-1]]) == 0
    out = capsys.readouterr().out
    assert "no image became" not in out
    assert load_dataset(tmp_path / "data").splits["test"].images
