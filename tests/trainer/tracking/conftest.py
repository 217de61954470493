"""An MLflow store for every test of tracking, made once: MLflow takes seconds for its tables."""

import shutil

import pytest

from trainer.tracking import mlflow_store


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """MLflow's SQLite file without a run."""
    mlflow_store.configure()
    folder = tmp_path_factory.mktemp("store")
    mlflow_store.create_sqlite(folder / "mlflow.db", folder / "mlartifacts")
    assert [path.name for path in sorted(folder.iterdir())] == ["mlflow.db", "mlflow.db.lock"]
    return folder / "mlflow.db"


@pytest.fixture
def outputs(tmp_path, empty_store):
    """A folder of outputs with its store."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return tmp_path
