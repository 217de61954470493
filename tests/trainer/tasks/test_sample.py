"""The task sample: images of a diffusion run in a folder, and mistakes that leave nothing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.command_lines import mistake, script
from tests.helpers.latent_runs import OF_IMAGES, diffuse, encoder_run, newest
from trainer.recipe.loading import load
from trainer.runs.folder import RunFolder
from trainer.tasks import sample
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
    folder = latents / "samples" / "images-000000000096-flow-heun-2-guidance-1.5-seed-3"
    assert str(folder) in done.out
    array = np.load(folder / "samples.npy")
    assert (array.shape, array.dtype) == ((5, 3, 8, 8), np.uint8)
    assert json.loads((folder / "samples.json").read_text()) == {
        "run": str(latents),
        "images": 96,
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
    assert names == [f"images-000000000096-ddim-euler-2-eta-1-seed-{seed}" for seed in (0, 1)]
    arrays = [np.load(images / "samples" / name / "samples.npy") for name in names]
    assert not np.array_equal(*arrays)


@pytest.mark.parametrize("precision", ["float64", "bf16"])
def test_images_draw_in_every_precision(capsys, images, tmp_path, precision):
    for kind in ("float32", precision):
        done = drawn(capsys, images, "samples=4", f"precision={kind}", f"to={tmp_path}/{kind}")
        assert done.status == 0, done.err
    one, other = (np.load(tmp_path / kind / "samples.npy").astype(int) for kind in ("float32", precision))
    assert np.abs(one - other).max() <= (1 if precision == "float64" else 40)


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
    shutil.rmtree(place)
    assert f"from={place}: no run there" in refused(capsys, run)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_something_else_at_the_target_stays(capsys, tmp_path, images, kind):
    to = tmp_path / "to"
    if kind == "folder":
        to.mkdir()
        (to / "mine.txt").write_text("mine")
    else:
        to.write_text("mine")
    line = refused(capsys, images, f"to={to}")
    assert line.startswith(f"to={to}: something else lies there (no samples.json)")
    assert [path.name for path in tmp_path.iterdir()] == ["to"]
    assert (to / "mine.txt" if kind == "folder" else to).read_text() == "mine"


def test_a_target_within_a_file(capsys, tmp_path, images):
    (tmp_path / "file").write_text("")
    assert f"{tmp_path}/file" in refused(capsys, images, f"to={tmp_path}/file/to")


def test_a_disk_that_fills_leaves_nothing(capsys, tmp_path, images, monkeypatch):
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sample.os, "posix_fallocate", full)
    assert "No space left on device" in refused(capsys, images, f"to={tmp_path}/to")
    assert not list(tmp_path.iterdir())
