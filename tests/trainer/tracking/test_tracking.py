"""Delivery to MLflow's real SQLite store: everything, in order, once, and one line for what goes wrong."""

import json
import math
import sqlite3
import sys
import threading
import time

import pytest

from data_pipelines.common.locks import open_locked
from tests.helpers.tracking_runs import (
    Console,
    client_of,
    follow,
    free_port,
    journal_points,
    mlflow_points,
    mlflow_run,
    wait_until,
)
from trainer.tracking.__main__ import main
from trainer.tracking.address import uri_for
from trainer.tracking.delivery import delivered
from trainer.tracking.journal import Journal, read

# ---- SQLite --------------------------------------------------------------------------------------


def test_everything_in_the_journal_arrives(outputs):
    uri, run, console = uri_for(None, outputs), outputs / "first", Console()
    journal = Journal(run / "journal.jsonl")
    follower = follow(run, uri, console)
    (run / "figures").mkdir()
    (run / "figures" / "filters.png").write_bytes(b"picture")
    (run / "export" / "deep").mkdir(parents=True)
    (run / "export" / "deep" / "encoder.safetensors").write_bytes(b"weights")
    journal.write("parameter", "optimizer.lr", 1e-3, 0)
    journal.write("tag", "world", "2 ranks", 0)
    for images in range(0, 12000, 10):
        journal.metrics({"loss": 1 / (images + 1), "rate": 5.0}, images)
    journal.metrics({"nan": math.nan, "up": math.inf, "down": -math.inf}, 12000)
    journal.write("resumed", "resumed", 12000, 12000)
    journal.write("warning", "data", "shard 3 is truncated", 12000)
    journal.write("artifact", "filters", "figures/filters.png", 12000)
    journal.write("artifact", "encoder", "export", 12000)
    journal.write("end", "end", "FINISHED", 12000)
    assert follower.close()
    journal.close()
    assert console == []

    client, tracked = mlflow_run(uri)
    points, expected = mlflow_points(uri), journal_points(run)
    assert math.isnan(points.pop("nan")[0][2])
    assert points.pop("up")[0][2] == sys.float_info.max  # SQL knows no infinity
    assert points.pop("down")[0][2] == -sys.float_info.max
    assert points == {name: expected[name] for name in ("loss", "rate")}
    assert len(points["loss"]) == 1200
    assert tracked.data.params == {"optimizer.lr": "0.001"}
    tags = tracked.data.tags
    assert tags["journal.id"] == journal.id
    assert tags["world"] == "2 ranks"
    assert tags["warning.data"] == "shard 3 is truncated"
    assert tags["resumed"] == "1 times, the last at 12000 images"
    assert tracked.info.run_name == "first"
    assert tracked.info.status == "FINISHED"
    last = list(read(journal.path))[-1][0]
    assert tracked.info.end_time == round(last["time"] * 1000)
    artifacts = outputs / "mlartifacts" / "an_experiment" / tracked.info.run_id / "artifacts"
    assert (artifacts / "figures" / "filters.png").read_bytes() == b"picture"
    assert (artifacts / "export" / "deep" / "encoder.safetensors").read_bytes() == b"weights"
    assert [f.path for f in client.list_artifacts(tracked.info.run_id)] == ["export", "figures"]


def test_a_second_start_continues_the_same_run(outputs):
    uri, run = uri_for(None, outputs), outputs / "run"
    for start in (0, 100, 200):
        journal = Journal(run / "journal.jsonl")
        follower = follow(run, uri)
        if start:
            journal.write("resumed", "resumed", start, start)
        journal.metrics({"loss": start}, start)
        journal.write("end", "end", "KILLED", start)
        assert follower.close()
        journal.close()
        if start == 100:
            # Lost, with the offset and the run's id: everything is sent again.
            (run / "delivered.json").unlink()
    journal = Journal(run / "journal.jsonl")
    journal.write("resumed", "resumed", 200, 200)
    follower = follow(run, uri)
    assert follower.close()
    journal.close()
    _, tracked = mlflow_run(uri)
    assert mlflow_points(uri) == journal_points(run)
    assert tracked.info.status == "RUNNING"
    assert tracked.data.tags["resumed"] == "3 times, the last at 200 images"


