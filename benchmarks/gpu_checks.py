"""Whether a device computes what a CPU does: attention, twenty steps, a run that is killed and goes on."""

import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_recipes import RECIPES, drawn, opened
from benchmarks.gpu_rows import Row
from benchmarks.throughput import ENDLESS
from data_pipelines.common.errors import UserError
from data_pipelines.loader import Batch
from trainer.checkpoints import load as checkpoints
from trainer.distributed import numerics
from trainer.distributed.launch import DistributedContext
from trainer.networks.grouped_statistics import computed_by
from trainer.objectives import queue_attention
from trainer.training.build import build_trainer
from trainer.training.trainer import Trainer

MAIN = Path(__file__).resolve().parent.parent / "trainer" / "main.py"
STEPS, TOLERANCE = 20, 1e-3
OF_UPDATES = 0.05  # a small difference of two large gradients, and of rounded weights


# ---- the queue's attention -------------------------------------------------------------------------


def attention(device: torch.device, sizes: str) -> Row:
    """Fused and chunked attention against plain products in float64, over batch, keys and the keys' type."""
    wide, width = torch.float32, 128
    lengths = (512, 4096, 65536) if sizes == "full" else (512, 4096)
    worst, failures = dict.fromkeys(("fused", "chunked"), 0.0), []
    for batch, length, dtype in product((1, 63, 256), lengths, (torch.float32, torch.bfloat16)):
        generator = torch.Generator().manual_seed(batch + length)
        rows = (torch.randn(n, width, generator=generator) for n in (batch, length))
        queries, keys = (F.normalize(drawn_rows, dim=1) for drawn_rows in rows)
        keys = keys.to(dtype)
        right = queue_attention.chunk(queries.double(), keys.double(), 0.2)
        for way in worst:
            if way == "fused" and not queue_attention.has_kernel(device, wide, width):
                continue
            results = queue_attention.attend(queries.to(device), keys.to(device), 0.2, way)
            apart = max(map(deviation, results, right))
            worst[way] = max(worst[way], apart)
            if not apart <= TOLERANCE:  # also where it is not a number
                failures.append(f"{way} with B={batch} K={length} {dtype}: {apart:.1e}")
    said = ", ".join(f"{way} off by {apart:.1e} of the largest value" for way, apart in worst.items())
    used = queue_attention.path(device, wide, width)
    return {"passed": not failures, "said": "; ".join([said, f"{used} is used", *failures])}


def deviation(result: Tensor, right: Tensor) -> float:
    """The largest difference, of the largest value."""
    return ((result.double().cpu() - right).abs().max() / right.abs().max()).item()


# ---- twenty steps ----------------------------------------------------------------------------------

SMALL = {
    "full": [
        "batch=64",
        "groups.norm=16",
        "encoder.width=16",
        "objective.shuffle=4",
        "objective.queue.keys=1024",
    ],
    "tiny": [],  # those of RECIPES are small enough
}


class Fed:
    """Batches that were made before, in the place of a loader, on a device."""

    def __init__(self, batches: list[Batch], device: torch.device):
        self.batches, self.device = iter(batches), device

    def __next__(self) -> Batch:
        batch = next(self.batches)
        views = [view.to(self.device) for view in batch.views]
        return dataclasses.replace(batch, views=views, label=batch.label.to(self.device))

    def close(self) -> None:
        return


def steps(context: DistributedContext, sizes: str, folder: Path) -> Row:
    """Twenty steps of MoCo on the device beside those of a CPU, from equal views; and whether views agree.

    Before each step the device takes the CPU's weights over: training amplifies roundings, by 20 steps some
    ten thousand times, and that would say nothing about the device. Losses and updates are compared. A trial
    on a CPU takes the batch-norm of a GPU without Triton beside that of a CPU.
    """
    cpu = dataclasses.replace(context, device=torch.device("cpu"))
    trial = context.device.type == "cpu"
    losses, updates = [], []
    with small_trainer(cpu, sizes, folder) as ours, small_trainer(context, sizes, folder) as other:
        batches = [next(ours.loader) for _ in range(STEPS)]
        views = zip(next(other.loader).views, batches[0].views, strict=True)
        pixels = max((a.cpu() - b).abs().max().item() for a, b in views)
        pixels *= 255 * max(ours.recipe.data.normalize.std)
        for trainer in (ours, other):
            trainer.loader = Fed(batches, trainer.context.device)
        for _ in batches:
            other.objective.load_state_dict(ours.objective.state_dict())
            before = weights(ours)
            right = float(ours.step()["loss"])
            with computed_by("vectorized") if trial else nullcontext():
                loss = float(other.step()["loss"])
            losses.append(abs(loss - right) / abs(right))
            updates.append(((weights(other) - weights(ours)).norm() / (weights(ours) - before).norm()).item())
    said = f"of {STEPS} steps losses apart by at most {max(losses):.1e}, updates by {max(updates):.1e}"
    passed = max(losses) <= TOLERANCE and max(updates) <= OF_UPDATES and pixels <= 4
    return {"passed": passed, "said": f"{said}; views by at most {pixels:.2f} of 255"}


