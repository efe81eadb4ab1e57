"""Rollouts by vLLM and by continuous batching: what samples is exactly the policy that learns.

vLLM runs on no machine of ours. In its place stands a server that holds a model of its own, takes in
what TRL sends it, and samples with it; everything between trainer and server is TRL's and ours.
"""

import math
from dataclasses import dataclass, field

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import toolkit
from tests import tiny, tiny_ppo
from toolkit.errors import RecipeError, TrainingError
from toolkit.models import batched
from toolkit.models.chatml import prepare_tokenizer
from toolkit.models.vllm_weights import policy_weights

pytestmark = tiny_ppo.quiet
PROMPTS = [{"prompt": [{"role": "user", "content": f"Question {n}"}]} for n in range(8)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """With a chat template and a pad token of its own, and a row for each of its tokens."""
    folder = tmp_path_factory.mktemp("rollouts") / "base"
    words = tiny.tokenizer()
    prepare_tokenizer(words, conversational=True)
    tiny.save_base(folder, vocab_size=len(words), hidden_size=64, intermediate_size=128)
    words.save_pretrained(folder)
    return folder


@dataclass
class Servers:
    """Every server that was started, and what each was sent."""

    base: object
    sent: list = field(default_factory=list)
    started: list = field(default_factory=list)


@pytest.fixture
def servers(base, monkeypatch):
    """A stand-in for TRL's client of `vllm serve`, with the server behind it."""
    held = Servers(base)

    class Client:
        def __init__(self, base_url, group_port, connection_timeout):
            held.started.append((base_url, group_port))
            self.model = AutoModelForCausalLM.from_pretrained(base)

        def init_communicator(self, device):
            pass

        def get_server_info(self):
            return {"model_config": {"logprobs_mode": "processed_logprobs"}}

        def update_named_params(self, metadata, named_params):
            own = dict(self.model.named_parameters())
            for (name, dtype, shape), (sent, weight) in zip(metadata, named_params, strict=True):
                assert (name, shape) == (sent, list(own[name].shape))
                assert f"torch.{dtype}" == str(weight.dtype)
                own.pop(name).data.copy_(weight)
            assert not own  # every weight is sent
            held.sent.append({k: v.clone() for k, v in self.model.state_dict().items()})

        def reset_prefix_cache(self):
            pass

        @torch.no_grad()
        def generate(self, prompts, n, max_tokens, **settings):
            found = {"prompt_ids": prompts, "completion_ids": [], "logprobs": []}
            for prompt in prompts:
                for _ in range(n):
                    ids = torch.tensor([prompt])
                    logprobs = []
                    for _ in range(max_tokens):
                        each = self.model(ids).logits[0, -1].log_softmax(-1)
                        token = torch.multinomial(each.exp(), 1)
                        logprobs.append([float(each[token])])
                        ids = torch.cat([ids, token[None]], dim=1)
                    found["completion_ids"].append(ids[0, len(prompt) :].tolist())
                    found["logprobs"].append(logprobs)
            return found

    monkeypatch.setattr("trl.generation.vllm_generation.VLLMClient", Client)
    monkeypatch.setattr("trl.generation.vllm_generation.is_vllm_available", lambda: True)
    monkeypatch.setattr("toolkit.stages.vllm_rollouts.find_spec", lambda name: name)
    return held


def odd(completion_ids, **columns):
    """A reward that differs between any two completions."""
    return [sum(token % 2 for token in ids) / len(ids) for ids in completion_ids]


def learn(stage, base, folder, **keys):
    settings = {
        "model_name_or_path": str(base), "train_dataset": PROMPTS, "reward_funcs": [odd],
        "output_dir": str(folder), "lora_r": 4, "learning_rate": 1e-2, "max_steps": 3,
        "per_device_train_batch_size": 4, "num_generations": 2 if stage == "grpo" else 1,
        "num_iterations": 1, "max_completion_length": 6, "logging_steps": 1,
        "lr_scheduler_type": "constant",
    } | keys  # fmt: skip
    return getattr(toolkit, stage)(**settings)


@pytest.mark.parametrize(
    ("stage", "keys"),
    [("grpo", {}), ("ppo", {"load_in_4bit": True, "use_bnb_nested_quant": True})],
    ids=["grpo", "ppo in 4 bits"],
)
def test_a_vllm_server_samples_with_the_policy(stage, keys, base, servers, tmp_path):
    result = learn(
        stage, base, tmp_path, use_vllm=True, vllm_mode="server",
        vllm_server_base_url="http://127.0.0.1:8000", vllm_group_port=51217, **keys,
    )  # fmt: skip
    assert servers.started == [("http://127.0.0.1:8000", 51217)]
    # the adapter moved and the base did not, or the proof would have refused what was saved
    assert result.manifest["verification"]["verified"] == "fresh_load"
    assert len(servers.sent) == 3  # one for each rollout, with what was learnt before it
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(servers.sent[0][name], servers.sent[2][name])
    norms = [sent["model.norm.weight"] for sent in servers.sent]
    assert torch.equal(norms[0], norms[2])
    log = [entry for entry in result.metrics if entry.startswith("sampling/")]
    assert log
    # had the server another policy, it would say other log-probabilities
    assert result.metrics["sampling/sampling_logp_difference/max"] < 1e-3
    assert math.isclose(result.metrics["sampling/importance_sampling_ratio/mean"], 1, abs_tol=0.02)


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_dora": True}, {"modules_to_save": ["norm"]}, {"trainable_token_indices": [258]},
     {"use_rslora": True, "target_modules": ["q_proj", "up_proj"]}],
    ids=str,
)  # fmt: skip
def test_what_is_sent_gives_the_policys_logits_and_leaves_the_base(settings, base):
    from peft import LoraConfig, get_peft_model

    given = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | settings
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**given)).eval()
    tiny_ppo.stir(model, 0.1)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    plain = AutoModelForCausalLM.from_pretrained(base)
    own = dict(plain.named_parameters())
    for name, weight in policy_weights(model):
        own.pop(name).data.copy_(weight)
    assert not own
    ids = torch.tensor([[5, 258, 7, 9]])
    with torch.no_grad():
        assert torch.allclose(plain(ids).logits, model(ids).logits, atol=1e-4)
    after = model.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_a_generator_that_is_left_has_not_touched_the_base(base):
    model, _ = tiny_ppo.policy(base)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    for name, _ in policy_weights(model):
        if "up_proj" in name:
            break
    after = model.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"vllm_mode": "colocate", "load_in_4bit": True}, "write vllm_mode: server"),
        ({"vllm_mode": "server", "load_in_4bit": True, "use_dora": True}, "leave one of the three out"),
    ],
    ids=["colocate in 4 bits", "dora in 4 bits"],
)  # fmt: skip
def test_what_vllm_cannot_hold_is_refused(stage, keys, said, base, servers, tmp_path):
    with pytest.raises(RecipeError, match=said):
        learn(stage, base, tmp_path, use_vllm=True, **keys)


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_without_vllm_it_is_one_line(stage, base, tmp_path):
    with pytest.raises(RecipeError, match=r"vLLM is not installed here; install toolkit\[vllm\]"):
        learn(stage, base, tmp_path, use_vllm=True)
    assert not (tmp_path / "stage.json").exists()


