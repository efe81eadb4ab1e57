"""A reward model from preferences: TRL's RewardTrainer over our pairs, as a LoRA adapter or whole."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed
from trl import RewardConfig

from toolkit.artifacts.manifest import StageResult
from toolkit.evaluation.pair_report import pair_table, pair_warning
from toolkit.models import adapters, reward
from toolkit.models.finite import check_weights
from toolkit.models.load import base_arguments, loading
from toolkit.recipe import StageRecipe
from toolkit.stages.arguments import build_arguments, refusals
from toolkit.stages.fast_path import suit_cpu, train_fast
from toolkit.stages.finish import save, train
from toolkit.stages.lent import check_base, lent, tokenizer_beside
from toolkit.stages.preferences import Preferences, check_room, prepare_pairs, tell, whole_ids
from toolkit.stages.prepared import Examples, starting_point
from toolkit.stages.processes import is_first_process
from toolkit.stages.proved import prove
from toolkit.stages.reward_trainer import WeightedRewardTrainer
from toolkit.stages.terminal import console, note
from toolkit.stages.trainer_class import trainer_class_of

PAIRS = "pairs.jsonl"


def run(
    recipe: StageRecipe, *, output_dir: Path, earlier: Mapping[str, Path], **objects: Any
) -> StageResult:
    """Train a reward model, say how well it judges held-out pairs, save and prove it.

    Args:
        recipe: the stage's keys.
        output_dir: the stage's folder.
        earlier: folders of finished stages, by name, for `start_from`.
        **objects: what Python gave in place of a name; see `assemble`.
    """
    model = objects.get("model")
    with head_kept(model), lent(model) as loan:
        trainer, data = assemble(recipe, output_dir=output_dir, earlier=earlier, **objects)
        if model is not None:
            loan.trained = trainer.model
        train(trainer, recipe)
        saved = save(
            trainer,
            check=reward.SCORES,
            ids_of=whole_ids,
            rows_again=data.rows_again(recipe),
        )
        saved.metrics |= report(trainer, data, output_dir)
        trained = trainer.model
        del trainer
        if model is None:
            del trained  # one base in memory at a time
            result = prove(saved, reload=base_arguments(recipe))
        elif isinstance(trained, PeftModel):
            result = prove(saved, reload=None, resident=trained)
        else:
            result = prove(saved, reload={"dtype": "auto"})
    result.manifest |= data.origin(recipe)
    return result


def build(recipe: StageRecipe, **given: Any) -> WeightedRewardTrainer:
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
    trainer_class: type[WeightedRewardTrainer] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[WeightedRewardTrainer, Preferences]:
    """The configured trainer, and what it trains on.

    Args:
        recipe: the stage's keys.
        output_dir: where checkpoints and the log go.
        earlier: folders of finished stages, by name, for `start_from`.
        model: a sequence classifier of one label, instead of loading `model_name_or_path`.
        processing_class: its tokenizer.
        train_dataset: rows to use instead of loading `dataset_name`.
        eval_dataset: held-out rows.
        trainer_class: a subclass of the stage's own trainer.
        callbacks: the trainer's further callbacks.

    Raises:
        RecipeError: if keys contradict one another, the device, the model or the adapter.
        DataError: if a row is wrong or none is left to train on.
        HubError: if the Hub does not give the base or the data.
    """
    if model is not None:
        check_base(model)
        reward.check_reward_base(model)
        adapters.check_given(recipe, model)
    set_seed(recipe["seed"])  # the Trainer sets it too, but after the adapter's weights are drawn
    parent = starting_point(recipe, earlier)
    if parent is not None:
        adapters.check_continued(recipe, parent)
    processing_class = processing_class or tokenizer_beside(model, parent)
    data = prepare_pairs(recipe, parent, processing_class, train_dataset, eval_dataset)
    args = reward_config(recipe, output_dir)
    trained = classifier(recipe, data, parent, model)
    tell(data, trained)
    suit_cpu(recipe, args, trained, 2 * data.longest)
    kind = trainer_class_of(recipe, WeightedRewardTrainer, trainer_class)
    with refusals(recipe):
        trainer = kind(
            trained,
            args,
            train_dataset=data.train,
            eval_dataset=data.held_out,
            processing_class=data.tokenizer,
            callbacks=list(callbacks),
        )
    train_fast(recipe, trainer)
    return trainer, data


def classifier(
    recipe: StageRecipe, data: Preferences, parent: str | None, model: PreTrainedModel | None
) -> PreTrainedModel | PeftModel:
    """What is trained: a sequence classifier, by default an adapter and its head over one.

    Args:
        recipe: the stage's keys.
        data: gives the tokenizer, and what was added to it.
        parent: the adapter that is continued, if any.
        model: one from Python, instead of loading it.
    """
    with refusals(recipe):
        base = model if model is not None else reward.load_reward_base(recipe)
    check_room(data, base)
    reward.fit_reward_base(base, data.tokenizer, data.change)
    if parent is not None:
        with loading(parent):
            continued = reward.continue_from(base, parent, data.change)
            check_weights(parent, continued)
            return continued
    return reward.attach(base, recipe, data.change) if recipe["use_peft"] else base


def reward_config(recipe: StageRecipe, output_dir: Path) -> RewardConfig:
    """TRL's RewardConfig, less what our pairs already carry: template, stop token, length."""
    changed: dict[str, Any] = {
        "chat_template_path": None,
        "eos_token": None,
        "pad_token": None,
        "max_length": None,  # over-long pairs are left out and counted before
        "model_init_kwargs": None,
        "trust_remote_code": False,
        "remove_unused_columns": False,  # the collator takes what it needs, weights too
    }
    return build_arguments(recipe, RewardConfig, output_dir, **changed)


