"""A run's state as a flat dictionary by name: what a checkpoint holds, whatever engine wrote it.

model/<parameter or buffer>      optimizer/<slot>/<parameter>
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def collect(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of the model (unwrapped) and of its optimizer."""
    state = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for slot, value in optimizer.state.get(parameter, {}).items():
            state[f"optimizer/{slot}/{name}"] = value
    return state


def restore(state: Mapping[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Puts a collected state back, bit for bit.

    Raises:
        RuntimeError: names or shapes are not the model's.
    """
    weights = {name.removeprefix("model/"): t for name, t in state.items() if name.startswith("model/")}
    model.load_state_dict(weights)
    parameters = dict(model.named_parameters())
    for name, value in state.items():
        if name.startswith("optimizer/"):
            _, slot, owner = name.split("/", 2)
            optimizer.state[parameters[owner]][slot] = like(value, parameters[owner])


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """A copy of an optimizer's tensor where and laid out as its parameter is."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
