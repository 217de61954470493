"""An autoencoder from the command line: its reconstruction is measured, told, drawn and kept."""

import json

import pytest
from command_lines import script

from trainer.runtime.journal import read


@pytest.mark.slow
def test_a_run_ends_with_its_reconstruction(capsys, digits, tmp_path):
    done = script(
        capsys,
        "recipe=autoencoder_cifar10_small",
        "run=digits",
        "images=256",
        "batch=128",
        "precision=float32",
        "data.size=8",
        "data.source=digits",
        "data.threads=1",
        "encoder.width=8",
        "encoder.latent=2",
        "encoder.tower=1",
        "schedule={kind: constant}",
        "evaluate={mlp: null, few_shot: null, linear: {iterations: 5}, online_images: 128}",
        "tracking.uri=none",
        f"outputs={tmp_path}",
        f"data.root={digits.root}",
    )
    assert done.status == 0, done.err
    assert "was not drawn" not in done.err
    folder = tmp_path / "digits"
    results = json.loads((folder / "results.json").read_text())
    names = {"sse", "mse", "psnr", "log_q", "bits_per_dimension", "swap_ratio"}
    keys = {f"reconstruction/{name}" for name in names}
    keys |= {f"control/linear_codec/reconstruction/{name}" for name in ("sse", "mse", "psnr")}
    assert {name for name in results if "reconstruction/" in name} == keys
    assert {"probe/linear/y", "probe/linear/w", "probe/linear/z", "knn/y"} <= set(results)
    assert "squared error an image, pixels in [0, 1]" in done.out
    assert "linear codec, 32 components: sse" in done.out  # of 4 x 4 x 2 numbers
    assert {"reconstructions.png", "interpolations.png"} <= {p.name for p in (folder / "figures").iterdir()}
    told = {record["name"] for record, _ in read(folder / "journal.jsonl")}
    assert {"figures/reconstructions.png", "figures/interpolations.png"} <= told
    assert {f"results/{key}" for key in keys} <= told
