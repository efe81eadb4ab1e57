"""Preferences on policy: a model answers every prompt several times, and rewards rank its answers.

What is written, `ranked.jsonl`, is what stage reward and stage dpo read: `prompt`, `answers` and
`ranks`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.artifacts.manifest import StageResult, digest_of
from toolkit.data.columns import PLACE, exact_rows
from toolkit.data.prompts import askable
from toolkit.data.sources import Examples, Rows, load_rows
from toolkit.data.template_render import Template
from toolkit.errors import RecipeError, TrainingError
from toolkit.evaluation.graded import Key
from toolkit.inference.sampling import Completion, Prompt, Sampling
from toolkit.recipe import StageRecipe
from toolkit.stages.answered import answered
from toolkit.stages.completions import write_lines
from toolkit.stages.examined import BASE, Examined, examined_model
from toolkit.stages.prepared import starting_point
from toolkit.stages.processes import is_first_process
from toolkit.stages.ranking import Counts, ranking
from toolkit.stages.requests import FORMAT, rendered, sampled
from toolkit.stages.scored import Answer, Entry, counts_of, scorers, scores_of
from toolkit.stages.terminal import command, note

RANKED = "ranked.jsonl"
NOT_PASSED_ON = {"prompt", "dataset", *PLACE}
"""Columns of a prompt's row that are written by other means, or say where it came from."""


@dataclass(frozen=True)
class Sample:
    """One answer that is asked for.

    Attributes:
        key: who answers, "prompt", which prompt, and which of its samples.
        prompt: text or messages.
        columns: the others of its row.
        sampling: how its tokens are chosen.
        seed: of the sampling; it depends on the recipe's seed, the prompt and the sample.
        digest: of everything that the answer depends on.
        where: the file and row of the prompt.
    """

    key: Key
    prompt: str | list[dict[str, Any]]
    columns: Mapping[str, Any]
    sampling: Sampling
    seed: int
    digest: str
    where: str


def run(
    recipe: StageRecipe,
    *,
    output_dir: Path,
    earlier: Mapping[str, Path],
    model: PreTrainedModel | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    train_dataset: Examples | None = None,
    reward_funcs: Sequence[Entry] | None = None,
    **objects: Any,
) -> StageResult:
    """Sample answers, score them, and write `ranked.jsonl`.

    Args:
        recipe: the stage's keys.
        output_dir: the stage's folder.
        earlier: folders of finished stages, by name, for `start_from` and `reward_funcs`.
        model: the base, instead of loading `model_name_or_path`.
        processing_class: its tokenizer.
        train_dataset: prompts to use instead of loading `dataset_name`.
        reward_funcs: functions, or what a recipe would name; an answer's score is their sum.
        **objects: nothing else.

    Raises:
        RecipeError: if there is no such model or reward, or nothing could be ranked by design.
        DataError: if a row is wrong.
        HubError: if the Hub does not give the base or the data.
        TrainingError: if the device has not enough memory, or no prompt could be ranked.
    """
    entries = reward_funcs if reward_funcs is not None else recipe["reward_funcs"] or ()
    check(recipe, entries, objects)
    scorers(entries, recipe, earlier)  # what is wrong with one shows before the first answer
    rows = load_rows(recipe, purpose="prompt", train_dataset=train_dataset)
    at_revision = recipe["start_from_revision"] is not None
    start = starting_point(recipe, earlier) if at_revision else recipe["start_from"]
    policy = examined_model(start or BASE, recipe, earlier, model, processing_class)
    rows = replace(rows, train=askable(rows.train, policy.load_tokenizer(), rows.bad))
    for line in rows.notes:
        note(line)
    wanted = samples_of(policy, rows, recipe)
    lines = answered(
        policy, wanted, recipe, output_dir, prompts_of=prompts_of, line_of=partial(line_of, policy)
    )
    counts = Counts(prompts=len(rows.train), answers=len(lines))
    different = distinct(policy, wanted, lines, counts)
    scores = scores_of(entries, different, recipe, earlier, output_dir)
    ranked = ranking(different, scores, counts)
    if not ranked:
        raise TrainingError(
            f"no prompt can be ranked: {'; '.join(counts.lines()[1:])}; sample more answers "
            "(num_generations), or look at them in completions-*.jsonl"
        )
    if is_first_process():
        write_lines(output_dir / RANKED, ranked)
    for line in counts.lines():
        note(line)
    command("ranked", str(output_dir / RANKED))
    of_rewards = {"rewards": counts_of(scores)}
    return StageResult(output_dir, asdict(counts), origin(policy, rows) | of_rewards)


