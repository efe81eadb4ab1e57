"""A tiny run to chat with and to serve: a base that chats, and two adapters over it."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForCausalLM

from tests import tiny

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}"
    "{{ eos_token if m['role'] == 'assistant' else '' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def save_run(folder: Path) -> Path:
    """A base with a chat template, and a run of two stages over it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.modeling_utils.logger.warning", lambda *_: None)
        return _save(folder)


def _save(folder: Path) -> Path:
    base = tiny.save_base(folder / "base", max_position_embeddings=2048)
    words = tiny.tokenizer()
    words.chat_template = TEMPLATE
    words.save_pretrained(base)
    run = folder / "run"
    for seed, name in enumerate(("sft", "ppo"), 1):
        model = AutoModelForCausalLM.from_pretrained(base)
        config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type=TaskType.CAUSAL_LM)
        adapted = get_peft_model(model, config)
        torch.manual_seed(seed)
        with torch.no_grad():
            for weight in adapted.parameters():
                if weight.requires_grad:
                    weight.copy_(torch.randn_like(weight) * 0.3)
        adapted.save_pretrained(str(run / name))
        words.save_pretrained(run / name)
        (run / name / "stage.json").write_text(json.dumps({"stage": name, "name": name}))
    (run / "recipe.yaml").write_text("stages: [{name: sft}, {name: ppo}, {name: exam}]\n")
    return run
