"""An autoencoder from the command line: its reconstruction is measured, logged, drawn and kept."""

import json
from pathlib import Path

import pytest
from PIL import Image

from data_pipelines.shards.make import make
from tests.helpers.command_lines import script
from tests.helpers.tiny_dataset import pictures
from trainer.tracking.journal import read

NAMES = ("sse", "mse", "psnr", "log_q", "bits_per_dimension", "swap_ratio", "latent_size")
KEYS = {f"reconstruction/{name}" for name in NAMES} | {
    f"control/linear_codec/reconstruction/{name}" for name in ("sse", "mse", "psnr")
}


def small(outputs: Path, root: Path, *more: str) -> list[str]:
    """Arguments of an autoencoder of two steps."""
    return [
        "recipe=autoencoder_cifar10_small",
        "run=small",
        "images=256",
        "batch=128",
        "precision=float32",
        "data.size=8",
        "data.threads=1",
        "encoder.width=8",
        "encoder.latent=2",
        "encoder.tower=1",
        "schedule={kind: constant}",
        "tracking.uri=none",
        f"outputs={outputs}",
        f"data.root={root}",
        *more,
    ]


@pytest.mark.slow
def test_a_run_ends_with_its_reconstruction(capsys, digits, tmp_path):
    probes = "evaluate={mlp: null, few_shot: null, linear: {iterations: 5}, online_images: 128}"
    done = script(capsys, *small(tmp_path, digits.root, "data.source=digits", probes))
    assert done.status == 0, done.err
    assert "was not drawn" not in done.err
    folder, keys = tmp_path / "small", KEYS
    results = json.loads((folder / "results.json").read_text())
    assert {name for name in results if "reconstruction/" in name} == keys
    assert {"probe/linear/y", "probe/linear/w", "probe/linear/z", "knn/y"} <= set(results)
    assert "squared error an image, pixels in [0, 1]" in done.out
    assert "linear codec, 32 components: sse" in done.out  # of 4 x 4 x 2 numbers
    assert results["reconstruction/latent_size"] == 32
    assert {"reconstructions.png", "interpolations.png"} <= {p.name for p in (folder / "figures").iterdir()}
    logged = {record["name"] for record, _ in read(folder / "journal.jsonl")}
    assert {"figures/reconstructions.png", "figures/interpolations.png"} <= logged
    assert {f"results/{key}" for key in keys} <= logged


@pytest.mark.slow
def test_images_without_classes_are_reconstructed_too(capsys, tmp_path):
    (tmp_path / "images").mkdir()
    for number, pixels in enumerate(pictures(200, 16, 16)):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    made = make("folder", tmp_path / "data", from_=tmp_path / "images", workers=1, progress=False)
    assert not made.classes
    more = ["data.source=folder", "evaluate={at_end: false, every: 0, online_images: 128}"]
    done = script(capsys, *small(tmp_path, made.root, *more))
    assert done.status == 0, done.err
    assert "was not drawn" not in done.err
    assert json.loads((tmp_path / "small" / "results.json").read_text()).keys() == KEYS
    assert "squared error an image, pixels in [0, 1]" in done.out
    assert "accuracy, %" not in done.out
    drawn = {path.name for path in (tmp_path / "small" / "figures").iterdir()}
    assert {"reconstructions.png", "interpolations.png"} <= drawn
    assert "accuracies.png" not in drawn
