"""What a run needs later is looked at before its first step: each is broken once, and seen in one line."""

import json
import resource
import shutil
import sys

import psutil
import pytest
import torch

from tests.helpers.command_lines import MAIN, mistake, process, script, tiny
from tests.helpers.labelled_dataset import write_labelled
from trainer.distributed.engine_kind import EngineKind
from trainer.distributed.launch import DistributedContext
from trainer.evaluation import probes
from trainer.recipe.loading import load
from trainer.tasks import checks, resources
from trainer.tasks.preflight import CHECKS, notes
from trainer.tracking.journal import read

CHEAP = [
    "evaluate.at_end=true",
    "evaluate.controls=false",
    "evaluate.linear={iterations: 5}",
    "evaluate.mlp={epochs: 1}",
    "evaluate.few_shot.draws=1",
]


def left_on_disk(monkeypatch, free):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=free))


def a_link(folder, name):
    (folder / name).parent.mkdir(parents=True)
    (folder / name).symlink_to("a disk that is not mounted")


BROKEN = [  # which check, what breaks it (and gives words of the command), what the line says
    ("data", lambda *_: ["data.source=stl10"], "was made from source=digits"),
    ("ranks", lambda *_: ["batch=100"], "groups"),
    ("splits", lambda *_: ["data.test=val"], "data.test=val: "),
    ("objective", lambda *_: ["data.views=[{}, {}]"], "data.views describes 2 views"),
    ("cache", lambda *_: ["data.cache_bytes=1000"], "data.cache_bytes"),
    ("labels and probes", lambda *_: ["evaluate.few_shot.shots=500"], "has 142 training images"),
    ("labels and probes", lambda *_: ["evaluate.mlp.batch=1"], "evaluate.mlp.batch=1: its batch-norm"),
    ("classes", lambda *_: ["objective.supervised={classes: 3}"], "supervised.classes=3, but"),
    (
        "disk",
        lambda folder, patch: left_on_disk(patch, 2**20) or [],
        "MB of disk (save.keep=2 checkpoints",
    ),
    ("disk", lambda folder, _: a_link(folder, "checkpoints") or [], "checkpoints cannot be written: "),
    (
        "memory",
        lambda _, patch: patch.setattr(resources, "cgroup_limits", lambda: (None, 10**6)) or [],
        "of memory a rank, and the control group has 0.0 MB left",
    ),
    ("exports", lambda folder, _: a_link(folder, "export") or [], "export is no folder"),
    (
        "exports",
        lambda folder, _: (folder / "export" / "encoder.safetensors").mkdir(parents=True) or [],
        "encoder.safetensors is a folder",
    ),
]


@pytest.mark.parametrize(("check", "broken", "expected"), BROKEN)
def test_what_a_run_cannot_do_later_is_refused_before_its_first_step(
    capsys, digits, tmp_path, monkeypatch, check, broken, expected
):
    assert check in CHECKS
    folder, root = tmp_path / "outputs" / "quickstart", str(digits.root)
    words = broken(folder, monkeypatch)
    if check == "cache":
        root, words = f"pipe:cat {root}/{{}}", [*words, f"data.cache={tmp_path}/cache", "--allow-commands"]
    before = sorted(folder.rglob("*"))
    line = mistake(script(capsys, *tiny(tmp_path / "outputs", root, *CHEAP, *words)))
    assert expected in line
    assert sorted(folder.rglob("*")) == before  # no checkpoint, no journal


def test_every_check_is_broken_by_a_test():
    assert {check for check, *_ in BROKEN} | {"pictures"} == set(CHECKS)


def test_pictures_that_cannot_be_written_are_a_line_and_cost_no_run(capsys, digits, tmp_path):
    folder = tmp_path / "outputs" / "quickstart"
    a_link(folder, "figures")
    done = script(capsys, *tiny(tmp_path / "outputs", digits.root))
    assert done.status == 0, done.err
    assert f"warning: figures/…: left out, {folder / 'figures'} is no folder" in before_steps(done.out)
    assert (folder / "export" / "encoder.safetensors").exists()


def before_steps(out: str) -> str:
    """What a run said before its first step."""
    return out.partition("images/s")[0]


@pytest.mark.slow
def test_a_package_that_cannot_be_imported_is_one_line(digits, tmp_path):
    (tmp_path / "hidden").mkdir()
    error = "ImportError('libfreetype is missing', name='matplotlib')"
    (tmp_path / "hidden" / "matplotlib.py").write_text(f"raise {error}\n")
    arguments = tiny(tmp_path / "outputs", digits.root)
    line = mistake(process(sys.executable, MAIN, *arguments, PYTHONPATH=str(tmp_path / "hidden")))
    assert line.startswith("matplotlib cannot be imported (libfreetype is missing); install it: pip install")
    assert not (tmp_path / "outputs").exists()


# ---- bytes -----------------------------------------------------------------------------------------


def context(engine=EngineKind.SINGLE_PROCESS, world_size=1):
    return DistributedContext(0, world_size, 1, engine, torch.device("cpu"), None)


