"""Environment, ranks, threads, device and engine: what is set up before the first step."""

import ctypes
import importlib.util
import os
import platform
import signal
import sys
import warnings
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import yaml

from data_pipelines.common.errors import UserError
from trainer.distributed import interfaces, variables
from trainer.distributed.engine_kind import EngineKind

if TYPE_CHECKING:
    import accelerate
    import torch

ACCELERATE = {
    "accelerate",
    "accelerate-launch",
    "accelerate.commands.accelerate_cli",
    "accelerate.commands.launch",
}
LAUNCHERS = ACCELERATE | {"torchrun"}
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
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
        """The contents of world.json: what the run ran on last."""
        import torch

        return {
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


def launcher() -> psutil.Process | None:
    """The `accelerate launch` (or torchrun) that started this process, if one did."""
    for process in psutil.Process().parents()[:3]:
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if LAUNCHERS.intersection(Path(word).name for word in words[:3]):
            return process
    return None


def stop_with_launcher(launcher: psutil.Process | None) -> None:
    """Makes the kernel send SIGTERM when the launcher dies: a rank without a supervisor saves and ends.

    Otherwise it would train on, and keep the run's folder locked against the next start.
    """
    if launcher and launcher.pid == os.getppid() and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != launcher.pid:  # the launcher died before prctl
            os.kill(os.getpid(), signal.SIGTERM)


def launch_options(words: list[str]) -> dict[str, Any]:
    """The options of an `accelerate launch`: those in its words go before those in its configuration file.

    The file is the one that the words name, or else accelerate's default file.
    """
    options: dict[str, str] = {}
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        following = words[number + 1] if number + 1 < len(words) else ""
        if name.startswith("--"):
            options.setdefault(name[2:].replace("-", "_"), value if equals else following)
    file = Path(options.get("config_file") or default_config_file())
    return (yaml.safe_load(file.read_text()) or {} if file.exists() else {}) | options


def default_config_file() -> Path:
    """The file that `accelerate config` writes, which is used when no other is named."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", os.path.join(cache, "huggingface"))
    return Path(home).expanduser() / "accelerate" / "default_config.yaml"


def accelerate_options() -> dict[str, Any]:
    """The options of the `accelerate launch` that started this process; empty where none did."""
    process = launcher()
    words = process.cmdline() if process else []
    return launch_options(words) if ACCELERATE.intersection(Path(word).name for word in words[:3]) else {}


def check_world() -> int:
    """The number of processes of this run.

    Raises:
        UserError: it is not the number in the launcher's options. (On CPU, `accelerate launch
            --num_processes 2` without a configuration file silently starts one process.)
    """
    world = variables.world_size()
    requested = int(accelerate_options().get("num_processes") or world)
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
        process = launcher()
        exported = (process.environ() if process else os.environ).get("OMP_NUM_THREADS")
    except psutil.Error:
        exported = None
    cores = len(os.sched_getaffinity(0))
    return variables.threads_of(exported) if exported else max(1, cores // variables.local_world_size())


def lacks_bf16() -> bool:
    """Whether this processor has no instructions for bfloat16: it is emulated then, exact but slow."""
    try:
        return "bf16" not in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False  # unknown


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
    options = accelerate_options()
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
        UserError: the launcher names an engine that this program does not run, or started another number of
            ranks than its options say.
    """
    stop_with_launcher(launcher())
    world = check_world()
    if (ignored := variables.forget_mpi()) and world == 1:
        print(f"note: {', '.join(ignored)} in the environment is ignored: accelerate launch starts the ranks")
    if 1 < world == variables.local_world_size():
        # gloo would listen where the machine's name leads, for other machines too
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    engine, threads = engine_of_launch_file(), threads_of_rank()
    import torch

    torch.set_num_threads(threads)
    if world > variables.local_world_size():
        interfaces.choose()

    gpu = torch.cuda.is_available()
    if not gpu:  # accelerate launch exports False, and would then look for a GPU a rank
        os.environ["ACCELERATE_USE_CPU"] = "true"
        os.environ["DS_ACCELERATOR"] = "cpu"
    # The recipe sets the precision and trainer.engines makes the engine: accelerate makes the ranks only.
    for name in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"):
        os.environ.pop(name, None)

    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    from trainer.distributed import collectives

    # With find_unused_parameters DDP keeps its buckets. Rebuilt after the first backward pass, they would add
    # up in another order, and a resumed run would differ in the last bits.
    # accelerate knows no other name for it yet.
    warnings.filterwarnings("ignore", message=".*`broadcast_buffers` is deprecated.*")
    ddp = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
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
    if precision == "bf16" and not gpu and accelerator.is_main_process and lacks_bf16():
        print("warning: this processor has no bf16 instructions: precision=float32 will be faster here")
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
        quieten_launcher()
    os._exit(status)


def quieten_launcher() -> None:
    """Ends an `accelerate launch` of one process, which would print a traceback below our last line.

    Such a launcher has nothing left to do but to raise that this process failed. A launcher of several
    processes is left alone: it has other ranks to end.
    """
    process = launcher()
    if process and process.pid == os.getppid() and "WORLD_SIZE" not in os.environ:
        process.terminate()
