"""The sharded momentum queue against a replicated one: time of a step, memory of the queue, peak of the loss.

    python benchmarks/momentum_queue.py [--device cuda]

The replicated queue is that of facebookresearch/moco (moco/builder.py): every rank holds all keys, clones
them for the product, makes all logits, lets autograd do the rest and gathers the new keys. A step is the
loss, its backward pass and the enqueue; encoders are left out. The two take turns in the same processes, each
step timed by itself, and medians are compared. Memory is the highest that the process held during one step,
beyond what it held before, in a process of its own for each. The processes share the machine's cores evenly.
On a GPU there is one process, and memory is what torch's allocator has given out.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from trainer.distributed import launch

launch.set_environment()

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.distributed import collectives
from trainer.objectives.momentum_queue import MomentumQueue
from trainer.objectives.queue_attention import path

WIDTH, TAU, LONG = 128, 0.2, 4_194_304


class Replicated:
    """The queue [D, K] of MoCo, whole on every rank."""

    def __init__(self, keys: int, batch: int, device: str):
        self.queue, self.batch = F.normalize(torch.randn(WIDTH, keys, device=device), dim=0), batch

    def step(self, q: Tensor, k: Tensor, number: int) -> Tensor:
        positive = torch.einsum("nc,nc->n", q, k)[:, None]
        negative = torch.einsum("nc,ck->nk", q, self.queue.clone().detach())
        logits = torch.cat([positive, negative], dim=1)
        logits /= TAU
        loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=q.device))
        loss.backward()
        place = number * self.batch % self.queue.shape[1]
        self.queue[:, place : place + self.batch] = collectives.all_gather(k).T
        return loss.detach()

    def bytes(self) -> int:
        return self.queue.nbytes


class Sharded:
    """Ours."""

    def __init__(self, keys: int, batch: int, device: str):
        self.queue = MomentumQueue(keys, WIDTH, batch)
        self.queue.sharded_state_dict()  # so that memory is there before a step is measured
        self.queue.shard = self.queue.shard.to(device)

    def step(self, q: Tensor, k: Tensor, number: int) -> Tensor:
        rest = self.queue.log_sum_exp(q, TAU, number)
        loss = F.softplus(rest - (q * k).sum(1) / TAU).mean()
        loss.backward()
        self.queue.enqueue(k, number)
        return loss.detach()

    def bytes(self) -> int:
        return self.queue.shard.nbytes


KINDS = {"replicated": Replicated, "sharded": Sharded}


def pair(batch: int, number: int, device: str) -> tuple[Tensor, Tensor]:
    """This rank's queries and keys, at unit length, as an encoder would give them."""
    draws = torch.Generator().manual_seed(number)
    both = F.normalize(torch.randn(2, batch, WIDTH, generator=draws), dim=2)
    q, k = both.chunk(collectives.world_size(), dim=1)[collectives.rank()].to(device)
    return q.clone().requires_grad_(), k.clone()


def times(options: argparse.Namespace) -> dict:
    """Medians of seconds by kind, in turns, the slowest rank's; and bytes of the queue."""
    queues = {name: kind(options.keys, options.batch, options.device) for name, kind in KINDS.items()}
    seconds = {name: [] for name in KINDS}
    for number in range(options.repeats + 2):
        for name, queue in queues.items():
            q, k = pair(options.batch, number, options.device)
            barrier()
            began = time.perf_counter()
            queue.step(q, k, number)
            barrier()
            seconds[name].append(time.perf_counter() - began)
    result = {name: statistics.median(each[2:]) for name, each in seconds.items()}
    return result | {f"{name} bytes": queue.bytes() for name, queue in queues.items()}


def memory(options: argparse.Namespace) -> dict:
    """Bytes that a step adds at its peak, and the highest that the process has held."""
    device = options.device
    small = KINDS[options.kind](options.batch, options.batch, device)
    small.step(*pair(options.batch, 0, device), 0)  # loads what torch loads late
    barrier()
    began = time.perf_counter()
    queue = KINDS[options.kind](options.keys, options.batch, device)
    barrier()
    made, q_k = time.perf_counter() - began, pair(options.batch, 1, device)
    now, peak, forget_peak = MEMORY[device]
    highest = peak()
    forget_peak()
    before, began = now(), time.perf_counter()
    queue.step(*q_k, 1)
    barrier()
    step, top = time.perf_counter() - began, peak()
    return {"extra": top - before, "highest": max(top, highest), "made": made, "step": step}


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


