"""A real Slurm for the tests of this folder, its jobs, and their training."""

import subprocess
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.helpers.slurm.daemons import CLUSTER, Job, Slurm, why_unavailable
from tests.helpers.slurm.small_runs import arguments

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    if why := why_unavailable():
        pytest.skip(why)
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    process = subprocess.Popen([CLUSTER, "run"], env=cluster.env)  # ends with this process, however that ends
    try:
        cluster(cluster=("wait",))
        yield cluster
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def training(tmp_path):
    """Arguments of a small training that leaves everything in the test's folder."""
    return arguments(tmp_path)


@pytest.fixture
def submit(slurm, tmp_path):
    """Submits a job; whatever is left of it when the test ends is cancelled."""
    jobs = []

    def submit(*words: str, script: str = "dim_local.sh", directory: Path = ROOT) -> Job:
        jobs.append(Job(slurm, tmp_path, script, *words, directory=directory))
        return jobs[-1]

    yield submit
    for job in jobs:
        if job.field("JobState") in ("PENDING", "RUNNING"):
            slurm("scancel", "--full", job.id)
