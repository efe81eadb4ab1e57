"""PPOTrainer: its gradients, its reference, what it trains, what it saves, and how it resumes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests import reference_ppo as reference
from tests import tiny_ppo
from tests.closeness import assert_close
from toolkit.errors import RecipeError
from toolkit.models.heads import add_scalar_heads, load_scalar_adapter
from toolkit.models.load import load
from toolkit.models.reward import load_reward_model
from toolkit.models.switching import through
from toolkit.stages.ppo_config import PPOConfig
from toolkit.stages.ppo_trainer import PPOTrainer

pytestmark = [
    tiny_ppo.quiet,
    pytest.mark.filterwarnings("ignore:Model config .* tie_word_embeddings:UserWarning"),
]
PROBE = torch.tensor([[5, 6, 7, 258, 9, 10, 257]])


@pytest.fixture(params=["tied", "untied"])
def base(request, tiny_base, untied_base) -> Path:
    return tiny_base if request.param == "tied" else untied_base


# Gradients: the same objective, written out over models that plain PEFT has loaded.


class Plain:
    """Policy and critic as plain PEFT loads them from what a trainer saves, without any padding."""

    def __init__(self, trainer: Any, base: Path, directory: Path):
        trainer.save_model(str(directory))
        vocabulary = trainer.model.get_input_embeddings().weight.shape[0]
        causal = AutoModelForCausalLM.from_pretrained(base)
        scalar = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        for model in (causal, scalar):
            model.resize_token_embeddings(vocabulary, mean_resizing=False)
        self.policy: Any = PeftModel.from_pretrained(causal, str(directory), is_trainable=True)
        self.critic: Any = PeftModel.from_pretrained(
            scalar, str(directory / "value"), is_trainable=True
        )
        self.policy.eval(), self.critic.eval()

    def log_probs(self, prompt: list[int], completion: list[int]) -> torch.Tensor:
        logits = self.policy(input_ids=torch.tensor([prompt + completion])).logits[0]
        chosen = torch.tensor(completion)
        found = logits[len(prompt) - 1 : -1].log_softmax(-1)
        return found.gather(1, chosen[:, None])[:, 0]

    def values(self, prompt: list[int], completion: list[int]) -> torch.Tensor:
        inner = self.critic.base_model.model
        hidden = inner.model(input_ids=torch.tensor([prompt + completion])).last_hidden_state
        return inner.score(hidden)[0, len(prompt) - 1 : -1, 0]

    def gradients(self) -> dict[str, torch.Tensor]:
        """By the names that the trainer's model has for them."""
        found = {n: p.grad for n, p in self.policy.named_parameters() if p.requires_grad}
        for name, weight in self.critic.named_parameters():
            if weight.requires_grad:
                head = "scalar_heads.value.weight" if ".score." in name else None
                found[head or name.replace(".default", ".value")] = weight.grad
        return found


