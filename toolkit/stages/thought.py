"""Has every model of an exam think about each question in every way that a recipe names."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from toolkit.artifacts.manifest import digest_of
from toolkit.data.template_render import Template
from toolkit.errors import RecipeError
from toolkit.evaluation.graded import Key
from toolkit.evaluation.intervals import wilson
from toolkit.inference.engine import Completion
from toolkit.inference.remembering import Remembering
from toolkit.inference.thinking.methods import JUDGED, Method, method_of
from toolkit.inference.thinking.running import think
from toolkit.inference.thinking.steps import Problem, Thought
from toolkit.models.as_it_was import AsItWas
from toolkit.recipe import StageRecipe
from toolkit.stages.answered import by_transformers, forget_model
from toolkit.stages.completions import Completions
from toolkit.stages.exam_progress import ExamProgress
from toolkit.stages.examined import Examined
from toolkit.stages.judging import Judging
from toolkit.stages.processes import process_index, processes
from toolkit.stages.requests import FORMAT, Request, prompts_of, rendered, sampled, seed_of
from toolkit.stages.scored import Scorer
from toolkit.stages.terminal import note

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Wanted:
    """One question, thought about in one way.

    Attributes:
        request: how the model is asked.
        place: of the way among those of the recipe.
        method: the way.
        digest: of everything that the thought depends on.
    """

    request: Request
    place: int
    method: Method
    digest: str

    @property
    def key(self) -> Key:
        """Stage, task, question, and the place of the way instead of a sample."""
        stage, task, question, _ = self.request.key
        return stage, task, question, self.place


def methods_of(recipe: StageRecipe, judges: Sequence[Scorer]) -> list[Method]:
    """The ways of thinking of a recipe, checked.

    Args:
        recipe: the stage's keys.
        judges: the rewards, of which the first judges.

    Raises:
        RecipeError: naming what is wrong with one, or that nobody could judge it.
    """
    where = recipe.where.get("thinking", "thinking")
    found = [method_of(entry, where) for entry in recipe["thinking"] or ()]
    labels = [method.label for method in found]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise RecipeError(f"{where}: {twice} is there twice; leave one out")
    judged = next((method.name for method in found if method.name in JUDGED), None)
    if judged and not judges:
        raise RecipeError(f"{where}: {judged} needs reward_funcs, of which the first judges")
    return found


def thoughts(
    examined: Examined,
    answered: Sequence[tuple[Request, Line]],
    methods: Sequence[Method],
    recipe: StageRecipe,
    output_dir: Path,
    judging: Judging | None,
) -> list[dict[str, Any]]:
    """The kept thoughts of one model, those of an interrupted run among them.

    Args:
        examined: the model.
        answered: what it was asked in the exam, and its completions, which are not written again.
        methods: in how many ways it is to think.
        recipe: the stage's keys.
        output_dir: the stage's folder.
        judging: scores; None where nothing is judged.
    """
    has_chat = bool(examined.load_tokenizer().chat_template)
    left_out = [each for each in methods if each.name == "refine" and not has_chat]
    for method in left_out:
        note(
            f"{examined.name}: {method.label} left out: it asks back, and there is no chat template"
        )
    wanted = wanted_of([r for r, _ in answered], methods, left_out, recipe, judging)
    kept = Completions(
        output_dir, examined.name, {each.key: each.digest for each in wanted}, "thoughts"
    )
    there = kept.resume()
    mine = [each for each in wanted if each.key[2] % processes() == process_index()]
    missing = [each for each in mine if each.key not in there]
    if missing:
        own = examined.model  # a judge's adapter that is put on it is taken off again
        start = AsItWas(own) if own is not None and judging else None
        try:
            with ExamProgress(examined.name, len(missing), "thoughts") as progress:
                for one, line in made(examined, missing, answered, recipe, judging):
                    kept.append(line | {"digest": one.digest})
                    progress.advance(line["tokens"])
        finally:
            if start is not None:
                start.restore()
        forget_model()
    return kept.finish()


def wanted_of(
    requests: Sequence[Request],
    methods: Sequence[Method],
    left_out: Sequence[Method],
    recipe: StageRecipe,
    judging: Judging | None,
) -> list[Wanted]:
    """Every question in every way, in the exam's order."""
    found = []
    for request in requests:
        if request.sample is not None:
            continue
        for place, method in enumerate(methods):
            judge = judging.identity if judging and method.name in JUDGED else None
            sampling = asdict(sampled(recipe))
            parts = [FORMAT, request.digest, sampling, recipe["seed"], method.label, judge]
            if method not in left_out:
                found.append(Wanted(request, place, method, digest_of(parts)))
    return found


