"""The errors a user can cause, and the exit code that each one ends a command with.

Every message is one line: what was expected, what was found (file, row, key), what to do.
To add an error: subclass the nearest class below; keep the constructor a single message, so that
the error survives pickling between processes.
"""


class ToolkitError(Exception):
    """Base of all errors that a user can mend; the command line prints it as one line.

    Attributes:
        exit_code: what a command ends with.
        everywhere: whether each of several processes raises the same, so that one may tell it.
    """

    exit_code = 1
    everywhere = False


class UsageError(ToolkitError):
    """The command line itself is wrong: an unknown command or a flag without a value."""

    exit_code = 2


class RecipeError(ToolkitError):
    """A key, a type, a range or a combination in the recipe is wrong."""

    exit_code = 3


class DataError(ToolkitError):
    """A dataset, a row or a chat template is wrong."""

    exit_code = 4


class TrainingError(ToolkitError):
    """Training or the proof of what it saved failed."""

    exit_code = 5


class HubError(ToolkitError):
    """The Hub refused, or does not have, what was asked for."""

    exit_code = 6


class Interrupted(KeyboardInterrupt):
    """A signal ended the work; what is finished, and the last checkpoint, are on disk.

    Args:
        message: one line, as for the errors above.
        exit_code: 128 and the number of the signal.
    """

    def __init__(self, message: str = "interrupted", exit_code: int = 130):
        super().__init__(message)
        self.exit_code = exit_code
