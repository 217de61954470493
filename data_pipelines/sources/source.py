"""What a source of images is: its classes and its splits, ready to be written as shards."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Source:
    """What there is to write.

    classes: their names by label, empty where nothing is labelled; None for the numbers that turn up.
    splits: {split: part}, a part having a length, chunks(images) and what `shards_write.write_shard` asks
    of a chunk. images_per_shard: unless the user says; 0 where the source is shards. left_out: {"member",
    "why"} of what is none of the images. made_with: the user's options that decide what becomes of the
    images.
    """

    name: str
    classes: list[str] | None
    splits: dict
    images_per_shard: int
    left_out: list[dict] = field(default_factory=list)
    made_with: dict = field(default_factory=dict)
