"""The keys that each stage knows: upstream's, and the few that are ours."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from toolkit.recipe.upstream import ENUMS, Field, fields_of, members_of

# stage -> the configuration of its trainer: transformers' own where a base is made, else TRL's;
# PPO here is GRPO's trainer with a value adapter
CONFIGS: Mapping[str, str | None] = {
    "pretrain": "TrainingArguments",
    "sft": "SFTConfig",
    "reward": "RewardConfig",
    "dpo": "DPOConfig",
    "grpo": "GRPOConfig",
    "ppo": "GRPOConfig",
    "rejection": "SFTConfig",
    "rank": None,
    "evaluate": None,
}
STAGES = tuple(CONFIGS)
TRAINING = tuple(stage for stage, config in CONFIGS.items() if config)

OURS = "toolkit"
ADAPTER = "adapter:"
"""What stands before the name of a reward stage, where a reward is named."""


@dataclass(frozen=True)
class Key:
    """A word of a recipe.

    Attributes:
        name: the key, the flag and the Python keyword.
        annotation: its type, as upstream writes it.
        default: upstream's default, or ours where the key is ours.
        help: what it means.
        choices: the values allowed, where they are few.
        owner: the upstream class that takes it; "toolkit" for ours.
    """

    name: str
    annotation: str
    default: Any
    help: str
    choices: tuple[Any, ...] | None
    owner: str


def _own(name: str, annotation: str, default: Any, text: str) -> Key:
    return Key(name, annotation, default, text, None, OURS)


NAMING = (
    _own("stage", "str", None, f"What is done: {', '.join(STAGES)}."),
    _own("name", "str", None, "In a pipeline: the stage's own name, and its folder."),
)
# Upstream's word for a flag that says yes; here it names what is trusted, so the type is ours.
TRUST = _own(
    "trust_remote_code",
    "str | bool",
    False,
    "REPO@SHA: the one repository, at one 40-digit revision, whose code may run. Not in a file.",
)
BAD_ROWS = _own(
    "max_bad_rows",
    "int",
    0,
    "How many rows may be left out because they break a rule; they are counted and listed.",
)
TRAINING_KEYS = (
    BAD_ROWS,
    _own(
        "global_batch_size",
        "int | None",
        None,
        "What one optimizer step sees on any number of devices; the accumulation is derived.",
    ),
    _own("dataset_revision", "str | None", None, "The revision of dataset_name on the Hub."),
    _own(
        "share_samples",
        "bool",
        False,
        "Whether completions, local paths and names of private repositories may leave this machine.",
    ),
)
START_REVISION = _own(
    "start_from_revision", "str | None", None, "The revision of start_from on the Hub."
)
ADAPTER_KEYS = (
    _own(
        "start_from",
        "str | None",
        None,
        "The adapter whose copy is trained on: an earlier stage's name, a folder or a Hub id.",
    ),
    START_REVISION,
    TRUST,
    _own(
        "trainer_class",
        "str | None",
        None,
        "Your own subclass of the stage's trainer: file.py:Class or package.module:Class.",
    ),
    _own(
        "chat_template_path",
        "str | None",
        None,
        "A Jinja file with a chat template, or the model whose template and tokens are taken.",
    ),
    _own(
        "fast",
        "bool",
        True,
        "On a CPU: whether padding, positions without loss and repeated prompts are left out.",
    ),
)
PROBES = _own(
    "probes",
    "bool",
    True,
    "Whether the built-in probes are asked of what the stage started from and of what it made.",
)
PRETRAIN_KEYS = (
    _own("model_type", "str", "llama", "The architecture, by transformers' name for it."),
    _own(
        "config_overrides",
        "dict[str, Any] | None",
        None,
        "Keys of that architecture's config that differ from its defaults.",
    ),
    _own(
        "attn_implementation",
        "str | None",
        None,
        "Which attention implementation to use; by default what transformers chooses.",
    ),
    _own("vocab_size", "int", 32_000, "Tokens of the byte-level BPE that is trained, at most."),
    _own("max_length", "int", 1024, "Length of a block of documents, in tokens."),
    _own("dataset_num_proc", "int | None", None, "Processes that tokenize the documents."),
)
REWARD_KEYS = (
    _own(
        "reward_funcs",
        "list[str | dict[str, Any]] | None",
        None,
        "Registry names, package.module:function, file.py:function, or adapter:NAME; one with "
        "parameters is a mapping: {name: length, target: 200}.",
    ),
    _own(
        "reward_timeout",
        "float | None",
        600.0,
        "Seconds that one call of a reward may take; null for no limit.",
    ),
    Key(
        "on_reward_error",
        "str",
        "stop",
        "Where a reward raises, takes too long or returns what is no number: stop, or leave the "
        "completions without a score and count them.",
        ("stop", "skip"),
        OURS,
    ),
    _own(
        "max_reward_errors",
        "float",
        0.05,
        "With on_reward_error: skip, the share of the completions of 100 calls of a reward that may "
        "fail before training stops.",
    ),
)
GUARD_KEYS = (
    _own(
        "gold_funcs",
        "list[str | dict[str, Any]] | None",
        None,
        "What the guard scores completions with and training never sees; named like reward_funcs.",
    ),
    Key(
        "guard",
        "str",
        "warn",
        "Where gold falls while the reward rises: warn, or stop and keep the checkpoint with the most "
        "gold; none measures nothing.",
        ("warn", "stop", "none"),
        OURS,
    ),
)
PPO_KEYS = (
    _own("vf_coef", "float", 0.1, "Weight of the value loss."),
    _own("gamma", "float", 1.0, "Discount per token."),
    _own("lam", "float", 1.0, "Bias-variance weight of generalised advantage estimation."),
    _own("cliprange_value", "float", 0.2, "Clip range of the value loss."),
    _own("missing_eos_penalty", "float | None", None, "Subtracted where a completion never stops."),
    _own("value_learning_rate", "float", 1e-4, "The learning rate of the value adapter."),
    _own(
        "value_start_from",
        "str | None",
        None,
        "The reward adapter whose copy, head included, the value adapter starts from: adapter:NAME. "
        "Absent: a copy of the policy, with a head of zeros.",
    ),
)
SAMPLING_KEYS = (
    _own("num_generations", "int", 4, "Completions sampled per prompt."),
    _own("temperature", "float", 1.0, "Sampling temperature; 0 takes the likeliest token."),
    _own("top_p", "float", 1.0, "Share of probability that is sampled from."),
    _own("top_k", "int", 0, "How many tokens are sampled from; 0 for all."),
    _own("max_completion_length", "int", 256, "Longest completion, in tokens."),
    _own("per_device_eval_batch_size", "int", 32, "Completions sampled together on a device."),
    _own("output_dir", "str | None", None, "Where the results go."),
    _own("seed", "int", 42, "Seed of the sampling."),
    TRUST,
)
TRACES = _own(
    "traces", "str | None", None, "The folder of traces that every answer is added to, as Parquet."
)
EVALUATE_KEYS = (
    _own("tasks", "list[dict[str, Any]] | None", None, "What is asked, one mapping per task."),
    _own("of", "list[str] | None", None, "What is examined: base, stages, folders or Hub ids."),
    _own("num_few_shot", "int", 4, "Solved examples that are shown to the base."),
    _own(
        "thinking",
        "list[str | dict[str, Any]] | None",
        None,
        "Ways of thinking that every model is also examined with: adaptive, or with parameters "
        "{name: best_of, n: 8, tokens: 400}. The first of reward_funcs judges.",
    ),
    TRACES,
    *SAMPLING_KEYS,
)
REJECTION_KEYS = (
    _own("rounds", "int", 3, "How often answers are sampled and learnt, at most."),
    _own("tasks", "list[dict[str, Any]] | None", None, "The held-out exam of every round."),
    _own("min_reward", "float", 1.0, "The sum of rewards from which an answer counts as right."),
    Key(
        "keep",
        "str",
        "diverse",
        "Which right answers are learnt: the shortest, those least like one another, or all, "
        "repeated ones too, in the order in which they were sampled.",
        ("shortest", "diverse", "all"),
        OURS,
    ),
    _own("max_per_problem", "int", 4, "How many right answers to one problem are learnt at most."),
    _own(
        "hint",
        "str | None",
        "Hint: the answer is {answer}.",
        "Shown behind a problem that was never answered right, when it is asked again; not when the "
        "answer is learnt. null asks no problem again.",
    ),
    TRACES,
    *(key for key in SAMPLING_KEYS if key.name not in ("output_dir", "seed", "trust_remote_code")),
)
RANK_KEYS = (
    _own(
        "start_from",
        "str | None",
        None,
        "The adapter whose answers are ranked: an earlier stage's name, a folder or a Hub id.",
    ),
    START_REVISION,
    _own("dataset_revision", "str | None", None, "The revision of dataset_name on the Hub."),
    BAD_ROWS,
    *SAMPLING_KEYS,
)


@cache
def keys_of(stage: str) -> Mapping[str, Key]:
    """Every key that a stage knows, ours first; a KeyError for a word that is no stage."""
    config = CONFIGS[stage]
    found = {key.name: key for key in (*NAMING, *_own_keys(stage))}
    owners = (
        *(("ModelConfig",) if stage != "pretrain" else ()),
        *((config,) if config else ()),
        *(("ScriptArguments", "DatasetMixtureConfig") if stage != "evaluate" else ()),
    )
    for owner in owners:
        for field in fields_of(owner).values():
            if config or not _of_training_only(field.name):
                found.setdefault(field.name, _key(field, owner))
    return found


def _own_keys(stage: str) -> tuple[Key, ...]:
    if stage == "evaluate":
        return (*EVALUATE_KEYS, *REWARD_KEYS)
    if stage == "rank":
        return (*RANK_KEYS, *REWARD_KEYS)
    if stage == "pretrain":
        return (*TRAINING_KEYS, PROBES, *PRETRAIN_KEYS)
    if stage == "rejection":
        return (*ADAPTER_KEYS, *TRAINING_KEYS, PROBES, *REWARD_KEYS, *REJECTION_KEYS)
    rewarded = (*REWARD_KEYS, *GUARD_KEYS) if stage in ("grpo", "ppo") else ()
    spoken = (PROBES,) if stage != "reward" else ()  # which gives scores, and no words
    critic = PPO_KEYS if stage == "ppo" else ()
    return (*ADAPTER_KEYS, *TRAINING_KEYS, *spoken, *rewarded, *critic)


def _of_training_only(name: str) -> bool:
    """Whether a key of the model speaks of the adapter, which an examined one brings itself."""
    return name.startswith("lora_") or name in ("use_peft", "use_rslora", "use_dora")


def _key(field: Field, owner: str) -> Key:
    choices = field.choices
    words = field.annotation.replace("|", " ").split()
    if choices is None and (enum := next((word for word in words if word in ENUMS), None)):
        choices = members_of(enum)
    return Key(field.name, field.annotation, field.default, field.help, choices, owner)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like one that is not; the first that it is the beginning of."""
    words = list(known)
    begun = [other for other in words if len(word) > 3 and other.startswith(f"{word}_")]
    found = begun or difflib.get_close_matches(word[:100], words, n=1)
    return found[0] if found else None


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """The end of a message about an unknown word."""
    near = nearest(word, known)
    return f"; did you mean {near!r}?" if near else otherwise
