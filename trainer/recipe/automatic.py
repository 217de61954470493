"""The value `auto`: resolved once, at a run's first start, from what the machine has, and kept.

A key joins with a `Rule` in `RULES`, and with "auto" among the values of its type. The first start writes the
resolved value into the run's recipe.yaml, and so into its fingerprint and MLflow's parameters. A later start
has the run's value, on whatever machine, or is refused in one line where the machine cannot do it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from data_pipelines.common.errors import UserError
from trainer.recipe.loading import ResolvedRecipe
from trainer.recipe.recipes import AnyTask
from trainer.recipe.trees import flatten
from trainer.recipe.yaml12 import to_yaml_line

AUTO = "auto"


@dataclass(frozen=True)
class Split:
    """The training split, once the data set is open.

    Attributes:
        images: how many.
        decoded: bytes of them all decoded, uint8 RGB; None where they have several sizes, or nobody asks.
    """

    images: int
    decoded: int | None = None


@dataclass(frozen=True)
class Facts:
    """What rules know of a rank's machine, and of the data set once it is open.

    Attributes:
        device: "cpu" or "cuda".
        capability: compute capability of the GPU, (8, 0) for an A100; (0, 0) of a CPU.
        memory: bytes of the device's memory, on a CPU this rank's share of the machine's.
        tiles: whether a CPU multiplies tiles of bf16 (AMX).
        split: what is trained on; None before the data set is open, and for latents.
    """

    device: str
    capability: tuple[int, int] = (0, 0)
    memory: int = 0
    tiles: bool = False
    split: Split | None = None


@dataclass(frozen=True)
class Rule:
    """How one key is resolved, by pure functions of the recipe, the key's value and the facts.

    Attributes:
        choose: the value in the place of `auto`; None where only the open data set will tell.
        refuse: why this machine cannot do the value that the key has, as "it is so; do that", or None.
            It is asked of every value, the recipe's own word too, but never of `auto`.
    """

    choose: Callable[[AnyTask, Facts], Any]
    refuse: Callable[[AnyTask, Any, Facts], str | None] = lambda recipe, value, facts: None


# ---- the keys --------------------------------------------------------------------------------------

OTHERWISE = "use a machine that has it, or start another with run=NAME and"
BF16_SINCE = (8, 0)  # NVIDIA's Ampere; torch emulates bfloat16 on older cards


def _precision(recipe: AnyTask, facts: Facts) -> str:
    """On a CPU a denoiser's convolutions gain by bf16; depthwise ones, of other networks, lose."""
    if facts.device == "cuda":
        return "bf16" if facts.capability >= BF16_SINCE else "float32"
    return "bf16" if facts.tiles and recipe.task == "diffuse" else "float32"


def _lacks_precision(recipe: AnyTask, value: str, facts: Facts) -> str | None:
    if value != "bf16" or facts.device != "cuda" or facts.capability >= BF16_SINCE:
        return None  # a processor without it emulates it
    have, need = (".".join(map(str, version)) for version in (facts.capability, BF16_SINCE))
    return (
        f"this GPU has no bf16 (compute capability {have}, {need} is needed); {OTHERWISE} precision=float32"
    )


COMPILES_SINCE = (7, 0)  # NVIDIA's Volta: the oldest that Triton knows


def _compile(recipe: AnyTask, facts: Facts) -> bool:
    return facts.device == "cuda" and facts.capability >= COMPILES_SINCE


SMALL = 32 * 32  # pixels of an image and of a view up to which a CPU makes views faster than DALI


def _resident(recipe: AnyTask, facts: Facts) -> bool | None:
    if facts.split is None:
        return None
    assert recipe.trains  # whose key this is
    assert recipe.data is not None
    data, split = recipe.data, facts.split
    fast = facts.device == "cuda" or data.size**2 <= SMALL >= (split.decoded or 0) / (3 * split.images)
    fits = split.decoded is not None and 4 * split.decoded <= facts.memory
    return data.decode == "exact" and fast and fits


def _cannot_keep(recipe: AnyTask, value: bool, facts: Facts) -> str | None:
    if not value or facts.split is None:
        return None
    assert recipe.trains
    assert recipe.data is not None
    if recipe.data.decode == "fast":
        return "images are decoded once and whole; set data.decode=exact, or data.resident=false"
    if facts.split.decoded is None:
        return f"the images of '{recipe.data.train}' have several sizes; set data.resident=false"
    if facts.split.decoded <= facts.memory:
        return None
    sizes = f"{facts.split.decoded:,} bytes, and this rank has {facts.memory:,}"
    return f"the decoded images of '{recipe.data.train}' take {sizes}; set data.resident=false"


RULES = {
    "precision": Rule(_precision, _lacks_precision),
    "compile": Rule(_compile),
    "data.resident": Rule(_resident, _cannot_keep),
}

# ---- what is done with them ------------------------------------------------------------------------


def automatic_keys(recipe: AnyTask) -> list[str]:
    """The dotted keys that are still to be resolved, in the recipe's order."""
    values = flatten(recipe.model_dump(by_alias=True))
    return [key for key, value in values if key in RULES and value == AUTO]


def kept(loaded: ResolvedRecipe, saved: AnyTask) -> ResolvedRecipe:
    """The recipe with the values that its run has, where it says `auto`; `saved` is the run's recipe.yaml."""
    values = dict(flatten(saved.model_dump(by_alias=True)))
    keys = [key for key in automatic_keys(loaded.recipe) if values.get(key, AUTO) != AUTO]
    return with_values(loaded, {key: values[key] for key in keys}, "auto, as at the first start")


def choices(recipe: AnyTask, facts: Facts) -> dict[str, Any]:
    """Dotted key -> value for each `auto` that the facts can resolve."""
    chosen = {key: RULES[key].choose(recipe, facts) for key in automatic_keys(recipe)}
    return {key: value for key, value in chosen.items() if value is not None}


def with_values(loaded: ResolvedRecipe, values: dict[str, Any], origin: str) -> ResolvedRecipe:
    """The recipe with other values at dotted keys of sections, whose origin is `origin`."""
    if not values:
        return loaded
    tree = loaded.resolved()
    for key, value in values.items():
        section, (*above, name) = tree, key.split(".")
        for part in above:
            section = section[part]
        section[name] = value
    recipe = type(loaded.recipe).model_validate(tree)
    return replace(loaded, recipe=recipe, origin=loaded.origin | dict.fromkeys(values, origin))


def check_machine(recipe: AnyTask, facts: Facts) -> None:
    """Looks whether this machine can do what the recipe says.

    Raises:
        UserError: naming the key and its value, why not, and what to do.
    """
    for key, value in flatten(recipe.model_dump(by_alias=True)):
        why = RULES[key].refuse(recipe, value, facts) if key in RULES and value != AUTO else None
        if why:
            raise UserError(f"{key}={to_yaml_line(value)}: {why}")
