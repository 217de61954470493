"""What is wrong with the nodes of a job, of their reports: a line for each thing, which names the nodes."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from trainer.tasks.node_check.report import NodeReport

CLOCKS = 10.0  # seconds that a clock may be off
# Free bytes of /dev/shm. NCCL's guide wants the first number where processes of a node speak by it;
# semaphores of any process lie there too.
SHARED_BY_GPUS, SHARED_BY_ANY = 2**30, 16 * 2**20
NAMED = 4  # nodes that a line names
NO_REPORT = "no report has come from it; what srun says may be why"

Fault = Callable[[NodeReport], str]


def faults(nodes: Sequence[str], reports: dict[str, NodeReport], silent: str = NO_REPORT) -> list[str]:
    """A line for each thing that is wrong on the nodes of a job; empty where all is well.

    The first of the nodes is the one that the others are compared with where no more of them agree.

    silent: what is said of a node without a report.
    """
    missing = {node: silent for node in nodes if node not in reports}
    missing |= {node: reports[node].error for node in nodes if node in reports and reports[node].error}
    sound = [reports[node] for node in nodes if node not in missing]
    lines = list(grouped(missing))
    for fault in (_port, _interface, _folder, _locks, _clock, _shared_memory):
        lines += grouped({report.node: fault(report) for report in sound})
    lines += grouped({report.node: _gpus(report, sound) for report in sound})
    for name in sorted({name for report in sound for name in report.versions}):
        lines += differing(
            {report.node: f"{name} {report.versions.get(name, 'absent')}" for report in sound},
            "the environment must be the same on every node",
        )
    lines += differing(
        {report.node: f"code of digest {report.code}" for report in sound},
        "the checkout must be the same on every node: trainer/, data_pipelines/ and recipes/",
    )
    return lines


def warnings(reports: Sequence[NodeReport]) -> list[str]:
    """Lines about what a job does without."""
    line = "the file system of {} has no locks, so nothing keeps two jobs from writing one run"
    without = {report.node: line.format(report.folder) for report in reports if report.locks == "none"}
    return list(grouped(without))


def grouped(said: dict[str, str]) -> Iterator[str]:
    """Node -> fault, "" for none: a line for each fault, with the nodes that have it."""
    nodes: dict[str, list[str]] = {}
    for node, fault in said.items():
        if fault:
            nodes.setdefault(fault, []).append(node)
    for fault, names in nodes.items():
        yield f"{listed(names)}: {fault}"


def differing(said: dict[str, str], rule: str) -> Iterator[str]:
    """Node -> fact: a line for each fact that is another than that of most nodes."""
    counts = Counter(said.values())
    if len(counts) <= 1:
        return
    usual, _ = counts.most_common(1)[0]  # of equals the first, which is that of the first node
    rest = listed([node for node, fact in said.items() if fact == usual])
    yield from grouped(
        {
            node: "" if fact == usual else f"{fact}, and {usual} on {rest}; {rule}"
            for node, fact in said.items()
        }
    )


def listed(names: Sequence[str]) -> str:
    """Names of nodes in a line."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


# ---- one node --------------------------------------------------------------------------------------


def _port(report: NodeReport) -> str:
    return report.port_fault


def _interface(report: NodeReport) -> str:
    return report.interface_fault


def _folder(report: NodeReport) -> str:
    way_out = "the folder of the run must be one that every node shares and may write to"
    return f"{report.folder_fault}; {way_out}" if report.folder_fault else ""


def _locks(report: NodeReport) -> str:
    if report.locks != "local":
        return ""
    return (
        f"a file in {report.folder} that the first node has locked can be locked there too, so two jobs "
        "could write one run: mount that file system with locks that reach other nodes, or set NODE_CHECK=0"
    )


def _clock(report: NodeReport) -> str:
    if report.ahead is None or abs(report.ahead) <= CLOCKS:
        return ""
    side = "ahead of" if report.ahead > 0 else "behind"
    return (
        f"its clock is {abs(report.ahead):,.0f} s {side} that of the first node, {CLOCKS:.0f} s are the "
        "limit; clusters set clocks by NTP"
    )


def _shared_memory(report: NodeReport) -> str:
    if report.shared_memory is None:
        return "there is no /dev/shm; mount a tmpfs there"
    several = bool(report.gpus and report.gpu_files and report.processes > 1)
    needed = SHARED_BY_GPUS if several else SHARED_BY_ANY
    if report.shared_memory >= needed:
        return ""
    return (
        f"/dev/shm has {report.shared_memory / 2**20:,.0f} MiB left, and {needed / 2**20:,.0f} MiB are "
        "needed; remove what earlier jobs left there, or give the container more, as by --shm-size"
    )


def _gpus(report: NodeReport, reports: Sequence[NodeReport]) -> str:
    """Also a node without device files where another has some: where none has, the cluster pretends."""
    if report.gpu_fault or not report.gpus or report.gpu_files or not any(r.gpu_files for r in reports):
        return report.gpu_fault
    return f"the job has {report.gpus} GPUs there, and no device file of one (/dev/nvidia*) can be opened"
