"""The evaluators of pixel diffusion on 1 and 3 gloo processes: all bits equal, and mistakes on every rank."""

import pytest

from tests.ranks.jobs import fork

WORLDS = (1, 3)


@pytest.mark.slow
def test_features_and_inversion_are_equal_on_any_ranks(tmp_path, digits, forker):
    jobs = [{"data": str(digits.root)}]
    results = {world: fork(forker, tmp_path, world, jobs, "worker_pixel_diffusion.py") for world in WORLDS}
    figures, refused = results[1][0]
    assert {"probe/linear/denoiser_features", "probe/linear/inverted_noise"} < set(figures)
    assert "generation/inversion/sse" in figures
    assert len(refused) == 2
    assert "not finite" in refused[0]
    assert "'up.7.0'" in refused[1]
    for world in WORLDS:
        assert results[world] == [[figures, refused]] * world
        assert (tmp_path / f"run-{world}/figures/denoiser_features.png").is_file()
