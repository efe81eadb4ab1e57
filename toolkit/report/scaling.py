"""Accuracy against tokens spent: a picture for each way of thinking, a line for each model."""

from collections.abc import Mapping, Sequence
from math import log2
from typing import Any

from toolkit.artifacts.plot_curves import percent, short
from toolkit.report.curves import COLOURS
from toolkit.report.pen import Drawing, Frame

Points = Sequence[Mapping[str, Any]]


def scaling_curves(points: Points) -> list[Drawing]:
    """The pictures of one task, all with the same axes; nothing without points.

    Args:
        points: of the report's `scaling`.
    """
    stages = list(dict.fromkeys(point["stage"] for point in points))
    ways = list(dict.fromkeys((point["method"], point["reward"]) for point in points))
    found = []
    for method, reward in ways:
        mine = [each for each in points if (each["method"], each["reward"]) == (method, reward)]
        title = method.replace("_", " ") + (f", by {reward}" if reward else "")
        frame = Frame(
            (min(map(across, points)), max(map(across, points))),
            (min(point["accuracy"] for point in points), max(p["accuracy"] for p in points)),
            show_x=tokens, show_y=percent, across="tokens per question, doubling",
        )  # fmt: skip
        legend = []
        for at, stage in enumerate(stages):
            line = sorted((each for each in mine if each["stage"] == stage), key=across)
            if line:
                xs, ys = [across(each) for each in line], [each["accuracy"] for each in line]
                style = f"c{at % COLOURS}"
                frame.line(xs, ys, f"line {style}")
                frame.dots(xs, ys, f"dot {style}")
                legend.append((style, short(stage, 24)))
        found.append(Drawing(title, frame.svg(title), "accuracy", legend))
    return found


def across(point: Mapping[str, Any]) -> float:
    """Where a point stands: its tokens on a scale of doublings."""
    return log2(max(1.0, point["tokens"]))


def tokens(place: float) -> str:
    """A tick of that scale in tokens."""
    return f"{2**place:,.0f}"
