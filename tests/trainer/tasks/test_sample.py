"""The task sample: images of a diffusion run in a folder, and mistakes that leave nothing."""

import json
import os
import platform
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.command_lines import mistake, script
from tests.helpers.latent_runs import OF_IMAGES, diffuse, encoder_run, newest
from trainer.generation.processes import PROCESSES, Ddim
from trainer.objectives.drawing import Artist
from trainer.recipe.drawing import TIMES_OF_DDIM, Drawing
from trainer.recipe.loading import load
from trainer.runs.folder import RunFolder
from trainer.tasks import sample
from trainer.tasks.generation_pages import describe
from trainer.tasks.latent_source import open_source
from trainer.tasks.saved_run import choose
from trainer.training.diffusion import build_diffusion

QUIET = ["evaluate.every=0", "evaluate.at_end=false"]


@pytest.fixture(scope="module")
def encoder(digits, tmp_path_factory) -> Path:
    return encoder_run(tmp_path_factory.mktemp("encoder") / "pooled", digits.root)


@pytest.fixture
def train(capsys):
    """Folder and words -> a finished diffusion run there."""

    def trained(run: Path, *words: str) -> Path:
        done = script(capsys, *diffuse(run, *words, *QUIET))
        assert done.status == 0, done.err
        return run

    return trained


@pytest.fixture
def latents(train, encoder, tmp_path_factory, cache={}) -> Path:  # noqa: B006 - one run for all tests
    """A finished run of y and w."""
    if encoder not in cache:
        cache[encoder] = train(tmp_path_factory.mktemp("diffusion") / "latents", f"from={encoder}")
    return cache[encoder]


@pytest.fixture
def images(train, digits, tmp_path_factory, cache={}) -> Path:  # noqa: B006 - as above
    """A finished run of images by ddim."""
    if digits.root not in cache:
        words = [*OF_IMAGES, f"data.root={digits.root}", "objective.process=ddim"]
        cache[digits.root] = train(tmp_path_factory.mktemp("diffusion") / "images", *words)
    return cache[digits.root]


def drawn(capsys, run: Path, *words: str):
    return script(capsys, "recipe=sample", f"from={run}", "draw.steps=2", *words)


# ---- what it leaves --------------------------------------------------------------------------------


def test_a_folder_has_all_samples_a_page_and_a_record(capsys, latents):
    before = sorted(latents.rglob("*"))
    done = drawn(capsys, latents, "samples=5", "draw.batch=2", "seed=3", "files=true", "draw.guidance=1.5")
    assert done.status == 0, done.err
    folder = latents / "samples" / "images-000000000096-flow-heun-2-guidance-1.5-seed-3-samples-5"
    assert str(folder) in done.out
    array = np.load(folder / "samples.npy")
    assert (array.shape, array.dtype) == ((5, 3, 8, 8), np.uint8)
    assert json.loads((folder / "samples.json").read_text()) == {
        "run": str(latents),
        "images": 96,
        "checkpoint": choose(RunFolder(latents), 96, "checkpoint").manifest["digest"],
        "samples": 5,
        "seed": 3,
        "precision": "float32",
        "drawn": "flow, 2 steps of heun, guidance 1.5, seed 3",
    }
    assert Image.open(folder / "samples.png").size[0] > 8
    for number, pixels in enumerate(array):
        file = np.asarray(Image.open(folder / "images" / f"{number}.png"))
        assert np.array_equal(file, pixels.transpose(1, 2, 0))
    others = {path for path in latents.rglob("*") if folder not in path.parents and path != folder}
    assert others - {latents / "samples"} == set(before)


