"""The three recipes, so small that a run of 32 steps takes a second or two, and what two runs must share."""

from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file

from trainer.checkpoints import load as load_module
from trainer.checkpoints.format import folder_name, verify
from trainer.checkpoints.load import Checkpoint, kept, load
from trainer.tracking.journal import read

BATCH, IMAGES, SAVE_EVERY, EVALUATE_EVERY = 64, 2048, 256, 768
VIEW = "{crop: {scale: {low: 0.5, high: 1.0}}, flip: 0.5, grayscale: 0.5}"
COMMON = [
    f"batch={BATCH}",
    "groups.norm=16",  # so that four ranks have a group each
    f"images={IMAGES}",
    f"save.every={SAVE_EVERY}",
    f"log.every={BATCH}",  # every figure of every step is compared
    f"evaluate.every={EVALUATE_EVERY}",
    "evaluate.online_images=64",
    "evaluate.knn=20",
    "evaluate.at_end=false",
    "data.source=digits",
    "data.size=16",
    "data.threads=1",
    "tracking.uri=none",
]
CONTRAST = "temperature: 0.2, momentum: 0.9, shuffle: 2, queue: {keys: 512}, head: {units: 16, width: 8}"
RECIPES = {
    "dim_complete": [
        "encoder={kind: dim, channels: [8, 16], fc: 32, y: 16}",
        "objective.critic.units=32",
        "objective.prior.units=[16, 8]",
        f"data.views=[{VIEW}]",
    ],
    "moco": [
        "encoder={kind: dim, channels: [8, 16], fc: 32, y: 16}",
        f"objective={{kind: moco, {CONTRAST}}}",  # blocks of 32: on four ranks keys travel
        f"data.views=[{VIEW}, {VIEW}]",
    ],
    "hybrid": [
        "schedule.warmup=256",
        "encoder={kind: nvae, patch: 2, width: 8, halvings: 0, tower: 1, decoder_tower: 1, expansion: 2, "
        "latent: 4, layout: pooled}",
        f"objective={{kind: hybrid, omega: 0.1, contrast: {{kind: moco, {CONTRAST}}}}}",
        f"data.views=[{VIEW}, {VIEW}]",
    ],
}
FILES = {"dim_complete": "dim_complete", "moco": "moco_cifar10", "hybrid": "hybrid_cifar10"}
CLOCKS = {"images_per_second", "data_wait"}  # the only figures that may differ
OWN = CLOCKS | {"journal.id"}


def arguments(recipe: str, outputs: Path, data: Path, *more: str) -> list[str]:
    """Of the run `outputs/run`."""
    places = [f"outputs={outputs}", "run=run", f"data.root={data}"]
    return [f"recipe={FILES[recipe]}", *places, *COMMON, *RECIPES[recipe], *more]


# ---- what a run left -------------------------------------------------------------------------------


def complain(line: str) -> None:
    raise AssertionError(f"a damaged checkpoint is visible: {line}")


def newest(run: Path) -> Checkpoint | None:
    """The checkpoint that a start would go on from; every visible one must be whole."""
    found = load_module.newest(run / "checkpoints", complain)
    for images in kept(run / "checkpoints"):
        verify(run / "checkpoints" / folder_name(images))
    return found


def weights(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of a finished run: of its last checkpoint and of the export."""
    assert (run / "done").read_text() == f"{IMAGES}\n"
    last = newest(run)
    assert last.images == IMAGES
    exported = load_file(run / "export" / "encoder.safetensors")
    return load(last) | {f"export/{name}": tensor for name, tensor in exported.items()}


def figures(run: Path, *kinds: str) -> dict[tuple[str, int], object]:
    """The journal's records of these kinds by name and images, each of which is there once."""
    records = [record for record, _ in read(run / "journal.jsonl") if record["kind"] in kinds]
    counts = Counter((record["name"], record["images"]) for record in records)
    assert not [key for key, count in counts.items() if count > 1]
    return {(record["name"], record["images"]): record["value"] for record in records}


def resumed(run: Path) -> list[int]:
    """Images seen at which each start went on."""
    return [record["images"] for record, _ in read(run / "journal.jsonl") if record["kind"] == "resumed"]


# ---- comparing -------------------------------------------------------------------------------------


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert len(one) > 20
    assert one.keys() == other.keys()
    different = [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]
    assert not different


def assert_same_journal(calm: Path, disturbed: Path) -> None:
    """Nothing is missing, double or more, and all values but the clocks' are equal."""
    found = [figures(run, "metric", "parameter", "tag", "artifact") for run in (calm, disturbed)]
    assert len(found[0]) > 5 * IMAGES // BATCH
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        assert key[0] in OWN or found[1][key] == value, key


def assert_undisturbed(calm: Path, disturbed: Path) -> None:
    """The run ended as if nothing had happened."""
    assert_same_bits(weights(calm), weights(disturbed))
    assert_same_journal(calm, disturbed)