def test_tokens_without_a_row_in_vllm_are_refused(tiny_base, servers, tmp_path):
    with pytest.raises(RecipeError, match="260 tokens and the base 257 rows, and vLLM adds none"):
        learn("grpo", tiny_base, tmp_path, use_vllm=True, vllm_mode="server")


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_continuous_batching_learns_and_keeps_its_precision(stage, base, tmp_path):
    """TRL casts the model to bfloat16 for good, in which steps of 1e-5 would be lost."""
    result = learn(
        stage, base, tmp_path, use_transformers_continuous_batching=True, bf16=True, max_steps=1,
        learning_rate=1e-5, transformers_continuous_batching_config={"max_memory_percent": 0.1},
    )  # fmt: skip
    assert result.manifest["verification"]["verified"] == "fresh_load"
    weights = load_file(tmp_path / "adapter_model.safetensors")
    moved = [value for key, value in weights.items() if "lora_A" in key]
    assert all(value.dtype == torch.float32 for value in moved)
    assert any(not torch.equal(value, value.bfloat16().float()) for value in moved)


def test_a_completion_that_was_not_made_stops_the_run():
    @dataclass
    class Made:
        error: str | None = None

    class Model:
        def __init__(self, made):
            self.made = made

        def generate_batch(self, inputs):
            return dict(enumerate(self.made))

        def to(self, *args):
            raise AssertionError("cast")

    for made, said in (
        ([Made()], "1 of 2 completions were not made"),
        ([Made(), Made("no\nmemory")], r"1 of 2 .* \(no memory\)"),
    ):
        model = Model(made)
        batched.whole_batches(model)
        assert model.to(torch.bfloat16) is model
        with pytest.raises(TrainingError, match=said):
            model.generate_batch([[1], [2]])
    model = Model([Made(), Made()])
    batched.whole_batches(model)
    assert len(model.generate_batch([[1], [2]])) == 2
