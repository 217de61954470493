"""The bounds' own memory, and that saving it costs no digit."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainer.networks.heads import EncodeAndDot
from trainer.objectives import bounds

B, L, WIDTH = 256, 64, 64
MEASURE = f"""
import ctypes, sys, torch
from trainer.networks.heads import LIMIT
from trainer.objectives import bounds
torch.set_num_threads(1)
bound = sys.argv[1]

def score(local, y):
    scaled = torch.einsum("iu,jlu->ijl", y, local) / {WIDTH} ** 0.5
    return LIMIT * torch.tanh(scaled / LIMIT) if bound in ("dv", "nwj") else scaled

def step(images, locations):
    local = torch.randn(images, locations, {WIDTH}, requires_grad=True)
    y = torch.randn(images, {WIDTH}, requires_grad=True)
    local.grad, y.grad = torch.ones_like(local), torch.ones_like(y)
    open("/proc/self/clear_refs", "w").write("5")  # forgets the peak
    before = memory("VmRSS")
    bounds.LOSSES[bound](bounds.reduce_in_pieces(score, local, y, 4, 0, bound)).backward()
    return memory("VmHWM") - before

def memory(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

step({B}, {L})  # libraries wake up and take what they keep
ctypes.CDLL(None).malloc_trim(0)
print(step({B}, {L}))
"""


@pytest.mark.parametrize("bound", bounds.LOSSES)
def test_a_batch_of_256_takes_less_than_100_megabytes(bound):
    """Bytes of resident memory beyond embeddings [256, 64, 64], [256, 64] and their gradients in float32.

    Forward and backward. The published logits [B·L, 1 + B·L] alone are 1.07e9 bytes.
    """
    assert B * L * (1 + B * L) * 4 > 2**30
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, bound],
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert 10e6 < int(done.stdout) < 100e6


def plain(bound: str, local, y):
    """Everything at once: for InfoNCE the published softmax over 1 + m·L candidates, -inf where masked."""
    m, locations, width = local.shape
    scores = (y @ local.reshape(-1, width).T).view(m, m, locations) / math.sqrt(width)
    same = torch.eye(m, dtype=torch.bool)
    joint, product = scores[same], scores[~same]  # [m, L], [m (m - 1), L]
    if bound == "jsd":
        parts = bounds.softplus(product).mean() + bounds.softplus(-joint).mean()
        return parts - 2 * math.log(2)
    if bound == "dv":
        return product.exp().mean().log() - joint.mean()
    if bound == "nwj":
        return (product - 1).exp().mean() - joint.mean()
    others = scores.masked_fill(same[:, :, None], -math.inf).flatten(1)
    logits = torch.cat([joint.reshape(-1, 1), others.repeat_interleave(locations, 0)], dim=1)
    return -logits.log_softmax(1)[:, 0].mean()


@pytest.mark.parametrize("bound", bounds.LOSSES)
def test_pieces_give_the_loss_and_gradients_of_everything_at_once(bound, monkeypatch):
    monkeypatch.setattr(bounds, "PIECE", 2**14)  # several pieces
    generator = torch.Generator().manual_seed(0)
    local, y = (
        torch.randn(*shape, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((48, 16), (48,))
    )
    critic = EncodeAndDot(WIDTH, WIDTH, WIDTH, "scaled", norm="group", group=1).double()
    wanted = plain(bound, local, y)
    gradients = torch.autograd.grad(wanted, (local, y))
    loss = bounds.LOSSES[bound](bounds.reduce_in_pieces(critic.scores, local, y, critic.cost, 0, bound))
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-10)
    for ours, theirs in zip(torch.autograd.grad(loss, (local, y)), gradients, strict=True):
        assert (ours - theirs).norm() / theirs.norm() < 1e-10
