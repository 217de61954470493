"""The data set of a run: opened, and made where it is missing and the run can make it.

A run makes `digits` anywhere. It makes `cifar10`, `cifar100` and `stl10`, which may be fetched, where
`data.root` is a new or empty folder that bears the name of `data.source`, in a folder that is there (or in
data/, where the recipes have them): a mistyped path starts no download.
"""

import os
import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from data_pipelines.access import local_folder
from data_pipelines.common.errors import UserError
from data_pipelines.common.files import cannot_write
from data_pipelines.dataset import Dataset
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.remote.archive import NotFetched
from data_pipelines.shards.make import make
from data_pipelines.shards.turns import LOCK
from data_pipelines.shards.write import UNFINISHED
from data_pipelines.sources.archives import ARCHIVES, describe
from trainer.checkpoints.load import kept
from trainer.distributed import collectives
from trainer.distributed.launch import DistributedContext
from trainer.distributed.signals import Stopped, StopRequest, status_of_stopped
from trainer.distributed.variables import local_world_size
from trainer.recipe.schema import Data
from trainer.runs.folder import RunFolder
from trainer.tasks.commands import continuation

POLL = 0.1  # seconds between two looks of a rank that waits


def open_data(options: Data, commands: bool = False) -> Dataset:
    """The data set, made where it is missing; every rank calls it. `commands`: its root may start programs.

    Raises:
        UserError: it is not there, and the run cannot make it; the message says how to make it.
        Stopped: a signal came while it was made.
    """
    make_missing(options)

    def opened() -> Dataset:
        try:
            return load_dataset(options.root, options.source, options.access(commands))
        except UserError as error:
            raise UserError(f"{error}{_rule(options)}") from None

    return collectives.run_on_main(opened)


def make_missing(options: Data) -> None:
    """Makes the data set of a recipe on rank 0 where it is missing, while the others wait.

    Raises:
        UserError: it cannot be made; the message says how a person makes it.
        Stopped: a signal came to this rank or to rank 0; the same command continues.
    """
    folder = collectives.run_on_main(lambda: folder_to_make(options))
    if folder is None:
        return
    request, ends = StopRequest(), False
    try:
        request.raise_immediately()
        if (rank := collectives.rank()) == 1 or (rank and rank % local_world_size() == 0):  # a line a node
            print(f"rank {rank}: waiting for rank 0, which makes {folder}", flush=True)
        collectives.barrier()  # a bar of rank 0 comes below these lines
        _on_main(lambda: _make(folder, options))
    except Stopped:
        ends = True
        raise Stopped(request.received or "another rank was told") from None
    finally:
        request.ignore()
        if not ends:  # else the process ends, and of a second signal, as a launcher sends it, it would die
            request.close()


def stopped(folder: RunFolder, context: DistributedContext, why: str) -> int:
    """Ends a run that was asked to stop while its data set was made; the process's exit status.

    1, and 130 for Ctrl-C: training has not begun.
    """
    images = (kept(folder.checkpoints) or [0])[-1]  # where the same command goes on
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        report = folder.write_status if context.is_main else folder.write_status_once
        report("stopped", images, why)
    except OSError as error:
        raise cannot_write(folder.path, error) from None
    if context.is_main:
        print(f"told to stop ({why}): the data set is not made yet, and what is there of it stays")
        again = continuation()
        print(f"the same command continues it{f': {again}' * bool(again)}", flush=True)
    return 130 if why == "SIGINT" else status_of_stopped()


def folder_to_make(options: Data) -> Path | None:
    """The folder that the run makes a data set in; None where one is there, or the run makes none."""
    folder = local_folder(options.root)
    if not options.make or folder is None or os.path.lexists(folder / "dataset.json"):
        return None
    if options.source == "digits":
        return folder
    if options.source not in ARCHIVES or folder.name != options.source:
        return None
    entries = _entries(folder)
    begun = UNFINISHED in entries or not entries - {LOCK}
    # Below a folder that is not there, the path is more likely a mistake; the recipes' own are in data/.
    expected = os.path.isdir(folder.parent) or folder == Path("data", options.source)
    return folder if begun and expected else None


def describe_making(folder: Path, options: Data) -> str:
    """What the run makes of what, before it does: a line for a person. Nothing is fetched."""
    if options.source == "digits":
        return f"making {folder} of the digits that scikit-learn has"
    size = f"{ARCHIVES[options.source].made / 1e6:,.0f} MB"
    return f"making {folder}, {size}, of {describe(options.source, folder, options.access(False))}"


def _make(folder: Path, options: Data) -> None:
    """Makes the data set; on rank 0. Raises UserError."""
    print(describe_making(folder, options), flush=True)
    try:
        make(options.source, folder, access=options.access(False))
    except NotFetched as why:
        try:
            load_dataset(folder, options.source)
        except UserError as missing:
            raise UserError(f"{missing}: {why}") from None


def _on_main(function: Callable[[], None]) -> None:
    """Runs on rank 0 what takes minutes to hours; the others wait, and their signal handlers run meanwhile.

    Raises:
        SharedError: on every rank, where it raised a UserError.
        Stopped: on every rank, where a signal came to rank 0; on any other alone, where one came to it.
    """
    stopped, mistake = torch.zeros(1, dtype=torch.int32), None
    if collectives.rank() == 0:
        try:
            function()
        except UserError as error:
            mistake = error
        except Stopped:
            with suppress(RuntimeError):  # the others may have been stopped as well, and have gone
                if work := collectives.start_all_reduce(stopped + 1):
                    work.wait()
            raise
    if work := collectives.start_all_reduce(stopped):
        while not work.is_completed():
            time.sleep(POLL)
        work.wait()
    if stopped.item():
        raise Stopped

    def report() -> None:
        if mistake is not None:
            raise mistake

    collectives.run_on_main(report)


def _entries(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()
    except OSError:
        return {str(folder)}  # not a folder, or closed: nothing can be made there


def _rule(options: Data) -> str:
    """Where the run would have made a missing data set by itself: the end of a message."""
    folder = local_folder(options.root)
    known = options.source in (*ARCHIVES, "digits")
    if not known or folder is None or os.path.lexists(folder / "dataset.json"):
        return ""
    if not options.make:
        return "; with data.make=true the run tries to"
    if options.source == "digits":
        return ""
    example = shlex.quote(f"data.root=data/{options.source}")
    where = f"where data.root is a new folder {options.source!r} in a folder that exists, as in {example}"
    return f" (a run does so by itself {where})"
