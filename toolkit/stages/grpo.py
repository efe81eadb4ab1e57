"""Group relative policy optimization: TRL's GRPOTrainer over an adapter, against any rewards."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed
from trl import GRPOConfig, GRPOTrainer

from toolkit.artifacts.manifest import StageResult
from toolkit.data.once import together
from toolkit.data.prompts import prompt_lengths
from toolkit.data.sources import Rows, load_rows
from toolkit.errors import RecipeError
from toolkit.models import adapters, chatml
from toolkit.models.batched import whole_batches
from toolkit.models.copies import added_as_copies
from toolkit.models.load import base_arguments, commit_of, load_base
from toolkit.models.vllm_weights import send_base_weights
from toolkit.recipe import StageRecipe
from toolkit.recipe.keys import ADAPTER
from toolkit.rewards import Checked, OnError, checked_all, load_reward
from toolkit.stages.adapter_reward import AdapterReward
from toolkit.stages.arguments import build_arguments, refusals
from toolkit.stages.fast_path import suit_cpu, train_fast
from toolkit.stages.fast_rollouts import sample_fast
from toolkit.stages.finish import save, train
from toolkit.stages.left_out import keep_rows_out_of_the_log, leave_out_failed
from toolkit.stages.lent import check_base, lent, tokenizer_beside
from toolkit.stages.prepared import (
    Examples,
    chat_tokenizer,
    first_rows,
    starting_point,
    tell_trained,
    with_adapter,
)
from toolkit.stages.proved import prove
from toolkit.stages.terminal import note
from toolkit.stages.trainer_class import trainer_class_of
from toolkit.stages.vllm_rollouts import check_rows, check_vllm

Entry = str | Mapping[str, Any] | Callable[..., Any]
"""An entry of `reward_funcs`: a name, one with parameters, or from Python a function."""


@dataclass
class Prompts:
    """What is asked, before any weight is loaded.

    Attributes:
        rows: the prompts and what rewards read beside them, with their origin.
        tokenizer: with the template and the stop token that sampling needs.
        change: what was added to it.
        lengths: of the prompts, in tokens.
    """

    rows: Rows
    tokenizer: PreTrainedTokenizerBase
    change: chatml.TokenizerChange
    lengths: list[int]

    def ids_of(self, row: Mapping[str, Any], tokenizer: Any = None) -> list[int]:
        """A prompt as tokens, as it is asked, for the proof."""
        tokenizer, prompt = tokenizer or self.tokenizer, row["prompt"]
        if isinstance(prompt, str):
            return tokenizer(prompt).input_ids
        text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        return tokenizer(text, add_special_tokens=False).input_ids

    def rows_again(self, tokenizer: Any) -> tuple[list[list[int]], list[list[int]]]:
        """The first prompts as they were asked, and as a tokenizer makes them."""
        rows: list[Any] = list(first_rows(self.rows.train))
        return [self.ids_of(row) for row in rows], [self.ids_of(row, tokenizer) for row in rows]

    def origin(self, recipe: StageRecipe) -> dict[str, Any]:
        """Where base and prompts come from, for the manifest."""
        name, revision = recipe["model_name_or_path"], recipe["model_revision"]
        return {
            "base": {"name": name, "commit": commit_of(name, revision) if name else None},
            "data": self.rows.provenance,
            "bad_rows": self.rows.bad.record(),
            "prompts": {"number": len(self.lengths), "longest": max(self.lengths)},
        }


def run(
    recipe: StageRecipe, *, output_dir: Path, earlier: Mapping[str, Path], **objects: Any
) -> StageResult:
    """Train, save and prove one stage.

    Args:
        recipe: the stage's keys.
        output_dir: the stage's folder.
        earlier: folders of finished stages, by name, for `start_from` and `reward_funcs`.
        **objects: what Python gave in place of a name; see `assemble`.
    """
    return run_rollouts(assemble, recipe, output_dir=output_dir, earlier=earlier, **objects)


def run_rollouts(
    assemble: Callable[..., tuple[GRPOTrainer, Prompts]],
    recipe: StageRecipe,
    *,
    output_dir: Path,
    earlier: Mapping[str, Path],
    **objects: Any,
) -> StageResult:
    """Train, save and prove a stage that learns from what it samples."""
    with lent(objects.get("model")) as loan:
        trainer, data = assemble(recipe, output_dir=output_dir, earlier=earlier, **objects)
        if "model" in objects:
            loan.trained = trainer.model
        train(trainer, recipe)
        saved = save(trainer, ids_of=data.ids_of, rows_again=data.rows_again)
        counts = counts_of(trainer)
        if "model" not in objects:
            del trainer  # one base in memory at a time
            result = prove(saved, reload=base_arguments(recipe))
        elif isinstance(trainer.model, PeftModel):
            result = prove(saved, reload=None, resident=trainer.model)
        else:
            result = prove(saved, reload={"dtype": "auto"})
    result.manifest |= data.origin(recipe) | {"rewards": counts}
    return result


def counts_of(trainer: GRPOTrainer) -> dict[str, dict[str, int]]:
    """What became of the completions that each reward was asked about, in all processes.

    Of a run that was interrupted, those since it went on; `log.jsonl` has the shares of each step.
    """
    own = [reward for reward in trainer.reward_funcs if isinstance(reward, Checked)]
    found: dict[str, dict[str, int]] = {}
    for counts in gather_object([{each.__name__: each.counts() for each in own}]):
        for name, one in counts.items():
            of = found.setdefault(name, dict.fromkeys(one, 0))
            of.update({what: of[what] + number for what, number in one.items()})
    for name, of in found.items():
        if of["failed"]:
            total = sum(of.values())
            note(
                f"reward {name}: {of['failed']:,} of {total:,} completions "
                f"({of['failed'] / total:.1%}) have no score because it failed"
            )
    return found


def build(recipe: StageRecipe, **given: Any) -> GRPOTrainer:
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
    reward_funcs: Sequence[Entry] | None = None,
    gold_funcs: Sequence[Entry] | None = None,
    trainer_class: type[GRPOTrainer] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **more: Any,
) -> tuple[GRPOTrainer, Prompts]:
    """The configured trainer, and what it is asked.

    Args:
        recipe: the stage's keys.
        output_dir: where checkpoints and the log go.
        earlier: folders of finished stages, by name, for `start_from` and `reward_funcs`.
        model: a base to use instead of loading `model_name_or_path`.
        processing_class: its tokenizer.
        train_dataset: prompts to use instead of loading `dataset_name`.
        eval_dataset: held-out prompts.
        reward_funcs: functions, or what a recipe would name.
        gold_funcs: likewise, of what is measured and never trained on.
        trainer_class: a subclass of TRL's GRPOTrainer.
        callbacks: the trainer's further callbacks.
        **more: `tools`, `environment_factory` or `rollout_func`, as TRL takes them.

    Raises:
        RecipeError: if keys contradict one another, the device, an adapter or a reward.
        DataError: if a row is wrong.
        HubError: if the Hub does not give the base or the data.
    """
    check_vllm(recipe)
    args = build_arguments(recipe, GRPOConfig, output_dir, **dealt_with(recipe))
    trained, data = policy(recipe, earlier, model, processing_class, train_dataset, eval_dataset)
    kind = trainer_class_of(recipe, GRPOTrainer, trainer_class)
    make = functools.partial(with_whole_reference, kind)
    trainer = rewarded(
        make, recipe, earlier, trained, data, reward_funcs, gold_funcs,
        args=args, callbacks=callbacks, **more,
    )  # fmt: skip
    if isinstance(trained, PeftModel):
        keep_one_adapter(trained)
    return trainer, data


def dealt_with(recipe: StageRecipe) -> dict[str, Any]:
    """The keys of TRL's configuration that the stage has seen to."""
    return {"model_init_kwargs": None, "trust_remote_code": False}


def policy(
    recipe: StageRecipe,
    earlier: Mapping[str, Path],
    model: PreTrainedModel | None,
    processing_class: PreTrainedTokenizerBase | None,
    train_dataset: Examples | None,
    eval_dataset: Examples | None,
) -> tuple[Any, Prompts]:
    """The model that learns, and what it is asked; arguments as in `assemble`."""
    if model is not None:
        check_base(model)
        adapters.check_given(recipe, model)
    set_seed(recipe["seed"])  # the Trainer sets it too, but after the adapter's weights are drawn
    parent = starting_point(recipe, earlier)
    if parent is not None:
        adapters.check_continued(recipe, parent)
    with together():
        rows = load_rows(
            recipe, purpose="prompt", train_dataset=train_dataset, eval_dataset=eval_dataset
        )
    tokenizer, change = chat_tokenizer(
        recipe, parent, processing_class or tokenizer_beside(model, parent), rows.conversational
    )
    train, lengths = prompt_lengths(rows.train, tokenizer, bad=rows.bad)
    held_out = rows.eval and prompt_lengths(rows.eval, tokenizer, bad=rows.bad)[0]
    data = Prompts(replace(rows, train=train, eval=held_out), tokenizer, change, lengths)
    with refusals(recipe):
        base = model if model is not None else load_base(recipe)
    check_room(recipe, data, base)
    check_rows(recipe, tokenizer, base)
    chatml.fit_embeddings(base, tokenizer, change)
    return with_adapter(recipe, base, parent, change), data


