"""The data set of a recipe, for every task that reads it."""

from contextlib import suppress
from dataclasses import replace

from data_pipelines.access import local_folder
from data_pipelines.dataset import Dataset, load_dataset
from data_pipelines.errors import UserError
from data_pipelines.shards import make
from trainer.recipe import Data
from trainer.runtime import checkpoint, checkpoint_files, collectives
from trainer.runtime.run_folder import RunFolder


def open_data(options: Data, commands: bool = False) -> Dataset:
    """The data set; the embedded digits are made on first use. `commands`: its root may start programs.

    Raises:
        UserError: it is not there; the message says how to make it.
    """

    def opened() -> Dataset:
        folder = local_folder(options.root)
        if options.source == "digits" and folder and not (folder / "dataset.json").exists():
            print(f"making {folder} of the digits that scikit-learn has", flush=True)
            make(options.source, folder)
        return load_dataset(options.root, options.source, options.access(commands))

    return collectives.on_first(opened)


def check_finished(folder: RunFolder, options: Data, commands: bool) -> None:
    """Looks whether a finished run was trained on what `options.root` is now, where that can be told.

    Raises:
        UserError: it was another data set.
    """
    now = then = None
    with suppress(UserError, checkpoint_files.Damaged, IndexError):  # no data, or no checkpoint, any more
        newest = checkpoint_files.folder_name(checkpoint.kept(folder.checkpoints)[-1])
        then = checkpoint_files.read_manifest(folder.checkpoints / newest)["data"]
        access = replace(options.access(commands), patience=0.0)
        now = load_dataset(options.root, options.source, access).fingerprint
    if now and then != now:
        raise UserError(
            f"{folder.path} is finished, and the data set in {options.root} is not the one it was trained "
            "on; start another with run=NAME, or give that one"
        )