def test_samples_are_those_of_the_checkpoints_average_in_float64(capsys, latents, tmp_path):
    words = ["samples=4", "precision=float64", f"to={tmp_path}/s", "draw.sampler=euler", "checkpoint=64"]
    assert drawn(capsys, latents, *words).status == 0
    recipe = load([f"recipe={latents}/recipe.yaml"]).recipe
    checkpoint = choose(RunFolder(latents), 64, "checkpoint")
    source = open_source(recipe, False, checkpoint.manifest["data"])
    objective = sample.load_weights(build_diffusion(recipe, source.shapes), checkpoint).double()
    part_of = {}
    with torch.no_grad():
        for name, part in (("y", objective.y), ("w", objective.w)):
            like = torch.empty(source.shapes[name], dtype=torch.float64)
            x = sample_noise(0, name, like)
            condition = objective.y.scaling(part_of["y"]) if name == "w" else None
            for t, width in ((1.0, 0.5), (0.5, 0.5)):
                x = x - width * part.average(x, torch.full((4,), 1000 * t), condition)
            part_of[name] = x * part.scaling.std + part.scaling.mean
        codec = source.codec(torch.device("cpu"), torch.float64)
        pixels = codec.decode(part_of["y"], part_of["w"].flatten(1)).clamp(0, 1)
    assert np.array_equal(
        np.load(tmp_path / "s/samples.npy"), (pixels * 255).round().numpy().astype(np.uint8)
    )


def sample_noise(seed: int, part: str, like: torch.Tensor) -> torch.Tensor:
    from trainer.objectives.drawing import SampleNoise

    return SampleNoise(seed, np.arange(4), part, like)()


def test_the_same_again_takes_its_place_and_another_seed_lies_beside(capsys, images):
    for seed in (0, 0, 1):
        assert drawn(capsys, images, "samples=3", f"seed={seed}", "draw.eta=1").status == 0
    names = sorted(path.name for path in (images / "samples").iterdir())
    assert names == [f"images-000000000096-ddim-euler-2-eta-1-seed-{seed}-samples-3" for seed in (0, 1)]
    arrays = [np.load(images / "samples" / name / "samples.npy") for name in names]
    assert not np.array_equal(*arrays)


@pytest.mark.parametrize("precision", ["float64", "bf16"])
def test_images_draw_in_every_precision(capsys, images, tmp_path, precision):
    for kind in ("float32", precision):
        done = drawn(capsys, images, "samples=4", f"precision={kind}", f"to={tmp_path}/{kind}")
        assert done.status == 0, done.err
    one, other = (np.load(tmp_path / kind / "samples.npy").astype(int) for kind in ("float32", precision))
    apart = np.abs(
        one - other
    )  # in bf16 a pixel between black and white may be anything: processors round apart
    assert apart.mean() <= 3
    assert precision == "bf16" or apart.max() <= 1


# ---- mistakes --------------------------------------------------------------------------------------


def refused(capsys, run: Path, *words: str) -> str:
    """The one line; the run's folder is as it was."""
    before = sorted(run.rglob("*")) if run.exists() else []
    line = mistake(drawn(capsys, run, *words))
    assert (sorted(run.rglob("*")) if run.exists() else []) == before
    return line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["draw.eta=1.5"], "draw.eta: expected a number from 0 to 1, got 1.5"),
        (["draw.eta=-0.1"], "draw.eta: expected a number from 0 to 1, got -0.1"),
        (["draw.eta=0.5"], "draw.eta=0.5: noise is added in steps of ddim alone, not of flow"),
        (["checkpoint=7"], "checkpoint=7: the run has no such checkpoint; it keeps 64, 96"),
        (["samples=0"], "samples: expected"),
        (["samples=1000000000000"], "samples=1000000000000: they take"),
    ],
)
def test_what_does_not_fit_a_run_of_latents(capsys, latents, words, message):
    assert message in refused(capsys, latents, *words)


def test_guidance_and_samplers_that_a_run_of_images_lacks(capsys, images):
    assert "draw.guidance=2 needs a condition" in refused(capsys, images, "draw.guidance=2")
    line = refused(capsys, images, "draw.sampler=heun")
    assert line == "draw.sampler=heun: ddim's times are whole numbers; it has euler alone"


