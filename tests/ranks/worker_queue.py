"""What the queue's tests run on each of several plain gloo processes: worker_queue.py FOLDER RANK WORLD

A tiny momentum contrast on drawn images. The gradients are averaged by hand; nothing of an engine takes part.
"""

import copy
import json
import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainer.distributed import collectives
from trainer.objectives.momentum_queue import MomentumQueue

IMAGES, PIXELS, WIDTH, SLOTS, STEPS, TAU, MOMENTUM, RATE, SEED = 16, 12, 8, 5, 40, 0.1, 0.9, 0.5, 7


def views(step: int, dtype: torch.dtype) -> Tensor:
    """Two views of each image of a global batch, [2, IMAGES, PIXELS]."""
    draws = torch.Generator().manual_seed(step)
    images = torch.randn(IMAGES, PIXELS, generator=draws, dtype=torch.float64)
    noise = torch.randn(2, IMAGES, PIXELS, generator=draws, dtype=torch.float64)
    return (images + 0.5 * noise).to(dtype)


def encoders(dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(SEED)
    encoder = nn.Sequential(nn.Linear(PIXELS, 16), nn.Tanh(), nn.Linear(16, WIDTH)).to(dtype)
    return encoder, copy.deepcopy(encoder).requires_grad_(False)


def flat(tensors) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def gradient_step(encoder: nn.Module, key_encoder: nn.Module) -> Tensor:
    """Plain gradient descent, then the momentum encoder follows; returns the gradient as one vector."""
    gradient = flat(p.grad for p in encoder.parameters())
    with torch.no_grad():
        for query, key in zip(encoder.parameters(), key_encoder.parameters(), strict=True):
            query -= RATE * query.grad
            query.grad = None
            key.mul_(MOMENTUM).add_(query, alpha=1 - MOMENTUM)
    return gradient


def micro_step(
    both: Tensor, encoder, key_encoder, queue, step: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """Loss of a micro-batch of two views [2, m, PIXELS], and the keys to enqueue."""
    q, k = (F.normalize(net(both), dim=2) for net in (encoder, key_encoder))
    queries, keys = (q.flatten(0, 1), k.flip(0).flatten(0, 1)) if symmetric else (q[0], k[1])
    rest = queue.log_sum_exp(queries, TAU, step)
    loss = F.softplus(rest - (queries * keys).sum(1) / TAU, threshold=40).mean() * (1 + symmetric)
    return loss, k.transpose(0, 1).flatten(0, 1) if symmetric else keys


def run(job: dict, folder: Path) -> dict[str, Tensor]:
    """Losses, gradients and parameters of all steps, and the whole queue at the end."""
    dtype, symmetric, world, rank = (
        getattr(torch, job["dtype"]),
        job["symmetric"],
        collectives.world_size(),
        collectives.rank(),
    )
    encoder, key_encoder = encoders(dtype)
    queue = MomentumQueue(
        SLOTS * IMAGES * (1 + symmetric), WIDTH, IMAGES * (1 + symmetric), job["start"], job["dtype"], SEED
    )
    first = job.get("first", 0)
    if first:
        restore(load_file(folder / f"{job['from']}-{first}.safetensors"), encoder, key_encoder, queue)
    history = {"losses": [], "gradients": [], "parameters": []}
    for step in range(first, job["stop"]):
        images = views(step, dtype).chunk(world, dim=1)[rank]
        pending, losses = [], []
        for micro in images.chunk(job["micros"], dim=1):
            loss, keys = micro_step(micro, encoder, key_encoder, queue, step, symmetric)
            (loss / job["micros"]).backward()
            losses.append(loss.detach())
            pending.append(keys)
        average = collectives.all_reduce_mean(flat(p.grad for p in encoder.parameters()))
        nn.utils.vector_to_parameters(average, [p.grad for p in encoder.parameters()])
        history["losses"].append(collectives.all_reduce_mean(torch.stack(losses).mean()))
        history["gradients"].append(gradient_step(encoder, key_encoder))
        history["parameters"].append(flat([*encoder.parameters(), *key_encoder.parameters()]))
        queue.enqueue(torch.cat(pending), step)
    rows = queue.sharded_state_dict()["keys"]
    assert rows.offset == rank * len(rows.rows)
    return {name: torch.stack(values) for name, values in history.items()} | {
        "queue": collectives.all_gather(rows.rows)
    }


def restore(
    state: dict[str, Tensor], encoder: nn.Module, key_encoder: nn.Module, queue: MomentumQueue
) -> None:
    """Equal weights on all ranks; of the queue each takes its rows."""
    nn.utils.vector_to_parameters(state["encoder"], encoder.parameters())
    nn.utils.vector_to_parameters(state["key_encoder"], key_encoder.parameters())
    queue.load_sharded_state_dict({"keys": state["keys"].chunk(collectives.world_size())[collectives.rank()]})


def main(folder: Path, rank: int, world: int) -> None:
    torch.set_num_threads(1)
    if world > 1:
        rendezvous = f"file://{folder}/rendezvous-{world}"
        torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world)
    assert collectives.world_size() == world
    for job in json.loads((folder / "jobs.json").read_text()):
        results = run(job, folder)
        if rank == 0:
            save_file(
                {k: v.contiguous() for k, v in results.items()},
                folder / f"{job['name']}-on-{world}.safetensors",
            )
    collectives.barrier()
    os._exit(0)  # torch's threads may abort an orderly exit


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
