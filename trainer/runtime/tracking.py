"""Tracking: a thread delivers the journal to MLflow while training writes it, through any outage.

python -m trainer.runtime.tracking sync outputs/     delivers later what runs without a network have left
"""

import argparse
import re
import shlex
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from data_pipelines.errors import UserError
from trainer.recipe import NO_SECRETS, Tracking
from trainer.runtime import mlflow_store
from trainer.runtime.delivery import Delivery

POLL = 1.0  # seconds
LONGEST_WAIT = 30.0  # seconds between two tries during an outage
TRIES_AT_CLOSE = 3


def uri_for(recipe_uri: str | None, outputs: Path) -> str | None:
    """MLflow's address for a recipe's `tracking.uri`: None is the SQLite file of `outputs`, "none" is None.

    Raises UserError for an address that is neither http(s) nor a SQLite file, or may hold a secret.
    """
    if recipe_uri == "none":
        return None
    if recipe_uri is None:
        return f"sqlite:///{Path(outputs).resolve() / 'mlflow.db'}"
    try:
        parts = urlsplit(recipe_uri)
    except ValueError:  # such as http://[
        parts = urlsplit("")
    if parts.scheme in ("http", "https") and parts.netloc:
        if set("@?#") & set(recipe_uri):
            raise UserError(f"tracking.uri: {NO_SECRETS}")
        return recipe_uri.rstrip("/")
    if parts.scheme == "sqlite" and len(parts.path) > 1 and not parts.netloc:
        return f"sqlite:///{Path(recipe_uri.removeprefix('sqlite:///')).resolve()}"
    shown = re.split("[?#]", recipe_uri.rpartition("@")[2])[0]
    raise UserError(
        f"tracking.uri: '{shown}' is no address of MLflow; expected null "
        "(a SQLite file beside the runs), none, http://HOST:PORT or sqlite:///FILE"
    )


def open_command(uri: str) -> str:
    """What to type, or the address to open, to look at the runs of `uri`."""
    if uri.startswith("sqlite:"):
        return f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
    return mlflow_store.without_secrets(uri)


def sync_command(run_folder: Path, uri: str) -> str:
    """What to type to deliver a run's journal later."""
    address = shlex.quote(mlflow_store.without_secrets(uri))
    return f"python -m trainer.runtime.tracking sync {shlex.quote(str(run_folder))} --uri {address}"


# ---- while training ------------------------------------------------------------------------------


class Follower:
    """A daemon thread that delivers a run's journal while it is written. For rank 0 only.

    `report` is called, from that thread, with the lines meant for the console: one when an outage begins, one
    when it ends, one for a record that is refused. Nothing is ever raised into training.
    """

    def __init__(
        self,
        run_folder: Path,
        uri: str,
        experiment: str,
        run_name: str,
        report: Callable[[str], object] = print,
    ):
        mlflow_store.configure()
        self._delivery = Delivery(run_folder, uri, experiment, run_name, report)
        self._report = report
        self._closing = threading.Event()
        self._outage_since = None
        self._complete = False
        self._thread = threading.Thread(target=self._follow, name="tracking", daemon=True)
        self._thread.start()

    def close(self, timeout: float = 30.0) -> bool:
        """Delivers the rest and ends the thread; False, and a line how to do it later, where some is left.

        Waits `timeout` seconds at most, and not even that where MLflow does not answer. May be called twice.
        """
        already = self._closing.is_set()
        self._closing.set()
        self._thread.join(timeout)
        if not self._complete and not already:
            self._report(
                f"warning: {self._delivery.journal} is not wholly in MLflow at {self._delivery.address}; "
                f"deliver the rest with: {sync_command(self._delivery.folder, self._delivery.uri)}"
            )
        return self._complete

    def _follow(self) -> None:
        failures = failures_at_close = 0
        while True:
            closing, before = self._closing.is_set(), self._delivery.offset
            try:
                self._delivery.deliver()
                failures = 0
                self._answered()
                if closing:
                    self._complete = not self._delivery.aside
                    break
            except Exception as error:
                # Where some of it arrived, the rest is not kept waiting for longer and longer.
                failures = failures + 1 if self._delivery.offset == before else 1
                failures_at_close += closing
                # A first failure may be a connection that the server had closed, or a locked file: try again.
                if failures > 1:
                    self._failed(error)
                if failures_at_close == TRIES_AT_CLOSE:
                    break
            wait = min(LONGEST_WAIT, 0.25 * 2**failures) if failures else POLL
            if closing:
                time.sleep(min(wait, 1.0))
            else:
                self._closing.wait(wait)
        self._delivery.close()

    def _failed(self, error: Exception) -> None:
        if self._outage_since is None:
            self._outage_since = time.time()
            later = sync_command(self._delivery.folder, self._delivery.uri)
            self._report(
                f"warning: no tracking since {time.strftime('%X')}: MLflow at {self._delivery.address}: "
                f"{mlflow_store.reason(error)}; training goes on, the journal keeps everything until MLflow "
                f"answers, or is delivered later by: {later}"
            )

    def _answered(self) -> None:
        if self._outage_since is not None:
            seconds = time.time() - self._outage_since
            self._outage_since = None
            self._report(
                f"tracking again after {seconds:.0f} s: MLflow at {self._delivery.address} has everything"
            )


