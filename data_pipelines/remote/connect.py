"""Chooses what fetches the files of a remote data set."""

from data_pipelines.access import Access, command_of
from data_pipelines.common.errors import UserError
from data_pipelines.remote.command import Command
from data_pipelines.remote.web import Web


def source_of(root: str, access: Access) -> Web | Command:
    """The object that fetches the files below a remote root.

    Raises:
        UserError: it would start a program, and the user has not allowed that.
    """
    words = command_of(root)
    if words is None:
        return Web(root)
    if not access.commands:
        raise UserError(
            f"data.root={root} starts a program ({words[0]}), which no recipe may do by itself: "
            "add --allow-commands to the command line"
        )
    return Command(root, words)
