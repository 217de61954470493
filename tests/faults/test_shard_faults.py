"""Shards that vanish, break or come over a bad network in the midst of a run: it ends as if they had not."""

import os
import re
import shutil
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from data_pipelines.shards.make import make
from tests.helpers.faults.fault_harness import PATIENCE, FaultHarness
from tests.helpers.faults.tiny_runs import (
    EVALUATE_EVERY,
    SAVE_EVERY,
    arguments,
    assert_same_bits,
    assert_undisturbed,
    newest,
    weights,
)
from tests.helpers.ranged_server import serving

pytestmark = pytest.mark.slow

RECIPE = "dim_complete"
WINDOW = "data.window=4"  # of 72 shards of 20 images: every batch opens some that none before it did
HALFWAY = 640  # images; of 2,048


@pytest.fixture(scope="module")
def shards(forker, tmp_path_factory) -> FaultHarness:
    """A harness on the digits in small shards, in a folder `digits`."""
    folder = tmp_path_factory.mktemp("shards")
    made = make("digits", folder / "digits", images_per_shard=20, workers=1, progress=False)
    assert len(made.splits["train"].shards) == 72
    return FaultHarness(forker, folder, made.root)


@pytest.fixture
def copied(shards, tmp_path) -> Path:
    """A copy of the data that a test may damage."""
    return Path(shutil.copytree(shards.data, tmp_path / "digits"))


def wait_until(true, ranks) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert ranks.running(), ranks.text()
        assert time.monotonic() < deadline, ranks.text()
        time.sleep(0.01)


def start_and_damage(
    shards: FaultHarness,
    outputs: Path,
    world: int,
    root: Path,
    damage,
    patience: float = 60,
    after: int = HALFWAY,
):
    """A run on `root` that finds it damaged after some steps; returned when it has said so."""
    more = [WINDOW, f"data.root={root}", f"data.retry_seconds={patience}"]
    ranks = shards.start(outputs, RECIPE, world, *more, slow=0.05)
    wait_until(lambda: ranks.stage()[1] >= after, ranks)
    damage()
    wait_until(lambda: "trying again" in ranks.text(), ranks)
    return ranks


def finish(shards: FaultHarness, outputs: Path, world: int, root: Path, *more: str):
    return shards.finish(outputs, RECIPE, world, WINDOW, f"data.root={root}", *more)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("damage", ["gone", "truncated"])
def test_shards_that_come_back_change_nothing(shards, copied, world, damage):
    outputs, away = shards.new_outputs(), copied / "away"

    def spoil() -> None:
        os.rename(copied / "train", away)
        if damage == "truncated":
            shutil.copytree(away, copied / "train")
            for shard in (copied / "train").glob("*.tar"):
                os.truncate(shard, 1000)
            for shard in away.glob("*.tar"):  # those that are open as well
                whole = shard.read_bytes()
                os.truncate(shard, 1000)
                shard.unlink()
                shard.write_bytes(whole)

    ranks = start_and_damage(shards, outputs, world, copied, spoil)
    time.sleep(0.5)
    shutil.rmtree(copied / "train", ignore_errors=True)
    os.rename(away, copied / "train")
    assert ranks.wait(PATIENCE) == [0] * world, ranks.text()
    for rank in range(world):
        text = ranks.text(rank)
        assert len(re.findall(r"^warning: .*; trying again for 60 s$", text, re.M)) >= 1
        assert text.count("trying again") == text.count("can be read again, after")
    assert_undisturbed(shards.undisturbed_run(RECIPE, world, WINDOW).folder, outputs / "run")


