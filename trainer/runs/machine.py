"""What the machine of this rank has, for the recipe's `auto`."""

import importlib.util

import psutil
import torch

from trainer.distributed import variables
from trainer.recipe.automatic import Facts


def facts(device: torch.device, images: int | None = None) -> Facts:
    """The facts of this rank's device, and of a training split of so many images (None: not known)."""
    if device.type != "cuda":
        share = psutil.virtual_memory().total // variables.local_world_size()
        return Facts(device.type, memory=share, images=images)
    return Facts(
        device.type,
        capability=torch.cuda.get_device_capability(device),
        memory=torch.cuda.get_device_properties(device).total_memory,
        triton=importlib.util.find_spec("triton") is not None,
        images=images,
    )
