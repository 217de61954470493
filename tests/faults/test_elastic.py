"""A run killed and continued on other numbers of ranks, and under other engines."""

import pytest

from tests.helpers.faults.elastic_runs import Start, assert_close, elastic
from tests.helpers.faults.tiny_runs import IMAGES, RECIPES

pytestmark = pytest.mark.slow

# Rounding grows with the length of the steps: these keep it below what is promised.
WIDE = ("precision=float64", "optimizer.lr=3e-4")


@pytest.mark.parametrize("recipe", RECIPES)
def test_four_ranks_then_two_then_one_then_two(harness, recipe):
    starts = [Start(4, "ddp", 576, 3), Start(2, "ddp", 1088, 1), Start(1, "ddp", 1472), Start(2, "ddp", None)]
    undisturbed, run = elastic(harness, recipe, starts, *WIDE)
    assert_close(undisturbed.folder, run, until=IMAGES, tolerance=1e-8)


def test_the_engine_changes_with_the_ranks(harness):
    """To 1e-8 as far as the engines compute in float64; ZeRO keeps its weights in float32."""
    exact = 1088
    starts = [Start(4, "ddp", 576, 1), Start(2, "fsdp2", exact, 0), Start(4, "zero2", None)]
    undisturbed, run = elastic(harness, "hybrid", starts, *WIDE)
    assert_close(undisturbed.folder, run, until=exact, tolerance=1e-8)
    # Of 64 images: one that is another's neighbour is more than the tolerance.
    apart = ("knn/y/online", "knn/head/online")
    assert_close(undisturbed.folder, run, until=IMAGES - 1, tolerance=1e-2, apart=apart)


def test_after_other_faults_too(harness):
    """Told to stop, killed in a save, hung: each time it goes on with other ranks, or another engine."""
    starts = [
        Start(4, "ddp", 320, fault="stop"),
        Start(2, "fsdp2", 768, 1, "save"),
        Start(4, "fsdp2", 1088, 2, "hang"),
        Start(1, "ddp", None),
    ]
    undisturbed, run = elastic(harness, "moco", starts, *WIDE)
    assert_close(undisturbed.folder, run, until=IMAGES, tolerance=1e-8)
