"""The task `measure`: the figures of a run again, to the bit, and others, of other seeds and checkpoints."""

import os
import shutil
import signal
import sys

import pytest

from tests.helpers.command_lines import MAIN, mistake, process, script
from tests.helpers.latent_runs import OF_IMAGES, diffuse, encoder_run
from tests.helpers.recipes import write
from tests.helpers.tiny_extractors import torchscript
from trainer.runs.folder import RunFolder
from trainer.tasks.measure import outdated
from trainer.tracking.journal import Journal, read

RECIPE = """
task: diffuse
batch: 32
images: 128
objective:
  kind: diffusion
  map: {{width: 8, multipliers: [1, 2], attention: [], blocks: 1, dropout: 0.0}}
optimizer: {{kind: adam, lr: 1e-3}}
data: {{root: {root}, source: digits, size: 8, views: [{{}}]}}
save: {{every: 64}}
log: {{every: 64}}
draw: {{steps: 3, batch: 20}}
evaluate:
  samples: 40
  rows: [test, samples, blur_2]
  extractor: {extractor}
  sha256: {digest}
  measures: [frechet, sliced_w2]
tracking: {{uri: none}}
"""
NAME = "images-000000000128-flow-heun-3-seed-1"


def values(folder) -> dict[tuple[str, int], float]:
    """What the journal has, by name and images."""
    records = (record for record, _ in read(folder / "journal.jsonl"))
    return {(one["name"], one["images"]): one["value"] for one in records if one["kind"] == "metric"}


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    """A finished diffusion of digits with checkpoints at 64 and 128 images; read only: `copied` copies it."""
    folder = tmp_path_factory.mktemp("runs")
    path, _, digest = torchscript(folder)
    text = RECIPE.format(root=digits.root, extractor=path, digest=digest)
    done = process(sys.executable, MAIN, write(folder, "digits", text), f"outputs={folder}/outputs")
    assert done.status == 0, done.err
    return folder / "outputs" / "digits", done.out


@pytest.fixture
def copied(finished, tmp_path):
    """The run, where a test may write."""
    return shutil.copytree(finished[0], tmp_path / "digits")


@pytest.mark.slow
def test_a_run_ends_with_the_table_and_what_measures_it_again(finished):
    folder, out = finished
    figures = RunFolder(folder).results()
    rows = {name.split("/")[1] for name in figures}
    assert rows == {"test", "samples", "blur_2"}
    assert figures["generation/samples/images"] == 40
    title = next(line for line in out.splitlines() if line.startswith("generation, net"))
    assert title.split()[2:] == ["frechet", "sliced_w2", "images"]
    row = next(line for line in out.splitlines() if line.startswith("samples  "))
    assert row.split()[1:3] == [
        f"{figures[f'generation/samples/{name}_net']:,.4g}" for name in ("frechet", "sliced_w2")
    ]
    assert f"recipe=measure from={folder} seed=1" in out
    assert " denoising 0." in out or " denoising 1." in out or " denoising 2." in out
    assert (folder / "figures" / "curves.png").exists()


@pytest.mark.slow
def test_the_same_command_gives_the_same_figures_to_the_bit(capsys, copied):
    before, journal = RunFolder(copied).results(), values(copied)
    (copied / "results.json").unlink()
    done = script(capsys, "recipe=measure", f"from={copied}")
    assert done.status == 0, done.err
    assert RunFolder(copied).results() == before
    assert values(copied) == journal  # the first of each stays
    assert not (copied / "evaluations").exists()


@pytest.mark.slow
def test_other_seeds_and_checkpoints_have_a_folder_of_their_own(capsys, copied):
    before = (copied / "results.json").read_bytes()
    for words in (["seed=1"], ["checkpoint=64"], ["draw.sampler=euler"]):
        assert (
            script(capsys, "recipe=measure", f"from={copied}", *words, "evaluate.rows=[samples]").status == 0
        )
    assert (copied / "results.json").read_bytes() == before
    names = sorted(path.name for path in (copied / "evaluations").iterdir())
    assert names == [
        "images-000000000064-flow-heun-3-seed-0",
        "images-000000000128-flow-euler-3-seed-0",
        NAME,
    ]
    figures = [RunFolder(copied / "evaluations" / name).results() for name in names]
    figures.append(RunFolder(copied).results())
    assert len({one["generation/samples/frechet_net"] for one in figures}) == 4
    assert (copied / "evaluations" / NAME / "figures" / "samples.png").exists()
    delivered = values(copied)
    assert (
        delivered["results/generation/samples/frechet_net", 64]
        == figures[0]["generation/samples/frechet_net"]
    )
    of_seed = figures[2]["generation/samples/frechet_net"]
    assert delivered[f"results/{NAME}/generation/samples/frechet_net", 128] == of_seed


