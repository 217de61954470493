"""Checkpoints that any engine has saved are read by any other, on any number of ranks."""

import pytest
from safetensors.torch import load_file

from tests.ranks.jobs import fork, launch
from tests.ranks.test_engines import ENGINES, OBJECTIVES, engines, options
from tests.ranks.test_ranks import WORLDS, distance

PAIRED = "hybrid"  # of which checkpoints go from every engine to every other
READS = [  # objective, engine that saves, engine that reads: every pair of one, of the others each its own
    (objective, source, engine)
    for objective in OBJECTIVES
    for source in ENGINES
    for engine in ENGINES
    if objective == PAIRED or engine == source
]


def in_turn(objective: str, source: str, engine: str, world: int) -> bool:
    """Whether CI reads a pair on so many ranks; by night each is read on 1, 2 and 4.

    In CI an engine reads its own on 2 ranks, which the others are compared with, and on 1 or 4; those of the
    others on one of the three, so that each engine reads, and is read, on all of them.
    """
    turn = list(OBJECTIVES).index(objective) + ENGINES.index(source) + ENGINES.index(engine)
    if engine == source:
        return world == 2 or world == (1, 4)[turn // 2 % 2]
    return world == WORLDS[turn % 3]


CASES = [
    pytest.param(*read, world, marks=pytest.mark.slow if in_turn(*read, world) else pytest.mark.night)
    for read in READS
    for world in WORLDS
]


@pytest.fixture(scope="module")
def pairs(request, tmp_path_factory, digits, forker):
    """On 2 ranks every engine saves; on 1, 2 and 4 each takes a step from what the selected tests read."""
    folder = tmp_path_factory.mktemp("pairs")
    cases = [item.callspec.params for item in request.session.items if item.module is request.module]
    read = {tuple(case[name] for name in ("objective", "source", "engine", "world")) for case in cases}
    read |= {(objective, source, source, 2) for objective, source, *_ in read}  # what they are compared with
    writing = [
        {
            "name": f"{objective} {engine}",
            "engine": engine,
            "recipe": options(objective, digits.root),
            "do": ["free"],
            "steps": 3,
            "keep": [2],
        }
        for objective in OBJECTIVES
        for engine in ENGINES
    ]
    results = {"written": fork(forker, folder, 2, writing)}
    for world in WORLDS:
        jobs = [
            {
                "name": f"{objective} to {engine}",
                "engine": engine,
                "recipe": options(objective, digits.root),
                "do": ["one_step"],
                "from": [
                    f"{objective} {source}"
                    for source in ENGINES
                    if (objective, source, reader, world) in read
                ],
                "at": [2],
            }
            for objective in OBJECTIVES
            for reader, engine in zip(ENGINES, engines(world), strict=True)
        ]
        results[world] = launch(folder, world, jobs, file="fsdp2")
    return folder, results


@pytest.mark.parametrize(("objective", "source", "engine", "world"), CASES)
def test_a_checkpoint_of_any_engine_is_read_by_any_other(pairs, objective, source, engine, world):
    folder, results = pairs
    reader = engines(world)[ENGINES.index(engine)]
    taken, name = results[world][f"{objective} to {reader}"], f"{objective} {source}"
    assert not [what for rank in taken["restored"] for what in rank if what.startswith(f"{name} ")]
    written = results["written"][name]["losses"][2]
    assert taken["one step"][f"{name} 2"] == pytest.approx(written, abs=1e-6, rel=1e-6)
    files = [f"gradient {objective} to {to} {ranks} {name} 2" for to, ranks in ((source, 2), (reader, world))]
    assert distance(*(load_file(folder / f"{file}.safetensors")["gradient"] for file in files)) < 1e-5
