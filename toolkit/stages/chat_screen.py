"""The terminal of a chat: reads lines, and shows what a model writes without obeying it.

What a model writes may hold the codes by which programs move the cursor, set the title or fill the
clipboard of a terminal. They are shown as signs.
"""

import sys
import textwrap
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from rich.console import Console
from rich.text import Text

PICTURES = 0x2400
"""Where Unicode has a picture of each control character below 32."""
TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""They turn the direction of writing, so that a line reads otherwise than it is."""


def harmless(text: str) -> str:
    """A text in which every control character is a sign that does nothing, but for tabs and lines.

    Args:
        text: written by a model.
    """
    return "".join(map(sign, text))


def sign(letter: str) -> str:
    """The letter, or what stands for it."""
    if letter in "\n\t" or (letter.isprintable() and letter not in TURNING):
        return letter
    code = ord(letter)
    if code < 32:
        return chr(PICTURES + code)
    if code == 127:
        return "\u2421"
    return (
        letter
        if unicodedata.category(letter) in ("Zs", "Cf") and letter not in TURNING
        else "\ufffd"
    )


class Screen:
    """Standard input and output: a person at a terminal, or a program that pipes lines.

    In a pipe, standard output has the answers and nothing else, and notes go to standard error.

    Attributes:
        is_person: whether somebody sits there.
    """

    def __init__(self):
        with suppress(AttributeError):  # a terminal may not know every letter
            sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
        self.is_person = sys.stdin.isatty() and sys.stdout.isatty()
        self.console = Console(highlight=False, emoji=False, soft_wrap=True)
        self.notes = self.console if self.is_person else Console(stderr=True, soft_wrap=True)
        if self.is_person:
            with suppress(ImportError):  # lines can be edited and found again
                import readline  # noqa: F401

    def read(self) -> str | None:
        """The next line; None at the end.

        Raises:
            KeyboardInterrupt: for Ctrl-C.
        """
        try:
            return input(self.prompt()) if self.is_person else input()
        except EOFError:
            if self.is_person:
                self.console.print()
            return None

    def prompt(self) -> str:
        """What stands before the user's words; readline has to know which of it takes no room."""
        if self.console.color_system is None or "readline" not in sys.modules:
            return "> "
        return "\001\033[1;36m\002>\001\033[0m\002 "

    def show(self, piece: str) -> None:
        """Show a piece of what a model writes."""
        out = self.console.file  # rich would turn tabs into spaces
        out.write(harmless(piece))
        out.flush()

    def end(self, note: str = "") -> None:
        """End an answer; a note stands below it."""
        self.console.print()
        if note:
            self.say(note)

    def say(self, line: str) -> None:
        """A line of the program's own."""
        shown = harmless(line)
        if self.is_person:
            shown = textwrap.fill(
                shown, self.console.width - 1, initial_indent="  ", subsequent_indent="  "
            )
        self.notes.print(Text(shown, style="dim" if self.is_person else ""))

    def table(self, rows: dict[str, str]) -> None:
        """What there is to do, a line for each."""
        width = max(map(len, rows))
        for name, meaning in rows.items():
            line = Text(f"  {name:<{width}}  ", style="bold" if self.is_person else "")
            self.notes.print(line.append(meaning, style="not bold"))

    @contextmanager
    def waiting(self, line: str) -> Iterator[None]:
        """Say what is waited for, as long as the block runs."""
        shown: Any = self.console.status(Text(line)) if self.is_person else nullcontext()
        with shown:
            yield
