"""Generated images on 1 and 4 gloo processes: equal on every rank, and on any number of them."""

import pytest

from tests.ranks.jobs import fork

WORLDS = (1, 4)
JOBS = [
    {"name": "pieces", "train": 100, "samples": 90, "batch": 7, "width": 6},  # no multiple of the ranks
    {"name": "few", "train": 40, "samples": 9, "batch": 50, "width": 60},  # one piece, fewer than features
]


@pytest.mark.slow
def test_generated_images_are_measured_alike_on_any_ranks(tmp_path, forker):
    jobs = [job | {"cache": str(tmp_path / "cache-{}")} for job in JOBS]
    results = {}
    for world in WORLDS:
        own = [job | {"cache": job["cache"].format(world)} for job in jobs]
        results[world] = fork(forker, tmp_path, world, own, "worker_generation.py")
    for name in ("pieces", "few"):
        (figures, _), *_ = results[1][name]
        assert len(figures[0]) == 7
        assert figures[0] == figures[1]  # what is kept changes no bit
        for world in WORLDS:
            assert [rank[0] for rank in results[world][name]] == [results[world][name][0][0]] * world
            assert results[world][name][0][0][0] == pytest.approx(figures[0], rel=1e-10)
            assert all("no more images" in refused for _, refused in results[world][name])
    for world in WORLDS:
        assert len(set(results[world]["missing"])) == 1
        assert "no.pt: the extractor's file cannot be read" in results[world]["missing"][0]
