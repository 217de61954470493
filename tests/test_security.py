"""What others wrote (weights, archives, indices, checkpoints) is read, and never run."""

import ast
import hashlib
import io
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data_pipelines.common.errors import UserError
from data_pipelines.dataset import Split, describe, fingerprint
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.reader import Reader
from data_pipelines.shards import verify
from data_pipelines.sources import cifar
from trainer.checkpoints.format import manifest_digest
from trainer.checkpoints.load import load, newest
from trainer.checkpoints.save import snapshot, write
from trainer.exports import torchvision_weights
from trainer.exports.encoder import load_encoder

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [
    path for package in ("trainer", "data_pipelines") for path in sorted((ROOT / package).rglob("*.py"))
]


# ---- what the code may not call ---------------------------------------------------------------------


FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "pty.spawn"),
    *("pickle.load", "pickle.loads", "marshal.load", "marshal.loads", "shelve.open", "joblib.load"),
    *("torch.jit.load", "torch.hub.load", "pandas.read_pickle", "np.fromregex", "runpy.run_path"),
    *("yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all"),
    *("tempfile.mktemp", "os.tempnam", "shutil.unpack_archive", "os.chmod", "os.umask"),
}
ASKS = {"torch.load": ("weights_only", "True"), "np.load": ("allow_pickle", "False")}
METHODS = {"extract", "extractall", "read_pickle", "broadcast_object_list", "all_gather_object", "chmod"}


def unsafe_calls(text: str) -> list[str]:
    """The calls in a module's text that could run what they read, or write where they should not."""
    calls = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name, options = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        name = name.replace("numpy.", "np.")
        wanted = ASKS.get(name)
        if (
            name in FORBIDDEN
            or name.rpartition(".")[2] in METHODS
            or (wanted and options.get(wanted[0]) != wanted[1])
            or (name == "yaml.load" and "Safe" not in options.get("Loader", ""))
            or options.get("shell", "False") != "False"
        ):
            calls.append(ast.unparse(node))
    return calls


def test_the_search_finds_what_it_looks_for():
    for bad in (
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "numpy.load(p)",
        "np.load(p, allow_pickle=True)",
        "pickle.loads(b)",
        "yaml.load(t, Loader=yaml.Loader)",
        "eval('1')",
        "subprocess.run(c, shell=True)",
        "tar.extractall()",
        "os.system('x')",
    ):
        assert unsafe_calls(bad) == [ast.unparse(ast.parse(bad))]
    for good in ("objective.eval()", "torch.load(p, weights_only=True)", "yaml.safe_load(t)", "run(['a'])"):
        assert unsafe_calls(good) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_runs_what_it_reads(path):
    text = path.read_text(encoding="utf-8")
    calls = unsafe_calls(text)
    if path.name == "collectives.py":  # ranks of one run, which trust each other, hand each other objects
        calls = [call for call in calls if "_object(" not in call and "_object_list(" not in call]
    if (
        path.name == "torchscript.py"
    ):  # a program by its nature: run where its digest is known, and only there
        calls = [call for call in calls if not call.startswith("torch.jit.load(")]
    assert calls == []
    assert "/tmp" not in text, "a name that others could make first"
    unpickles = re.findall(
        r"^\s*(?:import|from) (pickle|dill|cloudpickle|joblib|shelve|marshal)\b", text, re.M
    )
    assert unpickles == (["pickle"] if path.name == "cifar.py" else [])  # whose unpickler imports no name


# ---- pickles ----------------------------------------------------------------------------------------


class Payload:
    """Unpickled, it makes a folder: the mark that something was run."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def payload(tmp_path):
    """A payload that works, and has left no mark at the test's end."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "mark")))
    (tmp_path / "mark").rmdir()
    yield Payload(tmp_path / "mark")
    assert not (tmp_path / "mark").exists()


