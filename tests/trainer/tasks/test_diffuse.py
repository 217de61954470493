"""The task diffuse: what it leaves behind, and mistakes in one line each."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_pipelines.common.errors import UserError
from tests.helpers.command_lines import mistake, script
from tests.helpers.latent_runs import BATCH, OF_IMAGES, diffuse, encoder_run, newest
from trainer.checkpoints.format import folder_name
from trainer.checkpoints.retention import prune
from trainer.recipe.loading import load
from trainer.runs.folder import RunFolder
from trainer.tasks.latent_source import open_codec, open_source
from trainer.tracking.journal import read

STEPS = 6
FIRST = np.arange(5)


@pytest.fixture(scope="module")
def encoder(digits, tmp_path_factory) -> Path:
    """A run with two checkpoints, its y a vector."""
    return encoder_run(tmp_path_factory.mktemp("encoder") / "pooled", digits.root, steps=2)


@pytest.fixture(scope="module")
def maps(digits, tmp_path_factory) -> Path:
    """A run whose y is a map."""
    return encoder_run(tmp_path_factory.mktemp("encoder") / "map", digits.root, "encoder.layout=map")


@pytest.fixture(scope="module")
def contrastive(digits, tmp_path_factory) -> Path:
    """A run without a decoder."""
    words = ["objective={kind: dim, bound: jsd, critic: {units: 8, score: dot}}", "data.views=[{flip: 0.5}]"]
    words[:0] = ["encoder={kind: dim, channels: [8, 16], fc: 16, y: 8}", "data.size=16"]
    return encoder_run(tmp_path_factory.mktemp("encoder") / "dim", digits.root, *words)


def started(run: Path) -> list[str]:
    """What there is of a run's folder."""
    return sorted(path.name for path in run.iterdir()) if run.exists() else []


# ---- what it leaves --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pooled", "map", "images"])
def test_a_run_has_checkpoints_pages_and_a_command_that_draws(capsys, tmp_path, request, digits, kind):
    run = tmp_path / "run"
    words = {
        "pooled": lambda: [f"from={request.getfixturevalue('encoder')}"],
        "map": lambda: [f"from={request.getfixturevalue('maps')}", "objective.scale=position"],
        "images": lambda: [*OF_IMAGES, f"data.root={digits.root}"],
    }[kind]()
    done = script(capsys, *diffuse(run, *words))
    assert done.status == 0, done.err
    assert {
        "pooled": "samples: y of 32 numbers, then w of 2 x 4 x 4; D = 64",
        "map": "D = 64",
        "images": "D = 192",
    }[kind] in done.out
    assert f"recipe=sample from={run}" in done.out
    assert {"done", "recipe.yaml", "journal.jsonl", "checkpoints", "figures"} <= set(started(run))
    pages = {path.name for path in (run / "figures").iterdir()}
    assert {"samples.png", f"samples-{4 * BATCH:012d}.png", "curves.png"} <= pages
    names = {record["name"] for record, _ in read(run / "journal.jsonl") if record["kind"] == "metric"}
    parts = {"denoising/y", "denoising/w"} if kind == "pooled" else {"denoising"}
    assert parts | {"loss", "lr"} <= names
    again = script(capsys, *diffuse(run, *words))
    assert again.status == 0
    assert "is finished" in again.out


