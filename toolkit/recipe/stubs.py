"""Writes `toolkit/__init__.pyi`: every stage's keywords, for editors and type checkers.

python -m toolkit.recipe.stubs
"""

import re
from pathlib import Path

from toolkit.recipe.keys import STAGES, TRAINING, Key, keys_of
from toolkit.recipe.upstream import ENUMS

STUB = Path(__file__).resolve().parents[1] / "__init__.pyi"
HEAD = '''"""Post-training on the Hugging Face stack: one frozen base, LoRA adapters, one recipe.

Written by `python -m toolkit.recipe.stubs` from the installed TRL; do not edit.
"""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from toolkit import rewards as rewards
from toolkit.artifacts.manifest import RunResult, StageResult
from toolkit.errors import ToolkitError as ToolkitError

__version__: str

def run(
    recipe: str | Path,
    *,
    overwrite: bool = ...,
    allow_change: Sequence[str] = ...,
    fresh_optimizer: bool = ...,
    until: str | None = ...,
    **overrides: Any,
) -> RunResult: ...
def build(stage: Literal[{stages}], **keys: Any) -> Any: ...
def load(
    directory: str | Path, *, dtype: str = ..., device: str | None = ...
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]: ...
def merge(
    directory: str | PathLike[str],
    output: str | PathLike[str],
    *,
    dtype: str = ...,
    model_name_or_path: str | PathLike[str] | None = ...,
    max_shard_size: str = ...,
    overwrite: bool = ...,
) -> StageResult: ...
'''
OBJECTS = {
    "model": "PreTrainedModel | None",
    "processing_class": "PreTrainedTokenizerBase | None",
    "train_dataset": "Any",
    "eval_dataset": "Any",
    "callbacks": "Sequence[TrainerCallback]",
}
OF_ROLLOUTS = {
    "tools": "Sequence[Callable[..., Any]] | None",
    "environment_factory": "Any",
    "rollout_func": "Callable[..., Any] | None",
}
OF_THE_RUN = (
    "    overwrite: bool = ...,",
    "    allow_change: Sequence[str] = ...,",
    "    fresh_optimizer: bool = ...,",
)
PATHS = {"model_name_or_path", "dataset_name", "output_dir", "chat_template_path", "start_from"}
NOT_KEYWORDS = {"stage", "name", "hub_token"}


def generate() -> str:
    """The text of the stub for the installed TRL."""
    stages = ", ".join(
        f'"{stage}"' for stage in STAGES if stage in TRAINING and stage != "rejection"
    )
    return HEAD.replace("{stages}", stages) + "".join(map(function, STAGES))


def function(stage: str) -> str:
    """The signature of one stage's function."""
    objects = dict(OBJECTS if stage in TRAINING else list(OBJECTS.items())[:2])
    objects |= OF_ROLLOUTS if stage in ("grpo", "ppo") else {}
    keys = {key.name: annotation(key) for key in keys_of(stage).values()}
    words = objects | {name: kind for name, kind in keys.items() if name not in NOT_KEYWORDS}
    lines = [f"    {name}: {kind} = ...," for name, kind in words.items()]
    return "\n".join([f"def {stage}(", "    *,", *OF_THE_RUN, *lines, ") -> StageResult: ...\n"])


def annotation(key: Key) -> str:
    """A key's type as a caller sees it."""
    kind = key.annotation
    for enum in ENUMS:
        kind = re.sub(rf"\b{enum}\b", "str", kind)
    kind = kind.replace("list[DatasetConfig]", "Sequence[Mapping[str, Any]]")
    kind = kind.replace("list[dict[str, Any]]", "Sequence[Mapping[str, Any]]")
    if key.name in ("reward_funcs", "gold_funcs"):
        kind = f"Callable[..., Any] | list[Callable[..., Any]] | {kind}"
    if key.name == "trainer_class":
        kind = f"type | {kind}"
    kind = re.sub(r"\bParallelismConfig\b", "Any", kind)
    kind = re.sub(r"\bdict\b(?!\[)", "dict[str, Any]", kind)
    kind = re.sub(r"\blist\[", "Sequence[", kind)
    if key.name in PATHS:
        kind = re.sub(r"\bstr\b", "str | PathLike[str]", kind)
    kinds = dict.fromkeys(kind.split(" | "))
    return " | ".join(sorted(kinds, key=lambda word: word == "None"))


if __name__ == "__main__":
    STUB.write_text(generate(), encoding="utf-8")
