"""What is said, and refused, of GPUs: too few for the ranks, of no use to torch, without bf16."""

import os

import pytest
import torch

from data_pipelines.common.errors import SharedError, UserError
from trainer.distributed import devices, launch, launcher
from trainer.tasks.environment import command

OLD_DRIVER = (
    "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver by "
    "downloading and installing a new version"
)
RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
OTHERS = ("CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU", "SLURM_JOB_ID", *devices.OF_SLURM)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine: its device files, the devices that torch sees, torch's build, why it cannot use them."""

    def make(files: int, seen: int = 0, build: str | None = "13.0", error: str = "", **variables: str):
        for name in (*RANKS, *OTHERS):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        for number in range(files):
            (tmp_path / f"nvidia{number}").touch()
        (tmp_path / "nvidiactl").touch()
        (tmp_path / "nvidia-uvm").touch()
        monkeypatch.setattr(devices, "DEVICES", tmp_path)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: seen > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
        monkeypatch.setattr(torch.version, "cuda", build)

        def init():
            if error:
                raise RuntimeError(error)

        monkeypatch.setattr(torch.cuda, "init", init)

    return make


def ranks(local: int, world: int | None = None) -> dict[str, str]:
    world = world or local
    rendezvous = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    return {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(local), **rendezvous}


# ---- a GPU a rank ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seen", "local"), [(1, 1), (2, 1), (8, 8), (8, 3)])
def test_a_gpu_a_rank_is_enough(machine, capsys, seen, local):
    machine(8, seen, **(ranks(local) if local > 1 else {}))
    assert devices.use_gpus()
    assert capsys.readouterr() == ("", "")


def test_more_ranks_than_gpus_are_refused(machine):
    machine(2, 2, **ranks(8))
    with pytest.raises(SharedError) as raised:  # the first rank alone prints it
        devices.use_gpus()
    assert str(raised.value) == (
        "8 ranks were started on a machine with 2 GPUs that torch sees, and each needs one of its own; "
        "use --num_processes 2"
    )
    machine(2, 1, **ranks(2), CUDA_VISIBLE_DEVICES="0")
    with pytest.raises(
        UserError, match=r"1 GPU that .* use --num_processes 1 \(CUDA_VISIBLE_DEVICES=0 hides"
    ):
        devices.use_gpus()


def test_of_several_machines_the_one_with_too_few_gpus_says_it(machine):
    machine(4, 4, **ranks(8, 16))
    with pytest.raises(UserError, match="use --num_processes 8") as raised:
        devices.use_gpus()
    assert not isinstance(raised.value, SharedError)


def test_a_launch_refuses_them_before_a_group_is_made(machine, monkeypatch):
    machine(1, 1, **ranks(2))
    monkeypatch.setattr(launcher, "started_by", lambda: None)
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="2 ranks were started on a machine with 1 GPU"):
        launch.start("float32")
    assert os.environ["NCCL_SOCKET_IFNAME"] == os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):  # set by the launch, not by monkeypatch
        monkeypatch.delenv(name)


def test_several_machines_choose_their_network_themselves(machine, monkeypatch):
    machine(1, 1, **ranks(2, 4))
    monkeypatch.setattr(launcher, "started_by", lambda: None)
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    with pytest.raises(UserError, match="2 ranks were started"):
        launch.start("float32")
    assert "NCCL_SOCKET_IFNAME" not in os.environ


# ---- a GPU that torch cannot use ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"build": None}, f"torch {torch.__version__} is built for the CPU alone; install its CUDA build"),
        (
            {"error": OLD_DRIVER},
            "The NVIDIA driver on your system is too old (found version 12020); `nvidia-smi` shows driver "
            "and devices; CUDA 13 needs a driver from 580 on",
        ),
        (
            {"error": "No CUDA GPUs are available", "CUDA_VISIBLE_DEVICES": "5"},
            "No CUDA GPUs are available, with CUDA_VISIBLE_DEVICES=5; unset that, or name a device that is "
            "there",
        ),
    ],
    ids=["a build for the CPU", "an old driver", "a device that is not there"],
)
def test_a_gpu_that_torch_cannot_use_is_a_line(machine, capsys, options, why):
    machine(1, **options)
    assert not devices.use_gpus()
    line = f"warning: the CPU is used, for torch cannot use the GPU of this machine: {why}\n"
    assert capsys.readouterr().out == line
    machine(1, **options, **ranks(2) | {"RANK": "1"})
    assert not devices.use_gpus()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", devices.OF_SLURM)
