"""Variables of the environment that say how many ranks and threads there are, and what others left there."""

import os

from data_pipelines.common.errors import UserError

RENDEZVOUS = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what a launcher exports beside WORLD_SIZE
# accelerate reads these as well, PMI_SIZE even before WORLD_SIZE. srun and mpirun export them, for processes
# of theirs: under our launcher they count nodes.
OF_MPI = (
    *(
        f"{of}_COMM_WORLD_{what}"
        for of in ("OMPI", "MV2")
        for what in ("SIZE", "RANK", "LOCAL_SIZE", "LOCAL_RANK")
    ),
    *("PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS", "MPI_LOCALRANKID"),
)


def whole_number(name: str, default: int, least: int) -> int:
    """The value of a variable, `default` where it is not set. Raises UserError for anything else."""
    value = os.environ.get(name, "").strip()
    if not value:
        return default
    if not value.isascii() or not value.isdigit() or int(value) < least:
        raise UserError(
            f"{name}={value} in the environment: expected a whole number from {least}; unset it (a launcher "
            "sets it by itself)"
        )
    return int(value)


def forget_ranks_of_others() -> None:
    """Removes what no launcher of this process can have set: a rank without a number of ranks."""
    if not os.environ.get("WORLD_SIZE", "").strip():
        for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)


def forget_mpi() -> list[str]:
    """Removes MPI's numbers; returns those that were there, as NAME=VALUE."""
    return [f"{name}={os.environ.pop(name)}" for name in OF_MPI if name in os.environ]


def world_size() -> int:
    """The number of ranks, from the launcher's environment.

    Raises:
        UserError: it is no number, or stands there alone, left over from something else.
    """
    world = whole_number("WORLD_SIZE", 1, 1)
    missing = [name for name in RENDEZVOUS if name not in os.environ]
    if world > 1 and missing:
        raise UserError(
            f"WORLD_SIZE={world} stands in the environment without {', '.join(missing)}, so no launcher "
            "started this process: unset WORLD_SIZE, or start the ranks with accelerate launch"
        )
    rank = whole_number("RANK", 0, 0)
    if rank >= world:
        raise UserError(
            f"RANK={rank} in the environment is not below WORLD_SIZE={world}; unset both, or start the ranks "
            "with accelerate launch"
        )
    return world


def local_world_size() -> int:
    """The number of ranks on this machine, from the launcher's environment. Raises UserError: no number."""
    return whole_number("LOCAL_WORLD_SIZE", 1, 1)


def threads_of(value: str) -> int:
    """Threads that OMP_NUM_THREADS asks for: the first of a list, which is for the outermost loops.

    Raises:
        UserError: it is no whole number from 1.
    """
    first = value.split(",")[0].strip()
    if not first.isascii() or not first.isdigit() or int(first) < 1:
        raise UserError(
            f"OMP_NUM_THREADS={value}: expected a whole number from 1, or a list that begins with one; mend "
            "it, or unset it and the cores are divided among the ranks"
        )
    return int(first)