def report(trainer: WeightedRewardTrainer, data: Preferences, output_dir: Path) -> dict[str, Any]:
    """Say how well held-out pairs are judged, and write each with its scores to `pairs.jsonl`.

    Returns:
        `pairs`, what was found, for the metrics; empty if nothing was held out.
    """
    if data.held_out is None:
        note(
            "no pair was held out, so how well others are judged is not known; set "
            "test_split_size: 0.1"
        )
        return {}
    if is_first_process():
        console().print(pair_table(trainer.found))
        with (output_dir / PAIRS).open("w", encoding="utf-8", newline="\n") as file:
            for line in scored_lines(trainer, data):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        note(f"every held-out pair with its scores: {output_dir / PAIRS}")
    if (warning := pair_warning(trainer.found)) is not None:
        note(warning)
    return {"pairs": trainer.found}


def scored_lines(trainer: WeightedRewardTrainer, data: Preferences) -> Iterator[dict[str, Any]]:
    """The held-out pairs as a person reads them: where from, what was said, what was made of it."""
    assert data.held_out is not None
    decode = data.tokenizer.decode
    for pair, scores in zip(data.held_out, trainer.held_out, strict=True):
        row: Any = pair
        yield {
            "source": row["source"],
            "row": row["row"],
            "prompt": decode(row["prompt_ids"]),
            "chosen": decode(row["chosen_ids"]),
            "rejected": decode(row["rejected_ids"]),
            "chosen_score": scores["chosen"],
            "rejected_score": scores["rejected"],
        }


@contextmanager
def head_kept(model: Any) -> Iterator[None]:
    """Give a lent model its own head back, and its own way of scoring.

    PEFT leaves the trained copy of a head in its place when an adapter is taken out.
    """
    if model is None or not hasattr(model, reward.HEAD):
        yield
        return
    head, forward = model.score, vars(model).get("forward")
    trainable = head.weight.requires_grad
    try:
        yield
    finally:
        if model.score is not head:
            model.score = head
            head.requires_grad_(trainable)
        vars(model).pop("forward", None)
        if forward is not None:
            model.forward = forward
