"""What DeepSpeed is asked for. That its engine does it on ranks, and steps right: tests/ranks."""

import pytest

from trainer.engines.zero import options

deepspeed = pytest.importorskip("deepspeed")


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_no_stage_waits_for_a_timer_or_for_a_norm_that_nobody_reads(stage, cuda):
    asked = options(stage, cuda)
    assert asked["timers"]["throughput"]["enabled"] is False
    assert asked["gradient_clipping"] == 0.0
    config = deepspeed.runtime.zero.config.DeepSpeedZeroConfig(**asked["zero_optimization"])
    assert config.stage == stage
    assert config.compute_grad_norm is (stage == 3)  # which refuses the key
    assert config.overlap_comm is (cuda or stage == 3)
