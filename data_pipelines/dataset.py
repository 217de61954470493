"""A data set on disk: what lies where, and the cheap check that all of it is there.

ROOT/dataset.json            written last, so a folder that has it is whole
ROOT/train/000000.tar        WebDataset shard: members such as <key>.png, and <key>.cls (the label in ASCII)
ROOT/train/000000.npy        its index, one row an image, of dtype INDEX

The tars of a WebDataset that was there before are indexed where they lie: ROOT has their indices alone.
ROOT may also be a folder that a web server or a command gives (`access`); its files come into a cache.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from data_pipelines import transfer
from data_pipelines.access import ONCE, Access, cache_folder, check_root, command_of, local_folder
from data_pipelines.errors import UserError
from data_pipelines.patience import Patience
from data_pipelines.remote import source_of

FORMAT = 1

# offset and size are those of the encoded image inside the tar: os.pread(fd, size, offset) is the PNG or
# JPEG. Height and width are in pixels, as a decoder that obeys the EXIF orientation gives them. A label of
# -1 is none.
INDEX = np.dtype([("offset", "<u8"), ("size", "<u4"), ("height", "<u4"), ("width", "<u4"), ("label", "<i8")])

_SHARD_NAME = re.compile(r"[A-Za-z0-9_-]+/\d{6,}\.tar")
_NO_SIGN_OF_A_SHELL = re.compile(r"[A-Za-z0-9_.+=@,/-]+")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_COMPRESSIONS = {
    b"\x1f\x8b": ("gzip", "gzip -dc"),
    b"BZh": ("bzip2", "bzip2 -dc"),
    b"\xfd7zXZ\x00": ("xz", "xz -dc"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -dc"),
}


@dataclass(frozen=True)
class Shard:
    """name: such as train/000000.tar; lengths in bytes; digests are sha256 in hex.

    path: where the tar lies, from the data set's folder or absolute, if it is not at its name (source=wds).
    Two shards may share a tar: the rows of its index are what a shard holds.
    """

    name: str
    images: int
    bytes: int
    sha256: str
    index_bytes: int
    index_sha256: str
    path: str | None = None


@dataclass(frozen=True)
class Split:
    images: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Dataset:
    """What dataset.json says, and where it lies.

    mean and std are those of the train split per channel (red, green, blue), pixels in [0, 1]. left_out
    names what the source had and no shard has: {"member", "why"}. A sample's id is its running number
    through the shards of its split, in this order. classes is empty where nothing is labelled;
    images_per_shard is 0 where the tars are another's. made_with: options of the command that made it, such
    as "from". remote: the address that it is fetched from, and then root is its cache; None for a folder.
    """

    root: Path
    source: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    images_per_shard: int
    splits: dict[str, Split]
    left_out: tuple[dict, ...]
    fingerprint: str
    made_with: dict = field(default_factory=dict)
    remote: str | None = None
    access: Access = ONCE

    @property
    def where(self) -> str:
        """Where it lies, as the user would say."""
        return self.remote or str(self.root)

    @property
    def name(self) -> str:
        """The last part of that."""
        return self.where if " " in self.where else Path(self.where).name

    def split(self, name: str) -> Split:
        """A split, or several joined by "+": the images of the first, then the second's.

        Raises:
            UserError: there is no such split, or it is empty, or named twice.
        """
        parts = name.split("+")
        for part in parts:
            if part not in self.splits:
                raise UserError(f"{self.where}: no split '{part}'; it has {', '.join(self.splits)}")
            if not self.splits[part].images:
                raise UserError(f"{self.where}: the split '{part}' has no images")
        if len(set(parts)) < len(parts):
            raise UserError(f"{self.where}: '{name}' names a split twice; name each once")
        shards = tuple(shard for part in parts for shard in self.splits[part].shards)
        return Split(sum(self.splits[part].images for part in parts), shards)


def load_dataset(root, source: str = "SOURCE", access: Access = ONCE) -> Dataset:
    """Reads dataset.json and sees that every shard and index is there in its full length.

    root: a folder, or an address as `access.check_root` takes it; access says how it is read. The cost is one
    stat a shard and index, whatever the number of images: no index is opened and nothing is digested
    (`python -m data_pipelines.shards verify ROOT` does that). Of an address dataset.json alone is fetched;
    the rest comes when it is needed, and then its digests are checked.

    Raises UserError when dataset.json is missing, broken or of another format, or when a shard or an index is
    missing or of another length.
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


