"""Images to latents and back, and the error of the way back."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data_pipelines.views import Normalize
from trainer.networks.encoder import Encoder


@dataclass(frozen=True)
class Codec:
    """Images, as they are normalised for the encoder, to latents and back to pixels in [0, 1]."""

    encoder: Encoder
    decoder: nn.Module
    normalize: Normalize

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images [n, 3, H, W] -> y [n, d] and w [n, d']."""
        features = self.encoder(images)
        return features["y"], features["w"]

    def decode(self, y: Tensor, w: Tensor) -> Tensor:
        """Pixels [n, 3, H, W], about [0, 1] but not clamped."""
        return self.decoder(y, w)

    def pixels(self, images: Tensor) -> Tensor:
        """Normalised images as pixels in [0, 1]."""
        # Channel by channel: Python's numbers need no copy to the device, and so no wait for it.
        channels = zip(images.unbind(1), self.normalize.mean, self.normalize.std, strict=True)
        return torch.stack([channel * std + mean for channel, mean, std in channels], dim=1)


def squared_error(codec: Codec, images: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """The squared error summed over an image's pixels in [0, 1], [n], in the images' dtype."""
    decoded = codec.decode(y, w).to(images.dtype)  # autocast may choose bf16, too coarse for differences
    return (decoded - codec.pixels(images)).square().sum((1, 2, 3))