def check(recipe: StageRecipe, entries: Sequence[Entry], objects: Mapping[str, Any]) -> None:
    """Refuse what could rank nothing.

    Raises:
        RecipeError: naming the key.
    """
    if objects:
        raise RecipeError(f"stage 'rank' takes no {', '.join(objects)}; give train_dataset")
    if not entries:
        raise RecipeError("stage 'rank' needs reward_funcs: what scores the answers")
    for key, is_wrong, expected in (
        ("num_generations", recipe["num_generations"] < 2, "at least 2 answers to a prompt"),
        ("temperature", recipe["temperature"] <= 0, "more than 0: else all answers are one"),
    ):
        if is_wrong:
            where = recipe.where.get(key, "stage 'rank'")
            raise RecipeError(f"{where}: {key}: expected {expected}, found {recipe[key]}")


def samples_of(policy: Examined, rows: Rows, recipe: StageRecipe) -> list[Sample]:
    """Everything that is asked, prompt by prompt."""
    sampling = sampled(recipe)
    found: list[Sample] = []
    for index, row in enumerate(exact_rows(rows.train)):
        others = {key: value for key, value in row.items() if key not in NOT_PASSED_ON}
        for sample in range(recipe["num_generations"]):
            seed = int(digest_of([recipe["seed"], row["prompt"], index, sample])[:13], 16)
            asked = [row["prompt"], others.get("tools")]
            digest = digest_of([FORMAT, policy.identity, asked, asdict(sampling), seed])
            key = (policy.name, "prompt", index, sample)
            where = f"{row['source']}, row {row['row']}"
            found.append(Sample(key, row["prompt"], others, sampling, seed, digest, where))
    return found


def prompts_of(wanted: Sequence[Sample], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """The prompt of each: messages by the chat template, text as it is."""
    template = Template(tokenizer) if tokenizer.chat_template else None
    written: dict[int, list[int]] = {}
    found: list[Prompt] = []
    for each in wanted:
        index = each.key[2]
        if index not in written:
            tools = each.columns.get("tools")
            written[index] = rendered(each.prompt, tools, tokenizer, template)
        found.append(Prompt(written[index], each.seed, (), each.where))
    return found


def line_of(policy: Examined, one: Sample, completion: Completion) -> dict[str, Any]:
    """An answer as it is kept."""
    _, task, question, sample = one.key
    return {
        "stage": policy.name, "task": task, "question": question, "sample": sample,
        "text": completion.text, "stopped": completion.stopped,
        "tokens": len(completion.input_ids), "asked": one.prompt, "seed": one.seed,
        "digest": one.digest, "input_ids": completion.input_ids,
    }  # fmt: skip


def distinct(
    policy: Examined,
    wanted: Sequence[Sample],
    lines: Sequence[Mapping[str, Any]],
    counts: Counts,
) -> list[Answer]:
    """The answers that ended, those of the same words to a prompt once."""
    seen: set[tuple[int, str]] = set()
    found: list[Answer] = []
    for one, line in zip(wanted, lines, strict=True):
        words = (one.key[2], line["text"])
        if not line["stopped"]:
            counts.unstopped += 1
        elif words in seen:
            counts.repeated += 1
        else:
            seen.add(words)
            found.append(answer_of(policy, one, line))
    return found


def answer_of(policy: Examined, one: Sample, line: Mapping[str, Any]) -> Answer:
    """A kept completion as rewards read it."""
    return Answer(
        key=one.key,
        prompt=one.prompt,
        tools=one.columns.get("tools"),
        text=line["text"],
        input_ids=line["input_ids"],
        stopped=line["stopped"],
        columns=one.columns,
        writer=policy,
        digest=one.digest,
    )


def origin(policy: Examined, rows: Rows) -> dict[str, Any]:
    """Who answered what, for the manifest."""
    return {
        "policy": {"name": policy.name, "place": policy.place},
        "data": rows.provenance,
        "bad_rows": rows.bad.record(),
    }
