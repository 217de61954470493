"""The command as people type it: its questions, a whole run, and the same command once more."""

import json
import math
import os
import re
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from data_pipelines.common.errors import UserError
from data_pipelines.reader import Reader
from data_pipelines.shards.make import make
from tests.helpers.command_lines import MAIN, ROOT, mistake, process, script, tiny
from trainer import main as trainer_main
from trainer.distributed import launch
from trainer.evaluation.suite import NOT_SHARES
from trainer.exports.encoder import load_encoder
from trainer.recipe.loading import RECIPES, load
from trainer.runs.folder import RunFolder
from trainer.tracking import mlflow_store
from trainer.tracking.journal import read

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
PROBES = [
    "evaluate.at_end=true",
    "evaluate.controls=false",
    "evaluate.mlp=null",
    "evaluate.few_shot=null",
    "evaluate.linear={iterations: 10}",
]


@pytest.fixture(scope="module")
def root(digits) -> Path:
    return digits.root


# ---- questions --------------------------------------------------------------------------------------


def test_list_names_every_recipe_from_any_folder(tmp_path):
    done = process(sys.executable, MAIN, "--list", cwd=tmp_path)
    assert (done.status, done.err) == (0, "")
    lines = [line.split(maxsplit=2) for line in done.out.splitlines()]
    assert [line[0] for line in lines] == NAMES
    assert {name: task for name, task, _ in lines}["evaluate"] == "evaluate"
    assert not list(tmp_path.iterdir())


def test_print_shows_the_resolved_recipe_with_origins(capsys):
    done = script(capsys, "recipe=dim_local", "--print", "optimizer.lr=3e-4")
    assert (done.status, done.err) == (0, "")
    assert done.out == load(["recipe=dim_local", "optimizer.lr=3e-4"]).text()
    origins = {line.split("#")[0].strip(): line.split("#")[-1].strip() for line in done.out.splitlines()}
    assert origins["lr: 0.0003"] == "command line"
    assert origins["source: cifar10"] == "dim_local.yaml"
    assert origins["window: 16"] == "default"


def test_folder_is_where_the_run_will_be(capsys):
    assert script(capsys, "recipe=dim_local", "--folder").out == "outputs/dim_local\n"
    assert script(capsys, "--folder", "recipe=dim_local", "run=b", "outputs=/x").out == "/x/b\n"


def test_plan_tells_what_a_recipe_costs_before_anything_is_there(capsys, tmp_path):
    root = tmp_path / "nothing"
    done = script(capsys, "recipe=dim_local", "--plan", f"data.root={root}", f"outputs={tmp_path}/outputs")
    assert (done.status, done.err) == (0, "")
    assert f"data set {root} does not exist" in done.out
    for part in ("encoder 4,921,280", "  critic 9,195,520", "in all 14,116,800"):
        assert part in done.out
    assert "50,000,384 images = 97,657 steps of 512" in done.out
    assert "8 ranks    64 images a step = 1 x 64" in done.out
    assert "16 ranks" not in done.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("recipe", "latent"),
    [
        ("hybrid_cifar10_resnet_small", "D = 896 numbers: y 128, w 3 x 16 x 16"),
        ("hybrid_cifar10_small", "D = 1,536 numbers: y 3 x 16 x 16, w 3 x 16 x 16"),
        ("contrastive_cifar10_resnet_small", None),
    ],
)
def test_plan_tells_the_size_of_the_latent(capsys, tmp_path, recipe, latent):
    done = script(capsys, f"recipe={recipe}", "--plan", f"data.root={tmp_path}/nothing")
    assert done.status == 0
    assert [line for line in done.out.splitlines() if line.startswith("latent")] == (
        [f"latent     z of {latent}"] if latent else []
    )


