"""The curves of a stage, its reward against KL and length, and how scores are spread."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.artifacts.plot_curves import (
    HELD_OUT,
    SMOOTHED_FROM,
    each,
    known,
    moving_mean,
    percent,
    plain,
    series,
    short,
)
from toolkit.artifacts.plot_panels import PANELS, Panel
from toolkit.report.pen import Drawing, Frame

Entries = Sequence[Mapping[str, Any]]
MOST_POINTS = 400  # more than a picture of this size can show
COLOURS = 6  # classes c0, c1 … of the style sheet
BINS = 32
OVERLAID = 2  # more outlines over one another are not told apart
GOLD = "gold/*/mean"
GUARD = (
    Panel("Repetition", {"guard/distinct_ngrams": "distinct n-grams"}, share=True),
    Panel("Compression ratio of the completions", {"guard/compression_ratio": ""}),
    Panel("Agreement of the reward with gold, or of rewards", {"guard/agreement": ""}),
)
AGAINST = (
    ("kl", "Reward against KL", "KL from the reference, nats per token"),
    ("completions/mean_length", "Reward against length", "tokens of a completion"),
)


def stage_curves(kind: str, entries: Entries) -> list[Drawing]:
    """The curves of a training stage, as far as its log has them.

    Args:
        kind: of the stage.
        entries: of its log, with `step`.
    """
    # the summary at the end repeats the keys, of the few steps since the entry before
    entries = [entry for entry in entries if "train_runtime" not in entry]
    golds = Panel("Gold check, which is not trained on", {k: w for w, k in gold_of(entries)})
    guard = (golds, *GUARD) if kind in ("ppo", "grpo") else ()
    return [
        curves(panel, entries)
        for panel in (*PANELS.get(kind, ()), *guard)
        if any(known(entries, key) > 1 for key in panel.curves)
    ]


def gold_of(entries: Entries) -> list[tuple[str, str]]:
    """The gold checks of a log, each with its key."""
    return [(name, key) for key, name in each(entries, GOLD).items()]


def curves(panel: Panel, entries: Entries) -> Drawing:
    """One panel: its curves, its band, many values with their moving mean."""
    lines = [
        (word, *series(entries, key)) for key, word in panel.curves.items() if known(entries, key)
    ]
    several = each(entries, panel.each)
    lines += [(word, *series(entries, key)) for key, word in several.items() if len(several) > 1]
    lines = [(word, steps, floored(values, panel)) for word, steps, values in lines]
    band = band_of(panel, entries)
    numbers = [value for _, _, values in lines for value in values if math.isfinite(value)]
    numbers += [y for _, y in band if math.isfinite(y)]
    low, high = min(numbers), max(numbers)
    if panel.from_zero and low >= 0:
        low, high = 0.0, high or 0.1
    elif panel.share:
        low, high = max(0.0, low - 0.02), min(1.0, high + 0.02)
    else:
        reach = (high - low) * 0.05
        low, high = low - reach, high + reach
    last = max(entry["step"] for entry in entries)
    frame = Frame(
        (0, last), (low, high), show_x=whole, show_y=percent if panel.share else plain
    )  # fmt: skip
    frame.area(band, "band c0")
    legend = [draw(frame, panel, at % COLOURS, *line) for at, line in enumerate(lines)]
    if band:
        legend.append(("band c0", "± 1 standard deviation"))
    return Drawing(
        panel.title, frame.svg(panel.title), panel.unit, legend if len(legend) > 1 else ()
    )


def draw(
    frame: Frame,
    panel: Panel,
    colour: int,
    word: str,
    steps: Sequence[float],
    values: Sequence[float],
) -> tuple[str, str]:
    """One curve; returns its class and its word."""
    number = sum(math.isfinite(value) for value in values)
    style = f"c{colour} held" if word == HELD_OUT else f"c{colour}"
    if number >= SMOOTHED_FROM and panel.noisy and word != HELD_OUT:
        frame.line(*thinned(steps, values), f"line faint {style}")
        steps, values = averaged(steps, values)
        span = max(3, len(values) // 30 | 1)
        values = moving_mean(values, span)
    frame.line(*thinned(steps, values), f"line {style}")
    if word == HELD_OUT or number <= 20:
        frame.dots(steps, values, f"dot {style}")
    return style, word or "value"


def floored(values: list[float], panel: Panel) -> list[float]:
    """The values, none below what the panel shows."""
    lowest = panel.lowest
    return values if lowest is None else [max(v, lowest) if v == v else v for v in values]


def band_of(panel: Panel, entries: Entries) -> list[tuple[float, float]]:
    """The corners of one standard deviation around the first curve."""
    key = next(iter(panel.curves))
    both = [entry for entry in entries if known([entry], key) and known([entry], panel.band)]
    steps, middle = series(both, key)
    _, wide = series(both, panel.band) if both else ([], [])
    found = list(zip(steps, middle, wide, strict=True))
    above = [(float(step), mean + reach) for step, mean, reach in found]
    return above + [(float(step), mean - reach) for step, mean, reach in reversed(found)]


def thinned(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """No more points than can be seen: of each part the least and the greatest, as they come."""
    if len(values) <= MOST_POINTS:
        return list(steps), list(values)
    size = -(-len(values) * 2 // MOST_POINTS)
    kept: list[int] = []
    for start in range(0, len(values), size):
        part = range(start, min(start + size, len(values)))
        there = [at for at in part if math.isfinite(values[at])] or [start]
        ends = {min(there, key=lambda at: values[at]), max(there, key=lambda at: values[at])}
        kept += sorted(ends)
    return [steps[at] for at in kept], [values[at] for at in kept]


def averaged(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means of so many neighbours that a moving mean of a long log takes no time."""
    size = -(-len(values) // (5 * MOST_POINTS))
    if size == 1:
        return list(steps), list(values)
    parts = [
        [value for value in values[at : at + size] if math.isfinite(value)]
        for at in range(0, len(values), size)
    ]
    means = [sum(part) / len(part) if part else math.nan for part in parts]
    return list(steps[::size]), means


def against(entries: Entries) -> list[Drawing]:
    """Reward against KL and against length, one dot per logged step, later ones darker."""
    found = []
    for key, title, across in AGAINST:
        both = [entry for entry in entries if known([entry], key) and known([entry], "reward")]
        if len(both) < 3:
            continue
        xs, ys = [float(each[key]) for each in both], [float(each["reward"]) for each in both]
        if max(xs) == min(xs):
            continue
        reach = [(max(of) - min(of)) * 0.06 for of in (xs, ys)]
        frame = Frame(
            (min(xs) - reach[0], max(xs) + reach[0]), (min(ys) - reach[1], max(ys) + reach[1]),
            across=across,
        )  # fmt: skip
        frame.line(*thinned(xs, ys), "line faint c0")
        dots = list(zip(xs, ys, strict=True))[:: -(-len(xs) // MOST_POINTS)]
        for at, (x, y) in enumerate(dots):
            frame.add(
                '<circle class="dot c0" opacity="{:.2f}" cx="{:.1f}" cy="{:.1f}" r="3"/>',
                0.25 + 0.75 * at / max(1, len(dots) - 1), frame.x(x), frame.y(y),
            )  # fmt: skip
        for word, at, colour in (("first", 0, "start"), ("last", -1, "end")):
            style = f"ring {colour}"
            frame.add(
                '<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="5"><title>{}</title></circle>',
                style, frame.x(xs[at]), frame.y(ys[at]), word,
            )  # fmt: skip
        legend = (("ring start", "first logged step"), ("ring end", "last"))
        found.append(Drawing(title, frame.svg(title), "reward", legend))
    return found


def spread(title: str, groups: Mapping[str, Sequence[float]], across: str) -> Drawing | None:
    """How values are spread, one outline for each group; None where there are too few.

    Args:
        title: of the picture.
        groups: values by name; those that are no finite number are left out.
        across: what the values are.
    """
    finite = {name: [v for v in values if math.isfinite(v)] for name, values in groups.items()}
    finite = {name: values for name, values in finite.items() if values}
    everything = [value for values in finite.values() for value in values]
    if len(everything) < 2:
        return None
    low, high = min(everything), max(everything)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    width = (high - low) / BINS
    counted = {name: shares(values, low, width) for name, values in finite.items()}
    if len(counted) > OVERLAID:
        return ridges(title, counted, finite, (low, high), across)
    tallest = max(max(of) for of in counted.values())
    frame = Frame((low, high), (0, tallest * 1.05), show_y=percent, across=across)
    legend = []
    for at, (name, heights) in enumerate(counted.items()):
        style = f"c{at % COLOURS}"
        corners = [(low, 0.0)]
        for place, height in enumerate(heights):
            start = low + place * width
            corners += [(start, height), (start + width, height)]
        frame.area([*corners, (high, 0.0)], f"heap {style}")
        mean = sum(finite[name]) / len(finite[name])
        legend.append((style, f"{name}, mean {plain(round(mean, 3))}"))
    return Drawing(title, frame.svg(title), "share", legend)


def ridges(
    title: str,
    counted: Mapping[str, Sequence[float]],
    values: Mapping[str, Sequence[float]],
    ends: tuple[float, float],
    across: str,
) -> Drawing:
    """Many groups, one below the other, each as high as its own greatest share; a line is its mean."""
    names = list(counted)
    frame = Frame(ends, (0, len(names)), across=across, rows=[short(name, 15) for name in names])
    width = (ends[1] - ends[0]) / BINS
    for row, name in enumerate(names):
        floor, highest = len(names) - 1 - row, max(counted[name])
        corners = [(ends[0], float(floor))]
        for at, height in enumerate(counted[name]):
            start, top = ends[0] + at * width, floor + 0.88 * height / highest
            corners += [(start, top), (start + width, top)]
        frame.area([*corners, (ends[1], float(floor))], "heap c0")
        mean = sum(values[name]) / len(values[name])
        frame.line([mean, mean], [floor, floor + 0.88], "line c1")
    return Drawing(title, frame.svg(title), "", (("c0", "share of the samples"), ("c1", "mean")))


def shares(values: Sequence[float], low: float, width: float) -> list[float]:
    """The share of the values in each bin."""
    counts = [0] * BINS
    for value in values:
        counts[min(BINS - 1, int((value - low) / width))] += 1
    return [count / len(values) for count in counts]


def whole(value: float) -> str:
    """A step."""
    return f"{value:,.0f}"
