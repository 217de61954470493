"""One step after another on real images: accumulation, precision, divergence, no wait for the device."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from data_pipelines.common.errors import UserError
from trainer.distributed.signals import StopRequest
from trainer.recipe.loading import RECIPES, load
from trainer.recipe.schema import Pretrain
from trainer.runs.progress import Progress
from trainer.training.schedules import learning_rate
from trainer.training.trainer import Trainer

TINY = [
    "batch=64",
    "groups.norm=16",
    "data.size=16",
    "encoder.channels=[8, 16]",
    "encoder.fc=32",
    "encoder.y=16",
    "objective.bound=jsd",
    "objective.critic={units: 32, score: dot}",
    "optimizer.lr=1e-3",
    "schedule={kind: constant}",
    "data.threads=1",
]
EVERY_TERM = [
    "objective.bound=dv",
    "objective.critic.score=tanh",
    "objective.alpha=0.5",
    "objective.gamma=0.5",
    "objective.coordinates=0.3",
    "objective.occlusion=0.4",
    "objective.supervised={classes: 10, units: 8}",
]
PRETRAINING = sorted(
    path.stem for path in RECIPES.glob("*.yaml") if isinstance(load([f"recipe={path.stem}"]).recipe, Pretrain)
)


def losses(trainer: Trainer, steps: int) -> list[float]:
    return [trainer.step()["loss"].item() for _ in range(steps)]


# ---- accumulation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", ["jsd", "infonce"])
def test_accumulation_changes_neither_losses_nor_weights(train, bound):
    results = []
    for accumulate in (1, 2, 4):
        trainer = train(
            "quickstart",
            *TINY,
            "precision=float64",
            f"objective.bound={bound}",
            "objective.locations=6",  # drawn per group, so micro-batches draw the same
            "optimizer.clip=1",
            f"accumulate={accumulate}",
        )
        values = [{k: float(v) for k, v in trainer.step().items()} for _ in range(8)]
        results.append((values, trainer.state()))
        assert trainer.images == 8 * 64
    (values, state), *others = results
    assert values[-1]["loss"] != values[0]["loss"]
    for other_values, other_state in others:
        for one, other in zip(values, other_values, strict=True):
            assert one == pytest.approx(other, rel=1e-9, abs=1e-9)
        assert state.keys() == other_state.keys()
        for name, tensor in state.items():
            assert (tensor - other_state[name]).abs().max() < 1e-9, name


# ---- no wait for the device -------------------------------------------------------------------------


READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
BY_INDEX = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)


class Waits(TorchDispatchMode):
    """Counts reads of a tensor's value by Python: each would stop the host until the device is done."""

    def __init__(self):
        super().__init__()
        self.count, self.operations = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        masked = func in BY_INDEX and any(i is not None and i.dtype == torch.bool for i in args[1])
        self.count += func in READS or masked
        return func(*args, **(kwargs or {}))


def test_the_count_of_waits_counts():
    number, waits = torch.ones(2), Waits()
    with waits:
        number[0].item()
        bool(number[1] > 0)
        number[number > 0]
    assert waits.count == 3


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["optimizer.clip=1", "accumulate=2", "objective.locations=5"],
        ["precision=bf16"],
        ["optimizer={kind: lars, lr: 0.1, weight_decay: 1e-4, decay_norms: false}"],
        EVERY_TERM,
    ],
)
def test_a_plain_step_never_waits_for_the_device(train, overrides):
    trainer, vote, waits = train("quickstart", *TINY, *overrides), StopRequest(), Waits()
    try:
        trainer.step()
        with waits:
            trainer.step()
            assert not vote.should_stop()
    finally:
        vote.close()
    assert waits.operations > 100
    assert waits.count == 0


# ---- precision --------------------------------------------------------------------------------------


