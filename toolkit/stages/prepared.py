"""What a stage trains on: the rows, the tokenizer they need, and their sequences."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.data.bad_rows import BadRows
from toolkit.data.chat import describe_template
from toolkit.data.inspect import marked
from toolkit.data.once import together
from toolkit.data.sequence_report import check_stops, readable
from toolkit.data.sequences import Sequences, tokenize
from toolkit.data.sources import Rows, load_rows
from toolkit.errors import DataError, RecipeError
from toolkit.models import adapters, chatml
from toolkit.models.finite import check_weights
from toolkit.models.load import commit_of, fetch, load_tokenizer, loading, remote_code
from toolkit.recipe import StageRecipe
from toolkit.stages.processes import on_cpu
from toolkit.stages.terminal import note

SHOWN_ROWS, SHOWN_TOKENS = 2, 400  # in the report: enough to see what carries loss
PROVED_ROWS = 4  # one batch of them costs nothing, and shows a template that changed
RowsAgain = Callable[[Any], tuple[list[list[int]], list[list[int]]]]
Examples = Dataset | Sequence[Mapping[str, Any]]


def starting_point(recipe: StageRecipe, earlier: Mapping[str, Path]) -> str | None:
    """The adapter that `start_from` names: an earlier stage's folder, else the name itself.

    Raises:
        RecipeError: if `start_from_revision` is asked of a folder.
        HubError: if the Hub does not give that revision.
    """
    start, revision = recipe["start_from"], recipe["start_from_revision"]
    if start is None or revision is None:
        return None if start is None else str(earlier.get(start, start))
    if start in earlier or Path(start).expanduser().is_dir():
        raise RecipeError(
            f"start_from_revision: {start} is a folder here, and {revision!r} is a revision on the "
            "Hub; leave the key out"
        )
    return fetch(start, revision)


@dataclass
class Prepared:
    """What is trained, before any weight is loaded.

    Attributes:
        rows: the rows as read, with their origin.
        tokenizer: with the template, the stop token and the pad token that training needs.
        change: what was added to it.
        sequences: "train", and "eval" where rows are held out.
    """

    rows: Rows
    tokenizer: PreTrainedTokenizerBase
    change: chatml.TokenizerChange
    sequences: dict[str, Sequences]

    def origin(self, recipe: StageRecipe) -> dict[str, Any]:
        """Where base and rows come from, and what became of the rows, for the manifest."""
        name, revision = recipe["model_name_or_path"], recipe["model_revision"]
        return {
            "base": {"name": name, "commit": commit_of(name, revision) if name else None},
            "data": self.rows.provenance,
            "bad_rows": self.rows.bad.record(),
            "sequences": {split: asdict(found.report) for split, found in self.sequences.items()},
            "samples": self.samples(),
        }

    def samples(self) -> list[dict[str, Any]]:
        """The first sequences with what is trained of them, for the report; no push takes them."""
        rows = self.sequences["train"].dataset
        few = range(min(SHOWN_ROWS, len(rows)))
        return [marked(rows[at], self.tokenizer, SHOWN_TOKENS) for at in few]

    def rows_again(self, recipe: StageRecipe) -> RowsAgain:
        """Gives the first sequences as they were trained, and as a tokenizer makes them."""

        def again(tokenizer: PreTrainedTokenizerBase) -> tuple[list[list[int]], list[list[int]]]:
            rows = first_rows(self.rows.train)
            try:
                made = sequences_of(recipe, self.rows, rows, tokenizer).dataset
            except DataError:  # none of these few rows has a trained token
                return [], []
            return self.sequences["train"].dataset[: len(made)]["input_ids"], made[:]["input_ids"]

        return again


def prepare(
    recipe: StageRecipe,
    parent: str | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    train_dataset: Examples | None = None,
    eval_dataset: Examples | None = None,
) -> Prepared:
    """Read the rows, and turn them into `input_ids` and `labels`; arguments as of the stage.

    Of several processes, every one calls it.
    """
    with together():
        rows = load_rows(recipe, train_dataset=train_dataset, eval_dataset=eval_dataset)
        tokenizer, change = chat_tokenizer(recipe, parent, processing_class, rows.conversational)
        sequences = {
            split: sequences_of(recipe, rows, data, tokenizer, recipe["dataset_num_proc"], rows.bad)
            for split, data in (("train", rows.train), ("eval", rows.eval))
            if data is not None
        }
    check_stops(sequences["train"].report)
    return Prepared(rows, tokenizer, change, sequences)


def sequences_of(
    recipe: StageRecipe,
    rows: Rows,
    data: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    num_proc: int | None = None,
    bad: BadRows | None = None,
) -> Sequences:
    """The sequences of some of the rows, as the recipe says."""
    return tokenize(
        data,
        tokenizer,
        format=rows.format,
        max_length=cut_at(recipe),
        completion_only_loss=recipe["completion_only_loss"],
        assistant_only_loss=recipe["assistant_only_loss"],
        dataset_text_field=recipe["dataset_text_field"],
        num_proc=num_proc,
        truncation_mode=recipe["truncation_mode"],
        bad=bad or BadRows(recipe["max_bad_rows"]),
    )


def cut_at(recipe: StageRecipe) -> int | None:
    """How long a sequence may be; None where what is longer goes on in the next block.

    So TRL 1.16 packs with these strategies (data_utils.py, pack_dataset), and no token is lost.
    """
    packs_all = recipe["packing"] and recipe["eval_packing"] is not False
    goes_on = packs_all and recipe["packing_strategy"] in ("bfd_split", "wrapped")
    return None if goes_on else recipe["max_length"]


def first_rows(rows: Dataset) -> Dataset:
    """The rows that the proof renders again."""
    return rows.select(range(min(PROVED_ROWS, len(rows))))


def chat_tokenizer(
    recipe: StageRecipe,
    parent: str | None,
    processing_class: PreTrainedTokenizerBase | None,
    conversational: bool,
) -> tuple[PreTrainedTokenizerBase, chatml.TokenizerChange]:
    """A tokenizer with the template, the stop token and the pad token that training needs.

    Args:
        recipe: the stage's keys.
        parent: the adapter that is continued; its tokenizer comes first.
        processing_class: what Python gave instead, which stays as it is.
        conversational: whether the rows are messages.

    Returns:
        The tokenizer, and what was added to it.
    """
    tokenizer = copy.deepcopy(processing_class) or load_tokenizer(
        parent or recipe["model_name_or_path"], **({} if parent else remote_code(recipe))
    )
    change = chatml.prepare_tokenizer(
        tokenizer,
        conversational=conversational,
        chat_template_path=recipe["chat_template_path"],
        eos_token=recipe.get("eos_token"),
        pad_token=recipe.get("pad_token"),
    )
    if conversational:
        template = describe_template(tokenizer)
        chatml.stop_at(tokenizer, template.stop, change)
        if template.reason:
            change.notes.append(f"chat template: {template.reason}")
    return tokenizer, change


def with_adapter(
    recipe: StageRecipe, base: PreTrainedModel, parent: str | None, change: chatml.TokenizerChange
) -> Any:
    """What is trained over a base: a copy of the adapter that is continued, a fresh one, or itself."""
    if parent is not None:
        with loading(parent):
            continued = adapters.continue_from(base, parent, change)
            check_weights(parent, continued)
            return continued
    return adapters.attach(base, recipe, change) if recipe["use_peft"] else base


def check_length(recipe: StageRecipe, data: Prepared, model: PreTrainedModel) -> None:
    """Refuse sequences with more positions than the base has.

    Raises:
        RecipeError: naming the longest sequence and the base's limit.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(found.report.longest for found in data.sequences.values())
    longest = min(longest, recipe["max_length"] or longest)
    if limit is not None and 0 < limit < longest:
        raise RecipeError(
            f"max_length: the longest sequence has {longest:,} tokens, but the base has "
            f"{limit:,} positions; write max_length: {limit}, and longer rows are cut and counted"
        )


def tell(data: Prepared, model: Any) -> None:
    """Say what is trained: the rows, the tokens with loss, what was added, the parameters."""
    for line in [*data.rows.notes, *data.change.notes]:
        note(line)
    for split, found in data.sequences.items():
        for line in found.report.lines():
            note(line if split == "train" else f"held out: {line}")
    tell_trained(model)


def tell_trained(model: Any) -> None:
    """Say how much of a model is trained, and where."""
    trained, total = adapters.trained_parameters(model)
    where = "CPU" if on_cpu() else "GPU"
    note(
        f"trained: {readable(trained)} of {readable(total)} parameters "
        f"({trained / total:.2%}), {where}"
    )
