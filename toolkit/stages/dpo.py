"""Direct preference optimization: TRL's DPOTrainer over our pairs, from an adapter or a base.

The reference is where the stage started: a frozen copy of the adapter it continues, rows of added
tokens included, or the base below a fresh one.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed
from trl import DPOConfig, DPOTrainer

from toolkit.artifacts.manifest import StageResult
from toolkit.models import adapters, chatml
from toolkit.models.load import base_arguments, load_base
from toolkit.recipe import StageRecipe
from toolkit.stages.arguments import build_arguments, refusals
from toolkit.stages.dpo_trainer import TokenDPOTrainer
from toolkit.stages.fast_path import suit_cpu, train_fast
from toolkit.stages.finish import save, train
from toolkit.stages.lent import check_base, lent, tokenizer_beside
from toolkit.stages.preferences import Preferences, check_room, prepare_pairs, tell, whole_ids
from toolkit.stages.prepared import Examples, starting_point, with_adapter
from toolkit.stages.proved import prove
from toolkit.stages.terminal import note
from toolkit.stages.trainer_class import trainer_class_of


def run(
    recipe: StageRecipe, *, output_dir: Path, earlier: Mapping[str, Path], **objects: Any
) -> StageResult:
    """Train, save and prove one DPO stage.

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
        train(trainer, recipe)
        saved = save(trainer, ids_of=whole_ids, rows_again=data.rows_again(recipe))
        if "model" not in objects:
            del trainer  # one base in memory at a time
            result = prove(saved, reload=base_arguments(recipe))
        elif isinstance(trainer.model, PeftModel):
            result = prove(saved, reload=None, resident=trainer.model)
        else:
            result = prove(saved, reload={"dtype": "auto"})
    result.manifest |= data.origin(recipe)
    return result


def build(recipe: StageRecipe, **given: Any) -> DPOTrainer:
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
    trainer_class: type[TokenDPOTrainer] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[DPOTrainer, Preferences]:
    """The configured trainer, and what it trains on.

    Args:
        recipe: the stage's keys.
        output_dir: where checkpoints and the log go.
        earlier: folders of finished stages, by name, for `start_from`.
        model: a base to use instead of loading `model_name_or_path`.
        processing_class: its tokenizer.
        train_dataset: rows to use instead of loading `dataset_name`.
        eval_dataset: held-out rows.
        trainer_class: a subclass of the stage's own trainer.
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
    data = prepare_pairs(recipe, parent, processing_class, train_dataset, eval_dataset)
    args = dpo_config(recipe, output_dir)
    trained = policy(recipe, data, parent, model)
    tell(data, trained)
    tell_weights(data)
    suit_cpu(recipe, args, trained, 2 * data.longest)
    reference = None
    if not isinstance(trained, PeftModel) and not args.precompute_ref_log_probs:
        reference = copy.deepcopy(trained)  # TRL would load it without rows for added tokens
    kind = trainer_class_of(recipe, TokenDPOTrainer, trainer_class)
    with refusals(recipe):
        trainer = kind(
            trained,
            reference,
            args,
            train_dataset=data.train,
            eval_dataset=data.held_out,
            processing_class=data.tokenizer,
            callbacks=list(callbacks),
        )
    train_fast(recipe, trainer)
    return trainer, data


def policy(
    recipe: StageRecipe, data: Preferences, parent: str | None, model: PreTrainedModel | None
) -> PreTrainedModel | PeftModel:
    """What is trained: by default an adapter over the base.

    Args:
        recipe: the stage's keys.
        data: gives the tokenizer, and what was added to it.
        parent: the adapter that is continued, if any.
        model: a base from Python, instead of loading it.
    """
    with refusals(recipe):
        base = model if model is not None else load_base(recipe)
    check_room(data, base)
    chatml.fit_embeddings(base, data.tokenizer, data.change)
    return with_adapter(recipe, base, parent, data.change)


def dpo_config(recipe: StageRecipe, output_dir: Path) -> DPOConfig:
    """TRL's DPOConfig, less what our pairs already carry."""
    changed: dict[str, Any] = {
        "pad_token": None,
        "max_length": None,  # over-long pairs are left out and counted before
        "model_init_kwargs": None,
        "trust_remote_code": False,
    }
    return build_arguments(recipe, DPOConfig, output_dir, **changed)


def tell_weights(data: Preferences) -> None:
    """Say so where a prompt has several pairs: TRL's loss counts each pair the same."""
    prompts = len(set(data.train["prompt_index"]))
    if prompts < len(data.train):
        note(
            f"{len(data.train):,} pairs of {prompts:,} prompts: in dpo every pair counts the same, "
            "so a prompt with more ranked answers counts more"
        )
