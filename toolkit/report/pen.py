"""Small pictures as SVG inside a page: a frame with axes, and what is drawn in it.

The page's style sheet gives the colours, so that a picture is right on light and on dark paper. It
is drawn here and not by matplotlib, whose SVG has fixed colours and costs a second a page.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from toolkit.artifacts.plot_curves import plain

WIDTH, HEIGHT = 340, 188
RIGHT, TOP, BOTTOM = 10, 8, 36
LETTER = 6.1  # pixels of a digit at the size of a tick
Show = Callable[[float], str]


@dataclass(frozen=True)
class Drawing:
    """A picture with what stands around it.

    Attributes:
        title: what it shows.
        svg: the picture itself, escaped.
        unit: of its vertical axis.
        legend: the class of each colour with its word; nothing for one curve alone.
    """

    title: str
    svg: Markup
    unit: str = ""
    legend: Sequence[tuple[str, str]] = ()


class Frame:
    """The plane of a picture.

    Args:
        xs: the least and the greatest value across.
        ys: those upwards.
        show_x: how a tick across is written.
        show_y: how one upwards is.
        across: the word below the horizontal axis.
        rows: names of equal bands from the top, in place of ticks upwards.
    """

    def __init__(
        self,
        xs: tuple[float, float],
        ys: tuple[float, float],
        *,
        show_x: Show = plain,
        show_y: Show = plain,
        across: str = "step",
        rows: Sequence[str] = (),
    ):
        self.xs, self.ys = widened(*xs), widened(*ys)
        self.parts: list[Markup] = []
        self.height = max(HEIGHT, TOP + BOTTOM + 24 * len(rows))
        labels = [(value, show_y(value)) for value in ticks(*self.ys, most=4)]
        if rows:
            labels = [(len(rows) - 0.7 - at, name) for at, name in enumerate(rows)]
        self.left = max(24.0, max(len(word) for _, word in labels) * LETTER + 10)
        floor, end = self.height - BOTTOM, WIDTH - RIGHT
        for value, word in labels:
            at = self.y(value)
            if not rows:
                self.add('<path class="grid" d="M{:.1f} {:.1f}H{}"/>', self.left, at, end)
            self.add(
                '<text x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>',
                self.left - 6, at + 3.5, word,
            )  # fmt: skip
        for value in ticks(*self.xs, most=5):
            self.add(
                '<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>',
                min(self.x(value), end - len(show_x(value)) * LETTER / 2 + 8), floor + 15,
                show_x(value),
            )  # fmt: skip
        self.add('<path class="axis" d="M{:.1f} {}H{}"/>', self.left, floor, end)
        self.add(
            '<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>',
            (self.left + end) / 2, self.height - 5, across,
        )  # fmt: skip

    def x(self, value: float) -> float:
        """Where a value stands across."""
        return self.left + share(value, self.xs) * (WIDTH - RIGHT - self.left)

    def y(self, value: float) -> float:
        """Where a value stands upwards."""
        space = self.height - BOTTOM - TOP
        return self.height - BOTTOM - share(value, self.ys) * space

    def add(self, text: str, *values: object) -> None:
        """Put a piece of SVG, its values escaped."""
        self.parts.append(Markup(text).format(*values))

    def line(self, xs: Sequence[float], ys: Sequence[float], style: str) -> None:
        """A curve through points, with a gap where a value is no finite number."""
        words, pen = [], "M"
        for x, y in zip(xs, ys, strict=True):
            if not math.isfinite(y):
                pen = "M"
                continue
            words.append(f"{pen}{self.x(x):.1f} {self.y(y):.1f}")
            pen = "L"
        if words:
            self.add('<path class="{}" d="{}"/>', style, "".join(words))

    def area(self, corners: Sequence[tuple[float, float]], style: str) -> None:
        """A filled shape."""
        if corners:
            path = "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in corners)
            self.add('<path class="{}" d="M{}Z"/>', style, path)

    def dots(self, xs: Sequence[float], ys: Sequence[float], style: str, r: float = 2.4) -> None:
        """A dot for every value that is a finite number."""
        for x, y in zip(xs, ys, strict=True):
            if math.isfinite(y):
                self.add(
                    '<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"/>',
                    style, self.x(x), self.y(y), r,
                )  # fmt: skip

    def svg(self, title: str) -> Markup:
        """The whole picture, with what it shows for those who cannot see it."""
        return Markup(
            '<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
        ).format(WIDTH, self.height, title, Markup("").join(self.parts))


def share(value: float, ends: tuple[float, float]) -> float:
    """How far a value lies between two ends, from 0 to 1; a little beyond is kept in the picture."""
    return min(1.0, max(0.0, (value - ends[0]) / (ends[1] - ends[0])))


def widened(low: float, high: float) -> tuple[float, float]:
    """Two ends that differ, so that a flat line has a place."""
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    reach = abs(low) * 0.1 or 0.5
    return low - reach, high + reach


def ticks(low: float, high: float, *, most: int) -> list[float]:
    """Round numbers between two ends, no more than so many and one."""
    raw = (high - low) / most
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * part for part in (1, 2, 2.5, 5, 10) if size * part >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [place * step for place in range(first, last + 1)]
