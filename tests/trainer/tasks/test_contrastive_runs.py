"""MoCo-v2 and the hybrid through the real loop, on the digits: accumulation, waits, refusals."""

import pytest
import torch

from data_pipelines.common.errors import UserError
from tests.trainer.training.test_trainer import Waits, losses
from trainer.evaluation.measure import re_estimate
from trainer.recipe.loading import load
from trainer.tasks.preflight import notes
from trainer.training.build import build_objective
from trainer.training.groups import blocks_span_ranks, check_batch_division

VIEW = "{crop: {scale: {low: 0.5, high: 1.0}}, flip: 0.5, grayscale: 0.5}"
ENCODER = (
    "encoder={kind: nvae, patch: 2, width: 8, halvings: 0, tower: 1, decoder_tower: 1, expansion: 2, "
    "latent: 4}"
)
SMALL = ["batch=64", "groups.norm=8", "data.size=16", ENCODER, "data.threads=1", "schedule={kind: constant}"]
CONTRAST = "kind: moco, shuffle: 2, queue: {keys: 256}, head: {units: 16, width: 8}, momentum: 0.9"
TWO = f"data.views=[{VIEW}, {VIEW}]"
MOCO = [*SMALL, TWO, f"objective={{{CONTRAST}}}"]
SYMMETRIC = [*SMALL, TWO, f"objective={{{CONTRAST}, symmetric: true}}"]
HYBRID = [*SMALL, TWO, f"objective={{kind: hybrid, omega: 0.1, contrast: {{{CONTRAST}}}}}"]
POOLED = ENCODER.replace("}", ", layout: pooled}")
CLEAN = [  # what is decoded is a view of its own, and sends y no gradient
    *HYBRID,
    POOLED,
    f"data.views=[{VIEW}, {VIEW}, {{}}]",
    "objective.reconstruct=clean",
    "objective.detach_y=true",
]
DIM = "{kind: dim, bound: infonce, critic: {kind: dot, units: 8, score: scaled}}"
HYBRID_DIM = [*SMALL, f"objective={{kind: hybrid, omega: 0.1, contrast: {DIM}}}"]


@pytest.mark.parametrize("overrides", [MOCO, SYMMETRIC, HYBRID, CLEAN, HYBRID_DIM])
def test_accumulation_changes_neither_losses_nor_state(train, overrides):
    results = []
    for accumulate in (1, 2, 4):
        trainer = train("quickstart", *overrides, "precision=float64", f"accumulate={accumulate}")
        results.append((losses(trainer, 6), trainer.state()))
    (wanted, state), *others = results
    assert len(set(wanted)) == 6
    for values, other in others:
        assert values == pytest.approx(wanted, abs=1e-9)
        assert state.keys() == other.keys()
        for name, tensor in state.items():
            ours, theirs = (getattr(x, "rows", x) for x in (tensor, other[name]))
            assert (ours - theirs).abs().max() < 1e-9, name


@pytest.mark.parametrize(
    "overrides", [MOCO, SYMMETRIC, HYBRID, CLEAN, HYBRID_DIM, [*HYBRID, "precision=bf16"]]
)
def test_a_plain_step_never_waits_for_the_device(train, overrides):
    trainer, waits = train("quickstart", *overrides), Waits()
    trainer.step()
    with waits:
        trainer.step()
    assert waits.operations > 100
    assert waits.count == 0


def test_what_the_loss_does_not_need_decays_too(train):
    """As under the engines of several ranks, which have gradients of zero there: tests/ranks."""
    contrastive = [*MOCO, POOLED]
    trainer = train("quickstart", *contrastive, "optimizer={kind: adamw, lr: 0.1, weight_decay: 0.5}")
    w = trainer.objective.encoder.to_map.weight
    before = w.detach().clone()
    trainer.step()
    assert torch.allclose(w, 0.95 * before, atol=1e-6)
    assert "optimizer/exp_avg/encoder.to_map.weight" in trainer.state()


