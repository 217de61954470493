"""Kills through the real launcher: of a rank, of everything, and of the launcher itself."""

import signal

import pytest

from tests.helpers.faults import tiny_runs
from tests.helpers.faults.launched import Launched
from tests.helpers.faults.tiny_runs import IMAGES, SAVE_EVERY
from trainer.checkpoints import load as load_module

pytestmark = pytest.mark.slow

RECIPE, WORLD, PATIENCE = "dim_complete", 2, 300.0


@pytest.fixture(scope="module")
def killed(harness):
    """A run killed three times; each time it had saved something new."""
    outputs = harness.new_outputs()
    run, words = outputs / "run", tiny_runs.arguments(RECIPE, outputs, harness.data)

    def start(number: int) -> Launched:
        launched = Launched(harness.folder / f"launched-{number}.log", WORLD, words)
        kept = load_module.kept(run / "checkpoints")
        launched.until(launched.ranks, PATIENCE)
        if number < 4:
            launched.until(lambda: load_module.kept(run / "checkpoints")[-1:] > kept[-1:], PATIENCE)
        return launched

    launched = start(1)
    launched.ranks()[1].send_signal(signal.SIGKILL)
    assert launched.end(PATIENCE) != 0
    start(2).kill_all()
    launched = start(3)
    launched.launcher.kill()
    ended = launched.ranks_end(30)
    stopped, text = (run / "stopped").exists(), launched.log.read_text()
    saved = tiny_runs.newest(run)
    launched = start(4)
    assert launched.end(PATIENCE) == 0, launched.log.read_text()
    return run, saved, ended and stopped, text


def test_ends_as_if_nothing_had_happened(harness, killed):
    """And as what the forked ranks of the other tests make."""
    run, *_ = killed
    tiny_runs.assert_undisturbed(harness.undisturbed_run(RECIPE, WORLD).folder, run)
    resumed = tiny_runs.resumed(run)
    assert len(resumed) == 3
    assert resumed == sorted(set(resumed))


def test_the_ranks_of_a_dead_launcher_save_and_end(killed):
    run, saved, ended, text = killed
    assert ended, text
    assert SAVE_EVERY < saved.images < IMAGES
    assert tiny_runs.resumed(run)[-1] == saved.images
