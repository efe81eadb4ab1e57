"""The tables of docs/memory.md.

python docs/memory_table.py                  counted, on models without memory
python docs/memory_table.py --measure 0.5B   weighed: PPO takes a step, and four models take one
python docs/memory_table.py --measure 0.5B --way one
"""

import argparse
import gc
import sys
import tempfile
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from toolkit.models.adapters import as_float32
from toolkit.models.heads import add_head, add_scalar_heads
from toolkit.models.switching import adapter_weights
from toolkit.models.value import VALUE, add_value_adapter
from toolkit.stages.ppo_config import PPOConfig
from toolkit.stages.ppo_trainer import PPOTrainer
from toolkit.stages.resources import peak_rss

RANK = 16
# Qwen2.5's config.json, as far as it counts parameters
SHAPES = {
    "0.5B": (896, 24, 14, 2, 4864, 151936, True),
    "1.5B": (1536, 28, 12, 2, 8960, 151936, True),
    "7B": (3584, 28, 28, 4, 18944, 152064, False),
    "small": (256, 4, 4, 2, 1024, 8192, True),  # what a test weighs in seconds
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


def lora() -> LoraConfig:
    """The adapter of every role."""
    return LoraConfig(task_type="CAUSAL_LM", r=RANK, target_modules="all-linear")


def row(name: str) -> tuple[list[float], list[float]]:
    """Of one base: millions of parameters by role, and gigabytes of three ways to hold the roles."""
    with torch.device("meta"):
        causal = AutoModelForCausalLM.from_config(config(name))
        judge = AutoModelForSequenceClassification.from_config(config(name)).num_parameters()
        full = causal.num_parameters()
        counted = roles(get_peft_model(causal, lora()))  # pyright: ignore[reportArgumentType]
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
    for name in (name for name in SHAPES if name != "small"):
        millions, sizes = row(name)
        counts = [f"{number:,.1f} M" for number in millions]
        cells = [f"Qwen2.5 {name}", *counts, *(f"{size:.1f} GB" for size in sizes)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


# What is in memory once a step was taken.


def held() -> int:
    """Bytes of every tensor that Python can reach, each storage once."""
    gc.collect()
    found: dict[int, int] = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and not thing.is_meta:
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def words(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of numbered words."""
    known = {f"w{index}": index for index in range(min(size, 100))}
    core = Tokenizer(models.WordLevel(known, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="w1", pad_token="w2")


def one_base(name: str, folder: str) -> Any:
    """PPO with its four roles as adapters over one bfloat16 base, after a step; what holds it all."""
    shape = config(name)
    base = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16)
    policy: Any = get_peft_model(base, lora())
    as_float32(policy)
    args = PPOConfig(
        output_dir=folder, use_cpu=True, bf16=False, per_device_train_batch_size=1, max_steps=1,
        num_iterations=1, max_completion_length=4, beta=0.05, save_strategy="no", report_to=[],
        disable_tqdm=True, logging_steps=10,
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": f"w{index}"} for index in range(4)])

    def reward(completions: list[str], **columns: Any) -> list[float]:
        return [float(len(text)) for text in completions]

    trainer = PPOTrainer(
        policy, args=args, train_dataset=rows, processing_class=words(shape.vocab_size),
        reward_funcs=[reward],
    )  # fmt: skip
    policy.add_adapter("reward", policy.peft_config[VALUE])
    add_head(policy, "reward")
    # the reward model's weights are loaded in float32
    for weight in adapter_weights(policy, "reward").values():
        weight.data, weight.requires_grad = weight.data.float(), False
    trainer.train()
    # transformers lets go of the gradients after a step; at its end they were there
    for weight in (weight for weight in policy.parameters() if weight.requires_grad):
        weight.grad = torch.zeros_like(weight)
    return trainer


def four_models(name: str) -> Any:
    """Policy and critic trained in full in mixed precision, reference and reward model beside them."""
    shape = config(name)
    kinds = (AutoModelForCausalLM, AutoModelForSequenceClassification)
    roles = [kind.from_config(shape, dtype=torch.bfloat16) for kind in kinds * 2]
    ids = torch.tensor([[1, 2, 3, 4]])
    masters, optimizers = [], []
    for model in roles[:2]:
        model(ids).logits.float().mean().backward()
        own = [weight.detach().float().requires_grad_() for weight in model.parameters()]
        optimizer = torch.optim.AdamW(own)
        for master, weight in zip(own, model.parameters(), strict=True):
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            master.grad = weight.grad.float()
        optimizer.step()
        optimizer.zero_grad()
        masters.append(own)
        optimizers.append(optimizer)
    return roles, masters, optimizers


def weigh(name: str, way: str) -> str:
    """One line: what tensors hold after a step, beside what was counted, and the process's peak."""
    before = held()
    with tempfile.TemporaryDirectory() as folder:
        kept = one_base(name, folder) if way == "one" else four_models(name)
        found = held() - before
    del kept
    counted = row(name)[1][0 if way == "one" else 2] * 1e9
    return (
        f"Qwen2.5 {name}, {WAYS[way]}: {found / 1e9:.3f} GB in tensors after a step, counted "
        f"{counted / 1e9:.3f} GB ({found / counted - 1:+.1%}); peak of the process "
        f"{peak_rss() / 1e9:.2f} GB"
    )


WAYS = {"one": "one base", "four": "four models, two trained"}


if __name__ == "__main__":
    asked = argparse.ArgumentParser()
    asked.add_argument("--measure", choices=list(SHAPES))
    asked.add_argument("--way", choices=list(WAYS), action="append")
    given = asked.parse_args()
    if given.measure is None:
        sys.stdout.write(f"{table()}\n")
    for each in given.way or WAYS if given.measure else ():
        sys.stdout.write(f"{weigh(given.measure, each)}\n")
        sys.stdout.flush()
