"""Nodes that disagree, provoked: one line before a rank is launched. All other jobs pass the check."""

import pytest

TWO_NODES = ["--cpus-per-task=2", "--gpus-per-node=1", "images=2560"]
WAITING = """
# The second node waits until it is sent on, in the first start of the job.
if [[ $(hostname) == n2 && -z ${{SLURM_RESTART_COUNT:-}} ]]; then
  touch {folder}/waiting
  until [[ -e {folder}/go ]]; do sleep 0.1; done
fi
"""


@pytest.fixture
def start(submit):
    return lambda *words: submit(*TWO_NODES, *words, script="hybrid_imagenet.sh")


@pytest.fixture
def another_version(tmp_path):
    """A site whose second node has an older torch, as far as its package says."""
    package, site = tmp_path / "packages" / "torch-2.0.0.dist-info", tmp_path / "site.sh"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.0.0\n")
    site.write_text(f"[[ $(hostname) != n2 ]] || export PYTHONPATH={package.parent}\n")
    return site


def ended_before_a_rank(job) -> str:
    """The one line of a job that a fault has ended."""
    assert job.end() == "FAILED", job.text
    assert (job.field("ExitCode"), job.field("Restarts")) == ("2:0", "0")
    (line,) = job.text.splitlines()
    job.log.unlink()  # which the next job of the test would append to
    return line


def test_a_node_with_another_version_is_named_unless_the_check_is_off(start, training, another_version):
    site = f"--export=ALL,SITE={another_version}"
    line = ended_before_a_rank(start(site, *training))
    assert line.startswith("error: n2: torch 2.0.0, and torch ")
    assert line.endswith(" on n1; the environment must be the same on every node")
    job = start(f"{site},NODE_CHECK=0", *training)
    assert job.end() == "COMPLETED", job.text


def test_a_node_that_cannot_write_the_outputs_or_has_others_is_named(slurm, start, training, tmp_path):
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    mounts = {
        f"error: n2: {outputs} cannot be written: Read-only file system": ["--bind", "-o", "ro", outputs],
        f"error: n2: {outputs} is not that of n1": ["-t", "tmpfs", "tmpfs"],
    }
    for message, mount in mounts.items():
        slurm("n2", "mount", *map(str, mount), str(outputs), cluster=("on",))
        try:
            assert ended_before_a_rank(start(*training)).startswith(message)
        finally:
            slurm("n2", "umount", str(outputs), cluster=("on",))
    assert not list(outputs.iterdir())


def test_an_interface_that_no_node_has_is_one_line(start, training):
    line = ended_before_a_rank(start("--export=ALL,GLOO_SOCKET_IFNAME=ib0", *training))
    assert line.startswith("error: n1, n2: GLOO_SOCKET_IFNAME=ib0, and there is no interface ib0")


def test_a_signal_that_comes_while_nodes_are_checked(slurm, start, training, tmp_path):
    site = tmp_path / "site.sh"
    site.write_text(WAITING.format(folder=tmp_path))
    job = start(f"--export=ALL,SITE={site},NODE_CHECK=600", *training)
    job.until((tmp_path / "waiting").exists)
    slurm("scancel", "--signal=USR1", job.id)
    (tmp_path / "go").touch()
    assert job.end() == "COMPLETED", job.text
    assert job.field("Restarts") == "1", job.text
    assert "stopped at a checkpoint, requeued" in job.text
