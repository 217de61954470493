"""`hybrid-infomax env`: complete, also where something is broken, and without anything secret or personal."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.helpers.command_lines import Done, mistake, process
from trainer import cli
from trainer.recipe.loading import load
from trainer.tasks.environment import command, imports, machine, private, versions

SECRETS = {
    "MLFLOW_TRACKING_USERNAME": "someone-7f3a",
    "MLFLOW_TRACKING_PASSWORD": "s3cr3t-91bd",
    "MLFLOW_TRACKING_URI": "http://someone-7f3a:s3cr3t-91bd@mlflow.corp-4d1e/x?token=t0k3n-55aa",
    "AWS_SECRET_ACCESS_KEY": "aws-40c2e8",
    "HF_TOKEN": "hf-2c9d11",
    "HTTPS_PROXY": "http://proxyuser-61:proxypass-62@proxy.corp-4d1e:3128",
    "SLURM_JOB_NAME": "project-x-8844",
    "SLURM_JOB_NODELIST": "node-77-a1",
    "SLURM_JOB_NUM_NODES": "many-nodes-9912",  # no number, as it should be
    "MASTER_ADDR": "node-77-a1",
    "NCCL_SOCKET_IFNAME": "if-secret-3",
    "DATABASE_URL": "postgresql://dbuser-1:dbpass-2@db/x",
}
PRIVATE = [
    *("jane-q", "someone-7f3a", "s3cr3t-91bd", "t0k3n-55aa", "corp-4d1e", "aws-40c2e8", "hf-2c9d11"),
    *("proxyuser-61", "proxypass-62", "project-x-8844", "node-77-a1", "many-nodes-9912", "if-secret-3"),
    *("dbuser-1", "dbpass-2"),
]


def env(*words: str, **variables: str) -> Done:
    return process(sys.executable, "-m", "trainer.cli", "env", *words, **variables)


def sections(text: str) -> dict[str, list[str]]:
    """Title -> lines; fails for a line that is no item of a Markdown list."""
    parts: dict[str, list[str]] = {}
    for line in filter(None, text.splitlines()):
        if line.startswith("### "):
            parts[line[4:]] = []
        else:
            assert line.startswith("- "), line
            parts[list(parts)[-1]].append(line[2:])
    return parts


def fake_package(folder: Path, name: str, text: str) -> str:
    """PYTHONPATH with a package whose import runs `text`."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(text)
    return str(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Done:
    """The output with a recipe, secrets in all places, and a home with a configuration of accelerate."""
    home = tmp_path_factory.mktemp("home") / "jane-q"
    config = home / ".cache/huggingface/accelerate/default_config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("distributed_type: MULTI_GPU\nnum_processes: 8\nmain_process_ip: node-77-a1\n")
    (home / ".netrc").write_text("machine mlflow.corp-4d1e login someone-7f3a password s3cr3t-91bd\n")
    words = ["recipe=moco_cifar10", "optimizer.lr=3e-2", "data.root=/data/jane-q/secret", "run=jane-q"]
    more = ["objective.momentum=0.9", "data.views.0.flip=0.25", "tracking.uri=http://mlflow.corp-4d1e"]
    variables = SECRETS | {"HOME": str(home), "USER": "jane-q", "LOGNAME": "jane-q", "SLURM_NTASKS": "16"}
    return env(*words, *more, **variables)


def test_all_sections_are_there(whole):
    assert (whole.status, whole.err) == (0, "")
    parts = sections(whole.out)
    assert list(parts) == ["Versions", "Machine", "What starts here", "Recipe"]
    known = {line.partition(":")[0] for line in parts["Versions"]}
    assert {"hybrid-infomax", "python", "torch", *versions.PACKAGES, "constraints.txt"} == known
    assert any(line.startswith("torch: 2.") and "CUDA build" in line for line in parts["Versions"])
    known = {line.partition(":")[0] for line in parts["Machine"]}
    assert known >= {"system", "processor", "cores", "memory", "/dev/shm", "open files"}
    assert "engines: single process, ddp, fsdp2, zero1, zero2, zero3" in parts["What starts here"]
    assert "accelerate's default file: present, distributed_type MULTI_GPU, num_processes 8" in whole.out


def test_nothing_secret_or_personal_comes_out(whole):
    assert [word for word in PRIVATE if word in whole.out] == []
    assert str(ROOT) not in whole.out
    (slurm,) = re.findall("variables of Slurm: (.*)", whole.out)
    assert slurm == "SLURM_JOB_NAME, SLURM_JOB_NODELIST, SLURM_JOB_NUM_NODES, SLURM_NTASKS=16"
    (others,) = re.findall("variables of launcher and libraries: (.*)", whole.out)
    assert {"HF_TOKEN", "HTTPS_PROXY", "MASTER_ADDR", "MLFLOW_TRACKING_PASSWORD"} <= set(others.split(", "))
    assert "OMP_NUM_THREADS=1" in others.split(", ")
    # This program sets it for training; other tests of this process may have done so.
    assert ("GOMP_SPINCOUNT" in others) == ("GOMP_SPINCOUNT" in os.environ)


def test_the_recipe_has_its_kinds_and_the_keys_that_were_set(whole):
    line, given = sections(whole.out)["Recipe"]
    assert line == "recipe: moco_cifar10, pretrain, objective moco, encoder resnet"
    names = "data.root, data.views.0.flip=0.25, objective.momentum=0.9, optimizer.lr=0.03, run, tracking.uri"
    assert sorted(given.removeprefix("set by its user: ").split(", ")) == sorted(names.split(", "))
    assert command.setting(load(["recipe=dim_local"]), "objective.bound") == 'objective.bound="jsd"'


def test_a_file_of_the_users_is_named_by_its_keys(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: dim_local\nseed: 7\ndata: {cache: /jane-q}\n")
    lines = list(command.recipe_lines(load([f"recipe={tmp_path}/mine.yaml"])))
    assert lines == [
        "recipe: mine, pretrain, objective dim, encoder dim",
        "set by its user: seed=7, data.cache",
    ]
    assert list(command.recipe_lines(load(["recipe=evaluate", "from=outputs/x", "images=100"]))) == [
        "recipe: evaluate, evaluate",
        "set by its user: from, images=100",
    ]


def test_a_mistake_in_the_recipe_is_one_line():
    assert "btch: unknown key" in mistake(env("recipe=quickstart", "btch=1"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "raise ImportError('libcudart.so.13: cannot open /home/jane-q/x from https://u:pw-77@host')",
            "cannot be imported: ImportError: libcudart.so.13: cannot open ~/x from https://host",
        ),
        ("import os; os.kill(os.getpid(), 11)", "cannot be imported: the import ends the process (SIGSEGV)"),
        ("raise SystemExit(3)", "cannot be imported: SystemExit: 3"),
        ("print('probed {'); raise ValueError", "cannot be imported: ValueError"),
    ],
    ids=["raises", "crashes", "exits", "prints"],
)
def test_a_broken_torch_is_one_line(tmp_path, text, line):
    path = fake_package(tmp_path, "torch", text)
    done = env("recipe=dim_local", PYTHONPATH=path, HOME="/home/jane-q")
    assert (done.status, done.err) == (0, "")
    parts = sections(done.out)
    (torch,) = [one for one in parts["Versions"] if one.startswith("torch: ")]
    assert line in torch
    assert "engines: none, torch cannot be imported" in parts["What starts here"]
    assert "pw-77" not in done.out
    assert len(parts["Recipe"]) == 2


def test_a_torch_that_hangs_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", fake_package(tmp_path, "torch", "import time; time.sleep(600)"))
    monkeypatch.setattr(imports, "PATIENCE", 1)
    facts = imports.probe()
    assert facts["torch"] == {"error": "no answer within 1 s"}
    assert facts["deepspeed"] == {"error": "no answer within 1 s"}


def test_packages_that_are_absent_or_of_another_version(monkeypatch):
    def version(name: str) -> str:
        if name == "deepspeed":
            raise versions.importlib.metadata.PackageNotFoundError(name)
        return "0.0.1" if name == "numpy" else real(name)

    real = versions.importlib.metadata.version
    monkeypatch.setattr(versions.importlib.metadata, "version", version)
    lines = list(versions.versions({"torch": {"error": "x"}, "deepspeed": {"error": "y"}}))
    tested = versions.tested_versions()
    assert f"deepspeed: absent, tested: {tested['deepspeed']}" in lines
    assert f"numpy: 0.0.1, tested: {tested['numpy']}" in lines
    (torch,) = [line for line in lines if line.startswith("torch: ")]
    assert torch.endswith("cannot be imported: x")


def test_outside_a_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(versions.loading, "CHECKOUT", tmp_path)
    lines = list(versions.versions({}))
    assert lines[0].endswith("installed, no git checkout")
    assert lines[-1] == "constraints.txt: absent, as outside a checkout"


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_the_commit_of_a_checkout_and_its_changes(monkeypatch, tmp_path):
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", tmp_path, *who, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    monkeypatch.setattr(versions.loading, "CHECKOUT", tmp_path)
    git("init", "-q")
    assert versions.commit() == "a checkout whose commit git does not say (CalledProcessError)"
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-qm", "one")
    head = git("rev-parse", "--short=12", "HEAD").strip()
    assert versions.commit() == f"commit {head} with no changes"
    (tmp_path / "file").write_text("2")
    assert versions.commit() == f"commit {head} with 1 changed file"


# ---- limits of the machine -------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("taskset"), reason="needs taskset")
@pytest.mark.skipif(os.cpu_count() == 1, reason="needs two cores")
def test_the_cores_of_this_process_are_counted():
    code = "from trainer.tasks.environment import machine; print(*machine.processor(), sep='\\n')"
    core = str(min(os.sched_getaffinity(0)))
    done = process("taskset", "-c", core, sys.executable, "-c", code)
    assert "cores: 1 usable by this process" in done.out
    assert f"the machine has {os.cpu_count()}" in done.out


def test_limits_of_control_groups(tmp_path):
    membership, root = tmp_path / "cgroup", tmp_path / "fs"
    inner = root / "slurm/job_1/step_0"
    inner.mkdir(parents=True)
    membership.write_text("0::/slurm/job_1/step_0\n")
    assert machine.cgroup_limits(root, membership) == (None, None)
    (inner / "cpu.max").write_text("max 100000\n")
    (inner / "memory.max").write_text("max\n")
    assert machine.cgroup_limits(root, membership) == (None, None)
    (root / "slurm/job_1/cpu.max").write_text("250000 100000\n")
    (root / "slurm/memory.max").write_text("8589934592\n")
    (root / "slurm/job_1/memory.max").write_text("4294967296\n")
    assert machine.cgroup_limits(root, membership) == (2.5, 2**32)
    membership.write_text("0::/a/host/path/that/a/container/does/not/see\n")
    (root / "cpu.max").write_text("50000 100000\n")
    assert machine.cgroup_limits(root, membership) == (0.5, None)


def test_limits_of_control_groups_of_version_1(tmp_path):
    membership, root = tmp_path / "cgroup", tmp_path / "fs"
    for name in ("cpu", "memory"):
        (root / name / "docker/x").mkdir(parents=True)
    membership.write_text("5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n1:name=systemd:/\n")
    (root / "cpu/docker/x/cpu.cfs_quota_us").write_text("-1\n")
    (root / "cpu/docker/x/cpu.cfs_period_us").write_text("100000\n")
    (root / "memory/docker/x/memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert machine.cgroup_limits(root, membership) == (None, None)
    (root / "cpu/docker/x/cpu.cfs_quota_us").write_text("400000\n")
    (root / "memory/memory.limit_in_bytes").write_text("1073741824\n")
    assert machine.cgroup_limits(root, membership) == (4.0, 2**30)


@pytest.mark.skipif(
    not os.access("/sys/fs/cgroup/memory/memory.limit_in_bytes", os.W_OK), reason="needs root and cgroup v1"
)
def test_a_real_limit_of_memory():
    group = Path(f"/sys/fs/cgroup/memory/hybrid-infomax-{os.getpid()}")
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(3 * 2**30))
        code = "from trainer.tasks.environment import machine; print(*machine.memory(), sep='\\n')"
        enter = f'echo $$ > {group}/cgroup.procs && exec "$0" -c "$1"'
        done = process("sh", "-c", enter, sys.executable, code)
        assert "the control group's limit is 3.0 GiB" in done.out, done.err
    finally:
        group.rmdir()


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("echo 'NVIDIA H200, 143771 MiB, 580.1'", "GPU: NVIDIA H200, 143771 MiB, driver 580.1"),
        ("echo no driver; exit 9", "GPUs: nvidia-smi fails with status 9"),
        (None, "GPUs: nvidia-smi is absent"),
    ],
)
def test_gpus(monkeypatch, tmp_path, script, line):
    if script:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list(machine.gpus()) == [line]


