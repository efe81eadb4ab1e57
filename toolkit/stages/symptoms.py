"""The doctor's rules: each looks at what was logged and says what is wrong, or nothing.

A rule is a pure function of the log so far and of what is known of the training. It gives the number
that shows the fault and a line for a person: what it is, and what to do. A threshold stands beside
its reason. The names of metrics are those that TRL 1.16 logs (trainer/*_trainer.py).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Log = Sequence[Mapping[str, Any]]
"""Lines of a log, the oldest first."""
Found = tuple[float, str] | None

FEW = 3  # logged values in a row that chance does not give, where each is a mean over steps
LONG = 8  # logged values in a row that are no beginning any more
CUT = 0.5  # share of completions that are cut: most rewards then judge what has no end
KL_LIMIT = (
    1.0  # nats per token; InstructGPT's policies (arXiv 2203.02155) stay some tens per answer
)
COLLAPSED = 0.005  # nats per token: two hundred tokens of one answer hold one nat of choice
OF_FIRST = 0.05  # and a twentieth of the entropy at the start
CLIPPED = 0.3  # of an update's tokens; healthy ones stay below 0.14, and the sign halves the most
SMALL_MARGIN = 1e-3  # of two rewards; the margin of a head that has learnt nothing
NEAR = 0.02  # of ln(vocabulary), around the loss of a model that knows nothing
LORA = {
    "sft": (2e-5, 1e-2),
    "reward": (1e-5, 1e-2),
    "dpo": (1e-6, 1e-2),
    "grpo": (1e-6, 1e-2),
    "ppo": (1e-6, 1e-2),
}
"""Learning rates that are far from LoRA's: the lower are those of full fine-tuning (TRL's defaults),
of which LoRA takes some ten times as much ("LoRA Without Regret", Thinking Machines, 2025)."""


@dataclass(frozen=True)
class Training:
    """What is known of a training besides its log.

    Attributes:
        stage: the kind of stage.
        learning_rate: the peak.
        adapter: whether an adapter is trained.
        beta: the weight of the KL; 0 where there is none.
        num_iterations: updates over each rollout.
        max_completion_length: in tokens.
        vocabulary: tokens of the base.
        max_steps: of the whole training.
        stop: the stop token, as text.
        masked: the share of tokens without loss in the first sequences; None where not known.
        format: of the rows: "messages", "prompt_completion" or "text".
        same_pairs: the share of pairs whose answers are the same tokens.
        told: rewards that somebody has told to be constant or without a score.
    """

    stage: str
    learning_rate: float = 1e-4
    adapter: bool = True
    beta: float = 0.0
    num_iterations: int = 1
    max_completion_length: int = 0
    vocabulary: int = 0
    max_steps: int = 0
    stop: str = "the stop token"
    masked: float | None = None
    format: str = ""
    same_pairs: float = 0.0
    told: frozenset[str] = field(default_factory=frozenset)


def values(log: Log, key: str) -> list[float]:
    """Every finite value of a metric, the oldest first."""
    found = [entry[key] for entry in log if isinstance(entry.get(key), int | float)]
    return [float(value) for value in found if math.isfinite(value)]


def last(log: Log, key: str, number: int) -> list[float]:
    """The last values of a metric; empty while there are fewer."""
    found = values(log, key)
    return found[-number:] if len(found) >= number else []


def has_learnt(log: Log) -> bool:
    """Whether enough steps with a learning rate above 0 were logged to move a weight."""
    return sum(rate > 0 for rate in values(log, "learning_rate")) > FEW


def rewards_of(log: Log) -> list[str]:
    """The names of all rewards that a log speaks of."""
    keys = dict.fromkeys(key for entry in log for key in entry)
    return [
        key.removeprefix("rewards/").removesuffix("/mean")
        for key in keys
        if key.startswith("rewards/") and key.endswith("/mean")
    ]


# rollouts


def equal_rewards(log: Log, training: Training) -> Found:
    """No group with a difference: every advantage is 0."""
    shares = last(log, "frac_reward_zero_std", FEW)
    if not shares or min(shares) < 1:
        return None
    flat = [
        name
        for name in rewards_of(log)
        if min(last(log, f"rewards/{name}/frac_zero_std", FEW) or [1.0]) == 1
    ]
    if flat and training.told.issuperset(flat):
        return None
    means = {name: last(log, f"rewards/{name}/mean", 1) for name in flat}
    of = ", ".join(f"{name} (mean {mean[0]:g})" for name, mean in means.items() if mean)
    return 1.0, (
        f"all rewards of every group were equal in the last {FEW} logged steps, of {of or 'all'}: "
        "every advantage is 0 and nothing is learnt; look at the completions (log_completions: "
        "true), ask easier or harder prompts, or add a reward that tells answers apart"
    )


def never_scored(log: Log, training: Training) -> Found:
    """A reward that returns None for all."""
    for name in rewards_of(log):
        if name not in training.told and last(log, f"rewards/{name}/unscored", FEW) == [1.0] * FEW:
            return 1.0, (
                f"reward {name} could score none of the completions of the last {FEW} logged steps; "
                "look at the column that it reads"
            )
    return None


def never_parsed(log: Log, training: Training) -> Found:
    """Completions that state no answer at all."""
    for name in rewards_of(log):
        if last(log, f"rewards/{name}/parsed", FEW) == [0.0] * FEW:
            return 0.0, (
                f"in none of the completions of the last {FEW} logged steps does reward {name} find "
                "an answer, right or wrong; say in the prompt how to end (\\boxed{…} or #### 5), "
                "reward that with format first, or start from a stage that has learnt it"
            )
    return None


def never_stops(log: Log, training: Training) -> Found:
    """Completions of which not one has ended by itself, from the start on."""
    shares = values(log, "completions/clipped_ratio")
    if len(shares) < FEW or min(shares) < 1:
        return None
    return 1.0, (
        f"not one completion has ended so far: the policy never produces {training.stop}; train it "
        "to stop with a stage sft (toolkit inspect shows whether its stop token is trained), or "
        "check the chat template"
    )


def completions_cut(log: Log, training: Training) -> Found:
    """Most completions cut at the limit."""
    shares = last(log, "completions/clipped_ratio", FEW)
    if not shares or min(shares) < CUT or min(values(log, "completions/clipped_ratio")) == 1:
        return None
    limit = training.max_completion_length
    return shares[-1], (
        f"{shares[-1]:.0%} of the completions are cut at max_completion_length {limit:,}, so what is "
        f"rewarded has no end; write max_completion_length: {2 * limit}, or reward shorter answers"
    )


def kl_explodes(log: Log, training: Training) -> Found:
    """A policy far away from its reference."""
    found = last(log, "kl", 1)
    if not found or found[0] <= KL_LIMIT or training.stage not in ("grpo", "ppo"):
        return None
    return found[0], (
        f"the KL to the reference is {found[0]:.2f} nats per token, over {KL_LIMIT:g}: the policy has "
        f"left what it started from; lower learning_rate, or raise beta (now {training.beta:g})"
    )


def kl_zero(log: Log, training: Training) -> Found:
    """A policy that is its reference to the bit, though it should have moved."""
    found = last(log, "kl", FEW + 1)
    if not found or any(found) or not has_learnt(log) or any(values(log, "kl")):
        return None
    return 0.0, (
        f"the KL to the reference is exactly 0 after {len(values(log, 'kl'))} logged steps: the "
        "adapter has not moved, or is not what samples; look at grad_norm and learning_rate"
    )


def entropy_collapsed(log: Log, training: Training) -> Found:
    """A policy that has no choice left, so that its samples are one."""
    found, now = values(log, "entropy"), last(log, "entropy", FEW)
    if training.stage not in ("grpo", "ppo") or not now:
        return None
    if max(now) >= COLLAPSED or max(now) >= OF_FIRST * found[0]:
        return None
    return now[-1], (
        f"the entropy has collapsed to {now[-1]:.2g} nats per token, at first {found[0]:.2g}: all "
        "samples are one, and nothing new is tried; lower learning_rate, raise beta or temperature, "
        "or write epsilon_high: 0.28"
    )


def clipped_away(log: Log, training: Training) -> Found:
    """Updates that PPO's clip throws away."""
    several = max(1, training.num_iterations)
    shares = last(log, "clip_ratio/region_mean", FEW * several)
    # of several updates over a rollout, the first is clipped nowhere
    share = sum(shares) / max(1, len(shares)) * (several / (several - 1) if several > 1 else 1)
    if share < CLIPPED:
        return None
    return share, (
        f"{share:.0%} of the tokens of an update are clipped: it goes further than epsilon allows; "
        "lower learning_rate or num_iterations"
    )


