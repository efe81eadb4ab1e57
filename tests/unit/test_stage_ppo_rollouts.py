"""What GRPO has works in PPO: rewards of every kind, tools, environments, evaluation, vLLM, losses."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from trl.distributed import DistributedBackend
from trl.generation.vllm_generation import VLLMGeneration

from tests import tiny, tiny_ppo
from tests.closeness import assert_close
from toolkit.models.vllm_weights import send_base_weights
from toolkit.stages.ppo_config import PPOConfig
from toolkit.stages.ppo_trainer import PPOTrainer

pytestmark = tiny_ppo.quiet

# With these, an undiscounted sum of rewards: every chosen token's return is the completion's score.
SUMS = {"beta": 0.0, "gamma": 1.0, "lam": 1.0}


def rollout(trainer: Any, number: int = 8) -> dict[str, Any]:
    """The scored rollout of as many prompts, in their order."""
    trainer.model.train()
    rows = [dict(row) for row in trainer.train_dataset]
    return trainer._generate_and_score_completions(rows[:number])


def with_fixed(base, directory, **given: Any) -> Any:
    """A trainer whose completions are fixed, most of them with a stop token."""
    model, words = tiny_ppo.policy(base)
    given = SUMS | {"rollout_func": tiny_ppo.fixed(words)} | given
    return tiny_ppo.trainer(model, words, directory, **given)


def scores_of(found: dict[str, Any]) -> torch.Tensor:
    """The return at the first token of each completion."""
    return found["returns"][:, 0]


def ends(found: dict[str, Any], words: Any) -> torch.Tensor:
    """Whether each completion's last token is the stop token."""
    last = found["completion_mask"].sum(1, keepdim=True) - 1
    return found["completion_ids"].gather(1, last)[:, 0] == words.eos_token_id


# Rewards.


