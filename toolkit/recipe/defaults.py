"""The defaults that differ from upstream's, each because LoRA or correctness asks for it."""

from collections.abc import Mapping
from typing import Any

from toolkit.recipe.keys import TRAINING, keys_of

ADAPTED = tuple(stage for stage in TRAINING if stage != "pretrain")

# TRL's rates for DPO and GRPO are those of full fine-tuning
LEARNING_RATES = {
    "sft": 2e-4,
    "reward": 1e-4,
    "dpo": 1e-5,
    "grpo": 1e-5,
    "ppo": 1e-5,
    "rejection": 2e-4,
}


def defaults_of(stage: str, written: Mapping[str, Any]) -> dict[str, Any]:
    """Our defaults that are in force and differ from upstream's.

    Args:
        stage: the stage.
        written: what the recipe gives; it wins. With `use_peft: false` upstream's rates stay, and
            its float32 too: a bf16 weight cannot take steps of full fine-tuning's size.
    """
    ours: dict[str, Any] = {}
    if stage != "pretrain" and (stage not in TRAINING or written.get("use_peft", True)):
        ours["dtype"] = "auto"
    if stage in ("sft", "rejection"):
        ours["assistant_only_loss"] = True
    if stage == "reward":
        ours["center_rewards_coefficient"] = 0.01  # only differences of rewards are learnt without
    if stage in ("grpo", "ppo"):
        ours["disable_dropout"] = True  # with it, a policy's ratio to itself is not 1
    if stage == "ppo":
        ours |= {"num_generations": 1, "beta": 0.05, "num_iterations": 4}
    if written.get("push_to_hub"):
        ours |= {"hub_private_repo": True, "hub_strategy": "end"}  # what is proved, for you alone
    if stage in ADAPTED:
        ours["use_peft"] = True
        if written.get("use_peft", True):
            ours["learning_rate"] = LEARNING_RATES[stage]
            # an adapter that is continued brings its own
            if written.get("start_from") is None:
                ours["lora_target_modules"] = "all-linear"
    known = keys_of(stage)
    return {
        key: value
        for key, value in ours.items()
        if key not in written and known[key].default != value
    }