def test_plan_counts_epochs_where_the_data_is(capsys, root, tmp_path):
    images = json.loads((root / "dataset.json").read_text())["splits"]["train"]["images"]
    done = script(capsys, *tiny(tmp_path, root), "--plan")
    assert done.status == 0
    assert f"{images:,} images an epoch = {images / 128:.1f} steps; {256 / images:.1f} epochs" in done.out
    assert "256 images = 2 steps of 128" in done.out
    assert "(2 times, 2 kept)" in done.out
    assert not list(tmp_path.iterdir())


def test_plan_reads_joined_splits_and_refuses_what_the_run_would(capsys, root, tmp_path):
    splits = json.loads((root / "dataset.json").read_text())["splits"]
    both = splits["train"]["images"] + splits["test"]["images"]
    done = script(capsys, *tiny(tmp_path, root), "--plan", "data.train=train+test", "data.labelled=train")
    assert f"{both:,} images an epoch" in done.out
    for key in ("train", "test", "labelled"):
        line = mistake(script(capsys, *tiny(tmp_path, root), f"data.{key}=val", "--plan"))
        has = "no split 'val'; it has train, test"
        assert line == f"data.{key}=val: {root}: {has}; set data.{key} to one of its splits"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--plans"],
            "--plans: unknown; expected --list, --print, --plan, --folder, --allow-commands or key",
        ),
        (["--plan", "--list"], "expected at most one of"),
        (["recipe=evaluate", "--plan"], "of task evaluate; only training is planned"),
        ([], "no recipe given; expected recipe=NAME, such as recipe=quickstart"),
    ],
)
def test_a_question_that_makes_no_sense(capsys, arguments, message):
    assert message in mistake(script(capsys, *arguments))


def test_mlflow_is_set_up_before_a_library_imports_it(monkeypatch):
    """As DeepSpeed does; else it logs to the screen, and sends telemetry."""
    for name in mlflow_store.SETTINGS:
        monkeypatch.delenv(name, raising=False)

    def start(precision: str) -> None:
        assert mlflow_store.SETTINGS.items() <= os.environ.items()
        raise UserError("far enough")

    monkeypatch.setattr(launch, "start", start)
    with pytest.raises(UserError, match="far enough"):
        trainer_main.train(load(["recipe=quickstart"]))


# ---- a whole run ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    """A run by `accelerate launch`, with a probe at its end: its outputs, its arguments, how it ended."""
    outputs = tmp_path_factory.mktemp("finished")
    arguments = tiny(outputs, root, *PROBES)
    return outputs, arguments, process("accelerate", "launch", "trainer/main.py", *arguments)


def test_a_run_ends_with_what_was_learned_and_where_it_is(finished):
    outputs, _, done = finished
    folder = outputs / "quickstart"
    assert done.status == 0, done.err
    assert "Traceback" not in done.err
    assert done.out.splitlines()[0] == "recipe quickstart: 1 rank x 1 thread, single process, cpu, float32"
    encoder = folder / "export" / "encoder.safetensors"
    assert done.out.splitlines()[-5:] == [
        f"run       {folder}",
        f"encoder   {encoder}",
        f"pictures  {folder / 'figures'}: {', '.join(sorted(p.name for p in folder.glob('figures/*.png')))}",
        f'load      from trainer.exports.encoder import load_encoder; encoder = load_encoder("{encoder}")',
        f"evaluate  accelerate launch trainer/main.py recipe=evaluate from={folder}",
    ]
    results = json.loads((folder / "results.json").read_text())
    assert {"probe/linear/conv", "probe/linear/fc", "probe/linear/y", "knn/y"} <= set(results)
    accuracies = {name: value for name, value in results.items() if not name.endswith(NOT_SHARES)}
    assert all(0.5 < value <= 1 for value in accuracies.values())  # ten classes: chance is 0.1
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == ["images-000000000128", "images-000000000256"]


