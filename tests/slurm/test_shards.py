"""slurm/shard_imagenet.sh: parts of a data set as an array of jobs; the last to end completes it."""

import re

import pytest

from data_pipelines.dataset_loading import load_dataset
from data_pipelines.shards.make import make
from data_pipelines.shards.verify import verify
from tests.helpers.synthetic_cifar import write_folder

PARTS = ("--export=ALL,PARTS=2", "--array=1-2")


def test_a_part_that_is_signalled_continues_and_the_last_completes_the_set(slurm, submit, tmp_path):
    raw, to = write_folder(tmp_path, per_batch=2000), tmp_path / "shards"
    words = ["source=cifar10", f"from={raw}", f"to={to}", "shard=100", "workers=1"]
    job = submit(*PARTS, *words, script="shard_imagenet.sh")
    array, job.id = job.id, f"{job.id}_2"
    job.until(lambda: (to / "train" / "000005.npy").exists())  # part 2 has every other
    slurm("scancel", "--signal=USR1", job.id)
    assert job.end() == "COMPLETED", job.text
    assert job.field("Restarts") == "1", job.text
    assert "part 2 of 2 was ended by a signal, requeued" in job.text
    job.id = f"{array}_1"
    assert job.end() == "COMPLETED", job.text
    assert job.field("Restarts") == "0", job.text
    assert len(re.findall("train 10,000 in 100 shards, test 2,000 in 20 shards", job.text)) == 1
    assert verify(to, progress=False) == []
    alone = make("cifar10", tmp_path / "alone", raw, images_per_shard=100, progress=False)
    assert load_dataset(to).fingerprint == alone.fingerprint


@pytest.mark.parametrize(
    ("options", "words", "message"),
    [
        (
            ["--array=17"],
            ["from=/x"],
            "element 17 of 16 parts: sbatch --array=1-16, or PARTS=N with --array=1-N",
        ),
        (["--array=1"], [], "from=FOLDER is missing: where ImageNet lies, such as from=ILSVRC/Data/CLS-LOC"),
        (["--array=1"], ["from=/nowhere"], "from=/nowhere: /nowhere cannot be read (No such file"),
    ],
)
def test_a_mistake_is_one_line(submit, tmp_path, options, words, message):
    job = submit(
        *options, *words, f"to={tmp_path / 'shards'}" if words else "x=1", script="shard_imagenet.sh"
    )
    job.id += f"_{options[0].rpartition('=')[2]}"
    assert job.end() == "FAILED", job.text
    assert f"error: {message}" in job.text
    assert not (tmp_path / "shards").exists()