def test_a_part_that_breaks_is_a_line(capsys, monkeypatch):
    def broken():
        raise PermissionError(13, "Permission denied", "/proc/meminfo")

    monkeypatch.setattr(machine, "memory", broken)
    monkeypatch.setattr(command, "probe", dict)  # no module answers
    assert cli.run(["env"]) == 0
    out, err = capsys.readouterr()
    parts = sections(out)
    assert err == ""
    assert "broken: cannot be read: PermissionError: [Errno 13] Permission denied: '/proc/meminfo'" in out
    assert parts["What starts here"] == ["this section ends here: KeyError: 'torch'"]
    assert len(parts["Versions"]) > 15


def test_texts_of_others_lose_what_is_personal(monkeypatch):
    monkeypatch.setenv("HOME", "/home/jane-q")
    monkeypatch.setenv("LOGNAME", "jane-q")
    monkeypatch.setattr(private.platform, "node", lambda: "node-77.corp")
    text = "no /home/jane-q/a or /home/jane-qx on node-77.corp (node-77) for jane-q\nat http://a:b@c/d?e=f"
    expected = "no ~/a or /home/jane-qx on HOST (HOST) for USER at http://c/d?..."
    assert private.one_line(text) == expected


def test_the_checkout_is_this_one():
    assert versions.loading.CHECKOUT == ROOT
