"""Records one update of TRL 1.12's own PPO on a tiny batch in float64: `ppo_trl_1_12.json`.

TRL 1.12 is the last series that ships a PPO. It needs an environment of its own:

    python3 -m venv /tmp/venv_trl112
    /tmp/venv_trl112/bin/pip install trl==1.12.0 torch==2.13.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0
    OMP_NUM_THREADS=1 /tmp/venv_trl112/bin/python tests/golden/make_ppo_trl_1_12.py

`PPOTrainer.train` runs unchanged. Only `batch_generation` is replaced, so that the completions are
fixed: it returns them with the policy's own logits, as generation would. The tensors are read from
the local variables of `train`, by a trace function that stops at the lines named in `STOPS`.
"""

import importlib
import inspect
import json
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    set_seed,
)

# TRL 1.16, which the project's environment holds, has no such module.
ppo: Any = importlib.import_module("trl.experimental.ppo.ppo_trainer")
PPOConfig: Any = importlib.import_module("trl.experimental.ppo").PPOConfig

TARGET = Path(__file__).with_name("ppo_trl_1_12.json")
PAD, EOS, VOCABULARY, LENGTH = 0, 1, 12, 8
# Ended early; ended by the last token; cut off; ended at once; ended one before the last; ended early.
COMPLETIONS = [
    [5, 9, 2, EOS],
    [3, 3, 7, 4, 10, 6, 8, EOS],
    [11, 2, 5, 5, 9, 4, 3, 7],
    [EOS],
    [6, 8, 2, 10, 4, 11, EOS],
    [9, 7, EOS],
]
PROMPTS = [[2 + (row + column) % 10 for column in range(3)] for row in range(len(COMPLETIONS))]
SETTINGS = {
    "learning_rate": 0.02,
    "per_device_train_batch_size": len(COMPLETIONS),
    "gradient_accumulation_steps": 1,
    "num_mini_batches": 2,
    "num_ppo_epochs": 2,
    "total_episodes": len(COMPLETIONS),
    "response_length": LENGTH,
    "stop_token": "eos",
    "temperature": 1.0,
    "missing_eos_penalty": 1.0,
    "kl_coef": 0.1,
    "kl_estimator": "k1",
    "whiten_rewards": False,
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "vf_coef": 0.1,
    "gamma": 0.9,
    "lam": 0.8,
    "seed": 0,
}
# The line of `train` before which the variables are read, and their names.
STOPS = {
    "if self.args.missing_eos_penalty is not None:": ["scores"],
    "advantages = masked_whiten(advantages, ~padding_mask)": ["advantages", "returns"],
    "for ppo_epoch_idx in range(args.num_ppo_epochs):": [
        "responses", "sequence_lengths", "padding_mask", "padding_mask_p1", "logprobs",
        "ref_logprobs", "kl", "scores", "values", "rewards", "advantages",
    ],
    "gradient_accumulation_idx += 1": [
        "ppo_epoch_idx", "minibatch_idx", "micro_batch_inds", "new_logprobs", "vpred", "ratio",
        "entropy", "pg_loss", "vf_loss", "loss", "pg_clipfrac", "vf_clipfrac", "approxkl",
    ],
}  # fmt: skip
RAW = {"scores": "scores_before_penalty", "advantages": "advantages_before_whitening"}


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": PAD, "<eos>": EOS} | {f"w{index}": index for index in range(2, VOCABULARY)}
    core = Tokenizer(models.WordLevel(words, unk_token="w2"))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def model(seed: int, kind: Any = LlamaForCausalLM) -> Any:
    """A random Llama of one layer in float64; with a score head where `kind` has one."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"num_labels": 1}  # of every config, though Llama's does not name it
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
        initializer_range=0.4,
        **settings,
    )
    return kind(config).double()


def fixed_generation(policy, queries, _batch_size, pad_token_id, generation_config):
    """The completions above, with the policy's logits for them, in place of sampling."""
    rows = [row + [PAD] * (LENGTH - len(row)) for row in COMPLETIONS]
    whole = torch.cat([queries, torch.tensor(rows)], dim=1)
    logits = ppo.forward(policy, whole, pad_token_id).logits[:, queries.shape[1] - 1 : -1]
    return whole, logits / generation_config.temperature


