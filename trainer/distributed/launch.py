"""What has to be right before the first step: environment, ranks, threads, device, engine."""

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

import psutil
import yaml

from data_pipelines.common.errors import UserError

OURS = {"accelerate", "accelerate-launch", "accelerate.commands.accelerate_cli", "accelerate.commands.launch"}
LAUNCHERS = OURS | {"torchrun"}
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
ENGINE_FILES = "recipes/launch/ddp.yaml, zero1.yaml, zero2.yaml, zero3.yaml or fsdp2.yaml"


@dataclass(frozen=True)
class DistributedContext:
    """Where this process stands."""

    rank: int
    world_size: int
    threads: int
    engine: str
    device: "torch.device"  # noqa: F821 - torch is imported after the environment is set
    accelerator: "accelerate.Accelerator"  # noqa: F821

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def description(self) -> dict:
        """What world.json keeps: on what the run ran last."""
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
    """What libraries read when they are loaded: to be called before torch is imported.

    OpenMP's threads spin while they wait for each other, by default for some 10 ms. Where anything else
    runs on the machine that is ruinous (measured: the MLP probe, 25 s instead of 5 s beside other jobs);
    not to spin at all costs a quarter of the speed where nothing does. So they spin for a moment.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # every rank would advise against what we chose


def local_world() -> int:
    """Ranks on this machine, as the launcher says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


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


def end_with(launcher: psutil.Process | None) -> None:
    """Has the kernel send SIGTERM when the launcher dies: a rank that nobody supervises saves and ends.

    It would train on, and hold the run's folder against the next start.
    """
    if launcher and launcher.pid == os.getppid() and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != launcher.pid:  # it had died before
            os.kill(os.getpid(), signal.SIGTERM)


def asked_for(words: list[str]) -> dict[str, object]:
    """The options of an `accelerate launch`: its words over the file that they name, or accelerate's own."""
    options: dict[str, object] = {}
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        following = words[number + 1] if number + 1 < len(words) else ""
        if name.startswith("--"):
            options.setdefault(name[2:].replace("-", "_"), value if equals else following)
    file = Path(options.get("config_file") or default_file())
    return (yaml.safe_load(file.read_text()) or {} if file.exists() else {}) | options


def default_file() -> Path:
    """Where `accelerate config` leaves what holds when no file is named."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", os.path.join(cache, "huggingface"))
    return Path(home).expanduser() / "accelerate" / "default_config.yaml"


def accelerate_asks() -> dict[str, object]:
    """What the `accelerate launch` that started this process was asked for; nothing where none did."""
    process = launcher()
    words = process.cmdline() if process else []
    return asked_for(words) if OURS.intersection(Path(word).name for word in words[:3]) else {}


def check_world() -> int:
    """The number of processes of this run.

    Raises:
        UserError: it is not the one that the launcher was asked for. (On CPU, `accelerate launch
            --num_processes 2` without a configuration file silently starts one process.)
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    asked = int(accelerate_asks().get("num_processes") or world)
    if asked != world:
        raise UserError(
            f"accelerate launch was asked for {asked} processes but started {world}; "
            f"use: accelerate launch --config_file recipes/launch/ddp.yaml --num_processes {asked} ..."
        )
    return world


