"""What must stay the same when a run is resumed, what differs, and the overrides that undo the difference.

A fingerprint is a flat dictionary: dotted key -> plain value. It is stored in the manifests of checkpoints,
so its keys are frozen: a key that is renamed (`trainer.recipe.loading.OLD_NAMES`) is never one of them.
"""

import re
from fnmatch import fnmatchcase
from shlex import quote
from typing import Any

from trainer.recipe.messages import shown
from trainer.recipe.trees import flatten
from trainer.recipe.yaml12 import to_yaml_line

# What a changed run may go on with: none of these changes what is computed from the images that are seen.
NOT_FINGERPRINTED = (
    *("outputs", "run", "accumulate", "save", "log", "evaluate", "tracking", "step_timeout", "profile"),
    # the choice of kernels: what is computed is the same, but for the last bits
    *("deterministic", "compile"),
    *("from", "checkpoint", "draw"),  # of diffusion, whose samples are known by their digest
)
NOT_FINGERPRINTED_DATA = tuple(
    f"data.{key}" for key in ("root", "make", "threads", "prefetch", "retry_seconds", "cache", "cache_bytes")
)
# Keys that are younger than some checkpoints, with the value that means what was meant before there was the
# key. Patterns of fnmatch, such as `data.views.*.jitter.order`; a `*` also matches dots.
DEFAULTS_OF_NEW_KEYS = {
    "tf32": False,
    "data.resident": False,
    "data.lanes": 1,
    "optimizer.lr_per_256": None,
    "optimizer.scaling": None,
    "optimizer.decay_norms": True,
    "data.views.[0-9].hue": "yiq",  # a `*` would match `jitter.hue` too
    "encoder.w": None,
    "encoder.y": None,
    "objective.decoder_noise": 0.0,
    "objective*.final_momentum": None,
}
# New keys of one kind of section alone: for the other kinds the name is an old one.
NEW_FOR = {"encoder.y": ("encoder.kind", "nvae")}
ABSENT = object()


def fingerprint(resolved: dict) -> dict[str, Any]:
    """The values of a resolved recipe that must be the same when a run is resumed, by dotted key.

    New keys are left out where they have the value of the time before them: older runs go on. The length of
    training is left out where no schedule depends on it.
    """
    values = dict(flatten(resolved))
    momenta = [value for key, value in values.items() if fnmatchcase(key, "objective*.final_momentum")]
    if values.get("schedule.kind") == "constant" and not any(momentum is not None for momentum in momenta):
        values.pop("images", None)
    return {
        key: value
        for key, value in values.items()
        if not may_change(key) and not (_is_new(key, values) and default_of_new_key(key) == value)
    }


def _is_new(key: str, values: dict[str, Any]) -> bool:
    """Whether a key of DEFAULTS_OF_NEW_KEYS is new for this recipe's kinds of sections."""
    of, kind = NEW_FOR.get(key, ("", None))
    return kind is None or values.get(of) == kind


def may_change(key: str) -> bool:
    """Whether a run may go on with another value at this dotted key, whatever its recipe says."""
    return key.split(".")[0] in NOT_FINGERPRINTED or key in NOT_FINGERPRINTED_DATA


def default_of_new_key(key: str) -> Any:
    """What a new key means where a fingerprint lacks it; ABSENT for the keys that every fingerprint has."""
    return next(
        (value for pattern, value in DEFAULTS_OF_NEW_KEYS.items() if fnmatchcase(key, pattern)), ABSENT
    )


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Two fingerprints -> a line for each key that differs, such as `optimizer.lr: 0.0001 -> 0.001`."""
    sides = [{key: shown(value) for key, value in side.items()} for side in (old, new)]
    return [
        f"{key}: {sides[0].get(key, '(none)')} -> {sides[1].get(key, '(none)')}" for key in changed(old, new)
    ]


def changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The keys that differ between two fingerprints, those of the old one first."""
    return [key for key in dict.fromkeys([*old, *new]) if old.get(key, ABSENT) != new.get(key, ABSENT)]


def remedy(old: dict[str, Any], new: dict[str, Any]) -> str:
    """How to go on where a run has the fingerprint `old` and the recipe `new`, as it is typed in a shell."""
    words = " ".join(map(quote, overrides_to_continue(old, new)))
    continuing = f"continue it with {words}, or " if words else ""
    return f"{continuing}start another with run=NAME"


# ---- the way back ----------------------------------------------------------------------------------


def overrides_to_continue(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Two fingerprints -> the words `key=value` that give the old values, added to the new recipe's command.

    A list of sections of another length is given whole. Where the `kind` of a section differs, so are all of
    its keys, for the change drops what the section inherited. Empty where nothing differs, and where no
    override leads back: a key that only one of two versions of the program has.
    """
    lists = _resized_lists(old, new)
    kinds = [key.removesuffix("kind") for key in changed(old, new) if key.endswith(".kind") and key in old]
    words = []
    for key in dict.fromkeys([*old, *new]):
        resized = next((at for at in lists if key.startswith(f"{at}.")), None)
        if resized:
            words.append(_word(resized, _section(old, resized)))
        elif key.startswith(tuple(kinds)):  # the kind is the first key of its section, and comes first here
            words += [_word(key, old[key])] if key in old else []
        elif key in old and key in new:
            words += [_word(key, old[key])] if old[key] != new[key] else []
        elif _has_another_shape(key, new if key in old else old):
            words += [_word(key, old[key])] if key in old else []
        elif default := _default_from_above(key):
            words.append(_word(*default) if key in new else _word(default[0], _section(old, default[0])))
        else:
            return []
    return list(dict.fromkeys(words))


def _word(key: str, value: Any) -> str:
    return f"{key}={to_yaml_line(value)}"


def _default_from_above(key: str) -> tuple[str, Any] | None:
    """The new key that `key` is or belongs to (a new section may be null by default), and its default."""
    parts = key.split(".")
    dotted = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    return next(((at, default_of_new_key(at)) for at in dotted if default_of_new_key(at) is not ABSENT), None)


def _resized_lists(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The dotted keys of lists of sections whose lengths differ."""
    indices_of: list[dict[str, set[str]]] = [{}, {}]
    for side, indices in zip((old, new), indices_of, strict=True):
        for key in side:
            for match in re.finditer(r"\.(\d+)\.", key):
                indices.setdefault(key[: match.start()], set()).add(match[1])
    before, after = indices_of
    return [at for at in before if at in after and before[at] != after[at]]


def _section(values: dict[str, Any], at: str) -> Any:
    """The part of a fingerprint below `at`, nested again."""
    if at in values:
        return values[at]
    names = dict.fromkeys(key[len(at) + 1 :].split(".")[0] for key in values if key.startswith(f"{at}."))
    parts = {name: _section(values, f"{at}.{name}") for name in names}
    return list(parts.values()) if all(name.isdecimal() for name in parts) else parts


def _has_another_shape(key: str, other: dict[str, Any]) -> bool:
    """Whether the side that lacks a key has null where a section would hold it, or a section in its place.

    The number of images is there only under a schedule that depends on it.
    """
    parts = key.split(".")
    above = (".".join(parts[:count]) for count in range(1, len(parts)))
    return (
        key == "images"
        or any(at in other for at in above)
        or any(name.startswith(f"{key}.") for name in other)
    )
