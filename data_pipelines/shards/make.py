"""Makes a data set, or its missing parts: shards, their indices and dataset.json."""

import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

from data_pipelines.access import ONCE, Access
from data_pipelines.common.errors import UserError
from data_pipelines.common.files import replace_bytes
from data_pipelines.common.locks import close_locked, open_locked
from data_pipelines.common.processes import in_processes
from data_pipelines.dataset import Dataset, Shard, Split, describe, fingerprint
from data_pipelines.dataset_loading import load_dataset, read_description
from data_pipelines.shards.official import compared_with_published
from data_pipelines.shards.write import UNFINISHED, write_shard
from data_pipelines.sources.archives import obtain
from data_pipelines.sources.catalog import Option, open_source
from data_pipelines.sources.images import Sums
from data_pipelines.sources.source import Source

LOCK = ".lock"


def make(
    source: str,
    to: str | Path,
    from_: str | Path | None = None,
    images_per_shard: int | None = None,
    workers: int | None = None,
    progress: bool = True,
    access: Access = ONCE,
    **options: Option,
) -> Dataset:
    """Makes the data set `to` from a source, or continues it; returns it loaded. A finished one is kept.

    Where `from_` is left out, an official archive is taken from where it lies, or fetched: `archives.obtain`.

    Processes that do this at the same time take turns, and the second finds it finished. A killed process
    leaves nothing that looks like a data set, and the next one continues. What is refused before an image is
    written leaves nothing at all, so that another source can be tried.

    Args:
        source: its name in `sources.catalog`.
        to: the data set's folder.
        from_: the archive or folder of the source, where it has one.
        images_per_shard: None for that of the unfinished data set, else the source's default.
        workers: processes; None for one for each 5,000 images, up to the cores.
        progress: a bar, where there is a terminal.
        access: where what is fetched is kept, and how long a transfer that fails is tried again.
        options: test_percent and label, as in `catalog.open_source`.

    Raises:
        UserError: an unknown source, wrong `from_` or options, or a folder that holds something else or
            cannot be written.
    """
    to = Path(to)
    options = {key: value for key, value in options.items() if value is not None}
    wanted = {"source": source, "shard": images_per_shard, **options}
    if from_ is not None:
        wanted["from"] = os.path.abspath(from_)
    try:
        _refuse_another(to, wanted)
        if is_made(to):
            return load_dataset(to)
        with _locked(to):
            begun = _refuse_another(to, wanted)
            if not _is_whole(to):
                # An unfinished data set continues with the options that it was begun with.
                from_ = begun.pop("from", from_)
                per_shard = begun.pop("shard", None) or images_per_shard
                options = {key: value for key, value in begun.items() if key != "source"} | options
                opened = _open(source, to, from_, progress, access, options)
                per_shard = _images_per_shard(opened, per_shard)
                with _undone_where_refused(opened, to, new=not begun):
                    _write(opened, to, per_shard, workers, progress)
            shutil.rmtree(to / UNFINISHED, ignore_errors=True)
    except OSError as error:
        why = error.strerror or error
        if error.filename and Path(error.filename).is_relative_to(to) and Path(error.filename) != to:
            why = f"{Path(error.filename).relative_to(to)}: {why}"
        raise UserError(f"to={to} cannot be written ({why}); mend that or choose another folder") from None
    return load_dataset(to)


def _open(
    source: str,
    to: Path,
    from_: str | Path | None,
    progress: bool,
    access: Access,
    options: dict[str, Option],
) -> Source:
    """The source, opened whole: its mistakes are found before a shard is written. Raises UserError."""
    inside = from_ is not None and Path(os.path.realpath(to)).is_relative_to(os.path.realpath(from_))
    if source == "folder" and inside:
        raise UserError(f"to={to} lies in from={from_}, among the images; choose another folder")
    with compared_with_published(source, from_, to):
        from_ = obtain(source, from_, to, to / UNFINISHED, access, progress)
        return open_source(source, from_, progress, **options)


