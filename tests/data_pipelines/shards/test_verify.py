"""verify finds every damage, and loading what is amiss at a glance."""

import gzip
import io
import json
import os
import pickle
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.common.errors import UserError
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.shards.__main__ import main


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def rewrite(path: Path, change) -> None:
    """The tar again, its members passed through change(name, data), with dataset.json made to agree."""
    with tarfile.open(path) as old:
        members = [(member.name, old.extractfile(member).read()) for member in old]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as new:
        for name, data in members:
            name, data = change(name, data)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))


def image_place(root: Path, row: int) -> int:
    index = np.load(root / "train/000000.npy", allow_pickle=False)
    return int(index[row]["offset"]) + int(index[row]["size"]) // 2


MEMBER = 5120  # bytes that an image of noise and its label take in the tar

DAMAGES = {
    "a flipped byte in an image": (
        lambda root: flip(root / "train/000000.tar", image_place(root, 3)),
        [r"train/000000\.tar was changed", r"'train_00003\.png' cannot be decoded"],
    ),
    "a flipped byte in a header": (
        lambda root: flip(root / "train/000000.tar", MEMBER + 3),
        [r"train/000000\.tar was changed", r"train/000000\.tar is damaged or cut short at byte 5,120"],
    ),
    "a flipped byte in an index": (
        lambda root: flip(root / "train/000001.npy", -1),
        [r"train/000001\.npy was changed", r"'train_00119\.png': its index row is .* expected"],
    ),
    "a tar cut in the middle of a member": (
        lambda root: os.truncate(root / "train/000001.tar", 100_000),
        [r"train/000001\.tar has 100,000 bytes where", r"cut short at byte 100,000, within 'train_\d+\.png'"],
    ),
    "a tar cut between two members": (
        lambda root: os.truncate(root / "train/000001.tar", 10 * MEMBER),
        [r"train/000001\.tar has 51,200 bytes where", r"cut short at byte 51,200 of 51,200"],
    ),
    "an empty tar": (
        lambda root: os.truncate(root / "train/000001.tar", 0),
        [r"train/000001\.tar has 0 bytes where", r"not a whole tar file"],
    ),
    "a missing index": (
        lambda root: (root / "test/000000.npy").unlink(),
        [r"test/000000\.npy cannot be found \(No such file or directory\)"],
    ),
    "a missing shard": (
        lambda root: (root / "test/000000.tar").unlink(),
        [r"test/000000\.tar cannot be found \(No such file or directory\)"],
    ),
    "an index that is a pickle": (
        lambda root: (root / "test/000000.npy").write_bytes(pickle.dumps([1])),
        [r"test/000000\.npy has \d+ bytes", r"test/000000\.npy cannot be read as an index"],
    ),
    "a compressed shard": (
        lambda root: (root / "test/000000.tar").write_bytes(gzip.compress(b"x" * 9999)),
        [r"test/000000\.tar is compressed \(gzip\) .* rewrite it with `gzip -dc "],
    ),
    "a member that is no image": (
        lambda root: rewrite(
            root / "test/000000.tar",
            lambda name, data: (name, b"x" * len(data) if name == "test_00004.png" else data),
        ),
        [
            r"test/000000\.tar was changed",
            r"'test_00004\.png' cannot be decoded \(cannot identify",
        ],
    ),
    "a label that is none": (
        lambda root: rewrite(
            root / "test/000000.tar",
            lambda name, data: (name, b"?" if name == "test_00004.cls" else data),
        ),
        [r"test/000000\.tar was changed", r"'test_00004\.cls' holds b'\?', expected a whole number"],
    ),
    "a label out of range": (
        lambda root: rewrite(
            root / "test/000000.tar",
            lambda name, data: (name.replace("00004", "x"), b"77" if name == "test_00004.cls" else data),
        ),
        [
            r"was changed",
            r"'test_x\.png' has label 77, expected 0\.\.9, or -1",
            r"'test_x\.png': its index row",
        ],
    ),
    "a member without its label": (
        lambda root: rewrite(
            root / "test/000000.tar",
            lambda name, data: ("other.cls" if name == "test_00004.cls" else name, data),
        ),
        [r"was changed", r"'other' has not both of an image and <key>\.cls"],
    ),
    "a shard too many": (
        lambda root: (root / "test/000001.tar").write_bytes(b""),
        [r"test/000001\.tar is not in dataset\.json"],
    ),
    "another mean": (
        lambda root: (root / "dataset.json").write_text(
            json.dumps({**json.loads((root / "dataset.json").read_text()), "mean": [0.5, 0.5, 0.5]})
        ),
        [r"dataset\.json: mean and std are not those of the train images"],
    ),
    "a broken dataset.json": (
        lambda root: os.truncate(root / "dataset.json", 300),
        [r"dataset\.json is broken \(.*\); remove the folder and make it with `python -m data_pipelines"],
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_finds_and_names(made, capsys, damage):
    inflict, expected = DAMAGES[damage]
    inflict(made)
    assert main(["verify", str(made)]) == 1
    *lines, summary = capsys.readouterr().out.splitlines()
    count = "1 problem" if len(expected) == 1 else f"{len(expected)} problems"
    assert summary == f"{made}: {count}; remove the folder and make it again"
    assert len(lines) == len(expected), lines
    for line, pattern in zip(lines, expected, strict=True):
        assert re.search(pattern, line), (line, pattern)


def test_verify_says_what_is_whole_and_what_is_no_data_set(made, tmp_path, capsys):
    assert main(["verify", str(made)]) == 0
    assert "all of 180 images in 4 shards are as they were written" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "nowhere")]) == 2
    assert "nowhere does not exist; make it with `python -m data_pip" in capsys.readouterr().err


def test_loading_is_refused_where_something_is_amiss(made):
    whole = json.loads((made / "dataset.json").read_text())

    def refused(match, **changes):
        (made / "dataset.json").write_text(json.dumps({**whole, **changes}))
        with pytest.raises(UserError, match=match) as error:
            load_dataset(made)
        assert "\n" not in str(error.value)
        assert "python -m data_pipelines.shards source=" in str(error.value)

    refused("has format 2, this version reads 1", format=2)
    refused("is broken .*fingerprint", fingerprint="0")
    refused("is broken .*mean is", mean=[0.5])
    refused("is broken", splits=[])
    refused("is broken", classes=None)
    refused("is broken .*unexpected keyword", surplus=1)
    splits = json.loads(json.dumps(whole["splits"]))
    splits["train"]["shards"][0]["name"] = "train/../../other/000000.tar"
    refused("is broken .*shard name", splits=splits)
    (made / "dataset.json").write_text(json.dumps(whole))
    with open(made / "train/000002.tar", "ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match=r"000002\.tar has [\d,]+ bytes where dataset\.json says"):
        load_dataset(made)