@pytest.mark.parametrize("world", [1, 2])
def test_a_read_that_fails_once_changes_nothing(shards, world):
    outputs, rank = shards.new_outputs(), world - 1
    misread = {"rank": rank, "images": HALFWAY}
    ranks = shards.finish(outputs, RECIPE, world, WINDOW, misread=misread)
    lines = re.findall(
        r"^warning: .*/train/\d+\.tar cannot be read \(Input/output error\); trying again for 60 s$",
        ranks.text(rank),
        re.M,
    )
    assert len(lines) == 1, ranks.text()
    assert ranks.text().count("trying again") == ranks.text().count("can be read again, after") == 1
    assert_undisturbed(shards.undisturbed_run(RECIPE, world, WINDOW).folder, outputs / "run")


@pytest.mark.parametrize("world", [1, 2])
def test_shards_that_stay_away_end_the_run_and_are_gone_on_with(shards, copied, world):
    outputs, away, after = shards.new_outputs(), copied / "away", EVALUATE_EVERY + 128
    ranks = start_and_damage(
        shards, outputs, world, copied, lambda: os.rename(copied / "train", away), patience=1, after=after
    )
    assert set(ranks.wait(PATIENCE)) <= {2, 1, -signal.SIGTERM, -signal.SIGKILL}, ranks.text()
    lines = [line for line in ranks.text().splitlines() if line.startswith("error: ")]
    assert 1 <= len(lines) <= world
    for line in lines:
        assert re.fullmatch(
            rf"error: {copied}/train/\d+\.(tar|npy).* cannot be read .*, tried again for 1 s; check with: .*",
            line,
        )
    assert "Traceback" not in ranks.text()
    reached = newest(outputs / "run").images
    assert reached >= (after if world == 1 else EVALUATE_EVERY)  # one rank saves first, several cannot
    os.rename(away, copied / "train")
    assert f"resumed at {reached:,} images" in finish(shards, outputs, world, copied).text()
    assert_undisturbed(shards.undisturbed_run(RECIPE, world, WINDOW).folder, outputs / "run")


@pytest.mark.parametrize("moment", ["step", "evaluation"])
def test_a_signal_while_shards_are_away_saves_and_ends_at_once(shards, copied, moment):
    outputs, away = shards.new_outputs(), copied / "away"
    split = copied / ("train" if moment == "step" else "test")  # which steps do not read
    after = EVALUATE_EVERY + 128 if moment == "step" else 64  # after the first evaluation, or before it
    ranks = start_and_damage(shards, outputs, 1, copied, partial(os.rename, split, away), 1000, after)
    # Beside the step the checkpoint before may still be written.
    assert ranks.stage()[0] in {"step": ("step", "save"), "evaluation": ("evaluation",)}[moment]
    time.sleep(1)
    began = time.monotonic()
    ranks.signal(signal.SIGTERM)
    assert ranks.wait(PATIENCE) == [1], ranks.text()
    assert time.monotonic() - began < 60
    reached = newest(outputs / "run").images
    assert (outputs / "run/stopped").read_text().splitlines()[0] == str(reached)
    assert reached % SAVE_EVERY == 0 if moment == "evaluation" else reached > EVALUATE_EVERY
    os.rename(away, split)
    assert f"resumed at {reached:,} images" in finish(shards, outputs, 1, copied).text()
    assert_undisturbed(shards.undisturbed_run(RECIPE, 1, WINDOW).folder, outputs / "run")


def test_images_that_cannot_be_decoded_are_replaced_alike_on_any_start(shards, copied):
    """A run that is stopped on a damaged shard goes on as one that was not."""
    for name in ("000003.tar", "000040.tar"):
        data = (copied / "train" / name).read_bytes()
        assert data.count(b"\x89PNG") == 20
        (copied / "train" / name).write_bytes(data.replace(b"\x89PNG", b"\x89PNX", 2))
    runs = [shards.new_outputs(), shards.new_outputs()]
    lines = finish(shards, runs[0], 1, copied).text()
    assert lines.count("cannot be decoded; image ") == 4
    ranks = shards.start(runs[1], RECIPE, 1, WINDOW, f"data.root={copied}", slow=0.05)
    wait_until(lambda: ranks.stage()[1] >= HALFWAY, ranks)
    ranks.signal(signal.SIGKILL)
    ranks.wait(PATIENCE)
    finish(shards, runs[1], 1, copied)
    assert_same_bits(*(weights(run / "run") for run in runs))


