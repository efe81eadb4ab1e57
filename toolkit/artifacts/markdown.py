"""How a model card writes tables, numbers and names."""

from collections.abc import Mapping, Sequence
from typing import Any

NONE = "–"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table, their keys as its head."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def code(text: Any) -> str:
    """A name or a setting, as code; a backtick inside is kept."""
    text = " ".join(str(text).split())
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def whole(value: Any) -> str:
    """A count, with thousands apart."""
    return f"{value:,.0f}" if isinstance(value, int | float) else NONE


def percent(value: Any) -> str:
    """A share of 1."""
    return f"{100 * value:.1f} %" if isinstance(value, int | float) else NONE


def interval(low: float, high: float) -> str:
    """The ends of an interval of shares."""
    return f"{100 * low:.1f} – {100 * high:.1f} %"


def duration(seconds: Any) -> str:
    """A length of time in its two largest units."""
    if not isinstance(seconds, int | float):
        return NONE
    left = round(seconds)
    for size, unit, below, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):  # fmt: skip
        if left >= size:
            return f"{left // size} {unit} {left % size // below} {smaller}"
    return f"{left} s"


def gibibytes(value: Any) -> str:
    """A size in memory."""
    return f"{value / 2**30:.1f} GiB" if isinstance(value, int | float) and value else NONE
