"""The recipe's critics, which score pairs for a bound on mutual information: one section a kind."""

from typing import Annotated, Literal

from pydantic import Field

from data_pipelines.common.section import Positive, Section, key

Score = Literal["dot", "scaled", "tanh"]


class DotCritic(Section):
    """Both sides are encoded to as many units; a score is their dot product.

    Null as `score` is `dot` for jsd and infonce, and `tanh` for dv and nwj, whose exponentials overflow on
    plain dot products.
    """

    kind: Literal["dot"]
    units: Positive = key(2048, "width of both encodings", "units")
    score: Score | None = key(
        None,
        "`dot` as published; `scaled` by 1/sqrt(units); `tanh`: 20 tanh(scaled / 20); null: by the bound",
    )

    def score_for(self, bound: str) -> Score:
        """The score that a critic of this bound computes."""
        return self.score or ("tanh" if bound in ("dv", "nwj") else "dot")


class ConcatCritic(Section):
    """Feature and y are concatenated and go through two hidden layers (the paper's other critic)."""

    kind: Literal["concat"]
    units: Positive = key(512, "width of each hidden layer", "units")


CriticOptions = Annotated[DotCritic | ConcatCritic, Field(discriminator="kind")]
