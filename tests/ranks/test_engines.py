"""Every engine on real ranks: equal results on any number of ranks, and resuming to the bit.

Processes are started once for each number of ranks (by a launch file that makes a group of processes of one,
too) and run the engines in turn; that each launch file starts its own is seen at the end.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.ranks.jobs import fork, launch
from tests.ranks.test_dim_on_ranks import COMPLETE
from tests.ranks.test_ranks import STEPS, WORLDS, distance, recipe
from trainer.checkpoints.format import folder_name
from trainer.checkpoints.load import load
from trainer.distributed.engine_kind import EngineKind

ENGINES = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
LEFT_FROM = (1, 19)  # steps from whose state each engine takes one: a queue of mostly first keys, a full one
FREE = 10  # steps in float32 of each engine, whose samples are compared
EXACT = ("ddp", "fsdp2")  # ZeRO keeps a master copy in float32, also of float64
VIEW = "{crop: {scale: {low: 0.5, high: 1.0}}, flip: 0.5, grayscale: 0.5}"
# A momentum encoder that follows fast, so that one left behind by an engine is seen in the losses.
CONTRAST = (
    "kind: moco, momentum: 0.5, symmetric: true, shuffle: 2, queue: {keys: 512}, head: {units: 16, width: 8}"
)
BLOCKS = "groups.norm=8"  # with two groups a block each of four ranks holds whole ones, as symmetry asks
MOCO = [BLOCKS, f"data.views=[{VIEW}, {VIEW}]", f"objective={{{CONTRAST}}}", "optimizer.clip=0.5"]
HYBRID = [
    BLOCKS,
    f"data.views=[{VIEW}, {VIEW}]",
    f"objective={{kind: hybrid, omega: 0.1, contrast: {{{CONTRAST}}}}}",
    "encoder={kind: nvae, patch: 2, width: 8, halvings: 0, tower: 1, decoder_tower: 1, expansion: 2, "
    "latent: 4, layout: pooled}",
    "optimizer={kind: adamw, lr: 1e-3, weight_decay: 0.1, decay_norms: false, clip: 0.5}",  # two groups
]
OBJECTIVES = {"complete": COMPLETE, "moco": MOCO, "hybrid": HYBRID}  # overrides of `recipe`
TRAVELLING = [  # as the published recipes: one direction, blocks that span ranks; and the other layout of z
    "groups.norm=16",
    f"data.views=[{VIEW}, {VIEW}, {{}}]",
    "objective={kind: hybrid, omega: 0.1, reconstruct: clean, detach_y: true, contrast: "
    f"{{{CONTRAST.replace('symmetric: true, shuffle: 2', 'shuffle: 4')}}}}}",
    HYBRID[3].replace("pooled", "map"),
    HYBRID[4],
]
UNREAD = [  # no loss reads w; a step of so large a rate shows that its layer decays nevertheless
    *MOCO[:3],
    HYBRID[3],
    "optimizer={kind: adamw, lr: 0.1, weight_decay: 0.5}",
    "schedule={kind: constant}",
]


def options(objective: str, data: Path, precision: str = "float32") -> list[str]:
    """A recipe; where a whole section is given, nothing of the base's section stays."""
    chosen = (OBJECTIVES | {"unread": UNREAD, "travelling": TRAVELLING})[objective]
    whole = tuple(word.split("=")[0] + "." for word in chosen if "={" in word)
    return [word for word in recipe(data, precision) if not word.startswith(whole)] + chosen


def engines(world: int) -> list[str]:
    return ["single process" if engine == "ddp" and world == 1 else engine for engine in ENGINES]


# ---- on two ranks, a few steps -------------------------------------------------------------------


@pytest.fixture(scope="module")
def short(tmp_path_factory, digits, forker):
    """The folder, and on 2 ranks: each engine resumed, started from the checkpoint of the one before, with a
    layer that no loss reads, and made another engine."""
    folder = tmp_path_factory.mktemp("short")
    words = options("hybrid", digits.root)
    jobs = [
        {"name": engine, "engine": engine, "recipe": words, "do": ["free"], "steps": 3, "keep": [2]}
        for engine in ENGINES
    ]
    jobs += [
        {
            "name": f"after {engine}",
            "engine": engine,
            "recipe": words,
            "do": ["one_step"],
            "from": [ENGINES[number - 1]],
            "at": [2],
        }
        for number, engine in enumerate(ENGINES)
    ]
    jobs += [
        {"name": f"resume {engine}", "engine": engine, "recipe": words, "do": ["resume"], "steps": 2}
        for engine in ENGINES[1:]
    ]
    unread = {"recipe": options("unread", digits.root), "do": ["free"], "steps": 2, "keep": [0, 1]}
    jobs += [unread | {"name": f"unread {engine}", "engine": engine} for engine in ENGINES]
    jobs += [
        {"name": f"wrong {engine}", "engine": engine, "recipe": words, "do": ["wrong"]} for engine in ENGINES
    ]
    return folder, fork(forker, folder, 2, jobs)


