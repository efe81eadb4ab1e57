"""From a stage to what others load: each kind of artefact, by plain transformers and PEFT."""

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import toolkit
from tests import tiny
from tests.preferences import PAIRS
from tests.unit.test_models_adapters import PROBE, saved
from toolkit.artifacts.inputs import model_identity
from toolkit.models.load import load_tokenizer
from toolkit.models.reward import load_reward_model

KEYS = {"lora_r": 4, "max_steps": 2, "learning_rate": 1e-2, "report_to": "none"}
ROLLOUTS = {
    "per_device_train_batch_size": 4, "max_completion_length": 8,
    "reward_funcs": [{"name": "length", "target": 4}],
    "train_dataset": [{"prompt": row["messages"][:1]} for row in tiny.ROWS[:8]],
}  # fmt: skip


def logits(model):
    with torch.no_grad():
        return torch.cat([model(torch.tensor([ids])).logits[0] for ids in PROBE])


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_adapters_are_switched_on_one_base(head, tiny_base, untied_base, tmp_path):
    """Each gives what it gives alone, in any order, with rows of added tokens of its own."""
    base = tiny_base if head == "tied" else untied_base
    kinds = {
        "all": {},
        "attention": {"lora_target_modules": ["q_proj"]},
        "dora": {"use_dora": True},
    }
    for name, keys in kinds.items():
        saved(base, tmp_path / name, **keys)
    alone = {
        name: logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / name)) for name in kinds
    }
    assert not torch.allclose(alone["all"], alone["attention"], atol=0.1)
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "all", adapter_name="all")
    for name in ("attention", "dora"):
        model.load_adapter(tmp_path / name, adapter_name=name)
    for name in ("dora", "all", "attention", "all", "dora"):
        model.set_adapter(name)
        assert torch.allclose(logits(model), alone[name], atol=1e-5), name


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """One base, and every stage that trains an adapter over it, two steps each."""
    root = tmp_path_factory.mktemp("stages")
    base = tiny.save_base(root / "base")
    before = model_identity(str(base))
    toolkit.sft(
        model_name_or_path=str(base), output_dir=root / "sft", train_dataset=tiny.ROWS, **KEYS
    )
    later = {
        "reward": {"train_dataset": PAIRS},
        "dpo": {"train_dataset": PAIRS},
        "grpo": ROLLOUTS | {"num_generations": 2},
        "ppo": ROLLOUTS,
    }
    for stage, keys in later.items():
        keys = {"model_name_or_path": str(base), "start_from": str(root / "sft")} | KEYS | keys
        getattr(toolkit, stage)(output_dir=root / stage, **keys)
    assert model_identity(str(base)) == before
    return root


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "dpo", "grpo", "ppo"])
def test_a_policy_is_merged(stage, stages, tmp_path):
    found = toolkit.merge(stages / stage, tmp_path / "out").metrics
    assert found["effect"] > 1e-3
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    adapted = AutoPeftModelForCausalLM.from_pretrained(stages / stage)
    assert torch.allclose(logits(merged), logits(adapted), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["reward", "ppo/value"])
def test_a_scalar_adapter_is_merged(stage, stages, tmp_path):
    toolkit.merge(stages / stage, tmp_path / "out")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    words = load_tokenizer(tmp_path / "out")
    ids = words.apply_chat_template(tiny.ROWS[0]["messages"], tokenize=True)["input_ids"]
    with torch.no_grad():
        score = float(merged(torch.tensor([ids])).logits)
    if stage == "reward":
        assert score == pytest.approx(
            load_reward_model(str(stages / stage))[0].score([ids])[0], abs=1e-5
        )