def refused(call, *arguments) -> str:
    """The one line of a UserError."""
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_foreign_weights_that_are_a_program(payload, tmp_path):
    weights = {"conv1.weight": torch.zeros(1), "bn1.weight": payload}
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(payload, protocol=2))
    torch.save({"state_dict": weights}, tmp_path / "zip.pt")
    torch.save({"state_dict": weights}, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    for name in ("bare.pt", "zip.pt", "legacy.pt"):
        assert "no weights can be read" in refused(torchvision_weights.read, tmp_path / name)
        assert "no exported encoder" in refused(load_encoder, tmp_path / name)


@pytest.mark.parametrize(
    "encoder", ['{"kind": "os"}', '{"kind": "resnet", "path": "x"}', "[]", '{"kind": ["dim"]}', "[" * 9999]
)
def test_an_exported_encoder_whose_options_are_made_up(tmp_path, encoder):
    save_file({"w": torch.zeros(1)}, tmp_path / "e.safetensors", metadata={"encoder": encoder})
    assert "no exported encoder" in refused(load_encoder, tmp_path / "e.safetensors")


@pytest.mark.parametrize("length", [0, 8, 10**15])
def test_a_checkpoints_part_that_is_a_program(payload, tmp_path, length):
    """Even where all digests were made to hold."""
    state = {"w": torch.arange(64.0)}
    path = write(snapshot(state, 0, 1), tmp_path / "c", 100, {}, "a", keep=1)
    part = path / "part-00000-of-00001.safetensors"
    part.write_bytes(length.to_bytes(8, "little") * bool(length) + pickle.dumps([payload, bytes(999)]))
    manifest = json.loads((path / "manifest.json").read_text())
    stated = {"size": part.stat().st_size, "sha256": hashlib.sha256(part.read_bytes()).hexdigest()}
    manifest["parts"][part.name] = stated
    manifest["digest"] = manifest_digest(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    checkpoint = newest(tmp_path / "c", lambda line: None)
    assert "is damaged" in refused(load, checkpoint)


def cifar_batches(payload: Payload) -> dict[str, bytes]:
    """Pickles in every way of calling something that the format has."""
    mark = str(payload.mark).encode()
    return {
        "reduce": pickle.dumps({b"data": payload}, protocol=2),
        "protocol 0": pickle.dumps(payload, protocol=0),
        "stack global": pickle.dumps(payload, protocol=4),
        "inst": b"(S'" + mark + b"'\nios\nmkdir\n.",
        "obj": b"(cos\nmkdir\nS'" + mark + b"'\no.",
        "nested name": b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__class__\x93.",
        "numpy's own": b"cnumpy.core.multiarray\nfromfile\n(S'/etc/passwd'\ntR.",
        "extension": b"\x80\x02\x82\x01.",
        "persistent": b"P" + mark + b"\n.",
        "a state of a class": b"cnumpy\nndarray\n(dS'__setstate__'\ncnumpy\ndtype\nsb.",
    }


@pytest.mark.parametrize("way", cifar_batches(Payload(Path("x"))))
def test_a_cifar_batch_that_is_a_program(payload, tmp_path, way):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("batches.meta", "test_batch", *(f"data_batch_{number}" for number in range(1, 6))):
        (folder / name).write_bytes(cifar_batches(payload)[way])
    assert "batches.meta" in refused(cifar.read, tmp_path)


def test_an_index_that_is_a_program(payload, digits, tmp_path):
    root = tmp_path / "digits"
    shutil.copytree(digits.root, root)
    for content in (object_array(payload), b"\x93NUMPY\x01\x00\x03\x00({["):
        dataset = load_dataset(digits.root)
        first, *rest = dataset.splits["train"].shards
        (root / "train" / "000000.npy").write_bytes(content)
        changed = {"index_bytes": len(content), "index_sha256": hashlib.sha256(content).hexdigest()}
        split = Split(dataset.splits["train"].images, (type(first)(**vars(first) | changed), *rest))
        splits = dataset.splits | {"train": split}
        forged = type(dataset)(**vars(dataset) | {"splits": splits, "fingerprint": fingerprint(splits)})
        (root / "dataset.json").write_text(describe(forged))
        dataset = load_dataset(root)
        reader = Reader(dataset, "train")
        assert "000000.npy" in refused(reader.entries, np.arange(3))
        reader.close()
        problems, _ = verify.verify_shard(dataset, dataset.splits["train"].shards[0])
        assert len(problems) == 1
        assert "cannot be read as an index" in problems[0]


def object_array(payload: Payload) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([payload], dtype=object), allow_pickle=True)
    return buffer.getvalue()
