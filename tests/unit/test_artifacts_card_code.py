"""The code that a model card prints is run as it is printed: it answers, or scores, as was trained."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GenerationConfig

import toolkit
from tests import tiny
from toolkit.artifacts.card import About, model_card
from toolkit.models.reward import load_reward_model

SHORT: dict[str, Any] = {
    "max_steps": 2, "learning_rate": 1e-2, "per_device_train_batch_size": 2, "report_to": "none",
    "lora_r": 2, "save_strategy": "no",
}  # fmt: skip


def printed_code(folder: Path, *more: str) -> str:
    """What the card's code prints, where `me/thing` is the folder and so is its base."""
    text = model_card(folder, About("me/thing"))
    (code,) = re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)
    place = folder.parent / "elsewhere"
    (place / "me").mkdir(parents=True, exist_ok=True)
    (place / "me" / "thing").symlink_to(folder)
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([code, *more])], cwd=place, capture_output=True, text=True,
        check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_policy_answers_and_stops_as_it_was_trained(tiny_base, chats, tmp_path):
    result = toolkit.sft(
        model_name_or_path=str(tiny_base), dataset_name=str(chats), output_dir=str(tmp_path / "sft"),
        **SHORT,
    )  # fmt: skip
    said = printed_code(
        result.output_dir, 'print("#", settings.eos_token_id, len(tokenizer), output.shape[1])'
    )
    _, _, facts = said.rpartition("# ")
    trained = GenerationConfig.from_pretrained(result.output_dir).eos_token_id
    assert facts.startswith(f"{trained} ")
    loaded: Any = toolkit.load(result.output_dir)
    model, tokenizer = loaded
    messages = [{"role": "user", "content": "Who are you?"}]
    inputs: Any = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    torch.manual_seed(0)
    output = model.generate(**inputs, max_new_tokens=256)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert said.startswith(answer)


def test_a_reward_model_scores_as_it_was_trained(tiny_base, tmp_path):
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Question {index}?"}],
            "chosen": [{"role": "assistant", "content": f"Answer {index}."}],
            "rejected": [{"role": "assistant", "content": "No."}],
        }
        for index in range(12)
    ]
    pairs = tiny.save_rows(tmp_path / "pairs.jsonl", rows)
    result = toolkit.reward(
        model_name_or_path=str(tiny_base), dataset_name=str(pairs),
        output_dir=str(tmp_path / "reward"), **SHORT,
    )  # fmt: skip
    score = float(printed_code(result.output_dir))
    model, tokenizer = load_reward_model(str(result.output_dir))
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is two and three?"}],
        add_generation_prompt=True, tokenize=False,
    )  # fmt: skip
    text = f"{prompt}Two and three is five.{tokenizer.eos_token}"
    (trained,) = model.score([tokenizer(text, add_special_tokens=False)["input_ids"]])
    assert score == pytest.approx(trained, abs=1e-5)
    (other,) = model.score([tokenizer(text + "\n", add_special_tokens=False)["input_ids"]])
    assert score != pytest.approx(other, abs=1e-5), "the place that is read must matter here"


def test_an_adapter_of_others_without_tokenizer_and_template(tiny_base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(tmp_path / "theirs")
    written = tmp_path / "theirs" / "adapter_config.json"
    settings = json.loads(written.read_text())
    written.write_text(json.dumps(settings | {"base_model_name_or_path": "base"}))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "base").symlink_to(tiny_base)
    assert printed_code(tmp_path / "theirs")


def test_a_whole_model_brings_its_own_settings(tiny_base, tmp_path):
    text = model_card(tiny_base, About("me/thing"))
    assert "from transformers import AutoModelForCausalLM, AutoTokenizer" in text
    assert "GenerationConfig" not in text
    folder = tmp_path / "whole"
    folder.symlink_to(tiny_base)
    assert printed_code(folder)
