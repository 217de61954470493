"""The same queries, keys and queue through lightly's loss and memory bank, and through ours.

    python -m venv lightly && lightly/bin/pip install torch==2.13.0 lightly
    python benchmarks/lightly_loss.py lightly/bin/python

The argument is the Python of an environment that has lightly; it cannot be ours: lightly brings torchvision
and pytorch-lightning. Eleven steps, so that a bank of five batches wraps twice; each side enqueues by itself.
Prints both losses of every step and the largest difference of losses and of gradients. The exit status is 1
where a loss differs by more than 1e-5.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

STEPS, BATCH, SLOTS, WIDTH, TAU = 11, 64, 5, 128, 0.1


def main(python: str) -> int:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    import torch

    from trainer.objectives.bounds import softplus
    from trainer.objectives.momentum_queue import MomentumQueue, unit_keys

    pairs = unit_keys(1, range(2 * STEPS), 0, BATCH, WIDTH).view(STEPS, 2, BATCH, WIDTH)
    pairs[:, 1] = torch.nn.functional.normalize(pairs[:, 0] + pairs[:, 1], dim=2)  # keys beside their queries
    queue = MomentumQueue(SLOTS * BATCH, WIDTH, BATCH, seed=0)
    first = queue.sharded_state_dict()["keys"].rows.transpose(0, 1).flatten(0, 1)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "inputs.npz", pairs=pairs.numpy(), first=first.numpy())
        subprocess.run([python, __file__, "--lightly", folder], check=True)
        theirs = np.load(Path(folder) / "results.npz", allow_pickle=False)
        losses, gradients = torch.from_numpy(theirs["losses"]), torch.from_numpy(theirs["gradients"])
    worst = 0.0
    print("| step | lightly | ours | difference |\n|---|---|---|---|")
    for step, (queries, keys) in enumerate(pairs):
        queries = queries.clone().requires_grad_()
        q = torch.nn.functional.normalize(queries, dim=1)  # as lightly does, for the gradient's sake
        loss = softplus(queue.log_sum_exp(q, TAU, step) - (q * keys).sum(1) / TAU).mean()
        loss.backward()
        queue.enqueue(keys, step)
        apart = abs(loss.item() - losses[step].item())
        print(f"| {step} | {losses[step]:.7f} | {loss:.7f} | {apart:.1e} |")
        worst = max(worst, apart)
        gradients[step] -= queries.grad
    print(f"\nlosses differ by at most {worst:.1e} (bar: 1e-5), gradients by {gradients.abs().max():.1e}")
    return int(worst > 1e-5)


def through_lightly(folder: Path) -> None:
    """In lightly's environment."""
    import torch
    from torch import library

    register = library.register_fake

    def known(name: str, *rest, **options):
        """A torchvision for CUDA has no operators beside a torch for CPU; lightly's loss needs none."""
        return (lambda f: f) if name.startswith("torchvision::") else register(name, *rest, **options)

    library.register_fake = known
    from lightly.loss import NTXentLoss

    inputs = np.load(folder / "inputs.npz", allow_pickle=False)
    criterion = NTXentLoss(temperature=TAU, memory_bank_size=(SLOTS * BATCH, WIDTH))
    criterion.memory_bank.bank = torch.from_numpy(inputs["first"])
    losses, gradients = [], []
    for queries, keys in torch.from_numpy(inputs["pairs"]):
        queries = queries.clone().requires_grad_()
        loss = criterion(queries, keys)
        loss.backward()
        losses.append(loss.detach())
        gradients.append(queries.grad)
    np.savez(
        folder / "results.npz", losses=torch.stack(losses).numpy(), gradients=torch.stack(gradients).numpy()
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--lightly"]:
        through_lightly(Path(sys.argv[2]))
    elif len(sys.argv) == 2:
        sys.exit(main(sys.argv[1]))
    else:
        sys.exit(__doc__)
