"""The autoencoder's bound: reconstruction of an image from its whole latent z = [y, w] by squared error."""

from collections.abc import Iterator

from torch import nn

from data_pipelines.loader import Batch
from data_pipelines.views import Normalize
from trainer.networks.encoder import Encoder
from trainer.objectives.codec import Codec, squared_error
from trainer.objectives.decoder_noise import DecoderNoise
from trainer.objectives.objective import EncoderObjective, Values


class Autoencoder(EncoderObjective):
    """Reconstruction alone: the control of the hybrid.

    Minus E log q(x|z) of a Gaussian of fixed width is the squared error but for constants: Adam, which does
    not see the scale of a loss, needs no other weight.

    Args:
        encoder: one with a decoder.
        normalize: of the data.
        noise: on what the decoder reads while it learns.
    """

    def __init__(self, encoder: Encoder, normalize: Normalize, noise: DecoderNoise | None = None):
        super().__init__()
        decoder = encoder.decoder()
        assert decoder is not None  # the recipe is refused where the encoder has none
        self.encoder, self.decoder, self.normalize, self.noise = encoder, decoder, normalize, noise

    @property
    def codec(self) -> Codec:
        return Codec(self.encoder, self.decoder, self.normalize)

    def networks(self) -> Iterator[tuple[str, nn.Module]]:
        yield from super().networks()
        yield "decoder", self.decoder

    def forward(self, batch: Batch) -> Values:
        """Takes a batch of one view [n, 3, H, W]; `loss` is the squared error of an image."""
        images = batch.views[0]
        features = self.encoder(images)
        y, w = features["y"], features["w"]
        if self.noise is not None and self.training:
            y, w = self.noise(y, w, batch.noise)
        error = squared_error(self.codec, images, y, w).mean()
        return {"loss": error, "sse": error.detach()}