def test_runs_that_draw_nothing(capsys, tmp_path, encoder):
    line = refused(capsys, encoder)
    assert f"from={encoder}: a run of task pretrain, which draws nothing" in line
    assert "no run there (recipe.yaml is missing)" in refused(capsys, tmp_path / "none")


def test_a_run_without_a_checkpoint(capsys, tmp_path, images):
    copy = tmp_path / "copy"
    shutil.copytree(images, copy)
    shutil.rmtree(copy / "checkpoints")
    assert f"from={copy}: the run has no checkpoint yet" in refused(capsys, copy)


def test_a_damaged_checkpoint(capsys, tmp_path, images):
    copy = tmp_path / "copy"
    shutil.copytree(images, copy)
    (part,) = newest(copy).glob("*.safetensors")
    part.write_bytes(part.read_bytes()[:-8] + bytes(8))
    assert "checkpoint=96: checkpoint" in refused(capsys, copy, "checkpoint=96")


def test_the_latents_are_of_another_run(capsys, tmp_path, train, digits):
    place = tmp_path / "encoder"
    encoder_run(place, digits.root)
    run = train(tmp_path / "run", f"from={place}", "images=32")
    shutil.rmtree(place)
    encoder_run(place, digits.root, "seed=1")
    line = refused(capsys, run)
    assert f"from={place}: the denoiser was trained on the latents of another run" in line
    assert "encoder=FOLDER" in line
    other = place.rename(tmp_path / "other")
    line = refused(capsys, run)
    expected = (
        f"the recipe of {run} names from={place}, and no run lies there; give its new place with encoder="
    )
    assert line.startswith(expected)
    line = refused(capsys, run, f"encoder={other}")
    assert line.startswith(f"encoder={other}: the denoiser was trained on the latents of another run")
    assert f"encoder={tmp_path}/no: no run there" in refused(capsys, run, f"encoder={tmp_path}/no")
    assert f"encoder={run}: a run of task diffuse, which has no" in refused(capsys, run, f"encoder={run}")


def test_an_encoder_of_a_run_of_images(capsys, images, encoder):
    line = refused(capsys, images, f"encoder={encoder}")
    assert line.startswith(f"encoder={encoder}: {images} draws images and no latents")


