"""Which curves are drawn of each kind of stage, by the keys that the trainers log."""

from collections.abc import Mapping
from dataclasses import dataclass, field

LOWEST_EXPLAINED = -1.0  # a critic that knows nothing yet is off by any amount


@dataclass(frozen=True)
class Panel:
    """One small picture: values of the log over the steps.

    Attributes:
        title: what it shows, in words.
        curves: the word for each curve by the log's key; "" where there is one alone.
        unit: beside the axis.
        band: the key of a standard deviation around the first curve.
        each: a key with a `*`: a curve of each that is there, if there are several.
        share: the values are shares of 1.
        from_zero: the axis begins at 0, unless values lie below.
        lowest: values below are drawn at it, as a triangle.
        noisy: many values are shown with their moving mean.
    """

    title: str
    curves: Mapping[str, str] = field(default_factory=dict)
    unit: str = ""
    band: str = ""
    each: str = ""
    share: bool = False
    from_zero: bool = False
    lowest: float | None = None
    noisy: bool = True


LOSS = Panel("Loss", {"loss": "training", "eval_loss": "held out"})
LEARNING_RATE = Panel("Learning rate", {"learning_rate": ""}, from_zero=True, noisy=False)
RIGHT, MARGIN = "Pairs ranked right", "Margin of the better answer"
EQUAL = "Groups whose rewards are all equal"
EXPLAINED = "Variance of returns that the critic explains"
SUPERVISED = (
    LOSS,
    Panel(
        "Tokens predicted right",
        {"mean_token_accuracy": "training", "eval_mean_token_accuracy": "held out"},
        share=True,
    ),
    LEARNING_RATE,
    Panel("Gradient norm", {"grad_norm": ""}, from_zero=True),
)
ROLLOUTS = (
    Panel(
        "Reward",
        {"reward": "mean", "eval_reward": "held out"},
        band="reward_std",
        each="rewards/*/mean",
    ),
    Panel(
        "Length of a completion",
        {"completions/mean_length": "mean", "eval_completions/mean_length": "held out"},
        unit="tokens",
        from_zero=True,
    ),
    Panel("KL from the reference", {"kl": ""}, unit="nats per token", from_zero=True),
    Panel("Entropy", {"entropy": ""}, unit="nats per token", from_zero=True),
    Panel("Tokens clipped", {"clip_ratio/region_mean": ""}, share=True, from_zero=True),
)
PANELS: dict[str, tuple[Panel, ...]] = {
    "pretrain": SUPERVISED,
    "sft": SUPERVISED,
    "rejection": (
        Panel("Held-out accuracy", {"held_out": ""}, share=True, from_zero=True, noisy=False),
        Panel("Problems answered right", {"solved": ""}, share=True, from_zero=True, noisy=False),
        *SUPERVISED[:2],
    ),
    "reward": (
        LOSS,
        Panel(RIGHT, {"accuracy": "training", "eval_accuracy": "held out"}, share=True),
        Panel(MARGIN, {"margin": "training", "eval_margin": "held out"}),
        LEARNING_RATE,
    ),
    "dpo": (
        LOSS,
        Panel(
            RIGHT,
            {"rewards/accuracies": "training", "eval_rewards/accuracies": "held out"},
            share=True,
        ),
        Panel(MARGIN, {"rewards/margins": "training", "eval_rewards/margins": "held out"}),
        Panel("Implicit reward", {"rewards/chosen": "chosen", "rewards/rejected": "rejected"}),
        LEARNING_RATE,
    ),
    "grpo": (
        *ROLLOUTS,
        Panel(EQUAL, {"frac_reward_zero_std": ""}, share=True, from_zero=True),
        LEARNING_RATE,
    ),
    "ppo": (
        *ROLLOUTS,
        Panel(EXPLAINED, {"value/explained_variance": ""}, lowest=LOWEST_EXPLAINED),
        LEARNING_RATE,
    ),
}
"""What is drawn of each kind of stage, as far as its log has it; the last one fills a row."""
