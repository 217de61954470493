"""What float32 means on a GPU, by torch's own switches, which can be read without one."""

import pytest
import torch

from trainer.distributed import numerics
from trainer.recipe.fingerprint import differences
from trainer.recipe.loading import load

CUDNN, MATMUL = torch.backends.cudnn, torch.backends.cuda.matmul


def read() -> tuple[bool, ...]:
    return MATMUL.allow_tf32, CUDNN.allow_tf32, CUDNN.deterministic, CUDNN.benchmark


@pytest.fixture(autouse=True)
def _as_before():
    before = read()
    yield
    MATMUL.allow_tf32, CUDNN.allow_tf32, CUDNN.deterministic, CUDNN.benchmark = before


@pytest.mark.parametrize(
    ("tf32", "deterministic", "words"),
    [
        (False, True, "float32 (IEEE), deterministic cuDNN kernels"),
        (True, True, "float32 (TF32), deterministic cuDNN kernels"),
        (False, False, "float32 (IEEE), the fastest cuDNN kernels"),
    ],
)
def test_products_and_convolutions_mean_the_same_float32(tf32, deterministic, words):
    assert numerics.configure(torch.device("cuda"), "float32", tf32, deterministic) == words
    assert read() == (tf32, tf32, deterministic, not deterministic)


def test_other_precisions_are_not_said_to_be_ieee_or_tf32():
    assert (
        numerics.configure(torch.device("cuda:1"), "bf16", False, True) == "bf16, deterministic cuDNN kernels"
    )


def test_a_processor_has_no_such_switches():
    before = read()
    assert numerics.configure(torch.device("cpu"), "float32", True, False) == "float32"
    assert read() == before


def test_tf32_changes_what_a_run_computes_and_the_choice_of_kernels_does_not():
    recipe = ["recipe=dim_local"]
    before = load(recipe).fingerprint()
    assert "tf32" not in before  # as in the checkpoints that are older than the key
    assert load([*recipe, "deterministic=false"]).fingerprint() == before
    assert differences(before, load([*recipe, "tf32=true"]).fingerprint()) == ["tf32: (none) -> true"]
