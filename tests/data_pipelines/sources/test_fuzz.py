"""Random folders and tars: the sources take what a slow reading of the same rules takes, and name the rest.

A failure prints its seed; `FUZZ_SEED=7 pytest -m slow tests/data_pipelines/sources/test_fuzz.py` repeats it.
"""

import json
import os
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.common.errors import UserError
from data_pipelines.dataset import Dataset, index_name, tar_path
from data_pipelines.shards.make import make
from data_pipelines.shards.verify import verify
from data_pipelines.sources.catalog import open_source
from tests.helpers import folder_oracle, random_trees, tar_oracle

SEED = int(os.environ.get("FUZZ_SEED", random.SystemRandom().randrange(10**6)))


def each(count: int, folder: Path):
    """(number, its random numbers, an empty folder); a failure within names the seed."""
    print(f"FUZZ_SEED={SEED}")  # pytest shows it where the test fails
    for number in range(count):
        root = folder / f"{number}"
        root.mkdir()
        yield number, random.Random(f"{SEED}/{number}"), root
        shutil.rmtree(root)


# ---- folders -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_random_folders_are_read_as_the_rules_say(tmp_path):
    outcomes: Counter = Counter()
    for number, rng, root in each(200, tmp_path):
        random_trees.plant(rng, root / "raw")
        percent = rng.choice([None, None, None, 0, 30])
        try:
            expected = folder_oracle.expected_of(root / "raw", percent)
        except folder_oracle.Refused as refused:
            with pytest.raises(UserError, match=str(refused)) as error:
                open_source("folder", root / "raw", test_percent=percent)
            assert "\n" not in str(error.value), number
            outcomes[str(refused)] += 1
            continue
        source = open_source("folder", root / "raw", test_percent=percent)
        outcomes["read"] += 1
        assert source.classes == expected.classes, number
        numbers: dict = {None: None} | {name: label for label, name in enumerate(expected.classes)}
        taken = {s: dict(zip(part.paths, part.labels, strict=True)) for s, part in source.splits.items()}
        images = {s: {p: numbers[n] for p, n in part.items()} for s, part in expected.images.items()}
        assert taken == images, number
        assert {entry["member"]: entry["why"] for entry in source.left_out} == expected.left_out, number
        assert len(source.left_out) == len(expected.left_out), number
        if outcomes["read"] % 5 == 0:
            check_made(root, percent, expected, numbers)
    print(outcomes)
    assert outcomes["read"] > 60, outcomes
    assert len(outcomes) > 5, outcomes


def check_made(root: Path, percent: int | None, expected, numbers: dict) -> None:
    """The whole make: each good picture is in its split with its bytes and label, each bad one is named."""
    good: dict = {s: Counter() for s in expected.images}
    bad = dict(expected.left_out)
    for split, part in expected.images.items():
        for path, name in part.items():
            data = (root / "raw" / path).read_bytes()
            if data in random_trees.PICTURES:
                good[split][data, -1 if name is None else numbers[name]] += 1
            else:
                bad[path] = "the picture"
    if not good["train"] or not all(good.values()):
        with pytest.raises(UserError, match=r"no image of .* can be used"):
            make("folder", root / "to", root / "raw", workers=1, progress=False, test_percent=percent)
        return
    made = make("folder", root / "to", root / "raw", workers=1, progress=False, test_percent=percent)
    assert {split: Counter(stored(made, split)) for split in made.splits} == good
    assert {entry["member"] for entry in made.left_out} == bad.keys()
    assert list(made.classes) == expected.classes
    assert verify(root / "to", progress=False) == []


def stored(made: Dataset, split: str) -> list[tuple[bytes, int]]:
    """(bytes, label) of a split's images, by its indices."""
    images = []
    for shard in made.splits[split].shards:
        data = tar_path(made.root, shard).read_bytes()
        for row in np.load(made.root / index_name(shard.name), allow_pickle=False):
            start = int(row["offset"])
            images.append((data[start : start + int(row["size"])], int(row["label"])))
    return images


