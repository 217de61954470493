"""Images that are both learned from and tested: figures on them say nothing about new images."""

from data_pipelines.dataset import Dataset
from trainer.recipe.schema import Pretrain

HELD_OUT = "mi/…/held_out"  # how a line names the estimates on images that were not trained on


def shared_images(dataset: Dataset, split: str, other: str) -> int:
    """How many images of `split` lie in `other` too: by the digests of shards, whatever splits are called.

    Raises:
        UserError: there is no such split.
    """
    known = {(shard.sha256, shard.index_sha256) for shard in dataset.split(other).shards}
    shards = dataset.split(split).shards
    return sum(shard.images for shard in shards if (shard.sha256, shard.index_sha256) in known)


def trained_and_tested(recipe: Pretrain, dataset: Dataset) -> str | None:
    """Why there are no estimates on held-out images, where test images are trained on; else None."""
    data = recipe.data
    if not (shared := shared_images(dataset, data.test, data.train)):
        return None
    return (
        f"{_of_all(dataset, data.test, shared)} (data.test={data.test}) {_are(shared)} trained on "
        f"(data.train={data.train})"
    )


def about_overlap(recipe: Pretrain, dataset: Dataset) -> list[str]:
    """A line for a person about test images that the encoder or the probes learn from, if there are any."""
    data, parts = recipe.data, []
    learned = {"data.train": data.train}
    if data.labelled and data.labelled != data.train:
        learned["data.labelled"] = data.labelled
    for key, split in learned.items():
        if shared := shared_images(dataset, data.test, split):
            parts.append(f"{_of_all(dataset, data.test, shared)} {_are(shared)} also in {key}={split}")
    if not parts:
        return []
    return [
        f"data.test={data.test}: {', and '.join(parts)}: accuracies on them say nothing about new images; "
        "test on a split that nothing learns from"
    ]


def _of_all(dataset: Dataset, split: str, shared: int) -> str:
    images = dataset.split(split).images
    if shared == images:
        return f"all {images:,} test images" if images > 1 else "the test image"
    return f"{shared:,} of {images:,} test images"


def _are(images: int) -> str:
    return "are" if images > 1 else "is"
