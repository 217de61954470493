"""A data set made by several processes, on one machine or many: each writes every n-th shard."""

import shutil
from pathlib import Path
from typing import NamedTuple

from data_pipelines.access import ONCE, Access
from data_pipelines.dataset import Dataset
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.shards.make import begin, finish, is_made, shard_jobs, write_shards
from data_pipelines.shards.request import Request
from data_pipelines.shards.turns import beside_others, last_of_all
from data_pipelines.shards.write import UNFINISHED, note_of
from data_pipelines.sources.catalog import Option


class Part(NamedTuple):
    """Part `number` `of` so many of a data set; numbers count from 1."""

    number: int
    of: int


def make_part(
    part: Part,
    source: str,
    to: str | Path,
    from_: str | Path | None = None,
    images_per_shard: int | None = None,
    workers: int | None = None,
    progress: bool = True,
    access: Access = ONCE,
    **options: Option,
) -> Dataset | None:
    """Writes a part's shards; the last part to end, when all shards are there, makes the data set of them.

    Parts run at the same time, on machines that share the folder; `make` waits for them, and they for it.
    A part that was killed is given again, and writes what it lacks. The bytes are those that `make` alone
    writes. The last part reads every shard once more and compares its digest.

    Args: `part`, and those of `request.Request`. The source is read whole by each part.

    Returns:
        The data set, once it is whole; None while shards of other parts are missing.

    Raises:
        UserError: as of `make`.
    """
    wanted = {key: value for key, value in options.items() if value is not None}
    request = Request(source, Path(to), from_, images_per_shard, workers, progress, access, wanted)
    with request.one_line():
        request.refuse_another()
        if is_made(request.to):
            return load_dataset(to)
        with beside_others(request.to):
            if is_made(request.to):  # while this waited
                return load_dataset(to)
            opened, per_shard = request.opened(request.refuse_another())
            begin(request.to, opened, per_shard)
            jobs = shard_jobs(request.to, opened, per_shard)
            for _ in write_shards(request, jobs[part.number - 1 :: part.of]):
                pass
        with last_of_all(request.to) as last:
            if last and not is_made(request.to):
                if not all(note_of(request.to, job.name).exists() for job in jobs):
                    return None
                finish(request, opened, per_shard)
                shutil.rmtree(request.to / UNFINISHED, ignore_errors=True)
    return load_dataset(to) if is_made(request.to) else None
