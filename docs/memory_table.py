"""The table of docs/memory.md, counted on models without memory: `python docs/memory_table.py`."""

import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Qwen2Config

from toolkit.models.heads import add_head, add_scalar_heads
from toolkit.models.switching import adapter_weights
from toolkit.models.value import VALUE, add_value_adapter

RANK = 16
# Qwen2.5's config.json, as far as it counts parameters
SHAPES = {
    "0.5B": (896, 24, 14, 2, 4864, 151936, True),
    "1.5B": (1536, 28, 12, 2, 8960, 151936, True),
    "7B": (3584, 28, 28, 4, 18944, 152064, False),
}
BFLOAT16, FLOAT32 = 2, 4
ADAM = 2 * FLOAT32
# Bytes per parameter. An adapter is float32, with a float32 gradient. A full model that is trained in
# mixed precision: bfloat16 weight and gradient, float32 weight and Adam's (Rajbhandari et al., 2020).
TRAINED_ADAPTER = 2 * FLOAT32 + ADAM
TRAINED_MODEL = 2 * BFLOAT16 + FLOAT32 + ADAM


def config(name: str) -> Qwen2Config:
    """The shape of a Qwen2.5 base."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
             "intermediate_size", "vocab_size", "tie_word_embeddings")  # fmt: skip
    return Qwen2Config(**dict(zip(names, SHAPES[name], strict=True)), pad_token_id=0, num_labels=1)


def roles(model: PeftModel) -> dict[str, int]:
    """Parameters of the base and of PPO's roles, each counted where it lies in memory."""
    add_scalar_heads(model)
    model.add_adapter("ref", model.peft_config["default"])
    add_value_adapter(model)
    model.add_adapter("reward", model.peft_config[VALUE])
    add_head(model, "reward")
    heads = dict(model.scalar_heads.named_parameters())  # pyright: ignore
    found = {}
    for role, adapter in (("policy", "default"), ("value", VALUE), ("reference", "ref"), ("reward", "reward")):  # fmt: skip
        weights = {id(weight): weight for weight in adapter_weights(model, adapter).values()}
        head = heads.get(f"{adapter}.weight")
        found[role] = sum(w.numel() for w in weights.values()) + (
            0 if head is None else head.numel()
        )
    return {"base": sum(w.numel() for w in model.parameters()) - sum(found.values())} | found


def row(name: str) -> tuple[list[float], list[float]]:
    """Of one base: millions of parameters by role, and gigabytes of three ways to hold the roles."""
    lora = LoraConfig(task_type="CAUSAL_LM", r=RANK, target_modules="all-linear")
    with torch.device("meta"):
        causal = AutoModelForCausalLM.from_config(config(name))
        judge = AutoModelForSequenceClassification.from_config(config(name)).num_parameters()
        full = causal.num_parameters()
        counted = roles(get_peft_model(causal, lora))  # pyright: ignore[reportArgumentType]
    assert counted["base"] == full
    trained = (counted["policy"] + counted["value"]) * TRAINED_ADAPTER
    still = (counted["reference"] + counted["reward"]) * FLOAT32
    ways = [
        full * BFLOAT16 + trained + still,
        2 * (full + judge) * BFLOAT16 + trained,
        (full + judge) * (TRAINED_MODEL + BFLOAT16),
    ]
    return [number / 1e6 for number in counted.values()], [size / 1e9 for size in ways]


def table() -> str:
    """The table as Markdown."""
    lines = [
        "| base | its parameters | policy | value | reference | reward | one base | four bases, adapters trained | four models, two trained |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in SHAPES:
        millions, sizes = row(name)
        counts = [f"{number:,.1f} M" for number in millions]
        cells = [f"Qwen2.5 {name}", *counts, *(f"{size:.1f} GB" for size in sizes)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(f"{table()}\n")
