"""Numbers and hostile text as a page shows them."""

from typing import Any

from toolkit.artifacts.markdown import NONE

LONGEST = 700
"""How much of a prompt or an answer is shown, in characters."""
# What another wrote must not hide, reorder or end the text around it.
VISIBLE = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"}
VISIBLE |= {0x7F: "␡"} | {code: f"<{code:02x}>" for code in range(0x80, 0xA0)}
VISIBLE |= {
    code: f"<{code:04x}>"
    for code in (*range(0x200B, 0x2010), *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xFEFF)
}
SMALLEST_P = 1e-300


def shown(text: Any, most: int = LONGEST) -> str:
    """A text with its control characters made visible, cut with what was left out counted."""
    words = str(text)
    left = len(words) - most
    if left > 0:
        words = words[:most]
    words = words.encode("utf-8", "replace").decode().translate(VISIBLE)
    return f"{words} … ({left:,} characters more)" if left > 0 else words


def points(share: Any, digits: int = 1) -> str:
    """A share of 1, in per cent without the sign."""
    return NONE if share is None else f"{100 * share:.{digits}f}"


def between(low: float, high: float) -> str:
    """The ends of an interval of shares, in per cent."""
    return f"[{points(low)}, {points(high)}]"


def signed(value: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{100 * value:+.1f}".replace("-", "−")


def probability(p: float) -> str:
    """A p-value, as short as it can be told."""
    if p < SMALLEST_P:
        return f"p < {SMALLEST_P:g}"
    return f"p = {p:.2f}" if p >= 0.1 else f"p = {p:.1g}"


def number(value: Any) -> str:
    """A measured number in few digits."""
    return f"{value:.4g}".replace("-", "−") if isinstance(value, int | float) else NONE
