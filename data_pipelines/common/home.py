"""`~` at the beginning of a path, as the shell reads it; in KEY=~/x the shell leaves it to the program."""

import os


def expand_home(path: str) -> str:
    """The path with `~` or `~user` replaced by the home folder; other paths as they are.

    Raises ValueError where there is no such user, or the text can be no path of a recipe.
    """
    if "\0" in path or (not path.isascii() and any("\ud800" <= letter <= "\udfff" for letter in path)):
        raise ValueError("a path must be text in UTF-8 without zero bytes; choose another")
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        user = path.split("/")[0]
        raise ValueError(
            f"{user} is no user's home; give the folder itself, or ./{path} for one of that name"
        )
    return expanded