def test_bf16_learns_and_keeps_float32_weights(train):
    float32_losses = losses(train("quickstart", *TINY, "precision=float32"), 1)
    trainer = train("quickstart", *TINY, "precision=bf16")
    seen = []
    trainer.objective.encoder.y.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    values = losses(trainer, 40)
    assert values[0] == pytest.approx(float32_losses[0], rel=0.05)
    assert np.mean(values[-5:]) < values[0] - 0.5
    assert seen[0] == torch.bfloat16
    assert {tensor.dtype for tensor in trainer.state().values()} == {torch.float32}


def test_float64_is_float64_throughout(train):
    trainer = train("quickstart", *TINY, "precision=float64")
    values = trainer.step()
    assert values["loss"].dtype == torch.float64
    state = trainer.state()
    kinds = {state[name].dtype for name in state if not name.startswith("optimizer/step/")}
    assert kinds == {torch.float64}


def test_float32_follows_float64(train):
    wide = losses(train("quickstart", *TINY, "precision=float64"), 3)
    narrow = losses(train("quickstart", *TINY, "precision=float32"), 3)
    assert narrow == pytest.approx(wide, rel=1e-4)
    assert narrow != wide


# ---- the schedule, and divergence -------------------------------------------------------------------


def test_each_step_takes_the_learning_rate_of_its_images(train):
    trainer = train("quickstart", *TINY, "schedule={kind: cosine, warmup: 128, final: 0.1}", "images=640")
    rates = []
    for _ in range(10):
        before = trainer.images
        trainer.step()
        assert trainer.optimizer.param_groups[0]["lr"] == learning_rate(trainer.recipe, before)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(1e-3 / 2)
    assert rates[0] < rates[1] == rates[2] > rates[3] > rates[-1] > 1e-4


def test_clipping_bounds_the_gradient(train):
    trainer = train("quickstart", *TINY, "optimizer.clip=0.01")
    trainer.step()
    norm = torch.cat([p.grad.flatten() for p in trainer.objective.parameters()]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)


def test_the_discriminator_is_clipped_for_itself(train):
    trainer = train("quickstart", *TINY, "objective.gamma=1", "optimizer.clip=0.01")
    trainer.step()
    for parameters in trainer.objective.clip_groups():
        norm = torch.cat([p.grad.flatten() for p in parameters]).norm()
        assert norm.item() == pytest.approx(0.01, rel=1e-3)


def test_a_loss_that_is_not_finite_stays_known(train):
    trainer = train("quickstart", *TINY)
    trainer.step()
    assert trainer.all_finite()
    with torch.no_grad():
        weight = trainer.objective.encoder.y.weight
        kept = weight.clone()
        weight.fill_(torch.nan)
    trainer.step()
    assert not trainer.all_finite()
    with torch.no_grad():
        for parameter in trainer.objective.parameters():
            parameter.nan_to_num_(0.0)
        weight.copy_(kept)
    trainer.step()
    assert not trainer.all_finite()  # whatever came later


@pytest.mark.parametrize("factor", [float("inf"), 1e30])
def test_what_no_checkpoint_may_hold_is_known_before_a_save(train, factor):
    """The loss of the step was finite; the weights, or (1e30) Adam's squares, that it leaves are not."""
    trainer = train("quickstart", *TINY)
    trainer.step()
    trainer.objective.encoder.y.weight.register_hook(lambda gradient: gradient * factor)
    assert trainer.step()["loss"].isfinite()
    assert not all(tensor.isfinite().all() for tensor in trainer.state().values())
    assert not trainer.all_finite()


# ---- recipes ----------------------------------------------------------------------------------------


SMALLER = {  # networks of the recipe's kind that a test can afford
    "dim": ["encoder.channels=[8, 16, 32]", "encoder.fc=64"],
    "dim_alexnet": ["encoder.channels=[8, 8, 8, 8, 8]", "encoder.fc=32"],
    "resnet": ["encoder.width=16", "data.size=64"],  # of 8 channels oneDNN's backward pass ends the process
    "nvae": [
        "data.size=16",
        "encoder.width=16",
        "encoder.tower=1",
        "encoder.decoder_tower=1",
        "encoder.expansion=1",
    ],
}
SMALLER_OBJECTIVES = {
    "simclr": [],
    "dim": ["objective.critic.units=128"],
    "moco": ["objective.queue.keys=512"],
    "autoencoder": [],
    "hybrid": [],
}