def test_a_job_that_asked_for_gpus_is_refused_without(machine, name):
    machine(1, build=None, SLURM_JOB_ID="7", **{name: "2"})
    with pytest.raises(UserError, match=f"asked for GPUs \\({name}=2\\), .* built for the CPU alone; inst"):
        devices.use_gpus()
    machine(1, error="No CUDA GPUs are available", SLURM_JOB_ID="7", **{name: "2"})
    with pytest.raises(UserError, match="torch cannot use them: No CUDA GPUs are available; `nvidia-smi`"):
        devices.use_gpus()


def test_a_cluster_that_pretends_to_have_gpus_trains_on_the_cpu_and_says_so(machine, capsys):
    machine(0, build=None, SLURM_JOB_ID="7", SLURM_GPUS_ON_NODE="2")
    assert not devices.use_gpus()
    assert capsys.readouterr().out.startswith("warning: the CPU is used, for torch cannot use the GPU")


@pytest.mark.parametrize(
    "variables",
    [
        {"CUDA_VISIBLE_DEVICES": "-1"},
        {"CUDA_VISIBLE_DEVICES": ""},
        {"ACCELERATE_USE_CPU": "True"},
        {"CUDA_VISIBLE_DEVICES": "-1", "SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "4"},
    ],
    ids=lambda variables: " ".join(variables),
)
def test_who_asks_for_the_cpu_hears_nothing(machine, capsys, variables):
    machine(2, build=None, **variables)
    assert not devices.use_gpus()
    assert capsys.readouterr() == ("", "")


def test_a_machine_without_a_gpu_and_a_job_on_a_part_of_one_hear_nothing(machine, capsys, monkeypatch):
    machine(0, build=None, SLURM_JOB_ID="7", SLURM_GPUS_ON_NODE="0")
    assert not devices.use_gpus()
    machine(4, build=None)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as under Slurm, which keeps them for others
    assert not devices.use_gpus()
    assert capsys.readouterr() == ("", "")


def test_the_environment_of_a_bug_report_says_it(machine):
    gpu = {"names": [], "why": OLD_DRIVER}
    facts = {"torch": {"gpu": gpu, "threads": 1, "backends": "gloo"}, "deepspeed": {}}
    machine(2)
    assert next(command.engines(facts)) == (
        "torch and GPUs: none, although 2 device files of NVIDIA GPUs can be opened: " + OLD_DRIVER
    )
    gpu["names"] = ["NVIDIA H100"]
    assert next(command.engines(facts)) == "torch and GPUs: NVIDIA H100"


# ---- bf16 --------------------------------------------------------------------------------------------


def test_a_gpu_without_bf16_is_a_line(monkeypatch):
    supported = {True: True, False: False}  # torch counts emulation by default
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: supported[including_emulation]
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    line = "warning: this GPU (Tesla T4) has no bf16 instructions: precision=float32 will be faster here"
    assert devices.bf16_warning(gpu=True) == line
    supported[False] = True
    assert devices.bf16_warning(gpu=True) is None


@pytest.mark.parametrize("text", ["flags: avx2 avx512_bf16", "flags: avx2", None])
def test_a_processor_without_bf16_is_a_line(monkeypatch, tmp_path, text):
    file = tmp_path / "cpuinfo"
    if text:
        file.write_text(text)
    monkeypatch.setattr(devices, "Path", lambda _: file)
    line = "warning: this processor has no bf16 instructions: precision=float32 will be faster here"
    assert devices.bf16_warning(gpu=False) == (line if text == "flags: avx2" else None)
