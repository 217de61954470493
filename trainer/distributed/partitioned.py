"""Parameters that ZeRO-3 has cut, as every module sees them that meets one; DeepSpeed is not imported."""

from typing import Any, TypeGuard

from torch import Tensor, nn


class PartitionedParameter(nn.Parameter):
    """A type alone, never an object: what DeepSpeed adds to a parameter that it has cut.

    Attributes:
        ds_tensor: this rank's part, 1-dim; padded, so that all ranks have equal lengths.
        ds_numel: elements of the whole parameter.
        ds_status: a member of DeepSpeed's enum; AVAILABLE while the parameter itself is whole.
    """

    ds_tensor: Tensor
    ds_numel: int
    ds_status: Any

    def partition(self) -> None:
        """Frees the whole parameter and leaves the part."""


def is_partitioned(tensor: Tensor) -> TypeGuard[PartitionedParameter]:
    """Whether ZeRO-3 has cut a parameter."""
    return "ds_tensor" in vars(tensor)


def local_part(parameter: nn.Parameter) -> Tensor:
    """This rank's part of a parameter that is cut, else the parameter."""
    return parameter.ds_tensor if is_partitioned(parameter) else parameter
