"""What PPOTrainer relies on in TRL, PEFT and transformers: each fails here first, and says what changed."""

import inspect
from functools import partial
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper, TrainableTokensWrapper
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from trl import GRPOConfig, GRPOTrainer
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer.utils import FusedCausalLMOutput, RepeatSampler

from tests import tiny_ppo
from toolkit.stages.ppo_config import FEWEST
from toolkit.stages.ppo_trainer import MULTIMODAL, PPOTrainer

pytestmark = tiny_ppo.quiet

SIGNATURES = {
    "_calculate_rewards": "self, inputs, prompts, completions, completion_ids_list",
    "_generate_and_score_completions": "self, inputs",
    "_compute_loss": "self, model, inputs",
    "compute_loss": "self, model, inputs, return_outputs, num_items_in_batch",
    "_get_per_token_logps_and_entropies": (
        "self, model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, "
        f"compute_aux_loss, {', '.join(MULTIMODAL)}"
    ),
    "_get_train_sampler": "self, dataset",
    "_save": "self, output_dir, state_dict",
    "_load_from_checkpoint": "self, resume_from_checkpoint, model",
    "_load_best_model": "self",
    "create_optimizer": "self, model",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_methods_that_are_extended_take_what_they_took(name):
    method = getattr(GRPOTrainer, name, None)
    assert method is not None, f"GRPOTrainer has no {name} any more, which PPOTrainer extends"
    found = ", ".join(inspect.signature(method).parameters)
    assert found == SIGNATURES[name], f"GRPOTrainer.{name} now takes ({found})"


def test_what_is_extended_is_listed_here():
    ours = {name for name in vars(PPOTrainer) if callable(getattr(PPOTrainer, name))}
    theirs = {name for kind in GRPOTrainer.__mro__[:-1] for name in vars(kind)}
    overridden = ours & theirs - {"__init__", "__doc__"}
    assert overridden == SIGNATURES.keys() - {"compute_loss", "_get_per_token_logps_and_entropies"}


class Looking(GRPOTrainer):
    """Keeps what the log-probabilities' method gives, and what a rollout holds."""

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        self.given = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        return self.given

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        self.rewards = super()._calculate_rewards(*args, **kwargs)
        return self.rewards


@pytest.fixture
def grpo(tiny_base, tmp_path) -> Any:
    model, words = tiny_ppo.policy(tiny_base, lora_dropout=0.0)
    args = GRPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=4,
        num_generations=2, num_iterations=2, max_completion_length=8, beta=0.1, report_to=[],
    )  # fmt: skip
    trainer: Any = Looking(
        model, args=args, reward_funcs=[tiny_ppo.odd, tiny_ppo.odd], processing_class=words,
        train_dataset=Dataset.from_list(list(tiny_ppo.prompts(4))),
        rollout_func=tiny_ppo.fixed(words),
    )  # fmt: skip
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def test_a_rollout_holds_what_it_held(grpo):
    rollout = grpo._generate_and_score_completions([dict(row) for row in tiny_ppo.prompts(4)])
    needed = {"prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages",
              "num_items_in_batch", "old_per_token_logps"}  # fmt: skip
    missing = needed - rollout.keys()
    assert not missing, f"TRL's rollout lacks {missing}"
    assert rollout["advantages"].shape == (4,), "TRL's advantages are no longer one per completion"
    assert grpo.rewards.shape == (4, 2), "rewards are no longer (completions, reward functions)"
    assert rollout["num_items_in_batch"] == rollout["completion_mask"].sum()
    assert "frac_reward_zero_std" in grpo._metrics["train"]
    assert len(grpo._logs["advantages"]) == 4
    assert isinstance(grpo.given, tuple), "log-probabilities no longer come as a tuple"
    assert len(grpo.given) == 3, f"log-probabilities come with {len(grpo.given) - 1} others, not 2"
    assert grpo.given[0].shape == rollout["completion_ids"].shape


def test_the_loss_takes_advantages_per_token(grpo):
    rollout = grpo._generate_and_score_completions([dict(row) for row in tiny_ppo.prompts(4)])
    grpo.beta = 0.0
    expected = grpo._compute_loss(grpo.model, rollout)
    width = rollout["completion_ids"].shape[1]
    wide = rollout | {"advantages": rollout["advantages"][:, None].expand(-1, width).contiguous()}
    found = grpo._compute_loss(grpo.model, wide)
    assert torch.equal(found, expected), "TRL's loss no longer takes advantages of shape (B, T)"
    wide["advantages"][0, 0] += 1
    assert not torch.equal(grpo._compute_loss(grpo.model, wide), expected)


