"""The section `draw`: how samples are drawn from noise."""

from typing import Annotated, Literal

from pydantic import Field

from data_pipelines.common.section import Fraction, Positive, Section, key

STEPS = {"ddim": 50, "flow": 25, "edm": 18}
TIMES_OF_DDIM = 1000  # more steps there are none


class Drawing(Section):
    """How samples are drawn from noise."""

    sampler: Literal["euler", "heun"] | None = key(
        None, "one evaluation of the network a step, or two of second order; null: heun, but euler of ddim"
    )
    steps: Positive | None = key(
        None,
        "steps; null: 50 of ddim, 25 of flow, 18 of edm; ddim has at most 1,000, and takes all of D2C's "
        "sequence of times: 51 for 50",
        "steps",
    )
    eta: Fraction = key(0.0, "noise of a step of ddim, as a share of what DDPM's posterior has", "1")
    guidance: Annotated[float, Field(ge=0)] = key(
        1.0, "of w by its y: 1 as it is learned, above stronger, 0 without y", "1"
    )
    batch: Positive = key(250, "samples that are drawn together", "images")

    def check(self, process: str) -> None:
        """Raises ValueError: the process has no such sampler, or not so many steps."""
        if process != "ddim" and self.eta:
            raise ValueError(
                f"draw.eta={self.eta:g}: noise is added in steps of ddim alone, not of {process}"
            )
        if process == "ddim" and self.sampler == "heun":
            raise ValueError("draw.sampler=heun: ddim's times are whole numbers; it has euler alone")
        if process == "ddim" and (self.steps or 0) > TIMES_OF_DDIM:
            raise ValueError(
                f"draw.steps={self.steps}: ddim has {TIMES_OF_DDIM:,} times; give at most {TIMES_OF_DDIM}"
            )

    def sampler_of(self, process: str) -> str:
        """The sampler for a process."""
        return self.sampler or ("euler" if process == "ddim" else "heun")

    def steps_of(self, process: str) -> int:
        """The steps for a process."""
        return self.steps or STEPS[process]
