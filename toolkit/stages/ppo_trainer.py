"""PPO on one base: TRL's GRPOTrainer with a value adapter.

Everything of GRPO stays: generation, tools, environments, rewards, the clipped policy loss, every
parallelism. Three of its methods are extended: the rewards are kept as they came, GAE over per-token
values takes the place of the groups' advantages, and the value loss is added to the policy's. Over
one frozen base sit the adapters `default` (the policy), `value` with its head, `ref` (a frozen copy
of where the policy started), and any that reward it.

TRL's private names were read in TRL 1.16, trl/trainer/grpo_trainer.py.
"""

import functools
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import FusedCausalLMOutput, disable_dropout_in_model

from toolkit.errors import RecipeError
from toolkit.models.copies import added_as_copies
from toolkit.models.heads import add_scalar_heads, save_scalar_adapter
from toolkit.models.switching import adapter_weights, checkpoint_through, through, train_only
from toolkit.models.value import VALUE, add_value_adapter, load_value, value_weights
from toolkit.models.vllm_weights import send_base_weights
from toolkit.stages.advantages import clipped_value_loss, gae, token_rewards, whiten
from toolkit.stages.ppo_config import PPOConfig
from toolkit.stages.prompt_order import PromptOrder

POLICY, REFERENCE = "default", "ref"
# What a rollout holds for models that also see; TRL passes it to every forward pass.
MULTIMODAL = (
    "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes",
    "num_tiles", "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids",
)  # fmt: skip