def test_the_memory_that_is_left_is_that_of_the_narrowest_limit():
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, hard))
    try:
        left, what = resources.memory_left(context())
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert what == "`ulimit -v`"
    assert left <= 2**26
    assert resources.memory_left(context())[0] > left


def test_the_state_of_a_rank_is_shared_by_engines_that_shard():
    sizes = resources.Sizes(parameters=400, gradients=300, moments=600, queue=80, exported=200)
    assert resources.memory_needed(sizes, context()) == 400 + 300 + 600 + 80 + sizes.checkpoint
    shared = context(EngineKind.ZERO2, 4)
    assert resources.memory_needed(sizes, shared) == 1300 // 4 + 20 + sizes.checkpoint // 4
    assert resources.memory_needed(sizes, context(EngineKind.DDP, 4)) == 1300 + 20 + sizes.checkpoint // 4


def test_the_disk_that_a_run_takes_is_no_more_than_it_writes(digits, tmp_path, monkeypatch):
    """As many checkpoints as there will be; those of an earlier start are there already."""
    recipe = load(tiny(tmp_path, digits.root)).recipe
    start = checks.Start(recipe, context(), digits, tmp_path / "run")
    one, encoder = start.sizes.checkpoint, start.sizes.exported
    assert resources.disk_needed(recipe, start.sizes, 0) == 2 * one + encoder + resources.SMALL_FILES
    long = recipe.model_copy(update={"images": 12800})
    assert resources.disk_needed(long, start.sizes, 0) == 3 * one + resources.SMALL_FILES
    assert resources.disk_needed(long, start.sizes, 5 * one) == 7 * one + encoder + resources.SMALL_FILES
    left_on_disk(monkeypatch, 1000)
    (start.folder / "checkpoints").mkdir(parents=True)
    (start.folder / "checkpoints" / "part").write_text("four")
    assert resources.disk_left(start.folder) == 1004


def test_checkpoints_that_stay_for_good_are_a_line(digits, tmp_path, monkeypatch):
    recipe = load(tiny(tmp_path, digits.root, "save.keep_every=128", "images=128000")).recipe
    start = checks.Start(recipe, context(), digits, tmp_path)
    assert list(checks.check_disk(start)) == []
    left_on_disk(monkeypatch, 900 * start.sizes.checkpoint)
    (line,) = checks.check_disk(start)
    assert line.startswith("save.keep_every=128: the 1,000 checkpoints that it keeps take")


# ---- fewer images than a batch -----------------------------------------------------------------------


def test_negatives_beyond_the_training_images_are_a_line():
    def lines(images, *words):
        recipe = load(["recipe=quickstart", *words]).recipe
        return "\n".join(notes(recipe, images, 1, torch.device("cpu")))

    assert "63 training images, fewer than a batch of 128: groups of 64 hold an image more" in lines(63)
    advised = lines(63)
    assert (
        "it is a negative of itself; set groups.negatives=32: then only groups that run into the" in advised
    )
    obeyed = lines(63, "groups.negatives=32")  # which says what the advice said, and advises no more
    assert "groups of 32 that run into the next epoch hold an image more than once" in obeyed
    assert obeyed.endswith("it is a negative of itself")
    assert "set groups.negatives=4: then only" in lines(5)
    assert lines(32).endswith("it is a negative of itself; set groups.negatives=32")
    assert "negative" not in lines(32, "groups.negatives=32")
    assert "negative" not in lines(64)  # an epoch is a group
    assert "groups of 64 that run into the next epoch hold" in lines(127)
    assert lines(127).endswith("it is a negative of itself")  # where a group runs into the next epoch
    assert "negative" not in lines(128)
    assert "groups of 128 hold" in lines(100, "encoder.norm=group", "groups.negatives=global")
    assert "negative of itself" in lines(1)
    moco = ["objective={kind: moco, queue: {keys: 256}}", "data.views=[{}, {}]"]
    assert "queue.keys=256 is not below the 256 training images" in lines(256, *moco)


# ---- a run to its end ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "train", "test", "missing"),
    [
        (4, [30, 3, 30, 0], [5, 5, 5, 5], {"few_shot/5/linear/y"}),
        (4, [0, 30, 30, 30], [0, 5, 0, 5], set()),  # labels that begin at 1
        (4, [1, 1, 1, 1], [1, 0, 0, 0], {"few_shot/5/linear/y", "figures/tsne.png", "health/…"}),
        (4, [1, 0, 0, 0], [1, 0, 0, 0], {"few_shot/5/linear/y", "figures/tsne.png", "health/…", "probe/mlp"}),
        (1, [5, 40], [20, 3], set()),  # one class, and images without a label
    ],
)
def test_a_run_on_scarce_labels_ends_with_every_other_figure(capsys, tmp_path, classes, train, test, missing):
    names = ("cat", "dog", "cow", "pig")[:classes]
    root = write_labelled(tmp_path / "data", names, train=train, test=test).root
    words = ["data.source=folder", *CHEAP, "evaluate.svm={epochs: 1, runs: 2}", "evaluate.every=128"]
    done = script(capsys, *tiny(tmp_path, root, *words))
    folder, missing = tmp_path / "quickstart", missing | {"mi/…/held_out"}
    assert done.status == 0, done.err
    assert done.err == ""  # nothing was not drawn
    assert (folder / "done").exists()
    results = json.loads((folder / "results.json").read_text())
    assert results.pop("left_out", {}).keys() == missing
    wanted = {f"probe/{head}/{name}" for head in ("linear", "mlp", "svm") for name in ("conv", "fc", "y")}
    wanted |= {"few_shot/5/linear/y", "knn/y"} - missing
    assert {name for name in wanted if not name.startswith(tuple(missing))} <= results.keys()
    for name in missing:
        assert f"{name}: left out, " in before_steps(done.out)
        assert any(line.startswith("left out") and name in line for line in done.out.splitlines()[-12:])


