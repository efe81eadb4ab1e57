"""The words of a command line: parsers whose errors are one line, and what a word may be."""

import argparse
from typing import NoReturn

from toolkit.errors import UsageError

RUN = "the folder of a run, a stage or a model, or a Hub id"


class Words(argparse.ArgumentParser):
    """A parser whose errors are those of every command: one line."""

    def error(self, message: str) -> NoReturn:
        """Refuse the words.

        Raises:
            UsageError: with how the command is to be written.
        """
        raise UsageError(f"{message}; usage: {' '.join((self.usage or self.prog).split())}")


def parser(command: str, usage: str, about: str) -> argparse.ArgumentParser:
    """An argument parser that never guesses an abbreviated flag."""
    return Words(prog=f"toolkit {command}", usage=usage, description=about, allow_abbrev=False)


def count(word: str) -> int:
    """A number of things, from 0."""
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, found {word!r}")
    return int(word)


def seconds(word: str) -> float:
    """A length of time that is longer than nothing."""
    if not word.replace(".", "", 1).isdecimal() or float(word) == 0:
        raise argparse.ArgumentTypeError(f"expected seconds, found {word!r}")
    return float(word)