def sequences(inputs: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """Prompts and completions of a batch, without their padding."""
    names = (("prompt_ids", "prompt_mask"), ("completion_ids", "completion_mask"))
    sides = [
        [i[m.bool()].tolist() for i, m in zip(inputs[a], inputs[b], strict=True)] for a, b in names
    ]
    return list(zip(*sides, strict=True))


def rows_of(numbers: list[torch.Tensor], width: int) -> np.ndarray:
    """Ragged rows as one array, filled up with zeros."""
    filled = [torch.nn.functional.pad(row.detach(), (0, width - len(row))) for row in numbers]
    return torch.stack(filled).double().numpy()


OBJECTIVE = {
    "beta": 0.3, "gamma": 0.9, "lam": 0.8, "epsilon": 0.1, "cliprange_value": 0.05, "vf_coef": 0.7,
    "missing_eos_penalty": 0.5,
}  # fmt: skip


def written_out_rollout(
    texts: list[Any], mask: np.ndarray, stop: int, start: Plain, sampled: Plain
) -> dict[str, np.ndarray]:
    """What a rollout holds, by the reference: from the start's and the sampling policy's numbers."""
    width = mask.shape[1]
    with torch.no_grad():
        old = rows_of([sampled.log_probs(*text) for text in texts], width)
        before = rows_of([start.log_probs(*text) for text in texts], width)
        values = rows_of([sampled.values(*text) for text in texts], width)
    kl = reference.per_token_kl(old, before, mask)
    assert np.abs(kl).max() > 0.1
    scores = np.array(tiny_ppo.odd([completion for _, completion in texts]))
    unended = np.array([completion[-1] != stop for _, completion in texts])
    assert 0 < unended.sum() < len(texts)
    scores -= OBJECTIVE["missing_eos_penalty"] * unended
    rewards = reference.token_rewards(scores, kl, mask, OBJECTIVE["beta"])
    gae = reference.gae(rewards, values, mask, OBJECTIVE["gamma"], OBJECTIVE["lam"])
    return {
        "old_per_token_logps": old,
        "advantages": reference.whiten(gae[0], mask),
        "values": values,
        "returns": gae[1],
    }


def written_out_loss(texts: list[Any], rollout: dict[str, np.ndarray], now: Plain) -> torch.Tensor:
    """Schulman et al. 2017, equation 7, and the clipped value loss, as a mean over tokens."""
    clip, value_clip = OBJECTIVE["epsilon"], OBJECTIVE["cliprange_value"]
    losses, outside, far = [], [], []
    for row, text in enumerate(texts):
        given = (torch.tensor(numbers[row, : len(text[1])]).float() for numbers in rollout.values())
        old, advantage, old_value, wanted = given
        ratio = (now.log_probs(*text) - old).exp()
        policy = -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
        value = now.values(*text)
        near = old_value + (value - old_value).clamp(-value_clip, value_clip)
        error = torch.maximum((value - wanted) ** 2, (near - wanted) ** 2)
        losses.append(policy + OBJECTIVE["vf_coef"] * 0.5 * error)
        outside.append((ratio - 1).abs() > clip)
        far.append((value - old_value).abs() > value_clip)
    for clipped in (torch.cat(outside), torch.cat(far)):
        assert 0.1 < clipped.float().mean() < 0.9  # both sides of both clips are in the batch
    return torch.cat(losses).mean()


def test_gradients_are_those_of_the_written_out_objective(base, tmp_path):
    model, words = tiny_ppo.policy(base)
    trainer = tiny_ppo.trainer(
        model, words, tmp_path, rollout_func=tiny_ppo.fixed(words), **OBJECTIVE
    )
    start = Plain(trainer, base, tmp_path / "start")
    tiny_ppo.stir(trainer.model, 0.02)  # away from the reference, and from a head of zeros
    sampled = Plain(trainer, base, tmp_path / "sampled")
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer._prepare_inputs([dict(row) for row in tiny_ppo.prompts()])
    texts, mask = sequences(inputs), inputs["completion_mask"]
    rollout = written_out_rollout(texts, mask.numpy(), words.eos_token_id, start, sampled)
    for name, expected in rollout.items():
        assert_close(inputs[name] * mask, expected, tolerance=2e-5, name=name)

    tiny_ppo.stir(trainer.model, 0.02)
    now = Plain(trainer, base, tmp_path / "now")
    objective = written_out_loss(texts, rollout, now)
    objective.backward()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    assert_close([loss.item()], [objective.item()], tolerance=1e-5, name="loss")
    found = {n: p.grad for n, p in trainer.model.named_parameters() if p.requires_grad}
    expected = now.gradients()
    assert found.keys() == expected.keys()
    assert {tiny_ppo.role(name) for name in found} == {"default", "value"}
    for name, gradient in expected.items():
        scale = gradient.abs().max()
        assert scale > 0, name
        assert_close(found[name] / scale, gradient / scale, tolerance=1e-5, name=name)


def test_the_value_loss_is_a_mean_over_the_tokens_of_an_optimizer_step(tiny_base, tmp_path):
    """A rollout of four batches, of which two make a step: each step has half of the tokens."""
    model, words = tiny_ppo.policy(tiny_base)
    trainer = tiny_ppo.trainer(
        model, words, tmp_path, rollout_func=tiny_ppo.fixed(words), per_device_train_batch_size=2,
        steps_per_generation=4, gradient_accumulation_steps=2, num_iterations=1,
    )  # fmt: skip
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 2
    tiny_ppo.stir(trainer.model, 0.02)
    trainer._prepare_inputs([dict(row) for row in tiny_ppo.prompts()])
    batches = trainer._buffered_inputs
    tokens = sum(batch["completion_mask"].sum() for batch in batches) / 2
    for batch in batches:
        losses = []
        for trainer.ppo.vf_coef in (1.0, 0.0):
            losses.append(trainer.compute_loss(trainer.model, batch).item())
        errors = (batch["values"] - batch["returns"]) ** 2 * batch["value_mask"]
        assert_close([losses[0] - losses[1]], [0.5 * errors.sum() / tokens], tolerance=1e-5)


# The reference, and what is trained.


class Recording(PPOTrainer):
    """Keeps the log-probabilities that TRL's loss computes beside those of the rollout."""

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self.seen = getattr(self, "seen", [])
        self.seen.append([inputs["old_per_token_logps"], None])
        return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if torch.is_grad_enabled():
            self.seen[-1][1] = found[0].detach()
        return found


def log_probs(model: Any, adapter: str | None) -> torch.Tensor:
    """Of a few tokens, through one adapter or through none."""
    way = model.disable_adapter() if adapter is None else through(model, adapter)
    with torch.no_grad(), way:
        return model.eval()(input_ids=PROBE).logits.log_softmax(-1)


@pytest.mark.parametrize("loss_type", ["dapo", "cispo"])
def test_before_the_first_step_the_ratio_is_1_and_the_kl_0(base, loss_type, tmp_path):
    model, words = tiny_ppo.policy(base, lora_dropout=0.05)
    trainer = tiny_ppo.trainer(
        model, words, tmp_path, kind=Recording, beta=0.1, loss_type=loss_type, temperature=0.7
    )
    trainer.train()
    assert tiny_ppo.logged(trainer, "kl")[0] == 0
    first, second = trainer.seen
    assert torch.equal(*first)
    assert not torch.allclose(*second)
    if loss_type == "dapo":
        assert tiny_ppo.logged(trainer, "clip_ratio/region_mean")[0] == 0
    found = trainer._generate_and_score_completions([dict(row) for row in tiny_ppo.prompts()])
    again = trainer.look_back(found)[1]
    assert torch.equal(found["values"], again)  # nor has the critic any noise
    assert again.any()


def test_with_dropout_a_policy_differs_from_itself(tiny_base, tmp_path):
    """Why `disable_dropout` is on: the noise is taken for a step, and for a KL."""
    model, words = tiny_ppo.policy(tiny_base, lora_dropout=0.05)
    trainer = tiny_ppo.trainer(
        model, words, tmp_path, kind=Recording, beta=0.1, disable_dropout=False, max_steps=1
    )
    trainer.train()
    old, now = trainer.seen[0]
    assert (old - now).abs().max() > 0.01
    assert abs(tiny_ppo.logged(trainer, "kl")[0]) > 1e-4
    assert PPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False).disable_dropout


