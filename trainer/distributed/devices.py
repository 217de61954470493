"""Which GPUs this machine has, and whether torch can use them for the ranks that were started."""

import os
import warnings
from pathlib import Path

from data_pipelines.common.errors import SharedError, UserError
from trainer.distributed import variables

DEVICES = Path("/dev")
OF_SLURM = ("SLURM_GPUS_ON_NODE", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS")  # where the job asked for GPUs
HIDING = ("", "-1", "none", "nodevfiles", "void")  # values of CUDA_VISIBLE_DEVICES that show no GPU


def use_gpus() -> bool:
    """Whether ranks run on GPUs, one each; else they run on the CPU.

    Prints a line where the CPU is used although this machine has a GPU.

    Raises:
        UserError: there are more ranks than GPUs here, or torch cannot use those that a job asked for and
            that are there.
    """
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # our own line says why
        usable = torch.cuda.is_available()
    if usable:
        check_one_gpu_a_rank(torch.cuda.device_count())
        return True
    why = why_unusable()
    if why is None:
        return False
    of_slurm = [name for name in OF_SLURM if os.environ.get(name, "0") not in ("", "0")]
    if of_slurm and "SLURM_JOB_ID" in os.environ and nvidia_gpus():  # a cluster can pretend to have some
        raise _of_this_machine(
            f"the job asked for GPUs ({of_slurm[0]}={os.environ[of_slurm[0]]}), and torch cannot use them: "
            f"{why}; to train on the CPU, export CUDA_VISIBLE_DEVICES=-1"
        )
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: the CPU is used, for torch cannot use the GPU of this machine: {why}", flush=True)
    return False


def check_one_gpu_a_rank(gpus: int) -> None:
    """Raises UserError: this machine has fewer GPUs than ranks; NCCL refuses two ranks on one."""
    ranks = variables.local_world_size()
    if ranks <= gpus:
        return
    most = gpus * max(1, variables.world_size() // ranks)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = f" (CUDA_VISIBLE_DEVICES={visible} hides others)" if visible else ""
    raise _of_this_machine(
        f"{ranks} ranks were started on a machine with {gpus} GPU{'s' * (gpus > 1)} that torch sees, and "
        f"each needs one of its own; use --num_processes {most}{hidden}"
    )


def nvidia_gpus() -> list[str]:
    """The device files of NVIDIA GPUs that this process may open.

    A container sees those that it was lent, a job of Slurm where the nodes constrain devices, those that it
    asked for; the driver's folder in /proc shows all of the machine.
    """
    files = sorted(DEVICES.glob("nvidia[0-9]*"))
    return [file.name for file in files if os.access(file, os.R_OK | os.W_OK)]


def cpu_was_asked_for() -> bool:
    """Whether the environment hides GPUs from torch, or tells accelerate to leave them alone."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = visible is not None and visible.strip().lower() in HIDING
    return hidden or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"


def why_unusable() -> str | None:
    """Why torch uses no GPU, and what to do; None: there is none, or the CPU was asked for.

    For where `torch.cuda.is_available()` is false. A job of Slurm that asked for GPUs has some.
    """
    if cpu_was_asked_for():
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not nvidia_gpus() and all(os.environ.get(name, "0") in ("", "0") for name in OF_SLURM):
        return None
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built for the CPU alone; install its CUDA build"
    try:
        torch.cuda.init()
        reason = "it sees no device"
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0].partition(". ")[0][:200].rstrip(".")
    if visible is not None and nvidia_gpus():
        return f"{reason}, with CUDA_VISIBLE_DEVICES={visible}; unset that, or name a device that is there"
    need = "; CUDA 13 needs a driver from 580 on" if (torch.version.cuda or "").startswith("13") else ""
    return f"{reason}; `nvidia-smi` shows driver and devices{need}"


def bf16_warning(gpu: bool) -> str | None:
    """A line where bf16 is emulated, which is exact but slow; None: there are instructions for it."""
    import torch

    if gpu:
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return None
        what = f"GPU ({torch.cuda.get_device_name()})"
    elif has_bf16_processor():
        return None
    else:
        what = "processor"
    return f"warning: this {what} has no bf16 instructions: precision=float32 will be faster here"


def has_bf16_processor() -> bool:
    """Whether this processor has instructions for bfloat16, or it is not known."""
    try:
        return "bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return True


def _of_this_machine(line: str) -> UserError:
    """A mistake that all ranks of this machine see; where there is no other, the first rank prints it."""
    alone = variables.world_size() == variables.local_world_size()
    return SharedError(line) if alone else UserError(line)
