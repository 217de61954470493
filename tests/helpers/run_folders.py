"""Folders of runs as training leaves them, written in no time: recipe, figures, journal, status, manifest."""

import json
from pathlib import Path
from typing import Any

import yaml

from trainer.recipe.loading import load

WORDS = {  # words of recipes, all of CIFAR-10
    "hybrid": ["recipe=hybrid_cifar10_pooled_small"],
    "autoencoder": ["recipe=hybrid_cifar10_pooled_small", "objective={kind: autoencoder}"],
    "moco": ["recipe=moco_cifar10_small"],
    "dim": ["recipe=dim_local_small"],
}
SPEED = 200.0  # images a second of the journals


def write_run(
    folder: Path,
    words: list[str],
    results: dict[str, float] | None = None,
    images: int = 6_400,
    tensors: dict[str, list[int]] | None = None,
    device: str = "cpu",
    status: str = "done",
    why: str = "",
) -> Path:
    """A run of a recipe that this version reads; `tensors`: names and shapes in its checkpoint's manifest."""
    loaded = load([*words, f"run={folder.name}"])
    _write(folder, loaded.text(), results, images, tensors, device)
    if status:
        (folder / status).write_text(f"{images}\n{why}\n" if why else f"{images}\n")
    return folder


def write_diffusion(
    folder: Path,
    source: Path | str | None,
    results: dict[str, float] | None = None,
    images: int = 6_400,
    tensors: dict[str, list[int]] | None = None,
    seed: int = 0,
    process: str = "ddim",
    **more: Any,
) -> Path:
    """A run of the task diffuse on the latents of the run `source`, or on the pixels of CIFAR-10."""
    recipe = {
        "task": "diffuse",
        "seed": seed,
        "from": None if source is None else str(source),
        "batch": 64,
        "images": images,
        "objective": {"kind": "diffusion", "process": process, "predict": "eps", "map": {}},
        "optimizer": {"kind": "adam", "lr": 1e-3},
        "schedule": {"kind": "constant"},
        "save": {"every": images},
        "log": {"every": images},
        **({"data": {"root": "data/cifar10", "source": "cifar10", "size": 32}} if source is None else {}),
        **more,
    }
    _write(folder, yaml.safe_dump(recipe, sort_keys=False), results, images, tensors, "cpu")
    (folder / "done").write_text(f"{images}\n")
    return folder


def _write(
    folder: Path,
    recipe: str,
    results: dict[str, float] | None,
    images: int,
    tensors: dict[str, list[int]] | None,
    device: str,
) -> None:
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    (folder / "world.json").write_text(json.dumps({"processes": 1, "device": device}))
    if results is not None:
        (folder / "results.json").write_text(json.dumps(results))
    records = [(images // 2, "images_per_second", SPEED), (images, "images_per_second", SPEED / 2)]
    records += [(images, f"results/{name}", value) for name, value in (results or {}).items()]
    with open(folder / "journal.jsonl", "w") as file:
        for seen, name, value in records:
            record = {"images": seen, "time": 1.0, "kind": "metric", "name": name, "value": value}
            file.write(json.dumps(record) + "\n")
    if tensors:
        checkpoint = folder / "checkpoints" / f"images-{images:012d}"
        checkpoint.mkdir(parents=True)
        shapes = {name: {"dtype": "float32", "shape": shape} for name, shape in tensors.items()}
        (checkpoint / "manifest.json").write_text(json.dumps({"tensors": shapes}))