def never_clipped(log: Log, training: Training) -> Found:
    """Several updates over each rollout, and none that reaches the clip range."""
    shares = values(log, "clip_ratio/region_mean")
    if training.num_iterations < 2 or len(shares) < LONG or max(shares) > 0 or not has_learnt(log):
        return None
    return 0.0, (
        f"with num_iterations {training.num_iterations}, not one token was clipped in {len(shares)} "
        "logged steps: the policy hardly moves; raise learning_rate"
    )


def critic_explains_nothing(log: Log, training: Training) -> Found:
    """A critic that is worse than the mean, for long."""
    shares = last(log, "value/explained_variance", LONG)
    if not shares or max(shares) >= 0:
        return None
    return shares[-1], (
        f"value/explained_variance was below 0 in the last {LONG} logged rollouts (now "
        f"{shares[-1]:.2f}): the critic is worse than a constant; raise value_learning_rate, start it "
        "with value_start_from, or take larger rollouts (generation_batch_size)"
    )


# any training


def no_gradient(log: Log, training: Training) -> Found:
    """Nothing that moves a weight."""
    norms = last(log, "grad_norm", FEW)
    if not norms or any(norms):
        return None
    if training.stage in ("grpo", "ppo") and equal_rewards(log, training) is not None:
        return None  # the cause is told
    return 0.0, (
        f"the gradient is exactly 0 in the last {FEW} logged steps: nothing is learnt; look whether "
        "what is trained is used (lora_target_modules), and whether any token has a loss"
    )


