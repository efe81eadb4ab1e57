"""What a pipeline itself costs: every part of an sft stage that is not training, in seconds.

    python -m tests.benchmarks.overhead                    a small base, and one of 1 GB
    python -m tests.benchmarks.overhead --base 1GB --full  and its own weights trained

Seconds are the processor's, and of the clock in brackets. The sum is said as a share of a stage of
ten minutes: of parts that a stage has once, whatever it trains.
"""

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.scaling import save_base, write_rows

STAGE_S = 600
BASES: dict[str, dict[str, Any]] = {
    "small": {},
    "1GB": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 15,
        "num_attention_heads": 16, "num_key_value_heads": 16,
    },
}  # fmt: skip
PARTS = {
    "look at what finished": ("toolkit.pipeline", "refuse_or_clear"),
    "digests of base and rows": ("toolkit.artifacts.inputs", "inputs_of"),
    "note of the weights": ("toolkit.stages.finish", "note_start"),
    "seal of a checkpoint": ("toolkit.artifacts.checkpoint", "seal"),
    "writing and noting what is saved": ("toolkit.stages.sft", "save"),
    "proof": ("toolkit.stages.sft", "prove"),
    "pictures": ("toolkit.artifacts.plots", "draw"),
    "manifest": ("toolkit.pipeline", "write_manifest"),
    "report": ("toolkit.pipeline", "write_report"),
}
OF_THE_WORK = {
    "rows": ("toolkit.stages.sft", "prepare"),
    "loading the base": ("toolkit.stages.sft", "load_base"),
    "training": ("transformers", "Trainer.train"),
}
Times = dict[str, tuple[float, float]]


def timed(times: Times, name: str, place: tuple[str, str]) -> None:
    """Have a function add to `times` what it takes."""
    *path, last = place[1].split(".")
    owner: Any = importlib.import_module(place[0])
    for step in path:
        owner = getattr(owner, step)
    function: Callable[..., Any] = getattr(owner, last)

    def measured(*args: Any, **kwargs: Any) -> Any:
        before = time.process_time(), time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent, known = (time.process_time(), time.perf_counter()), times.get(name, (0.0, 0.0))
            times[name] = (
                known[0] + spent[0] - before[0],
                known[1] + spent[1] - before[1],
            )

    setattr(owner, last, measured)


def run(folder: Path, *, full: bool) -> Times:
    """One stage in a pipeline, and what its parts took."""
    from toolkit import pipeline
    from toolkit.recipe import load_recipe

    times: Times = {}
    for name, place in (PARTS | OF_THE_WORK).items():
        timed(times, name, place)
    recipe = {
        "model_name_or_path": str(folder / "base"), "output_dir": str(folder / "run"),
        "stages": [
            {
                "stage": "sft", "dataset_name": str(folder / "rows.jsonl"), "max_steps": 2,
                "save_steps": 1, "per_device_train_batch_size": 1, "max_length": 256,
                "use_peft": not full, "lr_scheduler_type": "constant",
            }
        ],
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    pipeline.run_recipe(load_recipe(path))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", choices=[*BASES], nargs="+", default=[*BASES])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    for name in asked.base:
        with tempfile.TemporaryDirectory(dir=asked.folder) as place:
            folder = Path(place)
            save_base(folder / "base", **BASES[name])
            write_rows(folder / "rows.jsonl", 1000)
            size = (folder / "base" / "model.safetensors").stat().st_size
            times = run(folder, full=asked.full)
            own = {part: times.get(part, (0.0, 0.0)) for part in PARTS}
            seconds = sum(spent for spent, _ in own.values())
            sys.stdout.write(
                f"{name}{' in full' * asked.full}: weights of {size / 1e6:,.0f} MB; own "
                f"{seconds:.2f} s, {seconds / STAGE_S:.2%} of ten minutes\n"
            )
            for part, (spent, clock) in times.items():
                is_own = "own" if part in PARTS else "the work"
                sys.stdout.write(f"  {part} ({is_own}): {spent:.2f} s ({clock:.2f})\n")
            manifest = json.loads((folder / "run" / "sft" / "stage.json").read_text())
            sys.stdout.write(f"  peak {manifest['peak_memory_bytes'] / 1e9:.2f} GB\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
