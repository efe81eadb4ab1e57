"""Scores of completions by rewards, each kept at once: what exams and rankings share.

A pass of its own, when all completions are there: one model is in memory at a time.
"""

import asyncio
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from toolkit.artifacts.manifest import digest_of, sha256_of
from toolkit.data.template_render import Template
from toolkit.evaluation.graded import Key
from toolkit.models.load import adapter_config, check_model_path
from toolkit.models.reward import load_reward_model
from toolkit.recipe import StageRecipe
from toolkit.rewards import OnError, checked, load_reward
from toolkit.stages.answered import forget_model
from toolkit.stages.completions import Completions
from toolkit.stages.exam_progress import ExamProgress
from toolkit.stages.examined import Examined, adapter_arguments, loaded_like, place_identity
from toolkit.stages.processes import device, process_index, processes
from toolkit.stages.requests import rendered
from toolkit.stages.terminal import note

ADAPTER = "adapter:"

Messages = list[dict[str, Any]]
Entry = str | Mapping[str, Any] | Callable[..., Any]
"""An entry of `reward_funcs`: a name, one with parameters, or from Python a function."""


@dataclass(frozen=True)
class Answer:
    """A completion that is to be scored.

    Attributes:
        key: what no other has.
        prompt: what was asked, text or messages.
        tools: what the prompt offers.
        text: what was answered.
        input_ids: the same as the model wrote it, its stop token included.
        stopped: whether it ended by itself.
        columns: what rewards read beside it.
        writer: the model that wrote it.
        digest: of the completion.
    """

    key: Key
    prompt: str | Messages
    tools: Any
    text: str
    input_ids: Sequence[int]
    stopped: bool
    columns: Mapping[str, Any]
    writer: Examined
    digest: str


class Scorer(Protocol):
    """A reward, before it is loaded."""

    name: str
    identity: str

    def score(
        self, answers: Sequence[Answer], batch_size: int
    ) -> Iterator[tuple[Answer, float | None]]:
        """The score of each answer, in any order; None where there is none."""
        ...


def scores_of(
    entries: Sequence[Entry],
    answers: Sequence[Answer],
    recipe: StageRecipe,
    earlier: Mapping[str, Path],
    output_dir: Path,
) -> dict[str, dict[Key, float | None]]:
    """The scores by each reward, those of an interrupted run among them.

    Each of several processes scores the answers to every so-many-th question.

    Args:
        entries: of `reward_funcs`.
        answers: what is scored, in order.
        recipe: says how models are loaded, and how many answers are scored together.
        earlier: folders of finished stages, by name.
        output_dir: the stage's folder.
    """
    found: dict[str, dict[Key, float | None]] = {}
    for scorer in scorers(entries, recipe, earlier):
        wanted = {
            each.key: digest_of([scorer.identity, each.digest, each.text, each.stopped])
            for each in answers
        }
        kept = Completions(output_dir, scorer.name, wanted, "scores")
        there = kept.resume()
        missing = [
            each
            for each in answers
            if each.key not in there and each.key[2] % processes() == process_index()
        ]
        if missing:
            with ExamProgress(scorer.name, len(missing), "scores") as progress:
                for one, score in scorer.score(missing, recipe["per_device_eval_batch_size"]):
                    kept.append(line_of(one, score, wanted[one.key]))
                    progress.advance(len(one.input_ids))
            forget_model()
        lines = kept.finish()
        found[scorer.name] = {
            each.key: line["score"] for each, line in zip(answers, lines, strict=True)
        }
    return found


def counts_of(scores: Mapping[str, Mapping[Key, float | None]]) -> dict[str, dict[str, int]]:
    """How many answers each reward scored, and how many it did not, for the manifest; told too."""
    found: dict[str, dict[str, int]] = {}
    for name, of_one in scores.items():
        unscored = sum(score is None for score in of_one.values())
        found[name] = {"scored": len(of_one) - unscored, "unscored": unscored}
        if unscored:
            note(f"reward {name}: {unscored:,} of {len(of_one):,} answers have no score")
    return found


def line_of(one: Answer, score: float | None, digest: str) -> dict[str, Any]:
    """A score as it is kept."""
    stage, task, question, sample = one.key
    place = {"stage": stage, "task": task, "question": question, "sample": sample}
    return place | {"score": score, "digest": digest}


def scorers(
    entries: Sequence[Entry], recipe: StageRecipe, earlier: Mapping[str, Path]
) -> list[Scorer]:
    """Every reward, checked; of one name twice, the second is called `name_2`.

    Raises:
        RecipeError: if there is no such reward.
    """
    found: list[Scorer] = []
    for entry in entries:
        taken = {scorer.name for scorer in found}
        plain, number = _name(entry), 1
        name = plain
        while name in taken:
            number += 1
            name = f"{plain}_{number}"
        if isinstance(entry, str) and entry.startswith(ADAPTER):
            stage = entry.removeprefix(ADAPTER)
            found.append(AdapterScorer(name, str(earlier.get(stage, stage)), recipe))
        else:
            found.append(FunctionScorer(name, entry, OnError.of(recipe)))
    return found


