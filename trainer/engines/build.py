"""Builds the engine of the launch file."""

from collections.abc import Mapping

from torch import Tensor

from trainer.checkpoints import state
from trainer.distributed.engine_kind import EngineKind
from trainer.distributed.launch import DistributedContext
from trainer.engines.engine import BuildOptimizer, Ddp, Engine, SingleProcess
from trainer.objectives.objective import Trained


def open_engine(
    context: DistributedContext,
    objective: Trained,
    build_optimizer: BuildOptimizer,
    precision: str,
    saved: Mapping[str, Tensor] | None = None,
) -> Engine[Trained]:
    """The engine of the launch file around an objective on the device. Collective.

    Args:
        build_optimizer: makes the optimizer of parameters, which may be shards.
        precision: the recipe's; "bf16" runs the forward pass in bfloat16 autocast.
        saved: a state that any engine collected on any number of ranks; under `shard/` this rank's rows.

    Raises:
        UserError: another engine than that of the launch file would run.
    """
    if saved:
        state.restore_weights(objective, saved)
    engine = engine_class(context.engine)(objective, build_optimizer, context, precision, saved or {})
    if saved:  # not before: an engine may copy the objective, and copies need no shard
        state.restore_shards(engine.objective, saved)
    return engine


def engine_class(kind: EngineKind) -> type[Engine]:
    """The class that runs an engine; its libraries are imported only where it is used."""
    if kind.is_zero:
        from trainer.engines.zero import Zero

        return Zero
    if kind is EngineKind.FSDP2:
        from trainer.engines.fsdp import Fsdp

        return Fsdp
    return {EngineKind.DDP: Ddp, EngineKind.SINGLE_PROCESS: SingleProcess}[kind]
