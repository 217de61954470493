"""The node check: what a node looks at, and a line for each thing in which nodes disagree."""

import argparse
import json
import socket
import subprocess
import sys
import threading
import time
from collections import namedtuple
from dataclasses import replace

import psutil
import pytest
import torch

from data_pipelines.common import locks
from tests.helpers import ROOT
from trainer.distributed import devices, interfaces
from trainer.tasks.node_check import comparison, gpus, network, report, shared_folder
from trainer.tasks.node_check.comparison import CLOCKS, NO_REPORT, SHARED_BY_ANY, SHARED_BY_GPUS, faults
from trainer.tasks.node_check.network import FirstNode, Greeting, greeting_of
from trainer.tasks.node_check.report import NodeReport, parse

VERSIONS = {"python": "3.11.7", "torch": "2.13.0", "hybrid-infomax": "0.1.0"}
SOUND = NodeReport(
    "n1",
    versions=VERSIONS,
    code="0123456789ab",
    shared_memory=2**33,
    processes=8,
    gpus=8,
    gpu_files=8,
    ahead=0.0,
    folder="/shared/outputs",
    locks="shared",
)


@pytest.fixture
def port():
    """A port of this machine that is free."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def nodes(*changes: dict) -> dict[str, NodeReport]:
    """Reports of n1, n2, ... that differ in these fields from a sound one."""
    return {f"n{i}": replace(SOUND, node=f"n{i}", **change) for i, change in enumerate(changes, 1)}


# ---- the comparison --------------------------------------------------------------------------------


def test_nodes_that_agree_are_sound():
    reports = nodes({}, {"ahead": CLOCKS}, {"ahead": -CLOCKS, "shared_memory": SHARED_BY_GPUS})
    assert faults(["n1", "n2", "n3"], reports) == []
    assert comparison.warnings(list(reports.values())) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"error": "it is broken"}, "n2: it is broken"),
        (
            {"versions": VERSIONS | {"torch": "2.0.0"}},
            "n2: torch 2.0.0, and torch 2.13.0 on n1, n3; the environment must be the same on every node",
        ),
        (
            {"versions": {k: v for k, v in VERSIONS.items() if k != "hybrid-infomax"}},
            "n2: hybrid-infomax absent, and hybrid-infomax 0.1.0 on n1, n3; the environment",
        ),
        (
            {"code": "ffffffffffff"},
            "n2: code of digest ffffffffffff, and code of digest 0123456789ab on n1, n3; the checkout",
        ),
        (
            {"gpu_fault": "the job has 8 GPUs there, and torch can use 7: x"},
            "n2: the job has 8 GPUs there, and",
        ),
        ({"gpu_files": 0}, "n2: the job has 8 GPUs there, and no device file of one (/dev/nvidia*) can be"),
        ({"interface_fault": "ib0 is down"}, "n2: ib0 is down"),
        ({"port_fault": "n1 is not reached at port 7"}, "n2: n1 is not reached at port 7"),
        (
            {"folder_fault": "/a cannot be written: No space"},
            "n2: /a cannot be written: No space; the folder of",
        ),
        (
            {"locks": "local"},
            "n2: a file in /shared/outputs that the first node has locked can be locked there",
        ),
        ({"ahead": CLOCKS + 1}, "n2: its clock is 11 s ahead of that of the first node, 10 s are the limit"),
        ({"ahead": -3600.0}, "n2: its clock is 3,600 s behind that of the first node"),
        ({"shared_memory": None}, "n2: there is no /dev/shm"),
        ({"shared_memory": SHARED_BY_GPUS - 1}, "n2: /dev/shm has 1,024 MiB left, and 1,024 MiB are needed"),
        (
            {"shared_memory": SHARED_BY_ANY - 2**20, "processes": 1},
            "n2: /dev/shm has 15 MiB left, and 16 MiB are needed",
        ),
    ],
)
def test_what_is_wrong_on_a_node_is_one_line_that_names_it(change, line):
    (said,) = faults(["n1", "n2", "n3"], nodes({}, change, {}))
    assert said.startswith(line)


def test_a_node_without_a_report_is_named():
    assert faults(["n1", "n2"], nodes({})) == [f"n2: {NO_REPORT}"]
    assert faults(["n1", "n2"], nodes({}), "too late") == ["n2: too late"]


def test_of_two_nodes_the_first_is_compared_with():
    (line,) = faults(["n1", "n2"], nodes({"code": "b"}, {"code": "a"}))
    assert line.startswith("n2: code of digest a, and code of digest b on n1")


def test_a_fault_of_many_nodes_is_one_line():
    reports = nodes({}, *[{"interface_fault": "ib0 is down"}] * 6)
    assert faults(list(reports), reports) == ["n2, n3, n4, n5 and 2 more: ib0 is down"]


def test_a_cluster_that_pretends_to_have_gpus_is_sound():
    assert faults(["n1", "n2"], nodes(*[{"gpu_files": 0, "shared_memory": SHARED_BY_ANY}] * 2)) == []


def test_a_file_system_without_locks_is_a_warning():
    reports = nodes({}, {"locks": "none"})
    assert faults(["n1", "n2"], reports) == []
    (line,) = comparison.warnings(list(reports.values()))
    assert line.startswith("n2: the file system of /shared/outputs has no locks")


# ---- reports ---------------------------------------------------------------------------------------


def test_a_report_is_read_back_among_other_lines():
    """srun mixes the lines of nodes, and site.sh may print."""
    first, second = SOUND, replace(SOUND, node="n2", gpu_fault='say "no"', ahead=None)
    mixed = [line for pair in zip(first.lines(), second.lines(), strict=True) for line in pair]
    assert max(map(len, mixed)) < 1000
    text = ["loading modules", *mixed, 'node-check n3 {"error": "it ', 'node-check n4 {"color": 1}']
    assert parse(text) == {"n1": first, "n2": second}


def test_a_text_is_cut_and_a_signal_comes_behind():
    lines = [*replace(SOUND, port_fault="x" * 2000).lines(), 'node-check n1 {"signal": "USR1"}']
    found = parse(lines)["n1"]
    assert (found.port_fault, found.signal) == ("x" * report.LONGEST, "USR1")


def test_this_machine_reports_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    words = argparse.Namespace(token="1-0", folder=str(tmp_path), processes=2, first="n7", port=0)
    seen = report.look(words)
    assert seen.node == "n7"
    assert seen.versions["torch"] == torch.__version__
    assert (seen.folder_fault, seen.port_fault, seen.interface_fault, seen.gpus) == ("", "", "", 0)
    assert seen.code == report.digest()
    assert not list(tmp_path.iterdir())
    assert faults(["n7"], {"n7": seen}) == []


def test_the_digest_is_that_of_the_code_and_the_recipes(tmp_path, monkeypatch):
    for name in ("trainer", "data_pipelines", "recipes"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(report.loading, "CHECKOUT", tmp_path)
    monkeypatch.setattr(report.loading, "RECIPES", tmp_path / "recipes")
    digests = [report.digest()]
    for name in ("trainer/a.py", "data_pipelines/a.py", "recipes/a.yaml"):
        (tmp_path / name).write_text("1")
        digests.append(report.digest())
    assert len(set(digests)) == 4
    (tmp_path / "trainer" / "a.pyc").write_text("1")
    assert report.digest() == digests[-1]


# ---- port and clock --------------------------------------------------------------------------------


def test_the_first_node_answers_with_its_clock_and_leaves_the_port(port):
    with FirstNode(port, "1-0", probe=True):
        for _ in range(3):
            greeting, fault = greeting_of("127.0.0.1", port, "1-0")
            assert fault == ""
            assert greeting.probe
            assert abs(greeting.ahead) < CLOCKS
        assert greeting_of("127.0.0.1", port, "2-0") == (
            None,
            f"another program answers at port {port} of 127.0.0.1, where ranks meet",
        )
        with pytest.raises(OSError, match="in use"):
            network.listen(port)
    network.listen(port).close()


@pytest.mark.parametrize("difference", [100.0, -100.0])
def test_a_clock_that_is_off_by_no_more_than_the_way_explains(port, difference):
    """The first node's clock is behind, so that this node's is ahead, and the other way round."""
    with network.listen(port) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                words = {"token": "1-0", "time": time.time() - difference, "probe": False}
                connection.sendall(f"{json.dumps(words)}\n".encode())

        thread = threading.Thread(target=answer)
        thread.start()
        greeting, _ = greeting_of("127.0.0.1", port, "1-0")
        thread.join()
    assert 0 < greeting.ahead / difference <= 1
    assert abs(greeting.ahead) > CLOCKS


def test_a_first_node_that_is_not_reached(port):
    greeting, fault = greeting_of("127.0.0.1", port, "1-0")
    assert greeting is None
    assert fault.startswith(f"127.0.0.1 is not reached at port {port}, where ranks meet: Connection refused")


# ---- interfaces ------------------------------------------------------------------------------------

Stats = namedtuple("Stats", "isup")
Address = namedtuple("Address", "family address")


@pytest.fixture
def machine(monkeypatch):
    """Interfaces eth0, with an address, ib0, without one, and ib1, which is down."""
    there = {
        "eth0": [Address(socket.AF_INET, "10.0.0.1")],
        "ib0": [Address(psutil.AF_LINK, "00:00")],
        "ib1": [Address(socket.AF_INET, "10.1.0.1")],
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: there)
    monkeypatch.setattr(psutil, "net_if_stats", lambda: {name: Stats(name != "ib1") for name in there})
    monkeypatch.setattr(interfaces, "route_to_any", lambda hosts: "eth0")
    for name in (network.GLOO, network.NCCL):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("gloo", "nccl", "fault"),
    [
        (None, None, ""),
        ("eth0", "=eth0", ""),
        (
            "eth0,ib2",
            None,
            "GLOO_SOCKET_IFNAME=eth0,ib2, and there is no interface ib2; there are eth0, ib0, ib1",
        ),
        ("ib0", None, "GLOO_SOCKET_IFNAME=ib0, and ib0 has no address"),
        ("ib1", None, "GLOO_SOCKET_IFNAME=ib1, and ib1 is down"),
        (None, "=ib", "NCCL_SOCKET_IFNAME==ib, and no interface is called so; there are eth0, ib0, ib1"),
        (None, "hsn,ib", ""),
        (None, "^docker", ""),
        (None, "^eth,ib", "NCCL_SOCKET_IFNAME=^eth,ib, and no interface is called so; there are"),
    ],
)
def test_the_interface_that_the_launch_would_choose(machine, monkeypatch, gloo, nccl, fault):
    for name, value in ((network.GLOO, gloo), (network.NCCL, nccl)):
        if value:
            monkeypatch.setenv(name, value)
    said = network.interface_fault(nccl=True)
    assert said.startswith(fault) if fault else said == ""
    assert network.interface_fault(nccl=False) == ("" if gloo in (None, "eth0") else said)


# ---- the folder ------------------------------------------------------------------------------------


def test_the_folder_that_is_there_is_tried(tmp_path):
    assert shared_folder.nearest(tmp_path / "outputs" / "run") == tmp_path
    (tmp_path / "outputs").mkdir()
    assert shared_folder.nearest(tmp_path / "outputs" / "run") == tmp_path / "outputs"


def test_a_lock_of_the_first_node_is_seen(tmp_path):
    """flock of another open file is as that of another node."""
    greeting = Greeting(0.0, probe=True)
    with shared_folder.probe(tmp_path, "1-0") as there:
        assert there
        assert shared_folder.try_out(tmp_path, "1-0", "n2", "n1", greeting) == ("", "shared")
        assert shared_folder.try_out(tmp_path, "1-0", "n1", "n1", greeting) == ("", "")
    assert not list(tmp_path.iterdir())


def test_a_lock_that_does_not_reach_the_other_node(tmp_path, monkeypatch):
    path = tmp_path / "probe"
    path.touch()
    assert shared_folder.locks_of(path) == "local"

    def none(fd):
        raise locks.NoLocks(38, "Function not implemented")

    monkeypatch.setattr(shared_folder, "lock", none)
    assert shared_folder.locks_of(path) == "none"
    assert shared_folder.locks_of(tmp_path / "nothing") == ""


def test_a_folder_that_is_not_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_folder, "PATIENCE", 0.0)
    fault, _ = shared_folder.try_out(tmp_path, "1-0", "n2", "n1", Greeting(0.0, probe=True))
    assert fault == f"{tmp_path} is not that of n1: a file which n1 wrote there is not seen"
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path):
    path = tmp_path / "none"
    assert shared_folder.try_out(path, "1-0", "n2", "n1", None) == (
        f"{path} cannot be written: No such file or directory",
        "",
    )
    with shared_folder.probe(path, "1-0") as there:
        assert not there


# ---- GPUs ------------------------------------------------------------------------------------------


@pytest.fixture
def cards(monkeypatch, tmp_path):
    """A node with device files of GPUs, of which torch can use some; allocating on `broken` fails."""

    def make(files: int, usable: int, broken: int | None = None):
        for number in range(files):
            (tmp_path / f"nvidia{number}").touch()
        monkeypatch.setattr(devices, "DEVICES", tmp_path)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: usable > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: usable)
        monkeypatch.setattr(devices, "why_unusable", lambda: "the driver is too old")

        def zeros(count, device):
            if device == f"cuda:{broken}":
                raise RuntimeError("uncorrectable ECC error\nmore")

        monkeypatch.setattr(torch, "zeros", zeros)

    return make


@pytest.mark.parametrize(
    ("files", "usable", "broken", "fault"),
    [
        (0, 0, None, ""),  # a cluster that pretends, or another make
        (8, 8, None, ""),
        (8, 9, None, ""),  # a cluster that hides none
        (8, 0, None, "the job has 8 GPUs there, and torch can use 0: the driver is too old"),
        (7, 7, None, "the job has 8 GPUs there, and torch can use 7: a GPU or its driver has failed"),
        (8, 8, 3, "GPU 3 cannot be used: uncorrectable ECC error"),
    ],
)
def test_gpus_that_torch_can_use(cards, files, usable, broken, fault):
    cards(files, usable, broken)
    said = gpus.fault(8, 8)
    assert said.startswith(fault) if fault else said == ""


def test_more_processes_than_gpus(cards):
    cards(4, 4)
    assert gpus.fault(4, 8).startswith("8 processes for 4 GPUs: lower PROCS_PER_NODE")
    assert gpus.fault(0, 8) == ""


@pytest.mark.parametrize(("visible", "count"), [(None, 8), ("0,1", 8), ("-1", 0), ("", 0)])
def test_gpus_that_slurm_gave(monkeypatch, visible, count):
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "8")
    for name in ("CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus.granted() == count
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert gpus.granted() == 0


# ---- the command on the first node -----------------------------------------------------------------


def command(tmp_path, seconds: float, *words: str) -> list[str]:
    """That of a start of two nodes with two ranks each, of the recipe with these words."""
    options = ["--token=1-0", f"--folder={tmp_path}/outputs/run", "--processes=2", f"--seconds={seconds}"]
    return [sys.executable, "-m", "trainer.tasks.node_check", *options, "--nodes=n1 n2", *words]


def compared(tmp_path, reports: dict[str, NodeReport], *words: str) -> subprocess.CompletedProcess:
    """What the first node says of reports."""
    text = "".join(f"{line}\n" for one in reports.values() for line in one.lines())
    return subprocess.run(command(tmp_path, 30, *words), cwd=ROOT, input=text, capture_output=True, text=True)


def test_the_first_node_says_what_is_wrong_and_which_signal_came(tmp_path):
    reports = nodes({}, {"code": "a", "signal": "USR1"})
    done = compared(tmp_path, reports, "recipe=evaluate", f"from={tmp_path}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: n2: code of digest a")
    assert done.stdout == f"ready {tmp_path}\nfaulty USR1\n"


def test_a_node_that_does_not_answer(tmp_path):
    with subprocess.Popen(
        command(tmp_path, 0.1, "recipe=quickstart", "batch=512"),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.read() == f"ready {tmp_path}\nfaulty \n"
        assert process.stderr.read() == "error: n1, n2: no answer within 0.1 s (NODE_CHECK)\n"
        process.stdin.close()
    assert process.returncode == 2


def test_ranks_that_do_not_divide_the_batch_are_refused_before_a_node_is_asked(tmp_path):
    done = compared(tmp_path, {}, "recipe=quickstart", "batch=192", "groups.norm=64")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "error: batch=192 does not divide over 4 processes in whole units of 64 images"
    )
