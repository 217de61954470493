"""What breaks jobs on other clusters, provoked: each works, or is one line before anything is started.

The cluster's nodes have Debian's /etc/hosts, so every job over nodes meets `127.0.1.1 NAME`.
"""

import subprocess
import sys

import pytest

from tests.helpers import ROOT
from tests.helpers.slurm.daemons import CLUSTER

LISTENER = """
import socket, sys
with socket.create_server(("", int(sys.argv[1]))):
    print(flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--time=6"], "--time=00:06:00: the signal to stop comes up to 360 s before the limit"),
        (["--nodes=2"], "--nodes=2: this script is for one node"),
        (["--cpus-per-task=1", "--ntasks-per-node=2"], "2 tasks on 1 nodes: leave --ntasks-per-node at 1"),
        (["--array=0-1"], "an array would train one run 2 times: slurm/sweep.sh trains one for each element"),
        (["--export=PATH=/usr/bin:/bin"], "no python or no accelerate in PATH on n"),
    ],
    ids=["time", "nodes", "tasks", "array", "path"],
)
def test_a_job_that_cannot_work_is_one_line(submit, words, message, tmp_path):
    job = submit(*words, f"outputs={tmp_path}/outputs")
    assert job.end() == "FAILED"
    assert job.field("ExitCode") == "2:0"
    assert job.text
    assert all(line.startswith(f"error: {message}") for line in job.text.splitlines()), job.text
    assert not (tmp_path / "outputs").exists()


def test_what_an_outer_salloc_and_a_user_have_set(slurm, submit, training, tmp_path, monkeypatch):
    """srun takes only one of the variables of memory; a user's accelerate file must not choose the engine."""
    default = tmp_path / "hf" / "accelerate" / "default_config.yaml"
    default.parent.mkdir(parents=True)
    default.write_text("distributed_type: FSDP\nfsdp_config: {}\nnum_processes: 2\nmixed_precision: bf16\n")
    monkeypatch.setitem(slurm.env, "SLURM_MEM_PER_NODE", "1000")
    monkeypatch.setitem(slurm.env, "HF_HOME", str(tmp_path / "hf"))
    job = submit("--cpus-per-task=2", "images=2560", *training)
    assert job.end() == "COMPLETED", job.text
    assert "1 rank x" in job.text
    assert "single process" in job.text


@pytest.mark.parametrize("words", [[], ["--chdir=/"]], ids=["submitted elsewhere", "chdir"])
def test_a_job_works_in_the_checkout_wherever_it_is_submitted(submit, tmp_path, words):
    """A mistake in the recipe shows that the job has come to read it; `recipes/` is sought from there."""
    job = submit(*words, "recipe=quickstrat", directory=tmp_path if not words else ROOT)
    assert job.end() == "FAILED"
    (line,) = job.text.splitlines()
    assert "unknown recipe 'quickstrat'; did you mean 'quickstart'?" in line


def test_a_port_that_is_taken(slurm, submit, training, tmp_path):
    """The next free one is used; one that the user names is refused."""
    words = ["--cpus-per-task=2", "--gpus-per-node=1", "images=2560", *training]
    job = submit("--hold", *words, script="hybrid_imagenet.sh")
    port = str(10000 + int(job.id) % 20000)
    listener = [CLUSTER, "on", "n1", sys.executable, "-c", LISTENER, port]
    with subprocess.Popen(
        listener, env=slurm.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "\n"
        slurm("scontrol", "release", job.id)
        assert job.end() == "COMPLETED", job.text
        job.log.unlink()
        refused = submit(f"--export=ALL,MASTER_PORT={port}", *words, script="hybrid_imagenet.sh")
        assert refused.end() == "FAILED"
        assert (
            refused.text == f"error: MASTER_PORT={port} is taken on n1: unset it, and a free one is chosen\n"
        )
        process.stdin.close()


SITE = """
: "$of_a_variable_that_is_not_set"
false
export FROM_THE_SITE=yes
inside() {{ echo "$(hostname) $FROM_THE_SITE $*" >> {log}; "$@"; }}
SITE_WORDS=(images=2560 log.every=640)
"""


def test_what_is_particular_to_a_cluster(submit, training, tmp_path):
    """Its file is read on every node; its words stand before those of the command line."""
    site, log = tmp_path / "site.sh", tmp_path / "inside"
    site.write_text(SITE.format(log=log))
    words = ["--nodes=2", "--cpus-per-task=1", "--gpus-per-node=1", f"--export=ALL,SITE={site}"]
    job = submit(*words, *training, "images=1280", script="hybrid_imagenet.sh")
    assert job.end() == "COMPLETED", job.text
    assert (tmp_path / "outputs" / "quickstart" / "done").read_text().split() == ["1280"]
    launched = [line.split()[:2] for line in log.read_text().splitlines() if "accelerate launch" in line]
    assert sorted(launched) == [["n1", "yes"], ["n2", "yes"]]


def test_a_site_that_is_not_there_is_one_line(submit, tmp_path):
    job = submit(f"--export=ALL,SITE={tmp_path}/none.sh", f"outputs={tmp_path}/outputs")
    assert job.end() == "FAILED"
    assert job.text.startswith(f"error: SITE={tmp_path}/none.sh: no such file on n")
    assert job.text.count("\n") == 1
