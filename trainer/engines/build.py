"""The engine of the launch file."""

from collections.abc import Mapping

from torch import Tensor, nn

from trainer.checkpoints import state
from trainer.distributed.launch import DistributedContext
from trainer.engines.engine import Build, Ddp, Engine, SingleProcess, compute_in_bf16


def open_engine(
    context: DistributedContext,
    objective: nn.Module,
    build: Build,
    precision: str,
    saved: Mapping[str, Tensor] | None = None,
) -> Engine:
    """The engine of the launch file around an objective on the device.

    Args:
        build: makes the optimizer of parameters, which may be shards.
        saved: a state that any engine collected on any number of ranks; under `shard/` this rank's rows.

    Raises:
        UserError: another engine than that of the launch file would run.
    """
    if saved:
        state.restore_weights(objective, saved)
    if precision == "bf16":
        compute_in_bf16(objective, context.device)
    if context.engine.startswith("zero"):
        from trainer.engines.zero import Zero as Chosen
    elif context.engine == "fsdp2":
        from trainer.engines.fsdp import Fsdp as Chosen
    else:
        Chosen = Ddp if context.engine == "ddp" else SingleProcess
    engine = Chosen(objective, build, context, saved or {})
    if saved:  # now that no copy of the objective is made any more
        state.restore_shards(engine.objective, saved)
    return engine
