"""Users' mistakes and broken surroundings, through the command line: one clear line, nothing left behind."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.dataset_loading import load_dataset
from data_pipelines.reader import Reader
from data_pipelines.shards.make import make
from tests.helpers.command_lines import MAIN, ROOT, mistake, process, script, tiny
from trainer.tracking.journal import read

CIFAR = ["recipe=dim_local_small", "images=128", "evaluate.at_end=false", "tracking.uri=none"]


@pytest.fixture(scope="module")
def made(digits) -> Path:
    """The digits; read only."""
    return digits.root


@pytest.fixture
def root(made, tmp_path) -> Path:
    """A copy of the digits, to be spoilt."""
    shutil.copytree(made, tmp_path / "digits")
    return tmp_path / "digits"


@pytest.fixture
def outputs(tmp_path) -> Path:
    return tmp_path / "outputs"


# ---- the recipe -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recipe=quickstar"], "unknown recipe 'quickstar'; did you mean 'quickstart'?"),
        (["recipe=quickstart", "optimizer.lrr=1"], "optimizer.lrr: unknown key; did you mean"),
        (["recipe=quickstart", "objective.bound=jds"], "did you mean 'jsd'?"),
        (["recipe=quickstart", "objective.kind=mocco"], "got 'mocco'; did you mean 'moco'?"),
        (["recipe=quickstart", "data.patience=1", "data.retry_seconds=1"], "data.patience: the old name of "),
        (["recipe=quickstart", "batch=many"], "batch: expected a whole number above 0, got 'many'"),
    ],
)
def test_a_misspelt_recipe_key_or_value_is_one_line(capsys, arguments, message, outputs):
    assert message in mistake(script(capsys, *arguments, f"outputs={outputs}"))
    assert not outputs.exists()


def test_the_process_itself_says_it_once_and_exits_2(tmp_path):
    done = process(sys.executable, MAIN, "recipe=quickstart", "batch=many", cwd=tmp_path)
    assert "batch: expected a whole number" in mistake(done)
    assert done.out == ""
    assert not list(tmp_path.iterdir())


def test_an_unknown_objective_reaches_nothing_that_builds():
    words = ["recipe=quickstart", "objective={kind: simclrr, temperature: 0.1}"]
    code = f"from trainer.main import exit_status, main; status = exit_status(lambda: main({words}))"
    code += (
        "; import sys; print(status, [name for name in sys.modules if 'build' in name and 'trainer' in name])"
    )
    done = process(sys.executable, "-c", code)
    assert done.out == "2 []\n"
    assert "objective.kind: expected 'dim', 'moco', " in done.err
    assert "got 'simclrr'" in done.err


def test_recipe_errors_come_before_data_errors(capsys, tmp_path):
    arguments = [*CIFAR, f"data.root={tmp_path / 'none'}", "objective.bound=jds"]
    assert "did you mean 'jsd'?" in mistake(script(capsys, *arguments))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch=100", "what works: batch=64 or batch=128"),
        ("groups.norm=1", "groups.norm=1: a group needs at least 2 images"),
        ("data.size=10", "data.size=10 cannot be halved 2 times"),
        ("data.lanes=3", "data.lanes=3 does not divide batch=128; what works: 1, 2, 4, 8, 16"),
        ("data.lanes=32", "data.lanes=32 takes a shard each of data.window=16: give data.window=32 or more"),
        ("data.train=trian", "no split 'trian'; it has train, test"),
        ("data.test=tset", "no split 'tset'; it has train, test"),
        ("tracking.uri=ftp://x", "tracking.uri: 'ftp://x' is no address of MLflow"),
    ],
)
def test_a_corrected_command_is_not_held_to_the_mistake(capsys, made, outputs, override, message):
    """A mistake that shows before the first step leaves no folder that would speak for it."""
    assert message in mistake(script(capsys, *tiny(outputs, made, override)))
    assert not (outputs / "quickstart").exists()


def test_a_recipe_changed_under_a_run_is_refused_naming_the_keys(capsys, made, outputs):
    arguments = tiny(outputs, made)
    assert script(capsys, *arguments).status == 0
    files = contents(outputs)
    changed = [*arguments, "optimizer.lr=2e-3", "objective.bound=infonce"]
    for finished in (True, False):
        (outputs / "quickstart" / "done").unlink(missing_ok=not finished)
        line = mistake(script(capsys, *changed))
        assert f"{outputs / 'quickstart'} is a run of another recipe" in line
        assert "optimizer.lr: 0.001 -> 0.002" in line
        assert "objective.bound: 'jsd' -> 'infonce'" in line.replace('"', "'") or "jsd -> infonce" in line
        way_on = "continue it with objective.bound=jsd optimizer.lr=0.001, or start another with run=NAME"
        assert line.endswith(f"; {way_on}")
        left = contents(outputs)
        assert {name: left[name] for name in left if name in files} == left
    back = ["objective.bound=jsd", "optimizer.lr=0.001"]  # behind what was refused, the last word stands
    assert script(capsys, *changed, *back).status == 0
    same = [*arguments, "log.every=256", "save.keep=1", "accumulate=2"]  # changes nothing of the meaning
    assert script(capsys, *same).status == 0


def test_checkpoints_of_another_recipe_are_refused_with_the_way_back(capsys, made, outputs):
    """Where the run's recipe.yaml is lost, the newest checkpoint knows what it was."""
    arguments = tiny(outputs, made)
    assert script(capsys, *arguments).status == 0
    for name in ("recipe.yaml", "done"):
        (outputs / "quickstart" / name).unlink()
    changed = [*arguments, "optimizer={kind: adamw, lr: 1e-3}"]
    line = mistake(process(sys.executable, MAIN, *changed))  # which holds the run's lock until its end
    assert (
        f"{outputs}/quickstart/checkpoints/images-000000000256 is of another recipe (optimizer.kind: " in line
    )
    words = shlex.split(line.partition("; continue it with ")[2].partition(", or start another")[0])
    assert words[0] == "optimizer.kind=adam"
    done = script(capsys, *changed, *words)
    assert done.status == 0, done.err
    assert "resumed at 256 images" in done.out