@pytest.mark.slow
def test_a_run_that_tests_on_its_training_images_says_so_and_estimates_no_held_out_information(
    capsys, digits, tmp_path
):
    words = tiny(
        tmp_path, digits.root, "data.test=train", "evaluate.every=128", *CHEAP, "evaluate.linear=null"
    )
    line = "warning: data.test=train: all 1,438 test images are also in data.train=train: accuracies on them"
    assert script(capsys, *words, "--plan").out.count(line) == 1
    done = script(capsys, *words, "evaluate.at_end=false")
    assert (done.status, done.err) == (0, "")
    assert before_steps(done.out).count(line) == done.out.count(line) == 1
    assert "information, test images" not in done.out
    why = "all 1,438 test images (data.test=train) are trained on (data.train=train)"
    assert f"left out  mi/…/held_out: {why}" in done.out
    results = json.loads((tmp_path / "quickstart" / "results.json").read_text())
    assert results["left_out"]["mi/…/held_out"] == why
    names = {record["name"] for record, _ in read(tmp_path / "quickstart" / "journal.jsonl")}
    assert "knn/y/online" in names
    assert not any(name.endswith("/held_out") for name in names)


@pytest.mark.slow
def test_a_split_without_labels_ends_with_what_needs_none(capsys, tmp_path):
    root = write_labelled(tmp_path / "data", train=[10] * 4, test=[0, 0, 0, 0, 20]).root
    done = script(capsys, *tiny(tmp_path, root, "data.source=folder", *CHEAP, "evaluate.controls=true"))
    folder = tmp_path / "quickstart"
    assert (done.status, done.err) == (0, "")
    assert "left out, no image of 'test' (data.test) has a label" in before_steps(done.out)
    assert json.loads((folder / "results.json").read_text()).keys() == {"left_out"}
    assert {"neighbours.png", "tsne.png"} <= {path.name for path in (folder / "figures").iterdir()}
    again = script(capsys, "recipe=evaluate", f"from={folder}", "tracking.uri=none", *CHEAP[1:])
    assert (again.status, again.err) == (0, "")
    assert "warning: probe/linear, probe/linear_sgd, probe/mlp, probe/svm, few_shot/5/linear/y" in again.out


@pytest.mark.slow
def test_a_probe_that_fails_at_the_end_is_a_line_and_can_be_made_again(capsys, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("solver\ngone")

    folder, less = tmp_path / "quickstart", [f"evaluate.{name}=null" for name in ("few_shot", "svm")]
    words = [*less, "evaluate.linear_sgd=null", *CHEAP[1:4]]
    root = write_labelled(tmp_path / "data", train=[20] * 4, test=[5] * 4).root
    with monkeypatch.context() as patch:
        patch.setattr(probes, "linear_probe", broken)
        done = script(capsys, *tiny(tmp_path, root, *words, "data.source=folder", CHEAP[0]))
        assert (done.status, done.err) == (0, "")
        failed = script(capsys, "recipe=evaluate", f"from={folder}", "tracking.uri=none", *words)
    results = json.loads((folder / "results.json").read_text())
    names = [f"probe/linear/{feature}" for feature in ("conv", "fc", "y")]
    assert results["left_out"].keys() == set(names)
    assert {"probe/mlp/conv", "probe/mlp/y", "knn/y"} <= results.keys()
    line = f"{', '.join(names)}: left out, RuntimeError: solver (test_preflight.py:"
    assert [line in text for text in done.out.splitlines()].count(True) == 1
    assert "left out  probe/linear/conv, probe/linear/fc, probe/linear/y: RuntimeError: solver" in done.out
    assert (folder / "done").exists()
    assert [r["value"] for r, _ in read(folder / "journal.jsonl") if r["kind"] == "end"] == ["FINISHED"]
    assert failed.status == 1  # that is all that was asked for
    assert failed.err == "error: some figures could not be measured: see `left out` above\n"

    again = script(capsys, "recipe=evaluate", f"from={folder}", "tracking.uri=none", *words)
    assert (again.status, again.err) == (0, "")
    after = json.loads((folder / "results.json").read_text())
    assert "left_out" not in after
    assert set(names) <= after.keys()