def test_the_journal_has_the_figures_from_the_first_step(finished):
    outputs, _, _ = finished
    metrics, kinds = {}, []
    for record, _ in read(outputs / "quickstart" / "journal.jsonl"):
        kinds.append(record["kind"])
        if record["kind"] == "metric":
            assert record["name"] not in metrics.get(record["images"], {})  # once each
            metrics.setdefault(record["images"], {})[record["name"]] = record["value"]
    assert sorted(metrics) == [128, 256]
    first = metrics[128]
    assert {"loss", "lr", "epoch", "images_per_second", "data_wait"} <= set(first)
    assert first["local/random_guess"] == 0
    assert first["mi/local"] <= first["mi/local/ceiling"] == pytest.approx(math.log(64))
    assert "results/probe/linear/y" in metrics[256]
    assert "knn/y/online" not in metrics[256]  # evaluate.every=0: never
    assert kinds[-1] == "end"


def test_the_exported_encoder_is_the_one_that_was_measured(finished, root):
    encoder = load_encoder(finished[0] / "quickstart" / "export" / "encoder.safetensors")
    assert not encoder.training
    features = encoder(torch.zeros(2, 3, 16, 16))
    assert features["y"].shape == (2, load(["recipe=quickstart"]).recipe.encoder.y)
    assert not torch.equal(encoder.fc[1].running_mean, torch.zeros(256))  # statistics were learned


def test_the_line_that_loads_the_encoder_works_as_printed(finished):
    (line,) = re.findall("^load      (.*)$", finished[2].out, re.MULTILINE)
    names: dict = {}
    exec(line, names)
    assert names["encoder"](torch.zeros(1, 3, 16, 16))["y"].shape == (1, 32)


@pytest.mark.slow
def test_the_command_that_evaluates_works_as_printed(finished, tmp_path):
    outputs, _, run = finished
    (line,) = re.findall("^evaluate  (.*)$", run.out, re.MULTILINE)
    shutil.copytree(outputs, tmp_path / "copy")  # its figures are compared with those of other tests
    words = shlex.split(line.replace(str(outputs), str(tmp_path / "copy")))
    less = ["evaluate.linear={iterations: 10}", "evaluate.mlp=null", "evaluate.svm=null"]
    done = process(*words, *less, "evaluate.few_shot=null")
    assert done.status == 0, done.err
    assert done.out.splitlines()[0].startswith("recipe evaluate: 1 rank")
    assert [text.split()[0] for text in done.out.splitlines()[-4:]] == ["run", "encoder", "pictures", "load"]


def test_the_same_command_prints_the_results_again(capsys, finished):
    outputs, arguments, before = finished
    files = {path: path.stat().st_mtime_ns for path in outputs.rglob("*") if path.is_file()}
    done = script(capsys, *arguments)
    assert (done.status, done.err) == (0, "")
    assert "is finished; run=NAME starts another" in done.out
    assert done.out.splitlines()[-8:] == before.out.splitlines()[-8:]
    assert {path: path.stat().st_mtime_ns for path in outputs.rglob("*") if path.is_file()} == files


def test_a_finished_run_is_of_its_data_set_while_there_is_one(capsys, finished, tmp_path):
    _, arguments, _ = finished
    (root,) = [word for word in arguments if word.startswith("data.root=")]
    words = [word for word in arguments if word != root]
    other = make("digits", tmp_path / "other", images_per_shard=400, workers=1, progress=False).root
    line = mistake(script(capsys, *words, f"data.root={other}"))
    assert f"the data set in {other} is not the one it was trained on; start another with run=NAME" in line
    assert script(capsys, *words, f"data.root={tmp_path}/gone").status == 0


