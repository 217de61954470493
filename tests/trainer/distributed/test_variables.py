"""What others left in the environment: ignored, or one line that names the variable and the way out."""

import pytest

from data_pipelines.common.errors import UserError
from tests.helpers.command_lines import MAIN, mistake, process, tiny
from trainer.distributed import variables

RENDEZVOUS = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def empty(monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", *variables.RENDEZVOUS, *variables.OF_MPI):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("value", "threads"), [("2", 2), ("2,1", 2), (" 3 , 1", 3), ("16", 16)])
def test_threads_are_those_of_the_outermost_loops(value, threads):
    assert variables.threads_of(value) == threads


@pytest.mark.parametrize("value", ["0", "0,2", "-1", "two", "1.5", ",", "²", "2 1"])
def test_threads_that_are_no_number(value):
    with pytest.raises(UserError, match=r"^OMP_NUM_THREADS=.*: expected a whole number from 1"):
        variables.threads_of(value)


def test_ranks_of_a_launcher(monkeypatch):
    assert variables.world_size() == 1
    for name, value in RENDEZVOUS.items():
        monkeypatch.setenv(name, value)
    for world in ("1", "2"):
        monkeypatch.setenv("WORLD_SIZE", world)
        assert variables.world_size() == int(world)


@pytest.mark.parametrize("name", RENDEZVOUS)
def test_a_number_of_ranks_without_a_launcher(monkeypatch, name):
    for other, value in (RENDEZVOUS | {"WORLD_SIZE": "2"}).items():
        monkeypatch.setenv(other, value)
    monkeypatch.delenv(name)
    with pytest.raises(UserError, match=rf"WORLD_SIZE=2 stands .* without {name}, .* unset WORLD_SIZE"):
        variables.world_size()


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK"])
@pytest.mark.parametrize("value", ["two", "-1", "1.0", "0x2"])
def test_a_number_that_is_none(monkeypatch, name, value):
    for other, number in (RENDEZVOUS | {"WORLD_SIZE": "2", name: value}).items():
        monkeypatch.setenv(other, number)
    with pytest.raises(UserError, match=rf"^{name}={value} in the environment: expected a whole number"):
        variables.world_size()


def test_a_rank_beyond_the_ranks(monkeypatch):
    for name, value in (RENDEZVOUS | {"WORLD_SIZE": "2", "RANK": "2"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="RANK=2 in the environment is not below WORLD_SIZE=2"):
        variables.world_size()


def test_a_rank_alone_is_forgotten(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "3")
    variables.forget_ranks_of_others()
    assert variables.world_size() == variables.local_world_size() == 1


def test_mpis_numbers_are_forgotten(monkeypatch):
    for name in variables.OF_MPI:
        monkeypatch.setenv(name, "2")
    assert variables.forget_mpi() == [f"{name}=2" for name in variables.OF_MPI]
    assert variables.forget_mpi() == []


@pytest.mark.parametrize(
    ("left", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 stands in the environment without RANK"),
        ({"OMP_NUM_THREADS": "0"}, "OMP_NUM_THREADS=0: expected a whole number from 1"),
    ],
)
def test_one_line_from_the_command(tmp_path, digits, left, message):
    done = process("python", MAIN, *tiny(tmp_path / "outputs", digits.root), **left)
    assert message in mistake(done)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "left",
    [
        {"PMI_SIZE": "2", "PMI_RANK": "1"},
        {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"},
        {"RANK": "1", "LOCAL_RANK": "1"},
        {"OMP_NUM_THREADS": "2,1"},
    ],
    ids=lambda left: next(iter(left)),
)
def test_a_run_beside_what_others_left(tmp_path, digits, left):
    done = process("python", MAIN, *tiny(tmp_path, digits.root), **left)
    assert done.status == 0, done
    assert ("is ignored" in done.out) == any(name in variables.OF_MPI for name in left)