async def later(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [float(len(ids)) for ids in completion_ids]


def test_rewards_are_weighed_and_may_be_async(tiny_base, tmp_path):
    trainer = with_fixed(
        tiny_base, tmp_path, reward_funcs=[tiny_ppo.odd, later], reward_weights=[2.0, -0.5]
    )
    found = rollout(trainer)
    mask = found["completion_mask"]
    ids = [row[m.bool()].tolist() for row, m in zip(found["completion_ids"], mask, strict=True)]
    expected = 2 * torch.tensor(tiny_ppo.odd(ids)) - 0.5 * mask.sum(1)
    assert_close(found["returns"], expected[:, None] * mask, tolerance=1e-5)


def some(completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
    return [None if index % 3 == 0 else 1.0 + index for index in range(len(completion_ids))]


def test_a_completion_without_a_reward_is_not_trained_on(tiny_base, tmp_path):
    trainer = with_fixed(tiny_base, tmp_path, reward_funcs=some, missing_eos_penalty=1.0)
    found = rollout(trainer)
    unscored = torch.arange(8) % 3 == 0
    for name in ("advantages", "returns", "value_mask"):
        assert not found[name][unscored].any(), name
        assert found[name][~unscored].any(dim=1).all(), name
    gradients = []
    for _ in range(2):
        trainer.model.zero_grad()
        trainer.current_gradient_accumulation_steps = 1
        trainer.compute_loss(trainer.model, found).backward()
        gradients.append([w.grad.clone() for w in trainer.model.parameters() if w.requires_grad])
        found["completion_ids"][unscored] = 7  # what it says must not matter
    assert any(gradient.any() for gradient in gradients[0])
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other, tolerance=1e-7)


def test_a_reward_that_has_nothing_to_say_leaves_the_others(tiny_base, tmp_path):
    trainer = with_fixed(
        tiny_base, tmp_path, reward_funcs=[some, later], reward_weights=[1.0, 10.0]
    )
    found = rollout(trainer)
    lengths = found["completion_mask"].sum(1)
    index = torch.arange(8)
    expected = 10 * lengths + torch.where(index % 3 == 0, 0, 1 + index)
    assert_close(scores_of(found), expected.float(), tolerance=1e-4)


@pytest.mark.parametrize("said", [None, 1.0], ids=["nothing", "a constant"])
def test_rewards_that_teach_nothing_break_nothing(said, tiny_base, tmp_path):
    trainer = with_fixed(
        tiny_base, tmp_path, reward_funcs=lambda completions, **_: [said] * len(completions),
        rollout_func=None, max_steps=4,
    )  # fmt: skip
    before = tiny_ppo.held(trainer.model)
    trainer.train()
    assert all(weight.isfinite().all() for weight in trainer.model.parameters())
    losses = tiny_ppo.logged(trainer, "loss")
    assert all(math.isfinite(loss) for loss in losses)
    # where returns do not vary, there is nothing to explain
    assert tiny_ppo.logged(trainer, "value/explained_variance") == [None, None]
    if said is None:
        assert losses == [0.0] * 4
        assert tiny_ppo.moved(before, trainer.model)["default"] == "none"


# Completions.


@pytest.mark.parametrize("number", [1, 4])
def test_any_number_of_generations(number, tiny_base, tmp_path):
    model, words = tiny_ppo.policy(tiny_base)
    asked: list[list[str]] = []

    def counting(
        prompts: list[Any], completion_ids: list[list[int]], **columns: Any
    ) -> list[float]:
        asked.append([prompt[-1]["content"] for prompt in prompts])
        return tiny_ppo.odd(completion_ids)

    trainer = tiny_ppo.trainer(
        model, words, tmp_path, num_generations=number, reward_funcs=counting
    )
    before = tiny_ppo.held(trainer.model)
    trainer.train()
    assert tiny_ppo.moved(before, trainer.model)["default"] == "all"
    assert {asked[0].count(prompt) for prompt in asked[0]} == {number}


def test_one_completion_of_one_token(tiny_base, tmp_path):
    """Its whitened advantage is 0; a critic can still learn its return."""
    trainer = with_fixed(
        tiny_base, tmp_path, per_device_train_batch_size=1, max_completion_length=1,
        rollout_func=None, num_iterations=1,
    )  # fmt: skip
    found = rollout(trainer, 1)
    assert found["advantages"].tolist() == [[0.0]]
    assert found["returns"].item() != 0
    before = tiny_ppo.held(trainer.model)
    trainer.train()
    assert tiny_ppo.moved(before, trainer.model) | {"ref": "none"} == {
        "default": "none", "value": "all", "ref": "none", "base": "none",
    }  # fmt: skip


def test_what_did_not_end_may_be_left_out(tiny_base, tmp_path):
    trainer = with_fixed(tiny_base, tmp_path, mask_truncated_completions=True)
    found = rollout(trainer)
    kept = found["completion_mask"].any(dim=1)
    assert 0 < kept.sum() < 8
    assert torch.equal(found["value_mask"].any(dim=1), kept)
    assert not found["advantages"][~kept].any()
    before = tiny_ppo.held(trainer.model)
    trainer.train()
    assert tiny_ppo.moved(before, trainer.model)["value"] == "all"


def test_what_did_not_end_is_fined(tiny_base, tmp_path):
    free = with_fixed(tiny_base, tmp_path)
    fined = with_fixed(tiny_base, tmp_path, missing_eos_penalty=0.75)
    one, other = rollout(free), rollout(fined)
    ended = ends(one, free.processing_class)
    assert 0 < ended.sum() < 8
    assert_close(scores_of(one) - scores_of(other), 0.75 * ~ended, tolerance=1e-6)
    lost = free._metrics["train"]["reward_with_penalties"][0]
    lost -= fined._metrics["train"]["reward_with_penalties"][0]
    assert_close([lost], [0.75 * (1 - ended.float().mean())], tolerance=1e-6)


def test_every_stop_token_ends_a_completion(tiny_base, tmp_path):
    model, words = tiny_ppo.policy(tiny_base)
    model.generation_config.eos_token_id = [words.eos_token_id, 9]
    trainer = tiny_ppo.trainer(model, words, tmp_path, missing_eos_penalty=1.0, **SUMS)
    ids = torch.tensor([[5, 9, 0], [9, 5, 0], [5, 6, words.eos_token_id]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 1]])
    trainer.raw_rewards = torch.zeros(3, 1)
    scores, _ = trainer.scores({"completion_ids": ids, "completion_mask": mask})
    assert scores.tolist() == [0.0, -1.0, 0.0]


def test_gradients_do_not_see_padding(tiny_base, tmp_path):
    """Prompts are filled on the left and completions on the right: more of it changes nothing."""
    gradients = []
    for multiple in (None, 32):
        trainer = with_fixed(tiny_base, tmp_path, pad_to_multiple_of=multiple, beta=0.1)
        tiny_ppo.stir(trainer.model, 0.02)
        found = rollout(trainer)
        trainer.current_gradient_accumulation_steps = 1
        trainer.compute_loss(trainer.model, found).backward()
        gradients.append([w.grad for w in trainer.model.parameters() if w.requires_grad])
    for one, other in zip(*gradients, strict=True):
        assert_close(one / one.abs().max(), other / one.abs().max(), tolerance=1e-5)


# Tools and environments.


def add(a: int, b: int) -> int:
    """Adds two numbers.

    Args:
        a: the one.
        b: the other.
    """
    return a + b


async def add_later(a: int, b: int) -> int:
    """Adds two numbers.

    Args:
        a: the one.
        b: the other.
    """
    return a + b


CALL = '<tool_call>\n{"name": "%s", "arguments": {"a": 1, "b": 2}}\n</tool_call><|im_end|>'


class Calling(PPOTrainer):
    """Answers at once, or calls a tool and then ends, or does not end."""

    tool = "add"

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        texts = [self.answer(index, ids) for index, ids in enumerate(prompt_ids)]
        return [self._tokenizer(text)["input_ids"] for text in texts], None

    def answer(self, index: int, ids: list[int]) -> str:
        answered = (
            "<tool_response>" in self._tokenizer.decode(ids).rpartition("<|im_start|>user")[2]
        )
        if answered:
            return "It is 3." + ("<|im_end|>" if index % 2 else "")
        return CALL % self.tool if index % 4 else "No.<|im_end|>"


def speaking_qwen(base) -> tuple[Any, Any]:
    """A policy with a chat template that knows tools."""
    model, words = tiny_ppo.policy(base)
    words.chat_template = (Path(trl.__file__).parent / "chat_templates/qwen3.jinja").read_text()
    model.get_base_model().config.max_position_embeddings = 4096  # the tools are in the prompt
    return model, words


@pytest.mark.parametrize("tool", [add, add_later])
def test_what_a_tool_says_is_no_step(tool, tiny_base, tmp_path):
    model, words = speaking_qwen(tiny_base)
    trainer = tiny_ppo.trainer(
        model, words, tmp_path, kind=type("Calling", (Calling,), {"tool": tool.__name__}),
        tools=[tool], max_completion_length=300, missing_eos_penalty=100.0, num_iterations=1,
        per_device_train_batch_size=4, train_dataset=tiny_ppo.prompts(4), **SUMS,
    )  # fmt: skip
    found = rollout(trainer, 4)
    said = (found["completion_mask"] * (1 - found["tool_mask"])).bool()
    assert said.any(dim=1).tolist() == [False, True, True, True]
    assert "<tool_response>" in words.decode(found["completion_ids"][1][said[1]])
    for name in ("advantages", "returns", "value_mask"):
        assert not found[name][said].any(), name
    chosen = found["value_mask"].bool()
    assert torch.equal(chosen, (found["completion_mask"] * found["tool_mask"]).bool())
    # the score at the end reaches the call before the tool undiminished, and the fine with it
    fined = ~ends(found, words)
    assert 0 < fined.sum() < 4
    for row in range(4):
        returns = found["returns"][row][chosen[row]]
        assert returns.max() == returns.min()
        assert (returns[0] < 0) == fined[row]
    before = tiny_ppo.held(trainer.model)
    trainer.train()
    assert tiny_ppo.moved(before, trainer.model)["default"] == "all"
    assert tiny_ppo.logged(trainer, "tools/call_frequency")[0] == 0.75
    assert tiny_ppo.logged(trainer, "tools/failure_frequency")[0] == 0


class Counting:
    """An environment that rewards every call of its tool."""

    def reset(self, **columns: Any) -> str:
        self.calls = 0
        return " Add."

    def add(self, a: int, b: int) -> int:
        """Adds two numbers.

        Args:
            a: the one.
            b: the other.
        """
        self.calls += 1
        return a + b

    def get_reward(self) -> float:
        return float(self.calls)


def test_an_environment_gives_tools_and_rewards(tiny_base, tmp_path):
    model, words = speaking_qwen(tiny_base)
    trainer = tiny_ppo.trainer(
        model, words, tmp_path, kind=Calling, environment_factory=Counting, reward_funcs=None,
        max_completion_length=300, per_device_train_batch_size=4,
        train_dataset=tiny_ppo.prompts(4), **SUMS,
    )  # fmt: skip
    assert scores_of(rollout(trainer, 4)).tolist() == [0.0, 1.0, 1.0, 1.0]
    before = tiny_ppo.held(trainer.model)
    trainer.train()
    assert tiny_ppo.moved(before, trainer.model)["value"] == "all"


# Evaluation, and what is logged.


def test_held_out_prompts_are_measured_and_not_trained_on(tiny_base, tmp_path):
    model, words = tiny_ppo.policy(tiny_base)
    trainer = tiny_ppo.trainer(
        model, words, tmp_path, eval_dataset=tiny_ppo.prompts(6), eval_strategy="steps",
        eval_steps=1, per_device_eval_batch_size=4, num_generations=4, num_generations_eval=2,
        beta=0.1,
    )  # fmt: skip
    before = tiny_ppo.held(trainer.model)
    found = trainer.evaluate()
    assert tiny_ppo.moved(before, trainer.model) == dict.fromkeys(
        ("default", "value", "ref", "base"), "none"
    )
    assert math.isfinite(found["eval_loss"])
    trainer.train()
    wanted = {"reward", "kl", "returns/mean", "value/mean", "value/loss", "value/clip_ratio",
              "value/explained_variance", "reward_with_penalties", "entropy"}  # fmt: skip
    evaluated = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(evaluated) == 2
    for entry in evaluated:
        assert {f"eval_{name}" for name in wanted} <= entry.keys()
        assert not {"value/loss", "kl", "frac_reward_zero_std", "eval_frac_reward_zero_std"} & set(
            entry
        )
    trained = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert wanted <= trained.keys()
    assert not any(name.startswith("eval_") or name == "frac_reward_zero_std" for name in trained)


def test_without_a_reference_no_kl_is_logged(tiny_base, tmp_path):
    trainer = with_fixed(tiny_base, tmp_path)
    trainer.train()
    assert tiny_ppo.logged(trainer, "kl") == []
    assert "ref" not in trainer.model.peft_config


def test_the_table_of_completions_shows_ppos_advantages(tiny_base, tmp_path):
    trainer = with_fixed(tiny_base, tmp_path)
    found = rollout(trainer)
    means = found["advantages"].sum(1) / found["value_mask"].sum(1)
    assert_close(list(trainer._logs["advantages"]), means, tolerance=1e-6)
    assert means.abs().max() > 0.1


# vLLM, by construction: what it is sent, and what becomes of what it gives.


