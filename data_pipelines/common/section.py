"""A section of a recipe, its keys, and types of numbers. Recipes import this: neither numpy nor torch."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]


Count = Annotated[int, Field(ge=0)]


Fraction = Annotated[float, Field(ge=0, le=1)]


PositiveFloat = Annotated[float, Field(gt=0)]


Weight = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """A part of a recipe: frozen, strict about types (a boolean is no number), closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)


def key(default: Any, meaning: str, unit: str = "") -> Any:
    """A key of a section, with what recipes/README.md says about it.

    A `kind`, or a key that holds a section, needs none: the docstring of the section is its meaning.

    Args:
        default: `...` where the key is required.
        meaning: what the value is, in Markdown.
        unit: of a number, or of the numbers in a section: "images", "seconds"; "1" for a share or a factor.
    """
    return Field(default, description=meaning, json_schema_extra={"unit": unit} if unit else None)


@dataclass(frozen=True)
class Wording:
    """In a type's annotation: what a message says is expected, where the type's rules do not say it."""

    wording: str
