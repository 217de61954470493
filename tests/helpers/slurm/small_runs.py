"""A small training as a job, and the records in its folder."""

import json
import re
from pathlib import Path

TINY = ["data.size=16", "encoder.channels=[8, 16]", "encoder.fc=32", "objective.critic.units=32"]
SHORT = ["log.every=128", "save.every=25600", "evaluate.every=0", "evaluate.at_end=false"]


def arguments(folder: Path) -> list[str]:
    """The arguments of a small training on the embedded digits that writes to this folder only."""
    places = [f"outputs={folder}/outputs", f"data.root={folder}/digits", "tracking.uri=none"]
    return ["recipe=quickstart", *places, *TINY, *SHORT]


def journal(run: Path, kind: str) -> list[dict]:
    """The journal's records of a kind, without a last line that is being written."""
    path = run / "journal.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [record for record in records if record["kind"] == kind]


def is_training(run: Path) -> bool:
    return any(record["images"] >= 256 for record in journal(run, "metric"))


def stopped_without_failure(job) -> None:
    """A stop that was asked for is no failure: no launcher ends in a traceback, and no step with a status.

    (Another traceback, `Error waiting on exit barrier`, torch may log of several nodes that end well.)
    """
    assert not re.search("ChildFailedError|SignalException", job.text), job.text
    assert job.field("DerivedExitCode") == "0:0", job.text


def continued_once(run: Path, job) -> None:
    """The job was stopped, requeued, continued from the checkpoint that it had saved, and finished."""
    assert job.end() == "COMPLETED", job.text
    assert job.field("Restarts") == "1", job.text
    assert "stopped at a checkpoint, requeued" in job.text
    assert "User defined signal" not in job.text, job.text  # what srun says of a launcher that it has ended
    stopped_without_failure(job)
    (resumed,) = journal(run, "resumed")
    assert resumed["images"] > 0
    assert (run / "done").exists()
    assert not (run / "stopped").exists()
