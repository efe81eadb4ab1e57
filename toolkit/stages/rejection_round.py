"""One round of rejection sampling: answers are sampled, the right ones learnt, the result examined.

Each step keeps what it has made in the round's folder, so an interrupted round goes on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from toolkit.artifacts import allowed, manifest
from toolkit.artifacts.inputs import inputs_of, model_identity
from toolkit.data.prompts import GOLD, OTHER_GOLD
from toolkit.data.sources import Rows
from toolkit.inference.traces import Trace, split
from toolkit.recipe import StageRecipe
from toolkit.recipe.keys import keys_of
from toolkit.rewards.stated import stated
from toolkit.stages import evaluate, sft
from toolkit.stages.answered import answered
from toolkit.stages.completions import write_lines
from toolkit.stages.examined import BASE, Examined
from toolkit.stages.processes import is_first_process, meet, writes_here
from toolkit.stages.rank import Sample, answer_of, line_of, prompts_of, samples_of
from toolkit.stages.right_answers import Counts, Right, Scores, chosen, right_of
from toolkit.stages.scored import Answer, Entry, scores_of
from toolkit.stages.traced import keep

OF_THE_PROBLEMS = {
    "dataset_name", "datasets", "dataset_config", "dataset_train_split", "dataset_revision",
    "dataset_test_split", "start_from", "start_from_revision", "resume_from_checkpoint",
    "push_to_hub", "hub_model_id",
}  # fmt: skip
"""Keys that say something of the whole stage, and nothing of the training in a round."""


@dataclass(frozen=True)
class Round:
    """What one round is made of.

    Attributes:
        number: from 1.
        recipe: of stage rejection.
        folder: the round's own.
        rows: the problems.
        policy: who answers them: the start, or what the round before made.
        start: the adapter whose copy is trained; None for a fresh one.
        entries: of `reward_funcs`.
        earlier: folders of finished stages, by name.
        objects: what Python gave to the trainer.
    """

    number: int
    recipe: StageRecipe
    folder: Path
    rows: Rows
    policy: Examined
    start: str | None
    entries: Sequence[Entry]
    earlier: Mapping[str, Path]
    objects: Mapping[str, Any]

    @property
    def adapter(self) -> Path:
        """The folder of what it trains."""
        return self.folder / "sft"

    @property
    def built(self) -> Path:
        """The file of what it trains on, beside the outputs of the stage."""
        return self.folder.parent / f"train-{self.number}.jsonl"


def part(recipe: StageRecipe, stage: str, without: set[str], **changed: Any) -> StageRecipe:
    """The keys of a stage rejection that another kind of stage knows, as its recipe."""
    known = keys_of(stage)
    written = {k: v for k, v in recipe.written.items() if k in known and k not in without}
    return replace(recipe, stage=stage, written=written | changed)


def sampled(this: Round) -> tuple[list[Right], list[tuple[Answer, float | None]], Counts]:
    """Have the problems answered, and those never solved once more with a hint.

    Returns:
        The right answers; every answer that ended with its reward, of those without a hint; and
        what became of all.
    """
    recipe = part(this.recipe, "rank", set(), seed=this.recipe["seed"] + this.number)
    wanted = samples_of(this.policy, this.rows, recipe)
    counts = Counts(problems=len(this.rows.train))
    answers, scores = written(this, recipe, wanted, wanted, this.folder, counts)
    right = right_of(answers, scores, this.recipe["min_reward"], counts)
    remember(this, answers, scores, "sample")
    counts.solved = len({each.problem for each in right})
    own = [(each, total(each, scores)) for each in answers]
    if this.recipe["hint"] is not None:
        solved = {each.problem for each in right}
        right += hinted(this, recipe, [s for s in wanted if s.key[2] not in solved], counts)
    return sorted(right, key=lambda each: (each.problem, each.sample)), own, counts


def hinted(
    this: Round, recipe: StageRecipe, unsolved: Sequence[Sample], counts: Counts
) -> list[Right]:
    """Right answers to problems that were never solved, written with the right answer in sight.

    Their prompt is the problem alone.

    Source:
        Zelikman et al. 2022, "STaR: Bootstrapping Reasoning With Reasoning", arXiv:2203.14465:
        rationalization.
    """
    hints = {s.key[2]: hint_of(s.columns, this.recipe["hint"]) for s in unsolved}
    counts.unasked = sum(hint is None for hint in hints.values())
    plain: list[Sample] = []
    asked: list[Sample] = []
    for each in unsolved:
        if (hint := hints[each.key[2]]) is not None:
            seed = int(manifest.digest_of([each.seed, hint])[:13], 16)
            one = replace(each, digest=manifest.digest_of([each.digest, hint]), seed=seed)
            plain.append(one)
            asked.append(replace(one, prompt=with_hint(each.prompt, hint)))
    if not asked:
        return []
    answers, scores = written(this, recipe, plain, asked, this.folder / "hinted", counts)
    silent = [a for a in answers if (hints[a.key[2]] or "") not in a.text]
    counts.quoting = len(answers) - len(silent)
    right = right_of(silent, scores, this.recipe["min_reward"], counts, hinted=True)
    remember(this, silent, scores, "hinted")
    counts.rationalised = len({each.problem for each in right})
    return right


def written(
    this: Round,
    recipe: StageRecipe,
    plain: Sequence[Sample],
    asked: Sequence[Sample],
    folder: Path,
    counts: Counts,
) -> tuple[list[Answer], Scores]:
    """The answers that ended, and their scores.

    Args:
        this: the round.
        recipe: says how they are sampled.
        plain: what is answered, as rewards read it and as it is learnt.
        asked: the same as the model is asked.
        folder: where both are kept.
        counts: takes how many there are, and how many did not end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = answered(
        this.policy, asked, recipe, folder,
        prompts_of=prompts_of, line_of=partial(line_of, this.policy),
    )  # fmt: skip
    every = [answer_of(this.policy, *each) for each in zip(plain, lines, strict=True)]
    ended = [each for each in every if each.stopped]
    answers = [each for each in ended if each.text.strip()]
    counts.answers += len(every)
    counts.unstopped += len(every) - len(ended)
    counts.empty += len(ended) - len(answers)
    return answers, scores_of(this.entries, answers, recipe, this.earlier, folder)


