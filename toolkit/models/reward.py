"""Reward models: a base with a scalar head, read at the last token, and the adapter that trains it.

A reward adapter is what PEFT calls SEQ_CLS: LoRA over a sequence classifier of one label, whose head
`score` is trained and saved with it.
"""

import logging
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftConfig, PeftModel, TaskType
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from toolkit.errors import RecipeError
from toolkit.models import adapters, chatml
from toolkit.models.finite import check_weights
from toolkit.models.heads import HEAD, head_of
from toolkit.models.load import (
    adapter_config,
    load_adapter,
    load_base,
    load_tokenizer,
    loading,
)
from toolkit.models.precision import device_dtype
from toolkit.models.proof import Check
from toolkit.recipe import StageRecipe


class RewardModel(nn.Module):
    """Scores whole sequences, each by itself: neither padding nor its neighbours matter.

    Args:
        model: a causal language model or a sequence classifier, with or without an adapter.
        head: the weight of its scalar head, of shape (1, H).
    """

    head: Tensor

    def __init__(self, model: Any, head: Tensor):
        super().__init__()
        self.model = model
        self.register_buffer("head", head.detach().float(), persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores of a batch in float32, of shape (B,); arguments of shape (B, L), filled anywhere."""
        hidden = (
            base_of(self.model)
            .base_model(input_ids, attention_mask=attention_mask, use_cache=False)
            .last_hidden_state
        )
        last = at_last(hidden, attention_mask).float()
        return last @ self.head[0].to(last.device)

    @torch.no_grad()
    def score(self, sequences: Sequence[Sequence[int]], batch_size: int = 8) -> list[float]:
        """The score of each sequence, in their order.

        Args:
            sequences: token ids of a prompt and its completion, at least one each.
            batch_size: how many are scored together.

        Raises:
            ValueError: for an empty sequence, which has no last token.
        """
        if not all(len(ids) for ids in sequences):
            raise ValueError("expected at least one token per sequence, found an empty one")
        was_training = self.model.training
        self.model.eval()
        device = self.model.get_input_embeddings().weight.device
        found = [0.0] * len(sequences)
        order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            rows = [torch.tensor(list(sequences[index]), device=device) for index in chosen]
            mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], True)
            scores = self(nn.utils.rnn.pad_sequence(rows, True), mask).tolist()
            for index, score in zip(chosen, scores, strict=True):
                found[index] = score
        self.model.train(was_training)
        return found


def base_of(model: Any) -> Any:
    """The model itself, or that below its adapter."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def at_last(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Of hidden states (B, L, H), those at the last position that the mask keeps; (B, H)."""
    if attention_mask is None:
        return hidden[:, -1]
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    last = (positions * (attention_mask != 0)).argmax(-1).to(hidden.device)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def load_reward_model(
    directory: str, *, lent: bool = False, **kwargs: Any
) -> tuple[RewardModel, PreTrainedTokenizerBase]:
    """What a reward stage has made, by plain PEFT or transformers, and its tokenizer.

    Args:
        directory: the folder or Hub id of a reward adapter or of a whole reward model.
        lent: as of `load_adapter`.
        **kwargs: what `from_pretrained` is given for the base, such as `dtype`.

    Raises:
        RecipeError: if it has no head, or cannot be loaded.
        HubError: if the Hub does not have it or does not give it.
    """
    name, adapter = str(directory), adapter_config(str(directory))
    tokenizer = load_tokenizer(name)
    kwargs = {"dtype": "auto"} | kwargs
    if adapter is not None:
        head = head_of(name)
        with without_report():
            kind = AutoPeftModelForSequenceClassification
            model = load_adapter(name, adapter, kind, lent=lent, num_labels=1, **kwargs)
        return RewardModel(model, head).eval(), tokenizer
    with loading(name), without_report():
        kwargs["dtype"] = device_dtype(name, kwargs["dtype"])
        model, found = AutoModelForSequenceClassification.from_pretrained(
            name, num_labels=1, output_loading_info=True, **kwargs
        )
    if found["missing_keys"]:
        raise RecipeError(
            f"{name}: expected a reward model, found no {sorted(found['missing_keys'])[0]} in it; "
            "name what stage reward has made"
        )
    check_weights(name, model)
    return RewardModel(model, model.get_submodule(HEAD).weight).eval(), tokenizer


def is_classifier(directory: Path) -> bool:
    """Whether a whole model scores sequences, by its config.json."""
    kinds = AutoConfig.from_pretrained(directory).architectures or [""]
    return kinds[0].endswith("ForSequenceClassification")


def probe_scores(model: Any, probe: list[list[int]]) -> list[Tensor]:
    """The score of every probe sequence, computed alone; each of shape (1,)."""
    if not isinstance(model, RewardModel):
        head = active_head(base_of(model)).weight
        if hasattr(head, "full_tensor"):
            return sharded_scores(model, probe)
        model = RewardModel(model, head)
    return [torch.tensor(model.score([ids])) for ids in probe]


@torch.no_grad()
def sharded_scores(model: Any, probe: list[list[int]]) -> list[Tensor]:
    """As `probe_scores`, by the forward pass of a model in training, which gathers its weights."""
    was_training = model.training
    model.eval()
    rows = [torch.tensor([ids], device=model.device) for ids in probe]
    found = [model(row, attention_mask=torch.ones_like(row)).logits[0].float() for row in rows]
    model.train(was_training)
    return [score.cpu() for score in found]


SCORES = Check(
    "scores",
    probe_scores,
    lambda name, **kwargs: load_reward_model(name, **kwargs)[0],
    lambda model: model.model if isinstance(model, RewardModel) else model,
)


def load_reward_base(recipe: StageRecipe) -> PreTrainedModel:
    """The base of a recipe as a sequence classifier of one label.

    A head that the checkpoint does not have starts at zeros: every pair is a tie at first, the loss
    is ln 2 whatever the seed and the width, and there is no random preference to unlearn. LoRA gets
    its first gradient with the second step, when the head has moved.

    Raises:
        RecipeError: if it cannot be loaded, or transformers has no such head for it.
        HubError: if the Hub does not have it or does not give it.
    """
    with without_report():
        return load_base(
            recipe, AutoModelForSequenceClassification, new=f"{HEAD}.weight", num_labels=1
        )


@contextmanager
def without_report() -> Iterator[None]:
    """Keep from the user what transformers says of the new head, and of the old one left out.

    Both are meant, and whatever else is missing is refused.
    """
    logger = logging.getLogger("transformers.modeling_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def check_reward_base(model: Any) -> None:
    """Refuse a model in memory that gives no score.

    Raises:
        RecipeError: naming what was found.
    """
    head = getattr(model, HEAD, None)
    found = type(model).__name__
    if head is not None and tuple(head.weight.shape)[:1] != (1,):
        found += f" with {head.weight.shape[0]} labels"
    elif head is not None:
        return
    raise RecipeError(
        "model: expected a sequence classifier with one label and its head in `score`, found "
        f"{found}; load it with AutoModelForSequenceClassification.from_pretrained(…, num_labels=1), "
        "or name its folder as model_name_or_path"
    )


def fit_reward_base(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, change: chatml.TokenizerChange
) -> None:
    """Make room for added tokens, and read the score at the last token that is no padding."""
    if len(tokenizer) > chatml.matrices(model)[0].shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if change.added:
        chatml.start_at_mean(model, change.added)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    read_last(model)


def read_last(model: PreTrainedModel) -> None:
    """Score the last position of the attention mask only, in the precision of the head.

    transformers 5.23 (modeling_layers.py, GenericForSequenceClassification) looks for the last token
    that is not the pad token, and so misreads a sequence that ends with it; and it scores every
    position, in bfloat16 under autocast, where scores above 4 differ by 1/32 at least.
    """

    def forward(
        self: Any,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        hidden = self.base_model(
            input_ids, attention_mask=attention_mask, **kwargs
        ).last_hidden_state
        last, head = at_last(hidden, attention_mask), active_head(self)
        with torch.autocast(last.device.type, enabled=False):
            return SequenceClassifierOutputWithPast(logits=head(last.to(head.weight.dtype)))

    model.forward = types.MethodType(forward, model)


def active_head(model: Any) -> nn.Linear:
    """The head in use: that of the active adapter, or the model's own."""
    head: Any = getattr(model, HEAD)
    if isinstance(head, ModulesToSaveWrapper) and head.active_adapters:
        held: Any = head.modules_to_save
        return held[head.active_adapters[0]]
    return head  # pyright: ignore[reportReturnType]


def attach(
    model: PreTrainedModel, recipe: StageRecipe, change: chatml.TokenizerChange
) -> PeftModel:
    """Put a fresh LoRA adapter and its head on a sequence classifier; as `adapters.attach`.

    Raises:
        RecipeError: if a LoRA key names nothing of this model, or the head.
    """
    config = adapters.lora_config(recipe)
    if HEAD in adapters.as_list(config.target_modules):
        raise RecipeError(f"lora_target_modules: {HEAD} is trained whole; leave it out")
    as_classifier(config, model)
    return tidy(adapters.attach_as(config, model, recipe, change))


def continue_from(model: PreTrainedModel, parent: str, change: chatml.TokenizerChange) -> PeftModel:
    """Continue a copy of an adapter: a reward adapter with its head, another with a new head.

    Of an adapter over the causal model, what belongs to its output matrix is left out: a sequence
    classifier has none.

    Args:
        model: the frozen base, a sequence classifier.
        parent: the adapter's folder or Hub id.
        change: what was added to its tokenizer.

    Raises:
        RecipeError: if the adapter leaves no way to train added tokens.
    """
    config = PeftConfig.from_pretrained(parent)
    assert isinstance(config, LoraConfig)
    if config.task_type == TaskType.SEQ_CLS:
        return tidy(adapters.continue_from(model, parent, change))
    as_classifier(config, model)
    rows = config.trainable_token_indices
    there = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    if isinstance(rows, dict):
        rows = {name: ids for name, ids in rows.items() if name.rpartition(".")[2] in there}
        config.trainable_token_indices = rows or None
    whole = [name for name in config.modules_to_save or () if name.rpartition(".")[2] in there]
    config.modules_to_save = whole
    return tidy(adapters.continue_as(config, model, parent, change, new=f"{HEAD}.weight"))


def as_classifier(config: LoraConfig, model: PreTrainedModel) -> None:
    """Make PEFT train and save the head. Its default task crashes here, or drops the head."""
    config.task_type = TaskType.SEQ_CLS
    whole = config.modules_to_save or []
    config.modules_to_save = [*whole, *([] if HEAD in whole else [HEAD])]


def tidy(model: PeftModel) -> PeftModel:
    """List each module that is trained whole once; PEFT 0.21 adds its own two names every time."""
    config: Any = model.peft_config["default"]
    there = {name.rpartition(".")[2] for name, _ in model.get_base_model().named_modules()}
    config.modules_to_save = sorted({name for name in config.modules_to_save if name in there})
    return model