def test_a_clean_view_is_decoded_from_its_own_pass_and_a_detached_y_stays_the_contrasts(train):
    """A step of plain gradient descent is the gradient: omega must not show in that of y's own layers."""
    after = {}
    for omega in (0.001, 0.1):
        sgd = ["optimizer={kind: sgd, lr: 1e-3, momentum: 0, clip: 0}", f"objective.omega={omega}"]
        trainer = train("quickstart", *CLEAN, *sgd, "precision=float64")
        loader, batch = trainer.loader, next(trainer.loader)
        with torch.no_grad():
            features = trainer.objective.features(batch.views[2])
            decoded = trainer.objective.decoder(features["y"], features["w"])
        wanted = (decoded - trainer.objective.codec.pixels(batch.views[2])).square().sum() / len(decoded)
        trainer.loader = iter([batch])
        assert trainer.step()["sse"].item() == pytest.approx(wanted.item(), rel=1e-12)
        trainer.loader = loader
        after[omega] = trainer.objective.encoder.state_dict()
    little, much = after.values()
    for name in ("to_vector.0.weight", "to_vector.1.bias", "to_vector.5.weight"):
        assert torch.equal(little[name], much[name]), name
    assert not torch.equal(little["to_map.weight"], much["to_map.weight"])  # makes w, which is not detached


def test_the_decoder_sees_pixels_whatever_the_precision(train):
    errors = {}
    for precision in ("float64", "float32", "bf16"):
        errors[precision] = train("quickstart", *HYBRID, f"precision={precision}").step()["sse"].item()
    assert errors["float32"] == pytest.approx(errors["float64"], rel=1e-4)
    assert errors["bf16"] == pytest.approx(errors["float64"], rel=2e-2)


# ---- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ([*MOCO, "objective.queue.keys=100"], "objective.queue.keys=100 is"),
        ([*HYBRID, "objective.contrast.queue.keys=100"], "objective.contrast.queue.keys=100 is"),
        (["encoder.channels=[8, 16, 32]", "data.size=20"], "data.size=20 cannot be halved"),
        (["groups.norm=1", "encoder.norm=group"], "groups.norm=1: a group needs"),
    ],
)
def test_a_size_that_does_not_fit_is_named_by_its_key(words, key):
    words = words if words[0].startswith("recipe=") else ["recipe=quickstart", *words]
    with pytest.raises(UserError) as error:
        build_objective(load(words).recipe)
    assert str(error.value).startswith(key)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([*MOCO, "objective.queue.keys=100"], ["objective.queue.keys=100", "64", "128"]),
        ([*SYMMETRIC, "objective.queue.keys=192"], ["queue.keys=192", "128 keys that a step adds", "256"]),
        (
            [*MOCO, "objective.shuffle=16"],
            [
                "batch=64",
                "128 images",
                "objective.shuffle=16",
                "what works: objective.shuffle=8 or batch=128",
            ],
        ),
        ([*MOCO, "accumulate=8"], ["batch=64", "accumulate=8", "objective.shuffle=2", "works: batch=128"]),
        ([*MOCO, "objective.shuffle=8", "accumulate=2"], ["what works: objective.shuffle=4 or batch=128"]),
        (
            [*HYBRID, "objective.contrast.shuffle=8", "accumulate=4"],
            ["works: objective.contrast.shuffle=2 or"],
        ),
        ([*MOCO, "groups.negatives=8"], ["groups.negatives=8", "objective.kind=moco"]),
        ([*MOCO, f"data.views=[{VIEW}]"], ["data.views describes 1 views", "reads 2"]),
        ([*HYBRID, "objective.reconstruct=clean"], ["data.views describes 2 views", "reads 3"]),
        (
            [*HYBRID, "objective.reconstruct=clean", f"data.views=[{VIEW}, {VIEW}, {{flip: 0.5}}]"],
            ["data.views.2: expected {}, got {flip: 0.5}", "reconstruct=clean", "an empty section"],
        ),
        *(
            ([*overrides, "groups.norm=1"], ["groups.norm=1: a group needs at least 2 images", "norm=batch"])
            for overrides in (MOCO, HYBRID, HYBRID_DIM, [*SMALL, "objective={kind: autoencoder}"])
        ),
        ([*HYBRID, "encoder={kind: dim, channels: [8, 16]}"], ["encoder.kind=dim", "no decoder", "nvae"]),
        ([*HYBRID, "encoder.halvings=4"], ["data.size=16", "halved 4 times", "multiple of 32"]),
    ],
)
def test_what_does_not_fit_is_one_line(train, overrides, words):
    with pytest.raises(UserError) as refused:
        train("quickstart", *overrides)
    assert all(word in str(refused.value) for word in words), str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["objective.alpha=1.0", "objective.omega=null"], ["objective.alpha", "below 1"]),
        (["objective.alpha=0.5"], ["either omega or alpha"]),
        (["objective.omega=0.1", "objective.sigma=2.0"], ["sigma belongs to alpha"]),
        (["objective.contrast.shuffle=1"], ["objective.contrast.shuffle"]),
    ],
)
def test_weights_that_are_none_are_one_line(overrides, words):
    with pytest.raises(UserError) as refused:
        load(["recipe=hybrid_cifar10", *overrides])
    assert all(word in str(refused.value) for word in words), str(refused.value)
    assert "\n" not in str(refused.value)