def test_another_data_set_under_a_run_is_refused(capsys, made, tmp_path, outputs):
    """Of the same images in other shards: they would come in another order."""
    other = make("digits", to=tmp_path / "other", images_per_shard=300, workers=1, progress=False).root
    assert script(capsys, *tiny(outputs, made)).status == 0
    files = contents(outputs)
    line = mistake(script(capsys, *tiny(outputs, other, "images=384")))
    newest = outputs / "quickstart/checkpoints/images-000000000256"
    why = f"the data set in {other} is not the one it was trained on"  # and only that: a run may be prolonged
    assert line == f"{newest} is of another recipe ({why}); start another with run=NAME"
    assert contents(outputs) == files


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file of a folder but the lock files."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {path: path.read_bytes() for path in files}


# ---- the data ---------------------------------------------------------------------------------------


def test_missing_and_wrong_data_folders_say_how_to_make_the_data(capsys, made, tmp_path, outputs):
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder, what in ((tmp_path / "none", "does not exist"), (empty, "holds no dataset.json")):
        line = mistake(script(capsys, *CIFAR, f"outputs={outputs}", f"data.root={folder}"))
        assert what in line
        assert "python -m data_pipelines.shards source=" in line
    line = mistake(script(capsys, *CIFAR, f"outputs={outputs}", f"data.root={made}"))
    assert "digits" in line
    assert "cifar10" in line  # another data set than the recipe's
    assert not outputs.exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "train/000001.tar").unlink(), "train/000001.tar cannot be found"),
        (lambda root: (root / "train/000001.npy").unlink(), "train/000001.npy cannot be found"),
        (lambda root: cut(root / "train/000001.tar"), "train/000001.tar has"),
        (lambda root: (root / "dataset.json").write_text('{"format": 1'), "dataset.json is broken"),
        (lambda root: (root / "dataset.json").write_text('{"format": 9}'), "has format 9"),
    ],
    ids=["no shard", "no index", "short shard", "broken dataset.json", "other format"],
)
def test_a_broken_data_set_is_refused_before_the_run_begins(capsys, root, outputs, spoil, message):
    spoil(root)
    line = mistake(script(capsys, *tiny(outputs, root)))
    assert message in line
    assert "python -m data_pipelines.shards source=digits" in line
    assert not outputs.exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-512])


def test_an_index_of_nonsense_is_named(capsys, root, outputs):
    for path in (root / "train").glob("*.npy"):
        path.write_bytes(bytes(path.stat().st_size))
    line = mistake(script(capsys, *tiny(outputs, root, "data.retry_seconds=0")))
    assert ".npy" in line
    assert f"python -m data_pipelines.shards verify {root}" in line


def test_images_that_cannot_be_decoded_are_named_counted_and_replaced(capsys, root, outputs):
    reader = Reader(load_dataset(root), "train")
    bad = [3, 700]
    for sample in bad:
        (entry,) = reader.entries(np.array([sample]))
        shard = root / reader.names[int(sample >= reader.first[1])]
        data = bytearray(shard.read_bytes())
        data[entry["offset"] : entry["offset"] + entry["size"]] = bytes(entry["size"])
        shard.write_bytes(data)
    names = [reader.describe(sample).split(" in ")[0] for sample in bad]
    reader.close()
    ended = []
    for name in ("one", "two"):
        done = script(capsys, *tiny(outputs, root, f"run={name}", "images=1536"))
        assert done.status == 0, done.err
        lines = [line for line in done.err.splitlines() if line.startswith("warning: ")]
        training = [line for line in lines if any(member in line for member in names)]
        assert len(training) >= 2
        assert all("cannot be decoded" in line and "takes its place" in line for line in training)
        records = [record for record, _ in read(outputs / name / "journal.jsonl")]
        assert {r["value"] for r in records if r["kind"] == "warning"} <= {line[9:] for line in lines}
        assert len({r["value"] for r in records if r["kind"] == "warning"}) >= 2
        ended.append([r["value"] for r in records if r["name"] == "loss"][-1])
    assert ended[0] == ended[1]  # replaced by the same images


