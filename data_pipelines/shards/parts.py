"""A data set made by several processes, on one machine or many: each writes every n-th shard."""

import shutil
from typing import NamedTuple

from data_pipelines.dataset import Dataset
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.shards.make import begin, finish, is_made, shard_jobs, write_shards
from data_pipelines.shards.request import Request
from data_pipelines.shards.turns import beside_others, last_of_all
from data_pipelines.shards.write import UNFINISHED, note_of


class Part(NamedTuple):
    """Part `number` `of` so many of a data set; numbers count from 1."""

    number: int
    of: int


def make_part(part: Part, request: Request) -> Dataset | None:
    """Writes a part's shards; the last part to end, when all shards are there, makes the data set of them.

    Parts run at the same time, on machines that share the folder; `make` waits for them, and they for it.
    A part that was killed is given again, and writes what it lacks. The bytes are those that `make` alone
    writes. Each part reads the source whole, and the last every shard once more, to compare its digest.

    Returns:
        The data set, once it is whole; None while shards of other parts are missing.

    Raises:
        UserError: as of `make`.
    """
    to = request.to
    with request.one_line():
        request.refuse_another()
        if is_made(to):
            return load_dataset(to)
        with beside_others(to):
            if is_made(to):  # while this waited
                return load_dataset(to)
            opened, per_shard = request.opened(request.refuse_another())
            begin(to, opened, per_shard)
            jobs = shard_jobs(to, opened, per_shard)
            for _ in write_shards(request, jobs[part.number - 1 :: part.of]):
                pass
        with last_of_all(to) as last:
            if last and not is_made(to):
                if not all(note_of(to, job.name).exists() for job in jobs):
                    return None
                finish(request, opened, per_shard)
                shutil.rmtree(to / UNFINISHED, ignore_errors=True)
    return load_dataset(to) if is_made(to) else None
