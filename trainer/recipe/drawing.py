"""The section `draw`: how samples are drawn from noise."""

from typing import Annotated, Literal

from pydantic import Field

from data_pipelines.common.section import Fraction, Positive, Section, key

STEPS = {"ddim": 50, "flow": 25, "edm": 18}


class Drawing(Section):
    """How samples are drawn from noise."""

    sampler: Literal["euler", "heun"] | None = key(
        None, "one evaluation of the network a step, or two of second order; null: heun, but euler of ddim"
    )
    steps: Positive | None = key(None, "steps; null: 50 of ddim, 25 of flow, 18 of edm", "steps")
    eta: Fraction = key(0.0, "noise of a step of ddim, as a share of what DDPM's posterior has", "1")
    guidance: Annotated[float, Field(ge=0)] = key(
        1.0, "of w by its y: 1 as it is learned, above stronger, 0 without y", "1"
    )
    batch: Positive = key(250, "samples that are drawn together", "images")

    def check(self, process: str) -> None:
        """Raises ValueError: the process has no such sampler."""
        if process != "ddim" and self.eta:
            raise ValueError(
                f"draw.eta={self.eta:g}: noise is added in steps of ddim alone, not of {process}"
            )
        if process == "ddim" and self.sampler == "heun":
            raise ValueError("draw.sampler=heun: ddim's times are whole numbers; it has euler alone")

    def sampler_of(self, process: str) -> str:
        """The sampler for a process."""
        return self.sampler or ("euler" if process == "ddim" else "heun")

    def steps_of(self, process: str) -> int:
        """The steps for a process."""
        return self.steps or STEPS[process]