def rewarded(
    kind: Callable[..., GRPOTrainer],
    recipe: StageRecipe,
    earlier: Mapping[str, Path],
    trained: Any,
    data: Prompts,
    reward_funcs: Sequence[Entry] | None,
    gold_funcs: Sequence[Entry] | None,
    **given: Any,
) -> GRPOTrainer:
    """A trainer with its rewards, each of them checked at every call.

    Args:
        kind: makes the trainer.
        recipe: names the rewards where `reward_funcs` does not.
        earlier: folders of finished stages, by name.
        trained: the model.
        data: the prompts.
        reward_funcs: functions, or what a recipe would name.
        gold_funcs: likewise, of what is measured and never trained on.
        **given: to the trainer.
    """
    functions = loaded(
        reward_funcs if reward_funcs is not None else recipe["reward_funcs"], earlier
    )
    golds = loaded(gold_funcs if gold_funcs is not None else recipe["gold_funcs"], earlier)
    judges = [each for each in (*functions, *golds) if isinstance(each, AdapterReward)]
    if judges and not isinstance(trained, PeftModel):
        raise RecipeError(
            f"reward_funcs: {judges[0].__name__} needs an adapter as the policy, so that the base "
            "stays what both go over; leave use_peft: false out"
        )
    rewards = checked_all(functions, tell=note, on_error=OnError.of(recipe))
    checks = checked_all(
        golds, tell=lambda line: note(f"gold: {line}"), on_error=OnError.of(recipe)
    )
    check_enough(given["args"], data)
    longest = max(data.lengths) + int(recipe["max_completion_length"])
    suit_cpu(recipe, given["args"], trained, longest)
    keep_rows_out_of_the_log()
    tell(data, trained, [reward.__name__ for reward in rewards])
    # a server that cannot be reached, or was started without what TRL needs
    of_a_server = (ConnectionError, RuntimeError) if given["args"].use_vllm else ()
    with refusals(recipe, *of_a_server):
        trainer = kind(
            model=trained,
            reward_funcs=rewards,
            train_dataset=data.rows.train,
            eval_dataset=data.rows.eval,
            processing_class=data.tokenizer,
            **given | {"callbacks": list(given["callbacks"])},
        )
    exact_rollouts(trainer, trained, fast=recipe["fast"])
    train_fast(recipe, trainer)
    leave_out_failed(trainer, rewards)
    for number, judge in enumerate(judges):
        judge.bind(trainer, "reward" if number == 0 else f"reward_{number + 1}")
    measured: Any = trainer
    measured.gold_funcs = checks
    return trainer


