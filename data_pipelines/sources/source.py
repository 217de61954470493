"""The contract of a source of images: its classes and its splits, ready to be written as shards."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from data_pipelines.sources.images import Sample
from data_pipelines.sources.wds import Tars


class Chunk(Protocol):
    """The images of one shard that is to be written."""

    def __len__(self) -> int: ...

    def digest(self) -> str: ...

    def samples(self) -> Iterator[Sample]: ...


class Part(Protocol):
    """The images of one split, which `chunks` divides among shards."""

    def __len__(self) -> int: ...

    def chunks(self, size: int, /) -> "Sequence[Chunk | Tars]": ...


@dataclass(frozen=True)
class Source:
    """An opened source.

    Args:
        name: in `catalog.SOURCES`. classes: their names by label, empty where nothing is labelled; None where
        the labels are numbers alone. splits: {split: part}; `shards.write.write_shard` writes the chunks of a
            part (`pixels.Pixels` is an example).
        images_per_shard: the default; 0 where the source consists of shards.
        left_out: {"member", "why"} of files that are no images.
        made_with: the user's options that decide what becomes of the images.
    """

    name: str
    classes: list[str] | None
    splits: Mapping[str, Part]
    images_per_shard: int
    left_out: list[dict] = field(default_factory=list)
    made_with: dict = field(default_factory=dict)
