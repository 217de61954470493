import itertools
import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from data_pipelines.common.errors import UserError
from tests.helpers.checkpoint_states import edit, flip, refuse, same, save, state
from trainer.checkpoints.load import load, load_rows, newest
from trainer.checkpoints.save import PinnedMemory, Snapshot, snapshot, write
from trainer.distributed.rows import TensorShard

# ---- what is saved is what is loaded ---------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_any_number_of_ranks_reads_what_any_number_wrote(tmp_path, world):
    path = save(tmp_path, world=world, extra={"fingerprint": "f00d", "seed": 3})
    assert path == tmp_path / "images-000000000100"
    assert sorted(os.listdir(tmp_path)) == [path.name]
    parts = [f"part-{rank:05d}-of-{world:05d}.safetensors" for rank in range(world)]
    assert sorted(os.listdir(path)) == ["manifest.json", *parts]

    checkpoint = newest(tmp_path, refuse)
    assert (checkpoint.path, checkpoint.images) == (path, 100)
    assert (
        checkpoint.manifest["fingerprint"],
        checkpoint.manifest["seed"],
        checkpoint.manifest["world"],
    ) == (
        "f00d",
        3,
        world,
    )
    assert checkpoint.manifest["tensors"]["float32"] == {"dtype": "float32", "shape": [7, 3, 2, 2]}
    assert same(load(checkpoint), state())
    assert same(load(path, ["float64", "nan"]), {name: state()[name] for name in ("float64", "nan")})

    for readers in range(1, 6):
        shares = [load_rows(checkpoint, rank, readers) for rank in range(readers)]
        for name, tensor in state().items():
            pieces = [share[name] for share in shares]
            if tensor.dim():
                bounds = [rank * len(tensor) // readers for rank in range(readers + 1)]
                assert [len(piece) for piece in pieces] == [b - a for a, b in itertools.pairwise(bounds)]
                pieces = [torch.cat(pieces)]
            assert all(same({name: piece}, {name: tensor}) for piece in pieces)


def test_parts_are_read_by_the_safetensors_library(tmp_path):
    path = save(tmp_path, world=2)
    cut = {name: [] for name in state()}
    for rank in range(2):
        with safe_open(path / f"part-{rank:05d}-of-00002.safetensors", "pt") as file:
            places = json.loads(file.metadata()["tensors"])
            for name in file.keys():  # noqa: SIM118
                cut[name].append((places[name]["offset"], file.get_tensor(name)))
                assert places[name]["shape"] == list(state()[name].shape)
    assert [offset for offset, _ in cut["float32"]] == [0, 3]
    assert [offset for offset, _ in cut["images"]] == [0]
    whole = {name: torch.cat([t for _, t in c]) if c[0][1].dim() else c[0][1] for name, c in cut.items()}
    assert same(whole, state())


def test_a_snapshot_is_a_copy_of_its_own(tmp_path):
    live = {"w": torch.arange(6.0), "n": torch.tensor(1)}
    live["tied"] = live["w"]
    share = snapshot(live, 0, 1)
    live["w"].zero_()
    live["n"] += 1
    assert share.parts["w"].rows.tolist() == share.parts["tied"].rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert share.parts["n"].rows == 1


def test_a_snapshot_in_kept_memory_is_written_in_rows_whatever_its_layout(tmp_path, monkeypatch):
    """As of a GPU: tensors are copied as they lie there, and come to be in rows when they are written."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    memory, paths, waits = PinnedMemory(), {}, []
    for images in (100, 200):
        live = {
            "maps": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last),
            "queue": TensorShard((3, 5, 2), 0, torch.randn(5, 3, 2).transpose(0, 1)),
            "step": torch.tensor(float(images)),
        }
        expected = {
            name: (value.rows if isinstance(value, TensorShard) else value).clone()
            for name, value in live.items()
        }
        share = snapshot(live, 0, 1, memory)
        assert share.parts["maps"].rows.stride() == live["maps"].stride()
        assert share.parts["queue"].rows.stride() == live["queue"].rows.stride()
        live["maps"].zero_()
        share = replace(share, wait=lambda: waits.append(None))
        path = write(share, tmp_path, images, {}, f"{images}", keep=9)
        assert same(load(path), expected)
        paths[images] = share.parts
    assert len(waits) == 2
    assert all(paths[100][name].rows is paths[200][name].rows for name in expected)


def test_an_engine_may_hand_over_other_cuts_than_the_formula(tmp_path):
    rows = torch.arange(10.0).view(5, 2)
    shares = [
        Snapshot(0, 2, {"w": TensorShard((5, 2), 4, rows[4:].clone())}),
        Snapshot(
            1,
            2,
            {
                "w": TensorShard((5, 2), 0, rows[:4].clone()),
                "only here": TensorShard((), 0, torch.tensor(2.5)),
            },
        ),
    ]
    assert same(load(save(tmp_path, shares=shares)), {"w": rows, "only here": torch.tensor(2.5)})


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (TensorShard((5, 2), 3, torch.zeros(2, 2)), "rows from 2 on are saved by no rank or by two"),
        (TensorShard((5, 2), 1, torch.zeros(4, 2)), "rows from 2 on are saved by no rank or by two"),
        (TensorShard((5, 2), 2, torch.zeros(2, 2)), "4 of 5 rows"),
        (TensorShard((4, 2), 2, torch.zeros(2, 2)), "disagree"),
        (TensorShard((5, 2), 2, torch.zeros(3, 2, dtype=torch.float64)), "disagree"),
    ],
)
def test_ranks_that_do_not_make_a_whole_save_nothing(tmp_path, second, message):
    shares = [Snapshot(0, 2, {"w": TensorShard((5, 2), 0, torch.zeros(2, 2))}), Snapshot(1, 2, {"w": second})]
    with pytest.raises(RuntimeError, match=message):
        save(tmp_path, shares=shares)
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_loaded_is_told_in_a_line(tmp_path):
    path = save(tmp_path, world=2)
    with pytest.raises(UserError, match=r"no tensor 'encoder\.weight'"):
        load(path, ["encoder.weight"])
    (path / "part-00001-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"damaged.*part-00001-of-00002"):
        load(path)
    with pytest.raises(UserError, match=r"manifest\.json is missing"):
        load(tmp_path / "images-000000000007")


def test_the_caller_cannot_overwrite_the_manifests_own_entries(tmp_path):
    with pytest.raises(ValueError, match="'images'"):
        save(tmp_path, extra={"images": 7})
    assert os.listdir(tmp_path) == []


# ---- damage ----------------------------------------------------------------------------------------


def rewrite(**entries):
    return lambda data: json.dumps(json.loads(data) | entries).encode()


PART = "part-00001-of-00002.safetensors"
DAMAGE = {
    "first byte of a part": (PART, flip(0), f"the digest of {PART} does not hold"),
    "last byte of a part": (PART, flip(-1), f"the digest of {PART} does not hold"),
    "truncated part": (PART, lambda data: data[:-1], f"{PART} has .* bytes instead of"),
    "grown part": (PART, lambda data: data + b"x", f"{PART} has .* bytes instead of"),
    "empty part": (PART, lambda data: b"", f"{PART} has 0 bytes"),
    "missing part": (PART, None, f"{PART} is missing"),
    "missing manifest": ("manifest.json", None, "manifest.json is missing"),
    "empty manifest": ("manifest.json", lambda data: b"", "manifest.json is not JSON"),
    "broken manifest": ("manifest.json", lambda data: data[:-9], "manifest.json is not JSON"),
    "binary manifest": ("manifest.json", lambda data: b"\xff\x00", "manifest.json is not JSON"),
    "bottomless manifest": ("manifest.json", lambda data: b"[" * 10**6, "manifest.json is not JSON"),
    "another JSON": ("manifest.json", lambda data: b"[1]", "manifest.json is not an object"),
    "future format": ("manifest.json", rewrite(format=2), "format 2; this program reads 1"),
    "changed entry": (
        "manifest.json",
        rewrite(fingerprint="beef"),
        "the digest of manifest.json does not hold",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, kind):
    name, change, why = DAMAGE[kind]
    for images in (100, 200, 300):
        save(tmp_path, images, world=2, extra={"fingerprint": "f00d"})
    target = tmp_path / "images-000000000300" / name
    edit(target, change) if change else target.unlink()
    warnings = []
    checkpoint = newest(tmp_path, warnings.append)
    assert checkpoint.images == 200
    assert same(load(checkpoint), state(200))
    assert len(warnings) == 1
    assert "images-000000000300 is damaged" in warnings[0]
    assert "using images-000000000200" in warnings[0]
    with pytest.raises(AssertionError, match=why):
        newest(tmp_path, refuse)


def test_a_renamed_checkpoint_is_damaged_and_so_may_be_all(tmp_path):
    save(tmp_path, 100).rename(tmp_path / "images-000000000500")
    (tmp_path / "images-000000000400").mkdir()
    (tmp_path / "images-best").mkdir()
    warnings = []
    assert newest(tmp_path, warnings.append) is None
    assert ["000500" in warnings[0], "000400" in warnings[1], len(warnings)] == [True, True, 2]
    assert "holds images 100" in warnings[0]
    assert all("no undamaged one" in warning for warning in warnings)
    assert newest(tmp_path / "nowhere", refuse) is None
