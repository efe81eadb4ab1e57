"""`toolkit report` and `toolkit compare`: what they take, and what they print."""

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from toolkit.errors import UsageError
from toolkit.report.compare_page import compare_runs
from toolkit.report.page import write_report

REPORT = "toolkit report RUN [--output FOLDER]"
COMPARE = "toolkit compare RUN RUN … [--output FILE.html|FILE.md]"


def report(arguments: ArgumentParser, words: Sequence[str]) -> int:
    """Write a run's page and say where; arguments as of the command line.

    Raises:
        UsageError: if the folder holds no run.
    """
    arguments.add_argument("folder", metavar="RUN")
    arguments.add_argument("--output", metavar="FOLDER", help="instead of the run's own")
    parsed = arguments.parse_args(words)
    for path in write_report(parsed.folder, parsed.output):
        tell(path)
    return 0


def compare(arguments: ArgumentParser, words: Sequence[str]) -> int:
    """Print runs side by side, and write them to a file if one is named.

    Raises:
        UsageError: if there are fewer than two runs, a folder holds none, or the file's ending is
            another.
    """
    arguments.add_argument("folders", metavar="RUN", nargs="+")
    arguments.add_argument("--output", metavar="FILE", help="a page or Markdown, by its ending")
    parsed = arguments.parse_args(words)
    path = Path(parsed.output).expanduser() if parsed.output else None
    if len(parsed.folders) < 2:
        raise UsageError(f"compare: expected two runs or more, found {len(parsed.folders)}")
    if path is not None and path.suffix not in (".html", ".md"):
        raise UsageError(f"--output {path}: expected a file that ends in .html or .md")
    Console(highlight=False).print(compare_runs(parsed.folders, path))
    if path is not None:
        tell(path)
    return 0


def tell(path: Path) -> None:
    """Say that a file was written, and how large it is."""
    line = f"{path.stat().st_size:>14,}  {path}"
    Console(highlight=False).print(line, markup=False, soft_wrap=True)
