"""Pictures of a stage: the curves of its training, and what an exam found.

They lie in `plots/`, apart from the outputs that a manifest lists: they can be drawn again from
`log.jsonl` and `report.json`, so a stage without them is not damaged.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.artifacts.manifest import read_json
from toolkit.artifacts.plot_curves import BLUE, ORANGE, draw_panel, finite, known, percent, short
from toolkit.artifacts.plot_panels import PANELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOTS = "plots"
TRAINING, EXAM = f"{PLOTS}/training.png", f"{PLOTS}/exam.png"
WIDTH, DPI = 9.0, 160  # inches: 900 pixels of a page, sharp on a fine screen
PANEL_HEIGHT, LINE_HEIGHT = 2.5, 0.42
STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9.0,
    "text.parse_math": False,  # a dollar sign in a task's name is one
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.labelcolor": "#444444",
    "axes.edgecolor": "#b0b0b0",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


def draw(stage: str, folder: Path, tell: Callable[[str], None]) -> None:
    """Draw what a stage left in its folder; a picture that fails is told, and fails nothing.

    Args:
        stage: the kind of stage; of one without a log or a report, nothing is drawn.
        folder: of the stage.
        tell: called with one line where there is no picture.
    """
    try:
        if stage in PANELS:
            (folder / TRAINING).unlink(missing_ok=True)  # an earlier run's is not this one's
            draw_training(stage, folder / "log.jsonl", folder / TRAINING, tell)
        elif stage == "evaluate":
            (folder / EXAM).unlink(missing_ok=True)
            draw_exam((read_json(folder / "report.json") or {}).get("exam", ()), folder / EXAM)
    except Exception as error:  # whatever a drawing library stops at, the stage is done
        said = " ".join(f"{type(error).__name__}: {error}".split())
        tell(f"no picture ({said}); the numbers are in {folder}")


def draw_training(stage: str, log: Path, path: Path, tell: Callable[[str], None]) -> None:
    """Draw the curves of a training stage.

    Args:
        stage: the kind of stage.
        log: its `log.jsonl`.
        path: where the picture goes.
        tell: called with one line where there is too little to draw.
    """
    with log.open(encoding="utf-8") as file:
        entries = [json.loads(line) for line in file if line.strip()]
    with style():
        figure = training_figure(stage, entries)
        if figure is None:
            tell("no picture: fewer than two values were logged; logging_steps: 1 logs every step")
        else:
            write(figure, path)


def draw_exam(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw what an exam found; nothing without rows.

    Args:
        rows: as a report's `exam` has them.
        path: where the picture goes.
    """
    if rows:
        with style():
            write(exam_figure(rows), path)


def training_figure(stage: str, entries: Sequence[Mapping[str, Any]]) -> "Figure | None":
    """The curves of a training stage; None where the log has too little for any.

    Args:
        stage: the kind of stage.
        entries: of the log, with `step`.
    """
    # the summary at the end repeats the keys, of the few steps since the entry before
    entries = [entry for entry in entries if "train_runtime" not in entry]
    panels = [panel for panel in PANELS[stage] if any(known(entries, key) for key in panel.curves)]
    if not any(known(entries, key) > 1 for panel in panels for key in panel.curves):
        return None
    if len(panels) % 2 and panels[-1] is PANELS[stage][-1]:
        panels.pop()
    figure, axes = grid(len(panels), PANEL_HEIGHT)
    for panel, place in zip(panels, axes, strict=True):
        draw_panel(place, panel, entries)
    return figure


def exam_figure(rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """Accuracy with its 95 % interval for every task and stage.

    Args:
        rows: as a report's `exam` has them, at least one.
    """
    tasks: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        tasks.setdefault(str(row["task"]), []).append(row)
    tallest = max(map(len, tasks.values()))
    figure, axes = grid(len(tasks), 1.05 + LINE_HEIGHT * tallest)
    named: dict[str, Any] = {}
    for (task, found), place in zip(tasks.items(), axes, strict=True):
        draw_task(place, task, found, tallest)
        handles, words = place.get_legend_handles_labels()
        named |= dict(zip(words, handles, strict=True))
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=2)
    return figure


def draw_task(axes: "Axes", task: str, rows: Sequence[Mapping[str, Any]], tallest: int) -> None:
    """One task of an exam: a line for each stage, its samples above its greedy answers."""
    from matplotlib.ticker import FuncFormatter

    kinds = (
        ("sampled", -0.14, BLUE, "o", ("accuracy", "low", "high")),
        ("greedy", 0.14, ORANGE, "D", ("greedy", "greedy_low", "greedy_high")),
    )
    for word, shift, colour, marker, keys in kinds:
        shown = [
            (at + shift, *(row[key] for key in keys))
            for at, row in enumerate(rows)
            if all(finite(row.get(key)) is not None for key in keys)
            and (word == "greedy" or row.get("samples"))  # without samples, both are greedy
        ]
        if shown:
            places, middles, lows, highs = zip(*shown, strict=True)
            below = [max(m - low, 0) for m, low in zip(middles, lows, strict=True)]
            above = [max(high - m, 0) for m, high in zip(middles, highs, strict=True)]
            axes.errorbar(
                middles, places, xerr=[below, above], fmt=marker, color=colour, markersize=5,
                elinewidth=1.6, capsize=2.5, label=f"{word}, with its 95 % interval",
            )  # fmt: skip
    axes.set_title(short(task, 40))
    axes.set_yticks(range(len(rows)), [short(str(row["stage"]), 20) for row in rows])
    axes.set_ylim(tallest - 0.45, -0.55)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("right answers")
    axes.xaxis.set_major_formatter(FuncFormatter(percent))
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def grid(number: int, height: float) -> "tuple[Figure, list[Axes]]":
    """A figure of so many panels in two columns, without pyplot and its global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(number, 2)
    rows = -(-number // columns)
    figure = Figure(figsize=(WIDTH, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    engine: Any = figure.get_layout_engine()
    engine.set(w_pad=0.12, h_pad=0.09)
    return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(number)]


def write(figure: "Figure", path: Path) -> None:
    """Write a picture whole; the same picture is the same bytes."""
    image = BytesIO()
    figure.savefig(image, format="png", dpi=DPI, metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image.getvalue())


@contextmanager
def style() -> Iterator[None]:
    """Draw as this file says, whatever the user's own settings of matplotlib are."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box says as much
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield
