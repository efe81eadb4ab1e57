"""What reward and dpo train on: pairs of answers as tokens, and the tokenizer that they need."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.data.bad_rows import BadRows
from toolkit.data.once import together
from toolkit.data.pairs import Pairs, tokenize_pairs
from toolkit.data.sources import Rows, load_rows
from toolkit.errors import DataError, RecipeError
from toolkit.models import chatml
from toolkit.models.load import commit_of
from toolkit.recipe import StageRecipe
from toolkit.stages.prepared import Examples, RowsAgain, chat_tokenizer, first_rows, tell_trained
from toolkit.stages.terminal import note

TOKENS = ("prompt_ids", "chosen_ids", "rejected_ids")


@dataclass
class Preferences:
    """What is trained, before any weight is loaded.

    Attributes:
        rows: the rows as read, with their origin.
        tokenizer: with the template, the stop token and the pad token that training needs.
        change: what was added to it.
        pairs: "train", and "eval" where rows are held out.
    """

    rows: Rows
    tokenizer: PreTrainedTokenizerBase
    change: chatml.TokenizerChange
    pairs: dict[str, Pairs]

    @property
    def train(self) -> Dataset:
        """The pairs that are trained."""
        return self.pairs["train"].dataset

    @property
    def held_out(self) -> Dataset | None:
        """The pairs that are held out, if any."""
        return self.pairs["eval"].dataset if "eval" in self.pairs else None

    @property
    def longest(self) -> int:
        """As of `longest_of`, of the pairs that are trained."""
        return longest_of(self.train)

    def origin(self, recipe: StageRecipe) -> dict[str, Any]:
        """Where base and rows come from, and what became of the rows, for the manifest."""
        name, revision = recipe["model_name_or_path"], recipe["model_revision"]
        return {
            "base": {"name": name, "commit": commit_of(name, revision) if name else None},
            "data": self.rows.provenance,
            "bad_rows": self.rows.bad.record(),
            "pairs": {split: asdict(found.report) for split, found in self.pairs.items()},
        }

    def rows_again(self, recipe: StageRecipe) -> RowsAgain:
        """Gives the first pairs as they were trained, and as a tokenizer makes them."""

        def again(tokenizer: PreTrainedTokenizerBase) -> tuple[list[list[int]], list[list[int]]]:
            rows, bad = first_rows(self.rows.train), BadRows(recipe["max_bad_rows"])
            try:
                made = tokenize_pairs(
                    rows, tokenizer, max_length=recipe["max_length"], bad=bad
                ).dataset
            except DataError:  # none of these few rows makes a pair
                return [], []
            trained: list[Any] = list(self.train.select(range(len(made))))
            return [all_ids(pair) for pair in trained], [all_ids(pair) for pair in list[Any](made)]

        return again


def prepare_pairs(
    recipe: StageRecipe,
    parent: str | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    train_dataset: Examples | None = None,
    eval_dataset: Examples | None = None,
) -> Preferences:
    """Read the rows, and turn them into pairs of token ids; arguments as of the stage.

    Of several processes, every one calls it.
    """
    with together():
        rows = load_rows(
            recipe, purpose="preference", train_dataset=train_dataset, eval_dataset=eval_dataset
        )
        tokenizer, change = chat_tokenizer(recipe, parent, processing_class, rows.conversational)
        pairs = {
            split: tokenize_pairs(
                data,
                tokenizer,
                max_length=recipe["max_length"],
                num_proc=recipe["dataset_num_proc"],
                bad=rows.bad,
            )
            for split, data in (("train", rows.train), ("eval", rows.eval))
            if data is not None
        }
    return Preferences(rows, tokenizer, change, pairs)


def token_counts(pairs: Dataset, column: str) -> np.ndarray:
    """How many tokens each pair has in a column."""
    table: Any = pairs.select_columns([column]).with_format("arrow")[:]
    return pc.list_value_length(table[column]).to_numpy()  # pyright: ignore - made when it is loaded


def whole_ids(pair: Mapping[str, Any]) -> list[int]:
    """The prompt and its chosen answer."""
    return [*pair["prompt_ids"], *pair["chosen_ids"]]


def all_ids(pair: Mapping[str, Any]) -> list[int]:
    """The prompt and both answers."""
    return [*whole_ids(pair), *pair["rejected_ids"]]


def longest_of(pairs: Dataset) -> int:
    """Tokens of the longest answer of some pairs, its prompt included."""
    prompt, chosen, rejected = (token_counts(pairs, name) for name in TOKENS)
    return int((prompt + np.maximum(chosen, rejected)).max())


def check_room(data: Preferences, model: PreTrainedModel) -> None:
    """Refuse pairs with more positions than the base has.

    Raises:
        RecipeError: naming the longest sequence and the base's limit.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(longest_of(found.dataset) for found in data.pairs.values())
    if limit is not None and 0 < limit < longest:
        raise RecipeError(
            f"max_length: the longest sequence has {longest:,} tokens, but the base has "
            f"{limit:,} positions; write max_length: {limit}, and pairs with a longer one are left "
            "out and counted"
        )


def tell(data: Preferences, model: Any) -> None:
    """Say what is trained: the rows, the pairs, what was added, the parameters."""
    for line in [*data.rows.notes, *data.change.notes]:
        note(line)
    for split, found in data.pairs.items():
        for line in found.report.lines():
            note(line if split == "train" else f"held out: {line}")
    tell_trained(model)