def test_the_encoder_has_moved(capsys, tmp_path, train, encoder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(encoder, tmp_path / "there/encoder")
    run = train(tmp_path / "there/run", "from=there/encoder", "images=32")
    words = ["samples=2", f"to={tmp_path}"]
    assert drawn(capsys, run, "samples=2", "to=here").status == 0
    monkeypatch.chdir(tmp_path / "there")  # the run's recipe has a relative path
    done = drawn(capsys, run, "samples=2", f"to={tmp_path}/elsewhere")
    assert done.status == 0, done.err
    moved = (tmp_path / "there/encoder").rename(tmp_path / "moved")
    assert "names from=there/encoder, and no run lies there" in refused(capsys, run, *words)
    done = drawn(capsys, run, "samples=2", f"to={tmp_path}/last", f"encoder={moved}")
    assert done.status == 0, done.err
    arrays = [np.load(tmp_path / name / "samples.npy") for name in ("here", "elsewhere", "last")]
    assert np.array_equal(arrays[0], arrays[1])
    assert np.array_equal(arrays[0], arrays[2])


def test_mistakes_are_found_before_the_data_set_is_opened(capsys, latents, monkeypatch):
    monkeypatch.setattr("trainer.tasks.drawn_run.open_codec", None)
    for word in ("draw.eta=0.5", "to=/proc/version", "checkpoint=5"):
        assert word in refused(capsys, latents, word)


# ---- where they go ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "file", "beside samples", "among files"])
def test_something_else_at_the_target_stays(capsys, tmp_path, images, kind):
    to, mine = tmp_path / "to", tmp_path / "to/mine.txt"
    if kind == "file":
        mine = to
    elif kind == "folder":
        to.mkdir()
    else:
        assert drawn(capsys, images, f"to={to}", "samples=2", "files=true").status == 0
        mine = to / "images/2.png" if kind == "among files" else mine
        mine = mine.with_name("mine.png") if kind == "among files" else mine
    mine.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    line = refused(capsys, images, f"to={to}", "samples=2", "files=true")
    why = "no folder" if kind == "file" else mine.relative_to(to)
    assert line.startswith(f"to={to}: something else lies there ({why}); give another folder with to=")
    assert sorted(tmp_path.rglob("*")) == before
    assert mine.read_text() == "mine"


@pytest.mark.parametrize(
    ("word", "differs"),
    [
        ("samples=3", "samples 2, not 3"),
        ("seed=1", "seed 0, not 1"),
        ("checkpoint=64", "images 96, not 64"),
        ("precision=float64", 'precision "float32", not "float64"'),
        (
            "draw.steps=3",
            'drawn "ddim, 2 steps of euler, 3 evaluations, seed 0", not "ddim, 3 steps of euler',
        ),
    ],
)
def test_samples_of_another_drawing_stay(capsys, tmp_path, images, word, differs):
    to = tmp_path / "to"
    assert drawn(capsys, images, f"to={to}", "samples=2").status == 0
    before = {path: path.read_bytes() for path in to.iterdir()}
    line = mistake(script(capsys, "recipe=sample", f"from={images}", *three(f"to={to}", word)))
    assert line.startswith(f"to={to}: something else lies there (samples with {differs}")
    assert {path: path.read_bytes() for path in to.iterdir()} == before


def three(*words: str) -> list[str]:
    """The words of a drawing of two samples in two steps, and others, which go before."""
    defaults = {"samples": "samples=2", "draw.steps": "draw.steps=2"}
    return [*words, *(word for key, word in defaults.items() if not words[-1].startswith(f"{key}="))]


def test_the_same_samples_replace_their_like_and_remove_no_file(capsys, tmp_path, images):
    to = tmp_path / "to"
    to.mkdir()  # an empty one is nobody's
    for words in (["files=true"], []):
        assert drawn(capsys, images, f"to={to}", "samples=2", *words).status == 0
    names = {str(path.relative_to(to)) for path in to.rglob("*")}
    assert names == {"samples.npy", "samples.png", "samples.json", "images", "images/0.png", "images/1.png"}
    assert [path.name for path in tmp_path.iterdir()] == ["to"]


def test_a_quick_look_leaves_the_many_samples(capsys, images):
    for words in (["samples=4"], ["samples=2"], ["samples=2", "precision=float64"]):
        assert drawn(capsys, images, "seed=7", *words).status == 0
    begin = "images-000000000096-ddim-euler-2-seed-7-samples-"
    names = {path.name: len(np.load(path / "samples.npy")) for path in images.glob(f"samples/{begin}*")}
    assert names == {f"{begin}4": 4, f"{begin}2": 2, f"{begin}2-float64": 2}


def test_what_comes_to_the_target_while_samples_are_drawn_stays(capsys, tmp_path, images, monkeypatch):
    def draw(*values: object) -> None:
        (tmp_path / "to").mkdir()
        (tmp_path / "to/samples.npy").write_text("mine")

    monkeypatch.setattr(sample, "draw", draw)
    line = refused(capsys, images, f"to={tmp_path}/to", "samples=2")
    assert line.startswith(f"{tmp_path}/to: something else lies there (no samples.json)")
    assert (tmp_path / "to/samples.npy").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["to"]


def test_an_empty_mount_point_is_refused_before_anything_is_drawn(capsys, tmp_path, images, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(tmp_path))
    assert "a disk is mounted there" in refused(capsys, images, f"to={tmp_path}")


def test_a_link_leads_to_the_folder(capsys, tmp_path, images):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert drawn(capsys, images, f"to={tmp_path}/link", "samples=2").status == 0
    assert (tmp_path / "link").is_symlink()
    assert len(np.load(tmp_path / "real" / "samples.npy")) == 2


@pytest.mark.parametrize("to", ["file/to", "link/to", "closed/to", "/proc/to", "/"])
def test_no_folder_can_be_made_at_the_target(capsys, tmp_path, images, monkeypatch, to):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "closed").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, how: path.name != "closed" and access(path, how))
    line = refused(capsys, images, f"to={tmp_path / to}")
    assert "to=" in line
    assert str((tmp_path / to).parent) in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["closed", "file", "link"]


