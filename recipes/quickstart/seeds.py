"""Run the quickstart over seeds of its data and of its training, and print medians and worst.

    python recipes/quickstart/seeds.py --seeds 5 --output_dir runs/seeds

Each seed draws chats, examples and exams anew, and trains from another start; the base is the one
that ships.
"""

import argparse
import json
import statistics
from pathlib import Path

from rich.console import Console
from rich.table import Table

import toolkit
from toolkit.data.synthetic.__main__ import main as write_world

RECIPE = Path("recipes") / "quickstart.yaml"
SCORES = ("accuracy", "greedy")


def run_seed(seed: int, output_dir: Path, recipe: Path) -> dict[tuple[str, str], list[float]]:
    """The scores, sampled and greedy, of each model and task."""
    world = output_dir / f"world-{seed}"
    write_world([str(world), "--seed", str(seed)])
    text = recipe.read_text(encoding="utf-8")
    own = world / recipe.name
    own.write_text(text.replace("recipes/quickstart/", f"{world.as_posix()}/"), encoding="utf-8")
    run = output_dir / f"run-{seed}"
    toolkit.run(own, seed=seed, output_dir=str(run))
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    return {(row["task"], row["stage"]): [row[score] for score in SCORES] for row in report["exam"]}


def main() -> None:
    """Run every seed, and print one row per task and model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output_dir", type=Path, default=Path("runs") / "seeds")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    given = parser.parse_args()
    found = [run_seed(seed, given.output_dir, given.recipe) for seed in range(given.seeds)]
    table = Table(title=f"{given.seeds} seeds of data and training: median (worst), %")
    for name in ("task", "model", "sampled", "greedy"):
        table.add_column(name, justify="left" if name in ("task", "model") else "right")
    for task, model in found[0]:
        columns = zip(*(scores[task, model] for scores in found), strict=True)
        table.add_row(
            task,
            model,
            *(f"{100 * statistics.median(c):.1f} ({100 * min(c):.1f})" for c in columns),
        )
    Console(width=80).print(table)


if __name__ == "__main__":
    main()
