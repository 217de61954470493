"""What a node reports of itself before the ranks are launched: python -m trainer.tasks.node_check.report …

The first node of the job compares the reports (`trainer.tasks.node_check.__main__`). A report is printed as
short lines, a fact each: srun may interleave those of several nodes, and cuts what is longer than a kilobyte.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path

from data_pipelines.common.arguments import Parser
from trainer.distributed import devices
from trainer.recipe import loading
from trainer.tasks.environment.versions import version
from trainer.tasks.node_check import gpus, network, shared_folder

MARK = "node-check"
LONGEST = 300  # characters of a text
SHARED_MEMORY = Path("/dev/shm")
# What computes: with other versions the results of nodes would be others.
PACKAGES = (
    *("hybrid-infomax", "torch", "accelerate", "deepspeed", "numpy"),
    *("nvidia-dali-cuda130", "nvidia-nvimgcodec-cu13"),
)


@dataclass(frozen=True)
class NodeReport:
    """A node, before the ranks of a job are launched. Faults are in words, "" for none.

    Attributes:
        node: its name in Slurm.
        error: why there is no report.
        versions: of Python and of each package that computes, or "absent".
        code: digest of the package's code and recipes.
        shared_memory: free bytes of /dev/shm; None where there is none.
        processes: ranks that will be started here.
        gpus: that Slurm gave the job here; 0 where it asked for none, or hides them from torch.
        gpu_files: device files of NVIDIA GPUs that can be opened.
        gpu_fault: why torch cannot use them.
        interface_fault: what is wrong with the interface that ranks meet on.
        port_fault: why the first node was not reached at the job's port.
        ahead: seconds that this clock is ahead of the first node's, at the least; None where it is not known.
        folder: that the run is written to, or will be made in.
        folder_fault: why nothing can be written there, or it is not that of the first node.
        locks: of files there: "shared" with the other nodes, "local" to this one, "none"; "" not known.
        signal: that came meanwhile, "USR1" or "TERM".
    """

    node: str
    error: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    code: str = ""
    shared_memory: int | None = None
    processes: int = 1
    gpus: int = 0
    gpu_files: int = 0
    gpu_fault: str = ""
    interface_fault: str = ""
    port_fault: str = ""
    ahead: float | None = None
    folder: str = ""
    folder_fault: str = ""
    locks: str = ""
    signal: str = ""

    def lines(self) -> Iterable[str]:
        """The report as `parse` reads it."""
        for name in (entry.name for entry in fields(self)[1:]):
            value = vars(self)[name]
            value = value[:LONGEST] if isinstance(value, str) else value
            yield f"{MARK} {self.node} {json.dumps({name: value})}"


def parse(lines: Iterable[str]) -> dict[str, NodeReport]:
    """Reports by node, of lines among which others may stand; a field that did not come has its default."""
    known, facts = {entry.name for entry in fields(NodeReport)}, dict[str, dict]()
    for line in lines:
        _, mark, rest = line.partition(f"{MARK} ")
        node, _, text = rest.partition(" ")
        try:
            values = json.loads(text) if mark else {}
        except ValueError:  # cut by a node's end
            continue
        if isinstance(values, dict) and values.keys() <= known:
            facts.setdefault(node, {}).update(values)
    return {node: NodeReport(node, **values) for node, values in facts.items() if node}


def look(options: argparse.Namespace) -> NodeReport:
    """This node's report."""
    node = os.environ.get("SLURMD_NODENAME") or platform.node()
    greeting, port_fault = None, ""
    if options.port:
        greeting, port_fault = network.greeting_of(options.first, options.port, options.token)
    folder = Path(options.folder)
    folder_fault, locks = shared_folder.try_out(folder, options.token, node, options.first, greeting)
    granted = gpus.granted()
    return NodeReport(
        node,
        versions={"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        code=digest(),
        shared_memory=shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None,
        processes=options.processes,
        gpus=granted,
        gpu_files=len(devices.nvidia_gpus()),
        gpu_fault=gpus.fault(granted, options.processes),
        interface_fault=network.interface_fault(nccl=granted > 0) if options.port else "",
        port_fault=port_fault,
        ahead=greeting.ahead if greeting else None,
        folder=str(folder),
        folder_fault=folder_fault,
        locks=locks,
    )


def digest() -> str:
    """The first digits of a digest of every line of code and every recipe that this node would run."""
    known = hashlib.sha256()
    folders = [loading.CHECKOUT / "trainer", loading.CHECKOUT / "data_pipelines", loading.RECIPES]
    for folder in folders:
        for path in sorted(path for end in ("*.py", "*.yaml") for path in folder.rglob(end)):
            known.update(f"{path.relative_to(folder)}\0".encode())
            known.update(path.read_bytes())
    return known.hexdigest()[:12]


def main(arguments: list[str]) -> int:
    """The command; returns 0. Raises UserError for words that are not understood."""
    parser = Parser(prog=f"python -m {__spec__.name}")
    parser.add_argument("--token", required=True)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--first", required=True)
    parser.add_argument("--port", type=int, default=0)
    for line in look(parser.parse_args(arguments)).lines():
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