def knows_nothing(log: Log, training: Training) -> Found:
    """A loss like that of a model that guesses."""
    losses = last(log, "loss", FEW)
    if training.stage not in ("sft", "pretrain") or training.vocabulary < 2 or not losses:
        return None
    begun = log[-1].get("step", 0) * 10 < training.max_steps
    guess = math.log(training.vocabulary)
    if (training.stage == "pretrain" and begun) or min(losses) < guess * (1 - NEAR):
        return None
    return losses[-1], (
        f"the loss is {losses[-1]:.2f}, and a model that guesses among {training.vocabulary:,} tokens "
        f"has ln({training.vocabulary:,}) = {guess:.2f}: the base knows nothing of these tokens; "
        "check that its weights were loaded and that the tokenizer is its own"
    )


def no_margin(log: Log, training: Training) -> Found:
    """Preferences of which nothing is learnt."""
    key = {"reward": "margin", "dpo": "rewards/margins"}.get(training.stage, "")
    margins = last(log, key, FEW + 1)
    if not margins or not has_learnt(log) or max(map(abs, margins)) >= SMALL_MARGIN:
        return None
    return margins[-1], (
        f"the rewards of chosen and rejected answers differ by {margins[-1]:.1g} after "
        f"{len(values(log, key))} logged steps: nothing is learnt of the pairs; look whether they "
        "differ at all (toolkit inspect), and raise learning_rate"
    )


# before the first step


def rate_far_from_lora(log: Log, training: Training) -> Found:
    """The learning rate of full fine-tuning on an adapter, or one that no training survives."""
    low, high = LORA.get(training.stage, (0.0, math.inf))
    rate = training.learning_rate
    if not training.adapter or low < rate <= high:
        return None
    said = f"a rate for all weights: LoRA takes some ten times as much, as {low * 10:g}"
    if rate > high:
        said = f"over {high:g}, and few adapters survive that; try 2e-4"
    return rate, f"learning_rate {rate:g} is {said}"


def all_masked(log: Log, training: Training) -> Found:
    """Sequences without a trained token."""
    if training.masked is None or training.masked < 1:
        return None
    return 1.0, (
        "masked share 1: none of the first sequences has a token with loss, so nothing is learnt; "
        "look at them with toolkit inspect"
    )


def none_masked(log: Log, training: Training) -> Found:
    """Questions that are trained like answers."""
    asked = training.format in ("messages", "prompt_completion")
    if training.masked is None or training.masked > 0 or not asked:
        return None
    return 0.0, (
        "masked share 0: the questions are trained like the answers, so the model learns to ask; "
        "assistant_only_loss: true trains the assistant's turns alone"
    )


def chosen_is_rejected(log: Log, training: Training) -> Found:
    """Pairs without a difference."""
    if training.same_pairs == 0:
        return None
    return training.same_pairs, (
        f"in {training.same_pairs:.0%} of the first pairs, chosen and rejected are the same tokens: "
        "nothing can be learnt of them; look at the columns, and at max_length"
    )


RULES: dict[str, Callable[[Log, Training], Found]] = {
    rule.__name__: rule
    for rule in (
        equal_rewards, never_scored, never_parsed, never_stops, completions_cut, kl_explodes,
        kl_zero, entropy_collapsed, clipped_away, never_clipped, critic_explains_nothing,
        no_gradient, knows_nothing, no_margin,
    )
}  # fmt: skip
"""What is looked for whenever something is logged, by name."""
BEFORE: dict[str, Callable[[Log, Training], Found]] = {
    rule.__name__: rule
    for rule in (rate_far_from_lora, all_masked, none_masked, chosen_is_rejected)
}
"""What is looked for before the first step."""