def test_a_run_deleted_in_mlflow_is_made_anew(outputs):
    uri, run = uri_for(None, outputs), outputs / "run"
    journal, console = Journal(run / "journal.jsonl"), Console()
    follower = follow(run, uri, console)
    journal.metrics({"loss": 1.0}, 1)
    wait_until(lambda: follower._delivery._connection and not follower._delivery.waiting())
    client_of(uri).delete_run(follower._delivery._connection.run_id)
    journal.metrics({"loss": 2.0}, 2)
    assert follower.close()
    journal.close()
    assert console == []
    assert mlflow_points(uri) == journal_points(run)


def test_a_refused_record_is_named_and_holds_nothing_up(outputs):
    uri, run, console = uri_for(None, outputs), outputs / "run", Console()
    journal = Journal(run / "journal.jsonl")
    journal.write("parameter", "lr", 1, 0)
    journal.write("parameter", "lr", 2, 50)
    journal.write("parameter", "seed", 3, 50)
    journal.metrics({"a": 1.0, "b#\n": 2.0, "c": 3.0}, 50)
    journal.write("artifact", "gone", "figures/gone.png", 50)
    journal.write("artifact", "foreign", "../mlflow.db", 50)
    journal.write("end", "end", "NO STATUS", 50)
    journal.write("end", "end", "FAILED", 50)
    follower = follow(run, uri, console)
    assert follower.close()
    journal.close()
    _, tracked = mlflow_run(uri)
    assert tracked.data.params == {"lr": "1", "seed": "3"}
    assert tracked.data.metrics == {"a": 1.0, "c": 3.0}
    assert tracked.info.status == "FAILED"
    refused = [line.split(" refused the ")[1].split(" (")[0] for line in console]
    assert refused == [
        "parameter 'lr' at 50 images",
        r"metric 'b#\n' at 50 images",
        "artifact 'gone' at 50 images",
        "artifact 'foreign' at 50 images",
        "end 'end.1' at 50 images",
    ]


def test_a_deleted_experiment_is_told_and_waited_for(outputs):
    uri, run, console = uri_for(None, outputs), outputs / "run", Console()
    client = client_of(uri)
    experiment = client.create_experiment("an experiment", artifact_location=str(outputs / "mlartifacts"))
    client.delete_experiment(experiment)
    journal = Journal(run / "journal.jsonl")
    journal.metrics({"loss": 1.0}, 1)
    follower = follow(run, uri, console)
    wait_until(lambda: console)
    assert "'an experiment' was deleted there; restore it with `mlflow experiments restore" in console[0]
    client.restore_experiment(experiment)
    assert follower.close()
    journal.close()
    assert len(console) == 2
    assert "tracking again" in console[1]
    assert mlflow_points(uri) == journal_points(run)


