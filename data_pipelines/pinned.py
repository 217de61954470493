"""Copies from the host to a device that nothing waits for.

A copy of pageable memory waits until the device has done all work before it: a loader's thread that makes one
is never more than a step ahead.
"""

import numpy as np
import torch


def on_device(values: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """An array or tensor on the device: on a CPU itself, to a GPU by a copy through pinned memory."""
    host = torch.from_numpy(np.ascontiguousarray(values)) if isinstance(values, np.ndarray) else values
    if host.device == device or device.type == "cpu":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)
