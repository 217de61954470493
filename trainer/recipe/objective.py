"""What an objective's options are: the contract of the recipe's `objective` section.

`trainer.recipe.objectives` has the kinds, `trainer.training.build` builds an objective from each.
"""

from collections.abc import Iterator
from typing import Literal

from data_pipelines.common.section import Positive, Section, key
from data_pipelines.views import Shuffle
from trainer.recipe.groups import Groups


class Queue(Section):
    """The queue of older keys that negatives are, first in, first out."""

    keys: Positive = key(
        65536, "length, of all ranks together; a multiple of the keys that a step adds", "keys"
    )
    start: Literal["random", "empty"] = key("random", "what it begins with: random unit vectors, or nothing")
    bf16: bool = key(False, "whether keys are kept in half of the memory")


class ObjectiveOptions(Section):
    """What the options of every objective answer before anything is built. None of it requires torch.

    The defaults suit an objective that reads one view, decodes nothing, and takes no negatives.
    """

    kind: str

    @property
    def contrast_key(self) -> str:
        """What stands in a recipe before the keys of the contrastive part, for messages."""
        return "objective."

    @property
    def views(self) -> int:
        """How many views of `data.views` the objective reads."""
        return 1

    @property
    def clean_view(self) -> bool:
        """Whether the last of its views is the clean image, an empty section of `data.views`."""
        return False

    @property
    def directions(self) -> int:
        """How many bounds its loss is the sum of."""
        return 1

    @property
    def reconstructs(self) -> bool:
        """Whether images are decoded, for which the encoder needs a decoder."""
        return False

    @property
    def uses_batch_negatives(self) -> bool:
        """Whether other images of the batch are the negatives, so that `groups.negatives` has a meaning."""
        return False

    @property
    def momentum_queue(self) -> Queue | None:
        """The queue that the negatives come from, if there is one."""
        return None

    @property
    def key_width(self) -> int:
        """Numbers of a key of the queue; 0 without one."""
        return 0

    @property
    def supervised_classes(self) -> int | None:
        """How many classes a supervised term tells apart; None without one."""
        return None

    def key_shuffle(self, groups: Groups, norm: str) -> Shuffle | None:
        """Of which views the groups of batch-norm are shuffled (ShuffleBN); None: of none."""
        return None

    def heldout_batch(self, groups: Groups, batch: int) -> int:
        """Images of a batch of held-out images in which information is estimated: whole groups."""
        return groups.indivisible_images

    def advice(self, norm: str, images: int | None) -> Iterator[str]:
        """Lines that a person should read before the run starts: what the keys mean together.

        Args:
            norm: of the encoder.
            images: of the training split; None where it is not known.
        """
        return iter(())