class FakeVLLM(VLLMGeneration):
    """Samples with the policy itself, and says that each token was a little less likely."""

    def __init__(self, model: Any, accelerator: Any, processing_class: Any, **settings: Any):
        self.model, self.accelerator, self.words = model, accelerator, processing_class
        self._dist = DistributedBackend(accelerator)
        self.sent: list[dict[str, torch.Tensor]] = []

    def sync_weights(self) -> None:
        self.sent.append({name: weight.clone() for name, weight in self._iter_named_params()})

    def generate(self, prompts: Any, **settings: Any) -> Any:
        completions, log_probs = [], []
        for index, ids in enumerate(prompts):
            completion = [5 + index, 6, 7 + index, self.words.eos_token_id][index % 3 :]
            with torch.no_grad():
                logits = self.model(input_ids=torch.tensor([ids + completion])).logits[0]
            found = logits[len(ids) - 1 : -1].log_softmax(-1)
            chosen = found.gather(1, torch.tensor(completion)[:, None])
            completions.append(completion)
            log_probs.append((chosen - 0.1).tolist())
        return None, completions, log_probs, None


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_rollouts_by_vllm(head, tiny_base, untied_base, tmp_path, monkeypatch):
    base = tiny_base if head == "tied" else untied_base
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", FakeVLLM)
    model, words = tiny_ppo.policy(base)
    seen: list[dict[str, Any]] = []

    class Looking(PPOTrainer):
        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
            seen.append(inputs)
            return super()._compute_loss(model, inputs)

    trainer = tiny_ppo.trainer(
        model, words, tmp_path, kind=Looking, use_vllm=True, vllm_mode="colocate", beta=0.1,
        vllm_importance_sampling_mode="token_truncate", max_steps=3,
    )  # fmt: skip
    before = tiny_ppo.held(trainer.model)
    trainer.train()
    found = tiny_ppo.moved(before, trainer.model)
    assert (found["default"], found["value"], found["ref"]) == ("all", "all", "none")
    ratio = seen[0]["importance_sampling_ratio"][seen[0]["completion_mask"].bool()]
    assert_close(ratio, torch.full_like(ratio, math.exp(0.1)), tolerance=1e-3)
    assert tiny_ppo.logged(trainer, "kl")[0] == 0
    sent = trainer.vllm_generation.sent
    assert len(sent) == 2  # one for each rollout
    assert not any("scalar" in name or "trainable" in name for name in sent[0])


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_vllm_is_sent_the_policy_by_the_bases_names(head, tiny_base, untied_base, tmp_path):
    from transformers import AutoModelForCausalLM

    base = tiny_base if head == "tied" else untied_base
    trainer = with_fixed(base, tmp_path)
    generation: Any = FakeVLLM(trainer.model, trainer.accelerator, trainer.processing_class)
    send_base_weights(generation)
    generation.sync_weights()
    plain: Any = AutoModelForCausalLM.from_pretrained(base)
    assert generation.sent[0].keys() == {name for name, _ in plain.named_parameters()}
    plain.resize_token_embeddings(260, mean_resizing=False)
    plain.load_state_dict(generation.sent[0], strict=False)
    ids = torch.tensor([[5, 6, 258, 7, 257]])
    with torch.no_grad():
        expected = trainer.model.eval()(input_ids=ids).logits
        assert_close(plain(input_ids=ids).logits, expected, tolerance=1e-4)


# Losses and precisions.


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo"])
def test_losses_per_token_run(loss_type, tiny_base, tmp_path):
    trainer = with_fixed(tiny_base, tmp_path, loss_type=loss_type, beta=0.1)
    before = tiny_ppo.held(trainer.model)
    trainer.train()
    found = tiny_ppo.moved(before, trainer.model)
    assert found == {"default": "all", "value": "all", "ref": "none", "base": "none"}
    assert all(math.isfinite(loss) for loss in tiny_ppo.logged(trainer, "loss"))


