"""Environment, ranks, threads, device and engine: what is set up before the first step."""

import importlib.util
import os
import platform
import sys
import warnings
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import psutil

from data_pipelines.common.errors import UserError
from trainer.distributed import devices, interfaces, launcher, variables
from trainer.distributed.engine_kind import EngineKind

if TYPE_CHECKING:
    import accelerate
    import torch

ENGINE_FILES = "recipes/launch/ddp.yaml, zero1.yaml, zero2.yaml, zero3.yaml or fsdp2.yaml"


@dataclass(frozen=True)
class DistributedContext:
    """This process among the ranks of the run.

    `threads` are those of torch on this rank; `accelerator` made the process group.
    """

    rank: int
    world_size: int
    threads: int
    engine: EngineKind
    device: "torch.device"  # torch is imported after the environment is set
    accelerator: "accelerate.Accelerator"

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def description(self) -> dict:
        """The contents of world.json: what the run ran on last, and the Slurm job that started it, if any."""
        import torch

        job = os.environ.get("SLURM_JOB_ID")
        return ({"job": job} if job else {}) | {
            "processes": self.world_size,
            "threads": self.threads,
            "engine": self.engine,
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            "torch": torch.__version__,
            "python": platform.python_version(),
        }


def set_environment() -> None:
    """Sets what libraries read when they are loaded: to be called before torch is imported.

    OpenMP's threads spin while they wait for each other, by default for some 10 ms. Beside other jobs on the
    machine that is ruinous (measured: the MLP probe, 25 s instead of 5 s); on a quiet machine, no spinning at
    all costs a quarter of the speed. So they spin for a moment.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else every rank advises against what we chose
    variables.forget_ranks_of_others()


def check_world() -> int:
    """The number of processes of this run.

    Raises:
        UserError: it is not the number in the launcher's options. (On CPU, `accelerate launch
            --num_processes 2` without a configuration file silently starts one process.)
    """
    world = variables.world_size()
    requested = int(launcher.accelerate_options().get("num_processes") or world)
    if requested != world:
        raise UserError(
            f"accelerate launch was asked for {requested} processes but started {world}; "
            f"use: accelerate launch --config_file recipes/launch/ddp.yaml --num_processes {requested} ..."
        )
    return world


def threads_of_rank() -> int:
    """The threads of torch on this rank: those of OMP_NUM_THREADS, else its share of this machine's cores.

    `accelerate launch` exports OMP_NUM_THREADS=1 to its ranks, so the user's value is read from the
    environment of the launcher. Raises UserError where that is no number.
    """
    try:
        process = launcher.started_by()
        exported = (process.environ() if process else os.environ).get("OMP_NUM_THREADS")
    except psutil.Error:
        exported = None
    cores = len(os.sched_getaffinity(0))
    return variables.threads_of(exported) if exported else max(1, cores // variables.local_world_size())


def engine_of_launch_file() -> EngineKind:
    """The engine that the launch file asks for.

    Raises:
        UserError: it is none of those in recipes/launch, the launcher did not start it, or DeepSpeed is not
            installed.
    """
    setting = os.environ.get
    if setting("ACCELERATE_USE_DEEPSPEED") == "true":
        stage = setting("ACCELERATE_DEEPSPEED_ZERO_STAGE")
        offloads = [setting(f"ACCELERATE_DEEPSPEED_OFFLOAD_{part}_DEVICE") for part in ("OPTIMIZER", "PARAM")]
        if stage not in ("1", "2", "3"):
            raise UserError(
                f"the launch file asks for ZeRO stage {stage}; expected 1, 2 or 3: {ENGINE_FILES}"
            )
        if setting("ACCELERATE_DEEPSPEED_CONFIG_FILE") or set(offloads) - {None, "none"}:
            raise UserError(
                f"the launch file asks for a DeepSpeed configuration of its own or for offloading, which "
                f"this program does not do; use {ENGINE_FILES}"
            )
        if importlib.util.find_spec("deepspeed") is None:
            raise UserError(
                f"the launch file asks for ZeRO-{stage}, but DeepSpeed is not installed: "
                "pip install deepspeed, or launch with recipes/launch/ddp.yaml or fsdp2.yaml"
            )
        return EngineKind(f"zero{stage}")
    if setting("ACCELERATE_USE_FSDP") == "true":
        if setting("FSDP_VERSION") != "2" or setting("FSDP_OFFLOAD_PARAMS") == "true":
            raise UserError(
                f"the launch file asks for FSDP {setting('FSDP_VERSION')} or for offloading; "
                "expected FSDP 2 without it: recipes/launch/fsdp2.yaml"
            )
        return EngineKind.FSDP2
    options = launcher.accelerate_options()
    for name, kind in (("use_deepspeed", "DEEPSPEED"), ("use_fsdp", "FSDP")):
        if name in options or options.get("distributed_type") == kind:
            raise UserError(
                f"accelerate launch was asked for {kind} but starts the ranks without it, as --cpu and "
                "use_cpu: true make it do; leave them out: where no GPU is, the CPU is used by itself"
            )
    return EngineKind.DDP if variables.world_size() > 1 else EngineKind.SINGLE_PROCESS


def start(precision: str) -> DistributedContext:
    """Sets up ranks and device for the engine that the launcher names.

    Raises:
        UserError: the launcher names an engine that this program does not run, started another number of
            ranks than its options say, or more than there are GPUs; or torch cannot use the GPUs of a job.
    """
    launcher.stop_with(launcher.started_by())
    world = check_world()
    if (ignored := variables.forget_mpi()) and world == 1:
        print(f"note: {', '.join(ignored)} in the environment is ignored: accelerate launch starts the ranks")
    if 1 < world == variables.local_world_size():
        # gloo would listen where the machine's name leads, and NCCL on its network, for other machines too
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    engine, threads = engine_of_launch_file(), threads_of_rank()
    import torch

    torch.set_num_threads(threads)
    if world > variables.local_world_size():
        interfaces.choose()

    gpu = devices.use_gpus()
    if not gpu:  # accelerate launch exports False, and would then look for a GPU a rank
        os.environ["ACCELERATE_USE_CPU"] = "true"
        os.environ["DS_ACCELERATOR"] = "cpu"
    # The recipe sets the precision and trainer.engines makes the engine: accelerate makes the ranks only.
    for name in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"):
        os.environ.pop(name, None)

    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    from trainer.distributed import collectives

    # With find_unused_parameters DDP keeps its buckets. Rebuilt after the first backward pass, as a static
    # graph's are too, they would add up in another order: a resumed run would differ in the last bits.
    # accelerate knows no other name for it yet.
    warnings.filterwarnings("ignore", message=".*`broadcast_buffers` is deprecated.*")
    ddp = DistributedDataParallelKwargs(
        find_unused_parameters=True, broadcast_buffers=False, gradient_as_bucket_view=True
    )
    # The watchdog ends a step that hangs. While rank 0 measures alone, the others may wait for hours.
    group = InitProcessGroupKwargs(timeout=timedelta(hours=12))
    accelerator = Accelerator(mixed_precision="no", cpu=not gpu, kwargs_handlers=[ddp, group])
    if accelerator.num_processes != world:
        raise UserError(f"{world} processes were started but accelerate sees {accelerator.num_processes}")
    kind = accelerator.distributed_type.value.lower()
    if kind not in ("no", "multi_cpu", "multi_gpu"):
        raise UserError(f"the engine {kind} is not supported; use {ENGINE_FILES}")
    if kind == "no" and engine is not EngineKind.SINGLE_PROCESS:
        raise UserError(
            f"the launch file asks for {engine}, but this is a single process; use {ENGINE_FILES}"
        )
    collectives.open_cpu_group()
    if precision == "bf16" and accelerator.is_main_process and (line := devices.bf16_warning(gpu)):
        print(line)
    return DistributedContext(
        accelerator.process_index, world, threads, engine, accelerator.device, accelerator
    )


def leave(status: int) -> None:
    """Ends the process at once, without an orderly exit: of several ranks, torch's threads may abort that."""
    sys.stdout.flush()
    sys.stderr.flush()
    if status == 0 and "torch" in sys.modules:
        from trainer.distributed import collectives

        with suppress(RuntimeError):  # all work is done: it does not matter that another rank has died
            collectives.barrier()
    if status:
        launcher.quieten()
    os._exit(status)
