"""What stands in for DALI's pipeline where DALI is not installed: pillow decodes, torch makes the views."""

import importlib.util
from dataclasses import fields

import numpy as np
import torch

from data_pipelines.common.errors import Undecodable
from data_pipelines.common.shortage import shortage
from data_pipelines.draws import Draws
from data_pipelines.pinned import on_device
from data_pipelines.resident_views import make_view
from data_pipelines.sources.images import decode
from data_pipelines.views import Normalize, View


def has_dali() -> bool:
    """Whether DALI is installed."""
    return bool(importlib.util.find_spec("nvidia")) and bool(importlib.util.find_spec("nvidia.dali"))


class PillowPipeline:
    """As `dali_pipeline.ImagePipeline`, in one thread: what it takes and raises; views equal within rounding.

    Args:
        views: what becomes of an image, one a view.
        sources: for each view, which list of images it is made from.
        size: height and width of a view, pixels.
        normalize: mean and standard deviation of the views.
        device: of the views.
    """

    def __init__(
        self,
        views: list[View],
        sources: list[int],
        size: int,
        normalize: Normalize,
        device: torch.device,
    ):
        self.views, self.sources, self.size = views, sources, size
        self.normalize, self.device = normalize, device

    def __call__(
        self, encoded: list[list[np.ndarray]], sizes: list[np.ndarray], draws: list[Draws]
    ) -> list[torch.Tensor]:
        """The views of one batch, float32 [n, 3, size, size], channels_last; raises Undecodable."""
        pixels = [[decoded(image) for image in images] for images in encoded]
        slots = [
            [
                slot
                for slot, (image, size) in enumerate(zip(images, expected.tolist(), strict=True))
                if image is None or list(image.shape[:2]) != size
            ]
            for images, expected in zip(pixels, sizes, strict=True)
        ]
        if any(slots):
            raise Undecodable(slots)
        whole = [[image for image in images if image is not None] for images in pixels]
        return [
            self._view(whole[source], sizes[source], view, draws[number])
            for number, (view, source) in enumerate(zip(self.views, self.sources, strict=True))
        ]

    def _view(self, pixels: list[np.ndarray], sizes: np.ndarray, view: View, draws: Draws) -> torch.Tensor:
        """One view of images of any sizes, those of a size together."""
        made = torch.empty(len(pixels), self.size, self.size, 3, device=self.device).permute(0, 3, 1, 2)
        for same in np.unique(sizes, axis=0):
            slots = np.flatnonzero((sizes == same).all(axis=1))
            store = on_device(np.stack([pixels[slot] for slot in slots]), self.device)
            taken = Draws(**{field.name: getattr(draws, field.name)[slots] for field in fields(Draws)})
            part = make_view(store, np.arange(len(slots)), view, taken, self.size, self.normalize)
            made[on_device(slots, self.device)] = part
        return made


def decoded(image: np.ndarray) -> np.ndarray | None:
    """The pixels of an encoded image, uint8 [height, width, 3]; None where it cannot be read.

    Raises:
        Exception: memory, threads or files are lacking: the image is not to blame.
    """
    try:
        return decode(image.tobytes())
    except Exception as error:  # pillow raises nearly anything
        if shortage(error):
            raise
        return None