# ---- where the run is written -----------------------------------------------------------------------


@pytest.mark.parametrize("blocked", ["outputs", "outputs/quickstart"])
def test_a_file_where_a_folder_should_be(capsys, made, tmp_path, blocked):
    (tmp_path / blocked).parent.mkdir(exist_ok=True)
    (tmp_path / blocked).write_text("mine")
    line = mistake(script(capsys, *tiny(tmp_path / "outputs", made)))
    assert str(tmp_path / "outputs" / "quickstart") in line
    assert "cannot be written" in line
    assert "outputs=" in line
    assert (tmp_path / blocked).read_text() == "mine"


def test_mlflow_that_does_not_answer_stops_nothing(capsys, made, outputs):
    done = script(capsys, *tiny(outputs, made, "tracking.uri=http://127.0.0.1:9"))
    assert done.status == 0, done.err
    assert (outputs / "quickstart" / "done").exists()
    warnings = [line for line in (done.out + done.err).splitlines() if "warning" in line]
    assert sum("no tracking since" in line for line in warnings) == 1
    assert sum("deliver the rest with" in line for line in warnings) <= 1
    assert len(warnings) <= 2
    assert "Traceback" not in done.out + done.err
    assert any(r["name"] == "loss" for r, _ in read(outputs / "quickstart" / "journal.jsonl"))


# ---- how it is launched, and how it goes ------------------------------------------------------------


def test_a_launcher_that_would_start_fewer_ranks_is_refused_with_the_way_out(made, outputs):
    done = process("accelerate", "launch", "--num_processes", "2", "trainer/main.py", *tiny(outputs, made))
    assert done.status != 0
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert "was asked for 2 processes but started 1" in line
    assert "--config_file recipes/launch/ddp.yaml --num_processes 2" in line
    assert "Traceback" not in done.err
    assert not outputs.exists()


def test_a_mistake_under_the_launcher_is_not_buried_under_its_traceback(outputs):
    arguments = ["recipe=quickstart", "btch=1", f"outputs={outputs}"]
    done = process("accelerate", "launch", "trainer/main.py", *arguments)
    assert done.status != 0
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert "btch: unknown key; did you mean 'batch'?" in line
    assert "Traceback" not in done.err
    assert not outputs.exists()


@pytest.mark.slow
def test_ranks_that_do_not_divide_the_batch_are_told_which_do(made, outputs):
    command = ["accelerate", "launch", "--config_file", "recipes/launch/ddp.yaml", "--num_processes", "2"]
    command += ["--main_process_port", "0", "trainer/main.py"]
    done = process(*command, *tiny(outputs, made, "batch=192"), cwd=ROOT)
    assert done.status != 0
    lines = {line for line in done.err.splitlines() if line.startswith("error: ")}
    assert len(lines) == 1
    assert "what works: --num_processes 1, 3 or batch=128 or batch=256" in lines.pop()
    assert 'trainer/main.py", line' not in done.err  # no traceback of ours
    assert not (outputs / "quickstart").exists()


def test_a_run_that_diverges_says_so_and_saves_nothing_of_it(capsys, made, outputs):
    done = script(capsys, *tiny(outputs, made, "optimizer.lr=1e10", "log.every=100000", "images=1280"))
    line = mistake(done)
    assert "is not finite" in line
    assert "lower optimizer.lr" in line
    newest = outputs / "quickstart" / "checkpoints" / "images-000000000128"  # its loss was finite
    assert str(newest) in line
    assert sorted(path.name for path in newest.parent.iterdir()) == [newest.name]
    records = [record for record, _ in read(outputs / "quickstart" / "journal.jsonl")]
    assert records[-1]["value"] == "FAILED"
    assert all(np.isfinite(r["value"]) for r in records if r["kind"] == "metric")
    assert not (outputs / "quickstart" / "done").exists()


@pytest.mark.parametrize("missing", ["run", "checkpoint"])
def test_evaluation_of_what_is_not_there(capsys, made, outputs, missing):
    folder = outputs / "quickstart"
    if missing == "checkpoint":
        assert script(capsys, *tiny(outputs, made, "images=128")).status == 0
        shutil.rmtree(folder / "checkpoints")
    line = mistake(script(capsys, "recipe=evaluate", f"from={folder}", "tracking.uri=none"))
    assert f"from={folder}" in line
    assert {"run": "no run there", "checkpoint": "no checkpoint yet"}[missing] in line
    if missing == "run":
        assert not outputs.exists()
    else:
        assert "results.json" not in json.dumps([path.name for path in folder.iterdir()])


# ---- the run's folder -------------------------------------------------------------------------------


def test_checkpoints_of_which_none_can_be_read_never_mean_a_start_from_nothing(capsys, made, outputs):
    broken = outputs / "quickstart" / "checkpoints" / "images-000000000128"
    broken.mkdir(parents=True)
    done = script(capsys, *tiny(outputs, made))
    assert done.status == 2
    assert f"warning: checkpoint {broken} is damaged (manifest.json is missing)" in done.err
    assert f"error: none of the checkpoints in {broken.parent} can be used (see the warnings)" in done.err
    assert broken.exists()