def test_components_and_scalings_are_those_of_all_latents(capsys, tmp_path, encoder):
    run = tmp_path / "run"
    done = script(capsys, *diffuse(run, f"from={encoder}", "objective.components=4", "evaluate.every=0"))
    assert done.status == 0, done.err
    assert "y of 32 numbers in 4 components" in done.out
    loaded = load(diffuse(run, f"from={encoder}"))
    tables = open_source(loaded.recipe, False, None).latents(torch.device("cpu")).tables
    state = load_file(newest(run) / "part-00000-of-00001.safetensors")
    y = torch.from_numpy(tables["y"][range_of(tables["y"])]).double()
    x = (y - state["model/y.scaling.mean"].double()) @ state["model/y.scaling.basis"].double()
    x /= state["model/y.scaling.std"].double()
    assert torch.allclose(x.T @ x / len(x), torch.eye(4).double(), atol=1e-3)
    w = torch.from_numpy(tables["w"][range_of(tables["w"])]).double()
    assert torch.allclose(state["model/w.scaling.mean"].flatten().double(), w.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(
        state["model/w.scaling.std"].flatten().double(), w.std((0, 2, 3), correction=0), rtol=1e-5
    )


def range_of(table):
    return torch.arange(len(table)).numpy()


def test_latents_of_a_mirror_image_are_those_of_the_flipped_image(capsys, tmp_path, encoder):
    loaded = load(diffuse(tmp_path / "run", f"from={encoder}"))
    source = open_source(loaded.recipe, False, None)
    tables, codec = source.latents(torch.device("cpu")).tables, source.codec(torch.device("cpu"))
    from data_pipelines.dali import in_order
    from data_pipelines.reader import Reader

    with Reader(source.dataset, "train") as reader:
        images = reader.images
        ids = torch.arange(3).numpy()
        ((views, _),) = in_order(reader, source.images(torch.device("cpu")), ids, 3)
    assert len(tables["y"]) == 2 * images
    with torch.no_grad():
        for shift, seen in ((0, views), (images, views.flip(-1))):
            for name, rows in zip(("y", "w"), codec.encode(seen), strict=True):
                stored = torch.from_numpy(tables[name][ids + shift]).flatten(1)
                assert torch.allclose(stored, rows, atol=1e-5)
    assert not torch.equal(views, views.flip(-1))


def test_an_earlier_checkpoint_can_be_drawn_of_and_is_found_again(capsys, tmp_path, encoder):
    """The encoder's run may go on: a run goes on with the latents that it began with."""
    run, copy = tmp_path / "run", tmp_path / "encoder"
    shutil.copytree(encoder, copy)
    last, aside = newest(copy), tmp_path / "aside"
    last.rename(aside)
    words = diffuse(run, f"from={copy}", "evaluate.every=0", "evaluate.at_end=false")
    assert script(capsys, *words, f"images={2 * BATCH}").status == 0
    aside.rename(last)
    done = script(capsys, *words)
    assert done.status == 0, done.err
    assert "resumed at" in done.out
    assert "images-000000000064 ..." in done.out
    assert json.loads((run / "done").read_text()) == STEPS * BATCH


def test_an_encoders_run_may_go_on_and_prune_the_checkpoint_that_made_latents(capsys, tmp_path, digits):
    """A denoiser of an unfinished run says so, and goes on and draws when that checkpoint is pruned."""
    encoder, run = encoder_run(tmp_path / "encoder", digits.root, steps=2), tmp_path / "run"
    words = diffuse(run, f"from={encoder}", "checkpoint=64", "evaluate.every=0", "evaluate.at_end=false")
    first = script(capsys, *words, f"images={2 * BATCH}")
    assert first.status == 0, first.err
    line = (
        f"warning: from={encoder}: that run is not done; the latents are those of its checkpoint after 64 of"
    )
    assert line in first.out
    made = RunFolder(encoder).checkpoints / folder_name(64)
    (beside,) = encoder.glob(f"latents/*.codec/{folder_name(64)}")
    for path in made.iterdir():
        assert (beside / path.name).samefile(path)  # takes no room
    prune(RunFolder(encoder).checkpoints, 128, keep=1)
    assert not made.exists()
    (encoder / "done").write_text("128\n")
    goes_on = script(capsys, *words)
    assert goes_on.status == 0, goes_on.err
    assert f"resumed at {2 * BATCH} images" in goes_on.out
    assert "that run is not done" not in goes_on.out
    assert f"latents of {beside}" in goes_on.out
    drawn = script(capsys, "recipe=sample", f"from={run}", "samples=2", "draw.steps=2")
    assert drawn.status == 0, drawn.err


def test_damaged_latents_are_encoded_anew_by_the_checkpoint_beside_them(capsys, tmp_path, digits):
    encoder = encoder_run(tmp_path / "encoder", digits.root)
    recipe = load(diffuse(tmp_path / "run", f"from={encoder}")).recipe
    source = open_source(recipe, False, None).kept()
    y = source.latents(torch.device("cpu")).tables["y"][FIRST]
    shutil.rmtree(RunFolder(encoder).checkpoints)
    (file,) = encoder.glob("latents/*/0")
    file.write_bytes(b"damaged")
    again = open_source(recipe, False, source.digest)
    assert (again.latents(torch.device("cpu")).tables["y"][FIRST] == y).all()
    assert again.checkpoint.manifest == source.checkpoint.manifest
    (part,) = again.checkpoint.path.glob("part-*")
    part.write_bytes(b"\0" * part.stat().st_size)
    with pytest.raises(UserError, match=r"checkpoint .*codec/images-.* is damaged \(the digest of part-0"):
        open_source(recipe, False, source.digest)


def test_to_draw_needs_no_data_set(capsys, tmp_path, digits):
    shutil.copytree(digits.root, tmp_path / "digits")
    encoder = encoder_run(tmp_path / "encoder", tmp_path / "digits", steps=2)
    recipe = load(diffuse(tmp_path / "run", f"from={encoder}", "checkpoint=64")).recipe
    source = open_source(recipe, False, None)
    shutil.rmtree(tmp_path / "digits")
    assert open_codec(recipe, source.digest).checkpoint.images == 64
    kept = source.kept()
    shutil.rmtree(RunFolder(encoder).checkpoints)
    codec = open_codec(recipe, source.digest)
    assert (codec.shapes, codec.checkpoint) == (source.shapes, kept.checkpoint)
    expected = kept.codec(torch.device("cpu"))
    y, w = torch.randn(2, 32), torch.randn(2, 32)
    with torch.no_grad():
        assert torch.equal(codec.codec(torch.device("cpu")).decode(y, w), expected.decode(y, w))
    with pytest.raises(UserError, match="trained on the latents of another run"):
        open_codec(recipe, "0" * 64)


# ---- mistakes --------------------------------------------------------------------------------------


def refused(capsys, run: Path, *words: str) -> str:
    """The one line; nothing of the run is there."""
    line = mistake(script(capsys, *diffuse(run, *words)))
    assert not started(run)
    return line


def test_a_run_without_a_decoder(capsys, tmp_path, contrastive):
    line = refused(capsys, tmp_path / "run", f"from={contrastive}")
    assert "objective.kind=dim has no decoder" in line
    assert "give a run of a hybrid or an autoencoder" in line


def test_no_run_and_a_run_of_diffusion_instead_of_an_encoders(capsys, tmp_path, encoder):
    assert "no run there (recipe.yaml is missing)" in refused(
        capsys, tmp_path / "run", f"from={tmp_path}/none"
    )
    other = tmp_path / "other"
    words = [f"from={encoder}", "evaluate.every=0", "evaluate.at_end=false", f"images={BATCH}"]
    assert script(capsys, *diffuse(other, *words)).status == 0
    assert "a run of task diffuse, which has no encoder" in refused(capsys, tmp_path / "run", f"from={other}")


def test_both_kinds_of_samples_or_neither(capsys, tmp_path, encoder, digits):
    neither = refused(capsys, tmp_path / "run")
    assert "expected either from=RUN" in neither
    assert "neither is given" in neither
    both = refused(capsys, tmp_path / "run", f"from={encoder}", *OF_IMAGES, f"data.root={digits.root}")
    assert "both are given" in both


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["batch=15"], r"batch=15"),
        (["batch=16", "accumulate=16"], r"accumulate=16"),
        (["checkpoint=7"], "checkpoint=7: the run has no such checkpoint; it keeps 64, 128"),
        (["objective.components=33"], "objective.components=33, but y has 32 numbers; give fewer"),
        (
            ["objective.map.attention=[4, 7]"],
            "objective.map.attention=[4, 7]: no level has side 7; the levels'",
        ),
        (["objective.drop=1"], "objective.drop"),
        (["draw.eta=1.5"], "draw.eta"),
        (["draw.eta=0.5"], "draw.eta=0.5: noise is added in steps of ddim alone, not of flow"),
        (
            ["objective.map.multipliers=[1, 1, 1, 1]"],
            "objective.map.multipliers: 4 levels halve a side 3 times; 4",
        ),
        (["evaluate.extractor=nothing.pt"], "evaluate.extractor=nothing.pt: no such file"),
    ],
)
def test_what_does_not_fit(capsys, tmp_path, encoder, words, message):
    assert message in refused(capsys, tmp_path / "run", f"from={encoder}", *words)