def test_all_engines_take_the_same_steps(short):
    _, short = short
    for engine in ENGINES[1:]:
        assert short[engine]["engine"] == engine
        assert short[engine]["ids"] == short["ddp"]["ids"]
        assert short[engine]["losses"] == pytest.approx(short["ddp"]["losses"], abs=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_goes_on_from_the_checkpoint_of_another(short, engine):
    _, short = short
    before, results = ENGINES[ENGINES.index(engine) - 1], short[f"after {engine}"]
    assert results["restored"] == [[], []]
    assert results["one step"][f"{before} 2"] == pytest.approx(short[before]["losses"][2], abs=1e-6, rel=1e-6)


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_every_engine_resumes_bit_for_bit(short, engine):
    _, short = short
    assert short[f"resume {engine}"]["tensors"] > 50
    assert short[f"resume {engine}"]["different"] == [[], []]


@pytest.mark.parametrize("engine", ENGINES)
def test_what_the_loss_does_not_need_decays_under_every_engine(short, engine):
    """ZeRO has gradients of zero there, where torch has none: all must do the same."""
    folder, _ = short
    before, after = (load(folder / f"unread {engine}" / folder_name(images)) for images in (0, 64))
    weight = "encoder.to_map.weight"
    assert before[f"model/{weight}"].abs().max() > 0.01
    assert torch.allclose(after[f"model/{weight}"], 0.95 * before[f"model/{weight}"], atol=1e-6)
    assert not after[f"optimizer/exp_avg/{weight}"].any()


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_that_its_library_made_another_is_refused_on_every_rank(short, engine):
    _, results = short
    messages = results[f"wrong {engine}"]["messages"]
    assert len(messages) == 2
    for line in (line for rank in messages for line in rank):
        assert line.startswith(f"the launch file asks for {engine}, but ")
        assert "constraints.txt" in line
    assert [len(rank) for rank in messages] == [1 + EngineKind(engine).is_zero] * 2


@pytest.fixture(scope="module")
def variants(tmp_path_factory, digits, forker):
    """On 2 ranks, each engine with and without accumulation, with keys that travel, and in bf16."""
    recipes = {
        f"{name} {objective}": [*options(objective, digits.root), *more]
        for objective in ("complete", "hybrid")
        for name, more in (("plain", []), ("accumulated", ["accumulate=2"]))
    }
    recipes["travelling"] = options("travelling", digits.root)
    recipes["bf16"] = options("hybrid", digits.root, "bf16")
    jobs = [
        {"name": f"{name} {engine}", "engine": engine, "recipe": words, "do": ["free"], "steps": 3}
        for name, words in recipes.items()
        for engine in ENGINES
    ]
    return fork(forker, tmp_path_factory.mktemp("variants"), 2, jobs)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["complete", "hybrid"])