# ---- tars ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_random_tars_are_read_as_the_rules_say(tmp_path):
    outcomes: Counter = Counter()
    for number, rng, root in each(200, tmp_path):
        raw = root / "raw"
        raw.mkdir()
        options = random_trees.fill_tars(rng, raw)
        if why := refused(raw, **options):
            with pytest.raises(UserError, match=why) as error:
                open_source("wds", raw, **options)
            assert "\n" not in str(error.value), number
            outcomes[why] += 1
            continue
        source = open_source("wds", raw, **options)
        outcomes["read"] += 1
        percent = 10 if options["test_percent"] is None else options["test_percent"]
        left_out, total, in_train = [], 0, 0
        for split, part in source.splits.items():
            for chunk in part.chunks(0):
                rows, left, _ = chunk.index()
                left_out += [(entry["member"], entry["why"]) for entry in left]
                total += len(rows)
                in_train += len(rows) * (split == "train")
                expected = expected_tar(Path(chunk.paths[0]), options["label"], source.classes)
                images = [(o, len(d), n) for _, o, d, n in in_split(expected, split, percent, source)]
                assert rows[["offset", "size", "label"]].tolist() == images, (number, chunk.paths)
        count = len(left_out)
        check_left_out(number, left_out, tars_of(source), options["label"], source.classes)
        if outcomes["read"] % 5 == 0 and in_train:
            check_indexed(root, options, total, count)
    print(outcomes)
    assert outcomes["read"] > 100, outcomes
    assert len(outcomes) > 2, outcomes


def refused(raw: Path, label: str | None, test_percent: int | None) -> str | None:
    """Why tars are refused as a whole, if they are."""
    tars = [path for path in sorted(raw.rglob("*.tar")) if "#recycle" not in path.parts]
    named = [
        path
        for path in tars
        if {"train", "val", "test"} & set(str(path.relative_to(raw)).replace("-", "/").split("/"))
    ]
    classes = raw / "classes.txt"
    if classes.exists() and "\n\n" in classes.read_text():
        return r"classes\.txt: line 2 is empty"
    if label is not None:
        entries = [value for path in tars for value in jsons(path)]
        dicts = [value for value in entries if isinstance(value, dict)]
        first = next((value[label] for value in dicts if value.get(label) is not None), None)
        if isinstance(first, str) and not first.isdigit() and not classes.exists():
            return "is text in"
        if not any(label in value for value in dicts):
            return "label=kind: "
    if named and len(named) < len(tars):
        return "rename either"
    return None


def jsons(path: Path) -> list:
    """What the json members of a tar hold, of those that can be read."""
    values = []
    for archive in tar_oracle.read_archives(path.read_bytes())[0]:
        for part in archive:
            if part.name.endswith(".json") and part.kind in "0\0":
                try:
                    values.append(json.loads(part.data))
                except ValueError:
                    values.append(None)
    return values


def tars_of(source) -> list[Path]:
    return [Path(path) for path in sorted({path for part in source.splits.values() for path in part.paths})]


def expected_tar(path: Path, label: str | None, classes: list[str] | None):
    return tar_oracle.expected_of(path.read_bytes(), label, classes)


def in_split(expected, split: str, percent: int, source) -> list:
    """The images of a tar that belong to a split."""
    if source.splits[split].percent is None:
        return expected.images
    return [i for i in expected.images if folder_oracle.in_test(i[0], percent) == (split == "test")]


REMARKS = {"damaged": "neither the sample before", "surplus": "behind its end", "empty": "has no members"}


def check_left_out(number: int, left_out: list[tuple[str, str]], tars: list[Path], label, classes) -> None:
    """Each member that becomes nothing is named once, with its reason."""
    wanted: list[tuple[str, str]] = []
    for path in tars:
        expected = expected_tar(path, label, classes)
        wanted += [(str(path), REMARKS[expected.remark])] if expected.remark else []
        offsets = {
            str(p.offset): p.name for part in tar_oracle.read_archives(path.read_bytes())[0] for p in part
        }
        wanted += [(f"{path}: {offsets.get(name, name)}", why) for _, name, why in expected.left_out]
    assert sorted(member for member, _ in left_out) == sorted(member for member, _ in wanted), number
    for member, word in wanted:
        match = next((entry for entry in left_out if entry[0] == member and word in entry[1]), None)
        assert match, (number, member, word, [why for name, why in left_out if name == member])
        left_out.remove(match)


def check_indexed(root: Path, options: dict, images: int, left_out: int) -> None:
    made = make("wds", root / "to", root / "raw", workers=1, progress=False, **options)
    assert sum(part.images for part in made.splits.values()) == images
    assert len(made.left_out) == left_out
    assert verify(root / "to", progress=False) == []