def exact_rollouts(trainer: GRPOTrainer, trained: Any, fast: bool) -> None:
    """Have the policy that samples be the one that is trained, whatever samples."""
    sample_fast(trainer, trained, fast)
    if trainer.use_transformers_continuous_batching:
        whole_batches(trained)
    if trainer.use_vllm:
        send_base_weights(trainer.vllm_generation)


def loaded(entries: Sequence[Entry] | None, earlier: Mapping[str, Path]) -> list[Any]:
    """The rewards that some entries name, those of reward stages as adapters to be bound."""
    functions: list[Any] = []
    for entry in entries or ():
        if isinstance(entry, str) and entry.startswith(ADAPTER):
            name = entry.removeprefix(ADAPTER)
            functions.append(AdapterReward(name, str(earlier.get(name, name))))
        else:
            functions.append(load_reward(entry))
    return functions


def with_whole_reference(kind: type[GRPOTrainer], model: Any, **given: Any) -> GRPOTrainer:
    """A trainer whose reference is a copy of the policy in every weight."""
    if not isinstance(model, PeftModel):
        return kind(model=model, **given)
    with added_as_copies(model):
        return kind(model=model, **given)


def keep_one_adapter(model: PeftModel) -> None:
    """Save the policy alone: what it is compared with is where it started from."""
    saved: Any = model
    saved.save_pretrained = functools.partial(model.save_pretrained, selected_adapters=["default"])


def check_room(recipe: StageRecipe, data: Prompts, model: PreTrainedModel) -> None:
    """Refuse prompts that leave no room for a completion.

    Raises:
        RecipeError: naming the longest prompt and the base's limit.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest, wanted = max(data.lengths), recipe["max_completion_length"]
    if limit and longest + wanted > limit:
        over = sum(length + wanted > limit for length in data.lengths)
        raise RecipeError(
            f"max_completion_length: {over:,} of {len(data.lengths):,} prompts leave no room for "
            f"{wanted:,} tokens (the longest has {longest:,}, the base {limit:,} positions); write "
            f"max_completion_length: {max(1, limit - longest)}, or take longer prompts out"
        )


def check_enough(args: GRPOConfig, data: Prompts) -> None:
    """Refuse fewer prompts than one rollout takes: TRL would train nothing, and call it done.

    Raises:
        RecipeError: naming how many there are, and the largest rollout that can be formed of them.
    """
    number, each = len(data.lengths), int(args.num_generations or 1)
    size = int(args.generation_batch_size or 1)
    if number < size // each:
        raise RecipeError(
            f"generation_batch_size: a rollout of {size:,} completions, {each:,} of each prompt, "
            f"takes {size // each:,} prompts, found {number:,}; write generation_batch_size: "
            f"{number * each}, and a global_batch_size that divides it, or give more prompts"
        )
    if left := number % (size // each):
        note(
            f"a rollout takes {size // each:,} prompts: {left:,} of {number:,}, others each time, "
            "wait for the next epoch"
        )


def tell(data: Prompts, model: Any, rewards: Sequence[str]) -> None:
    """Say what is asked, what rewards it, and what is trained."""
    for line in [*data.rows.notes, *data.change.notes]:
        note(line)
    lengths = sorted(data.lengths)
    note(
        f"{len(lengths):,} prompts, {lengths[len(lengths) // 2]:,} tokens in the middle, "
        f"{lengths[-1]:,} at most; rewarded by {', '.join(rewards) or 'the environment'}"
    )
    tell_trained(model)
