"""The tars in a folder, or of a pattern, and the splits that their names say."""

import glob
import os
import stat
from collections.abc import Sequence

from data_pipelines.common.errors import UserError
from data_pipelines.sources import splits
from data_pipelines.sources.clutter import clutter_in
from data_pipelines.sources.tars import ENDINGS
from data_pipelines.sources.tree import leads_nowhere


def find_tars(from_: str) -> tuple[str, list[str]]:
    """A folder and the names below it of all tars, sorted.

    Raises UserError where there is none, or where some may be but cannot be seen: behind a link to nothing,
    in a folder that may not be read.
    """
    if os.path.isdir(from_):
        base, pattern = from_, "**"
    else:
        fixed = from_.split("*")[0].split("?")[0].split("[")[0]
        base = os.path.dirname(fixed)
        pattern = os.path.relpath(from_, base or ".")
    matches = {name for name in glob.glob(pattern, root_dir=base or None, recursive=True) if name}
    if pattern == "**":
        _refuse_unreadable(from_, base)
    names = [
        name
        for name in sorted(matches)
        if not clutter_in(name.rstrip("/")) and _is_tar(from_, os.path.join(base, name))
    ]
    if not names:
        raise UserError(
            f"from={from_}: no tar is there; give a folder of tars or a quoted pattern, 'DIR/*.tar'"
        )
    return base or ".", names


def _is_tar(from_: str, path: str) -> bool:
    """Whether a path is a tar's by its name. Raises UserError where there may be one that cannot be seen."""
    name = os.path.basename(path)
    is_tar = name.lower().endswith(ENDINGS)
    if not is_tar and os.path.isdir(path):
        _refuse_unreadable(from_, path)
        return False
    if os.path.islink(path) and leads_nowhere(path) and (is_tar or "." not in name):
        raise UserError(f"from={from_}: {path} is a link to nothing; mend it, or remove it if unused")
    if not is_tar:
        return False
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        raise UserError(f"from={from_}: {path} cannot be read ({error.strerror})") from None


def _refuse_unreadable(from_: str, folder: str) -> None:
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise UserError(
            f"from={from_}: {folder} cannot be read ({error.strerror}); let it be read, or move it away"
        ) from None


def by_split(from_: str, names: Sequence[str]) -> dict[str, list[str]]:
    """{split: names} of tars that name splits, train with them; {"train": names} where none does.

    Raises UserError where some name a split and others none, where there is no train, or where names only
    resemble those of splits.
    """
    named: dict[str, list[str]] = {}
    for name in names:
        named.setdefault(splits.named(name) or "", []).append(name)
    unnamed = named.pop("", [])
    if unnamed and named:
        split, (other, *_) = next(iter(named.items()))
        raise UserError(f"from={from_}: {unnamed[0]} names no split and {other} names {split}; rename either")
    alike = {name: like for name in unnamed if (like := splits.lookalike(name))}
    if set(alike.values()) - {"train"}:
        few, wanted = ", ".join(list(alike)[:3]), " and ".join(dict.fromkeys(alike.values()))
        raise UserError(f"from={from_}: {few} would be read as one split; name splits {wanted}")
    if named and "train" not in named:
        has, example = ", ".join(named), next(iter(named.values()))[0]
        raise UserError(
            f"from={from_} has {has} but no train; give the folder above them, or rename {example} if its "
            "images are to be learned from"
        )
    return named or {"train": list(names)}
