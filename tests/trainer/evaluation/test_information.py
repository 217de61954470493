"""In-sample, an estimate of information measures a critic's memory; on other pairs it is a lower bound."""

import math

import torch
from torch import nn

from trainer.objectives.bounds import information, reduce_groups


def test_a_critic_learns_independent_pairs_by_heart():
    """1,024 fixed pairs without information: near the ceiling on them, at most 0 on fresh ones."""
    torch.manual_seed(0)
    groups, size, d = 16, 64, 64
    x, y, other_x, other_y = (torch.randn(groups * size, d) for _ in range(4))
    critic = nn.ModuleList(nn.Sequential(nn.Linear(d, 512), nn.ReLU(), nn.Linear(512, 64)) for _ in range(2))
    optimizer = torch.optim.Adam(critic.parameters(), 1e-3)

    def estimate(x, y):
        """The mean InfoNCE estimate over groups of 64, nats; its ceiling is log 64."""
        pairs = [
            pair
            for rows, columns in zip(x.split(size), y.split(size), strict=True)
            for pair in reduce_groups(
                scores, critic[0](rows).unsqueeze(1), critic[1](columns), 1, size, "infonce"
            )
        ]
        return torch.stack([information(pair.at_location(0)) for pair in pairs]).mean()

    def scores(locals_, globals_):
        return torch.einsum("jlu,iu->ijl", locals_, globals_) / 8

    for _ in range(60):
        order = torch.randperm(len(x))
        loss = -estimate(x[order], y[order])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert estimate(x, y) > 0.9 * math.log(size)
        assert estimate(x, y) <= math.log(size)
        assert estimate(other_x, other_y) <= 0
