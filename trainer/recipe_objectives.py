"""The recipe's objectives and their critics: one section a kind."""

from typing import Literal

from data_pipelines.spec import Positive, PositiveFloat, Section


class Critic(Section):
    """The encode-and-dot critic; `score` says how dot products become scores."""

    units: Positive = 2048
    score: Literal["dot", "scaled", "tanh"] = "dot"


class DimObjective(Section):
    """Deep InfoMax. `beta` weighs the local term; `locations` of the map drawn a step (null: all)."""

    kind: Literal["dim"]
    bound: Literal["jsd", "infonce"]
    beta: PositiveFloat = 1.0
    critic: Critic = Critic()
    locations: Positive | None = None


Objective = DimObjective