# ---- requests to stop ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1])
def test_a_request_to_stop_is_one_line_and_leaves_nothing(capsys, tmp_path, images, monkeypatch, number):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)  # under nohup SIGHUP is ignored, and a run leaves it so
    whole, before = Artist.images, signal.getsignal(number)

    def stopped(artist: Artist, ids: np.ndarray, y: torch.Tensor | None = None) -> torch.Tensor:
        if ids[0]:
            assert [path.suffix for path in tmp_path.iterdir()] == [".writing"]
            os.kill(os.getpid(), number)
        return whole(artist, ids, y)

    monkeypatch.setattr(Artist, "images", stopped)
    done = drawn(capsys, images, f"to={tmp_path}/to", "samples=4", "draw.batch=2", "files=true")
    assert done.status == (130 if number == signal.SIGINT else 143)
    assert done.out.splitlines()[-1].startswith(f"told to stop ({number.name}): nothing was kept")
    assert not done.err
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(number) == before


def test_what_killed_processes_of_this_machine_left_goes(capsys, tmp_path, images):
    ended = subprocess.Popen(["true"])
    ended.wait()
    names = [f"to.{platform.node()}.{number}.writing" for number in (ended.pid, os.getppid())]
    names += [f"to.elsewhere.{ended.pid}.writing", f"two.{platform.node()}.{ended.pid}.writing"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "samples.npy").write_text("")
    assert drawn(capsys, images, f"to={tmp_path}/to", "samples=2").status == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["to", *names[1:]])


# ---- how they are drawn ----------------------------------------------------------------------------


def test_the_evaluations_of_ddim_are_those_that_it_takes(capsys, tmp_path, images):
    for steps, words in ((50, ", 51 evaluations"), (700, ", 1,000 evaluations"), (1000, "")):
        described = describe(Drawing(steps=steps), "ddim", 0)
        assert described == f"ddim, {steps} steps of euler{words}, seed 0"
    assert describe(Drawing(), "ddim", 0) == "ddim, 50 steps of euler, 51 evaluations, seed 0"
    for process in ("flow", "edm"):
        assert "evaluations" not in describe(Drawing(), process, 0)
    line = mistake(script(capsys, "recipe=sample", f"from={images}", "draw.steps=1001"))
    assert line == "draw.steps=1001: ddim has 1,000 times; give at most 1000"
    assert Ddim.T == TIMES_OF_DDIM
    calls = []
    whole = PROCESSES["ddim"].parts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ddim, "parts", lambda *values: calls.append(1) or whole(*values))
        done = script(
            capsys, "recipe=sample", f"from={images}", "samples=1", "draw.steps=50", f"to={tmp_path}/s"
        )
    assert done.status == 0, done.err
    assert len(calls) == 51
    assert "51 evaluations" in json.loads((tmp_path / "s/samples.json").read_text())["drawn"]


def test_a_disk_that_fills_leaves_nothing(capsys, tmp_path, images, monkeypatch):
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sample.os, "posix_fallocate", full)
    assert "No space left on device" in refused(capsys, images, f"to={tmp_path}/to")
    assert not list(tmp_path.iterdir())