@pytest.mark.slow
def test_two_ranks_measure_what_one_measures(copied, tmp_path):
    """Samples are shared out: their noise is a function of seed and number, their statistics are added up."""
    other = shutil.copytree(copied, tmp_path / "on two" / "digits")
    launch = ["accelerate", "launch", "--config_file", "recipes/launch/ddp.yaml", "--num_processes"]
    results = []
    for ranks, run in (("1", copied), ("2", other)):
        done = process(*launch, ranks, MAIN, "recipe=measure", f"from={run}", "seed=1", "draw.batch=7")
        assert done.status == 0, done.err
        assert done.out.count("measuring ") == 1
        results.append((RunFolder(run / "evaluations" / NAME).results(), values(run)))
    (one, delivered), (two, delivered_by_two) = results
    assert len(one) == 3 * 3  # of rows: two measures and how many images
    assert two == pytest.approx(one, rel=1e-4)  # float32: samples of other batches differ by rounding
    assert delivered_by_two == pytest.approx(delivered, rel=1e-4)


@pytest.mark.slow
def test_another_extractor_and_more_images_are_added_to_the_results(capsys, copied, tmp_path):
    path, _, digest = torchscript(tmp_path, "other", width=4)
    words = ["recipe=measure", f"from={copied}", f"evaluate.extractor={path}"]
    line = mistake(script(capsys, *words))  # the run's digest is that of another file
    assert f"add evaluate.sha256={digest}" in line
    words.append(f"evaluate.sha256={digest}")
    before = RunFolder(copied).results()
    assert script(capsys, *words).status == 0
    after = RunFolder(copied).results()
    assert after.items() > before.items()
    assert {"generation/samples/frechet_other", "generation/test/sliced_w2_other"} <= after.keys()
    # Another number of images of one row: its other figures, of fewer images, go.
    assert script(capsys, *words, "evaluate.samples=50", "evaluate.rows=[samples]").status == 0
    last = RunFolder(copied).results()
    assert last["generation/samples/images"] == 50
    assert "generation/samples/frechet_net" not in last
    assert last["generation/test/frechet_net"] == before["generation/test/frechet_net"]


@pytest.mark.slow
def test_what_cannot_be_measured_is_one_line_and_leaves_nothing(capsys, copied, digits, tmp_path):
    before = sorted(copied.rglob("*"))
    for words, message in [
        (
            ["evaluate.extractor=null"],
            "evaluate.extractor=null: nothing compares images; give efficientnet_lite0",
        ),
        (["evaluate.extractor=gone.pt"], "evaluate.extractor=gone.pt: no such file"),
        (["draw.eta=0.5"], "draw.eta=0.5: noise is added in steps of ddim alone, not of flow"),
        (["draw.guidance=2"], "draw.guidance=2 needs a condition"),
        (["checkpoint=5"], "checkpoint=5: the run has no such checkpoint; it keeps 64, 128"),
    ]:
        assert message in mistake(script(capsys, "recipe=measure", f"from={copied}", *words))
    journal = Journal(copied / "journal.jsonl")  # as one that trains it
    line = mistake(script(capsys, "recipe=measure", f"from={copied}"))
    assert "another process is writing this run" in line
    journal.close()
    assert "no run there" in mistake(script(capsys, "recipe=measure", f"from={tmp_path}/none"))
    line = mistake(script(capsys, "recipe=evaluate", f"from={copied}"))
    assert line == (
        f"from={copied}: a run of task diffuse, which has no encoder; give that of one of task pretrain; "
        "recipe=measure measures this one again, recipe=sample draws of it"
    )
    assert sorted(copied.rglob("*")) == before


# ---- where figures go, of a run that takes a second ------------------------------------------------


@pytest.fixture(scope="module")
def extractor(tmp_path_factory) -> list[str]:
    """The words that measure a few samples."""
    path, _, digest = torchscript(tmp_path_factory.mktemp("extractor"))
    few = ["evaluate.rows=[samples]", "evaluate.samples=8", "evaluate.measures=[frechet]", "evaluate.shown=4"]
    return [f"evaluate.extractor={path}", f"evaluate.sha256={digest}", *few]


@pytest.fixture
def train(capsys, digits):
    """Folder and words -> a finished diffusion of images there, which measures nothing by itself."""

    def trained(run, *words: str):
        quiet = ["evaluate.every=0", "evaluate.at_end=false"]
        source = [] if any(word.startswith("from=") for word in words) else OF_IMAGES
        source = [*source, *[f"data.root={digits.root}"] * bool(source)]
        done = script(capsys, *diffuse(run, *source, *quiet, *words))
        assert done.status == 0, done.err
        return run

    return trained


@pytest.fixture
def tiny(train, tmp_path, tmp_path_factory, cache=[]):  # noqa: B006 - one run for all tests
    """Such a run, where a test may write."""
    if not cache:
        cache.append(train(tmp_path_factory.mktemp("tiny") / "run"))
    return shutil.copytree(cache[0], tmp_path / "run")


