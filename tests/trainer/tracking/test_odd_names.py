"""Folders of any names, and names and values longer than MLflow takes: tracked, or told at the start."""

import os
import shlex
import shutil
from pathlib import Path
from urllib.parse import quote

import pytest
import sqlalchemy

from data_pipelines.common.errors import UserError
from tests.helpers.tracking_runs import client_of
from trainer.recipe.loading import load
from trainer.tracking import mlflow_store, outage
from trainer.tracking.address import open_command, sync_command, uri_for
from trainer.tracking.delivery import Delivery
from trainer.tracking.journal import Journal
from trainer.tracking.outage import Outage
from trainer.tracking.sqlite_file import is_there, sqlite_path

NAMES = [
    "a?b",
    "a#b",
    "a%20b",
    "a%3Fb",
    "a%b",
    "50%",
    "a b",
    "a;b'c\"d",
    "é犬",
    "a@b",
    "a&b=c",
    "a:b",
    "$a`b",
]


def begun(run: Path, **values: str) -> None:
    """A run's journal with a parameter, a metric and a file."""
    (run / "figures").mkdir(parents=True)
    (run / "figures" / "f.png").write_bytes(b"picture")
    journal = Journal(run / "journal.jsonl")
    for name, value in ({"p": "v"} | values).items():
        journal.write("parameter", name, value, 0)
    journal.metrics({"loss": 1.0}, 5)
    journal.write("artifact", "f", "figures/f.png", 5)
    journal.close()


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_any_name_is_tracked_in_it_alone(tmp_path, empty_store, name):
    outputs = tmp_path / name
    begun(outputs / "run")
    shutil.copy(empty_store, outputs / "mlflow.db")
    uri, lines = uri_for(None, outputs), []
    delivery = Delivery(outputs / "run", uri, "experiment", "run", lines.append)
    delivery.deliver()
    delivery.close()
    assert lines == []
    assert os.listdir(tmp_path) == [name]  # no stray database, no stray folder
    (stored,) = (outputs / "mlartifacts").rglob("f.png")
    client = client_of(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("experiment").experiment_id])
    assert [file.path for file in client.list_artifacts(run.info.run_id, "figures")] == ["figures/f.png"]
    assert stored.is_relative_to(outputs / "mlartifacts" / "experiment" / run.info.run_id)
    # What is printed leads back to the same file, for us and for MLflow.
    *_, typed = shlex.split(open_command(uri))
    *_, folder, _, given = shlex.split(sync_command(outputs / "run", uri))
    assert typed == given == uri_for(uri, "elsewhere") == uri
    assert Path(folder) == outputs / "run"
    assert sqlite_path(typed) == outputs / "mlflow.db"
    assert sqlalchemy.make_url(typed).database == str(outputs / "mlflow.db")


@pytest.mark.slow
def test_a_store_is_made_in_a_folder_with_the_worst_name(tmp_path):
    outputs = tmp_path / "a?b #%20'c"
    outputs.mkdir()
    mlflow_store.create_sqlite(sqlite_path(uri_for(None, outputs)), outputs / "mlartifacts")
    assert sorted(os.listdir(outputs)) == ["mlflow.db", "mlflow.db.lock"]
    assert os.listdir(tmp_path) == [outputs.name]


def test_an_address_with_options_is_refused_and_quoted_ones_are_read(tmp_path):
    with pytest.raises(UserError, match=r"write %3F for \? and %23 for #") as refused:
        uri_for("sqlite:///m.db?password=hush", tmp_path)
    assert "hush" not in str(refused.value)
    uri = uri_for(f"sqlite:///{quote(str(tmp_path / 'a?b' / 'm.db'))}", tmp_path)
    assert sqlite_path(uri) == tmp_path / "a?b" / "m.db"


def test_longer_names_and_values_are_cut_and_that_is_said(outputs):
    begun(outputs / "run", long="v" * 6001, fits="v" * 6000)
    lines, uri = [], uri_for(None, outputs)
    delivery = Delivery(outputs / "run", uri, "e" * 500, "r" * 251, lines.append)
    delivery.deliver()
    delivery.close()
    assert lines == [
        f"warning: MLflow has the first 250 letters of the run's name, {'r' * 251}",
        "warning: the parameter 'long' has 6,001 letters and MLflow takes 6,000: it has the first of them, "
        "the journal has all",
    ]
    client = client_of(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("e" * 500).experiment_id])
    assert run.data.params == {"p": "v", "long": "v" * 5999 + "…", "fits": "v" * 6000}
    assert run.info.run_name == "r" * 249 + "…"
    (stored,) = (outputs / "mlartifacts").rglob("f.png")  # below a folder whose name is short enough
    assert len(stored.relative_to(outputs).parts[1]) < 256


def test_an_experiment_that_mlflow_would_refuse_is_refused_at_the_start():
    load(["recipe=quickstart", f"tracking.experiment={'e' * 500}"])
    for name in ("e" * 501, '""'):
        with pytest.raises(UserError, match=r"tracking.experiment: expected a name of 1 to 500 letters"):
            load(["recipe=quickstart", f"tracking.experiment={name}"])


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (
            lambda path: path.write_text("garbage " * 99),
            "is no SQLite file; move it away, and MLflow makes a new one",
        ),
        (
            lambda path: path.write_bytes(b"SQL"),
            "is no SQLite file; move it away, and MLflow makes a new one",
        ),
        (lambda path: os.truncate(path, 50_000), "is cut short; move it away, and MLflow makes a new one"),
        (
            lambda path: (path.unlink(), path.mkdir()),
            "Is a directory; it is a folder where a file is expected",
        ),
    ],
)
def test_a_damaged_store_is_told_at_once_with_what_to_do(outputs, damage, why):
    begun(outputs / "run")
    assert is_there(outputs / "mlflow.db")
    damage(outputs / "mlflow.db")
    delivery = Delivery(outputs / "run", uri_for(None, outputs), "e", "run", print)
    with pytest.raises((Outage, OSError)) as raised:
        delivery.deliver()
    delivery.close()
    assert outage.reason(raised.value).startswith(str(outputs / "mlflow.db"))
    assert why in outage.reason(raised.value)
