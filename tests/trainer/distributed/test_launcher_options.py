"""What a launcher was asked for, wherever that stands, and what it made of it."""

import sys

import pytest

from tests.helpers.command_lines import MAIN, ROOT, process
from trainer.distributed.launcher import launch_options

FILE = ["accelerate", "launch", "--config_file", f"{ROOT}/recipes/launch/zero2.yaml"]


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    return tmp_path


def test_words_stand_above_the_file():
    assert launch_options([*FILE, str(MAIN)])["num_processes"] == 2
    assert launch_options([*FILE, "--num_processes", "4", str(MAIN)])["num_processes"] == "4"
    assert launch_options([*FILE, "--num-processes=3", str(MAIN)])["num_processes"] == "3"
    assert launch_options([*FILE, "--cpu", str(MAIN)])["distributed_type"] == "DEEPSPEED"
    assert "use_deepspeed" in launch_options(["accelerate", "launch", "--use_deepspeed", str(MAIN)])


def test_without_a_file_there_is_accelerates_own(home):
    assert launch_options(["accelerate", "launch", str(MAIN)]) == {}
    (home / "accelerate").mkdir()
    (home / "accelerate/default_config.yaml").write_text("distributed_type: MULTI_CPU\nnum_processes: 2\n")
    assert launch_options(["accelerate", "launch", str(MAIN)])["num_processes"] == 2
    assert launch_options(["accelerate", "launch", "--num_processes", "1", str(MAIN)])["num_processes"] == "1"


@pytest.mark.parametrize("engine", ["zero2", "fsdp2"])
def test_an_engine_that_the_launcher_leaves_out_is_refused(engine, tmp_path):
    """accelerate turns DeepSpeed and FSDP off where it is told --cpu, and says nothing."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [f"recipes/launch/{engine}.yaml", "--cpu", "--num_processes", "1"]
    done = process(*command, MAIN, "recipe=quickstart", f"outputs={tmp_path}")
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert (
        f"was asked for {'DEEPSPEED' if engine == 'zero2' else 'FSDP'} but starts the ranks without" in line
    )
    assert done.status != 0
    assert not list(tmp_path.glob("quickstart"))