# ---- later ---------------------------------------------------------------------------------------


def sync(folder: Path, uri: str | None = None) -> int:
    """Delivers every run in `folder` (or the run that it is), a line for each, and returns the status.

    0: nothing is left, 1: something is, 2: a run cannot be delivered before its user has mended something;
    the others are all the same. `uri` is MLflow's address, by default that of the run's recipe, or the SQLite
    file beside the run. Raises UserError where there is no run or `uri` is no address.
    """
    if uri is not None and uri_for(uri, folder) is None:
        raise UserError("--uri none: is no address to deliver to; give MLflow's, or leave --uri out")
    mlflow_store.configure()
    alone = (folder / "journal.jsonl").is_file()
    runs = [folder] if alone else sorted(path.parent for path in folder.glob("*/journal.jsonl"))
    if not runs:
        raise UserError(
            f"{folder}: holds no run (no journal.jsonl); name the folder of outputs or a run in it"
        )
    down: set[str] = set()
    return max(_status(run, uri, down) for run in runs)


def _status(run: Path, uri: str | None, down: set[str]) -> int:
    try:
        return 0 if _sync_run(run, uri, down) else 1
    except (UserError, OSError) as error:
        print(f"error: {run}: {error}", file=sys.stderr)
        return 2


def _sync_run(run: Path, uri: str | None, down: set[str]) -> bool:
    recipe = _tracking_of(run)
    address = uri_for(uri or (None if recipe.uri == "none" else recipe.uri), run.resolve().parent)
    delivery = Delivery(run, address, recipe.experiment, run.resolve().name, print)
    size = delivery.waiting()
    if not size:
        print(f"{run}: nothing new")
        return True
    if address in down:
        print(f"{run}: not delivered either")
        return False
    try:
        delivery.deliver()
    except Exception as error:
        print(f"{run}: not delivered: MLflow at {delivery.address}: {mlflow_store.reason(error)}")
        # An address that does not answer is not waited for once more for each further run.
        if mlflow_store.is_outage(error) and not isinstance(error, mlflow_store.Outage):
            down.add(address)
        return False
    finally:
        delivery.close()
    if delivery.aside:
        print(f"{run}: delivered to {delivery.address}, but not {len(delivery.aside)} of its artifacts")
        return False
    print(f"{run}: {size} bytes of its journal delivered to {delivery.address}")
    return True


def _tracking_of(run: Path) -> Tracking:
    try:
        recipe = yaml.safe_load((run / "recipe.yaml").read_text())
        return Tracking.model_validate(recipe.get("tracking", {}))
    except FileNotFoundError:
        return Tracking()
    except (yaml.YAMLError, AttributeError, ValueError, RecursionError) as error:
        if NO_SECRETS in str(error):
            raise UserError(f"recipe.yaml: tracking.uri: {NO_SECRETS}") from None
        raise UserError("recipe.yaml is no recipe; put the file back, or remove it") from error


def main(arguments: list[str] | None = None) -> int:
    """The command: 0 where everything is delivered, 1 where something is left, 2 for a user's mistake.

    A mistake in one run of several (a broken recipe.yaml) does not keep the others from being delivered.
    """
    parser = argparse.ArgumentParser(prog="python -m trainer.runtime.tracking")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("sync", help="deliver to MLflow what runs without a network have left")
    command.add_argument("folder", type=Path, help="the folder of outputs, or one run in it")
    command.add_argument("--uri", help="MLflow's address (default: the recipe's, or outputs/mlflow.db)")
    options = parser.parse_args(arguments)
    try:
        return sync(options.folder, options.uri)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
