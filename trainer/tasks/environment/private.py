"""Texts of others, such as error messages, without what is secret or personal in them."""

import getpass
import os
import platform
import re
from contextlib import suppress

from data_pipelines.access import scrubbed


def one_line(error: object) -> str:
    """A text of others in one line of at most 200 characters, without secrets or personal names."""
    text = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else str(error)
    text = scrubbed(text)
    for folder in home_folders():
        text = re.sub(rf"{re.escape(folder)}(?![\w.-])", "~", text)
    for name, stand_in in personal_names().items():
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", stand_in, text)
    return text


def home_folders() -> list[str]:
    """The home folder as it is written, and where it really is."""
    home = os.path.expanduser("~")
    return [] if home in ("~", "/") else [home, os.path.realpath(home)]


def personal_names() -> dict[str, str]:
    """The names of user and machine -> what stands in a text for them."""
    names = {platform.node(): "HOST", platform.node().partition(".")[0]: "HOST"}
    with suppress(OSError, KeyError, ImportError):
        names[getpass.getuser()] = "USER"
    return {name: word for name, word in names.items() if len(name) > 2 and name not in ("root", "localhost")}