# ---- over a network --------------------------------------------------------------------------------


def folder_size(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                continue
    return total


@pytest.mark.parametrize("world", [1, 2])
def test_a_run_over_a_bad_network_is_the_same_run(shards, tmp_path, world):
    bound, largest, ended = 600_000, [0], threading.Event()
    outputs, cache = shards.new_outputs(), tmp_path / "cache"

    def measure() -> None:
        while not ended.wait(0.005):
            largest[0] = max(largest[0], folder_size(cache))

    with serving(shards.data.parent) as server:
        for number in range(0, 72, 3):
            name = f"digits/train/{number:06d}.tar"
            for kind, value in (("break", 9000), ("status", 500), ("wrong", 0), ("longer", 3))[number % 4 :]:
                server.spoil(name, kind, value)
        root = f"{server.address}/digits"
        access = [f"data.root={root}", f"data.cache={cache}", f"data.cache_bytes={bound}"]
        ranks = shards.start(outputs, RECIPE, world, WINDOW, *access)
        measuring = threading.Thread(target=measure)
        measuring.start()
        server.pause = 0.002
        for images in (256, 1024):
            wait_until(lambda least=images: ranks.stage()[1] >= least, ranks)
            server.down()
            time.sleep(1.5)
            server.up()
        assert ranks.wait(PATIENCE) == [0] * world, ranks.text()
        ended.set()
        measuring.join()
        assert {request.status for request in server.requests} >= {200, 206, 500}
    assert "trying again for 60 s" in ranks.text()
    assert "can be read again, after" in ranks.text()
    assert 0 < largest[0] <= bound
    assert_undisturbed(shards.undisturbed_run(RECIPE, world, WINDOW).folder, outputs / "run")


def test_a_whole_plan_and_run_by_a_command_with_permission_alone(shards, tmp_path):
    outputs = shards.new_outputs()
    access = [WINDOW, f"data.root='pipe:cat {shards.data}/{{}}'", f"data.cache={tmp_path}"]
    words = arguments(RECIPE, outputs, shards.data, *access)

    def ended(*more: str) -> tuple[int, str]:
        ranks = shards.forker.start(shards.new_outputs(), 1, [*words, *more])
        (status,) = ranks.wait(PATIENCE)
        return status, ranks.text()

    status, text = ended()
    assert status == 2
    assert text.splitlines()[-1].startswith(
        f"error: data.root=pipe:cat {shards.data}/{{}} starts a program (cat)"
    )
    assert not outputs.exists()
    status, text = ended("--plan")
    assert (status, "add --allow-commands to the command line" in text) == (0, True)
    status, text = ended("--plan", "--allow-commands")
    assert (status, "1,438 training images in 72 shards" in text) == (0, True)
    status, text = ended("--allow-commands")
    assert status == 0, text
    assert_same_bits(weights(shards.undisturbed_run(RECIPE, 1, WINDOW).folder), weights(outputs / "run"))


@pytest.mark.parametrize("resident", ["false", "auto"])
def test_a_plan_over_http_writes_nothing(shards, tmp_path, resident):
    with serving(shards.data.parent) as server:
        root = [f"data.root={server.address}/digits", f"data.cache={tmp_path}/cache"]
        words = arguments(RECIPE, tmp_path / "outputs", shards.data, *root, f"data.resident={resident}")
        ranks = shards.forker.start(shards.new_outputs(), 1, [*words, "--plan"])
        assert ranks.wait(PATIENCE) == [0]
        assert f"{server.address}/digits (digits): 1,438 training images in 72 shards" in ranks.text()
        assert [request.name for request in server.requests] == ["digits/dataset.json"]
    assert not list(tmp_path.iterdir())
