"""`toolkit generate`: a finished run answers prompts, as it would in an exam, and every answer is kept.

Rows are read, seeded, written and resumed as by stage rank, whose keys it takes; nothing is scored.
"""

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from toolkit.artifacts.lineage import run_recipe
from toolkit.data.prompts import askable
from toolkit.data.sources import load_rows
from toolkit.errors import RecipeError, UsageError
from toolkit.inference.engine import Engine
from toolkit.models.load import WEIGHTS, check_model_path
from toolkit.recipe import StageRecipe, recipe_from_flags
from toolkit.stages.answered import answered, by_transformers
from toolkit.stages.examined import Examined, examined_model, holds_answers
from toolkit.stages.rank import line_of, prompts_of, samples_of
from toolkit.stages.terminal import command, note
from toolkit.stages.traced import answers, keep, remembered

ENGINES = ("transformers", "vllm")
GIVEN = ("reward_funcs", "train_dataset")
"""Keys of stage rank that need no flag where nothing is read from a file."""


def generate(
    run: str,
    words: Sequence[str] = (),
    *,
    prompts: Sequence[str] = (),
    dataset: str | None = None,
    output: str | None = None,
    stage: str | None = None,
    engine: str = "transformers",
    traces: str | None = None,
    examples: int = 0,
) -> list[dict[str, Any]]:
    """Have a model answer prompts, or every row of a file.

    Args:
        run: the folder of a run, of a stage or of a model, or a Hub id.
        words: flags of stage rank, such as `--temperature 0.7`; one completion of each by default.
        prompts: what is asked: a user's turn, or a document to go on with where there is no chat
            template.
        dataset: a file of rows, as stage rank reads them.
        output: the JSONL file of the answers; what is in it already is not asked again.
        stage: which stage of a run answers; by default the last that can.
        engine: "transformers" or "vllm".
        traces: a folder that every answer is added to.
        examples: how many of the nearest earlier traces in that folder are shown before a prompt.

    Returns:
        The lines of the file: `asked`, `text`, `stopped`, `tokens`, `seed` and what places them.

    Raises:
        UsageError: if there is nothing to ask, or no file for the answers to one.
        RecipeError: if there is no such model, or a flag is wrong.
        DataError: if a row is wrong.
        TrainingError: if the device has not enough memory.
    """
    if bool(prompts) == (dataset is not None):
        raise UsageError("expected --prompt TEXT or --dataset FILE, one of the two")
    if dataset is not None and output is None:
        raise UsageError("--dataset needs --output FILE.jsonl, where every answer is kept")
    check(engine, traces, examples)
    place = writer(run, stage)
    own: list[str] = []
    if not any(word.partition("=")[0] == "--num_generations" for word in words):
        own += ["--num_generations", "1"]
    own += ["--dataset_name", dataset] if dataset else []
    policy, recipe = policy_of(place, [*own, *words], GIVEN if prompts else GIVEN[:1])
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(output).expanduser() if output else Path(scratch) / "answers.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        reminder = (traces, examples) if traces and examples else None
        lines = written(policy, recipe, prompts, path, engine, reminder)
    tell(lines)
    if output:
        command("texts", str(path))
    if traces:
        keep(traces, answers(policy, lines))
    return lines


def check(engine: str, traces: str | None, examples: int) -> None:
    """Refuse flags that are wrong together; arguments as of `generate`.

    Raises:
        UsageError: naming the flag.
    """
    if engine not in ENGINES:
        raise UsageError(f"--engine: expected {' or '.join(ENGINES)}, found {engine!r}")
    if examples and traces is None:
        raise UsageError("--examples needs --traces FOLDER, where earlier answers are")


def policy_of(
    place: str, words: Sequence[str], given: Collection[str] = GIVEN
) -> tuple[Examined, StageRecipe]:
    """Who answers, and the keys of stage rank that say how.

    Args:
        place: a model's folder or Hub id.
        words: flags of stage rank.
        given: keys that need no flag.

    Raises:
        RecipeError: if there is no such model, or a flag is wrong.
    """
    flags = ["--model_name_or_path", place, *words]
    (recipe,) = recipe_from_flags("rank", flags, given=given).stages
    return examined_model(place, recipe, {}), recipe


def tell(lines: Sequence[Mapping[str, Any]]) -> None:
    """Say how much was written."""
    cut = sum(not line["stopped"] for line in lines)
    tokens = sum(line["tokens"] for line in lines)
    cut_off = f"; {cut:,} cut off at max_completion_length" if cut else ""
    note(f"{len(lines):,} completion{'s' * (len(lines) != 1)}, {tokens:,} tokens{cut_off}")


def written(
    policy: Examined,
    recipe: StageRecipe,
    prompts: Sequence[str],
    path: Path,
    engine: str,
    reminder: tuple[str, int] | None = None,
) -> list[dict[str, Any]]:
    """The answers, those of an interrupted run among them.

    Args:
        policy: who answers.
        recipe: of stage rank.
        prompts: as of `generate`.
        path: the file of the answers.
        engine: as of `generate`.
        reminder: a folder of traces, and how many of them a prompt is shown.
    """
    tokenizer = policy.load_tokenizer()
    asked = None
    if prompts:
        is_chat = bool(tokenizer.chat_template)
        asked = [{"prompt": [user(text)] if is_chat else text} for text in prompts]
    rows = load_rows(recipe, purpose="prompt", train_dataset=asked)
    rows = replace(rows, train=askable(rows.train, tokenizer, rows.bad))
    for line in rows.notes:
        note(line)
    wanted, render = samples_of(policy, rows, recipe), prompts_of
    if reminder:
        wanted, render = remembered(wanted, *reminder, tokenizer)
    return answered(
        policy, wanted, recipe, path.parent,
        prompts_of=render, line_of=partial(line_of, policy), path=path,
        engine_of=by_vllm if engine == "vllm" else by_transformers,
    )  # fmt: skip


def user(text: str) -> dict[str, str]:
    """A turn of the user."""
    return {"role": "user", "content": text}


def by_vllm(examined: Examined, recipe: StageRecipe) -> Engine:
    """A model as vLLM runs it, its adapter over its base.

    Raises:
        RecipeError: if vLLM is not installed, or cannot serve the adapter.
    """
    from toolkit.inference.vllm_engine import VllmEngine

    tokenizer = examined.load_tokenizer()
    if examined.adapter is None:
        return VllmEngine(examined.place, tokenizer)
    base = str(examined.adapter["base_model_name_or_path"])
    return VllmEngine(base, tokenizer, {"policy": examined.place}, speaks="policy")


def writer(run: str, stage: str | None, tell: Callable[[str], Any] = note) -> str:
    """The folder or Hub id of what answers.

    Args:
        run: as of `generate`.
        stage: likewise.
        tell: is told which stage it is, where nobody has named one.

    Raises:
        RecipeError: if there is none.
    """
    folder = Path(run).expanduser()
    if stage is not None:
        folder, run = folder / stage, str(folder / stage)
    if not folder.is_dir() or any((folder / name).is_file() for name in WEIGHTS):
        check_model_path(run)
        return run
    order = [each["name"] for each in (run_recipe(folder) or {}).get("stages", ())]
    able = [name for name in order if holds_answers(folder / name)]
    if not able:
        raise RecipeError(
            f"{run}: expected a run with a stage that answers, or a model's folder, found neither"
        )
    tell(f"{able[-1]} answers, the last of {', '.join(able)}; name another with --stage")
    return str(folder / able[-1])
