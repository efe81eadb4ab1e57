"""From a stage to what others load: trained, loaded by plain transformers and PEFT, verified, merged.

Each kind of artefact gives, loaded with nothing of this project, the numbers that the model in memory
gave of the probe when it was saved; `verify` passes; and its merged model gives them once more.
"""

import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
)

import toolkit
from tests import tiny, tiny_ppo
from tests.closeness import assert_close
from tests.preferences import PAIRS
from tests.unit.test_models_adapters import PROBE, saved
from toolkit.artifacts.inputs import model_identity
from toolkit.models.chatml import prepare_tokenizer
from toolkit.models.load import keep_unpacked
from toolkit.models.vllm_adapter import vllm_obstacles, vllm_rank
from toolkit.verification.verify import verify

# what PEFT says when it puts an adapter on one of two tied matrices, here to be merged
pytestmark = [
    tiny_ppo.quiet,
    pytest.mark.filterwarnings("ignore:Model .*tie_word_embeddings:UserWarning"),
]
KEYS = {
    "lora_r": 4, "max_steps": 2, "learning_rate": 1e-2, "lr_scheduler_type": "constant",
    "report_to": "none",
}  # fmt: skip
ROLLOUTS = {
    "per_device_train_batch_size": 4, "max_completion_length": 8,
    "reward_funcs": [tiny_ppo.odd],
    "train_dataset": [{"prompt": row["messages"][:1]} for row in tiny.ROWS[:8]],
}  # fmt: skip
LATER = {
    "reward": {"train_dataset": PAIRS},
    "dpo": {"train_dataset": PAIRS},
    "grpo": ROLLOUTS | {"num_generations": 2},
    "ppo": ROLLOUTS,
}
WHOLE = {"lora_modules_to_save": ["embed_tokens", "lm_head"]}
FOUR_BIT = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
KINDS = {
    "rows, tied": ("tied", {}),
    "rows, untied": ("untied", {}),
    "no rows": ("chat", {}),
    "DoRA": ("tied", {"use_dora": True}),
    "whole, tied": ("tied", WHOLE),
    "whole, untied": ("untied", WHOLE),
    "QLoRA": ("wide", FOUR_BIT),
}


class Runs:
    """Bases, and runs of two steps over them, each made when a test first asks for it."""

    def __init__(self, root):
        self.root = root

    def base(self, kind):
        """A base whose head is tied or not, that is wide enough for 4 bits, or that knows chats."""
        folder = self.root / f"base {kind}"
        if folder.is_dir():
            return folder
        wide = {"hidden_size": 64, "intermediate_size": 128} if kind == "wide" else {}
        words = tiny.tokenizer()
        if kind == "chat":
            prepare_tokenizer(words, conversational=True)
        wide |= {"tie_word_embeddings": kind != "untied", "vocab_size": len(words)}
        tiny.save_base(folder, **wide)
        words.save_pretrained(folder)
        return folder

    def run(self, name, stage, base, **keys):
        """The folder of a stage, which has left its base as it was."""
        folder = self.root / name
        if not folder.is_dir():
            before = model_identity(str(self.base(base)))
            keys = KEYS | {"model_name_or_path": str(self.base(base))} | keys
            getattr(toolkit, stage)(output_dir=folder, **keys)
            assert model_identity(str(self.base(base))) == before
        return folder

    def sft(self, kind="rows, tied"):
        base, keys = KINDS[kind]
        return self.run(f"sft {kind}", "sft", base, train_dataset=tiny.ROWS, **keys)

    def stage(self, name):
        """SFT, or a stage that continues it."""
        if name == "sft":
            return self.sft()
        return self.run(name, name, "tied", start_from=str(self.sft()), **LATER[name])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("runs"))


def expected_of(folder):
    """What the model in memory gave when it was saved."""
    return json.loads((folder / "proof.json").read_text())["expected"]


@torch.no_grad()
def logits(model, sequences=PROBE):
    return torch.cat([model.eval()(torch.tensor([ids])).logits[0] for ids in sequences])


