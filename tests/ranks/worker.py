"""The program of the tests of several ranks, forked or under the real launcher: worker.py jobs-NAME.json

A job has a recipe, an engine (the launch file's, or another in its place) and methods to run; rank 0 writes
the results of all jobs to results-NAME.json.
"""

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from data_pipelines.common.errors import UserError
from data_pipelines.dataset_loading import load_dataset
from trainer.checkpoints import state
from trainer.checkpoints.format import folder_name, read_manifest
from trainer.checkpoints.load import Checkpoint
from trainer.checkpoints.save import snapshot, write
from trainer.distributed import collectives, launch
from trainer.distributed.engine_kind import EngineKind
from trainer.distributed.rows import TensorShard
from trainer.engines import fsdp, zero
from trainer.engines.precision import MixedPrecision
from trainer.recipe import loading
from trainer.training.build import build_trainer
from trainer.training.trainer import Trainer


def main(file: Path, kind: "type[Job] | None" = None) -> None:
    """Runs all jobs, each as a `kind` (None: `Job`)."""
    jobs = json.loads(file.read_text())
    context = launch.start("float32")
    torch.set_num_threads(1)
    results = {}
    for job in jobs:
        here = replace(context, engine=EngineKind(job.get("engine", context.engine)))
        results[job["name"]] = (kind or Job)(job, here, file.parent).run() | {"engine": here.engine}
    if context.is_main:
        file.with_name(file.name.replace("jobs-", "results-")).write_text(json.dumps(results))
    launch.leave(0)


class Job:
    """One job on this rank; its `do` names methods of this class."""

    def __init__(self, job: dict, context: launch.DistributedContext, folder: Path):
        self.job, self.context, self.folder = job, context, folder
        self.recipe = loading.load(job["recipe"]).recipe
        self.dataset = load_dataset(self.recipe.data.root)

    def run(self) -> dict:
        out = {}
        for word in self.job["do"]:
            out |= getattr(self, word)()
        return out

    def trainer(self, saved=None, step: int = 0) -> Trainer:
        trainer = build_trainer(self.recipe, self.context, self.dataset, saved, step * self.recipe.batch)
        assert_engine(trainer)
        return trainer

    def free(self) -> dict:
        """A run of `steps` steps: its losses, every rank's samples; checkpoints at the steps in `keep`."""
        trainer, losses, ids = self.trainer(), [], []
        follow_ids(trainer, ids)
        for step in range(self.job["steps"]):
            if step in self.job.get("keep", ()):
                self._save(trainer, step, self.job["name"])
            losses.append(mean_loss(trainer.step()))
        assert trainer.all_finite()
        trainer.close()
        return {"losses": losses, "ids": everyones(ids)}

    def _save(self, trainer: Trainer, step: int, name: str) -> Path:
        images, folder = step * self.recipe.batch, self.folder / name
        shares = snapshot(trainer.state(), self.context.rank, self.context.world_size)
        write(shares, folder, images, {}, attempt="once", keep=100)
        collectives.barrier()
        return folder / folder_name(images)

    def one_step(self) -> dict:
        """From each checkpoint of the jobs in `from` at each step in `at`: a step's loss and whole gradient.

        And the names of tensors whose bits are not restored on this rank.
        """
        losses, different = {}, []
        for source in self.job["from"]:
            for step in self.job["at"]:
                name = f"{source} {step}"
                path = self.folder / source / folder_name(step * self.recipe.batch)
                saved = load(path)
                trainer, gradients = self.trainer(saved, step), []
                different += [f"{name}: {what}" for what in differences(saved, trainer.state())]
                take = trainer.engine.step
                trainer.engine.step = lambda: (gradients.append(gradient(trainer)), take())  # noqa: B023
                losses[name] = mean_loss(trainer.step())
                trainer.close()
                if self.context.is_main:
                    file = f"gradient {self.job['name']} {self.context.world_size} {name}.safetensors"
                    save_file({"gradient": gradients[0]}, self.folder / file)
        return {"one step": losses, "restored": everyones(different)}

    def wrong(self) -> dict:
        """The message, on every rank, for each way in which a library can make another engine."""
        messages = []
        for owner, name, other in wrappings(self.context):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(owner, name, other)
                try:
                    self.trainer()
                    messages.append("nothing")
                except UserError as mistake:
                    messages.append(str(mistake))
        return {"messages": everyones(messages)}

    def resume(self) -> dict:
        """Stops after every step, resumes, and compares bits with the undisturbed run."""
        trainer, saves, steps = self.trainer(), [], self.job["steps"]
        for step in range(steps):
            saves.append(self._save(trainer, step, f"{self.job['name']} {self.context.world_size}"))
            trainer.step()
        final = host(trainer.state())
        trainer.close()
        different = []
        for step, path in enumerate(saves):
            saved = load(path)
            trainer = self.trainer(saved, step)
            while trainer.images < steps * self.recipe.batch:
                trainer.step()
            ended = host(trainer.state())
            trainer.close()
            equal = ended.keys() == final.keys() and all(torch.equal(ended[k], final[k]) for k in final)
            different += [] if equal else [step]
        return {"different": everyones(different), "tensors": len(final)}

    def diverge(self) -> dict:
        """What is known, before a log line and before a save, of gradients that are not finite under a loss
        that is."""
        trainer = self.trainer()
        backward = trainer.engine.backward
        trainer.engine.backward = lambda loss: backward(loss * torch.inf)
        assert trainer.step()["loss"].isfinite()
        seen = [trainer.all_finite(weights_only=True), trainer.all_finite()]
        trainer.close()
        return {"finite": everyones(seen)}

    def buckets(self) -> dict:
        """Names of what differs after two steps where DDP copies gradients from its buckets."""
        ends, handler = [], self.context.accelerator.ddp_handler
        views = handler.gradient_as_bucket_view
        for handler.gradient_as_bucket_view in (True, False):
            trainer = self.trainer()
            assert trainer.engine.model.gradient_as_bucket_view is handler.gradient_as_bucket_view
            trainer.step()
            trainer.step()
            ends.append(host(trainer.state()))
            trainer.close()
        handler.gradient_as_bucket_view = views
        different = [name for name, value in ends[0].items() if not torch.equal(value, ends[1][name])]
        return {"views": views, "different": everyones(different)}


