"""Denoisers of latents and of images: equal on any ranks and under any engine, the average of weights too.

The networks drop numbers at random, and the average moves at every step.
"""

import json
import shutil

import pytest
import torch

from tests.helpers.latent_runs import BATCH, OF_IMAGES, diffuse, encoder_run
from tests.ranks.jobs import fork
from tests.ranks.test_engines import ENGINES, EXACT
from trainer.checkpoints.format import folder_name, read_manifest
from trainer.checkpoints.load import Checkpoint, load
from trainer.recipe import loading
from trainer.tasks.latent_source import open_source

pytestmark = pytest.mark.slow

STEPS, AT = 4, 2  # AT: steps behind which other ranks and engines go on
CASES = [  # what is drawn, ranks, an engine that computes in float64
    *(("latents", 2, "ddp"), ("latents", 4, "ddp"), ("latents", 2, "fsdp2")),
    *(("images", 2, "fsdp2"), ("images", 4, "ddp")),
]
RESUMED = ("zero3",)  # whose parts of weights and averages are padded; others: test_engines.py
TRAVELS = [  # an engine, its ranks; the engine and the ranks that go on from its checkpoint
    *(("ddp", 4, "zero2", 2), ("ddp", 4, "fsdp2", 2), ("fsdp2", 4, "zero1", 2), ("fsdp2", 4, "zero3", 2)),
    *((engine, 2, "single process", 1) for engine in ENGINES),
]
SMALL = "objective.map={width: 8, multipliers: [1], attention: [4], blocks: 1, dropout: 0.2}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, digits, forker):
    """The folder of the jobs and their results by number of ranks; four ranks encode the latents for all."""
    folder = tmp_path_factory.mktemp("diffusion")
    source = encoder_run(folder / "encoder", digits.root)
    samples = {"latents": [f"from={source}"], "images": [*OF_IMAGES, f"data.root={digits.root}"]}
    wide = {
        name: diffuse(folder / name, *words, SMALL, "precision=float64") for name, words in samples.items()
    }
    # Rounding grows with the length of the steps.
    narrow = diffuse(folder / "float32", *samples["latents"], SMALL, "optimizer.lr=1e-3")
    jobs: dict[int, list[dict]] = {4: [], 2: [], 1: []}

    def add(world: int, engine: str, name: str, recipe: list[str], do: str = "go_on", **more: object) -> None:
        job = {"name": name, "recipe": recipe, "do": [do], "steps": STEPS} | more
        jobs[world].append(job | ({"engine": engine} if world > 1 else {}))

    for name, recipe in wide.items():
        add(1, "", name, recipe)
    for name, world, engine in CASES:
        add(world, engine, f"{name} {engine}", wide[name])
    for world, engine in [*((4, engine) for engine in EXACT), *((2, engine) for engine in ENGINES)]:
        add(world, engine, f"{engine} of {world}", narrow, keep=AT)
    for engine in RESUMED:
        add(2, engine, f"resume {engine}", narrow, "resume", steps=2)
    for before, ranks, engine, world in TRAVELS:
        add(
            world,
            engine,
            f"{before} of {ranks} to {engine}",
            narrow,
            **{"from": f"{before} of {ranks}", "at": AT},
        )
    return folder, {world: fork(forker, folder, world, jobs[world], "worker_diffusion.py") for world in jobs}


def ended(folder, name: str, world: int) -> dict[str, torch.Tensor]:
    """The state in which a job has ended."""
    path = folder / f"{name} on {world}" / folder_name(STEPS * BATCH)
    manifest = read_manifest(path)
    return load(Checkpoint(path, manifest["images"], manifest))


def test_latents_are_equal_to_the_bit_on_any_ranks(runs):
    """Ranks share batches: what one process encodes again is what four have encoded."""
    folder, _ = runs
    (record,) = (folder / "encoder").glob("latents/*/latents.json")
    before = json.loads(record.read_text())["files"]
    shutil.rmtree(record.parent)
    recipe = loading.load(diffuse(folder / "again", f"from={folder / 'encoder'}")).recipe
    open_source(recipe, False, None).latents(torch.device("cpu"))
    assert json.loads(record.read_text())["files"] == before


def averages(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.double() for name, tensor in state.items() if ".average." in f".{name[6:]}"}


def of_network(name: str) -> str:
    """The name of what a weight's average follows."""
    return name.replace("average.", "network.")


@pytest.mark.parametrize(("samples", "world", "engine"), CASES)
def test_float64_losses_and_states_are_equal_on_any_ranks(runs, samples, world, engine):
    folder, results = runs
    reference, job = results[1][samples], results[world][f"{samples} {engine}"]
    assert len(set(reference["losses"])) == STEPS
    assert job["losses"] == pytest.approx(reference["losses"], abs=1e-9, rel=1e-9)
    expected, state = ended(folder, samples, 1), ended(folder, f"{samples} {engine}", world)
    assert len(averages(expected)) > (60 if samples == "latents" else 40)
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(state[name], tensor, rtol=0, atol=1e-8), name


def test_the_average_follows_at_a_distance(runs):
    """Else nothing of the other tests would be seen of it."""
    folder, _ = runs
    state = ended(folder, "latents", 1)
    apart = [name for name, slow in averages(state).items() if not torch.equal(slow, state[of_network(name)])]
    assert len(apart) == len(averages(state))


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_every_engine_takes_the_same_steps_and_moves_the_average(runs, engine):
    folder, results = runs
    expected, job = (results[2][f"{name} of 2"] for name in ("ddp", engine))
    assert job["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    assert_near(ended(folder, "ddp of 2", 2), ended(folder, f"{engine} of 2", 2))


@pytest.mark.parametrize("engine", RESUMED)
def test_every_engine_resumes_bit_for_bit(runs, engine):
    _, results = runs
    job = results[2][f"resume {engine}"]
    assert job["tensors"] > 50
    assert job["different"] == [[], []]


@pytest.mark.parametrize(("before", "ranks", "engine", "world"), TRAVELS)
def test_other_ranks_under_another_engine_go_on(runs, before, ranks, engine, world):
    folder, results = runs
    name = f"{before} of {ranks}"
    job = results[world][f"{name} to {engine}"]
    assert job["engine"] == engine
    assert job["losses"] == pytest.approx(results[ranks][name]["losses"][AT:], rel=1e-5)
    assert_near(ended(folder, name, ranks), ended(folder, f"{name} to {engine}", world))


def assert_near(expected: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> None:
    """As near as rounding leaves them, whose signs Adam sees first: far less than the average is behind."""
    assert state.keys() == expected.keys()
    slow, expected_slow = averages(state), averages(expected)
    behind = distance(expected_slow, {name: expected[of_network(name)].double() for name in expected_slow})
    assert distance(slow, expected_slow) < 0.15 * behind
    assert distance(state, expected) < 0.15 * behind


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    names = [name for name in one if name.startswith("model/")]
    return sum((one[name].double() - other[name].double()).square().sum().item() for name in names) ** 0.5
