"""Features that need no encoder."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits


@pytest.fixture(scope="session")
def pixels():
    """Handwritten digits, pixels in [0, 1], some of them constant: 1,437 training and 360 test images."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x = torch.from_numpy(data.data[order] / 16).float()
    y = torch.from_numpy(data.target[order]).long()
    return x[:1437], y[:1437], x[1437:], y[1437:], 10
