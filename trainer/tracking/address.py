"""MLflow's address: from a recipe, and in the commands that a user types."""

import re
import shlex
from pathlib import Path
from urllib.parse import urlsplit

from data_pipelines.common.errors import UserError
from trainer.recipe.schema import NO_SECRETS
from trainer.tracking import outage
from trainer.tracking.sqlite_file import sqlite_path, sqlite_uri


def uri_for(recipe_uri: str | None, outputs: Path) -> str | None:
    """MLflow's address for a recipe's `tracking.uri`: None is the SQLite file of `outputs`, "none" is None.

    Raises UserError for an address that is neither http(s) nor a SQLite file, or may hold a secret.
    """
    if recipe_uri == "none":
        return None
    if recipe_uri is None:
        return sqlite_uri(Path(outputs).resolve() / "mlflow.db")
    try:
        parts = urlsplit(recipe_uri)
    except ValueError:  # such as http://[
        parts = urlsplit("")
    if parts.scheme in ("http", "https") and parts.netloc:
        if set("@?#") & set(recipe_uri):
            raise UserError(f"tracking.uri: {NO_SECRETS}")
        return recipe_uri.rstrip("/")
    if parts.scheme == "sqlite" and len(parts.path) > 1 and not parts.netloc:
        if set("?#") & set(recipe_uri):
            shown = re.split("[?#]", recipe_uri)[0]
            raise UserError(
                f"tracking.uri: '{shown}' has a ? or # behind it, which begin options; "
                "in a path write %3F for ? and %23 for #"
            )
        return sqlite_uri(sqlite_path(recipe_uri).resolve())
    shown = re.split("[?#]", recipe_uri.rpartition("@")[2])[0]
    raise UserError(
        f"tracking.uri: '{shown}' is no address of MLflow; expected null "
        "(a SQLite file beside the runs), none, http://HOST:PORT or sqlite:///FILE"
    )


def open_command(uri: str) -> str:
    """The command to type, or the address to open, to look at the runs of `uri`."""
    if uri.startswith("sqlite:"):
        return f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
    return outage.without_secrets(uri)


def sync_command(run_folder: Path, uri: str) -> str:
    """The command that delivers a run's journal later."""
    address = shlex.quote(outage.without_secrets(uri))
    return f"python -m trainer.tracking sync {shlex.quote(str(run_folder))} --uri {address}"
