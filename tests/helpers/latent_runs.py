"""Runs of the task diffuse, so small that a step takes milliseconds, and encoders' runs that they draw of."""

from collections.abc import Callable
from pathlib import Path

import torch

from data_pipelines.dataset_loading import load_dataset
from trainer.checkpoints.format import folder_name
from trainer.checkpoints.save import snapshot, write
from trainer.distributed.engine_kind import EngineKind
from trainer.distributed.launch import DistributedContext
from trainer.objectives.objective import EncoderObjective
from trainer.recipe.loading import load
from trainer.runs.folder import RunFolder
from trainer.training.build import build_trainer

ENCODER = [
    "recipe=hybrid_cifar10",
    "encoder={kind: nvae, patch: 2, width: 8, halvings: 0, tower: 1, decoder_tower: 1, expansion: 2, "
    "latent: 4, layout: pooled}",
    "objective={kind: autoencoder}",
    "data.views=[{}]",
    "data.source=digits",
    "data.size=8",
    "data.threads=1",
    "batch=64",
    "groups.norm=64",
    "images=640",
    "tracking.uri=none",
    "evaluate.every=0",
    "evaluate.at_end=false",
]
BATCH = 16
DIFFUSE = f"""# A denoiser of some thousand parameters
task: diffuse
batch: {BATCH}
images: {6 * BATCH}
objective:
  kind: diffusion
  map: {{width: 8, multipliers: [1, 2], attention: [4], blocks: 1, dropout: 0.2}}
  vector: {{width: 16, layers: 1}}
  half_life: 64
  ramp: 0.5
optimizer: {{kind: adam, lr: 1e-2, clip: 1}}
save: {{every: {2 * BATCH}}}
log: {{every: {BATCH}}}
draw: {{steps: 2, batch: 8}}
evaluate: {{every: {4 * BATCH}, shown: 8}}
tracking: {{uri: none}}
"""
OF_IMAGES = ["data={source: digits, size: 8, threads: 1, views: [{flip: 0.5}]}"]


def encoder_run(
    folder: Path,
    data: Path,
    *more: str,
    steps: int = 1,
    change: Callable[[EncoderObjective], object] = lambda objective: None,
) -> Path:
    """Makes an encoder's run with a checkpoint behind each of `steps` steps; returns its folder.

    `more` are overrides; `change` is called with the objective before each checkpoint. No Accelerate is
    started, whose state a process has once.
    """
    words = [*ENCODER, f"data.root={data}", f"outputs={folder.parent}", f"run={folder.name}", *more]
    loaded, dataset = load(words), load_dataset(data)
    run = RunFolder.of(loaded)
    alone = DistributedContext(0, 1, 1, EngineKind.SINGLE_PROCESS, torch.device("cpu"), None)
    trainer = build_trainer(loaded.recipe, alone, dataset)
    for _ in range(steps):
        trainer.step()
        with torch.no_grad():
            change(trainer.objective)
        manifest = {
            "fingerprint": loaded.fingerprint(),
            "data": dataset.fingerprint,
            "engine": alone.engine,
        }
        write(snapshot(trainer.state(), 0, 1), run.checkpoints, trainer.images, manifest, "once", keep=100)
    trainer.close()
    run.take_over(loaded, {})
    return folder


def newest(folder: Path) -> Path:
    """The newest checkpoint of a run."""
    return max(RunFolder(folder).checkpoints.glob(folder_name(0)[:6] + "*"))


def diffuse(folder: Path, *more: str) -> list[str]:
    """The arguments of a diffusion run in `folder`; `more` says what is drawn: from=RUN, or `OF_IMAGES`."""
    recipe = folder.parent / "diffuse.yaml"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(DIFFUSE)
    return [f"recipe={recipe}", f"outputs={folder.parent}", f"run={folder.name}", *more]
