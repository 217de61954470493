"""The GPUs that Slurm gave a job on this node, and whether torch can use them."""

import os
import warnings

from trainer.distributed import devices


def granted() -> int:
    """How many GPUs Slurm gave the job on this node; 0 where its user wants to train on the CPU."""
    if devices.cpu_was_asked_for():
        return 0
    number = os.environ.get("SLURM_GPUS_ON_NODE", "")
    return int(number) if number.isdigit() else 0


def fault(asked: int, processes: int) -> str:
    """What keeps so many processes from a GPU each; "" for nothing.

    torch is imported where a device file of a GPU can be opened, nowhere else: clusters pretend, and the
    comparison of nodes sees the one that has none.
    """
    if not asked or not devices.nvidia_gpus():
        return ""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the line says why
        usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if usable < asked:
        why = devices.why_unusable() if not usable else "a GPU or its driver has failed, or it is hidden"
        return f"the job has {asked} GPUs there, and torch can use {usable}: {why}"
    if usable < processes:
        return f"{processes} processes for {usable} GPUs: lower PROCS_PER_NODE, or ask for more GPUs"
    for number in range(asked):
        try:
            torch.zeros(1, device=f"cuda:{number}")
        except RuntimeError as error:
            return f"GPU {number} cannot be used: {str(error).partition(chr(10))[0]}"
    return ""
