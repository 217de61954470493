"""The machine as this process sees it: system, cores, memory and GPUs, with the limits that hold for it."""

import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

GIB = 2**30
UNLIMITED = 2**60  # bytes; control groups of version 1 write "no limit" as a number close to 2**63
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def system() -> str:
    """The operating system, its kernel, the instruction set and the C library."""
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = platform.system()
    kernel = f"{platform.system()} {platform.release()}, {platform.machine()}"
    return f"{name}; {kernel}; {' '.join(platform.libc_ver()) or 'unknown C library'}"


def processor() -> Iterator[str]:
    """The processor's model, and how many of its cores this process may use."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.partition(":")[::2] for line in text.splitlines() if ":" in line)
    values = {name.strip(): value.strip() for name, value in fields.items()}
    model = values.get("model name") or platform.processor() or "unknown"
    flags = values.get("flags", "").split()
    known = [name for name in INSTRUCTIONS if name in flags]
    yield f"processor: {model}; {' '.join(known) or 'no AVX2'}"
    affine = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    quota, _ = cgroup_limits()
    limit = f", of which the control group grants {quota:g} at a time" if quota else ""
    yield f"cores: {affine} usable by this process{limit}; the machine has {os.cpu_count()}"


def memory() -> Iterator[str]:
    """Main memory, its limit for this process, shared memory, and open files, in GiB and numbers."""
    _, limit = cgroup_limits()
    now = psutil.virtual_memory()
    bound = f"; the control group's limit is {limit / GIB:.1f} GiB" if limit else ""
    yield f"memory: {now.total / GIB:.1f} GiB, {now.available / GIB:.1f} GiB available{bound}"
    if Path("/dev/shm").is_dir():
        shared = shutil.disk_usage("/dev/shm")
        yield f"/dev/shm: {shared.total / GIB:.1f} GiB, {shared.free / GIB:.1f} GiB free"
    else:
        yield "/dev/shm: absent"
    yield f"open files: at most {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}"


def gpus() -> Iterator[str]:
    """A line for each NVIDIA GPU that the driver shows: its name, memory and driver."""
    query = "--query-gpu=name,memory.total,driver_version"
    command = ["nvidia-smi", query, "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except FileNotFoundError:
        yield "GPUs: nvidia-smi is absent"
        return
    except subprocess.TimeoutExpired:
        yield "GPUs: nvidia-smi does not answer within 20 s"
        return
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        yield f"GPUs: nvidia-smi fails with status {done.returncode}"
        return
    for line in lines:
        name, size, driver = (part.strip() for part in line.split(","))
        yield f"GPU: {name}, {size}, driver {driver}"


def cgroup_limits(root: Path = CGROUPS, membership: Path = MEMBERSHIP) -> tuple[float | None, int | None]:
    """The cores and the bytes of memory that control groups grant this process; None where nothing limits.

    A limit of any group above counts. Inside a container the path may be that of the host, and only the
    root is there.
    """
    cores, sizes = [], []
    for line in membership.read_text().splitlines() if membership.exists() else ():
        _, names, path = line.split(":", 2)
        for controller in names.split(","):
            mount = root / controller
            for folder in _with_parents(mount, path):
                if controller in ("", "cpu"):
                    cores += _quota(folder)
                if controller in ("", "memory"):
                    sizes += _numbers(folder / ("memory.max" if not controller else "memory.limit_in_bytes"))
    sizes = [size for size in sizes if size < UNLIMITED]
    return min(cores, default=None), min(sizes, default=None)


def _with_parents(mount: Path, path: str) -> list[Path]:
    folder = mount / path.lstrip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(mount))]


def _quota(folder: Path) -> list[float]:
    """The cores that one group grants: none or one number."""
    unified = _numbers(folder / "cpu.max")  # "max 100000" is no limit
    parts = unified or _numbers(folder / "cpu.cfs_quota_us") + _numbers(folder / "cpu.cfs_period_us")
    return [parts[0] / parts[1]] if len(parts) == 2 and min(parts) > 0 else []


def _numbers(path: Path) -> list[int]:
    try:
        return [int(word) for word in path.read_text().split() if word.lstrip("-").isdigit()]
    except OSError:
        return []
