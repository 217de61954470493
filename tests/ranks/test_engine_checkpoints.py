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


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, digits, forker):
    """On 2 ranks every engine saves; on 1, 2 and 4 each takes a step from what it is to read."""
    folder = tmp_path_factory.mktemp("pairs")
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
                    f"{what} {source}" for what, source, to in READS if (what, to) == (objective, reader)
                ],
                "at": [2],
            }
            for objective in OBJECTIVES
            for reader, engine in zip(ENGINES, engines(world), strict=True)
        ]
        results[world] = launch(folder, world, jobs, file="fsdp2")
    return folder, results


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(("objective", "source", "engine"), READS)
def test_a_checkpoint_of_any_engine_is_read_by_any_other(pairs, objective, source, engine, world):
    folder, results = pairs
    engine = engines(world)[ENGINES.index(engine)]
    taken, name = results[world][f"{objective} to {engine}"], f"{objective} {source}"
    assert not [what for rank in taken["restored"] for what in rank if what.startswith(f"{name} ")]
    written = results["written"][name]["losses"][2]
    assert taken["one step"][f"{name} 2"] == pytest.approx(written, abs=1e-6, rel=1e-6)
    files = [f"gradient {objective} to {to} {ranks} {name} 2" for to, ranks in ((source, 2), (engine, world))]
    assert distance(*(load_file(folder / f"{file}.safetensors")["gradient"] for file in files)) < 1e-5