def _name(entry: Entry) -> str:
    """What a report calls a reward: as the recipe names it."""
    if isinstance(entry, str):
        return entry
    if isinstance(entry, Mapping):
        return str(entry.get("name"))
    return str(getattr(entry, "__name__", type(entry).__name__))


class AdapterScorer:
    """A reward model that a stage has trained.

    It reads the tokens that the policy wrote, behind the prompt as its own chat template has it.
    Where the policy has other tokens or another template, as a base has beside an assistant, it
    reads the same words in its own tokens.

    Args:
        name: what a report calls it.
        place: its folder or Hub id.
        recipe: says how models are loaded.
    """

    def __init__(self, name: str, place: str, recipe: StageRecipe):
        check_model_path(place)
        self.name, self.place = name, place
        adapter = adapter_config(place)
        base = adapter["base_model_name_or_path"] if adapter else place
        self.arguments = adapter_arguments(loaded_like(recipe, base))
        written = {key: str(value) for key, value in self.arguments.items()}
        self.identity = digest_of([place_identity(place, adapter), written])

    def score(
        self, answers: Sequence[Answer], batch_size: int
    ) -> Iterator[tuple[Answer, float | None]]:
        """As `Scorer.score`; answers of the same tokens are scored once."""
        model, tokenizer = load_reward_model(self.place, lent=True, **self.arguments)
        if getattr(model.model, "hf_device_map", None) is None:
            model.to(device())
        same: dict[tuple[int, ...], list[Answer]] = {}
        for each, ids in zip(answers, sequences(answers, tokenizer), strict=True):
            same.setdefault(tuple(ids), []).append(each)
        longest_first = sorted(same, key=len, reverse=True)
        for start in range(0, len(longest_first), batch_size):
            chunk = longest_first[start : start + batch_size]
            for ids, score in zip(chunk, model.score(chunk, batch_size), strict=True):
                yield from ((each, score) for each in same[ids])


def sequences(answers: Sequence[Answer], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Prompt and completion of each answer, in a reward model's tokens."""
    template = Template(tokenizer) if tokenizer.chat_template else None

    @cache
    def prompt_ids(prompt: str, tools: str) -> list[int]:
        return rendered(json.loads(prompt), json.loads(tools), tokenizer, template)

    same_words: dict[str, bool] = {}
    for each in answers:
        asked = prompt_ids(json.dumps(each.prompt), json.dumps(each.tools))
        if each.writer.name not in same_words:
            other = each.writer.load_tokenizer()
            same_template = other.chat_template == tokenizer.chat_template
            same = same_template and other.get_vocab() == tokenizer.get_vocab()
            same_words[each.writer.name] = same
        if same_words[each.writer.name]:
            yield [*asked, *each.input_ids]
        else:
            words: Any = tokenizer(each.text, add_special_tokens=False).input_ids
            stop: Any = tokenizer.eos_token_id
            yield [*asked, *words, *([stop] if each.stopped else [])]


class FunctionScorer:
    """A reward function, of the registry or the user's own.

    Args:
        name: what a report calls it.
        entry: of `reward_funcs`.
        failing: what happens where it fails; by default it ends the stage.
    """

    def __init__(self, name: str, entry: Entry, failing: OnError | None = None):
        self.name = name
        self.function: Any = checked(
            load_reward(entry), name=name, tell=note, on_error=failing or OnError()
        )
        self.identity = digest_of(_identity(entry))

    def score(
        self, answers: Sequence[Answer], batch_size: int
    ) -> Iterator[tuple[Answer, float | None]]:
        """As `Scorer.score`; called with TRL's keywords, and with columns that all answers have."""
        names = [name for name in answers[0].columns if all(name in a.columns for a in answers)]
        for start in range(0, len(answers), batch_size):
            chunk = answers[start : start + batch_size]
            scores: Any = self.function(
                prompts=[each.prompt for each in chunk],
                completions=[_completion(each) for each in chunk],
                completion_ids=[list(each.input_ids) for each in chunk],
                **{name: [each.columns[name] for each in chunk] for name in names},
            )
            if inspect.isawaitable(scores):
                scores = asyncio.run(_awaited(scores))
            yield from zip(chunk, scores, strict=True)


async def _awaited(scores: Any) -> Any:
    return await scores


def _completion(answer: Answer) -> str | Messages:
    """What a reward is given: text for a text, messages for messages."""
    if isinstance(answer.prompt, str):
        return answer.text
    return [{"role": "assistant", "content": answer.text}]


def _identity(entry: Entry) -> Any:
    """What a reward's scores depend on: its name, its parameters, and the file of a user's own."""
    if callable(entry):
        return [getattr(entry, "__module__", ""), getattr(entry, "__qualname__", str(type(entry)))]
    name = _name(entry)
    file = Path(name.rpartition(":")[0]).expanduser()
    content = sha256_of(file) if file.suffix == ".py" and file.is_file() else ""
    return [entry, content]
