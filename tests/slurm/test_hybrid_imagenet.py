"""slurm/hybrid_imagenet.sh over two nodes, against real daemons: runs, is stopped, loses a node, refuses."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from data_pipelines.shards.make import make
from tests.helpers.slurm.daemons import Job
from tests.helpers.slurm.small_runs import arguments, continued_once, is_training, journal
from tests.helpers.tiny_dataset import pictures

SMALL = ["--cpus-per-task=2"]
ONE_A_NODE = [*SMALL, "--gpus-per-node=1"]  # pretended: the processes see none and train on CPU
TWO_A_NODE = [*SMALL, "--gpus-per-node=0", "--export=ALL,PROCS_PER_NODE=2"]
LENGTH = "images=6400"


@pytest.fixture
def start(submit):
    return lambda *words: submit(*words, script="hybrid_imagenet.sh")


@pytest.fixture
def run(tmp_path) -> Path:
    return tmp_path / "outputs" / "quickstart"


def world(run: Path) -> tuple[int, str]:
    record = json.loads((run / "world.json").read_text())
    return record["processes"], record["engine"]


def weights(run: Path) -> dict[str, bytes]:
    """The exported encoder, to be compared bit by bit; the file also holds where the run lies."""
    tensors = load_file(run / "export" / "encoder.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def undisturbed(slurm, tmp_path_factory) -> dict[str, bytes]:
    """The encoder of a run on two nodes that nothing befell."""
    folder = tmp_path_factory.mktemp("undisturbed")
    job = Job(slurm, folder, "hybrid_imagenet.sh", *ONE_A_NODE, LENGTH, *arguments(folder))
    assert job.end() == "COMPLETED", job.text
    assert job.field("Restarts") == "0"
    assert job.field("NumNodes") == "2"
    run = folder / "outputs" / "quickstart"
    assert world(run) == (2, "ddp")
    assert not journal(run, "resumed")
    return weights(run)


def test_signal_before_the_time_limit(slurm, start, training, run, undisturbed):
    """The signal is what slurmctld sends before the limit, without the wait for it; the result is equal."""
    job = start(*ONE_A_NODE, LENGTH, *training)
    job.until(lambda: is_training(run))
    slurm("scancel", "--signal=USR1", job.id)
    continued_once(run, job)
    assert world(run) == (2, "ddp")
    assert weights(run) == undisturbed


def test_preemption_of_two_processes_on_each_node(slurm, start, training, run):
    """All are sent TERM; a job that wants their nodes goes first."""
    job = start(*TWO_A_NODE, "images=10240", *training, "groups.norm=32")
    job.until(lambda: is_training(run))
    assert world(run) == (4, "ddp")
    slurm("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    continued_once(run, job)


def test_a_lost_node(slurm, start, training, run, undisturbed):
    """Everything on the second node is killed, as where it loses power: Slurm starts the job again, once."""
    job = start(*ONE_A_NODE, LENGTH, *training, "save.every=1024")
    job.until(lambda: is_training(run) and list((run / "checkpoints").glob("images-*")))
    slurm("n2", cluster=("crash",))
    try:
        slurm("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=lost")  # or after its SlurmdTimeout
        job.until(lambda: job.field("Restarts") == "1")
    finally:
        slurm("n2", cluster=("revive",))  # back in service once it reports: ReturnToService=2
    assert job.end() == "COMPLETED", job.text
    assert job.field("Restarts") == "1"
    (resumed,) = journal(run, "resumed")
    assert resumed["images"] > 0
    assert weights(run) == undisturbed


def photographs(folder: Path) -> Path:
    """A data set of 160 drawn JPEGs of 80 x 72 pixels in two classes."""
    for number, pixels in enumerate(pictures(160, 72, 80)):
        path = folder / "jpegs" / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    made = make("folder", folder / "photographs", from_=folder / "jpegs", workers=1, progress=False)
    return made.root


def test_the_small_hybrid_on_two_nodes_under_zero2(start, tmp_path):
    """What the script is for, on shards of photographs; after a stop file DDP goes on with it."""
    data, run = photographs(tmp_path), tmp_path / "outputs" / "hybrid_imagenet_small"
    words = [
        "recipe=hybrid_imagenet_small",
        f"data.root={data}",
        "data.test=test",
        f"outputs={tmp_path}/outputs",
    ]
    words += ["encoder.width=8", "images=1280", "schedule.warmup=64", "log.every=64", "save.every=640"]
    words += ["evaluate.every=0", "evaluate.at_end=false", "tracking.uri=none"]
    job = start(*ONE_A_NODE, "--export=ALL,ENGINE=zero2", *words)
    job.until(lambda: is_training(run))
    (run / "stop").touch()
    assert job.end() == "FAILED", job.text  # it is not complete
    assert "stopped at a checkpoint by a stop file; submit it again" in job.text
    assert world(run) == (2, "zero2")
    job = start(*ONE_A_NODE, *words)
    assert job.end() == "COMPLETED", job.text
    assert world(run) == (2, "ddp")
    assert len(journal(run, "resumed")) == 1
    assert (run / "done").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["recipe=quickstrat"],
            "error: command line: unknown recipe 'quickstrat'; did you mean 'quickstart'?",
        ),
        (
            ["recipe=quickstart", "--export=ALL,ENGINE=zero9"],
            "error: ENGINE=zero9: no recipes/launch/zero9.yaml",
        ),
        (["recipe=quickstart", "--nodes=1"], "error: one process in all: ask for more --nodes"),
        (["recipe=quickstart", "batch=192"], "error: batch=192 does not divide over 2 processes"),
    ],
)
def test_a_mistake_is_one_line_and_the_end_of_the_job(start, words, message, tmp_path):
    job = start(*ONE_A_NODE, *words, f"outputs={tmp_path}/outputs")
    assert job.end() == "FAILED"
    assert job.field("ExitCode") == "2:0"
    assert job.field("Restarts") == "0"
    (line,) = job.text.splitlines()
    assert line.startswith(message)
    assert not (tmp_path / "outputs").exists()


def test_a_training_that_fails_is_not_started_again(start, training, run, tmp_path):
    """Its data set is not there: known only when all ranks are there."""
    job = start(*ONE_A_NODE, *training, "data.source=folder", f"data.root={tmp_path}/none")
    assert job.end() == "FAILED"
    assert job.field("Restarts") == "0"
    assert f"error: data set {tmp_path}/none does not exist" in job.text
    assert re.search(rf"failed with status \d+: {run}\n", job.text)  # 1, or 143 of a launcher that srun ended
    assert not run.exists()
