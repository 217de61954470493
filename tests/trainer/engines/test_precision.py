"""bf16: the forward pass under autocast, its results and the parameters in float32."""

import torch
from torch import nn

from trainer.engines.precision import MixedPrecision, forward_precision, with_precision

CPU = torch.device("cpu")


class Objective(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, batch):
        y = self.layer(batch)
        return {"loss": y.float().mean(), "narrow": y.sum(), "number": 1.5}


def test_results_of_a_bf16_forward_pass_are_float32():
    objective, batch = Objective(), torch.randn(2, 3)
    values = MixedPrecision(objective, CPU)(batch)
    with forward_precision("bf16", CPU):
        expected = objective(batch)
    assert expected["narrow"].dtype == torch.bfloat16
    assert values["narrow"].dtype == torch.float32
    assert values["narrow"] == expected["narrow"].float()
    assert values["loss"] == expected["loss"]
    assert values["number"] == 1.5
    values["loss"].backward()
    assert {p.dtype for p in objective.parameters()} == {p.grad.dtype for p in objective.parameters()}


def test_other_precisions_run_the_objective_itself():
    objective, batch = Objective(), torch.randn(2, 3)
    for precision in ("float32", "float64"):
        assert with_precision(objective, precision, CPU) is objective
        with forward_precision(precision, CPU):
            assert objective(batch)["narrow"].dtype == torch.float32


def test_an_objective_keeps_its_names_in_mixed_precision():
    objective = Objective()
    model = with_precision(objective, "bf16", CPU)
    assert [p is q for p, q in zip(model.parameters(), objective.parameters(), strict=True)] == [True, True]
    assert objective.state_dict().keys() == {"layer.weight", "layer.bias"}
