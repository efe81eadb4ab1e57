"""Keys that are each right and together wrong, and keys that a stage cannot do without."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.errors import RecipeError
from toolkit.recipe.keys import ADAPTER, did_you_mean
from toolkit.recipe.sharing import check_sharing

Where = Callable[[str], str]
# Keys of dataset_name that TRL does not read beside datasets: their default, and what is meant.
OF_ONE_DATA_SET = {
    "dataset_config": (None, "write `name: {value}` inside the entry"),
    "dataset_train_split": ("train", "write `split: {value}` inside the entry"),
    "dataset_test_split": ("test", "write test_split_size to hold rows out"),
    "dataset_revision": (None, "an entry has no revision; give that data set as dataset_name"),
}


def check_combinations(
    stage: str, written: Mapping[str, Any], where: Where, given: Collection[str]
) -> None:
    """Check one stage's keys against one another.

    Args:
        stage: the stage.
        written: its keys, each checked by itself.
        where: how messages name a key's place, and with "" the stage's.
        given: names of the objects that Python gave, such as `model`.

    Raises:
        RecipeError: for the first combination that is wrong.
    """
    needs_base = stage != "pretrain" and "model" not in given
    if needs_base and not written.get("model_name_or_path"):
        raise RecipeError(f"{where('')}: stage {stage!r} needs model_name_or_path")
    if stage == "evaluate":
        if not written.get("tasks"):
            raise RecipeError(f"{where('')}: stage 'evaluate' needs tasks, a list of mappings")
        return
    _check_data(stage, written, where, given)
    check_sharing(written, where)
    rewarded = {"reward_funcs", "environment_factory", "rollout_func"} & {*given, *written}
    if stage in ("grpo", "ppo", "rank", "rejection") and not rewarded:
        raise RecipeError(
            f"{where('')}: stage {stage!r} needs reward_funcs, such as [answer], "
            f"[{ADAPTER}NAME] or [my_rewards.py:helpful]"
        )
    if stage == "rejection":
        _check_rejection(written, where)
    _check_guard(stage, written, where, given)
    _check_model(stage, written, where)
    if written.get("fp16") and written.get("bf16"):
        raise RecipeError(f"{where('fp16')}: fp16 and bf16 are both true; write one of the two")
    steps, warmup = written.get("max_steps", -1), written.get("warmup_steps", 0)
    if steps > 0 and warmup >= 1 and warmup > steps:
        raise RecipeError(
            f"{where('warmup_steps')}: warmup_steps {warmup} is more than max_steps {steps}; the "
            "learning rate would never be reached"
        )
    if written.get("packing") and written.get("max_length", 1) is None:
        raise RecipeError(f"{where('max_length')}: packing needs a max_length, found null")


def _check_rejection(written: Mapping[str, Any], where: Where) -> None:
    if not written.get("tasks"):
        raise RecipeError(
            f"{where('')}: stage 'rejection' needs tasks, the held-out questions by which the best "
            "round is chosen; other ones than the final exam's"
        )
    if written.get("num_generations", 2) > 1 and written.get("temperature", 1.0) <= 0:
        raise RecipeError(
            f"{where('temperature')}: temperature: expected more than 0: else all answers are one"
        )
    hint = written.get("hint", "{answer}")
    if hint is not None and "{answer}" not in hint:
        raise RecipeError(f"{where('hint')}: hint: there is no {{answer}} in it; null asks nothing")


def _check_guard(
    stage: str, written: Mapping[str, Any], where: Where, given: Collection[str]
) -> None:
    if stage not in ("grpo", "ppo") or written.get("guard") != "stop":
        return
    if "gold_funcs" not in given and not written.get("gold_funcs"):
        raise RecipeError(
            f"{where('guard')}: guard: stop keeps the best checkpoint by gold, and there is no gold "
            f"check; write gold_funcs: [answer], [{ADAPTER}NAME] or [my_rewards.py:right]"
        )
    if written.get("save_strategy") == "no":
        raise RecipeError(
            f"{where('guard')}: guard: stop keeps the best checkpoint, and save_strategy: no writes "
            "none; write save_steps"
        )
    if written.get("load_best_model_at_end"):
        raise RecipeError(
            f"{where('guard')}: guard: stop and load_best_model_at_end each take another checkpoint; "
            "leave one of the two out"
        )


def _check_data(
    stage: str, written: Mapping[str, Any], where: Where, given: Collection[str]
) -> None:
    if written.get("dataset_name") and written.get("datasets"):
        raise RecipeError(
            f"{where('datasets')}: dataset_name and datasets are both given; TRL would ignore "
            "dataset_name: write one of the two"
        )
    for key, (default, remedy) in OF_ONE_DATA_SET.items() if written.get("datasets") else ():
        value = written.get(key, default)
        if value is not None and value != default:
            raise RecipeError(
                f"{where(key)}: {key} goes with dataset_name and says nothing about datasets; "
                f"{remedy.format(value=value)}"
            )
    named = written.get("dataset_name") or written.get("datasets")
    if not named and "train_dataset" not in given:
        raise RecipeError(f"{where('')}: stage {stage!r} needs dataset_name (or datasets)")


def _check_model(stage: str, written: Mapping[str, Any], where: Where) -> None:
    quantized = [key for key in ("load_in_4bit", "load_in_8bit") if written.get(key)]
    if len(quantized) > 1:
        raise RecipeError(
            f"{where(quantized[1])}: load_in_4bit and load_in_8bit exclude one another"
        )
    if written.get("use_peft", True):
        task, expected = (
            written.get("lora_task_type"),
            "SEQ_CLS" if stage == "reward" else "CAUSAL_LM",
        )
        if task is not None and task != expected:
            raise RecipeError(
                f"{where('lora_task_type')}: lora_task_type must be {expected} for stage "
                f"{stage!r}, found {task}; leave the key out"
            )
        return
    if quantized:
        raise RecipeError(
            f"{where(quantized[0])}: {quantized[0]} with use_peft: false: quantized weights cannot "
            "be trained; leave one of the two out"
        )
    if written.get("start_from") is not None:
        raise RecipeError(
            f"{where('start_from')}: start_from continues an adapter, but use_peft is false; to "
            "train a whole model further, give its folder as model_name_or_path"
        )


def check_references(
    written: Mapping[str, Any], where: Where, earlier: Sequence[str], later: Sequence[str]
) -> None:
    """Check that what a stage starts from, examines or is rewarded by is there before it.

    Args:
        written: the stage's keys.
        where: how messages name a key's place.
        earlier: names of the stages before it.
        later: names of itself and of the stages after it.

    Raises:
        RecipeError: for a name that is no earlier stage, no path and no Hub id.
    """
    references = [("start_from", written.get("start_from"))]
    references += [("of", name) for name in written.get("of") or () if name != "base"]
    rewards = [
        (key, name) for key in ("reward_funcs", "gold_funcs") for name in written.get(key) or ()
    ]
    references += [
        (key, name.removeprefix(ADAPTER))
        for key, name in [*rewards, ("value_start_from", written.get("value_start_from"))]
        if isinstance(name, str) and name.startswith(ADAPTER)
    ]
    for key, name in references:
        if name is None or name in earlier:
            continue
        if name in later:
            raise RecipeError(
                f"{where(key)}: {key} names {name!r}, which does not come before this stage; move "
                "it up, or write ./… for a folder"
            )
        if not _is_place(name):
            known = f"; earlier stages: {', '.join(earlier)}" if earlier else ""
            raise RecipeError(
                f"{where(key)}: {key} names {name!r}, which is no earlier stage, no folder and no "
                f"Hub id (OWNER/NAME){did_you_mean(name, earlier, known)}"
            )


def _is_place(name: str) -> bool:
    """Whether a reference is a path or a Hub id rather than a stage's name."""
    if re.search(r"[/\\]", name) or name.startswith("~"):
        return True
    try:
        return bool(name) and Path(name).is_dir()
    except (OSError, ValueError):
        return False
