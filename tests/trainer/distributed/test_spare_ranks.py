"""The first command on a machine of four or eight GPUs: it trains, on as many as its batch divides over."""

import json
import os
import sys
from functools import partial

import pytest

from data_pipelines.common.errors import UserError
from tests.helpers.command_lines import MAIN, process, tiny
from trainer.distributed import launcher, spare_ranks
from trainer.recipe.loading import RECIPES, load
from trainer.recipe.recipes import AnyTraining
from trainer.training.groups import check_batch_division

# `accelerate launch` as on a machine with four GPUs; the ranks that it starts find none, and use gloo.
LAUNCHER = """
import torch
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 4
from accelerate.commands.accelerate_cli import main
main()
"""
NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


@pytest.fixture
def four_gpus(tmp_path):
    """Runs `accelerate launch` on a machine that seems to have four GPUs."""
    file = tmp_path / "launcher" / "accelerate"
    file.parent.mkdir()
    file.write_text(LAUNCHER)
    return lambda *words: process(sys.executable, file, "launch", *words, HF_HOME=str(tmp_path))


@pytest.fixture
def world(monkeypatch):
    """Makes the environment of one rank."""

    def make(rank: int, ranks: int, local: int | None = None, asked: bool = False):
        values = (rank, rank, ranks, local or ranks)
        for name, value in zip(NUMBERS, values, strict=True):
            monkeypatch.setenv(name, str(value))
        monkeypatch.setenv("MASTER_ADDR", "localhost")
        monkeypatch.setenv("MASTER_PORT", "1")
        monkeypatch.setattr(launcher, "ranks_were_asked_for", lambda: asked)

    return make


def leaves(*words: str) -> bool:
    return spare_ranks.leaves(partial(check_batch_division, load([*words]).recipe))


def numbers() -> list[str | None]:
    return [os.environ.get(name) for name in NUMBERS]


@pytest.mark.parametrize("ranks", [3, 4, 8])
def test_of_the_quickstart_two_ranks_go_on(world, capsys, ranks):
    world(0, ranks)
    assert not leaves("recipe=quickstart")
    assert numbers() == ["0", "0", "2", "2"]
    line = capsys.readouterr().out
    assert line.startswith(f"note: of {ranks} ranks, one a GPU, 2 train and the others leave: batch=128 does")
    assert "what works: --num_processes 1, 2 or batch=" in line
    world(1, ranks)
    assert not leaves("recipe=quickstart")
    assert numbers() == ["1", "1", "2", "2"]
    for rank in range(2, ranks):
        world(rank, ranks)
        assert leaves("recipe=quickstart")
    assert capsys.readouterr().out == ""  # one rank says it


def test_where_one_rank_goes_on_it_is_a_run_of_one_process(world, capsys):
    world(0, 4)
    assert not leaves("recipe=quickstart", "batch=64")
    assert numbers() == [None, None, "1", "1"]
    assert "of 4 ranks, one a GPU, 1 trains and the others leave" in capsys.readouterr().out
    world(1, 4)
    assert leaves("recipe=quickstart", "batch=64")


@pytest.mark.parametrize(
    "options",
    [{"ranks": 2}, {"ranks": 1}, {"ranks": 8, "asked": True}, {"ranks": 8, "local": 4}],
    ids=["a number that divides", "one process", "a number that was asked for", "several machines"],
)
def test_otherwise_all_ranks_stay(world, capsys, options):
    world(0, **options)
    before = numbers()
    assert not leaves("recipe=quickstart")
    assert numbers() == before
    assert capsys.readouterr().out == ""


def test_a_batch_that_not_even_one_rank_can_take_is_refused_as_ever(world):
    world(3, 4)
    assert not leaves("recipe=quickstart", "batch=100")
    assert numbers() == ["3", "3", "4", "4"]


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_recipe_that_trains_trains_on_eight_gpus(world, name):
    try:
        recipe = load([f"recipe={name}"]).recipe
    except UserError:  # the run that it reads is given on the command line
        recipe = load([f"recipe={name}", "from=run"]).recipe
    world(0, 8)
    if isinstance(recipe, AnyTraining):
        check = partial(check_batch_division, recipe)
        assert not spare_ranks.leaves(check)
        check(int(os.environ["WORLD_SIZE"]))


def test_who_asked(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    ddp = str(RECIPES / "launch/ddp.yaml")
    for words, asked in (
        (["torchrun", "--nproc_per_node", "4"], True),
        (["accelerate", "launch"], False),
        (["accelerate", "launch", "--multi_gpu"], False),
        (["accelerate", "launch", "--num_processes", "4"], True),
        (["accelerate", "launch", "--config_file", ddp], True),
    ):

        class Process:
            def cmdline(self, words=words):
                return ["python", *words, str(MAIN), "recipe=quickstart"]

        monkeypatch.setattr(launcher, "started_by", Process)
        assert launcher.ranks_were_asked_for() == asked


@pytest.mark.slow
def test_the_first_command_trains_on_four_gpus(four_gpus, tmp_path, digits):
    done = four_gpus(MAIN, *tiny(tmp_path / "out", digits.root))
    assert done.status == 0, done.err
    assert done.out.count("note: of 4 ranks, one a GPU, 2 train and the others leave") == 1
    run = tmp_path / "out/quickstart"
    assert json.loads((run / "world.json").read_text())["processes"] == 2
    assert (run / "done").exists()
    assert (run / "export/encoder.safetensors").exists()