def test_a_trainer_has_the_attributes_that_are_read(grpo):
    names = ("beta", "reward_weights", "eos_token_ids", "use_vllm", "num_generations", "model",
             "_metrics", "_logs", "accelerator", "processing_class")  # fmt: skip
    missing = [name for name in names if not hasattr(grpo, name)]
    assert not missing, f"GRPOTrainer has no {missing} any more"
    source = inspect.getsource(GRPOTrainer._compute_loss)
    assert "self.beta" in source, "the KL's weight in the loss is no longer `beta`"
    assert "current_gradient_accumulation_steps / self.args.steps_per_generation" in source, (
        "dapo's normalizer has changed, which the value loss follows"
    )
    ids = "use_adapter(model, adapter_name"
    assert ids in inspect.getsource(GRPOTrainer._generate_and_score_completions), (
        "TRL reaches its reference in another way: is beta = 0 after __init__ still enough?"
    )


def test_too_few_generations_are_refused_in_the_same_words(tmp_path):
    with pytest.raises(ValueError, match="generations") as error:
        GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, num_generations=1)
    assert str(error.value).startswith(FEWEST), (
        f"GRPOConfig refuses one generation in other words, so PPOConfig cannot pass over it: {error.value}"
    )


def test_trls_reference_is_called_ref(grpo):
    assert set(grpo.model.peft_config) == {"default", "ref"}, "TRL names its reference differently"


def test_the_prompts_sampler_is_as_it_was():
    sampler = RepeatSampler(range(8), mini_repeat_count=1, seed=3)
    names = ("shuffle", "generator", "seed", "num_samples")
    missing = [name for name in names if not hasattr(sampler, name)]
    assert not missing, f"RepeatSampler has no {missing}, which PromptOrder reads"
    first, second = list(sampler), list(sampler)
    assert first != second
    generator = torch.Generator().manual_seed(3)
    for expected in (first, second):
        assert torch.randperm(8, generator=generator).tolist() == expected


def test_vllm_is_still_sent_parameters_by_name():
    assert hasattr(VLLMGeneration, "_iter_named_params"), "send_base_weights has nothing to filter"
    source = inspect.getsource(VLLMGeneration)
    assert source.count("_iter_named_params()") >= 2


def test_the_fused_head_has_room_for_scalars():
    assert {"loss", "log_probs", "entropy"} <= FusedCausalLMOutput.__dataclass_fields__.keys()
    assert "fused_lm_head=True" in inspect.getsource(GRPOTrainer._get_per_token_logps_and_entropies)


def test_checkpointing_is_given_a_partial_with_the_layer_first():
    class Layer(GradientCheckpointingLayer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    seen: list[Any] = []
    layer: Any = Layer().train()
    layer.gradient_checkpointing = True
    layer._gradient_checkpointing_func = lambda run, *args: seen.append(run) or run(*args)
    layer(torch.zeros(1))
    assert isinstance(seen[0], partial), "checkpoint_through expects a partial"
    assert seen[0].args[0] is layer, "the layer is no longer the partial's first argument"
    parameters = inspect.signature(PreTrainedModel._set_gradient_checkpointing).parameters
    assert "gradient_checkpointing_func" in parameters


def test_pefts_wrappers_keep_their_adapters_where_they_kept_them(grpo):
    for kind in (ModulesToSaveWrapper, TrainableTokensWrapper):
        assert issubclass(kind, AuxiliaryTrainingWrapper)
        for name in (
            "adapter_state_dict",
            "adapter_state_dict_load_map",
            "_get_available_adapters",
        ):
            assert hasattr(kind, name), f"{kind.__name__} has no {name}"
    rows = [m for m in grpo.model.modules() if isinstance(m, TrainableTokensWrapper)]
    assert all(row._adapters >= {"default", "ref"} for row in rows)
    layers = [m for m in grpo.model.modules() if hasattr(m, "_active_adapter")]
    assert len(layers) > 10, "PEFT's layers no longer have _active_adapter"