@pytest.mark.parametrize("name", PRETRAINING)
def test_every_recipe_takes_two_steps(train, name):
    recipe = load([f"recipe={name}"]).recipe
    smaller = [*SMALLER[recipe.encoder.kind], "data.train=train", "data.labelled=null", "data.test=test"]
    if getattr(recipe.encoder, "stem", "") == "cifar":  # which halves nothing
        smaller.append("data.size=32")
    if getattr(recipe.encoder, "w", None):
        smaller.append("encoder.w.decoder={width: 16, doublings: 1, tower: 1, expansion: 1}")
    if recipe.precision == "bf16":  # many times slower on cores without it; test_precision has its own steps
        smaller.append("precision=float32")
    if name != "quickstart":
        smaller += [*SMALLER_OBJECTIVES[recipe.objective.kind], "schedule.warmup=0"]
        shuffle = recipe.key_shuffle
        block = shuffle.group * shuffle.groups if shuffle else 128
        smaller += [f"batch={min(recipe.batch, max(128, block))}"]
    trainer = train(name, *smaller)
    before = {key: tensor.clone() for key, tensor in trainer.objective.state_dict().items()}
    for step in (1, 2):
        values = trainer.step()
        assert values["loss"].isfinite()
        ceilings = [term for term in values if term.endswith("/ceiling")]
        assert all(values[term.removesuffix("/ceiling")] <= values[term] for term in ceilings)
        Progress(0, 10, shown=False).status(0, values)  # whatever the names, a person can watch them
        assert trainer.images == step * trainer.recipe.batch
    assert trainer.all_finite()
    unseen = "to_map." if name == "contrastive_cifar10_pooled_small" else None  # makes w, which nothing reads
    for key, tensor in trainer.objective.state_dict().items():  # running statistics among them
        assert (unseen and unseen in key) or not torch.equal(tensor, before[key]), key


def test_the_same_seed_starts_equal_and_another_does_not(train):
    weights = [
        train("quickstart", *TINY, f"seed={seed}").objective.encoder.y.weight.detach() for seed in (0, 0, 1)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch=100", r"batch=100 does not divide .* batch=96 or batch=112"),
        ("accumulate=3", r"batch=64 does not divide over 1 process x accumulate=3 .* batch=48 or batch=96"),
        ("groups={norm: 16, negatives: 24}", r"whole units of 48 images .* batch=48 or batch=96"),
        ("groups={norm: 1, negatives: 16}", r"groups\.norm=1: a group needs at least 2 images"),
        ("groups={norm: 16, negatives: 1}", r"groups\.negatives=1: a group needs at least 2 images"),
        ("data.size=10", r"data\.size=10 cannot be halved 2 times .* a multiple of 4"),
        ("data.views=[{}, {}]", r"data\.views describes 2 views; objective\.kind=dim reads 1"),
        ("groups={norm: 16, negatives: global}", r"negatives=global with encoder\.norm=batch"),
        (
            ["groups={norm: 16, negatives: global}", "encoder.norm=group", "accumulate=2"],
            r"negatives=global with accumulate=2",
        ),
        ("objective.supervised={classes: 7}", r"supervised\.classes=7, but .* has 10 classes"),
        ("data.train=trian", r"no split 'trian'; it has train, test"),
    ],
)
def test_parts_that_do_not_fit_are_refused_in_one_line(train, override, message):
    with pytest.raises(UserError, match=message) as mistake:
        train("quickstart", *TINY, *([override] if isinstance(override, str) else override))
    assert "\n" not in str(mistake.value)
