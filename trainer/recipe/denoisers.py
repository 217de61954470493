"""The recipe's objective of a denoiser: process, networks and their average."""

from typing import Annotated, Literal

from pydantic import Field

from data_pipelines.common.section import Count, Positive, Section, Weight, key
from trainer.recipe.objective import ObjectiveOptions

Share = Annotated[float, Field(ge=0, lt=1)]
Multiplier = Annotated[float, Field(gt=0)]


class MapNetwork(Section):
    """The U-Net of maps and images; defaults are DDPM's for CIFAR-10."""

    width: Positive = key(128, "width of the first level", "channels")
    multipliers: Annotated[list[Multiplier], Field(min_length=1, max_length=8)] = key(
        [1.0, 2.0, 2.0, 2.0], "width of each level over that; each but the last halves the side", "1"
    )
    blocks: Positive = key(2, "residual blocks of a level on the way down, one more on the way up", "blocks")
    attention: list[Positive] = key([16], "sides of the levels with attention", "places")
    dropout: Share = key(0.1, "share of the numbers dropped in a block", "1")


class VectorNetwork(Section):
    """The residual layers of a pooled y; defaults are RCG's."""

    width: Positive = key(1536, "width of the layers", "units")
    layers: Positive = key(12, "residual layers", "layers")


class DiffusionObjective(ObjectiveOptions):
    """A denoiser. Of a run with a pooled y there are two: y is drawn first, w given y."""

    kind: Literal["diffusion"]
    process: Literal["ddim", "flow", "edm"] = key(
        "flow", "the line from samples to noise: DDPM's chain, the straight path, or EDM's"
    )
    predict: Literal["eps", "x", "v"] | None = key(
        None, "what the network says: the noise, the sample or their velocity; null: eps of ddim, else v"
    )
    scale: Literal["channel", "position"] = key(
        "channel", "what has mean 0 and variance 1: each channel of a map, or each of its numbers"
    )
    components: Positive | None = key(
        None, "principal components of a pooled y that are drawn; null: each of its numbers", "numbers"
    )
    map: MapNetwork = MapNetwork()
    vector: VectorNetwork = VectorNetwork()
    drop: Share = key(0.1, "share of the samples of w that learn without their y", "1")
    half_life: Count = key(
        1_774_000, "images after which a weight's part in the average has halved", "images"
    )
    ramp: Weight = key(
        0.05, "the most of that half-life, as a share of the images seen; 0: it does not ramp up", "1"
    )

    @property
    def prediction(self) -> Literal["eps", "x", "v"]:
        """What the network says."""
        return self.predict or ("eps" if self.process == "ddim" else "v")
