"""What a collective does beside sending, in a group of ranks that only one is there of; see tests/ranks."""

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.distributed import collectives


@pytest.fixture
def two_ranks():
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    dist.destroy_process_group()


class Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function._schema.name.partition("::")[2])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_rows_are_gathered_into_place(two_ranks, dtype):
    """A list of parts would be copied twice: by the backend from its own buffer, and into one tensor."""
    rows = torch.ones(4, 3, 2).to(dtype)
    with Calls() as calls:
        everyones = collectives.all_gather(rows)
    assert everyones.shape == (8, 3, 2)
    assert everyones.dtype == dtype
    assert [name for name in calls.names if "gather" in name] == ["_allgather_base_"]
    assert not {"cat", "copy_", "clone"} & set(calls.names)
