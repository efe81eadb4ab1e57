"""Run the quickstart over seeds of its data and of its training, and print medians and worst.

    python recipes/quickstart/seeds.py --seeds 5 --output_dir runs/seeds

Each seed draws chats, problems and exams anew, and trains from another start; the base is the one
that ships. A seed that has run is not run again.
"""

import argparse
import json
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import toolkit
from toolkit.data.synthetic.__main__ import main as write_world
from toolkit.data.synthetic.labeller import points
from toolkit.data.synthetic.problems import OPENING

RECIPE = Path("recipes") / "quickstart.yaml"
JUDGE = "adapter:reward"


def run_seed(seed: int, output_dir: Path, recipe: Path) -> Path:
    """The folder of a finished run on a world of its own."""
    world = output_dir / f"world-{seed}"
    write_world([str(world), "--seed", str(seed)])
    text = recipe.read_text(encoding="utf-8")
    own = world / recipe.name
    own.write_text(text.replace("recipes/quickstart/", f"{world.as_posix()}/"), encoding="utf-8")
    run = output_dir / f"run-{seed}"
    toolkit.run(own, seed=seed, output_dir=str(run))
    return run


def scores(run: Path) -> dict[str, float]:
    """Everything that one run is judged by, as shares of one."""
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    found: dict[str, float] = {}
    for row in report["exam"]:
        name = f"{row['task']}, {row['stage']}"
        found |= {f"{name}: sampled": row["accuracy"], f"{name}: greedy": row["greedy"]}
        if row["task"] == "counting":
            found[f"{name}: vote of {row['samples']}"] = row["vote"]
            best = row["best_of"].get(JUDGE, {})
            found |= {f"{name}: best of {number}": share for number, share in best.items()}
            found[f"{name}: right where worked"] = row["accuracy_worked"] or 0.0
    return found | pair_scores(run) | critic(run)


def pair_scores(run: Path) -> dict[str, float]:
    """How many held-out pairs the reward model puts in order: all, within a style, by rightness."""
    answers = read(run / "rank" / "ranked.jsonl")
    right = {row["prompt"][-1]["content"]: row["answer"] for row in answers}
    kinds: dict[str, list[float]] = {"all": [], "within a style": [], "right or wrong, worked": []}
    for pair in read(run / "reward" / "pairs.jsonl"):
        question = next(words for words in right if words in pair["prompt"])
        texts = [pair[side].partition("<|")[0] for side in ("chosen", "rejected")]
        worked = [OPENING in text for text in texts]
        is_right = [points(text, right[question]) >= 3 for text in texts]
        gap = pair["chosen_score"] - pair["rejected_score"]
        ordered = 1.0 if gap > 0 else 0.5 if gap == 0 else 0.0
        kinds["all"].append(ordered)
        if worked[0] == worked[1]:
            kinds["within a style"].append(ordered)
        if all(worked) and is_right == [True, False]:
            kinds["right or wrong, worked"].append(ordered)
    return {f"held-out pairs: {kind}": statistics.fmean(found) for kind, found in kinds.items()}


def critic(run: Path) -> dict[str, float]:
    """The mean explained variance of PPO's critic in each third of the run."""
    logged = [row for row in read(run / "ppo" / "log.jsonl") if row.get(EXPLAINED) is not None]
    size = -(-len(logged) // 3)
    thirds = [logged[size * third : size * (third + 1)] for third in range(3)]
    return {
        f"critic, third {number}: explained variance": statistics.fmean(
            row[EXPLAINED] for row in third
        )
        for number, third in enumerate(thirds, 1)
    }


EXPLAINED = "value/explained_variance"


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file."""
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def table(found: Iterable[Mapping[str, float]]) -> Table:
    """A row per score: its median, its worst, and every seed's."""
    seeds = list(found)
    shown = Table(title=f"{len(seeds)} seeds of data and training, in %")
    for name in ("score", "median", "worst", "all"):
        shown.add_column(name, justify="left" if name == "score" else "right")
    for name in seeds[0]:
        values = [100 * scores[name] for scores in seeds]
        each = " ".join(f"{value:.0f}" for value in values)
        shown.add_row(name, f"{statistics.median(values):.1f}", f"{min(values):.1f}", each)
    return shown


def main() -> None:
    """Run every seed, and print one row per score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output_dir", type=Path, default=Path("runs") / "seeds")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    given = parser.parse_args()
    runs = [run_seed(seed, given.output_dir, given.recipe) for seed in range(given.seeds)]
    found = [scores(run) for run in runs]
    (given.output_dir / "seeds.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    Console(width=100).print(table(found))


if __name__ == "__main__":
    main()
