"""Imports modules in a process of its own and prints what they say: python -m … MODULE …

A broken installation may end the process or print anything; lines that begin with MARK are ours.
"""

import importlib
import json
import sys
import warnings
from types import ModuleType

MARK = "probed "
PROBED = (("torch", "nvidia.dali"), ("deepspeed",))  # the modules of each process


def facts(name: str) -> dict:
    """What an imported module says about itself."""
    module = importlib.import_module(name)
    return torch_facts(module) if name == "torch" else {}


def torch_facts(torch: ModuleType) -> dict:
    """torch's builds, threads and backends, and the names of the GPUs that it can use, or why it cannot."""
    builds = {"CUDA build": torch.version.cuda or "none"}
    if torch.version.hip:
        builds["ROCm build"] = torch.version.hip
    if torch.backends.cudnn.is_available():
        builds["cuDNN"] = torch.backends.cudnn.version()
    known = {"gloo": torch.distributed.is_gloo_available(), "nccl": torch.distributed.is_nccl_available()}
    return {
        "builds": builds,
        "threads": torch.get_num_threads(),
        "backends": " and ".join(name for name, there in known.items() if there),
        "gpu": gpu_facts(torch),
    }


def gpu_facts(torch: ModuleType) -> dict:
    """The GPUs that torch can use; where there is none, the reason in torch's words."""
    try:
        torch.cuda.init()
        properties = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    except (RuntimeError, AssertionError) as error:
        return {"names": [], "why": str(error)}
    names = [
        f"{one.name} ({one.total_memory / 2**30:.0f} GiB, capability {one.major}.{one.minor})"
        for one in properties
    ]
    return {"names": names, "why": "" if names else "no device is visible"}


def main(names: list[str]) -> None:
    """Prints a line for each module: its facts, or its error."""
    warnings.simplefilter("ignore")
    for name in names:
        try:
            result = facts(name)
        except BaseException as error:  # also what exits
            result = {"error": f"{type(error).__name__}: {error}"}
        print(f"\n{MARK}{json.dumps({name: result})}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
