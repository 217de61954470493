"""A step of each recipe on CUDA tensors that do not exist: what it launches, copies and waits for."""

import os
import shutil

import pytest
import torch

from tests.cuda.budgets import LOOSE, read
from tests.cuda.device import TORCH, steps

pytestmark = pytest.mark.slow
BUDGETS = read()
LOOK = 12  # launches in which state is looked at, however many tensors it has


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    if torch.version.cuda is not None:
        pytest.skip("torch is a build for CUDA; device.cpp stands in for what the build for CPUs lacks")
    for missing, reason in (
        (not torch.__version__.startswith(TORCH), f"torch {torch.__version__}: device.cpp is of {TORCH}x"),
        (shutil.which("g++") is None, "no g++"),
    ):
        if missing:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return steps(["misuse", "batch", "queue", "probe", *BUDGETS], tmp_path_factory.mktemp("device"))


def test_what_is_not_allowed_is_seen(measured):
    place, misuse = "outside of the packages", measured["misuse"]
    assert misuse["faults"] == {
        f"the host waits: a copy from the device at {place}": 1,
        f"the host waits: _local_scalar_dense at {place}": 1,
        f"the host waits: index at {place}": 1,
        f"not channels_last: convolution at {place}": 1,
    }
    assert misuse["copies"] == {f"{place}: pageable": 1, f"{place}: pinned": 1}
    assert misuse["nondeterministic"] == {"cumsum": 1}


def test_a_batch_is_made_without_a_copy_that_waits_and_keeps_its_labels_on_the_host(measured):
    """Two tables and the slots of a shuffled view go to the device."""
    assert measured["batch"]["copies"] == {"data_pipelines/pinned.py on_device: pinned": 3}
    assert measured["batch"]["faults"] == {}
    assert measured["batch"]["labels"] == "cpu"


def test_a_queue_in_bf16_is_converted_in_few_pieces(measured):
    """65,536 keys against 256 queries: on a CPU four, or eight."""
    assert measured["queue"]["pieces"] == {"fused": 1, "chunked": 1}


def test_the_dropout_of_a_probe_comes_from_the_host_and_nothing_waits_for_it(measured):
    """In two steps: the order of the epoch, and two masks."""
    assert measured["probe"]["copies"] == {"data_pipelines/pinned.py on_device: pinned": 3}
    assert measured["probe"]["faults"] == {}


@pytest.mark.parametrize("name", BUDGETS)
def test_a_step_mixes_no_devices_never_waits_and_keeps_channels_last(measured, name):
    assert measured[name]["faults"] == {}


@pytest.mark.parametrize("name", BUDGETS)
def test_a_step_copies_from_the_host_what_is_listed(measured, name):
    copies = measured[name]["copies"]
    assert copies == BUDGETS[name]["copies"]
    assert all(copy.endswith(": pinned") for copy in copies)  # of any other the host waits for the device


@pytest.mark.parametrize("when", ["log", "save"])
@pytest.mark.parametrize("name", BUDGETS)
def test_state_is_looked_at_in_few_launches_and_nothing_waits(measured, name, when):
    look = measured[name]["looks"][when]
    assert look["launches"] <= LOOK
    assert look["copies"] == look["faults"] == {}


@pytest.mark.parametrize("name", BUDGETS)
def test_a_save_copies_into_the_memory_of_the_last_and_nothing_waits(measured, name):
    """One copy a tensor, as it lies there: keys are not transposed first, nor weights in channels_last."""
    saves = measured[name]["saves"]
    assert saves["copies"] == saves["tensors"] > 0
    assert saves["others"] == saves["faults"] == {}
    assert saves["kept"] is True


@pytest.mark.parametrize("what", ["launches", "megabytes"])
@pytest.mark.parametrize("name", BUDGETS)
def test_a_step_stays_within_its_budget_which_is_tight(measured, name, what):
    used, most = measured[name][what], BUDGETS[name][what]
    again = f"`python -m tests.cuda.budgets {name}` measures again"
    assert used <= most, f"{measured[name]['operations']}; {again}"
    assert most <= LOOSE * used, f"a step has become better than its budget: {again}"


@pytest.mark.parametrize("name", BUDGETS)
def test_no_operation_adds_in_any_order(measured, name):
    """Its kernel for CUDA would: a run would not repeat to the bit."""
    assert measured[name]["nondeterministic"] == {}
