"""Writes the demo's world as JSON lines.

python -m toolkit.data.synthetic recipes/quickstart                   # what the quickstart reads
python -m toolkit.data.synthetic runs/world --documents 40000         # and what its base has read
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from toolkit.data.synthetic import rows

FILES: dict[str, Callable[..., Iterable[dict]]] = {
    "chats": rows.chats,
    "asked": rows.asked,
    "problems": rows.problems,
    "tried_counting": rows.tried_counting,
    "shown_counting": rows.shown_counting,
    "shown_people": rows.shown_people,
    "exam_counting": rows.exam_counting,
    "exam_people": rows.exam_people,
}


def write_rows(path: Path, written: Iterable[dict]) -> None:
    """Write rows as JSON lines, the same bytes on every system."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row) + "\n" for row in written)


def main(words: Sequence[str] | None = None) -> None:
    """Write the demo's world into a folder."""
    parser = argparse.ArgumentParser(
        prog="python -m toolkit.data.synthetic", description=main.__doc__
    )
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--problems", type=int, default=rows.PROBLEMS, help="to be rewarded for")
    parser.add_argument("--asked", type=int, default=rows.ASKED, help="problems to rank answers to")
    parser.add_argument("--documents", type=int, default=0, help="how many; default: none")
    given = parser.parse_args(words)
    given.output_dir.mkdir(parents=True, exist_ok=True)
    counts = {"problems": given.problems, "asked": given.asked}
    for name, made in FILES.items():
        count = (counts[name],) if name in counts else ()
        write_rows(given.output_dir / f"{name}.jsonl", made(given.seed, *count))
    if given.documents:
        texts = itertools.islice(rows.documents(given.seed), given.documents)
        write_rows(given.output_dir / "documents.jsonl", ({"text": text} for text in texts))


if __name__ == "__main__":
    main()
