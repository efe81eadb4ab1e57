"""Pretraining: a tokenizer and a small base from documents, by transformers' Trainer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from toolkit.artifacts.manifest import StageResult
from toolkit.data.blocks import blocks_of
from toolkit.data.sources import Rows, load_rows
from toolkit.errors import DataError, RecipeError
from toolkit.models import scratch
from toolkit.recipe import StageRecipe
from toolkit.stages.arguments import build_arguments
from toolkit.stages.checkpoints import resumable
from toolkit.stages.finish import save, train
from toolkit.stages.prepared import Examples
from toolkit.stages.proved import prove
from toolkit.stages.terminal import note


def run(
    recipe: StageRecipe, *, output_dir: Path, earlier: Mapping[str, Path], **objects: Any
) -> StageResult:
    """Train, save and prove a base; arguments as in `assemble`."""
    trainer, rows = assemble(recipe, output_dir=output_dir, earlier=earlier, **objects)
    train(trainer, recipe)
    saved = save(trainer)
    del trainer  # one base in memory at a time
    result = prove(saved, reload={"dtype": "auto"})
    result.manifest |= {"data": rows.provenance, "bad_rows": rows.bad.record()}
    return result


def build(recipe: StageRecipe, **given: Any) -> Trainer:
    """The configured trainer, before `.train()`; arguments as in `assemble`."""
    return assemble(recipe, **given)[0]


def assemble(
    recipe: StageRecipe,
    *,
    output_dir: Path,
    earlier: Mapping[str, Path],
    model: PreTrainedModel | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    train_dataset: Examples | None = None,
    eval_dataset: Examples | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[Trainer, Rows]:
    """The configured trainer, and the documents that it reads.

    Args:
        recipe: the stage's keys.
        output_dir: where checkpoints and the log go.
        earlier: folders of finished stages, by name; nothing is taken from them.
        model: a model to train further, instead of a new one.
        processing_class: its tokenizer, instead of a new one.
        train_dataset: rows with a `text`, instead of loading `dataset_name`.
        eval_dataset: held-out rows.
        callbacks: the trainer's further callbacks.

    Raises:
        RecipeError: if keys contradict one another, the device or the model's type.
        DataError: if a row is wrong, or rows are not documents.
        HubError: if the Hub does not give the data.
    """
    set_seed(recipe["seed"])  # of the weights
    rows = load_rows(recipe, train_dataset=train_dataset, eval_dataset=eval_dataset)
    if rows.format != "text":
        raise DataError(
            f"{rows.train[0]['source']}: pretraining reads documents, a column text; found "
            f"{rows.format} rows: train them with stage: sft"
        )
    texts = rows.train["text"]
    tokenizer = processing_class or scratch.train_tokenizer(texts, recipe["vocab_size"])
    model = model or scratch.new_model(recipe, tokenizer)
    blocks = {
        split: pack(recipe, documents, tokenizer, model)
        for split, documents in (("train", rows.train), ("eval", rows.eval))
        if documents is not None
    }
    for line in rows.notes:
        note(line)
    note(
        f"{len(rows.train):,} documents, {len(blocks['train']):,} blocks of {recipe['max_length']} "
        f"tokens, vocabulary of {len(tokenizer):,}, {model.num_parameters():,} parameters"
    )
    trainer = resumable(Trainer)(
        model,
        # with a cache, transformers would let documents see one another
        build_arguments(recipe, TrainingArguments, output_dir, use_cache=False),
        data_collator=default_data_collator,
        train_dataset=blocks["train"],
        eval_dataset=blocks.get("eval"),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
    return trainer, rows


def pack(
    recipe: StageRecipe,
    documents: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
) -> Dataset:
    """The blocks of some documents.

    Raises:
        RecipeError: if a block has more positions than the model, or nothing ends a document.
    """
    length = recipe["max_length"]
    limit = getattr(model.config, "max_position_embeddings", None) or length
    if length > limit:
        raise RecipeError(
            f"max_length: a block has {length:,} tokens, but the model has {limit:,} positions; "
            "raise max_position_embeddings in config_overrides"
        )
    if tokenizer.eos_token_id is None:
        raise RecipeError("processing_class: the tokenizer has no eos_token to end a document")
    return blocks_of(documents, tokenizer, length, num_proc=recipe["dataset_num_proc"])
