"""A section of a recipe, and the types of numbers in it. Recipes import this: no numpy, no torch."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]


Count = Annotated[int, Field(ge=0)]


Fraction = Annotated[float, Field(ge=0, le=1)]


PositiveFloat = Annotated[float, Field(gt=0)]


Weight = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """A part of a recipe: frozen, strict about types (a boolean is no number), closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)