def test_a_locked_store_is_waited_for(outputs):
    uri, run, console = uri_for(None, outputs), outputs / "run", Console()
    journal = Journal(run / "journal.jsonl")
    journal.metrics({"loss": 1.0}, 1)
    other = sqlite3.connect(outputs / "mlflow.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    threading.Timer(1.5, lambda: other.execute("COMMIT")).start()
    follower = follow(run, uri, console)
    assert follower.close()
    journal.close()
    assert console == []
    assert mlflow_points(uri) == journal_points(run)


def test_two_processes_do_not_deliver_one_run(outputs, capsys):
    run = outputs / "run"
    journal = Journal(run / "journal.jsonl")
    journal.close()
    open_locked(run / ".delivered.lock")
    assert main(["sync", str(run)]) == 1
    assert "another process is delivering this run" in capsys.readouterr().out


# ---- without a network ---------------------------------------------------------------------------


def test_an_address_that_does_not_answer_is_one_line_and_sync_delivers_later(outputs, capsys):
    run, console = outputs / "run", Console()
    uri = f"http://user:secret@127.0.0.1:{free_port()}"
    journal = Journal(run / "journal.jsonl")
    follower = follow(run, uri, console)
    journal.metrics({"loss": 1.0}, 1)
    wait_until(lambda: console)
    start = time.monotonic()
    assert not follower.close()
    assert time.monotonic() - start < 10
    assert len(console) == 2
    for line in console:
        assert "secret" not in line
        assert "\n" not in line
        assert f"python -m trainer.tracking sync {run} --uri http://127.0.0.1" in line
    assert "Connection refused" in console[0]
    journal.close()

    Journal(outputs / "other" / "journal.jsonl").close()
    assert main(["sync", str(outputs), "--uri", uri.replace("user:secret@", "")]) == 1
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2
    assert "Connection refused" in out[0]
    assert "secret" not in out[0]
    assert "not delivered either" in out[1]

    (run / "recipe.yaml").write_text("tracking: {uri: none, experiment: an experiment}")
    assert main(["sync", str(outputs)]) == 0
    assert main(["sync", str(run)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split(": ", 1)[1][:12] for line in out[2:]] == ["nothing new"]
    assert mlflow_points(uri_for(None, outputs)) == journal_points(run)
    assert client_of(uri_for(None, outputs)).get_experiment_by_name("hybrid-infomax") is not None


def test_one_broken_run_keeps_no_other_from_being_delivered(outputs, capsys):
    for name in ("a", "b", "c"):
        journal = Journal(outputs / name / "journal.jsonl")
        journal.metrics({"loss": 1.0}, 1)
        journal.close()
    broken = outputs / "b" / "recipe.yaml"
    for text, message in (
        ("tracking: [", "is no recipe"),
        ("tracking: {uri: 'http://h/?t=hush'}", "a query (?)"),
    ):
        broken.write_text(text)
        assert main(["sync", str(outputs)]) == 2
        out, err = capsys.readouterr()
        assert [line.split(": ")[0] for line in out.splitlines()] == [str(outputs / name) for name in "ac"]
        assert err.startswith(f"error: {outputs / 'b'}: recipe.yaml")
        assert message in err
        assert (err.count("\n"), "hush" in err) == (1, False)
    client = client_of(uri_for(None, outputs))
    experiment = client.get_experiment_by_name("hybrid-infomax").experiment_id
    assert {run.info.run_name for run in client.search_runs([experiment])} == {"a", "c"}
    broken.unlink()
    assert main(["sync", str(outputs)]) == 0


@pytest.mark.parametrize("uri", ["none", "nowhere"])
def test_sync_to_no_address_is_one_line(outputs, capsys, uri):
    Journal(outputs / "run" / "journal.jsonl").close()
    assert main(["sync", str(outputs / "run"), "--uri", uri]) == 2
    out, err = capsys.readouterr()
    assert (out, err.startswith("error: "), err.count("\n")) == ("", True, 1)


def test_delivered_json_of_another_form_counts_as_nothing_delivered(outputs):
    uri, run = uri_for(None, outputs), outputs / "run"
    journal = Journal(run / "journal.jsonl")
    entry = {"journal": journal.id, "run_id": "r", "offset": 10**6, "aside": []}
    wrong = [[], 3, {uri: []}, {uri: {"journal": journal.id}}]
    wrong += [{uri: entry | part} for part in ({"offset": "9"}, {"run_id": None}, {"aside": [{"kind": 1}]})]
    for number, content in enumerate(wrong):
        journal.metrics({"loss": float(number)}, number)
        (run / "delivered.json").write_text(json.dumps(content))
        assert delivered(run) == {}
        follower = follow(run, uri)
        assert follower.close()
    journal.close()
    assert delivered(run)[uri]["offset"] == journal.path.stat().st_size
    assert mlflow_points(uri) == journal_points(run)


def test_sync_of_a_folder_without_runs_is_one_line(tmp_path, capsys):
    assert main(["sync", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
