"""How a model is used without this toolkit: code for its card that runs as it is printed."""

import json
from pathlib import Path
from typing import Any

from toolkit.artifacts.manifest import read_json

CHAT = '[{"role": "user", "content": "Who are you?"}]'
JUDGED = """[
    {"role": "user", "content": "What is two and three?"},
    {"role": "assistant", "content": "Two and three is five."},
]"""
GENERATED = """output = model.generate(**inputs, {settings}max_new_tokens=256)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""
# a base may fill up with its stop token, which the pooling of transformers would then pass over
UNFILLED = "model.config.get_text_config().pad_token_id = None  # one text: its last token is read"


def code_of(folder: Path, repo: str, base: str) -> str:
    """Python that loads a model from a repository and lets it answer, or score an answer.

    Args:
        folder: of the adapter or model.
        repo: where it is loaded from.
        base: where the tokenizer comes from, if none is beside the adapter.
    """
    scores = is_classifier(folder)
    is_adapter = (folder / "adapter_config.json").is_file()
    kind = "SequenceClassification" if scores else "CausalLM"
    auto = f"AutoPeftModelFor{kind}" if is_adapter else f"AutoModelFor{kind}"
    own = is_adapter and not scores and (folder / "generation_config.json").is_file()
    names = ["AutoTokenizer", *(["GenerationConfig"] if own else []), *([] if is_adapter else [auto])]  # fmt: skip
    words = repo if (folder / "tokenizer_config.json").is_file() or not base else base
    lines = [
        *(["import torch"] if scores else []),
        *([f"from peft import {auto}"] if is_adapter else []),
        f"from transformers import {', '.join(sorted(names))}",
        "",
        f"model = {auto}.from_pretrained({quoted(repo)}{', num_labels=1' if scores else ''})",
        f"tokenizer = AutoTokenizer.from_pretrained({quoted(words)})",
    ]
    if scores:
        return "\n".join([*lines, UNFILLED, "", *scoring(has_template(folder))])
    if own:  # the stop tokens that were trained: PEFT takes the base's
        lines.append(f"settings = GenerationConfig.from_pretrained({quoted(repo)})")
    settings = "generation_config=settings, " if own else ""
    return "\n".join([*lines, "", *asking(has_template(folder)), GENERATED.format(settings=settings)])  # fmt: skip


def asking(in_chat: bool) -> list[str]:
    """Lines that make `inputs` for an answer."""
    if not in_chat:
        return ['inputs = tokenizer("Once upon a time", return_tensors="pt").to(model.device)']
    return [
        f"messages = {CHAT}",
        "inputs = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
        ").to(model.device)",
    ]


def scoring(in_chat: bool) -> list[str]:
    """Lines that print the score of an answer."""
    whole = ['text = "What is two and three? Five." + tokenizer.eos_token']
    if in_chat:  # a template may write on behind the token that ends the answer
        whole = [
            f"messages = {JUDGED}",
            "text = tokenizer.apply_chat_template(messages, tokenize=False).rstrip()",
        ]
    return [
        *whole,
        'inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt").to(model.device)',
        "with torch.no_grad():",
        "    print(model(**inputs).logits[0, 0].item())",
    ]


def has_template(folder: Path) -> bool:
    """Whether a tokenizer with a chat template lies in a folder."""
    written = read_json(folder / "tokenizer_config.json") or {}
    return (folder / "chat_template.jinja").is_file() or bool(written.get("chat_template"))


def is_classifier(folder: Path) -> bool:
    """Whether a model gives scores in place of words."""
    adapter: dict[str, Any] = read_json(folder / "adapter_config.json") or {}
    if adapter.get("task_type"):
        return adapter["task_type"] == "SEQ_CLS"
    kinds = (read_json(folder / "config.json") or {}).get("architectures") or [""]
    return str(kinds[0]).endswith("ForSequenceClassification")


def quoted(text: str) -> str:
    """A text as Python writes it, in double quotes."""
    return json.dumps(text, ensure_ascii=False)
