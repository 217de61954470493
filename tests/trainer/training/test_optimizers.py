"""Optimizers against slow loops in float64, their groups, their rates, and the layers that FSDP2 cuts."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

from data_pipelines.common.errors import UserError
from tests.helpers.command_lines import script, tiny
from tests.trainer.training.test_trainer import Waits
from trainer.checkpoints import state
from trainer.distributed.engine_kind import EngineKind
from trainer.recipe.fingerprint import DEFAULTS_OF_NEW_KEYS
from trainer.recipe.loading import load
from trainer.training.optimizers import Lars, build_optimizer, check_engine
from trainer.training.schedules import learning_rate

KINDS = ("adam", "adamw", "sgd", "lars")


def recipe(optimizer: str, *more: str):
    return load(["recipe=dim_local", f"optimizer={{{optimizer}}}", *more]).recipe


def options(optimizer: str):
    return recipe(optimizer).optimizer


def network() -> nn.Module:
    """A convolution, a norm, two linear layers; of the last the weight is zero; the norm's bias is frozen."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(96, 5), nn.Linear(5, 2)
    )
    nn.init.zeros_(model[4].weight)
    model[1].bias.requires_grad_(False)
    return model.double().to(memory_format=torch.channels_last)


def gradients(model: nn.Module, step: int) -> None:
    """Gradients that depend on the step alone; the first linear layer's weight gets zeros, its bias none."""
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.grad = torch.empty_like(parameter).copy_(drawn) if parameter.requires_grad else None
    model[3].weight.grad.zero_()
    model[3].bias.grad = None


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps) -> None:
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = 0.5 / (1 + step)
        gradients(model, step)
        optimizer.step()


def oracle(model: nn.Module, steps: int, change) -> None:
    """The slow loop: `change(name, weight, gradient, memory, lr)` gives a parameter's new value."""
    memory = {name: {} for name, _ in model.named_parameters()}
    for step in range(steps):
        gradients(model, step)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                new = change(name, parameter.data.clone(), parameter.grad, memory[name], 0.5 / (1 + step))
                parameter.data.copy_(new)


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.allclose(a, b, rtol=1e-13, atol=1e-14) for a, b in pairs)


# ---- one step after another ---------------------------------------------------------------------------


@pytest.mark.parametrize("spared", [False, True])
@pytest.mark.parametrize(("momentum", "decay"), [(0.9, 0.05), (0.0, 0.0)])
def test_lars_is_the_published_algorithm(momentum, decay, spared):
    def change(name, weight, gradient, memory, lr):
        bias = spared and weight.ndim <= 1
        beta = 0.0 if bias else decay
        w, g = weight.norm().item(), gradient.norm().item()
        ratio = 0.01 * w / (g + beta * w) if w and g and not bias else 1.0
        velocity = momentum * memory.get("v", 0.0) + lr * ratio * (gradient + beta * weight)
        memory["v"] = velocity
        return weight - velocity

    fast, slow = network(), network()
    chosen = f"kind: lars, lr: 1, momentum: {momentum}, trust: 0.01, weight_decay: {decay}"
    optimizer = build_optimizer(
        options(f"{chosen}, decay_norms: {str(not spared).lower()}"), 1.0, fast.parameters()
    )
    assert isinstance(optimizer, Lars)
    train(fast, optimizer, range(6))
    oracle(slow, 6, change)
    assert equal(fast, slow)
    assert not equal(fast, network())


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_the_loop(nesterov):
    def change(name, weight, gradient, memory, lr):
        update = gradient + (0.0 if weight.ndim <= 1 else 0.05) * weight
        memory["v"] = 0.9 * memory["v"] + update if "v" in memory else update.clone()
        return weight - lr * (update + 0.9 * memory["v"] if nesterov else memory["v"])

    fast, slow = network(), network()
    chosen = f"kind: sgd, lr: 1, nesterov: {str(nesterov).lower()}, weight_decay: 0.05, decay_norms: false"
    train(fast, build_optimizer(options(chosen), 1.0, fast.parameters()), range(6))
    oracle(slow, 6, change)
    assert equal(fast, slow)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_adam_is_torchs_bit_for_bit(kind):
    ours, theirs = network(), network()
    chosen = f"kind: {kind}, lr: 1, betas: [0.5, 0.99], eps: 1e-6, weight_decay: 0.1"
    train(ours, build_optimizer(options(chosen), 1.0, ours.parameters()), range(4))
    made = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
    trained = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    train(theirs, made(trained, lr=1.0, betas=(0.5, 0.99), eps=1e-6, weight_decay=0.1, fused=True), range(4))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


