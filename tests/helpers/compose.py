"""docker/compose.yaml, and its MLflow servers run without Docker on a real PostgreSQL."""

import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path

import yaml

from tests.helpers import ROOT
from tests.helpers.faults.tracked_runs import PATIENCE
from tests.helpers.postgres import Postgres, until
from tests.helpers.tracking_runs import free_port

COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]


def database_address(service: str) -> str:
    (option,) = [word for word in SERVICES[service]["command"] if word.startswith("--backend-store-uri=")]
    return option.partition("=")[2]


class ComposedServer:
    """A service as the compose file says, but for addresses and folders.

    `variables` are those of docker/.env; `database` is the database's name.
    """

    def __init__(self, service: str, postgres: Postgres, folder: Path, database="mlflow", **variables: str):
        self.service, self.postgres, self.folder, self.database = service, postgres, folder, database
        self.variables = {"MLFLOW_DB_PASSWORD": postgres.environment["PGPASSWORD"], **variables}
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None
        settings = SERVICES[service]
        self.command = [self._here(word) for word in settings["command"]]
        self.health = [self._here(word) for word in settings["healthcheck"]["test"][1:]]
        self.environment = {name: self._valued(word) for name, word in settings["environment"].items()}
        if "MLFLOW_AUTH_CONFIG_PATH" in self.environment:
            config = (ROOT / "docker" / "mlflow_auth.ini").read_text()
            (folder / "auth.ini").write_text(self._here(config))
            self.environment["MLFLOW_AUTH_CONFIG_PATH"] = str(folder / "auth.ini")

    def _here(self, text: str) -> str:
        text = text.replace("@postgres/mlflow", f"@127.0.0.1:{self.postgres.port}/{self.database}")
        text = text.replace("/mlartifacts", f"{self.folder}/kept").replace("5000", str(self.port))
        return text.replace("--host=0.0.0.0", "--host=127.0.0.1")

    def _valued(self, text: str) -> str:
        """A value with the variables in it, as Compose puts them there."""
        return re.sub(r"\$\{(\w+):[-?][^}]*\}", lambda one: self.variables.get(one[1], ""), self._here(text))

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def launch(self) -> subprocess.Popen:
        """Starts it, and waits for nothing."""
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                self.command,
                env=os.environ | self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.process

    def start(self) -> str:
        """Starts it and waits until it is healthy; returns its address."""
        until(self.health, PATIENCE, self.launch())
        return self.uri

    def is_healthy(self) -> bool:
        return subprocess.run(self.health, capture_output=True).returncode == 0

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)

    def kill(self) -> None:
        """Ends what a test that failed has left."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
