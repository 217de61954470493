"""Delivers one run's journal to one MLflow: every record once, in order.

The run's delivered.json says what has been delivered where; it is replaced after each batch that MLflow is
proved to have. A process that dies between a batch and that file sends the batch again, which changes
nothing: time stamps come from the journal, and MLflow's SQL stores keep one of two equal points.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from data_pipelines.common.files import flush, replace_text
from data_pipelines.common.locks import close_locked, open_locked
from data_pipelines.common.paths import refused_paths
from trainer.tracking import mlflow_store, outage
from trainer.tracking.journal import FIELDS, ID, read
from trainer.tracking.sqlite_file import sqlite_path

if TYPE_CHECKING:
    from mlflow import MlflowClient

BATCH = {"metric": 500, "parameter": 100}  # MLflow's log_batch takes 1,000 metrics and 100 parameters
TRIES = 3  # to send an artifact again where everything else can be sent


class Connection(NamedTuple):
    """The run in MLflow that a journal is delivered to."""

    client: "MlflowClient"
    run_id: str
    journal_id: str


class Delivery:
    """Delivers one run's journal to MLflow at `uri`.

    Attributes:
        offset: bytes of the journal that are in MLflow.
        aside: records of artifacts within them that are not, since MLflow could not store the files.
    """

    def __init__(
        self, run_folder: Path, uri: str, experiment: str, run_name: str, report: Callable[[str], object]
    ):
        self.folder = Path(run_folder)
        self.journal = self.folder / "journal.jsonl"
        self.uri = uri
        self.address = outage.without_secrets(uri)
        self.experiment = experiment
        self.run_name = run_name
        self.report = report
        self._state = self.folder / "delivered.json"
        self._lock: int | None = None
        self._connection: Connection | None = None
        self.offset = 0
        self.aside: list[dict] = []

    def deliver(self) -> None:
        """Sends everything that is in the journal and not yet in MLflow.

        A record that MLflow refuses while it accepts others is reported and skipped. An artifact that it
        cannot store, as its store of files is away, is reported, set aside, and tried again by the next
        connection and at the run's end. Any other error is raised; the next call connects anew and goes on
        after the last batch that was delivered.
        """
        if not self.waiting():
            return
        try:
            if self._connection is None:
                self._connect()
                self._send_aside()
            # A record in MLflow must survive a power cut here: a replay would send it with another time.
            flush(self.journal)
            for records, end in _batches(read(self.journal, self.offset)):
                self._send([self._fitted(record) for record in records])
                if records[-1]["kind"] == "end":
                    self._send_aside()
                    mlflow_store.remove_twins(*self._connected())
                self.offset = end
                self._save()
        except Exception:
            self._connection = None
            raise

    def waiting(self) -> int:
        """Bytes of the journal that have not been delivered."""
        aside = 0
        if self._connection is None:
            known = self._known(self._first())
            self.offset, self.aside = known.get("offset", 0), known.get("aside", [])
            aside = sum(len(json.dumps(record)) + 1 for record in self.aside)
        try:
            return max(0, self.journal.stat().st_size - self.offset) + aside
        except FileNotFoundError:
            return 0

    def close(self) -> None:
        """Releases the lock: another process may deliver this run."""
        if self._lock is not None:
            close_locked(self._lock)
            self._lock = None

    def _first(self) -> dict | None:
        try:
            return next((record for record, _ in read(self.journal) if record["name"] == ID), None)
        except FileNotFoundError:
            return None

    def _known(self, first: dict | None) -> dict:
        # The entry is of this very journal, or of one that the user has deleted or replaced.
        entry = delivered(self.folder).get(self.address, {})
        if first is None or entry.get("journal") != first["value"]:
            return {}
        return entry if entry["offset"] <= self.journal.stat().st_size else {**entry, "offset": 0}

    def _connect(self) -> None:
        if self._lock is None:
            self._lock = open_locked(self.folder / ".delivered.lock")
            if self._lock is None:
                raise outage.Outage("another process is delivering this run")
        first = self._first()
        if first is None:
            raise outage.Outage(f"{self.journal} has no whole line that bears its {ID}")
        sqlite = self.uri.startswith("sqlite:")
        artifacts = sqlite_path(self.uri).parent / "mlartifacts" if sqlite else None
        client = mlflow_store.connect(self.uri, artifacts)
        known = self._known(first)
        run_id, offset, aside = known.get("run_id"), known.get("offset", 0), known.get("aside", [])
        if run_id is None or not mlflow_store.is_active(client, run_id):
            experiment = mlflow_store.experiment_id(client, self.experiment, artifacts)
            run_id = mlflow_store.find_or_create_run(
                client, experiment, first["value"], self._short_name(), first["time"]
            )
            offset, aside = 0, []
        self._connection = Connection(client, run_id, first["value"])
        self.offset, self.aside = offset, aside
        self._save()

    def _short_name(self) -> str:
        longest = mlflow_store.LONGEST_RUN_NAME
        if len(self.run_name) <= longest:
            return self.run_name
        self.report(f"warning: MLflow has the first {longest} letters of the run's name, {self.run_name}")
        return f"{self.run_name[: longest - 1]}…"

    def _connected(self) -> "Connection":
        assert self._connection is not None  # `deliver` connects before it sends
        return self._connection

    def _save(self) -> None:
        _, run_id, journal_id = self._connected()
        entry = {"journal": journal_id, "run_id": run_id, "offset": self.offset, "aside": self.aside}
        replace_text(self._state, json.dumps({**delivered(self.folder), self.address: entry}, indent=1))

    def _fitted(self, record: dict) -> dict:
        """The record as MLflow takes it: a longer value is cut, and that is reported."""
        limit, text = mlflow_store.LONGEST.get(record["kind"]), str(record["value"])
        if limit is None or len(text) <= limit:
            return record
        self.report(
            f"warning: the {record['kind']} {record['name']!r} has {len(text):,} letters and MLflow takes "
            f"{limit:,}: it has the first of them, the journal has all"
        )
        return record | {"value": f"{text[: limit - 1]}…"}

    def _send(self, records: list[dict]) -> None:
        client, run_id, journal_id = self._connected()
        try:
            mlflow_store.send(client, run_id, self.folder, records)
        except Exception as error:
            if outage.is_outage(error):
                if records[0]["kind"] != "artifact":
                    raise
                self._try_artifact(records)
                return
            # One bad record makes MLflow refuse a batch: halve it until the bad one is alone.
            if len(records) > 1:
                self._send(records[: len(records) // 2])
                self._send(records[len(records) // 2 :])
                return
            # The record is at fault if a harmless write passes now and the record is refused again; else the
            # store or the run is gone, or was away for a moment.
            mlflow_store.write(client, run_id, {"journal.id": journal_id})
            self._send_again(records)

    def _try_artifact(self, records: list[dict]) -> None:
        """Sends one artifact again; where only artifacts fail, they must not hold up the rest."""
        client, run_id, journal_id = self._connected()
        for tries_left in reversed(range(TRIES)):
            # this raises where MLflow is away, and not its store of artifacts alone
            mlflow_store.write(client, run_id, {"journal.id": journal_id})
            try:
                return self._send_again(records)
            except Exception as error:
                if tries_left:
                    continue
                self.aside.append(records[0])
                self.report(
                    f"warning: MLflow at {self.address} cannot store the artifact {records[0]['name']!r} at "
                    f"{records[0]['images']} images ({outage.reason(error)}); everything else is "
                    "delivered, and this is tried again later"
                )

    def _send_aside(self) -> None:
        waiting, self.aside = self.aside, []
        for number, record in enumerate(waiting):
            self._send([record])
            if self.aside:  # the others will hardly pass now; they are first next time
                self.aside = [*waiting[number + 1 :], *self.aside]
                break
        if waiting:
            self._save()

    def _send_again(self, records: list[dict]) -> None:
        client, run_id, _ = self._connected()
        try:
            mlflow_store.send(client, run_id, self.folder, records)
        except Exception as error:
            if outage.is_outage(error):
                raise
            record = records[0]
            self.report(
                f"warning: MLflow at {self.address} refused the {record['kind']} {record['name']!r} at "
                f"{record['images']} images ({outage.reason(error)}); the journal keeps it"
            )


def delivered(run_folder: Path) -> dict:
    """The run's delivered.json: address -> {journal, run_id, offset in bytes, aside}; {} where none is.

    An entry of another form is ignored: everything is sent again, which changes nothing.

    Raises UserError where the file cannot be read.
    """
    try:
        with refused_paths():
            entries = json.loads((Path(run_folder) / "delivered.json").read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    if not isinstance(entries, dict):
        return {}
    return {address: entry for address, entry in entries.items() if _is_formed(entry)}


def _is_formed(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and all(isinstance(entry.get(key), str) for key in ("journal", "run_id"))
        and type(offset := entry.get("offset")) is int
        and offset >= 0
        and isinstance(aside := entry.get("aside", []), list)
        and all(isinstance(record, dict) and record.keys() == FIELDS for record in aside)
    )


def _batches(lines: Iterator[tuple[dict, int]]) -> Iterator[tuple[list[dict], int]]:
    for kind, group in itertools.groupby(lines, key=lambda line: line[0]["kind"]):
        while batch := list(itertools.islice(group, BATCH.get(kind, 1))):
            yield [record for record, _ in batch], batch[-1][1]