# ---- groups -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_learns_is_held_and_norms_are_spared_on_request(kind):
    model = network()
    learning = {p for p in model.parameters() if p.requires_grad}
    whole = build_optimizer(options(f"kind: {kind}, lr: 1, weight_decay: 0.1"), 0.5, model.parameters())
    (group,) = whole.param_groups
    assert set(group["params"]) == learning
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.1)
    spared = options(f"kind: {kind}, lr: 1, weight_decay: 0.1, decay_norms: false")
    optimizer = build_optimizer(spared, 0.5, model.parameters())
    matrices, vectors = optimizer.param_groups
    assert {p.ndim for p in matrices["params"]} == {2, 4}
    assert {p.ndim for p in vectors["params"]} == {1}
    assert {*matrices["params"], *vectors["params"]} == learning
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}


def test_a_network_without_norms_has_one_group():
    lone = nn.Linear(3, 2, bias=False)
    chosen = options("kind: sgd, lr: 1, decay_norms: false")
    assert len(build_optimizer(chosen, 1.0, lone.parameters()).param_groups) == 1


# ---- what a run needs of it ----------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [*(f"kind: {kind}" for kind in KINDS), "kind: sgd, momentum: 0"])
def test_a_resumed_optimizer_goes_on_bit_for_bit(chosen):
    chosen = options(f"{chosen}, lr: 1, weight_decay: 0.1, decay_norms: false")
    model = network()
    optimizer = build_optimizer(chosen, 1.0, model.parameters())
    train(model, optimizer, range(3))
    saved = copy.deepcopy(state.collect(model, optimizer))
    train(model, optimizer, range(3, 6))
    again = network()
    resumed = build_optimizer(chosen, 1.0, again.parameters())
    state.restore_weights(again, saved)
    state.restore_slots(saved, again, resumed)
    train(again, resumed, range(3, 6))
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    slots = {name.split("/")[1] for name in saved if name.startswith("optimizer/")} - {"step"}
    assert len(slots) == chosen.slots
    assert slots <= {"momentum_buffer", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_never_waits_for_the_device(kind):
    model = network()
    chosen = options(f"kind: {kind}, lr: 1, weight_decay: 0.1, decay_norms: false")
    optimizer = build_optimizer(chosen, 1.0, model.parameters())
    train(model, optimizer, range(1))
    gradients(model, 1)
    with Waits() as waits:
        optimizer.step()
    assert waits.operations > 0
    assert waits.count == 0


def on_shards(rank: int, folder: str, chosen) -> None:
    """A rank of two: FSDP2 shards every layer; the weights after six steps, whole, go to a file."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import distribute_tensor

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model, drawn = network().to(memory_format=torch.contiguous_format), network()  # FSDP2 takes no other
    mesh = dist.init_device_mesh("cpu", (2,))
    fully_shard(model, mesh=mesh)
    optimizer = build_optimizer(chosen, 1.0, model.parameters())
    for step in range(6):
        for group in optimizer.param_groups:
            group["lr"] = 0.5 / (1 + step)
        gradients(drawn, step)
        for parameter, whole in zip(model.parameters(), drawn.parameters(), strict=True):
            if whole.grad is not None:
                parameter.grad = distribute_tensor(whole.grad, mesh, parameter.placements)
        optimizer.step()
    weights = [parameter.full_tensor().detach() for parameter in model.parameters()]
    if rank == 0:
        torch.save(weights, f"{folder}/weights.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_lars_on_the_shards_of_fsdp2_takes_the_norm_of_whole_layers(tmp_path):
    chosen = options("kind: lars, lr: 1, trust: 0.01, weight_decay: 0.05, decay_norms: false")
    torch.multiprocessing.spawn(on_shards, (str(tmp_path), chosen), nprocs=2)
    model = network()
    train(model, build_optimizer(chosen, 1.0, model.parameters()), range(6))
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    for one, other in zip(weights, model.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-13)


def test_lars_is_refused_where_layers_are_cut_into_flat_slices():
    lars = options("kind: lars, lr: 1")
    for engine in ("single process", "ddp", "fsdp2"):
        check_engine(lars, EngineKind(engine))
    for engine in ("zero1", "zero2", "zero3"):
        check_engine(options("kind: sgd, lr: 1"), EngineKind(engine))
        with pytest.raises(UserError, match=f"optimizer.kind=lars .* {engine} .*fsdp2.yaml"):
            check_engine(lars, EngineKind(engine))


# ---- the learning rate ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "batch", "expected"),
    [
        ("lr: 0.3", 2048, 0.3),
        ("lr_per_256: 0.3", 256, 0.3),
        ("lr_per_256: 0.3", 2048, 2.4),
        ("lr_per_256: 0.3, scaling: linear", 128, 0.15),
        ("lr_per_256: 0.3, scaling: sqrt", 1024, 0.6),
    ],
)
def test_the_rate_is_scaled_to_the_batch_and_scheduled(capsys, tmp_path, rate, batch, expected):
    words = [f"optimizer={{kind: sgd, {rate}}}", f"batch={batch}", "images=1000000"]
    loaded = load(["recipe=dim_local", *words, "schedule={kind: cosine, warmup: 204800}"])
    assert loaded.recipe.optimizer.rate(batch) == pytest.approx(expected, rel=1e-12)
    assert learning_rate(loaded.recipe, 204800) == pytest.approx(expected, rel=1e-12)
    assert learning_rate(loaded.recipe, 0) == pytest.approx(expected * batch / 204800, rel=1e-12)
    written = 0.3 if rate == "lr: 0.3" else None  # the recipe says what was written
    assert loaded.recipe.optimizer.lr == written
    done = script(capsys, "recipe=dim_local", *words, "--plan", f"data.root={tmp_path}/none")
    assert f"learning rate {expected:g}" in done.out
    if "per" in rate:
        how = "with its square root" if "sqrt" in rate else "linearly"
        assert f" = 0.3 for a batch of 256, scaled {how} to {batch:,}\n" in done.out


def test_a_run_says_its_resolved_rate_on_its_first_lines(capsys, digits, tmp_path):
    rate = "optimizer={kind: lars, lr_per_256: 0.2, decay_norms: false}"
    arguments = [word for word in tiny(tmp_path, digits.root) if not word.startswith("optimizer.")]
    done = script(capsys, *arguments, rate)
    assert done.status == 0, done.err
    line = done.out.splitlines().index("learning rate 0.1 = 0.2 for a batch of 256, scaled linearly to 128")
    assert line < 3
    assert '"learning rate", "value": 0.1' in (tmp_path / "quickstart" / "journal.jsonl").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["optimizer.lr=3e-4"],
            "optimizer: both lr=0.0003 and lr_per_256=0.03 are given; expected one of them",
        ),
        (["optimizer.lr_per_256=null"], "optimizer: no learning rate: expected lr, or lr_per_256"),
        (
            ["optimizer.lr=3e-4", "optimizer.lr_per_256=null"],
            "optimizer: scaling=sqrt scales lr_per_256, but lr=0.0003 is given; give lr_per_256, or",
        ),
        (["optimizer.nesterov=true", "optimizer.momentum=0"], "optimizer: nesterov=true looks ahead"),
        (["optimizer.trust=1"], "optimizer.trust: unknown key; it belongs to optimizer.kind lars"),
        (
            ["optimizer.betas=[0, 0]"],
            "optimizer.betas: unknown key; it belongs to optimizer.kind adam or adamw",
        ),
        (["optimizer.lr_per_265=1"], "optimizer.lr_per_265: unknown key; did you mean 'lr_per_256'?"),
        (
            ["optimizer.scaling=lnear"],
            "expected 'linear' or 'sqrt', or null, got 'lnear'; did you mean 'linear'?",
        ),
        (
            ["optimizer.kind=lasr"],
            "expected 'adam', 'adamw', 'sgd' or 'lars', got 'lasr'; did you mean 'lars'?",
        ),
        (
            ["optimizer.kind=lars"],
            "(optimizer.kind went from sgd to lars, which drops the keys it inherited)",
        ),
        (["optimizer.momentum=1"], "optimizer.momentum: expected a number from 0 to below 1, got 1"),
    ],
)
def test_mistakes(tmp_path, words, message):
    path = tmp_path / "scaled.yaml"
    path.write_text("base: dim_local\noptimizer: {kind: sgd, lr_per_256: 0.03, scaling: sqrt}\n")
    with pytest.raises(UserError) as caught:
        load([f"recipe={path}", *words])
    assert str(caught.value).startswith("command line: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    fixed = ["optimizer.lr=3e-4", "optimizer.lr_per_256=null", "optimizer.scaling=null"]
    assert load([f"recipe={path}", *fixed]).recipe.optimizer.lr == 3e-4  # what the lines advise


def test_a_run_of_before_these_keys_is_still_the_same_recipe():
    before = load(["recipe=dim_local"]).fingerprint()
    new = {key for key in DEFAULTS_OF_NEW_KEYS if key.startswith("optimizer.")}
    assert new
    assert not new & before.keys()
    assert {"optimizer.kind", "optimizer.lr", "optimizer.betas", "optimizer.weight_decay"} <= before.keys()
    changed = load(["recipe=dim_local", "optimizer.decay_norms=false"]).fingerprint()
    assert changed["optimizer.decay_norms"] is False
