"""What autograd keeps of a step between forward and backward pass, counted on tensors without numbers."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from data_pipelines.loader import Batch
from data_pipelines.noise import Noise
from trainer.networks.grouped_statistics import computed_by
from trainer.objectives.objective import Objective
from trainer.recipe.training_recipe import TrainingRecipe
from trainer.training.data import DTYPES


def saved_bytes(
    recipe: TrainingRecipe, objective: Objective, shapes: Sequence[tuple[int, ...]], samples: int
) -> int:
    """Bytes that the forward pass of a micro-batch of so many samples keeps for the backward pass.

    Batch-norm's groups are computed as on a GPU, all at once. Parameters and buffers are not among them, and
    neither is what an operation takes while it runs.

    Args:
        objective: on the CPU; it loses its numbers.
        shapes: of the views of a sample.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for module in objective.modules():  # so that a view of a weight is known as that weight's
            for name, tensor in module.named_parameters(recurse=False):
                fake = mode.from_tensor(tensor.detach())
                module._parameters[name] = nn.Parameter(fake, tensor.requires_grad)
        return saved_by(objective, empty_batch(recipe, shapes, samples), recipe.precision == "bf16")


def saved_by(objective: Objective, batch: Batch, bf16: bool) -> int:
    """Bytes of all storages that a forward pass saves, each counted once; a parameter's is none of them."""
    kept = {tensor.untyped_storage()._cdata for tensor in (*objective.parameters(), *objective.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}  # kept alive: a freed storage's place would be used again

    def look(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in kept:
            saved[storage._cdata] = storage
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=bf16), computed_by("vectorized"):
        objective(batch)
    return sum(storage.nbytes() for storage in saved.values())


def empty_batch(recipe: TrainingRecipe, shapes: Sequence[tuple[int, ...]], samples: int) -> Batch:
    """A batch of so many samples of one rank, none of them shuffled, in the loader's layout."""
    dtype = DTYPES[recipe.precision]
    views = [torch.zeros(samples, *shape, dtype=dtype) for shape in shapes]
    views = [view.contiguous(memory_format=torch.channels_last) if view.ndim == 4 else view for view in views]
    positions = np.tile(np.arange(samples), (len(views), 1))
    labels, noise = torch.zeros(samples, dtype=torch.int64), Noise(recipe.seed, 0, 0, samples)
    return Batch(views, positions, positions, labels, 0, noise, None)