def read_description(root, source: str = "SOURCE") -> Dataset:
    """dataset.json alone, checked for form; the shards are not looked at. Raises UserError."""
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
    fetch, patience = source_of(root, access), Patience(access.patience)
    text = patience(lambda: transfer.description(fetch, patience.stopped)).decode("utf-8", "replace")
    make = "make the data set in a folder, then copy that folder to where it is served from"
    found = _described(text, Path(), fetch.address("dataset.json"), make)
    for shard in (shard for split in found.splits.values() for shard in split.shards):
        if trouble := _unfit(shard, by_command=command_of(root) is not None):
            raise UserError(f"{fetch.address('dataset.json')}: {shard.name} {trouble}")
    return replace(found, root=cache_folder(access, found.fingerprint), remote=root, access=access)


def _unfit(shard: Shard, by_command: bool) -> str | None:
    """What of a shard cannot be trusted where its description is another machine's."""
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
    # A command may hand the name to a shell of its own, as `ssh host cat {}` does.
    if by_command and not _NO_SIGN_OF_A_SHELL.fullmatch(path):
        return (
            f"lies at {path[:80]!r}, where a command may have letters, digits and _.+=@,/- alone; "
            "rename the tar and index it again"
        )
    return None


def _described(text: str, root: Path, path, make: str) -> Dataset:
    """The text of the dataset.json that lies at `path`; `make` says how another is made."""
    try:
        described = json.loads(text)
        if (found := described.pop("format")) != FORMAT:
            raise UserError(f"{path} has format {found!r}, this version reads {FORMAT}; {make}")
        return _parse(root, described)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is broken ({error}); remove the folder and {make}") from None


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


def describe(dataset: Dataset) -> str:
    """The text of dataset.json."""
    description = {"format": FORMAT, **asdict(dataset)}
    for key in ("root", "remote", "access"):
        del description[key]
    if not dataset.made_with:
        del description["made_with"]
    for split in description["splits"].values():
        for shard in split["shards"]:
            if shard["path"] is None:
                del shard["path"]
    return json.dumps(description, indent=1) + "\n"


def fingerprint(splits: dict[str, Split]) -> str:
    """sha256 (hex) over the digests of every shard and index, in order: equal data, equal fingerprint."""
    digest = hashlib.sha256()
    for split in splits.values():
        for shard in split.shards:
            digest.update(f"{shard.sha256} {shard.index_sha256}\n".encode())
    return digest.hexdigest()


def missing_parts(root: Path, shard: Shard) -> list[str]:
    """One line for each of shard and index that is missing or of another length than dataset.json says."""
    problems = []
    index = root / index_name(shard.name)
    for path, size in ((tar_path(root, shard), shard.bytes), (index, shard.index_bytes)):
        try:
            found = path.stat().st_size
        except OSError as error:
            problems.append(f"{path} cannot be found ({error.strerror})")
            continue
        if found != size:
            why = compressed(path) or f"has {found:,} bytes where dataset.json says {size:,}"
            problems.append(f"{path} {why}")
    return problems


def tar_path(root: Path, shard: Shard) -> Path:
    """Where a shard's tar lies."""
    return root / (shard.path or shard.name)


def index_name(shard_name: str) -> str:
    """train/000000.tar -> train/000000.npy"""
    return shard_name.removesuffix(".tar") + ".npy"


def compressed(path) -> str | None:
    """Says how a file is compressed and which command rewrites it, or None where it is not."""
    with open(path, "rb") as file:
        start = file.read(6)
    for magic, (kind, command) in _COMPRESSIONS.items():
        if start.startswith(magic):
            return (
                f"is compressed ({kind}) and cannot be indexed in place: "
                f"rewrite it with `{command} {path} > {path}.plain && mv {path}.plain {path}`"
            )
    return None


def _how_to_make(root, source: str, made_with: dict | None = None) -> str:
    options = "".join(f" {key}={value}" for key, value in (made_with or {}).items())
    return f"make it with `python -m data_pipelines.shards source={source}{options} to={root}`"