def config(directory, **keys: Any) -> PPOConfig:
    return PPOConfig(output_dir=str(directory), use_cpu=True, bf16=False, **keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"loss_type": "vespo"}, r"^loss_type 'vespo' has one weight per completion, .*; use dapo"),
        ({"loss_type": "luspo"}, r"^loss_type 'luspo' has one weight per completion, .*; use dapo"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, r"weigh the rewards with reward_weights"),
        ({"num_generations": 3}, r"must be divisible by num_generations \(3\)"),
        ({"generation_batch_size": 7}, r"generation_batch_size \(7\) must be divisible"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(keys, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        config(tmp_path, **keys)
    assert "\n" not in str(error.value)


def test_one_generation_is_enough(tmp_path):
    assert config(tmp_path).num_generations == 1
    assert config(tmp_path, num_generations=1, steps_per_generation=2).generation_batch_size == 16


def test_bfloat16_trains_and_the_values_stay_float32(tiny_base, tmp_path):
    trainer = with_fixed(tiny_base, tmp_path, bf16=True, beta=0.1)
    found = rollout(trainer)
    assert {found[name].dtype for name in ("values", "returns", "advantages")} == {torch.float32}
    before = tiny_ppo.held(trainer.model)
    trainer.train()
    assert tiny_ppo.logged(trainer, "kl")[0] == 0
    assert {w.dtype for w in trainer.model.parameters() if w.requires_grad} == {torch.float32}
    assert tiny_ppo.moved(before, trainer.model)["value"] == "all"


@pytest.mark.filterwarnings("ignore::UserWarning:bitsandbytes")
def test_over_a_quantized_base_the_policy_starts_as_its_reference(tmp_path):
    """TRL rounds to bfloat16 what is trained over a quantized base, and leaves the reference as it is."""
    from toolkit.models import adapters, chatml
    from toolkit.models.load import load_base, load_tokenizer
    from toolkit.recipe import recipe_from_keywords

    base = tiny.save_base(tmp_path / "base", hidden_size=64, intermediate_size=128)
    recipe = recipe_from_keywords(
        "sft", model_name_or_path=str(base), dataset_name="x.jsonl", load_in_4bit=True, lora_r=4
    ).stages[0]
    words = load_tokenizer(base, padding_side="left")
    change = chatml.prepare_tokenizer(words, conversational=True)
    model = load_base(recipe)
    chatml.fit_embeddings(model, words, change)
    torch.manual_seed(0)
    model = adapters.attach(model, recipe, change)
    tiny_ppo.stir(model, 0.05)
    start = tiny_ppo.held(model)
    trainer = tiny_ppo.trainer(
        model, words, tmp_path / "out", beta=0.1, rollout_func=tiny_ppo.fixed(words)
    )
    assert all(torch.equal(model.get_parameter(n), w) for n, w in start.items() if "lora" in n)
    trainer.train()
    assert tiny_ppo.logged(trainer, "kl")[0] == 0
    assert {w.dtype for w in model.parameters() if w.requires_grad} == {torch.float32}


# A researcher's subclass.


def examples() -> dict[str, str]:
    """The classes that docs/algorithms.md shows, by name."""
    text = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text(encoding="utf-8")
    blocks = [part.partition("```")[0] for part in text.split("```python\n")[1:]]
    return {block.partition("class ")[2].partition("(")[0]: block for block in blocks}


@pytest.mark.parametrize("name", ["MonteCarlo", "LeaveOneOut"])
def test_the_documented_subclasses_train(name, tiny_base, tmp_path):
    import toolkit

    code = examples()[name]
    body = [line for line in code.partition("class ")[2].splitlines() if line.strip()]
    assert len(body) <= 10
    file = tmp_path / "my_ppo.py"
    file.write_text(code, encoding="utf-8")
    trainer = toolkit.build(
        "ppo", model_name_or_path=str(tiny_base), train_dataset=list(tiny_ppo.prompts()),
        reward_funcs=[tiny_ppo.odd], trainer_class=f"{file}:{name}", output_dir=str(tmp_path / name),
        max_steps=2, num_iterations=2, num_generations=4, max_completion_length=8, lora_r=4,
        per_device_train_batch_size=8, learning_rate=1e-3, value_learning_rate=1e-2,
        gamma=0.5, lam=0.5, beta=0.1, report_to="none",
    )  # fmt: skip
    assert type(trainer).__name__ == name
    assert isinstance(trainer, PPOTrainer)
    rewards, values = torch.randn(2, 4, 3)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]])
    rewards = rewards * mask
    advantages, returns = trainer.compute_advantages(rewards, values, mask)
    if name == "MonteCarlo":
        left = torch.stack([rewards[:, step:].sum(1) for step in range(3)], dim=1) * mask
        assert_close(returns, left, tolerance=1e-6)
        assert_close(advantages, (left - values) * mask, tolerance=1e-6)
    else:
        earned = rewards.sum(1)
        others = torch.stack([(earned.sum() - one) / 3 for one in earned])
        assert_close(advantages, (earned - others)[:, None] * mask, tolerance=1e-6)
        assert torch.equal(returns, values * mask)
    before = tiny_ppo.held(trainer.model)
    trainer.train()
    found = tiny_ppo.moved(before, trainer.model)
    assert found["default"] == "all"
    assert found["base"] == "none"
    assert (found["value"] == "none") == (name == "LeaveOneOut")
