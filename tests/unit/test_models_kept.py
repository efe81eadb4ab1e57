"""One base for all stages: loaded once, and as it was loaded whenever somebody gets it."""

import gc
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import toolkit
from tests import tiny
from toolkit.models import kept, load
from toolkit.models.as_it_was import AsItWas
from toolkit.models.kept import classifier_over, printed
from toolkit.recipe import recipe_from_keywords

CPU = torch.device("cpu")


def tensor_bytes() -> int:
    """Of all tensors that Python can reach, each storage once."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and not thing.is_meta:
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def pairs():
    return [
        {"prompt": [{"role": "user", "content": f"Question {n}"}],
         "chosen": [{"role": "assistant", "content": f"yes {n}"}],
         "rejected": [{"role": "assistant", "content": f"no, never {n}"}]}
        for n in range(8)
    ]  # fmt: skip


def questions():
    return [{"prompt": [{"role": "user", "content": f"Question {n}"}], "answer": "1"} for n in range(8)]


EVERY_STAGE = """
model_name_or_path: {base}
output_dir: {out}
lora_r: 4
seed: 1
{keys}
stages:
  - {{stage: sft, dataset_name: {rows}/chats.jsonl, max_steps: 2, per_device_train_batch_size: 4,
      lora_modules_to_save: {whole}}}
  - {{stage: reward, start_from: sft, dataset_name: {rows}/pairs.jsonl, max_steps: 2,
      per_device_train_batch_size: 4, logging_steps: 1, learning_rate: 1e-2}}
  - {{stage: dpo, start_from: sft, dataset_name: {rows}/pairs.jsonl, max_steps: 2,
      per_device_train_batch_size: 4, learning_rate: 1e-3}}
  - {{stage: grpo, start_from: sft, dataset_name: {rows}/questions.jsonl, max_steps: 1,
      per_device_train_batch_size: 4, num_generations: 4, max_completion_length: 6, beta: 0.1,
      reward_funcs: ["adapter:reward"], learning_rate: 1e-3, loss_type: grpo}}
  - {{stage: ppo, start_from: sft, dataset_name: {rows}/questions.jsonl, max_steps: 2,
      per_device_train_batch_size: 4, max_completion_length: 6, num_iterations: 1,
      reward_funcs: ["adapter:reward"], value_start_from: "adapter:reward", learning_rate: 1e-3}}
  - {{stage: evaluate, name: exam, of: [base, sft, grpo, ppo], num_generations: 2,
      max_completion_length: 4, reward_funcs: ["adapter:reward"],
      tasks: [{{name: t, dataset_name: {rows}/exam.jsonl}}]}}
"""


def every_stage(tmp_path, base, *, keys="", whole="null", without=()):
    rows = tmp_path / "rows"
    rows.mkdir(exist_ok=True)
    tiny.save_rows(rows / "chats.jsonl", tiny.ROWS)
    tiny.save_rows(rows / "pairs.jsonl", pairs())
    tiny.save_rows(rows / "questions.jsonl", questions())
    tiny.save_rows(rows / "exam.jsonl", [{"question": "1+1?", "answer": "2"}])
    recipe = tmp_path / "every.yaml"
    text = EVERY_STAGE.format(base=base, out=tmp_path / "run", rows=rows, keys=keys, whole=whole)
    recipe.write_text(text)
    return recipe


@pytest.fixture
def watched(monkeypatch):
    """What happens in pipelines: loads from disk, and the base and memory after each stage."""
    seen = {"loads": [], "after": []}
    for auto in (AutoModelForCausalLM, AutoModelForSequenceClassification):

        def counted(name, *args, upstream=auto.from_pretrained, **kwargs):
            seen["loads"].append(str(name))
            return upstream(name, *args, **kwargs)

        monkeypatch.setattr(auto, "from_pretrained", counted)
    give_back = kept.Keeper.give_back

    def noted(self):
        was_lent = self.held is not None and self.held.lent
        give_back(self)
        if was_lent:
            seen["after"].append((self.held.model, printed(self.held.model), tensor_bytes()))
            seen["start"] = self.held.prints

    monkeypatch.setattr(kept.Keeper, "give_back", noted)
    return seen


def test_a_pipeline_loads_its_base_once_and_memory_returns(tmp_path, tiny_base, watched):
    before = tensor_bytes()
    result = toolkit.run(every_stage(tmp_path, tiny_base))
    assert watched["loads"] == [str(tiny_base)]
    assert len(watched["after"]) >= len(result.stages)
    models = {id(model) for model, _, _ in watched["after"]}
    assert len(models) == 1
    plain = AutoModelForCausalLM.from_pretrained(tiny_base)
    for model, prints, size in watched["after"]:
        assert prints == watched["start"]
    print([size - before for _, _, size in watched["after"]])