def test_ranks_share_out_whole_blocks_where_they_must():
    recipe = load(["recipe=quickstart", *MOCO, "groups.norm=16"]).recipe  # blocks of 32
    for world in (1, 2, 4):
        check_batch_division(recipe, world)
        assert blocks_span_ranks(recipe, world) == (world == 4)
    recipe = load(["recipe=quickstart", *SYMMETRIC, "groups.norm=16"]).recipe
    check_batch_division(recipe, 2)
    with pytest.raises(UserError, match=r"--num_processes 1, 2"):
        check_batch_division(recipe, 4)


def test_a_run_tells_what_its_keys_come_to():
    def notes_of(*overrides: str, world: int = 1) -> str:
        recipe = load(["recipe=quickstart", *overrides]).recipe
        return "\n".join(notes(recipe, 200, world, torch.device("cpu")))

    lines = notes_of(*HYBRID)
    assert "0.1 x squared error" in lines
    assert "alpha 0.166667 at sigma 1" in lines
    assert "queue of 256 keys, 256 a rank" in lines
    assert "fused attention" in lines
    assert "not below the 200 training images" in lines
    assert "not below" not in notes_of(*HYBRID, "objective.contrast.queue.keys=128")
    assert "span ranks" in notes_of(*MOCO, "objective.shuffle=8", world=2)
    assert "queue" not in notes_of(*HYBRID_DIM)
    assert "profile=5 writes nothing" in notes_of("batch=128", f"images={14 * 128}", "profile=5")
    assert "profile" not in notes_of("batch=128", f"images={15 * 128}", "profile=5")


def test_supervision_inside_a_hybrid_is_checked_too(train):
    supervised = HYBRID_DIM[-1].replace("scaled}}", "scaled}, supervised: {classes: 7}}")
    with pytest.raises(UserError, match=r"supervised.classes=7"):
        train("quickstart", *HYBRID_DIM[:-1], supervised)
    assert load(["recipe=quickstart", *HYBRID_DIM]).recipe.objective.contrast.kind == "dim"


def test_batch_norm_of_the_decoder_is_estimated_anew_with_the_encoders(train):
    objective = train("quickstart", *HYBRID).objective
    images = torch.randn(32, 3, 16, 16)
    before = {name: tensor.clone() for name, tensor in objective.named_buffers()}
    re_estimate(objective, [images])
    moved = {name for name, tensor in objective.named_buffers() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[0] for name in moved} == {"contrast", "decoder"}
    assert not [name for name in moved if "key_" in name]
    deviations = []
    with torch.no_grad():
        for mode in (True, False):
            objective.train(mode)
            deviations.append(objective.codec.decode(*objective.codec.encode(images)).std().item())
    assert deviations[0] == pytest.approx(deviations[1], rel=0.1)