def set_threads() -> int:
    """Gives torch the cores of this machine, shared by its ranks, unless the user exported OMP_NUM_THREADS.

    `accelerate launch` exports 1 for everybody, so the user's own word is looked up where it was said.
    """
    import torch

    try:
        process = launcher()
        said = (process.environ() if process else os.environ).get("OMP_NUM_THREADS")
    except psutil.Error:
        said = None
    threads = int(said) if said else max(1, len(os.sched_getaffinity(0)) // local_world())
    torch.set_num_threads(threads)
    return threads


def lacks_bf16() -> bool:
    """Whether this processor has no instructions for bfloat16, so that it is emulated: right, but slow."""
    try:
        return "bf16" not in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False  # not known


def asked_engine() -> str:
    """The engine that the launch file asks for.

    Raises:
        UserError: it is none of those in recipes/launch, the launcher made another of it, or DeepSpeed is
            asked for and not installed.
    """
    asked = os.environ.get
    if asked("ACCELERATE_USE_DEEPSPEED") == "true":
        stage = asked("ACCELERATE_DEEPSPEED_ZERO_STAGE")
        offloads = [asked(f"ACCELERATE_DEEPSPEED_OFFLOAD_{what}_DEVICE") for what in ("OPTIMIZER", "PARAM")]
        if stage not in ("1", "2", "3"):
            raise UserError(
                f"the launch file asks for ZeRO stage {stage}; expected 1, 2 or 3: {ENGINE_FILES}"
            )
        if asked("ACCELERATE_DEEPSPEED_CONFIG_FILE") or set(offloads) - {None, "none"}:
            raise UserError(
                f"the launch file asks for a DeepSpeed configuration of its own or for offloading, which "
                f"this program does not do; use {ENGINE_FILES}"
            )
        if importlib.util.find_spec("deepspeed") is None:
            raise UserError(
                f"the launch file asks for ZeRO-{stage}, but DeepSpeed is not installed: "
                "pip install deepspeed, or launch with recipes/launch/ddp.yaml or fsdp2.yaml"
            )
        return f"zero{stage}"
    if asked("ACCELERATE_USE_FSDP") == "true":
        if asked("FSDP_VERSION") != "2" or asked("FSDP_OFFLOAD_PARAMS") == "true":
            raise UserError(
                f"the launch file asks for FSDP {asked('FSDP_VERSION')} or for offloading; "
                "expected FSDP 2 without it: recipes/launch/fsdp2.yaml"
            )
        return "fsdp2"
    said = accelerate_asks()
    for name, kind in (("use_deepspeed", "DEEPSPEED"), ("use_fsdp", "FSDP")):
        if name in said or said.get("distributed_type") == kind:
            raise UserError(
                f"accelerate launch was asked for {kind} but starts the ranks without it, as --cpu and "
                "use_cpu: true make it do; leave them out: where no GPU is, the CPU is used by itself"
            )
    return "ddp" if int(asked("WORLD_SIZE", "1")) > 1 else "single process"


def start(precision: str) -> DistributedContext:
    """Sets up ranks and device for the engine that the launcher names.

    Raises:
        UserError: the launcher names an engine that this program does not run, or the ranks are not
            those that were asked for.
    """
    end_with(launcher())
    world = check_world()
    if 1 < world == local_world():  # gloo would listen where the machine's name leads, for other machines too
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    engine = asked_engine()
    import torch

    gpu = torch.cuda.is_available()
    if not gpu:  # accelerate launch exports False, and would then look for a GPU a rank
        os.environ["ACCELERATE_USE_CPU"] = "true"
        os.environ["DS_ACCELERATOR"] = "cpu"
    # The recipe decides on the precision; engines.py makes the engines, so accelerate is to make the ranks.
    for decided in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"):
        os.environ.pop(decided, None)
    threads = set_threads()

    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    from trainer.distributed import collectives

    # Unused parameters are looked for because DDP then keeps its buckets: rebuilt after the first
    # backward, they add up in another order, and a resumed run would differ in the last bits.
    # accelerate knows no other name for it yet.
    warnings.filterwarnings("ignore", message=".*`broadcast_buffers` is deprecated.*")
    ddp = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    # The watchdog ends a step that hangs, and says who. Where rank 0 measures alone, the others wait long.
    waiting = InitProcessGroupKwargs(timeout=timedelta(hours=12))
    accelerator = Accelerator(mixed_precision="no", cpu=not gpu, kwargs_handlers=[ddp, waiting])
    if accelerator.num_processes != world:
        raise UserError(f"{world} processes were started but accelerate sees {accelerator.num_processes}")
    kind = accelerator.distributed_type.value.lower()
    if kind not in ("no", "multi_cpu", "multi_gpu"):
        raise UserError(f"the engine {kind} is not supported; use {ENGINE_FILES}")
    if kind == "no" and engine != "single process":
        raise UserError(
            f"the launch file asks for {engine}, but this is a single process; use {ENGINE_FILES}"
        )
    collectives.open_cpu_group()
    if precision == "bf16" and not gpu and accelerator.is_main_process and lacks_bf16():
        print("this processor has no bf16 instructions: precision=float32 will be faster here")
    return DistributedContext(
        accelerator.process_index, world, threads, engine, accelerator.device, accelerator
    )


def leave(status: int) -> None:
    """Ends the process. With several ranks at once: torch's threads may abort an orderly exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    if status == 0 and "torch" in sys.modules:
        from trainer.distributed import collectives

        with suppress(RuntimeError):  # all is done: a rank that was killed meanwhile changes nothing
            collectives.barrier()
    if status:
        quieten_launcher()
    os._exit(status)


def quieten_launcher() -> None:
    """Ends an `accelerate launch` of one process, which would bury our last line under its own traceback.

    It has nothing left to do but to raise that this process failed. A launcher of several is left alone:
    it has other ranks to end.
    """
    process = launcher()
    if process and process.pid == os.getppid() and "WORLD_SIZE" not in os.environ:
        process.terminate()
