"""Supervised fine-tuning: TRL's SFTTrainer over our sequences, as a LoRA adapter or in full."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

from toolkit.artifacts.manifest import StageResult
from toolkit.models import adapters, chatml
from toolkit.models.load import base_arguments, load_base
from toolkit.recipe import StageRecipe
from toolkit.stages.arguments import build_arguments, refusals
from toolkit.stages.fast_path import suit_cpu, train_fast
from toolkit.stages.finish import save, train
from toolkit.stages.lent import check_base, lent, tokenizer_beside
from toolkit.stages.prepared import (
    Examples,
    Prepared,
    check_length,
    prepare,
    starting_point,
    tell,
    with_adapter,
)
from toolkit.stages.proved import prove
from toolkit.stages.sft_trainer import TokenExactSFTTrainer
from toolkit.stages.trainer_class import trainer_class_of


def run(
    recipe: StageRecipe, *, output_dir: Path, earlier: Mapping[str, Path], **objects: Any
) -> StageResult:
    """Train, save and prove one SFT stage.

    Args:
        recipe: the stage's keys.
        output_dir: the stage's folder.
        earlier: folders of finished stages, by name, for `start_from`.
        **objects: what Python gave in place of a name; see `assemble`.
    """
    with lent(objects.get("model")) as loan:
        trainer, data = assemble(recipe, output_dir=output_dir, earlier=earlier, **objects)
        if "model" in objects:
            loan.trained = trainer.model
        train(trainer, recipe, format=data.rows.format)
        saved = save(trainer, rows_again=data.rows_again(recipe))
        if "model" not in objects:
            del trainer  # one base in memory at a time
            result = prove(saved, reload=base_arguments(recipe))
        elif isinstance(trainer.model, PeftModel):
            result = prove(saved, reload=None, resident=trainer.model)
        else:
            result = prove(saved, reload={"dtype": "auto"})
    result.manifest |= data.origin(recipe)
    return result


def build(recipe: StageRecipe, **given: Any) -> SFTTrainer:
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
    trainer_class: type[SFTTrainer] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[SFTTrainer, Prepared]:
    """The configured trainer, and what it trains on.

    Args:
        recipe: the stage's keys.
        output_dir: where checkpoints and the log go.
        earlier: folders of finished stages, by name, for `start_from`.
        model: a base to use instead of loading `model_name_or_path`.
        processing_class: its tokenizer.
        train_dataset: rows to use instead of loading `dataset_name`.
        eval_dataset: held-out rows.
        trainer_class: a subclass of TokenExactSFTTrainer.
        callbacks: the trainer's further callbacks.

    Raises:
        RecipeError: if keys contradict one another, the device or the adapter.
        DataError: if a row is wrong or none is left to train on.
        HubError: if the Hub does not give the base or the data.
    """
    if model is not None:
        check_base(model)
        adapters.check_given(recipe, model)
    set_seed(recipe["seed"])  # the Trainer sets it too, but after the adapter's weights are drawn
    parent = starting_point(recipe, earlier)
    if parent is not None:
        adapters.check_continued(recipe, parent)
    processing_class = processing_class or tokenizer_beside(model, parent)
    data = prepare(recipe, parent, processing_class, train_dataset, eval_dataset)
    args = sft_config(recipe, output_dir)
    with refusals(recipe):
        base = model if model is not None else load_base(recipe)
    check_length(recipe, data, base)
    chatml.fit_embeddings(base, data.tokenizer, data.change)
    trained = with_adapter(recipe, base, parent, data.change)
    kind = trainer_class_of(recipe, TokenExactSFTTrainer, trainer_class)
    tell(data, trained)
    suit_cpu(recipe, args, trained, longest_row(recipe, data))
    with refusals(recipe):
        trainer = kind(
            trained,
            args,
            train_dataset=data.sequences["train"].dataset,
            eval_dataset=data.sequences["eval"].dataset if "eval" in data.sequences else None,
            processing_class=data.tokenizer,
            callbacks=list(callbacks),
        )
    train_fast(recipe, trainer)
    return trainer, data


def longest_row(recipe: StageRecipe, data: Prepared) -> int:
    """Tokens of the longest row that is trained."""
    longest, most = data.sequences["train"].report.longest, recipe["max_length"]
    if most is None:
        return longest
    return most if recipe["packing"] else min(most, longest)


def sft_config(recipe: StageRecipe, output_dir: Path) -> SFTConfig:
    """TRL's SFTConfig, less what our sequences already carry: masks, template, truncation."""
    changed: dict[str, Any] = {
        "assistant_only_loss": False,
        "completion_only_loss": None,
        "chat_template_path": None,
        "eos_token": None,
        "pad_token": None,
        "model_init_kwargs": None,
        "trust_remote_code": False,
    }
    if not (recipe["packing"] or recipe["eval_packing"]):
        changed["max_length"] = None  # cut and counted before; TRL would map every row again
    return build_arguments(recipe, SFTConfig, output_dir, **changed)
