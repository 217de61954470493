"""MLflow's side of tracking: a SQLite store that no kill leaves half made, the client, experiments and runs.

MLflow is imported inside the functions: the import costs seconds, also to a run without tracking.
"""

import hashlib
import os
import re
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from data_pipelines.common.files import replacing
from data_pipelines.common.locks import close_locked, open_locked
from trainer.tracking.outage import NO_EFFECT, Outage
from trainer.tracking.sqlite_file import is_there, sqlite_path, sqlite_uri, without_stray_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param
    from mlflow.entities import Run as MlflowRun

SETTINGS = {
    # The follower waits during outages, and can be woken. MLflow's own retries last minutes, and a retried
    # create_run makes a second run.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # The follower reports an error in one line; the store would print tracebacks into the progress bar.
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
LONGEST = {"parameter": 6000, "tag": 8000, "warning": 8000}  # letters of a value; MLflow cuts without a word
LONGEST_RUN_NAME = 250  # letters
LONGEST_FOLDER = 200  # bytes of the name of a folder of artifacts; file systems take 255
KIND = {"mlflow.experimentKind": "custom_model_development"}  # else the page opens on language-model tools


def configure() -> None:
    """Sets the environment variables of MLflow that the user has not set.

    To be called before MLflow is imported, by the main thread: setting variables is not safe beside threads.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def _answered(value: str | None, question: str) -> str:
    """`value`; raises Outage where it is empty: MLflow's client parses an empty page as empty fields."""
    if not value:
        raise Outage(f"an empty answer to {question}; is it an MLflow, and nothing in between?")
    return value


def connect(uri: str, artifacts: Path | None) -> "MlflowClient":
    """The MlflowClient for `uri`; makes a SQLite store where there is none.

    Raises Outage, or what MLflow raises where the store cannot be opened.
    """
    from mlflow import MlflowClient

    if not uri.startswith("sqlite:"):
        return MlflowClient(uri)
    create_sqlite(sqlite_path(uri), artifacts)
    with without_stray_folder(uri):
        client = MlflowClient(uri)
        client.get_experiment("0")  # opens the file
    return client


def create_sqlite(path: Path, artifacts: Path | None) -> None:
    """Makes MLflow's SQLite store at `path`, whole or not at all, where there is none.

    MLflow needs seconds to make the tables, and a store with half of them stays broken. So they are made
    under another name, by one process at a time, and renamed when they are on the disk. Raises as `is_there`.
    """
    if is_there(path):
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = open_locked(path.with_name(f"{path.name}.lock"), wait=60)
    if lock is None:
        raise Outage(f"another process has been making {path} for a minute")
    try:
        if is_there(path):
            return
        with replacing(path) as new:
            # a killed process may have left a database there, and its rollback journal
            for leftover in new.parent.glob(f"{new.name}*"):
                leftover.unlink()
            uri = sqlite_uri(new.resolve())
            with without_stray_folder(uri):
                SqlAlchemyStore(uri, _location(artifacts)).engine.dispose()
    finally:
        close_locked(lock)


def experiment_id(client: "MlflowClient", name: str, artifacts: Path | None) -> str:
    """The id of the experiment `name`; makes it where there is none.

    Its artifacts are then kept under `artifacts`; None: where the server keeps them.

    Raises Outage where an experiment of that name was deleted (MLflow then neither uses nor replaces it), or
    where what answers is no MLflow.
    """
    from mlflow.exceptions import MlflowException

    for attempt in (1, 2):
        experiment = client.get_experiment_by_name(name)
        if experiment is not None:
            break
        try:
            folder = artifacts / _folder_name(name) if artifacts else None
            created = client.create_experiment(name, artifact_location=_location(folder), tags=KIND)
            return _answered(created, "the making of an experiment")
        except MlflowException as error:
            # Another run has made it since the question: ask again, once.
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or attempt == 2:
                raise
    assert experiment is not None  # the second question has found it
    _answered(experiment.experiment_id, "the question for the experiment")
    if experiment.lifecycle_stage != "active":
        raise Outage(
            f"the experiment '{name}' was deleted there; restore it with `mlflow experiments restore "
            f"--experiment-id {experiment.experiment_id}`, or choose another tracking.experiment"
        )
    return experiment.experiment_id


def _folder_name(experiment: str) -> str:
    """The folder of an experiment's artifacts; a longer name ends in its digest."""
    name = re.sub(r"[^\w+=-]", "_", experiment)
    if len(name.encode()) <= LONGEST_FOLDER:
        return name
    digest = hashlib.blake2b(experiment.encode(), digest_size=8).hexdigest()
    return f"{name.encode()[:LONGEST_FOLDER].decode(errors='ignore')}-{digest}"


def _location(folder: Path | None) -> str | None:
    """A folder of artifacts as MLflow takes it: it decodes %20 in a path, and writes a ' into its SQL."""
    if folder is None:
        return None
    return folder.as_uri() if unquote(str(folder)) != str(folder) or "'" in str(folder) else str(folder)


def is_active(client: "MlflowClient", run_id: str) -> bool:
    """Whether the run `run_id` exists and has not been deleted."""
    from mlflow.exceptions import MlflowException

    try:
        stage = client.get_run(run_id).info.lifecycle_stage
        return _answered(stage, "the question for the run") == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def find_or_create_run(
    client: "MlflowClient", experiment: str, journal_id: str, name: str, start: float
) -> str:
    """The id of the run with the tag `journal.id`; makes it where there is none.

    MLflow's create_run makes a second run when it is called twice. By the tag, set in the same call, a
    process finds the run that was made right before a kill. `start` is in seconds since 1970.
    """
    runs = _runs_of(client, experiment, journal_id)
    if runs:
        return max(runs, key=lambda run: len(run.data.metrics)).info.run_id
    tags = {"journal.id": journal_id}
    run = client.create_run(experiment, start_time=milliseconds(start), tags=tags, run_name=name)
    return _answered(run.info.run_id, "the making of a run")


def remove_twins(client: "MlflowClient", run_id: str, journal_id: str) -> None:
    """Deletes empty runs beside `run_id` with the same tag `journal.id`.

    A server that waits (for its locked database) may carry out a create_run after the client has given up,
    not found the run, and made another. One stays where the user may not delete runs of the experiment.
    """
    from mlflow.exceptions import MlflowException

    experiment = client.get_run(run_id).info.experiment_id
    for run in _runs_of(client, experiment, journal_id):
        if run.info.run_id != run_id and not run.data.metrics and not run.data.params:
            try:
                client.delete_run(run.info.run_id)
            except MlflowException as error:
                if error.get_http_status_code() != 403:
                    raise


def _runs_of(client: "MlflowClient", experiment: str, journal_id: str) -> "list[MlflowRun]":
    return client.search_runs([experiment], f"tags.`journal.id` = '{journal_id}'", max_results=100)


def milliseconds(seconds: float) -> int:
    """MLflow's time stamp for a time of the journal."""
    return round(seconds * 1000)


def send(client: "MlflowClient", run_id: str, folder: Path, records: list[dict]) -> None:
    """Delivers records of one kind, in order, and verifies it. Sending them again changes nothing.

    Raises what MLflow raises; Outage where the answer was good but the records are not there; ValueError for
    an artifact that is not there or lies outside the run's folder.
    """
    from mlflow.entities import Metric, Param

    kind = records[0]["kind"]
    if kind == "metric":
        points = [Metric(r["name"], r["value"], milliseconds(r["time"]), r["images"]) for r in records]
        write(client, run_id, metrics=points)
    elif kind == "parameter":
        write(client, run_id, parameters=[Param(r["name"], str(r["value"])) for r in records])
    else:
        for record in records:
            _send_one(client, run_id, folder, kind, record)


def write(
    client: "MlflowClient",
    run_id: str,
    tags: dict[str, str] | None = None,
    metrics: "Sequence[Metric]" = (),
    parameters: "Sequence[Param]" = (),
) -> None:
    """MLflow's log_batch, verified by a tag that is set last in the same call and read back.

    The answer proves nothing: MLflow's client accepts an empty page with status 200, as from a proxy or a
    network's login page. Raises Outage where the tag is not there.
    """
    from mlflow.entities import RunTag

    receipt = uuid.uuid4().hex
    all_tags = (tags or {}) | {"journal.receipt": receipt}
    run_tags = [RunTag(name, value) for name, value in all_tags.items()]
    client.log_batch(run_id, metrics=metrics, params=parameters, tags=run_tags)
    if client.get_run(run_id).data.tags.get("journal.receipt") != receipt:
        raise Outage(NO_EFFECT.format("a batch"))


def _send_one(client: "MlflowClient", run_id: str, folder: Path, kind: str, record: dict) -> None:
    name, value = record["name"], record["value"]
    if kind == "tag":
        write(client, run_id, {name: str(value)})
    elif kind == "warning":
        # The newest of each name: thousands of tags would make the run unreadable; the journal has them all.
        write(client, run_id, {f"warning.{name.rpartition('.')[0]}": str(value)})
    elif kind == "resumed":
        client.update_run(run_id, status="RUNNING")
        _confirm_status(client, run_id, "RUNNING")
        count = name.rpartition(".")[2]
        write(client, run_id, {"resumed": f"{count} times, the last at {record['images']} images"})
    elif kind == "end":
        client.set_terminated(run_id, str(value), milliseconds(record["time"]))
        _confirm_status(client, run_id, str(value))
    else:
        _send_artifact(client, run_id, folder, str(value))


def _confirm_status(client: "MlflowClient", run_id: str, status: str) -> None:
    if client.get_run(run_id).info.status != status:
        raise Outage(NO_EFFECT.format("the run's status"))


def _send_artifact(client: "MlflowClient", run_id: str, folder: Path, relative: str) -> None:
    path, root = (folder / relative).resolve(), folder.resolve()
    if not path.is_relative_to(root):
        raise ValueError(f"{relative} lies outside the run's folder")
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file()]
        for file in files:
            if not file.resolve().is_relative_to(root):
                raise ValueError(f"{file} leads outside the run's folder")
        client.log_artifacts(run_id, str(path), path.relative_to(root).as_posix())
    elif path.is_file():
        client.log_artifact(run_id, str(path), _artifact_path(path.parent, root))
        files = [path]
    else:
        raise ValueError(f"{path} is not there")
    for parent in {file.parent for file in files}:
        listed = {
            file.path: file.file_size for file in client.list_artifacts(run_id, _artifact_path(parent, root))
        }
        for file in files:
            relative_path = file.relative_to(root).as_posix()
            if file.parent == parent and listed.get(relative_path) != file.stat().st_size:
                raise Outage(NO_EFFECT.format(f"the file {relative}"))


def _artifact_path(path: Path, root: Path) -> str | None:
    """The artifact path of a file of the run's folder; None for the folder itself."""
    return path.relative_to(root).as_posix() if path != root else None