@pytest.mark.parametrize("engine", ENGINES)
def test_accumulation_under_every_engine(variants, engine, objective):
    plain, other = (variants[f"{name} {objective} {engine}"] for name in ("plain", "accumulated"))
    assert other["losses"] == pytest.approx(plain["losses"], abs=1e-3)
    assert plain["losses"] == pytest.approx(variants[f"plain {objective} ddp"]["losses"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_keys_travel_under_every_engine(variants, engine):
    results = variants[f"travelling {engine}"]
    assert results["losses"] == pytest.approx(variants["travelling ddp"]["losses"], abs=1e-3)
    for rank in results["ids"]:
        assert all(set(ids[1]) - set(ids[0]) for ids, _ in rank)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_bf16_under_every_engine(variants, engine):
    losses = variants[f"bf16 {engine}"]["losses"]
    assert losses == pytest.approx(variants["bf16 ddp"]["losses"], rel=1e-3)
    assert losses[0] == pytest.approx(variants["plain hybrid ddp"]["losses"][0], rel=0.02)
    assert losses[0] != variants["plain hybrid ddp"]["losses"][0]


# ---- equal results on any number of ranks --------------------------------------------------------


@pytest.fixture(scope="module", params=OBJECTIVES)
def promise(request, tmp_path_factory, digits, forker):
    """An objective under every engine on 1, 2 and 4 ranks: (a) float64, (b) one step, (c) free."""
    folder = tmp_path_factory.mktemp("promise")
    wide, single = (options(request.param, digits.root, p) for p in ("float64", "float32"))
    kept = [{"name": "kept", "recipe": single, "do": ["free"], "steps": STEPS, "keep": LEFT_FROM}]
    results = {0: fork(forker, folder, 1, kept)}
    for world in WORLDS:
        jobs = []
        for engine in engines(world):
            job = {"engine": engine, "recipe": single}
            jobs.append(
                job | {"name": f"one step {engine}", "do": ["one_step"], "from": ["kept"], "at": LEFT_FROM}
            )
            # How fast rounding grows to a difference goes with the step: at 2e-3 it is 0.05 in 20 steps.
            slow = [*single, "optimizer.lr=3e-4"]
            jobs.append(job | {"name": f"float32 {engine}", "recipe": slow, "do": ["free"], "steps": FREE})
            if engine in (*EXACT, "single process"):
                job = {"engine": engine, "recipe": wide}
                jobs.append(job | {"name": f"float64 {engine}", "do": ["free"], "steps": STEPS})
        results[world] = launch(folder, world, jobs, file="fsdp2")
    return folder, results


@pytest.mark.slow
def test_float64_losses_are_equal_on_any_ranks(promise):
    _, results = promise
    reference = results[1]["float64 single process"]["losses"]
    assert len(reference) == STEPS
    # It moves: the comparison is of something. (Not last less first: a queue that fills adds to the loss.)
    assert max(reference) - min(reference) > 0.1
    for world in WORLDS:
        for engine in set(engines(world)) & {*EXACT, "single process"}:
            assert results[world][f"float64 {engine}"]["losses"] == pytest.approx(reference, abs=1e-9, rel=0)


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("engine", ENGINES)
def test_float32_one_step_from_the_same_state(promise, world, engine):
    folder, results = promise
    engine = engines(world)[ENGINES.index(engine)]
    taken = results[world][f"one step {engine}"]
    assert taken["restored"] == [[]] * world
    for step in LEFT_FROM:
        losses = [
            results[1]["one step single process"]["one step"][f"kept {step}"],
            taken["one step"][f"kept {step}"],
        ]
        # Relative above 1: the hybrid's loss is about 20, where float32's own steps are 2e-6.
        assert losses[1] == pytest.approx(losses[0], abs=1e-6, rel=1e-6)
        files = [
            f"gradient one step single process 1 kept {step}",
            f"gradient one step {engine} {world} kept {step}",
        ]
        gradients = [load_file(folder / f"{file}.safetensors")["gradient"] for file in files]
        assert distance(*gradients) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("engine", ENGINES)
def test_float32_free_runs_see_the_same_samples(promise, world, engine):
    _, results = promise
    taken = results[world][f"float32 {engines(world)[ENGINES.index(engine)]}"]
    reference = results[1]["float32 single process"]
    assert taken["losses"] == pytest.approx(reference["losses"], abs=1e-2)
    for step, (ids, positions) in enumerate(reference["ids"][0]):
        ranks = [rank[step] for rank in taken["ids"]]
        for view in range(len(ids)):
            seen = zip(joined(ranks, 1, view), joined(ranks, 0, view), strict=True)
            # key views may be shuffled otherwise on other ranks
            assert sorted(seen) == sorted(zip(positions[view], ids[view], strict=True))


def joined(ranks: list, what: int, view: int) -> list[int]:
    """Ids (0) or positions (1) of a view, of all ranks in a row."""
    return [number for rank in ranks for number in rank[what][view]]


# ---- the launch files ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("file", ENGINES)
def test_a_launch_file_starts_its_own_engine(tmp_path, digits, file):
    jobs = [{"name": "run", "recipe": recipe(digits.root, "float32"), "do": ["free"], "steps": 1}]
    assert launch(tmp_path, 2, jobs, file=file)["run"]["engine"] == file
    assert json.loads((tmp_path / f"jobs-{file}-2.json").read_text()) == jobs
