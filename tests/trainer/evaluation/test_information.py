"""In-sample, an estimate of information measures a critic's memory; on other pairs it is a lower bound."""

import math

import torch
from torch import nn

from trainer.objectives import bounds

SIZE, WIDTH = 64, 64  # images that are each other's negatives; units of the critic's products


def pairs_of(critic, x, y):
    """The pairs of each group of 64 rows: x [n, d] as maps of one location, y [n, d]."""

    def scores(local, rows):
        return torch.einsum("jlu,iu->ijl", local, rows) / WIDTH**0.5

    local = critic[0](x).unsqueeze(1)
    for pairs in bounds.reduce_groups(scores, local, critic[1](y), 1, SIZE, "infonce"):
        yield pairs.at_location(0)


def estimate(critic, x, y):
    """InfoNCE's estimate in nats; its ceiling is log 64."""
    with torch.no_grad():
        return torch.stack([bounds.information(pairs) for pairs in pairs_of(critic, x, y)]).mean().item()


def test_a_critic_learns_independent_pairs_by_heart():
    """1,024 fixed pairs without information: near the ceiling on them, below 0 on others."""
    draws = torch.Generator().manual_seed(0)
    x, y, other_x, other_y = (torch.randn(1024, 32, generator=draws) for _ in range(4))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        critic = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 512), nn.ReLU(), nn.Linear(512, WIDTH)) for _ in range(2)
        )
    optimizer = torch.optim.Adam(critic.parameters(), 3e-3)
    for _ in range(60):
        order = torch.randperm(1024, generator=draws)
        for part in order.split(4 * SIZE):
            losses = [bounds.infonce_loss(pairs) for pairs in pairs_of(critic, x[part], y[part])]
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            optimizer.step()
    assert 0.95 * math.log(SIZE) < estimate(critic, x, y) <= math.log(SIZE)
    assert estimate(critic, other_x, other_y) < 0
