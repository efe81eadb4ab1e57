"""The configuration of PPO: TRL's for GRPO, and what a critic needs."""

from dataclasses import dataclass, field

from trl import GRPOConfig

FEWEST = "GRPO requires at least 2 generations per prompt"  # TRL 1.16, the last but its vLLM checks
PER_SEQUENCE = ("vespo", "luspo")


@dataclass
class PPOConfig(GRPOConfig):
    """GRPO's configuration with the words that TRL's own PPO had.

    The KL to the reference is a penalty in the reward of each token, as in InstructGPT, and `beta`
    its coefficient; GRPO's has it in the loss. `num_iterations` are the epochs over each rollout,
    `epsilon` the clip range of the policy. `lam` is 1, not the 0.95 of TRL's PPO: below 1 the first
    tokens of a long completion learn from the critic alone, and at first it knows nothing
    (docs/algorithms.md).
    """

    num_generations: int | None = field(
        default=1, metadata={"help": "Completions per prompt, from 1."}
    )
    beta: float = field(default=0.05, metadata={"help": "Weight of the KL penalty in the reward."})
    disable_dropout: bool = field(
        default=True, metadata={"help": "With dropout, a policy's ratio to itself is not 1."}
    )
    num_iterations: int = field(default=4, metadata={"help": "Epochs over each rollout."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    gamma: float = field(default=1.0, metadata={"help": "Discount per token."})
    lam: float = field(default=1.0, metadata={"help": "Lambda of GAE."})
    cliprange_value: float = field(default=0.2, metadata={"help": "Clip range of the value loss."})
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Subtracted where a completion never stops."}
    )
    value_learning_rate: float = field(
        default=1e-4, metadata={"help": "The learning rate of the value adapter."}
    )

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ValueError as error:
            # GRPO compares the completions of one prompt with one another; a critic needs but one
            if self.num_generations != 1 or not str(error).startswith(FEWEST):
                raise
        if self.loss_type in PER_SEQUENCE:
            raise ValueError(
                f"loss_type {self.loss_type!r} has one weight per completion, and PPO's advantages "
                "are per token; use dapo, grpo, bnpo, dr_grpo, cispo or sapo"
            )
        if self.multi_objective_aggregation != "sum_then_normalize":
            raise ValueError(
                "multi_objective_aggregation compares the completions of one prompt, which PPO "
                "does not; weigh the rewards with reward_weights"
            )
