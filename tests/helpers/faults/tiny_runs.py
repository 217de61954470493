"""The three recipes, so small that a run of 32 steps takes a second or two, and comparisons of two runs."""

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
NOT_COMPARED = CLOCKS | {"journal.id"}


def arguments(recipe: str, outputs: Path, data: Path, *more: str) -> list[str]:
    """The arguments of the run `outputs/run`."""
    places = [f"outputs={outputs}", "run=run", f"data.root={data}"]
    return [f"recipe={FILES[recipe]}", *places, *COMMON, *RECIPES[recipe], *more]


# ---- the files of a run -----------------------------------------------------------------------------


def complain(line: str) -> None:
    raise AssertionError(f"a damaged checkpoint is visible: {line}")


def newest(run: Path) -> Checkpoint | None:
    """The checkpoint that the next start would go on from; every visible one must be whole."""
    checkpoint = load_module.newest(run / "checkpoints", complain)
    for images in kept(run / "checkpoints"):
        verify(run / "checkpoints" / folder_name(images))
    return checkpoint


def weights(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of a finished run: of its last checkpoint and of the export."""
    assert (run / "done").read_text() == f"{IMAGES}\n"
    last = newest(run)
    assert last.images == IMAGES
    exported = load_file(run / "export" / "encoder.safetensors")
    return load(last) | {f"export/{name}": tensor for name, tensor in exported.items()}


def figures(run: Path, *kinds: str) -> dict[tuple[str, int], object]:
    """The journal's values of these kinds by name and images; no key may be there twice."""
    records = [record for record, _ in read(run / "journal.jsonl") if record["kind"] in kinds]
    counts = Counter((record["name"], record["images"]) for record in records)
    assert not [key for key, count in counts.items() if count > 1]
    return {(record["name"], record["images"]): record["value"] for record in records}


def resumed(run: Path) -> list[int]:
    """The images at which each start continued the run."""
    return [record["images"] for record, _ in read(run / "journal.jsonl") if record["kind"] == "resumed"]


# ---- comparing -------------------------------------------------------------------------------------


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert len(one) > 20
    assert one.keys() == other.keys()
    different = [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]
    assert not different


def assert_same_journal(undisturbed: Path, disturbed: Path) -> None:
    """No record is missing or there twice, and all values but the clocks' are equal."""
    expected, actual = (
        figures(run, "metric", "parameter", "tag", "artifact") for run in (undisturbed, disturbed)
    )
    assert len(expected) > 5 * IMAGES // BATCH
    assert expected.keys() == actual.keys()
    for key, value in expected.items():
        assert key[0] in NOT_COMPARED or actual[key] == value, key


def assert_undisturbed(undisturbed: Path, disturbed: Path) -> None:
    """The run ended as the undisturbed one: with its weights and its journal."""
    assert_same_bits(weights(undisturbed), weights(disturbed))
    assert_same_journal(undisturbed, disturbed)