def test_figures_of_an_unfinished_run_do_not_become_the_runs_own(capsys, tiny, extractor):
    words = ["recipe=measure", f"from={tiny}", *extractor]
    done = (tiny / "done").rename(tiny / "later")
    assert script(capsys, *words).status == 0
    assert not (tiny / "results.json").exists()
    (earlier,) = (tiny / "evaluations").iterdir()
    assert RunFolder(earlier).results().keys() == {
        "generation/samples/frechet_net",
        "generation/samples/images",
    }
    done.rename(tiny / "done")
    assert script(capsys, *words).status == 0
    assert RunFolder(tiny).results() == RunFolder(earlier).results()


@pytest.mark.parametrize("at_end", [False, True])
def test_a_run_that_goes_on_drops_figures_of_its_earlier_checkpoint(
    capsys, tiny, train, extractor, tmp_path, at_end
):
    RunFolder(tiny).merge_results({"probe/linear/denoiser_features": 0.5, "knn/y": 0.25})
    assert script(capsys, "recipe=measure", f"from={tiny}", *extractor).status == 0
    before = RunFolder(tiny).results()
    assert "generation/samples/frechet_net" in before
    more = [*extractor, "evaluate.samples=6", "evaluate.at_end=true"] if at_end else []
    train(tiny, "images=128", *more)
    after = RunFolder(tiny).results()
    assert after.pop("knn/y") == 0.25
    if at_end:
        assert after.pop("generation/samples/frechet_net") != before["generation/samples/frechet_net"]
        assert after.pop("generation/samples/images") == 6
    assert not after


def test_a_run_whose_encoder_has_moved_is_measured(capsys, train, extractor, digits, tmp_path):
    encoder_run(tmp_path / "encoder", digits.root)
    run = train(tmp_path / "run", f"from={tmp_path}/encoder", "images=32")
    (tmp_path / "encoder").rename(tmp_path / "moved")
    words = ["recipe=measure", f"from={run}", *extractor]
    line = mistake(script(capsys, *words))
    assert line == (
        f"the recipe of {run} names from={tmp_path}/encoder, and no run lies there; give its new place with "
        "encoder=FOLDER"
    )
    assert script(capsys, *words, f"encoder={tmp_path}/moved").status == 0
    assert RunFolder(run).results()["generation/samples/images"] == 8


def test_folders_that_cannot_be_written_are_found_before_anything_is_drawn(
    capsys, tiny, extractor, monkeypatch
):
    (tiny / "evaluations").write_text("")
    shutil.rmtree(tiny / "figures")
    (tiny / "figures").write_text("")
    words = ["recipe=measure", f"from={tiny}", *extractor]
    with monkeypatch.context() as patch:
        patch.setattr("trainer.tasks.measure.open_data", None)
        line = mistake(script(capsys, *words, "seed=1"))
        assert line.startswith(f"{tiny}/evaluations/images-000000000096-flow-heun-2-seed-1: its results.json")
        assert f"{tiny}/evaluations is no folder; make it writable, or give a copy" in line
        (tiny / "results.json").mkdir()
        assert "results.json" in mistake(script(capsys, *words))
        (tiny / "results.json").rmdir()
    done = script(capsys, *words)
    assert done.status == 0
    warning = f"warning: figures/…: left out, {tiny}/figures is no folder"
    assert done.out.index(warning) < done.out.index("measuring ")


def test_a_journal_that_cannot_be_written_advises_no_key_that_the_command_lacks(
    capsys, tiny, extractor, monkeypatch
):
    def closed(path, wait):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("trainer.tracking.journal.open_locked", closed)
    line = mistake(script(capsys, "recipe=measure", f"from={tiny}", *extractor))
    assert line == (
        f"{tiny}/journal.jsonl: cannot be written (Permission denied); make it writable, or give a copy "
        "of the run with from="
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_is_one_line(capsys, tiny, extractor, monkeypatch, number):
    monkeypatch.setattr(
        "trainer.tasks.generation_run.measure", lambda what: os.kill(os.getpid(), number) or {}
    )
    done = script(capsys, "recipe=measure", f"from={tiny}", *extractor)
    assert done.status == (130 if number == signal.SIGINT else 143)
    assert done.out.splitlines()[-1].startswith(f"told to stop ({number.name}): nothing was measured")
    assert not done.err
    assert not (tiny / "results.json").exists()


def test_figures_of_another_number_of_images_are_outdated():
    before = {"generation/test/images": 40, "generation/test/fid": 1.0, "generation/samples/images": 40}
    before |= {"generation/samples/fid": 2.0, "generation/samples_of_train_y/fid": 3.0, "knn/y": 0.5}
    figures = {"generation/samples/images": 50, "generation/samples/kid": 0.1, "generation/test/images": 40}
    assert outdated(before, figures) == ["generation/samples/images", "generation/samples/fid"]
    assert outdated({}, figures) == []