def test_an_odd_batch_says_what_works(capsys, tmp_path, encoder):
    line = refused(capsys, tmp_path / "run", f"from={encoder}", "batch=15")
    assert "batch=14" in line or "batch=16" in line


def test_what_maps_and_images_do_not_have(capsys, tmp_path, maps, digits):
    of_images = [*OF_IMAGES, f"data.root={digits.root}"]
    for words, what in (([f"from={maps}"], "z"), (of_images, "x")):
        line = refused(capsys, tmp_path / "run", *words, "objective.components=4")
        assert f"objective.components=4 are those of a pooled y, and {what} is a map" in line
        line = refused(capsys, tmp_path / "run", *words, "draw.guidance=2")
        assert "draw.guidance=2 needs a condition" in line


def test_more_components_than_directions_of_y(capsys, tmp_path, digits):
    def bottleneck(objective) -> None:
        weight = objective.encoder.to_vector[-1].weight
        weight.copy_(weight[:1].expand_as(weight))

    encoder = encoder_run(tmp_path / "encoder", digits.root, change=bottleneck)
    words = [f"from={encoder}", "evaluate.every=0", "evaluate.at_end=false"]
    line = refused(capsys, tmp_path / "run", *words, "objective.components=4")
    assert line.startswith("objective.components=4: y varies in 1 directions only; give at most 1")
    mended = script(capsys, *diffuse(tmp_path / "run", *words, "objective.components=1"))
    assert mended.status == 0, mended.err
    line = mistake(script(capsys, *diffuse(tmp_path / "run", *words, "objective.components=4")))
    assert "is a run of another recipe" in line  # a run that has trained stays
    assert (tmp_path / "run/done").exists()


