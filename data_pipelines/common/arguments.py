"""Command lines by argparse, whose mistakes are reported as all others are: in one line."""

import argparse

from data_pipelines.common.errors import UserError


class Parser(argparse.ArgumentParser):
    """A parser that raises UserError instead of printing its usage and leaving."""

    def error(self, message: str):
        raise UserError(f"{message}; see {self.prog} --help")