def made(
    examined: Examined,
    missing: Sequence[Wanted],
    answered: Sequence[tuple[Request, Line]],
    recipe: StageRecipe,
    judging: Judging | None,
) -> Any:
    """Think about what is missing, some questions side by side; yields each with its line."""
    tokenizer = examined.load_tokenizer()
    requests = [request for request, _ in answered if request.sample is not None]
    lines = [line for request, line in answered if request.sample is not None]
    asked = prompts_of(requests, tokenizer)
    known = {
        (tuple(prompt.input_ids), prompt.seed): completion_of(line)
        for prompt, line in zip(asked, lines, strict=True)
    }
    size = recipe["per_device_eval_batch_size"]
    load = partial(by_transformers, examined, recipe)
    engine = Remembering(load, tokenizer, known, sampled(recipe))
    for method in dict.fromkeys(each.method.label for each in missing):
        same = [each for each in missing if each.method.label == method]
        # the time of questions that are thought about side by side runs for all of them at once
        together = 1 if "seconds" in same[0].method.budget else size
        for start in range(0, len(same), together):
            chunk = same[start : start + together]
            problems = problems_of([each.request for each in chunk], recipe, tokenizer)
            begun = [(p, each.method.begin(p)) for p, each in zip(problems, chunk, strict=True)]
            judge = judging.over(engine, problems, chunk) if judging else None
            for one, thought in zip(chunk, think(engine, begun, judge), strict=True):
                yield one, line_of(one, thought)


def completion_of(line: Line) -> Completion:
    """A kept completion as an engine gives it."""
    return Completion(line["text"], line["input_ids"], line["stopped"])


def problems_of(requests: Sequence[Request], recipe: StageRecipe, tokenizer: Any) -> list[Problem]:
    """The questions as they are thought about; their samples have the seeds of the exam's."""
    template = Template(tokenizer) if tokenizer.chat_template else None
    found = []
    for request, prompt in zip(requests, prompts_of(requests, tokenizer), strict=True):
        asked = request.asked
        problem = Problem(
            prompt=replace(prompt, seed=0),
            sampling=sampled(recipe),
            said=partial(request.task.said, asked),
            tokenizer=tokenizer,
            seed_of=lambda _, place, of=request: seed_of(recipe, of.task, of.question, place),
        )
        if template is not None:
            messages = request.task.messages(asked, request.shots)
            problem = replace(
                problem,
                messages=messages,
                render=lambda turns: rendered(turns, None, tokenizer, template),
            )
        found.append(problem)
    return found


def line_of(one: Wanted, thought: Thought) -> dict[str, Any]:
    """A thought as it is kept."""
    stage, task, question, place = one.key
    return {
        "stage": stage, "task": task, "question": question, "sample": place,
        "method": one.method.label, "text": thought.text, "said": thought.said,
        "stopped": thought.stopped,
        "right": one.request.task.is_right(one.request.asked, thought.text),
        "tokens": thought.tokens, "samples": len(thought.completions),
        "votes": dict(thought.votes), "score": thought.score, "confidence": thought.confidence,
    }  # fmt: skip


def points(
    lines: Sequence[Line], methods: Sequence[Method], reward: str | None
) -> list[dict[str, Any]]:
    """What each way of thinking cost and achieved: points of the scaling curve.

    Args:
        lines: the kept thoughts of all models.
        methods: the ways, by the places that lines name.
        reward: what judged.
    """
    groups: dict[tuple[str, str, int], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["stage"], line["task"], line["sample"]), []).append(line)
    found = []
    for (stage, task, place), same in groups.items():
        method = methods[place]
        right = sum(line["right"] and line["stopped"] for line in same)
        low, high = wilson(right, len(same))
        found.append({
            "stage": stage, "task": task, "method": method.name,
            "reward": reward if method.name in JUDGED else None,
            "setting": {**method.parameters, **method.budget},
            "tokens": fmean(line["tokens"] for line in same),
            "samples": fmean(line["samples"] for line in same),
            "accuracy": right / len(same), "low": low, "high": high,
        })  # fmt: skip
    return found