def test_a_finished_run_is_evaluated_again_from_its_folder(capsys, finished):
    outputs, _, _ = finished
    before = json.loads((outputs / "quickstart" / "results.json").read_text())
    options = [word for word in PROBES if "at_end" not in word] + ["evaluate.few_shot={shots: 5, draws: 2}"]
    options.remove("evaluate.few_shot=null")
    options.append("evaluate.svm={iterations: 20}")
    done = script(capsys, "recipe=evaluate", f"from={outputs / 'quickstart'}", "tracking.uri=none", *options)
    assert done.status == 0, done.err
    after = json.loads((outputs / "quickstart" / "results.json").read_text())
    new = {f"probe/{head}/{name}" for head in ("linear_sgd", "svm") for name in ("conv", "fc", "y")}
    new |= {f"probe/svm/{name}/std" for name in ("conv", "fc", "y")}  # which recipe=evaluate adds
    added = {name for name in set(after) - set(before) if not name.endswith(NOT_SHARES)}
    assert added == {"few_shot/5/linear/y"} | new
    for name, value in before.items():
        assert after[name] == pytest.approx(value, abs=0.01)
    assert f"run       {outputs / 'quickstart'}" in done.out


def test_told_to_stop_while_it_waits_for_the_first_images(capsys, root, tmp_path, monkeypatch):
    """Nothing was done yet, and slow reads are no failing ones: it does not wait for them."""
    arguments = tiny(tmp_path, root)
    assert script(capsys, *arguments, "run=calm").status == 0
    read = Reader.read

    def slow(reader, *more):
        monkeypatch.setattr(Reader, "read", read)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(4)
        return read(reader, *more)

    monkeypatch.setattr(Reader, "read", slow)
    done = script(capsys, *arguments, "run=slow")
    assert done.status == 1, done.err
    assert "told to stop (SIGTERM)" in done.out
    done = script(capsys, *arguments, "run=slow")
    assert done.status == 0, done.err
    assert "resumed at 0 images" in done.out
    one, two = (load_encoder(tmp_path / run / "export/encoder.safetensors") for run in ("calm", "slow"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_disk_that_is_full_when_all_is_done_is_one_line(capsys, root, tmp_path, monkeypatch):
    write_status = RunFolder.write_status

    def full(folder, name, *more):
        if name == "done":
            raise UserError("cannot write done: No space left on device")
        write_status(folder, name, *more)

    monkeypatch.setattr(RunFolder, "write_status", full)
    assert "No space left on device" in mistake(script(capsys, *tiny(tmp_path, root)))
    assert (tmp_path / "quickstart" / "failed").exists()


def test_more_images_continue_a_finished_run_of_a_constant_schedule(capsys, root, tmp_path):
    arguments = tiny(tmp_path, root)
    assert script(capsys, *arguments).status == 0
    done = script(capsys, *arguments, "images=384")
    assert done.status == 0, done.err
    assert "resumed at 256 images" in done.out
    assert (tmp_path / "quickstart" / "checkpoints" / "images-000000000384").is_dir()


def test_another_name_starts_another_run_beside_it(capsys, root, tmp_path):
    assert script(capsys, *tiny(tmp_path, root, "run=first", "images=128")).status == 0
    assert script(capsys, *tiny(tmp_path, root, "run=second", "images=128", "seed=1")).status == 0
    assert {path.name for path in tmp_path.iterdir()} == {"first", "second"}
    first, second = (
        load_encoder(tmp_path / run / "export/encoder.safetensors") for run in ("first", "second")
    )
    assert not torch.equal(first.y.weight, second.y.weight)


@pytest.mark.slow
def test_two_ranks_by_the_command_of_the_manual(root, tmp_path):
    command = ["accelerate", "launch", "--config_file", "recipes/launch/ddp.yaml", "--num_processes", "2"]
    done = process(*command, "--main_process_port", "0", "trainer/main.py", *tiny(tmp_path, root), cwd=ROOT)
    assert done.status == 0, done.err
    assert done.out.splitlines()[0] == "recipe quickstart: 2 ranks x 1 thread, ddp, cpu, float32"
    assert json.loads((tmp_path / "quickstart" / "world.json").read_text())["processes"] == 2
    assert done.out.count("run       ") == 1  # rank 0 alone speaks
