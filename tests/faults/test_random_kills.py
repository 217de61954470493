"""Twenty SIGKILLs at random moments: every run ends as if nothing had happened.

`python benchmarks/survival.py` makes two hundred.
"""

import os
import random
import time

import pytest

from tests.helpers.faults.random_kills import kill_at_random

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("KILLS_SEED") or time.time_ns() % 1_000_000)
CASES = [
    ("dim_complete", 1, 2),
    ("dim_complete", 2, 3),
    ("dim_complete", 4, 2),
    ("moco", 1, 2),
    ("moco", 2, 2),
    ("moco", 4, 3),
    ("hybrid", 1, 2),
    ("hybrid", 2, 2),
    ("hybrid", 4, 2),
]


def test_there_are_twenty():
    assert sum(kills for *_, kills in CASES) == 20


@pytest.mark.parametrize(("recipe", "world", "kills"), CASES)
def test_killed_at_random_moments(harness, recipe, world, kills):
    print(f"KILLS_SEED={SEED} repeats these moments, as far as the machine does")
    dice = random.Random(f"{SEED} {recipe} {world}")
    done, _ = kill_at_random(harness, recipe, world, kills, dice)
    print(*done, sep="\n")
    assert len(done) == kills
