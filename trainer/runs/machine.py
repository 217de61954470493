"""What the machine of this rank has, for the recipe's `auto`."""

import psutil
import torch

from data_pipelines.dataset import Dataset
from data_pipelines.reader import Reader
from data_pipelines.resident import decoded_bytes
from trainer.distributed import variables
from trainer.recipe.automatic import Facts, Split
from trainer.recipe.schema import Data


def facts(device: torch.device, split: Split | None = None) -> Facts:
    """The facts of this rank's device, and of a training split (None: not open)."""
    if device.type != "cuda":
        share = psutil.virtual_memory().total // variables.local_world_size()
        known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # since 2.12
        return Facts(device.type, memory=share, tiles=bool(known.get("amx_bf16")), split=split)
    return Facts(
        device.type,
        capability=torch.cuda.get_device_capability(device),
        memory=torch.cuda.get_device_properties(device).total_memory,
        split=split,
    )


def training_split(dataset: Dataset, data: Data) -> Split:
    """What rules know of the split that is trained on: the index is read where one asks for the sizes."""
    images = dataset.split(data.train).images
    if not data.resident:
        return Split(images)
    with Reader(dataset, data.train) as reader:
        return Split(images, decoded_bytes(reader))
