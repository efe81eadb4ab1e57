"""A reward stage's adapter as a reward function, on the very base that is trained."""

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from toolkit.models.heads import add_scalar_heads, load_scalar_adapter
from toolkit.models.same_words import check_same_words
from toolkit.models.switching import adapter_layers, train_only
from toolkit.recipe.keys import ADAPTER


class AdapterReward:
    """Scores completions by a reward adapter beside the policy; the base is not loaded again.

    It reads the tokens that were sampled, stop token and all, as stage reward read its pairs.

    Args:
        name: of the reward stage, or its folder or Hub id.
        directory: where the adapter is.
    """

    def __init__(self, name: str, directory: str):
        self.__name__ = f"{ADAPTER}{name}"
        self.directory = directory
        self.trainer: Any = None
        self.adapter = ""

    def bind(self, trainer: Any, adapter: str) -> None:
        """Put the adapter on the trainer's model.

        Args:
            trainer: a GRPOTrainer with an adapter as its policy.
            adapter: what it is called there.

        Raises:
            RecipeError: if it is no reward adapter, or does not fit the base or the tokenizer.
        """
        model: PeftModel = trainer.model
        check_same_words(self.directory, trainer.processing_class)
        if not hasattr(model, "scalar_heads"):
            add_scalar_heads(model)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        load_scalar_adapter(model, self.directory, adapter)
        train_only(model, trained)
        for layer in adapter_layers(model):
            dropouts = getattr(layer, "lora_dropout", {})
            if adapter in dropouts:
                dropouts[adapter] = nn.Identity()  # the policy trains, its judge does not
        self.trainer, self.adapter = trainer, adapter

    @torch.no_grad()
    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[list[int]],
        **columns: Any,
    ) -> list[float]:
        """The score at the last token of each completion."""
        asked = self.trainer._tokenize_prompts(list(prompts))[0]
        rows = [[*a, *b] for a, b in zip(asked, completion_ids, strict=True)]
        size = self.trainer.args.per_device_train_batch_size
        found: list[float] = []
        for first in range(0, len(rows), size):
            found += self.score(rows[first : first + size])
        return found

    def score(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """The scores of whole sequences of tokens, in one batch."""
        pad = self.trainer.processing_class.pad_token_id
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        seen = torch.arange(longest)[None] < lengths[:, None]
        device = self.trainer.accelerator.device
        scalars = self.trainer.model(
            input_ids=ids.to(device),
            attention_mask=seen.long().to(device),
            scalar_head=self.adapter,
        )
        last = (lengths - 1).to(device)[:, None]
        return scalars.gather(1, last)[:, 0].tolist()
