"""How images are decoded, the same for training and evaluation. Importable where DALI is not installed."""

from dataclasses import dataclass
from typing import Literal

import torch

from data_pipelines.views import Normalize


@dataclass(frozen=True)
class ImageOptions:
    """What the images of a data set become.

    Args:
        size: height and width of a view, pixels.
        normalize: mean and standard deviation, a number a channel.
        threads: CPU threads that decode.
        device: of the views; where it is a GPU, it decodes too.
        dtype: of the views.
        decode: "exact", or "fast" (`ImagePipeline` says what differs). With "fast", the same result after a
            restart and on any ranks is promised for undamaged images alone.
    """

    size: int
    normalize: Normalize
    threads: int
    device: torch.device
    dtype: torch.dtype = torch.float32
    decode: Literal["exact", "fast"] = "exact"
