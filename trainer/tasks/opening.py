"""The data set of a recipe, for every task that reads it."""

from data_pipelines.access import local_folder
from data_pipelines.dataset import Dataset, load_dataset
from data_pipelines.shards import make
from trainer.recipe import Data
from trainer.runtime import collectives


def open_data(options: Data, commands: bool = False) -> Dataset:
    """The data set; the embedded digits are made on first use. `commands`: its root may start programs.

    Raises:
        UserError: it is not there; the message says how to make it.
    """

    def opened() -> Dataset:
        folder = local_folder(options.root)
        if options.source == "digits" and folder and not (folder / "dataset.json").exists():
            make(options.source, folder)
        return load_dataset(options.root, options.source, options.access(commands))

    return collectives.on_first(opened)