def remember(this: Round, answers: Sequence[Answer], scores: Scores, method: str) -> None:
    """Keep answers as traces, where the recipe asks for it."""
    if not this.recipe["traces"]:
        return
    digest, least = model_identity(this.policy.place), this.recipe["min_reward"]
    made: list[Trace] = []
    for each in answers:
        reward = total(each, scores)
        made.append(Trace(
            each.prompt, *split(each.text), reward=reward,
            verdict=None if reward is None else reward >= least, tokens=len(each.input_ids),
            method=method, model=this.policy.name, adapter_digest=digest,
        ))  # fmt: skip
    keep(this.recipe["traces"], made)


def total(answer: Answer, scores: Scores) -> float | None:
    """The sum of an answer's rewards; None where one gave none."""
    parts = [of_one[answer.key] for of_one in scores.values()]
    known = [score for score in parts if score is not None]
    return sum(known) if len(known) == len(parts) else None


def hint_of(columns: Mapping[str, Any], hint: str) -> str | None:
    """The hint of a problem; None where its row has no answer to show."""
    gold = next((columns[name] for name in (GOLD, OTHER_GOLD) if columns.get(name)), None)
    if gold is None:
        return None
    return hint.replace("{answer}", stated(gold) or gold if isinstance(gold, str) else str(gold))


def with_hint(prompt: str | list[dict[str, Any]], hint: str) -> str | list[dict[str, Any]]:
    """A prompt with a hint behind it: of messages, behind the last one, which is the user's."""
    if isinstance(prompt, str):
        return f"{prompt}\n{hint}\n"
    *before, last = prompt
    return [*before, last | {"content": f"{last['content']}\n{hint}"}]


