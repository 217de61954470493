"""Makes a data set, or its missing parts: shards, their indices and dataset.json."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from data_pipelines.access import ONCE, Access
from data_pipelines.common.errors import UserError
from data_pipelines.common.files import replace_bytes
from data_pipelines.common.processes import in_processes
from data_pipelines.dataset import Dataset, Shard, Split, describe, fingerprint
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.shards.request import Request
from data_pipelines.shards.turns import alone
from data_pipelines.shards.write import UNFINISHED, temporary, write_shard
from data_pipelines.sources.catalog import Option
from data_pipelines.sources.images import Sums
from data_pipelines.sources.source import Chunk, Source
from data_pipelines.sources.wds import Tars


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

    Args: those of `request.Request`.

    Raises:
        UserError: an unknown source, wrong `from_` or options, or a folder that holds something else or
            cannot be written.
    """
    wanted = {key: value for key, value in options.items() if value is not None}
    return make_whole(Request(source, Path(to), from_, images_per_shard, workers, progress, access, wanted))


def make_whole(request: Request) -> Dataset:
    """What `make` does with its arguments put together. Raises UserError."""
    to = request.to
    with request.one_line():
        request.refuse_another()
        if is_made(to):
            return load_dataset(to)
        with alone(to):
            begun = request.refuse_another()
            if not _is_whole(to):
                opened, per_shard = request.opened(begun)
                with _undone_where_refused(opened, to, new=not begun):
                    finish(request, opened, per_shard)
            shutil.rmtree(to / UNFINISHED, ignore_errors=True)
    return load_dataset(to)


def is_made(to: Path) -> bool:
    """Whether the data set `to` is finished, so that `make` does not read its source."""
    return _is_whole(to) and not (to / UNFINISHED).exists()


def _is_whole(to: Path) -> bool:
    """Whether the data set is there with all of its shards."""
    with suppress(UserError):
        return bool(load_dataset(to))
    return False


def finish(request: Request, source: Source, per_shard: int) -> None:
    """Writes the shards that are missing, then dataset.json, after which the folder is a data set."""
    to = request.to
    begin(to, source, per_shard)
    splits, left_out, sums, numbers = {}, list(source.left_out), Sums(), 0
    written: dict[str, list[dict]] = {split: [] for split in source.splits}
    for job, entry in write_shards(request, shard_jobs(to, source, per_shard)):
        written[job.split].append(entry)
    for entries in written.values():
        entries.sort(key=lambda entry: entry["name"])
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
    replace_bytes(to / "dataset.json", describe(dataset).encode(), temporary(to, "dataset"))


def begin(to: Path, source: Source, per_shard: int) -> None:
    """Notes what is being made, so that another start continues it, or is refused."""
    (to / UNFINISHED).mkdir(exist_ok=True)
    plan = {"source": source.name, "images_per_shard": per_shard, "made_with": source.made_with}
    replace_bytes(to / UNFINISHED / "plan.json", json.dumps(plan).encode(), temporary(to, "plan"))
    (to / "dataset.json").unlink(missing_ok=True)  # of a data set that has lost shards


class ShardJob(NamedTuple):
    """The arguments of `write_shard` for one shard, and its split."""

    split: str
    chunk: Chunk | Tars
    to: Path
    name: str
    classes: int


def shard_jobs(to: Path, source: Source, per_shard: int) -> list[ShardJob]:
    """One for each shard of a data set, in order."""
    return [
        ShardJob(split, chunk, to, f"{split}/{number:06d}.tar", len(source.classes or ()))
        for split, images in source.splits.items()
        for number, chunk in enumerate(images.chunks(per_shard))
    ]


def write_shards(request: Request, jobs: list[ShardJob]) -> Iterator[tuple[ShardJob, dict]]:
    """Yields jobs with what `write_shard` returns of them, as they are done, in any order."""
    images = sum(len(job.chunk) for job in jobs)
    bar = tqdm(
        desc=f"{request.to}", total=len(jobs), unit="shard", disable=None if request.progress else True
    )
    with bar:
        for number, entry in in_processes(write_shard, [job[1:] for job in jobs], images, request.workers):
            yield jobs[number], entry
            bar.update()


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


def _remove_others(folder: Path, shards: tuple[Shard, ...]) -> None:
    """Removes shards of an earlier attempt from another archive, which dataset.json does not name."""
    known = {Path(shard.name).stem for shard in shards}
    for path in [*folder.glob("[0-9]*.tar"), *folder.glob("[0-9]*.npy")]:
        if path.stem not in known:
            path.unlink()
