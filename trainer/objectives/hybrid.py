"""The hybrid bound of Sinha, Song and Ermon: a contrastive objective on y, reconstruction from z = [y, w]."""

from collections.abc import Iterator

from torch import Tensor, nn

from data_pipelines.loader import Batch
from data_pipelines.views import Normalize
from trainer.networks.encoder import Encoder, Features
from trainer.objectives.codec import Codec, squared_error
from trainer.objectives.decoder_noise import DecoderNoise
from trainer.objectives.objective import ContrastiveObjective, EncoderObjective, Values
from trainer.recipe.objectives import HybridObjective


class Hybrid(EncoderObjective):
    """Minimises the contrastive loss + omega · squared error, the latter summed over an image's pixels.

    Where that loss is a sum of two bounds (symmetric MoCo), the squared error counts twice as well.
    alpha · E log q(x|z) + (1 - alpha) · I(y), with q a Gaussian of standard deviation sigma, is that up to
    constants and the factor 1 - alpha, with omega = alpha / ((1 - alpha) · 2 sigma²): only omega matters.

    Args:
        contrast: any contrastive objective; its encoder has y, w and a decoder.
        options: the recipe's objective.
        normalize: of the data.
        noise: on what the decoder reads while it learns.
    """

    def __init__(
        self,
        contrast: ContrastiveObjective,
        options: HybridObjective,
        normalize: Normalize,
        noise: DecoderNoise | None = None,
    ):
        super().__init__()
        self.contrast, self.options, self.normalize, self.noise = contrast, options, normalize, noise
        self.omega, _, _ = options.weighed()
        self.directions = contrast.directions
        decoder = contrast.encoder.decoder()
        assert decoder is not None  # the recipe is refused where the encoder has none
        self.decoder = decoder
        self.views = options.views

    @property
    def encoder(self) -> Encoder:  # type: ignore[override]  # an attribute would register it twice
        return self.contrast.encoder

    def features(self, images: Tensor) -> Features:
        """Those of the contrastive objective."""
        return self.contrast.features(images)

    @property
    def codec(self) -> Codec:
        return Codec(self.encoder, self.decoder, self.normalize)

    def forward(self, batch: Batch) -> Values:
        """Takes a batch of the contrastive objective's views, and last the clean one where that is decoded.

        Returns the contrastive objective's figures, `sse`, the squared error of an image, and `loss`.
        """
        features = self.encoder(batch.views[0])
        values = self.contrast(batch, features)
        images = batch.views[0]
        if self.options.reconstruct == "clean":
            images = batch.views[-1]
            features = self.encoder(images)
        y = features["y"].detach() if self.options.detach_y else features["y"]
        w = features["w"]
        if self.noise is not None and self.training:
            y, w = self.noise(y, w, batch.noise)
        error = squared_error(self.codec, images, y, w).mean()
        loss = values["loss"] + self.directions * self.omega * error
        return values | {"loss": loss, "sse": error.detach()}

    def networks(self) -> Iterator[tuple[str, nn.Module]]:
        yield from self.contrast.networks()
        yield "decoder", self.decoder

    def after_step(self) -> None:
        """Moves the decoder's running statistics too, and the contrastive objective's state."""
        super().after_step()
        self.contrast.after_step()

    def clip_groups(self) -> list[list[nn.Parameter]]:
        """The contrastive objective's groups; the decoder is clipped with the encoder."""
        first, *others = self.contrast.clip_groups()
        return [[*first, *self.decoder.parameters()], *others]
