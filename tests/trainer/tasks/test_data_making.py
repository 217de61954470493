"""A run makes the data set that it can make, where a person means it, and nothing elsewhere."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml

from data_pipelines.dataset_loading import load_dataset
from data_pipelines.remote.archive import arrived
from data_pipelines.shards.make import make
from data_pipelines.sources import archives
from tests.helpers.command_lines import mistake, script, tiny
from tests.helpers.ranged_server import serving
from tests.helpers.served_archives import NAME, publish, write_cifar10

CHEAP = ["evaluate.controls=false", "evaluate.linear=null", "evaluate.mlp=null", "evaluate.few_shot=null"]


@pytest.fixture(scope="module")
def www(tmp_path_factory):
    """A folder with CIFAR-10's archive, of 320 training images."""
    return write_cifar10(tmp_path_factory.mktemp("www"), per_batch=64).parent


@pytest.fixture
def server(www, tmp_path, monkeypatch):
    """A server that stands for the publisher's, and an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(archives.ARCHIVES, "cifar10", archives.ARCHIVES["cifar10"])
    with serving(www) as server:
        publish("cifar10", server.address, www / NAME)
        yield server


def words(root: str | Path, *more: str) -> list[str]:
    """A run of two steps on CIFAR-10 in `root`."""
    return tiny(Path("outputs"), Path(root), "data.source=cifar10", "data.retry_seconds=5", *more)


def test_the_first_run_makes_the_data_and_the_next_ones_take_it(capsys, server, tmp_path):
    done = script(capsys, *words("data/cifar10"))
    assert (done.status, done.err) == (0, "")
    cache = tmp_path / "home/hybrid-infomax"
    size, host = f"{(server.root / NAME).stat().st_size / 1e6:.1f} MB", server.address.partition("//")[2]
    assert f"making data/cifar10, 246 MB, of {NAME} ({size}), fetched from {host} to {cache}\n" in done.out
    assert load_dataset("data/cifar10").splits["train"].images == 320
    done = script(capsys, *words("data/cifar10", "run=second", f"data.root=file:{tmp_path}/data/cifar10"))
    assert (done.status, done.err) == (0, "")
    assert "making data" not in done.out
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "root",
    [
        "data/cifar1O",
        "data/cifar100",
        "dtaa/cifar10",
        "data/cifar10/cifar10",
        "here",
        "full/cifar10",
        "file/cifar10",
    ],
)
def test_a_path_that_is_mistyped_starts_no_download(capsys, server, tmp_path, root):
    (tmp_path / "here").mkdir()
    (tmp_path / "full/cifar10/photos").mkdir(parents=True)
    (tmp_path / "file").mkdir()
    (tmp_path / "file/cifar10").write_text("a file")
    before = sorted(tmp_path.rglob("*"))
    line = mistake(script(capsys, *words(root)))
    assert line.startswith(f"data set {root} ")
    assert f"make it with `python -m data_pipelines.shards source=cifar10 to={root}`" in line
    assert "a run does so by itself where data.root is a new folder 'cifar10' in a folder that exists" in line
    assert "not there" not in script(capsys, *words(root), "--plan").out
    assert not server.requests
    assert sorted(tmp_path.rglob("*")) == before


def test_another_source_is_not_made_in_its_folder(capsys, server):
    line = mistake(script(capsys, *words("data/cifar10", "data.source=stl10")))
    assert "source=stl10 to=data/cifar10" in line
    assert not server.requests


def test_what_a_killed_run_had_begun_is_finished(capsys, server, tmp_path):
    raw = server.root / "unpacked/cifar-10-batches-py"
    whole = make("cifar10", tmp_path / "whole", raw, images_per_shard=100, workers=1, progress=False)
    folder = tmp_path / "data/cifar10"
    shutil.copytree(tmp_path / "whole", folder)
    (folder / "dataset.json").unlink()
    shutil.rmtree(folder / "test")
    (folder / ".making").mkdir()
    plan = {"source": "cifar10", "images_per_shard": 100, "made_with": {}}
    (folder / ".making/plan.json").write_text(json.dumps(plan))
    done = script(capsys, *words("data/cifar10", "images=128"))
    assert (done.status, done.err) == (0, "")
    assert load_dataset(folder).fingerprint == whole.fingerprint


def test_make_false_keeps_it_off(capsys, server, tmp_path):
    for source, root in (("cifar10", "data/cifar10"), ("digits", "data/digits")):
        line = mistake(script(capsys, *words(root, f"data.source={source}", "data.make=false")))
        assert f"data set {root} does not exist; make it with" in line
        assert "with data.make=true the run tries to" in line
    assert not server.requests
    assert not os.listdir(tmp_path)


def test_offline_the_line_says_how_and_why_not(capsys, server, tmp_path):
    server.down()
    line = mistake(script(capsys, *words("data/cifar10")))
    server.up()
    assert line == (
        "data set data/cifar10 does not exist; make it with `python -m data_pipelines.shards source=cifar10 "
        f"to=data/cifar10`: {server.address}/{NAME} cannot be fetched (Connection refused); "
        "download it by hand to data/raw"
    )
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "outputs").exists()


def test_plan_says_what_would_be_fetched_and_from_where(capsys, server, tmp_path):
    done = script(capsys, *words("data/cifar10"), "--plan")
    assert (done.status, done.err) == (0, "")
    assert f"of {NAME} (" in done.out
    assert f"fetched from {server.address.partition('//')[2]} to {tmp_path}/home" in done.out
    (tmp_path / "data/raw/cifar-10-batches-py").mkdir(parents=True)
    done = script(capsys, *words("data/cifar10"), "--plan")
    assert "the run begins with making data/cifar10, 246 MB, of data/raw/cifar-10-batches-py\n" in done.out
    done = script(capsys, *words("data/cifar10", "data.make=false"), "--plan")
    assert "data set data/cifar10 does not exist; make it with" in done.out
    assert not server.requests
    assert not (tmp_path / "data/cifar10").exists()


def test_what_can_be_known_before_is_said_before_the_download(capsys, server, tmp_path):
    line = mistake(script(capsys, *words("data/cifar10", "batch=100")))
    assert "batch" in line
    (tmp_path / "outputs/run").mkdir(parents=True)
    saved = yaml.safe_load(script(capsys, *words("data/cifar10"), "--print").out)
    (tmp_path / "outputs/run/recipe.yaml").write_text(yaml.safe_dump(saved))
    line = mistake(script(capsys, *words("data/cifar10", "run=run", "seed=7")))
    assert "seed" in line
    assert not server.requests


# ---- stops and kills --------------------------------------------------------------------------------


def started(forker, server, tmp_path: Path, world: int, number: int, arguments: list[str]):
    """Ranks whose download, into tmp_path/cache, has begun: at 20 kB a second."""
    server.pause = 0.2
    archive = {"source": "cifar10", "address": server.address, "path": str(server.root / NAME)}
    file, deadline = archives.ARCHIVES["cifar10"].file, time.monotonic() + 60
    before = arrived(file, tmp_path / "cache")
    ranks = forker.start(tmp_path / f"logs-{number}", world, arguments, archive=archive)
    while arrived(file, tmp_path / "cache") < before + 8192:
        assert ranks.running(), ranks.text()
        assert time.monotonic() < deadline, ranks.text()
        time.sleep(0.02)
    return ranks


def arguments(tmp_path: Path) -> list[str]:
    """Of the run outputs/run, whose watchdog waits for a second."""
    more = ("run=run", "step_timeout=1", f"data.cache={tmp_path / 'cache'}")
    return tiny(tmp_path / "outputs", tmp_path / "cifar10", "data.source=cifar10", *more)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_a_download_that_is_stopped_or_killed_goes_on(forker, server, tmp_path, world):
    run = tmp_path / "outputs/run"
    stops = [
        (signal.SIGTERM, None, 1),
        (signal.SIGINT, None, 130),
        (signal.SIGUSR1, 0, 1),
        (signal.SIGKILL, 0, -9),
    ]
    stops += [(signal.SIGTERM, 1, 1), (signal.SIGKILL, 1, -9)] if world > 1 else []
    for count, (number, rank, status) in enumerate(stops):
        ranks = started(forker, server, tmp_path, world, count, arguments(tmp_path))
        began = time.monotonic()
        ranks.signal(number, rank)
        statuses = ranks.wait(30)
        assert time.monotonic() - began < 15
        assert statuses[rank or 0] == status, ranks.text()
        if number == signal.SIGKILL:
            assert statuses[1 - rank] == 1 if world > 1 else True, ranks.text()
        else:
            assert set(statuses) == {status}, ranks.text()
            assert f"told to stop ({number.name}" in ranks.text() or rank == 1
            assert (run / "stopped").read_text().startswith("0\n")
        assert "Traceback" not in ranks.text()
        assert not (tmp_path / "cifar10/dataset.json").exists()
        if world > 1:
            assert f"rank 1: waiting for rank 0, which makes {tmp_path / 'cifar10'}" in ranks.text()
    starts = [request.start for request in server.requests]
    assert starts == sorted(starts)
    assert starts[-1] > 0
    ranks = started(forker, server, tmp_path, world, 99, arguments(tmp_path))
    time.sleep(3)  # longer than the watchdog's limit
    server.pause = 0.0
    assert ranks.wait(60) == [0] * world, ranks.text()
    assert (run / "done").exists()
    assert not (run / "stopped").exists()
    assert load_dataset(tmp_path / "cifar10").splits["train"].images == 320


@pytest.mark.slow
def test_an_evaluation_on_a_new_machine_makes_the_data_too(capsys, forker, server, tmp_path):
    assert script(capsys, *arguments(tmp_path)).status == 0
    shutil.rmtree(tmp_path / "cifar10")
    shutil.rmtree(tmp_path / "cache")
    words = ["recipe=evaluate", f"from={tmp_path}/outputs/run", "tracking.uri=none", *CHEAP]
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        ranks = started(forker, server, tmp_path, 1, number, words)
        ranks.signal(number)
        assert ranks.wait(30) == [status], ranks.text()
        assert f"told to stop ({number.name}): the data set is not made yet" in ranks.text()
    server.pause = 0.0
    done = script(capsys, *words)
    assert (done.status, done.err) == (0, "")
    assert f"making {tmp_path}/cifar10" in done.out
    assert (tmp_path / "outputs/run/results.json").exists()
    assert server.requests[-1].start > 0
