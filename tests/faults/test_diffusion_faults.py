"""Diffusion runs that are killed anywhere, and go on: with the bits of one that was not, or on other ranks.

The networks drop numbers at random, pages are drawn in mid-run, and the average moves at every step.
"""

import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.faults.tiny_runs import CLOCKS, assert_same_bits, complain, figures, resumed
from tests.helpers.latent_runs import BATCH, OF_IMAGES, diffuse, encoder_run
from trainer.checkpoints import load as load_module
from trainer.checkpoints.format import folder_name
from trainer.checkpoints.load import load

pytestmark = pytest.mark.slow

PATIENCE = 120.0  # seconds for a run of a second or two, on a machine that does other things as well
KILLED = -signal.SIGKILL
KILLS = [  # what is drawn, what the process kills itself at; checkpoints lie behind every second step
    pytest.param("latents", {"images": 5 * BATCH}, id="latents in mid-run"),
    pytest.param("latents", {"phase": "part half written", "time": 2}, id="latents in a save"),
    pytest.param("images", {"images": 5 * BATCH}, id="images in mid-run"),
]


class Runs:
    """Starts of diffusion runs, and the one of each kind that nothing disturbed."""

    def __init__(self, forker, folder: Path, data: Path):
        self.forker, self.folder, self.count = forker, folder, 0
        self.kinds = {
            "images": [*OF_IMAGES, f"data.root={data}"],
            "latents": [f"from={encoder_run(folder / 'encoder', data)}"],
        }
        self.undisturbed: dict[tuple, Path] = {}

    def new(self) -> Path:
        self.count += 1
        return self.folder / f"run-{self.count}"

    def start(self, run: Path, kind: str, world: int = 1, *more: str, engine: str = "ddp", **hooks):
        """Starts the run in a folder; the exit statuses of its ranks."""
        self.count += 1
        words, logs = diffuse(run, *self.kinds[kind], *more), self.folder / f"logs-{self.count}"
        ranks = self.forker.start(logs, world, words, engine, **hooks)
        return ranks.wait(PATIENCE), ranks.text()

    def finish(self, run: Path, kind: str, world: int = 1, *more: str, engine: str = "ddp") -> None:
        statuses, text = self.start(run, kind, world, *more, engine=engine)
        assert statuses == [0] * world, text

    def whole(self, kind: str, *more: str) -> Path:
        """The folder of an undisturbed run on one rank, made once."""
        if (kind, *more) not in self.undisturbed:
            run = self.undisturbed[(kind, *more)] = self.new()
            self.finish(run, kind, 1, *more)
        return self.undisturbed[(kind, *more)]


@pytest.fixture(scope="module")
def runs(forker, digits, tmp_path_factory) -> Runs:
    return Runs(forker, tmp_path_factory.mktemp("diffusion"), digits.root)


def state(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of a finished run's last checkpoint."""
    assert (run / "done").exists()
    return load(load_module.newest(run / "checkpoints", complain))


def journal(run: Path) -> dict:
    """All figures but the clocks'; none may be there twice."""
    return {key: value for key, value in figures(run, "metric").items() if key[0] not in CLOCKS}


@pytest.mark.parametrize(("kind", "where"), KILLS)
def test_killed_and_continued_bit_for_bit(runs, kind, where):
    undisturbed, run = runs.whole(kind), runs.new()
    statuses, text = runs.start(run, kind, die={"rank": 0} | where)
    assert statuses == [KILLED], text
    runs.finish(run, kind)
    assert len(resumed(run)) == 1
    assert_same_bits(state(undisturbed), state(run))
    assert journal(run) == journal(undisturbed)
    pages = sorted(path.name for path in (undisturbed / "figures").glob("samples*.png"))
    assert len(pages) == 3  # behind steps 4 and 6, and at the end
    for page in pages:
        assert (run / "figures" / page).read_bytes() == (undisturbed / "figures" / page).read_bytes()


def test_two_ranks_then_one_then_two_under_another_engine(runs):
    kind, wide = "latents", "precision=float64"
    undisturbed, run = runs.whole(kind, wide), runs.new()
    for world, engine, until in ((2, "ddp", 3), (1, "ddp", 5)):
        saved = run / "checkpoints" / folder_name((until - 1) * BATCH)
        die = {"rank": world - 1, "images": until * BATCH, "behind": str(saved)}
        statuses, text = runs.start(run, kind, world, wide, engine=engine, die=die)
        assert KILLED in statuses, text
    runs.finish(run, kind, 2, wide, engine="fsdp2")
    assert resumed(run) == [2 * BATCH, 4 * BATCH]
    expected, ended = state(undisturbed), state(run)
    assert expected.keys() == ended.keys()
    for name, tensor in expected.items():
        assert torch.allclose(ended[name], tensor, rtol=0, atol=1e-8), name
    one, other = journal(undisturbed), journal(run)
    assert one.keys() == other.keys()
    assert list(other.values()) == pytest.approx([one[key] for key in other], rel=1e-9)


def test_samples_are_equal_to_the_bit_on_one_and_two_ranks(runs):
    run, arrays = runs.whole("latents"), []
    for world in (1, 2):
        runs.count += 1
        to = runs.folder / f"samples-{world}"
        words = ["recipe=sample", f"from={run}", "samples=30", "draw.batch=8", "draw.steps=3", f"to={to}"]
        ranks = runs.forker.start(runs.folder / f"logs-{runs.count}", world, words)
        assert ranks.wait(PATIENCE) == [0] * world, ranks.text()
        arrays.append(np.load(to / "samples.npy"))
    assert arrays[0].shape == (30, 3, 8, 8)
    assert np.array_equal(*arrays)
    assert len(np.unique(arrays[0].reshape(30, -1), axis=0)) > 20
