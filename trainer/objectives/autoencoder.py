"""The autoencoder's bound: reconstruction of an image from its whole latent z = [y, w] by squared error."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data_pipelines.views import Normalize
from trainer.networks.batch_norm import update_running_stats

Features = dict[str, Tensor]


@dataclass(frozen=True)
class Codec:
    """Images, as they are normalised for the encoder, to latents and back to pixels in [0, 1]."""

    encoder: nn.Module
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
        # Channel by channel: numbers of Python's need no copy to the device, for which it would be waited.
        channels = zip(images.unbind(1), self.normalize.mean, self.normalize.std, strict=True)
        return torch.stack([channel * std + mean for channel, mean, std in channels], dim=1)


def squared_error(codec: Codec, images: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """The squared error summed over an image's pixels in [0, 1], [n], in the images' dtype."""
    made = codec.decode(y, w).to(images.dtype)  # autocast's own may be bf16, too coarse for differences
    return (made - codec.pixels(images)).square().sum((1, 2, 3))


class Autoencoder(nn.Module):
    """Reconstruction alone: the control of the hybrid.

    Minus E log q(x|z) of a Gaussian of fixed width is the squared error but for constants: Adam, which does
    not see the scale of a loss, needs no other weight.
    """

    VIEWS = 1

    def __init__(self, encoder: nn.Module, normalize: Normalize):
        super().__init__()
        self.encoder, self.decoder, self.normalize = encoder, encoder.decoder(), normalize

    @property
    def codec(self) -> Codec:
        return Codec(self.encoder, self.decoder, self.normalize)

    def forward(self, batch) -> dict[str, Tensor | float]:
        """Takes a `Batch` of one view [n, 3, H, W]; `loss` is the squared error of an image."""
        images = batch.views[0]
        features = self.encoder(images)
        error = squared_error(self.codec, images, features["y"], features["w"]).mean()
        return {"loss": error, "sse": error.detach()}

    def after_step(self) -> None:
        """Once an optimizer step: moves the running statistics."""
        update_running_stats(self)

    def clip_groups(self) -> list[list[nn.Parameter]]:
        """The parameters whose gradients are clipped together."""
        return [list(self.parameters())]

    def features(self, images: Tensor) -> Features:
        """What evaluation reads, from images [n, 3, H, W]: z, w and y, each [n, width]."""
        features = self.encoder(images)
        return {name: features[name] for name in self.encoder.widths}
