"""The contract of a source of images: its classes and its splits, ready to be written as shards."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Source:
    """An opened source.

    Args:
        name: in `catalog.SOURCES`. classes: their names by label, empty where nothing is labelled; None where
        the labels are numbers alone. splits: {split: part}. A part has a length and chunks(images); a chunk
        has digest() and samples(), which
            `shards.write.write_shard` writes (`pixels.Pixels` is an example).
        images_per_shard: the default; 0 where the source consists of shards.
        left_out: {"member", "why"} of files that are no images.
        made_with: the user's options that decide what becomes of the images.
    """

    name: str
    classes: list[str] | None
    splits: dict
    images_per_shard: int
    left_out: list[dict] = field(default_factory=list)
    made_with: dict = field(default_factory=dict)
