"""The hybrid bound of Sinha, Song and Ermon: a contrastive objective on y, reconstruction from z = [y, w]."""

from torch import Tensor, nn

from data_pipelines.views import Normalize
from trainer.networks.batch_norm import update_running_stats
from trainer.objectives.autoencoder import Codec, squared_error
from trainer.recipe.objectives import HybridObjective


class Hybrid(nn.Module):
    """Minimises the contrastive loss + omega · squared error, the latter summed over an image's pixels.

    Where that loss is a sum of two bounds (symmetric MoCo), the squared error counts twice as well.
    alpha · E log q(x|z) + (1 - alpha) · I(y), with q a Gaussian of standard deviation sigma, is that up to
    constants and the factor 1 - alpha, with omega = alpha / ((1 - alpha) · 2 sigma²): only omega matters.

    Args:
        contrast: any contrastive objective; its encoder gives y, w and a `decoder()`.
        options: the recipe's objective.
        normalize: of the data.
    """

    def __init__(self, contrast: nn.Module, options: HybridObjective, normalize: Normalize):
        super().__init__()
        self.contrast, self.options, self.normalize = contrast, options, normalize
        self.omega, _, _ = options.weighed()
        self.directions = getattr(contrast, "directions", 1)
        self.decoder = contrast.encoder.decoder()
        self.VIEWS = contrast.VIEWS + (options.reconstruct == "clean")

    @property
    def encoder(self) -> nn.Module:
        return self.contrast.encoder

    @property
    def codec(self) -> Codec:
        return Codec(self.encoder, self.decoder, self.normalize)

    def forward(self, batch) -> dict[str, Tensor | float]:
        """Takes a `Batch` of the contrastive objective's views, and last the clean one where that is decoded.

        Returns the contrastive objective's figures, `sse`, the squared error of an image, and `loss`.
        """
        features = self.encoder(batch.views[0])
        values = self.contrast(batch, features)
        images = batch.views[0]
        if self.options.reconstruct == "clean":
            images = batch.views[-1]
            features = self.encoder(images)
        y = features["y"].detach() if self.options.detach_y else features["y"]
        error = squared_error(self.codec, images, y, features["w"]).mean()
        loss = values["loss"] + self.directions * self.omega * error
        return values | {"loss": loss, "sse": error.detach()}

    def after_step(self) -> None:
        """Once an optimizer step: moves running statistics and what the contrastive objective keeps."""
        update_running_stats(self)
        self.contrast.after_step()

    def clip_groups(self) -> list[list[nn.Parameter]]:
        """The parameters whose gradients are clipped together: the decoder's with the encoder's."""
        mine, *others = self.contrast.clip_groups()
        return [[*mine, *self.decoder.parameters()], *others]

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """What evaluation reads, from images [n, 3, H, W]: z, w and y, each [n, width]."""
        return self.contrast.features(images)