@pytest.mark.parametrize("components", ["null", "4"])
def test_a_collapsed_encoder(capsys, tmp_path, digits, components):
    """Its y is the same for every image, and is not 0."""

    def collapse(objective) -> None:
        objective.encoder.to_vector[-1].weight.zero_()
        objective.encoder.to_vector[-1].bias.fill_(0.1)

    encoder = encoder_run(tmp_path / "encoder", digits.root, change=collapse)
    words = [f"from={encoder}", f"objective.components={components}"]
    assert "has collapsed" in refused(capsys, tmp_path / "run", *words)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/mine").write_text("of a person")
    assert "has collapsed" in mistake(script(capsys, *diffuse(tmp_path / "run", *words)))
    assert started(tmp_path / "run") == ["mine"]


def test_latents_that_cannot_be_written(capsys, tmp_path, digits):
    encoder = encoder_run(tmp_path / "encoder", digits.root)
    (encoder / "latents").write_text("a file")
    line = refused(capsys, tmp_path / "run", f"from={encoder}")
    assert f"{encoder}: its latents cannot be written there: {encoder}/latents is no folder" in line


def test_a_run_that_goes_on_with_latents_of_another(capsys, tmp_path, encoder, digits):
    """Those of a run that was moved are the same; those of another in the same place are not."""
    run, place = tmp_path / "run", tmp_path / "encoder"
    shutil.copytree(encoder, place)
    words = [f"from={place}", "evaluate.every=0", "evaluate.at_end=false"]
    assert script(capsys, *diffuse(run, *words, f"images={2 * BATCH}")).status == 0
    shutil.rmtree(place)
    done = script(capsys, *diffuse(run, f"from={encoder}", *words[1:], f"images={4 * BATCH}"))
    assert done.status == 0, done.err
    before = {path: path.read_bytes() for path in (run / "checkpoints").glob("*/*")}
    encoder_run(place, digits.root, "seed=1")
    line = mistake(script(capsys, *diffuse(run, *words)))
    assert line.startswith(f"from={place}: the denoiser was trained on the latents of another run")
    assert before == {path: path.read_bytes() for path in (run / "checkpoints").glob("*/*")}


def test_a_finished_run_with_another_encoder(capsys, tmp_path, encoder, digits):
    run, moved = tmp_path / "run", tmp_path / "moved"
    words = ["evaluate.every=0", "evaluate.at_end=false", f"images={BATCH}"]
    assert script(capsys, *diffuse(run, f"from={encoder}", *words)).status == 0
    other = encoder_run(tmp_path / "other", digits.root, "seed=1")
    line = mistake(script(capsys, *diffuse(run, f"from={other}", *words)))
    assert line.startswith(
        f"{run} is finished, and the latents of {other} are not those that it was trained on"
    )
    shutil.copytree(encoder, moved)
    shutil.rmtree(moved / "latents")
    for same in (encoder, moved, tmp_path / "gone"):
        again = script(capsys, *diffuse(run, f"from={same}", *words))
        assert again.status == 0, again.err
        assert f"{run} is finished" in again.out