def test_the_reference_is_where_the_policy_started(base, tmp_path):
    model, words = tiny_ppo.policy(base)
    start = log_probs(model, "default")
    trainer = tiny_ppo.trainer(
        model, words, tmp_path / "a", beta=0.1, save_strategy="steps", save_steps=2, max_steps=4
    )
    assert torch.equal(log_probs(trainer.model, "ref"), start)
    assert not torch.allclose(log_probs(trainer.model, None), start, atol=1e-2)
    trainer.train()
    assert torch.equal(log_probs(trainer.model, "ref"), start)
    assert not torch.allclose(log_probs(trainer.model, "default"), start, atol=1e-3)
    assert tiny_ppo.logged(trainer, "kl")[1] != 0

    again, words = tiny_ppo.policy(base)
    resumed = tiny_ppo.trainer(again, words, tmp_path / "b", beta=0.1, max_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert torch.equal(log_probs(resumed.model, "ref"), start)
    assert tiny_ppo.logged(resumed, "kl") == tiny_ppo.logged(trainer, "kl")


def test_only_policy_and_critic_are_trained(base, tmp_path):
    judge_model, words = tiny_ppo.policy(base, spread=0.1)
    judge = tiny_ppo.trainer(judge_model, words, tmp_path / "judge", max_steps=1)
    judge.train()
    judge.save_model(str(tmp_path / "judge"))

    def judged(completion_ids: list[list[int]], **columns: Any) -> list[float]:
        with torch.no_grad():
            scalars = [
                model(input_ids=torch.tensor([ids]), scalar_head="reward")[0, -1]
                for ids in completion_ids
            ]
        return [float(scalar) for scalar in scalars]

    def judged_trainer(directory: str, **keys: Any) -> tuple[Any, Any]:
        model, words = tiny_ppo.policy(base)
        add_scalar_heads(model)
        load_scalar_adapter(model, str(tmp_path / "judge" / "value"), "reward")
        trainer = tiny_ppo.trainer(
            model, words, tmp_path / directory, reward_funcs=judged, beta=0.1, **keys
        )
        return model, trainer

    keys = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 1,
            "eval_dataset": tiny_ppo.prompts(), "max_steps": 2}  # fmt: skip
    model, trainer = judged_trainer("one", **keys)
    before = tiny_ppo.held(model)
    trainer.train()
    trainer.save_model(str(tmp_path / "one"))
    trainer.evaluate()
    expected = {"default": "all", "value": "all"}
    expected |= dict.fromkeys(("ref", "reward", "base"), "none")
    assert tiny_ppo.moved(before, model) == expected

    model, trainer = judged_trainer("two", max_steps=4)
    trainer.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-2"))
    trained = {tiny_ppo.role(n) for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {"default", "value"}
    assert tiny_ppo.moved(before, model) == expected


def test_the_critic_has_its_own_learning_rate(tiny_base, tmp_path):
    model, words = tiny_ppo.policy(tiny_base)
    trainer = tiny_ppo.trainer(model, words, tmp_path, weight_decay=0.1)
    names = {id(weight): name for name, weight in trainer.model.named_parameters()}
    rates = {
        names[id(weight)]: group["lr"]
        for group in trainer.create_optimizer().param_groups
        for weight in group["params"]
    }
    assert {(tiny_ppo.role(n), r) for n, r in rates.items()} == {("default", 1e-3), ("value", 1e-2)}
    assert len(rates) == sum(w.requires_grad for w in trainer.model.parameters())


def test_a_rate_of_zero_holds_the_critic_or_the_policy(tiny_base, tmp_path):
    for rate, still in (("value_learning_rate", "value"), ("learning_rate", "default")):
        model, words = tiny_ppo.policy(tiny_base)
        trainer = tiny_ppo.trainer(model, words, tmp_path, **{rate: 0.0})
        before = tiny_ppo.held(trainer.model)
        trainer.train()
        found = tiny_ppo.moved(before, trainer.model)
        assert found[still] == "none"
        assert found[{"value": "default", "default": "value"}[still]] == "all"


# What is saved, and how it resumes.


def test_what_is_saved_loads_by_plain_peft(base, tmp_path):
    model, words = tiny_ppo.policy(base)
    trainer = tiny_ppo.trainer(model, words, tmp_path, beta=0.1)
    trainer.train()
    trainer.save_model(str(tmp_path))
    words.save_pretrained(str(tmp_path))
    trainer.model.eval()
    with torch.no_grad():
        logits = trainer.model(input_ids=PROBE).logits
        values = trainer.model(input_ids=PROBE, scalar_head="value")[0]
        policy, _ = load(tmp_path)
        assert_close(policy(input_ids=PROBE).logits, logits, tolerance=1e-5, name="policy")
        assert values.abs().min() > 1e-4
        critic = AutoPeftModelForSequenceClassification.from_pretrained(
            str(tmp_path / "value"), num_labels=1
        )
        critic.config.pad_token_id = words.pad_token_id
        for length in (2, 4, 7):
            found = critic.eval()(input_ids=PROBE[:, :length]).logits[0]
            assert_close(found, values[length - 1 : length], tolerance=1e-5, name="value")
    scores, _ = load_reward_model(str(tmp_path / "value"))
    assert_close(
        scores.score(PROBE.tolist()), values[-1:], tolerance=1e-5, name="as a reward model"
    )
    assert {folder.name for folder in tmp_path.iterdir() if folder.is_dir()} == {"value"}
    config = json.loads((tmp_path / "value" / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS"
    assert config["modules_to_save"] == ["score"]


@pytest.mark.parametrize(
    "keys",
    [
        {"save_steps": 4},
        {"save_steps": 4, "num_iterations": 1, "train_dataset": tiny_ppo.prompts(64)},
        {"save_steps": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4,
         "num_generations": 2},
        {"save_steps": 4, "num_iterations": 1, "per_device_train_batch_size": 2,
         "steps_per_generation": 4},
        {"save_steps": 4, "train_dataset": tiny_ppo.prompts(12), "num_iterations": 1,
         "per_device_train_batch_size": 4},
    ],
    ids=["epochs", "one epoch", "accumulated", "minibatches", "within the second epoch"],
)  # fmt: skip
def test_resumed_is_uninterrupted_to_the_bit(keys, tiny_base, tmp_path):
    """The completions are sampled, so this holds for the random numbers and the prompts too."""
    keys = {"max_steps": 6, "save_strategy": "steps", "beta": 0.1} | keys
    model, words = tiny_ppo.policy(tiny_base)
    whole = tiny_ppo.trainer(model, words, tmp_path / "whole", **keys)
    before = tiny_ppo.held(model)
    whole.train()
    assert tiny_ppo.moved(before, model)["default"] == "all"
    other, words = tiny_ppo.policy(tiny_base)
    resumed = tiny_ppo.trainer(other, words, tmp_path / "resumed", **keys)
    resumed.train(
        resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{keys['save_steps']}")
    )
    assert tiny_ppo.logged(resumed, "loss") == tiny_ppo.logged(whole, "loss")
    expected = tiny_ppo.held(whole.model)
    for name, weight in tiny_ppo.held(resumed.model).items():
        assert torch.equal(weight, expected[name]), name


def test_the_best_policy_comes_back_with_its_critic(tiny_base, tmp_path):
    model, words = tiny_ppo.policy(tiny_base)
    trainer = tiny_ppo.trainer(
        model, words, tmp_path, eval_dataset=tiny_ppo.prompts(), eval_strategy="steps", eval_steps=1,
        save_strategy="steps", save_steps=1, max_steps=3, load_best_model_at_end=True,
        metric_for_best_model="eval_value/mean", greater_is_better=False,
    )  # fmt: skip
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name == "checkpoint-1"  # values begin at zero, and the rewards are above it
    trainer.save_model(str(tmp_path))
    for name in ("adapter_model.safetensors", "value/adapter_model.safetensors"):
        assert (tmp_path / name).read_bytes() == (best / name).read_bytes(), name


def test_the_critic_starts_from_a_reward_adapter(base, tmp_path):
    model, words = tiny_ppo.policy(base, spread=0.1)
    first = tiny_ppo.trainer(model, words, tmp_path / "first")
    first.train()
    first.save_model(str(tmp_path / "first"))
    with torch.no_grad():
        expected = first.model.eval()(input_ids=PROBE, scalar_head="value")
    model, words = tiny_ppo.policy(base)
    keys = {"value_start_from": str(tmp_path / "first" / "value"), "save_strategy": "steps",
            "save_steps": 2, "max_steps": 4}  # fmt: skip
    trainer = tiny_ppo.trainer(model, words, tmp_path / "second", **keys)
    with torch.no_grad():
        assert torch.equal(trainer.model.eval()(input_ids=PROBE, scalar_head="value"), expected)
    before = tiny_ppo.held(model)
    trainer.train()
    assert tiny_ppo.moved(before, model)["value"] == "all"
    again, words = tiny_ppo.policy(base)
    resumed = tiny_ppo.trainer(again, words, tmp_path / "third", **keys)
    resumed.train(resume_from_checkpoint=str(tmp_path / "second" / "checkpoint-2"))
    for name, weight in tiny_ppo.held(trainer.model).items():
        assert torch.equal(weight, again.get_parameter(name)), name


def test_the_card_names_ppo(tiny_base, tmp_path):
    model, words = tiny_ppo.policy(tiny_base)
    trainer = tiny_ppo.trainer(model, words, tmp_path)
    trainer.create_model_card(model_name="tiny")
    card = (tmp_path / "README.md").read_text()
    assert "trained with PPO" in card
    assert "Proximal Policy Optimization Algorithms" in card
    assert "@article{schulman2017proximal" in card
    assert "- ppo" in card
    assert "grpo" not in card.lower()


def test_a_reward_that_looks_at_the_base_stops_nothing(tiny_base, tmp_path):
    """PEFT freezes every adapter but the active one when `disable_adapter` ends."""
    model, words = tiny_ppo.policy(tiny_base)

    def looking(completion_ids: list[list[int]], **columns: Any) -> list[float]:
        with torch.no_grad(), model.disable_adapter():
            model(input_ids=PROBE)
        return tiny_ppo.odd(completion_ids)

    trainer = tiny_ppo.trainer(model, words, tmp_path, reward_funcs=looking)
    with model.disable_adapter():
        before = tiny_ppo.held(trainer.model)
    trainer.train()
    expected = {"default": "all", "value": "all", "ref": "none", "base": "none"}
    assert tiny_ppo.moved(before, trainer.model) == expected


def test_a_base_without_an_adapter_is_refused(tiny_base, tmp_path):
    model, words = tiny_ppo.policy(tiny_base)
    with pytest.raises(
        RecipeError, match=r"with the policy as its adapter, found LlamaForCausalLM"
    ):
        tiny_ppo.trainer(model.unload(), words, tmp_path)