def plain(value: Any) -> Any:
    """A copy as JSON holds it; later lines of `train` write into some of the tensors."""
    return value.tolist() if hasattr(value, "tolist") else value


def record(trainer: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Runs `trainer.train()` and returns its tensors: of the rollout, and of each minibatch."""
    code = type(trainer).train.__code__
    lines, first = inspect.getsourcelines(type(trainer).train)
    stops = {first + at: line.strip() for at, line in enumerate(lines) if line.strip() in STOPS}
    if sorted(stops.values()) != sorted(STOPS):
        raise RuntimeError(f"`PPOTrainer.train` has changed; found only {sorted(stops.values())}")
    rollout: dict[str, Any] = {}
    minibatches: list[dict[str, Any]] = []

    def local_trace(frame: FrameType, event: str, _):
        if event == "line" and frame.f_lineno in stops:
            stop = stops[frame.f_lineno]
            found = {name: plain(frame.f_locals[name]) for name in STOPS[stop]}
            if "micro_batch_inds" in found:
                minibatches.append(found)
            elif "responses" not in found:
                rollout.update({RAW.get(name, name): found[name] for name in found})
            elif "responses" not in rollout:  # the line is passed again after each epoch
                rollout.update(found)
        return local_trace

    before = sys.gettrace()
    sys.settrace(lambda frame, *_: local_trace if frame.f_code is code else None)
    try:
        trainer.train()
    finally:
        sys.settrace(before)
    return rollout, minibatches


def build(directory: str) -> Any:
    return ppo.PPOTrainer(
        args=PPOConfig(
            output_dir=directory,
            **SETTINGS,
            num_sample_generations=0,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        processing_class=tokenizer(),
        model=model(1),
        ref_model=model(2),
        reward_model=model(3, LlamaForSequenceClassification),
        value_model=model(4, LlamaForSequenceClassification),
        train_dataset=Dataset.from_dict({"input_ids": PROMPTS}),
    )


def main() -> None:
    torch.set_num_threads(1)
    set_seed(0)
    ppo.batch_generation = fixed_generation
    with tempfile.TemporaryDirectory() as directory:
        rollout, minibatches = record(build(directory))
    if not any(found["pg_clipfrac"] and found["vf_clipfrac"] for found in minibatches):
        raise RuntimeError("no minibatch clips both losses: the record would not test the clipping")
    packages = ("trl", "torch", "transformers", "peft", "accelerate", "numpy")
    whole = {
        "description": "One update of TRL 1.12's PPOTrainer on six fixed completions, in float64. "
        "`rollout`: tensors of shape (6,) or (6, 8) before the first epoch; `minibatches`: each of the "
        "2 epochs x 2 minibatches of 3 rows (`micro_batch_inds` into the rollout), in order, with an "
        "optimizer step after each. Names are the local variables of `PPOTrainer.train`; "
        "`scores_before_penalty` and `advantages_before_whitening` are what `scores` and `advantages` "
        "hold before those lines. `padding_mask` is True after the last real token, `padding_mask_p1` "
        "from one token later: TRL keeps the value there, and gives the score there.",
        "provenance": {
            "command": "python tests/golden/make_ppo_trl_1_12.py",
            "python": platform.python_version(),
            "packages": {name: version(name) for name in packages},
        },
        "settings": SETTINGS,
        "rollout": rollout,
        "minibatches": minibatches,
    }
    TARGET.write_text(pretty(whole) + "\n", encoding="utf-8")


def pretty(value: Any, indent: str = "") -> str:
    """JSON with a row of numbers on one line."""
    if isinstance(value, dict):
        parts = [f"{json.dumps(key)}: {pretty(held, indent + ' ')}" for key, held in value.items()]
    elif isinstance(value, list) and value and isinstance(value[0], dict | list):
        parts = [pretty(held, indent + " ") for held in value]
    else:
        return json.dumps(value)
    ends = "{}" if isinstance(value, dict) else "[]"
    return f"{ends[0]}\n{indent} " + f",\n{indent} ".join(parts) + f"\n{indent}{ends[1]}"


if __name__ == "__main__":
    main()
