"""Training by TRL alone, as a script of one's own would: what ours is measured beside.

Nothing of the toolkit is imported here, so that a process of a bare script starts as fast as one.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


def settings(stage: str, *, batch: int, steps: int, completion: int) -> dict[str, Any]:
    """What both are given, in TRL's words.

    Args:
        stage: the stage.
        batch: sequences, pairs or completions of a step.
        steps: how many steps.
        completion: tokens of a completion at most, where they are sampled.
    """
    found: dict[str, Any] = {
        "max_steps": steps, "per_device_train_batch_size": batch, "save_strategy": "no",
        "logging_steps": 1, "report_to": "none", "learning_rate": 1e-5, "seed": 0,
        "gradient_accumulation_steps": 1,
    }  # fmt: skip
    if stage in ("grpo", "ppo"):
        found["max_completion_length"] = completion
    if stage == "grpo":
        found |= {"num_generations": min(8, batch), "beta": 0.0}
    if stage == "ppo":
        found |= {"num_iterations": 1, "beta": 0.0}
    return found


def length_reward(completions: list[Any], completion_ids: list[Any], **_: Any) -> list[float]:
    """A reward that costs nothing and differs."""
    return [sum(ids) % 97 / 97 for ids in completion_ids]


def trainer(
    stage: str, base: Path, words: Any, rows: Any, given: dict[str, Any], **loading: Any
) -> Any:
    """TRL's trainer of a stage, with LoRA of rank 16 on every linear layer.

    Args:
        stage: sft, reward, dpo or grpo.
        base: folder of the base.
        words: its tokenizer.
        rows: the data set.
        given: of the stage's config.
        **loading: for `from_pretrained`.
    """
    import trl
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    judged = stage == "reward"
    lora = LoraConfig(
        r=16, lora_alpha=32, target_modules="all-linear",
        task_type="SEQ_CLS" if judged else "CAUSAL_LM",
        modules_to_save=["score"] if judged else None,
    )  # fmt: skip
    given = {"disable_tqdm": True} | given
    rest: dict[str, Any] = {"train_dataset": rows, "processing_class": words, "peft_config": lora}
    if judged:
        judge = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, **loading)
        judge.config.pad_token_id = words.pad_token_id
        return trl.RewardTrainer(judge, trl.RewardConfig(**given), **rest)
    model = AutoModelForCausalLM.from_pretrained(base, **loading)
    if stage == "sft":
        return trl.SFTTrainer(model, trl.SFTConfig(**given), **rest)
    if stage == "dpo":
        return trl.DPOTrainer(model, args=trl.DPOConfig(**given), **rest)
    reward: Any = [length_reward]
    return trl.GRPOTrainer(model, reward_funcs=reward, args=trl.GRPOConfig(**given), **rest)


def packed(rows: Rows, words: Any, batch: int, length: int) -> tuple[Any, int]:
    """The rows of every step in TRL's packs, which hold what the step would hold without them.

    TRL packs over all rows, so that a step would see others than the step of another stack.

    Args:
        rows: prompts and completions, as text.
        words: the tokenizer.
        batch: rows of a step.
        length: tokens of a pack at most.

    Returns:
        The packs, and how many there are in a step: in every one as many, or it is an error.
    """
    from datasets import Dataset, concatenate_datasets
    from trl import pack_dataset

    def row(prompt: str, completion: str) -> dict[str, Any]:
        asked = words(prompt).input_ids
        ids = words(prompt + completion + words.eos_token).input_ids
        return {"input_ids": ids, "labels": [-100] * len(asked) + ids[len(asked) :]}

    steps = [
        pack_dataset(Dataset.from_list([row(**each) for each in rows[at : at + batch]]), length)
        for at in range(0, len(rows), batch)
    ]
    (count,) = {len(step) for step in steps}
    return concatenate_datasets(steps), count


def versions() -> str:
    """Of the libraries that do the work."""
    names = ("torch", "transformers", "trl", "peft", "bitsandbytes")
    return ", ".join(f"{name} {version(name)}" for name in names)