def build(this: Round, right: Sequence[Right], counts: Counts) -> list[Right]:
    """Write what the round trains on: each answer behind its problem, with where it comes from."""
    taken = chosen(right, this.recipe["keep"], this.recipe["max_per_problem"])
    counts.traces = len(taken)
    digest = model_identity(this.policy.place)
    if is_first_process():
        write_lines(this.built, [row_of(this, each, digest) for each in taken])
    meet()
    return taken


def row_of(this: Round, one: Right, adapter_digest: str) -> dict[str, Any]:
    """A right answer as it is learnt, and its origin."""
    answer = one.answer
    is_text = isinstance(answer.prompt, str)
    row = this.rows.train[one.problem]
    return {
        "prompt": answer.prompt,
        "completion": answer.text
        if is_text
        else [{"role": "assistant", "content": answer.text}],
        **({"tools": answer.tools} if answer.tools else {}),
        "from": {
            "problem": f"{row['source']}, row {row['row']}", "sample": one.sample,
            "round": this.number, "adapter_digest": adapter_digest, "reward": one.reward,
            "hinted": one.hinted, "tokens": len(answer.input_ids), "digest": answer.digest,
        },
    }  # fmt: skip


def trained(this: Round) -> manifest.StageResult:
    """Train a copy of the start on what was built, with stage sft, unless that is done."""
    start = {} if this.start is None else {"start_from": this.start}
    recipe = part(this.recipe, "sft", OF_THE_PROBLEMS, dataset_name=str(this.built), **start)
    recipe = replace(recipe, name=f"{this.recipe.name}, round {this.number}")
    given = inputs_of(recipe, {}, this.objects)
    done = manifest.read_json(this.adapter / manifest.MANIFEST)
    if done is not None:
        found = manifest.changes(done["inputs"], given)
        if not found or not allowed.others(found, recipe.allow_change, lambda line: None):
            return manifest.StageResult(this.adapter, done["metrics"], done)
    if writes_here():
        this.adapter.mkdir(parents=True, exist_ok=True)
        manifest.write_json(this.adapter / manifest.STARTED, given)
    meet()
    result = sft.run(recipe, output_dir=this.adapter, earlier={}, **this.objects)
    result.manifest = {
        "stage": "sft", "name": f"round-{this.number}", "recipe": recipe.resolved(),
        "seed": recipe["seed"], "inputs": given, "metrics": result.metrics,
        "outputs": manifest.outputs_of(this.adapter), "environment": manifest.environment(),
        **result.manifest,
    }  # fmt: skip
    if is_first_process():
        manifest.write_json(this.adapter / manifest.MANIFEST, result.manifest)
    meet()
    return result


def examined(recipe: StageRecipe, policy: Examined, folder: Path) -> dict[str, float]:
    """How well a model answers the held-out questions, as the mean over the tasks.

    Args:
        recipe: of stage rejection.
        policy: the model.
        folder: where the exam is kept.

    Returns:
        "held_out", of the samples, and "held_out_greedy".
    """
    folder.mkdir(parents=True, exist_ok=True)
    exam = part(recipe, "evaluate", {"reward_funcs", "traces"}, of=[policy.name], num_few_shot=0)
    earlier = {} if policy.name == BASE else {policy.name: Path(policy.place)}
    found = evaluate.run(exam, output_dir=folder, earlier=earlier).metrics
    kinds = {"accuracy": "held_out", "greedy": "held_out_greedy"}
    return {
        word: fmean(value for key, value in found.items() if key.rpartition("/")[2] == kind)
        for kind, word in kinds.items()
    }


def summary(this: Round, counts: Counts, scores: Mapping[str, float]) -> dict[str, Any]:
    """What the manifest says of a round."""
    return {
        "round": this.number, **scores, **asdict(counts),
        "answered_by": model_identity(this.policy.place), "trained_on": this.built.name,
        "trained_on_digest": manifest.sha256_of(this.built),
        "adapter_digest": model_identity(str(this.adapter)),
    }  # fmt: skip
