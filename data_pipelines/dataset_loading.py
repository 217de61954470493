"""Reads dataset.json and checks that all of the data set is there."""

import json
import re
from dataclasses import replace
from pathlib import Path

from data_pipelines.access import ONCE, Access, cache_folder, check_root, command_of, local_folder
from data_pipelines.common.errors import UserError
from data_pipelines.common.retry import Retry
from data_pipelines.dataset import FORMAT, Dataset, Shard, Split, fingerprint, missing_parts
from data_pipelines.remote import transfer
from data_pipelines.remote.connect import source_of

_SHARD_NAME = re.compile(r"[A-Za-z0-9_-]+/\d{6,}\.tar")
_SAFE_IN_A_SHELL = re.compile(r"[A-Za-z0-9_.+=@,/-]+")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def load_dataset(root: str | Path, source: str = "SOURCE", access: Access = ONCE) -> Dataset:
    """Reads dataset.json and checks that every shard and index is there in its full length.

    The cost is one stat a shard and index, whatever the number of images: no index is opened and nothing is
    digested (`python -m data_pipelines.shards verify ROOT` does that). Of a remote data set dataset.json
    alone is fetched; the rest comes when it is needed, and then its digests are checked.

    Args:
        root: a folder, or an address that `access.check_root` accepts.
        source: what the data set is made from, for the message that says how to make it.
        access: how the files are read.

    Raises:
        UserError: dataset.json is missing, broken or of another format, or a shard or an index is missing or
            of another length.
    """
    try:
        check_root(str(root))
    except ValueError as error:
        raise UserError(f"data.root: {error}") from None
    folder = local_folder(root)
    if folder is None:
        return _load_remote(str(root), access)
    dataset = replace(read_description(folder, source), access=access)
    for split in dataset.splits.values():
        for shard in split.shards:
            if problems := missing_parts(dataset.root, shard):
                raise UserError(f"{problems[0]}; {_how_to_make(root, dataset.source, dataset.made_with)}")
    return dataset


def read_description(root: str | Path, source: str = "SOURCE") -> Dataset:
    """Reads dataset.json alone and checks its form; the shards are not looked at. Raises UserError."""
    root = Path(root)
    path = root / "dataset.json"
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        what = "holds no dataset.json" if root.is_dir() else "does not exist"
        raise UserError(f"data set {root} {what}; {_how_to_make(root, source)}") from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}; check its permissions and the disk"
        ) from None
    except ValueError as error:
        raise UserError(
            f"{path} is broken ({error}); remove the folder and {_how_to_make(root, source)}"
        ) from None
    return _described(text, root, path, _how_to_make(root, source))


def _load_remote(root: str, access: Access) -> Dataset:
    remote, retry = source_of(root, access), Retry(access.retry_seconds)
    text = retry(lambda: transfer.description(remote, retry.stopped)).decode("utf-8", "replace")
    advice = "make the data set in a folder, then copy that folder to where it is served from"
    dataset = _described(text, Path(), remote.address("dataset.json"), advice)
    for shard in (shard for split in dataset.splits.values() for shard in split.shards):
        if problem := _distrusted(shard, by_command=command_of(root) is not None):
            raise UserError(f"{remote.address('dataset.json')}: {shard.name} {problem}")
    return replace(dataset, root=cache_folder(access, dataset.fingerprint), remote=root, access=access)


def _distrusted(shard: Shard, by_command: bool) -> str | None:
    """Why a shard's entry cannot be trusted where dataset.json comes from another machine; None: it can."""
    if not all(
        isinstance(part, str) and _DIGEST.fullmatch(part) for part in (shard.sha256, shard.index_sha256)
    ):
        return "has no sha256; make the data set again"
    if shard.name.startswith("-"):
        return "has a name that a program would take for an option; rename its split"
    path = shard.path or shard.name
    up = by_command and ".." in path.split("/")  # a web address is resolved, a command's words are not
    if path.startswith(("/", "-")) or not path.isprintable() or up:
        return (
            f"lies at {path[:80]!r} of the machine that indexed it; have the tars beside the data set's "
            "folder and index them again, for a path from there"
        )
    # A command may pass the name to a shell, as `ssh host cat {}` does.
    if by_command and not _SAFE_IN_A_SHELL.fullmatch(path):
        return (
            f"lies at {path[:80]!r}, where a command may have letters, digits and _.+=@,/- alone; "
            "rename the tar and index it again"
        )
    return None


def _described(text: str, root: Path, path: str | Path, advice: str) -> Dataset:
    """Parses the text of the dataset.json at `path`; `advice` says how another is made. Raises UserError."""
    try:
        described = json.loads(text)
        if (number := described.pop("format")) != FORMAT:
            raise UserError(f"{path} has format {number!r}, this version reads {FORMAT}; {advice}")
        return _parse(root, described)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is broken ({error}); remove the folder and {advice}") from None


def _parse(root: Path, description: dict) -> Dataset:
    splits = {}
    if known := {"root", "remote", "access"} & set(description):
        raise ValueError(f"it has a key {min(known)}")
    for name, part in description["splits"].items():
        shards = tuple(Shard(**shard) for shard in part["shards"])
        for shard in shards:
            # The name is joined to the folder: it must not lead out of it.
            if not _SHARD_NAME.fullmatch(shard.name) or shard.name.split("/")[0] != name:
                raise ValueError(f"shard name {shard.name!r}")
            if not isinstance(shard.path, str | None):
                raise ValueError(f"the path of {shard.name} is {shard.path!r}")
            lengths = (shard.images, shard.bytes, shard.index_bytes)
            if any(type(length) is not int or length < 0 for length in lengths):
                raise ValueError(f"the lengths of {shard.name} are {lengths}")
        splits[name] = Split(part["images"], shards)
        if part["images"] != sum(shard.images for shard in shards):
            raise ValueError(f"the shards of {name} do not add up to {part['images']} images")
    lists = {key: tuple(description[key]) for key in ("classes", "mean", "std", "left_out")}
    dataset = Dataset(**{"root": root, **description, **lists, "splits": splits})
    for key, kind in (("classes", str), ("mean", float), ("std", float)):
        if not all(isinstance(value, kind) for value in lists[key]) or (
            kind is float and len(lists[key]) != 3
        ):
            raise ValueError(f"{key} is {str(lists[key])[:80]}")
    if not isinstance(dataset.made_with, dict):
        raise ValueError(f"made_with is {dataset.made_with!r}")
    if dataset.fingerprint != fingerprint(splits):
        raise ValueError("its fingerprint is not that of its shards")
    return dataset


def _how_to_make(root: str | Path, source: str, made_with: dict | None = None) -> str:
    missing = {"from": "FOLDER"} if source in ("folder", "wds") else {}
    options = "".join(f" {key}={value}" for key, value in (missing | (made_with or {})).items())
    return f"make it with `python -m data_pipelines.shards source={source}{options} to={root}`"
