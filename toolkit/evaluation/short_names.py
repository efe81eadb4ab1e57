"""Models that are named by their folders, called by the ends of the paths."""

from collections.abc import Iterable, Mapping
from typing import Any


def short_names(names: Iterable[str]) -> dict[str, str]:
    """As much of the end of each path as tells the models apart; all of them by as many parts.

    Args:
        names: of stages, folders and Hub ids.
    """
    whole = list(dict.fromkeys(names))
    most = max((name.count("/") for name in whole), default=0) + 1
    for count in range(1, most):
        tails = {name: "/".join(name.rstrip("/").split("/")[-count:]) for name in whole}
        if len(set(tails.values())) == len(whole):
            return tails
    return {name: name for name in whole}


def with_short_names(report: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """An exam's report, as `exam_report` gives it, with every model called by its short name."""
    short = short_names(row["stage"] for row in report.get("exam") or ())
    renamed = ("stage", "a", "b")
    return {
        key: [
            {name: short.get(v, v) if name in renamed else v for name, v in row.items()}
            for row in report.get(key) or ()
        ]
        for key in ("exam", "comparisons", "gains", "scaling")
    }
