"""Each file of a data set, damaged in each way: it is made anew, or one line says what is wrong."""

import json

import pytest

from data_pipelines.dataset_loading import load_dataset
from data_pipelines.shards.__main__ import main
from data_pipelines.shards.write import UNFINISHED

WAYS = {
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"\xff\xfe\x00garbage\x00\n\x80" * 9),
    "list": lambda path: path.write_text("[]\n"),
    "null": lambda path: path.write_text("null\n"),
    "other": lambda path: path.write_text('{"source": "cifar10", "made_with": []}'),
    "nested": lambda path: path.write_text("[" * 100_000),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}
NOTE = f"{UNFINISHED}/train-000000.tar.json"
FILES = ["dataset.json", "train/000000.tar", "train/000000.npy", f"{UNFINISHED}/plan.json", NOTE, ".lock"]


CASES = [(file, way) for file in FILES for way in (WAYS if "json" in file else ("empty", "half", "folder"))]


@pytest.mark.parametrize(("file", "way"), CASES)
def test_a_damaged_file_of_a_data_set_is_no_traceback(capsys, raw, made, file, way):
    """Finished ones for the first three files, unfinished ones for the others."""
    before = load_dataset(made).fingerprint
    if file not in FILES[:3]:
        (made / "dataset.json").unlink()
        (made / UNFINISHED).mkdir()
        plan = {"source": "cifar10", "images_per_shard": 60, "made_with": {}}
        (made / UNFINISHED / "plan.json").write_text(json.dumps(plan))
        (made / NOTE).write_text(json.dumps({"input": "", "entry": {}}))
    WAYS[way](made / file)
    for words in (["verify", str(made)], ["source=cifar10", f"from={raw}", f"to={made}", "workers=1"]):
        capsys.readouterr()
        status = main(words)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        if status == 2:
            assert err.startswith("error: ")
            assert len(err.splitlines()) == 1
            assert str(made) in err
        elif "source=cifar10" in words:
            assert status == 0
            assert load_dataset(made).fingerprint == before