# Bytes held now, the most so far, and what lets the most begin anew.
MEMORY = {
    "cpu": (
        lambda: status("VmRSS"),
        lambda: status("VmHWM"),
        lambda: Path("/proc/self/clear_refs").write_text("5"),
    ),
    "cuda": (
        torch.cuda.memory_allocated,
        torch.cuda.max_memory_allocated,
        torch.cuda.reset_peak_memory_stats,
    ),
}


def barrier() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    if collectives.world_size() > 1:
        torch.distributed.barrier()


def on_ranks(do: str, world: int, options: argparse.Namespace, **changes) -> dict:
    """Runs `times` or `memory` on gloo processes; of each number the largest of all ranks."""
    settings = vars(options) | changes
    with tempfile.TemporaryDirectory() as folder:
        ranks = []
        for rank in range(world):
            place = {"do": do, "rank": rank, "world": world, "rendezvous": f"{folder}/rendezvous"}
            threads = str(max(1, len(os.sched_getaffinity(0)) // world))
            command = [sys.executable, __file__, "--settings", json.dumps(settings | place)]
            environment = os.environ | {"OMP_NUM_THREADS": threads}
            ranks.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        answers = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        sys.exit(f"{do} on {world} processes failed")
    figures = [json.loads(answer) for answer in answers]
    return {name: max(each[name] for each in figures) for name in figures[0]}


def on_rank(options: argparse.Namespace) -> None:
    if options.world > 1:
        meeting = f"file://{options.rendezvous}"
        torch.distributed.init_process_group(
            "gloo", init_method=meeting, rank=options.rank, world_size=options.world
        )
    print(json.dumps({"times": times, "memory": memory}[options.do](options)), flush=True)
    barrier()
    os._exit(0)  # torch's threads may abort an orderly exit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keys", type=int, default=65_536)
    parser.add_argument("--batch", type=int, default=256, help="global batch")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--long", type=int, default=LONG, help="keys of the last measurement; 0: none")
    parser.add_argument("--device", choices=MEMORY, default="cpu")
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.settings:
        return on_rank(argparse.Namespace(**json.loads(options.settings)))

    device = torch.device(options.device)
    worlds = ((1, 3), (2, 2)) if device.type == "cpu" else ((1, 3),)
    runs = f"{device.type}, {path(device, torch.float32, WIDTH)}"
    print(f"K = {options.keys:,}, D = {WIDTH}, global batch {options.batch}, float32; {runs}\n")
    print("| processes | | replicated | sharded | ratio | bar |\n|---|---|---:|---:|---:|---|")
    for world, bar in worlds:
        figures = on_ranks("times", world, options)
        row(world, "ms a step", *(figures[kind] * 1e3 for kind in KINDS), f"at least {bar}")
        row(world, "MB of queue a rank", *(figures[f"{kind} bytes"] / 1e6 for kind in KINDS), f"{world}")
        peaks = {kind: on_ranks("memory", world, options, kind=kind)["extra"] / 1e6 for kind in KINDS}
        row(world, "MB more at the loss's peak", *peaks.values(), "at least 5")
    if not options.long:
        return
    figures = on_ranks("memory", world, options, kind="sharded", keys=options.long)
    print(f"\nK = {options.long:,} on {world} process{'es' * (world > 1)}: ", end="")
    print(f"at most {figures['highest'] / 1e9:.2f} GB a rank (bar on 2: 3), of which")
    print(
        f"{options.long * WIDTH * 4 / world / 1e9:.2f} of queue; its first keys in {figures['made']:.1f} s, ",
        end="",
    )
    print(f"a step in {figures['step']:.1f} s")


def row(world: int, what: str, replicated: float, sharded: float, bar: str) -> None:
    print(
        f"| {world} | {what} | {replicated:.1f} | {sharded:.1f} | {replicated / sharded:.1f} | {bar} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