def load(path: Path) -> dict:
    """What a rank reads from a checkpoint."""
    manifest = read_manifest(path)
    return state.load(Checkpoint(path, manifest["images"], manifest))


# ---- checks and measurements ---------------------------------------------------------------------


def assert_engine(trainer: Trainer) -> None:
    """The engine that runs is that of the context, by its classes."""
    kind, model = trainer.context.engine, trainer.engine.model
    if kind is EngineKind.SINGLE_PROCESS:
        assert inside(trainer, model) is trainer.objective
        assert collectives.world_size() == 1
    elif kind is EngineKind.DDP:
        assert isinstance(model, torch.nn.parallel.DistributedDataParallel)
        assert inside(trainer, model.module) is trainer.objective
    elif kind is EngineKind.FSDP2:
        assert isinstance(trainer.objective, FSDPModule)
        assert inside(trainer, model) is trainer.objective
        assert all(isinstance(p, DTensor) for p in trainer.objective.parameters())
        assert all(isinstance(p, DTensor) for g in trainer.optimizer.param_groups for p in g["params"])
    else:
        from deepspeed import DeepSpeedEngine
        from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
        from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

        stage = kind.stage
        assert isinstance(model, DeepSpeedEngine)
        assert model.zero_optimization_stage() == stage
        optimizer = DeepSpeedZeroOptimizer_Stage3 if stage == 3 else DeepSpeedZeroOptimizer
        assert isinstance(model.optimizer, optimizer)
        assert stage == 3 or model.optimizer.partition_gradients == (stage == 2)
        assert stage == 3 or not (model.optimizer.compute_grad_norm or model.optimizer.overlap_comm)
        assert not model.tput_timer.config.enabled
        assert inside(trainer, model.module) is trainer.objective
        partitioned = [zero.is_partitioned(p) for p in trainer.objective.parameters()]
        assert all(partitioned) if stage == 3 else not any(partitioned)


def inside(trainer: Trainer, wrapped: torch.nn.Module) -> torch.nn.Module:
    """The objective that an engine has wrapped: in bf16 within a module that computes in it."""
    assert isinstance(wrapped, MixedPrecision) == (trainer.recipe.precision == "bf16")
    return wrapped.objective if trainer.recipe.precision == "bf16" else wrapped


def wrappings(context: launch.DistributedContext) -> list[tuple]:
    """Functions that wrap an objective for an engine, each with a replacement that makes another engine."""
    if context.engine is EngineKind.DDP:
        return [(context.accelerator, "prepare", lambda model: model)]
    if context.engine is EngineKind.FSDP2:
        return [(fsdp, "fully_shard", lambda unit, mesh: unit)]
    made = zero.initialize

    def other_stage(model, optimizer, stage):
        return made(model, optimizer, 2 if stage == 1 else 1)

    def other_optimizer(model, optimizer, stage):
        return made(model, copy.copy(optimizer), stage)

    return [(zero, "initialize", other) for other in (other_stage, other_optimizer)]


def gradient(trainer: Trainer) -> torch.Tensor:
    """All gradients, clipped, as one vector of whole tensors; between the backward pass and the step."""
    parts = []
    for parameter in trainer.objective.parameters():
        if parameter.requires_grad:
            if trainer.context.engine.is_zero:
                from deepspeed.utils import safe_get_full_grad

                whole = safe_get_full_grad(parameter)
            else:
                whole = parameter.grad
                whole = whole.full_tensor() if isinstance(whole, DTensor) else whole
            parts.append(whole.detach().flatten().double())
    return torch.cat(parts)


def differences(saved: dict, values: dict) -> list[str]:
    """Names of values that are not as they were saved (whole; under shard/ this rank's rows)."""
    different = sorted(saved.keys() ^ values.keys())
    for name in saved.keys() & values.keys():
        value, expected = values[name], saved[name]
        if isinstance(value, TensorShard):
            if not name.startswith("shard/"):
                expected = expected[value.offset : value.offset + len(value.rows)]
            value = value.rows
        if not torch.equal(value.cpu(), expected):
            different.append(name)
    return different


def follow_ids(trainer: Trainer, ids: list) -> None:
    """Appends the ids and positions of the samples that this rank trains on to `ids`."""
    loader = trainer.loader

    class Recording:
        def __iter__(self):
            return self

        def __next__(self):
            batch = next(loader)
            ids.append([batch.ids.tolist(), batch.positions.tolist()])
            return batch

        def __getattr__(self, name):
            return getattr(loader, name)

    trainer.loader = Recording()


def everyones(value) -> list:
    """The value of each rank, in the order of the ranks."""
    return collectives.run_on_all(lambda: value)


def mean_loss(values: dict) -> float:
    return collectives.all_reduce_mean(values["loss"].double()).item()


def host(values: dict) -> dict:
    """Copies on the host, of sharded tensors this rank's rows."""
    rows = {name: value.rows if isinstance(value, TensorShard) else value for name, value in values.items()}
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in rows.items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
