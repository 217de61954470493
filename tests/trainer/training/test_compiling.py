"""Compiled networks: the same values and names, and a line where they cannot be compiled."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_pipelines.loader import Batch
from data_pipelines.noise import Noise
from tests.helpers import tiny_dim, tiny_moco
from tests.helpers.command_lines import script, tiny
from tests.helpers.tiny_diffusion import pixel_diffusion, tiny_unet
from trainer.distributed.engine_kind import EngineKind
from trainer.objectives.objective import Objective
from trainer.recipe.automatic import Facts, choices
from trainer.recipe.loading import load, load_saved
from trainer.training import compiling
from trainer.training.build import build_objective
from trainer.training.compiling import Compiled, compile_networks

COMPILED = load(["recipe=quickstart", "compile=true"]).recipe
TRACED = "aot_eager"  # traces forward and backward as any backend has to, and computes as before
DIFFUSION = Noise(0, 0, 0, 16), np.arange(16)[None]


def diffusion():
    return pixel_diffusion(tiny_unet(dropout=0.0).double())


def images_of_diffusion(step: int) -> Batch:
    noise, positions = DIFFUSION
    labels = torch.zeros(16, dtype=torch.int64)
    return Batch([tiny_dim.images(16, step)], positions, positions, labels, 0, noise)


CASES = {  # an objective, the batch of a step, and its networks
    "dim": (
        lambda: tiny_dim.tiny(alpha=0.5, beta=0.5),
        lambda step: tiny_dim.batch_of(tiny_dim.images(8, step)),
        ["encoder", "critic", "global critic"],
    ),
    "moco": (
        lambda: tiny_moco.moco(symmetric=True, queue={"keys": 64}),  # each encoder is called twice in a step
        lambda step: tiny_moco.batch_of(tiny_moco.views(step), step, shuffle=False),
        ["encoder", "key encoder"],
    ),
    "hybrid": (
        tiny_moco.hybrid,
        lambda step: tiny_moco.batch_of(tiny_moco.views(step), step),
        ["encoder", "key encoder", "decoder"],
    ),
    "diffusion": (diffusion, images_of_diffusion, ["denoiser of x"]),
}


def compiled(objective, backend, monkeypatch, engine=EngineKind.SINGLE_PROCESS):
    """A copy of an objective, compiled by a backend; and the list of lines that a person gets."""
    monkeypatch.setattr(compiling, "BACKEND", backend)
    other, lines = copy.deepcopy(objective), []
    compile_networks(COMPILED, engine, other, lines.append)
    return other, lines


def two_steps(objective: Objective, batch) -> list[torch.Tensor]:
    """Losses, then gradients, then buffers after two steps without an optimizer."""
    objective.train()
    losses = []
    for step in range(2):
        losses.append(objective(batch(step))["loss"])
        losses[-1].backward()
        objective.after_step()
    gradients = [parameter.grad for parameter in objective.parameters() if parameter.grad is not None]
    return [*losses, *gradients, *objective.buffers()]


def assert_same(one: list[torch.Tensor], other: list[torch.Tensor], within: float) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=within, atol=within)


@pytest.mark.parametrize("case", CASES)
def test_compiled_networks_compute_the_same_in_one_graph_each(case, monkeypatch):
    build, batch, names = CASES[case]
    objective = build()
    other, lines = compiled(objective, TRACED, monkeypatch)
    assert [name for name, _ in other.networks()] == names
    assert list(other.state_dict()) == list(objective.state_dict())
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert_same(two_steps(other, batch), two_steps(objective, batch), 1e-12)
    assert not lines
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= len(names)
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_compiled_stays_as_it_is_with_one_line(case, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no compiler here\nand more lines")

    build, batch, names = CASES[case]
    objective = build()
    other, lines = compiled(objective, broken, monkeypatch)
    torch._dynamo.reset()
    assert_same(two_steps(other, batch), two_steps(objective, batch), 0)
    assert len(lines) == len(names)
    for name, line in zip(sorted(names), sorted(lines), strict=True):
        assert line.startswith(f"compile=true: the {name} stays as it is, for it cannot be compiled: ")
        assert "no compiler here" in line
        assert "\n" not in line


def test_evaluation_compiles_nothing(monkeypatch):
    def refused(graph, inputs):
        raise AssertionError("compiled in evaluation")

    other, lines = compiled(tiny_dim.tiny(), refused, monkeypatch)
    other.eval()
    with torch.no_grad():
        for n in (3, 5):
            other.features(tiny_dim.images(n))
    assert not lines


def test_masks_that_generators_draw_leave_a_denoiser_as_it_is(monkeypatch):
    other, lines = compiled(pixel_diffusion(tiny_unet()), TRACED, monkeypatch)
    assert not isinstance(other.network.forward, Compiled)
    assert lines == ["compile=true: this objective has no network that can be compiled"]


@pytest.mark.parametrize("engine", EngineKind)
def test_engines_that_cut_networks_into_shards_leave_them(engine, monkeypatch):
    other, lines = compiled(tiny_dim.tiny(), TRACED, monkeypatch, engine)
    sharded = engine in (EngineKind.ZERO3, EngineKind.FSDP2)
    assert all(isinstance(network.forward, Compiled) != sharded for _, network in other.networks())
    line = f"compile=true: networks stay as they are under {engine}, which cuts them into shards"
    assert lines == [line] * sharded


def test_auto_compiles_on_a_gpu_that_triton_knows():
    recipe = load(["recipe=moco_cifar10", "compile=auto"]).recipe
    machines = Facts("cpu"), Facts("cuda", (6, 1)), Facts("cuda", (7, 0)), Facts("cuda", (9, 0))
    assert [choices(recipe, facts)["compile"] for facts in machines] == [False, False, True, True]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["recipe=moco_cifar10_small", "encoder.width=8"],
        ["recipe=hybrid_cifar10_resnet_small", "encoder.width=8"],
        ["recipe=dim_stl10_small", "batch=64", "groups.norm=32"],
        ["recipe=hybrid_cifar10_pooled_small", "encoder.width=16"],
        ["recipe=dim_tiny_small", "batch=64", "groups.norm=32"],
    ],
    ids=lambda words: words[0].removeprefix("recipe="),
)
def test_every_network_of_the_recipes_is_one_graph(words):
    """Encoders and decoders of all kinds, traced whole: a graph that breaks is an error here."""
    recipe = load([*words, "precision=float64"]).recipe
    objective, size = build_objective(recipe).train(), recipe.data.size
    seen: dict[str, tuple[torch.Tensor, ...]] = {}
    for name, network in objective.networks():
        network.register_forward_pre_hook(lambda module, inputs, name=name: seen.setdefault(name, inputs))
    n = recipe.groups.norm
    images = torch.rand(n, 3, size, size, dtype=torch.float64).to(memory_format=torch.channels_last)
    features = objective.encoder(images)
    if codec := getattr(objective, "codec", None):
        codec.decoder(features["y"], features["w"])
    torch._dynamo.reset()
    for name, network in objective.networks():
        if name in seen:
            inputs = [one.detach() for one in seen[name]]
            traced = torch.compile(network.forward, fullgraph=True, backend=TRACED, dynamic=False)
            pairs = (network.forward(*inputs), traced(*inputs))
            one, other = (out if isinstance(out, dict) else {"": out} for out in pairs)
            for key in one:
                torch.testing.assert_close(one[key], other[key], rtol=1e-12, atol=1e-12)
    assert {"encoder", "decoder"} & set(seen) == {"encoder"} | ({"decoder"} if codec else set())


@pytest.mark.slow
def test_inductor_computes_the_same(monkeypatch):
    """An encoder and critics, forward and backward, by the compiler that runs; it takes a minute or two."""
    build, batch, _ = CASES["dim"]
    objective = build()
    other, lines = compiled(objective, "inductor", monkeypatch)
    torch._dynamo.reset()
    assert_same(two_steps(other, batch), two_steps(objective, batch), 1e-10)
    assert not lines


@pytest.mark.slow
def test_a_run_keeps_the_word_and_may_go_on_without(capsys, tmp_path, digits):
    """Compiled to its half and plain to its end: but for rounding the weights of a plain run."""

    def start(*words: str):
        given = script(capsys, *tiny(tmp_path, digits.root, *words))
        assert given.status == 0, given.err
        return load_file(tmp_path / words[0].removeprefix("run=") / "export" / "encoder.safetensors")

    plain = start("run=plain", "images=256", "precision=float64")
    start("run=mixed", "images=128", "precision=float64", "compile=true")
    assert load_saved(tmp_path / "mixed" / "recipe.yaml").recipe.compile is True
    mixed = start("run=mixed", "images=256", "precision=float64")
    assert plain.keys() == mixed.keys()
    for name, weight in plain.items():
        torch.testing.assert_close(mixed[name], weight, rtol=1e-8, atol=1e-8)
