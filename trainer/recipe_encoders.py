"""The recipe's encoders: one section a kind."""

from typing import Annotated, Literal

from pydantic import Field

from data_pipelines.spec import Positive, Section


class DimEncoder(Section):
    """The convolutional encoder of the Deep InfoMax paper; its defaults are the published 32-px network."""

    kind: Literal["dim"]
    channels: Annotated[list[Positive], Field(min_length=2, max_length=5)] = [64, 128, 256]
    fc: Positive = 1024
    y: Positive = 64


Encoder = DimEncoder
