"""The drawing of one panel: curves with gaps, moving means, a band, axes."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from toolkit.artifacts.plot_panels import Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTHED_FROM = 60  # values; fewer are read as they are
HELD_OUT = "held out"
NAME_LETTERS = 24
# Okabe and Ito's colours, which the colour-blind tell apart
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#767676"

Entries = Sequence[Mapping[str, Any]]
"""Lines of a log, with `step`."""
Series = tuple[list[int], list[float]]
"""Steps and their values; NaN is a gap."""


def draw_panel(axes: "Axes", panel: Panel, entries: Entries) -> None:
    """Draw every curve of a panel that the log has, and the axes around them."""
    colours = cycle((BLUE, ORANGE, GREEN, PURPLE, GREY))
    for key, word in panel.curves.items():
        if known(entries, key):
            draw_curve(axes, panel, series(entries, key), word, next(colours))
    if panel.band and known(entries, panel.band):
        draw_band(axes, entries, next(iter(panel.curves)), panel.band)
    several = each(entries, panel.each)
    if len(several) > 1:
        for key, name in several.items():
            draw_curve(axes, panel, series(entries, key), name, next(colours), width=1.0)
    draw_axes(axes, panel, last=entries[-1]["step"])


def draw_curve(
    axes: "Axes", panel: Panel, found: Series, word: str, colour: str, width: float = 1.7
) -> None:
    """A curve with gaps where there is no value; many values are shown with their moving mean."""
    steps, values = found
    if panel.lowest is not None:
        below = [step for step, value in zip(*found, strict=True) if value < panel.lowest]
        axes.plot(below, [panel.lowest] * len(below), "v", color=colour, markersize=5)
        values = [max(value, panel.lowest) if value == value else value for value in values]
    number = sum(math.isfinite(value) for value in values)
    word = word.lstrip("_")  # matplotlib leaves such a name out of a legend
    if number >= SMOOTHED_FROM and panel.noisy and word != HELD_OUT:
        axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.35)
        span = number // 30 | 1
        values = moving_mean(values, span)
        word = word and f"{word} (mean of {span})"
    axes.plot(
        steps,
        values,
        color=colour,
        linewidth=width,
        linestyle="--" if word == HELD_OUT else "-",
        marker="o" if word == HELD_OUT or number <= 20 else "",
        markersize=3.2,
        label=word,
        clip_on=False,  # a flat zero lies on the axis
    )


def draw_band(axes: "Axes", entries: Entries, key: str, band: str) -> None:
    """One standard deviation around a curve."""
    both = [entry for entry in entries if key in entry and band in entry]
    steps, middle = series(both, key)
    _, wide = series(both, band)
    axes.fill_between(
        steps,
        [value - reach for value, reach in zip(middle, wide, strict=True)],
        [value + reach for value, reach in zip(middle, wide, strict=True)],
        color=BLUE,
        alpha=0.15,
        linewidth=0,
        label="± 1 standard deviation",
    )


def draw_axes(axes: "Axes", panel: Panel, last: int) -> None:
    """Everything about a panel but its curves."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_title(panel.title)
    axes.set_xlabel("step")
    axes.set_ylabel(panel.unit)
    axes.set_xlim(0, last * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if panel.from_zero and axes.dataLim.ymin >= 0:
        axes.set_ylim(0, None if axes.dataLim.ymax else 0.1)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(percent if panel.share else plain))
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(loc="best")


def percent(value: float, _: Any = None) -> str:
    """A share as an axis shows it."""
    return f"{plain(100 * value)} %"


def plain(value: float, _: Any = None) -> str:
    """A number as an axis shows it."""
    return f"{value:.4g}".replace("-", "−")


def finite(value: Any) -> float | None:
    """A finite number; None for what a step could not have, for NaN and for infinity."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def known(entries: Entries, key: str) -> int:
    """How many entries have a number by a key."""
    return sum(finite(entry.get(key)) is not None for entry in entries)


def series(entries: Entries, key: str) -> Series:
    """The steps and values of the entries that have a key; a gap where it is no finite number."""
    found = [(entry["step"], finite(entry[key])) for entry in entries if key in entry]
    return [step for step, _ in found], [math.nan if v is None else v for _, v in found]


def moving_mean(values: Sequence[float], span: int) -> list[float]:
    """The mean of each value and its neighbours, gaps left out; fewer neighbours at the ends."""
    half, means = span // 2, []
    for at in range(len(values)):
        near = values[max(0, at - half) : at + half + 1]
        there = [value for value in near if math.isfinite(value)]
        means.append(sum(there) / len(there) if there else math.nan)
    return means


def each(entries: Entries, pattern: str) -> dict[str, str]:
    """The keys that fit a pattern, with what its `*` stands for, without places and repositories."""
    before, _, after = pattern.partition("*")
    fitting = dict.fromkeys(
        key
        for entry in entries
        for key in entry
        if pattern and key.startswith(before) and key.endswith(after)
    )
    return {key: without_place(key[len(before) : len(key) - len(after)]) for key in fitting}


def without_place(name: str) -> str:
    """A reward's name without file, folder or repository, for a picture may be given away."""
    kind, _, last = name.rpartition(":")
    return short(kind if "/" in last and kind else last.rpartition("/")[2], NAME_LETTERS)


def short(text: str, letters: int) -> str:
    """A text in one line of so many letters at most."""
    text = " ".join(text.split())
    return text if len(text) <= letters else f"{text[: letters - 1]}…"