class PPOTrainer(GRPOTrainer):
    """Proximal policy optimization with every role an adapter over one frozen base.

    Another advantage is a subclass that overrides `compute_advantages`.

    Args:
        model: the base with the policy as its adapter `default`.
        args: a PPOConfig.
        value_start_from: a reward stage's adapter that the critic starts from, by folder or Hub id;
            by default the critic starts from the policy, and gives 0 everywhere.
        **kwargs: as of GRPOTrainer.
    """

    _name, _tag_names = "PPO", ["trl", "ppo"]
    _paper = {  # noqa: RUF012 - as TRL has it
        "title": "Proximal Policy Optimization Algorithms",
        "id": "1707.06347",
        "citation": "@article{schulman2017proximal,\n"
        "    title  = {{Proximal Policy Optimization Algorithms}},\n"
        "    author = {John Schulman and Filip Wolski and Prafulla Dhariwal and Alec Radford and "
        "Oleg Klimov},\n"
        "    year   = 2017,\n"
        "    eprint = {arXiv:1707.06347},\n}",
    }
    model: Any
    args: Any

    def __init__(
        self,
        model: PeftModel,
        *,
        args: PPOConfig,
        value_start_from: str | None = None,
        **kwargs: Any,
    ):
        if not isinstance(model, PeftModel):
            raise RecipeError(
                "PPOTrainer: expected a base with the policy as its adapter, found "
                f"{type(model).__name__}; give what peft.get_peft_model returns"
            )
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False  # every trained weight is used in every step
        # Over a quantized base TRL would round to bfloat16 what is trained, and not its reference.
        model.requires_grad_(False)
        with added_as_copies(model, POLICY):
            super().__init__(model=model, args=args, **kwargs)
        self.ppo = args
        # The KL is a penalty in the reward: with 0 here TRL neither adds it to the loss nor asks PEFT
        # for the reference, which would freeze the value adapter.
        self.beta = 0.0
        add_scalar_heads(model)
        add_value_adapter(model, value_start_from)
        if args.disable_dropout:
            disable_dropout_in_model(model)
        checkpoint_through(model)
        if self.use_vllm:
            send_base_weights(self.vllm_generation)
        self.model.save_pretrained = functools.partial(
            self.model.save_pretrained, selected_adapters=[POLICY]
        )
        self.mark_trained()

    def mark_trained(self) -> None:
        """Train the policy and the value adapter with its head, nothing else.

        PEFT trains the active adapter alone once `set_adapter`, `load_adapter` or `disable_adapter`
        was used, be it by a reward, by a callback or while resuming.
        """
        policy = adapter_weights(self.model, POLICY).values()
        train_only(self.model, [*policy, *value_weights(self.model)])

    # the reward step

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        """TRL's rewards, (B of all processes, number of rewards), kept as they came."""
        self.raw_rewards: Tensor = super()._calculate_rewards(*args, **kwargs)
        return self.raw_rewards

    # the scoring step

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """TRL's rollout, with advantages per token, and what the value loss needs."""
        rollout = super()._generate_and_score_completions(inputs)
        self.mark_trained()
        mode = "train" if self.model.training else "eval"
        self._metrics[mode].pop("frac_reward_zero_std", None)  # it is of groups, which PPO has not
        mask = self.action_mask(rollout)
        scores, scored = self.scores(rollout)
        mask = mask * scored[:, None]
        log_ratio, values = self.look_back(rollout)
        rewards = token_rewards(scores, log_ratio, mask, self.ppo.beta)
        advantages, returns = self.compute_advantages(rewards, values, mask)
        self.note_rollout(mode, rewards, values, returns, log_ratio, mask)
        if REFERENCE not in self.model.peft_config:
            del self._metrics[mode]["kl"]
        rollout["advantages"] = whiten(advantages, mask, *self.moments(advantages, mask))
        self.show_advantages(rollout["advantages"], mask)
        return rollout | {"values": values, "returns": returns, "value_mask": mask}

    def compute_advantages(
        self, rewards: Tensor, values: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Advantages, before whitening, and returns; all of shape (B, T).

        Args:
            rewards: of each token, the penalty for leaving the reference included.
            values: of the state before each token.
            mask: 1 on the tokens that the policy chose.
        """
        return gae(rewards, values, mask, self.ppo.gamma, self.ppo.lam)

    def action_mask(self, rollout: dict[str, Any]) -> Tensor:
        """1 on the tokens that the policy chose: no padding, and nothing that a tool said, (B, T)."""
        mask = rollout["completion_mask"]
        return mask * rollout["tool_mask"] if "tool_mask" in rollout else mask

    def scores(self, rollout: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The weighted rewards of this process's completions, (B,), and whether there is one, (B,).

        A completion that no reward could score is not trained on.
        """
        ids, mask = rollout["completion_ids"], rollout["completion_mask"]
        first = self.accelerator.process_index * len(mask)
        raw = self.raw_rewards[first : first + len(mask)]
        scored = ~raw.isnan().all(dim=1)
        scores = (raw * self.reward_weights.to(raw.device)).nansum(dim=1)
        if self.ppo.missing_eos_penalty is not None:
            # the last token, because a call to a tool ends with a stop token too
            last = ids.gather(1, (mask.sum(dim=1, keepdim=True) - 1).clamp(min=0))[:, 0]
            stops = torch.isin(last, torch.tensor(self.eos_token_ids, device=last.device))
            scores = scores - self.ppo.missing_eos_penalty * ~stops
        return scores, scored

    @torch.no_grad()
    def look_back(self, rollout: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """What policy, reference and critic say of a rollout before it is learnt from.

        Returns:
            The log-ratio of the policy to the reference, and the values, both of shape (B, T).
        """
        ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], dim=1)
        seen = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], dim=1)
        tokens, training = rollout["completion_ids"].shape[1], self.model.training
        size = (
            self.args.per_device_train_batch_size
            if training
            else self.args.per_device_eval_batch_size
        )
        given = {key: rollout[key] for key in MULTIMODAL if key in rollout} | {"batch_size": size}
        taken: list[Tensor] = []
        is_compared = REFERENCE in self.model.peft_config
        known = rollout.get("old_per_token_logps")
        ask = self.with_values if is_compared and known is None else self.values_alone
        with disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            both = ask(self.model, taken)
            said, _, _ = self._get_per_token_logps_and_entropies(both, ids, seen, tokens, **given)
            policy = said if known is None else known
            values = torch.cat(taken)[:, -tokens - 1 : -1]
            if not is_compared:
                return torch.zeros_like(policy), values
            with through(self.model, REFERENCE):
                reference, _, _ = self._get_per_token_logps_and_entropies(
                    self.model, ids, seen, tokens, **given
                )
        return policy - reference, values

    def with_values(self, model: Any, taken: list[Tensor]) -> Any:
        """The model as TRL calls it; each call also appends the values of its rows to `taken`."""

        def forward(**given: Any) -> Any:
            outputs = model(**given, scalar_head=VALUE)
            taken.append(outputs.scalars)
            return outputs

        return forward

    def values_alone(self, model: Any, taken: list[Tensor]) -> Any:
        """As `with_values`, without the policy: its log-probabilities are 0."""

        def forward(*, labels: Tensor, fused_lm_head: bool, **given: Any) -> Any:
            taken.append(model(**given, scalar_head=VALUE))
            return FusedCausalLMOutput(log_probs=torch.zeros_like(taken[-1][:, 1:]))

        return forward

    # the loss step

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's clipped policy loss, plus the clipped value loss; one forward pass gives both."""
        taken: list[Tensor] = []
        policy_loss = super()._compute_loss(self.with_values(model, taken), inputs)
        mask = inputs["value_mask"]
        # the mean over the tokens of all processes that one optimizer step sees, as in TRL's dapo
        tokens = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        mode, accumulated = "eval", 1
        if self.model.training:
            mode, accumulated = "train", self.current_gradient_accumulation_steps
            tokens = tokens * accumulated / self.args.steps_per_generation
        value_loss, clipped = clipped_value_loss(
            taken[0][:, -mask.shape[1] - 1 : -1],
            inputs["values"],
            inputs["returns"],
            mask,
            self.ppo.cliprange_value,
            tokens,
        )
        share: Any = self.accelerator.reduce(value_loss.detach(), reduction="mean")
        self._metrics[mode]["value/loss"].append(share.item() * accumulated)
        self.note(mode, "value/clip_ratio", clipped, mask)
        return policy_loss + self.ppo.vf_coef * value_loss

    # what is logged

    def note(self, mode: str, name: str, values: Tensor, mask: Tensor) -> None:
        """Log the mean over the tokens of all processes."""
        self._metrics[mode][name].append(self.moments(values, mask)[0].item())

    def note_rollout(
        self,
        mode: str,
        rewards: Tensor,
        values: Tensor,
        returns: Tensor,
        log_ratio: Tensor,
        mask: Tensor,
    ) -> None:
        """Log what a rollout shows of policy and critic."""
        self.note(mode, "kl", log_ratio, mask)
        self.note(mode, "returns/mean", returns, mask)
        self.note(mode, "value/mean", values, mask)
        some = mask.any(dim=1, keepdim=True)
        self.note(mode, "reward_with_penalties", rewards.sum(dim=1, keepdim=True), some)
        unexplained = self.moments(returns - values, mask)[1]
        variance = self.moments(returns, mask)[1]
        explained = 1 - unexplained / variance if variance > 1e-8 else torch.tensor(torch.nan)
        self._metrics[mode]["value/explained_variance"].append(explained.item())

    def show_advantages(self, advantages: Tensor, mask: Tensor) -> None:
        """In TRL's table of completions, the mean over tokens in place of the group's advantage."""
        means: Any = self.accelerator.gather(advantages.sum(dim=1) / mask.sum(dim=1).clamp(min=1))
        shown = self._logs["advantages"]
        for _ in range(min(len(means), len(shown))):
            shown.pop()
        shown.extend(means.tolist())

    def moments(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance over the tokens of all processes."""
        values = values * mask
        sums = torch.stack([values.sum(), mask.sum().to(values.dtype)])
        total, count = self.accelerator.reduce(sums, reduction="sum")
        mean = total / count.clamp(min=1)
        squares = self.accelerator.reduce((((values - mean) * mask) ** 2).sum(), reduction="sum")
        return mean, squares / (count - 1).clamp(min=1)

    # the value adapter's own learning rate, file and way back

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's optimizer, in which the value adapter and its head have their own learning rate."""
        self.mark_trained()
        optimizer = super().create_optimizer(*args, **kwargs)
        critic = {id(weight) for weight in value_weights(self.model)}
        for group in list(optimizer.param_groups):
            own = [weight for weight in group["params"] if id(weight) in critic]
            if own:
                group["params"] = [w for w in group["params"] if id(w) not in critic]
                settings = {key: value for key, value in group.items() if key != "params"}
                settings["lr"] = self.ppo.value_learning_rate
                optimizer.add_param_group(settings | {"params": own})
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            save_scalar_adapter(self.model, VALUE, folder / VALUE, state_dict)
            words: Any = self.processing_class  # whoever loads it makes room for added tokens
            words.save_pretrained(str(folder / VALUE))

    def _get_train_sampler(self, dataset: Any = None) -> PromptOrder:
        return PromptOrder(super()._get_train_sampler(dataset), self)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_value(self.model, Path(resume_from_checkpoint) / VALUE)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        load_value(self.model, Path(str(self.state.best_model_checkpoint)) / VALUE)
