"""The momentum encoder's step where nothing is sharded; for sharded ones see the tests of engines."""

import pytest
import torch
from torch import nn

from trainer.distributed.ema import ema_update_


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.999])
def test_keys_follow_queries(momentum):
    query, key = (nn.Linear(3, 4).double() for _ in range(2))
    key.requires_grad_(False)
    before, queries = key.weight.clone(), query.weight.detach().clone()
    for _ in range(5):
        ema_update_(list(key.parameters()), list(query.parameters()), momentum)
    expected = [
        [k * momentum**5 + q * (1 - momentum**5) for k, q in zip(*rows, strict=True)]
        for rows in zip(before.tolist(), queries.tolist(), strict=True)
    ]
    assert (key.weight - torch.tensor(expected, dtype=torch.float64)).abs().max() < 1e-14
    assert torch.equal(query.weight, queries)
    assert key.weight.grad_fn is None
