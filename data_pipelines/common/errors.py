"""The exceptions for mistakes that a user can mend."""


class UserError(Exception):
    """A mistake of the user's, in one line: the key, file or value, what was expected, what to do.

    The entry points print it without a traceback and exit with status 2.
    """


class SharedError(UserError):
    """A mistake that every rank knows of and raises; the first rank alone prints it."""


class Undecodable(Exception):
    """Some images of a batch cannot be decoded; `slots[i]` lists them for the i-th list of images."""

    def __init__(self, slots: list[list[int]]):
        super().__init__(slots)
        self.slots = slots