@torch.no_grad()
def log_probabilities(model, sequences):
    """Of every token, one row after the other."""
    found = []
    for ids in sequences:
        rows = model.eval()(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
        found += [float(row[token]) for row, token in zip(rows, ids[1:], strict=True)]
    return found


def assert_round_trip(folder, out, **quantized):
    """Plain PEFT gives what was in memory; `verify` passes; plain transformers gives it merged."""
    expected = expected_of(folder)
    wanted = [number for row in expected["numbers"] for number in row]
    # bitsandbytes would round to bfloat16 on a CPU that can
    again = keep_unpacked(AutoPeftModelForCausalLM.from_pretrained(folder, **quantized))
    assert_close(log_probabilities(again, expected["probe"]), wanted, tolerance=1e-4)
    findings = list(verify(folder))
    assert [finding.said for finding in findings if not finding.passed] == []
    assert "numbers" in {finding.check for finding in findings}
    assert toolkit.merge(folder, out).metrics["effect"] > 1e-3
    plain = AutoPeftModelForCausalLM.from_pretrained(folder) if quantized else again
    merged = AutoModelForCausalLM.from_pretrained(out)
    assert_close(
        logits(merged, expected["probe"]), logits(plain, expected["probe"]), tolerance=1e-4
    )


def assert_scalars_round_trip(folder, out, probe, wanted):
    """As `assert_round_trip`, of an adapter that scores the last token of each sequence."""
    again = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    assert_close(logits(again, probe), wanted, tolerance=1e-5)
    assert len(set(wanted)) > 1
    toolkit.merge(folder, out)
    merged = AutoModelForSequenceClassification.from_pretrained(out)
    assert_close(logits(merged, probe), wanted, tolerance=1e-5)
    assert all(finding.passed for finding in verify(folder))


@pytest.mark.parametrize(
    "stage",
    ["sft", "ppo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dpo", "grpo"))],
)
def test_a_policy(stage, runs, tmp_path):
    folder = runs.stage(stage)
    assert_round_trip(folder, tmp_path / "out")
    if stage == "ppo":
        expected = expected_of(folder)
        last = [row[-1] for row in expected["values"]]
        assert_scalars_round_trip(folder / "value", tmp_path / "value", expected["probe"], last)


def test_a_reward_adapter(runs, tmp_path):
    folder = runs.stage("reward")
    expected = expected_of(folder)
    wanted = [row[0] for row in expected["numbers"]]
    assert_scalars_round_trip(folder, tmp_path / "out", expected["probe"], wanted)


@pytest.mark.parametrize(
    "kind",
    [name if name == "QLoRA" else pytest.param(name, marks=pytest.mark.slow) for name in KINDS],
)
def test_a_kind_of_adapter(kind, runs, tmp_path):
    quantized = {}
    if kind == "QLoRA":
        four_bit = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        )
        quantized = {"quantization_config": four_bit}
    assert_round_trip(runs.sft(kind), tmp_path / "out", **quantized)


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


def test_transformers_loads_a_reward_adapter_by_itself_or_refuses(runs):
    """Over a base that knows the chat's tokens; a head drawn at random would pass unnoticed."""
    folder = runs.run("reward over chats", "reward", "chat", train_dataset=PAIRS)
    expected = expected_of(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    wanted = [row[0] for row in expected["numbers"]]
    assert_close(logits(model, expected["probe"]), wanted, tolerance=1e-5)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):  # of two labels, by default
        AutoModelForSequenceClassification.from_pretrained(folder)
    with pytest.raises(IndexError):  # it makes no room for the rows of added tokens
        AutoModelForSequenceClassification.from_pretrained(runs.stage("reward"), num_labels=1)


def test_what_vllm_would_take_beside_its_base(runs):
    """By its loader's rules: file, names of tensors, rank; rows and heads have to be merged."""
    folder = runs.sft("no rows")
    assert vllm_obstacles(folder) == []
    assert vllm_rank(folder) == 8
    assert (folder / "chat_template.jinja").is_file()
    assert vllm_obstacles(runs.sft()) == ["it trains rows of added tokens"]
    assert "it trains score whole" in vllm_obstacles(runs.stage("reward"))