def weights(trainer: Trainer) -> Tensor:
    """A copy of all that is learned, one vector in float64 on the CPU."""
    learned = (p.detach() for p in trainer.objective.parameters() if p.requires_grad)
    return torch.cat([parameter.double().cpu().flatten() for parameter in learned])


@contextmanager
def small_trainer(context: DistributedContext, sizes: str, folder: Path) -> Iterator[Trainer]:
    """A small MoCo's trainer on the device of a context."""
    words = [*SMALL[sizes], "precision=float32", "optimizer.lr=0.01"]
    recipe, dataset = opened("moco_cifar10", words, folder, sizes, context.device)
    numerics.configure(context.device, recipe.precision, tf32=False, deterministic=True)
    trainer = build_trainer(recipe.model_copy(update={"images": ENDLESS}), context, dataset)
    loader = trainer.loader
    try:
        yield trainer
    finally:
        trainer.loader = loader
        trainer.close()


# ---- kill and resume -------------------------------------------------------------------------------


def resume(sizes: str, folder: Path, outputs: Path) -> Row:
    """Whether a run that is killed behind a checkpoint, and goes on, ends in an undisturbed run's bits.

    Raises:
        UserError: a run fails, or is over before it is killed.
    """
    batch, count = (512, 100) if sizes == "full" else (16, 40)
    words = ["recipe=moco_cifar10", *RECIPES[sizes]["moco_cifar10"], f"images={batch * count}"]
    words += [f"data.root={drawn(folder, 32, sizes)}", "data.resident=true", "precision=auto"]
    words += [f"save.every={10 * batch}", "save.keep=1", "tracking.uri=none", f"outputs={outputs}"]
    words += ["evaluate.every=0", "evaluate.at_end=false"]
    whole = finished([*words, "run=whole"])
    killed = [*words, "run=killed"]
    kill_behind_checkpoint(killed, outputs / "killed" / "checkpoints")
    apart = difference(whole, finished(killed))
    if not apart:
        return {"passed": True, "said": f"all bits after {count} steps, killed behind the first checkpoint"}
    again = difference(whole, finished([*words, "run=again"]))
    return {"passed": False, "said": f"{apart}; undisturbed once more: {again or 'the same bits'}"}


def command(words: list[str]) -> list[str]:
    return [sys.executable, str(MAIN), *words]


def finished(words: list[str]) -> dict[str, Tensor]:
    """A run to its end; what its last checkpoint holds."""
    done = subprocess.run(command(words), capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{words[-1]} failed: {(done.stderr or done.stdout).strip()[-500:]}")
    folder = subprocess.run(
        command([*words, "--folder"]), capture_output=True, text=True, check=True
    ).stdout.strip()
    newest = checkpoints.newest(Path(folder) / "checkpoints", print)
    assert newest is not None  # a finished run leaves one
    return checkpoints.load(newest)


def kill_behind_checkpoint(words: list[str], folder: Path) -> None:
    """Starts a run and kills it once a checkpoint is there."""
    run = subprocess.Popen(command(words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while run.poll() is None and not (folder.exists() and checkpoints.visible(folder)):
        time.sleep(0.002)
    if run.poll() is not None:
        raise UserError(f"{words[-1]} ended with status {run.returncode} before it could be killed")
    run.send_signal(signal.SIGKILL)
    run.wait()


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> str:
    """How many tensors differ, and the largest difference; nothing where all bits are equal."""
    unequal = [name for name in one if not torch.equal(one[name], other[name])]
    if not unequal and one.keys() == other.keys():
        return ""
    most = max((one[name].double() - other[name].double()).abs().max().item() for name in unequal)
    return f"{len(unequal)} of {len(one)} tensors differ, by at most {most:.1e}"