def _images_per_shard(source: Source, per_shard: int | None) -> int:
    """The images of a shard, by default those of the source. Raises UserError: it keeps its shards."""
    if per_shard and not source.images_per_shard:
        raise UserError(
            f"shard={per_shard}: source={source.name} keeps its tars as they are; leave shard= out"
        )
    return per_shard or source.images_per_shard


def _refuse_another(to: Path, wanted: dict) -> dict:
    """The options that `to` was begun with, such as {"source", "shard"}, or {}.

    Raises UserError where they differ from those `wanted`, or the folder holds something else.
    """
    if to.exists() and not to.is_dir():
        raise UserError(f"to={to} is a file; choose a folder")
    # Listed before plan.json is read: another process may be finishing it, and plan.json goes after
    # dataset.json has come.
    others = sorted(set(os.listdir(to)) - {LOCK, UNFINISHED}) if to.exists() else []
    try:
        plan = json.loads((to / UNFINISHED / "plan.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        if (to / "dataset.json").exists():
            plan = vars(read_description(to))
        elif others:
            what = f"holds something else ({others[0]!r}); choose an empty or a new folder"
            if (to / UNFINISHED / "plan.json").exists():
                what = f"was begun, but {UNFINISHED}/plan.json is damaged; remove the folder {to}"
            raise UserError(f"to={to} {what}") from None
        else:
            return {}
    begun = _options_of(plan, to)
    for key, value in wanted.items():
        # A source with one possible content does not keep where its archive was.
        if value is None or value == begun.get(key) or (key == "from" and key not in begun):
            continue
        was = " ".join(f"{key}={value}" for key, value in begun.items() if value)
        raise UserError(f"to={to} was begun with {was}; choose another folder, or remove this one")
    return begun


def _options_of(plan: object, to: Path) -> dict:
    """The options that a data set was begun with. Raises UserError where its plan.json is damaged."""
    made_with = plan.get("made_with", {}) if isinstance(plan, dict) else None
    if not (
        isinstance(plan, dict) and isinstance(made_with, dict) and {"source", "images_per_shard"} <= set(plan)
    ):
        raise UserError(f"to={to} was begun, but {UNFINISHED}/plan.json is damaged; remove the folder {to}")
    return {"source": plan["source"], "shard": plan["images_per_shard"], **made_with}


def is_made(to: Path) -> bool:
    """Whether the data set `to` is finished, so that `make` does not read its source."""
    return _is_whole(to) and not (to / UNFINISHED).exists()


def _is_whole(to: Path) -> bool:
    """Whether the data set is there with all of its shards."""
    with suppress(UserError):
        return bool(load_dataset(to))
    return False


@contextmanager
def _locked(to: Path) -> Iterator[None]:
    """Locks the folder: of several processes one makes the data set, and the others find it finished.

    The folder is made; where nothing came into it, it is removed.
    """
    new = [folder for folder in (to, *to.parents) if not folder.exists()]
    descriptor = _lock(to)  # the system unlocks it, whatever ends this process
    try:
        _remove_parts(to)  # of a killed process
        yield
    finally:
        _remove_parts(to)
        with suppress(OSError):  # not empty: something was written
            (to / UNFINISHED).rmdir()
        with suppress(OSError):
            if os.listdir(to) == [LOCK]:
                (to / LOCK).unlink()
            for folder in new:
                folder.rmdir()
        close_locked(descriptor)


def _lock(to: Path) -> int:
    """The descriptor of the folder's lock, once this process has it."""
    while True:
        to.mkdir(parents=True, exist_ok=True)
        descriptor = open_locked(to / LOCK)
        if descriptor is None:
            print(f"waiting for another process that is making {to}", file=sys.stderr, flush=True)
            descriptor = open_locked(to / LOCK, wait=math.inf)
        assert descriptor is not None  # it was waited for
        with suppress(FileNotFoundError):  # its former owner had nothing to write, and removed it
            if os.path.samestat(os.fstat(descriptor), os.stat(to / LOCK)):
                return descriptor
        close_locked(descriptor)


def _remove_parts(to: Path) -> None:
    for part in to.glob(f"{UNFINISHED}/*.part"):
        part.unlink(missing_ok=True)


def _write(source: Source, to: Path, per_shard: int, workers: int | None, progress: bool) -> None:
    """Writes all shards, then dataset.json, after which the folder is a data set."""
    (to / UNFINISHED).mkdir(exist_ok=True)
    plan = {"source": source.name, "images_per_shard": per_shard, "made_with": source.made_with}
    replace_bytes(to / UNFINISHED / "plan.json", json.dumps(plan).encode(), to / UNFINISHED / "plan.part")
    (to / "dataset.json").unlink(missing_ok=True)  # of a data set that has lost shards
    splits, left_out, sums, numbers = {}, list(source.left_out), Sums(), 0
    written = _write_shards(source, to, per_shard, workers, progress)
    left_out += [left for entries in written.values() for entry in entries for left in entry["left_out"]]
    for split, entries in written.items():
        lost = [left for entry in entries for left in entry.pop("left_out")] or left_out
        for entry in entries:
            counted, numbers = Sums(**entry.pop("sums")), max(numbers, entry.pop("classes"))
            if split == "train":
                sums.add(counted)
        shards = tuple(Shard(**entry) for entry in entries if entry["images"])
        _remove_others(to / split, shards)
        if shards:
            splits[split] = Split(sum(shard.images for shard in shards), shards)
        elif split == "train" or source.images_per_shard:  # a part of a tar by a hash may well be empty
            first = f"; the first: {lost[0]['member']}: {lost[0]['why']}" if lost else ""
            raise UserError(f"source={source.name}: no image of {split} can be used{first}")
    mean, std = sums.mean_and_std()
    classes = tuple(map(str, range(numbers)) if source.classes is None else source.classes)
    dataset = Dataset(
        to,
        source.name,
        classes,
        mean,
        std,
        per_shard,
        splits,
        tuple(left_out),
        fingerprint(splits),
        source.made_with,
    )
    replace_bytes(to / "dataset.json", describe(dataset).encode(), to / UNFINISHED / "dataset.part")


@contextmanager
def _undone_where_refused(source: Source, to: Path, new: bool) -> Iterator[None]:
    """Removes what is written within, where it is refused before there is an image: of a `new` data set."""
    try:
        yield
    except (UserError, OSError):
        notes = [path for path in (to / UNFINISHED).glob("*.json") if path.name != "plan.json"]
        if new and not any(json.loads(note.read_bytes())["entry"]["images"] for note in notes):
            for path in (*notes, to / UNFINISHED / "plan.json"):
                path.unlink(missing_ok=True)
            for split in source.splits:
                _remove_others(to / split, ())
                with suppress(OSError):  # it was not made, or something else lies there
                    (to / split).rmdir()
        raise


def _write_shards(source: Source, to: Path, per_shard: int, workers: int | None, progress: bool) -> dict:
    """{split: [entry]} of every shard, as `write_shard` returns them."""
    jobs = [
        (split, chunk, to, f"{split}/{number:06d}.tar", len(source.classes or ()))
        for split, pixels in source.splits.items()
        for number, chunk in enumerate(pixels.chunks(per_shard))
    ]
    images = sum(len(pixels) for pixels in source.splits.values())
    entries: dict[str, list[dict]] = {split: [] for split in source.splits}
    with tqdm(desc=f"{to}", total=len(jobs), unit="shard", disable=None if progress else True) as bar:
        for job, entry in in_processes(write_shard, [job[1:] for job in jobs], images, workers):
            entries[jobs[job][0]].append(entry)
            bar.update()
    return {split: sorted(part, key=lambda entry: entry["name"]) for split, part in entries.items()}


def _remove_others(folder: Path, shards: tuple[Shard, ...]) -> None:
    """Removes shards of an earlier attempt from another archive, which dataset.json does not name."""
    known = {Path(shard.name).stem for shard in shards}
    for path in [*folder.glob("[0-9]*.tar"), *folder.glob("[0-9]*.npy")]:
        if path.stem not in known:
            path.unlink()
