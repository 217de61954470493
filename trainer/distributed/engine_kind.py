"""The engines by name."""

from enum import Enum


class EngineKind(str, Enum):
    """What averages gradients and runs the optimizer on the ranks; one launch file each.

    The values are printed, and stored in world.json, manifest.json and MLflow: they never change.
    """

    SINGLE_PROCESS = "single process"
    DDP = "ddp"
    ZERO1 = "zero1"
    ZERO2 = "zero2"
    ZERO3 = "zero3"
    FSDP2 = "fsdp2"

    __str__ = str.__str__  # as `enum.StrEnum` of Python 3.11 has it

    @property
    def stage(self) -> int:
        """The stage of DeepSpeed ZeRO: 1, 2 or 3; 0 for any other engine."""
        return {EngineKind.ZERO1: 1, EngineKind.ZERO2: 2, EngineKind.ZERO3: 3}.get(self, 0)

    @property
    def is_zero(self) -> bool:
        """Whether DeepSpeed ZeRO runs."""
        return self.stage > 0
