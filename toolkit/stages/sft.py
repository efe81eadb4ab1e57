"""Supervised fine-tuning: TRL's SFTTrainer over our sequences, as a LoRA adapter or in full."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

from toolkit.artifacts.manifest import StageResult
from toolkit.data.sequences import Sequences, tokenize
from toolkit.data.sources import Rows, load_rows
from toolkit.models import adapters, chatml
from toolkit.models.load import base_arguments, load_base, load_tokenizer, remote_code
from toolkit.recipe import StageRecipe
from toolkit.stages.arguments import build_arguments, on_cpu
from toolkit.stages.finish import prove, save, train
from toolkit.stages.terminal import note, readable

Examples = Dataset | Sequence[Mapping[str, Any]]


def run(
    recipe: StageRecipe, *, output_dir: Path, earlier: Mapping[str, Path], **objects: Any
) -> StageResult:
    """Train, save and prove one SFT stage.

    Args:
        recipe: the stage's keys.
        output_dir: the stage's folder.
        earlier: folders of finished stages, by name, for `start_from`.
        **objects: what Python gave in place of a name; see `build`.
    """
    trainer = build(recipe, output_dir=output_dir, earlier=earlier, **objects)
    train(trainer, recipe)
    saved = save(trainer, trainer.processing_class)
    if "model" in objects:
        return prove(saved, reload=None, resident=trainer.model)
    del trainer  # one base in memory at a time
    return prove(saved, reload=base_arguments(recipe))


def build(
    recipe: StageRecipe,
    *,
    output_dir: Path,
    earlier: Mapping[str, Path],
    model: PreTrainedModel | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    train_dataset: Examples | None = None,
    eval_dataset: Examples | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> SFTTrainer:
    """The configured trainer, before `.train()`.

    Args:
        recipe: the stage's keys.
        output_dir: where checkpoints and the log go.
        earlier: folders of finished stages, by name, for `start_from`.
        model: a base to use instead of loading `model_name_or_path`.
        processing_class: its tokenizer.
        train_dataset: rows to use instead of loading `dataset_name`.
        eval_dataset: held-out rows.
        callbacks: the trainer's further callbacks.

    Raises:
        RecipeError: if keys contradict one another, the device or the adapter.
        DataError: if a row is wrong or none is left to train on.
        HubError: if the Hub does not give the base or the data.
    """
    set_seed(recipe["seed"])  # the Trainer sets it too, but after the adapter's weights are drawn
    parent = starting_point(recipe, earlier)
    if parent is not None:
        adapters.check_continued(recipe, parent)
    data = prepare(recipe, parent, processing_class, train_dataset, eval_dataset)
    args = sft_config(recipe, output_dir)
    model = model if model is not None else load_base(recipe)
    chatml.fit_embeddings(model, data.tokenizer, data.change)
    if parent is not None:
        model = adapters.continue_from(model, parent)
    elif recipe["use_peft"]:
        model = adapters.attach(model, recipe, data.change)
    tell(data, model)
    return SFTTrainer(
        model,
        args,
        train_dataset=data.sequences["train"].dataset,
        eval_dataset=data.sequences["eval"].dataset if "eval" in data.sequences else None,
        processing_class=data.tokenizer,
        callbacks=list(callbacks),
    )


def starting_point(recipe: StageRecipe, earlier: Mapping[str, Path]) -> str | None:
    """The adapter that `start_from` names: an earlier stage's folder, else the name itself."""
    start = recipe["start_from"]
    return None if start is None else str(earlier.get(start, start))


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


def prepare(
    recipe: StageRecipe,
    parent: str | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    train_dataset: Examples | None = None,
    eval_dataset: Examples | None = None,
) -> Prepared:
    """Read the rows, and turn them into `input_ids` and `labels`; arguments as in `build`."""
    rows = load_rows(recipe, train_dataset=train_dataset, eval_dataset=eval_dataset)
    tokenizer = processing_class or load_tokenizer(
        parent or recipe["model_name_or_path"], **({} if parent else remote_code(recipe))
    )
    change = chatml.prepare_tokenizer(
        tokenizer,
        conversational=rows.conversational,
        chat_template_path=recipe["chat_template_path"],
        eos_token=recipe["eos_token"],
    )
    sequences = {
        split: tokenize(
            data,
            tokenizer,
            format=rows.format,
            max_length=recipe["max_length"],
            completion_only_loss=recipe["completion_only_loss"],
            assistant_only_loss=recipe["assistant_only_loss"],
            dataset_text_field=recipe["dataset_text_field"],
            num_proc=recipe["dataset_num_proc"],
        )
        for split, data in (("train", rows.train), ("eval", rows.eval))
        if data is not None
    }
    return Prepared(rows, tokenizer, change, sequences)


def sft_config(recipe: StageRecipe, output_dir: Path) -> SFTConfig:
    """TRL's SFTConfig, less what our sequences already carry: masks, template, truncation."""
    changed: dict[str, Any] = {
        "assistant_only_loss": False,
        "completion_only_loss": None,
        "chat_template_path": None,
        "eos_token": None,
        "model_init_kwargs": None,
        "trust_remote_code": False,
    }
    if not recipe["packing"]:
        changed["max_length"] = None  # cut and counted before; TRL would map every row again
    return build_arguments(recipe, SFTConfig, output_dir, **changed)


def tell(data: Prepared, model: Any) -> None:
    """Say what is trained: the rows, the tokens with loss, what was added, the parameters."""
    for line in [*data.rows.notes, *data.change.notes]:
        note(line)
    for split, found in data.sequences.items():
        for line in found.report.lines():
            note(line if split == "train" else f"held out: {line}")
    trained, total = adapters.trained_parameters(model)
    where = "CPU" if on_cpu() else "GPU"
    note(
        f"trained: {readable(trained)} of {readable(total)} parameters "
        f"({trained / total:.2%}), {where}"
    )
