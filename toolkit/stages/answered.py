"""Has a model complete prompts, and keeps each completion at once: what exams and rankings share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from toolkit.evaluation.graded import Key
from toolkit.inference.sampling import Completion, Prompt, Sampling, TransformersEngine
from toolkit.models import kept
from toolkit.recipe import StageRecipe
from toolkit.stages.completions import Completions
from toolkit.stages.exam_progress import ExamProgress
from toolkit.stages.examined import Examined
from toolkit.stages.processes import process_index, processes


class Wanted(Protocol):
    """A completion that is asked for."""

    @property
    def key(self) -> Key:
        """What no other completion of the model has: stage, task, question and sample."""
        ...

    @property
    def sampling(self) -> Sampling:
        """How its tokens are chosen."""
        ...

    @property
    def digest(self) -> str:
        """Of everything that it depends on."""
        ...


W = TypeVar("W", bound=Wanted)


def answered(
    examined: Examined,
    wanted: Sequence[W],
    recipe: StageRecipe,
    output_dir: Path,
    *,
    prompts_of: Callable[[Sequence[W], Any], Sequence[Prompt]],
    line_of: Callable[[W, Completion], Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """The lines of one model's completions, those of an interrupted run among them.

    Each of several processes asks every so-many-th question.

    Args:
        examined: the model.
        wanted: every completion, in their order.
        recipe: says how many are made together.
        output_dir: the stage's folder.
        prompts_of: the prompts of some of them, from the model's tokenizer.
        line_of: a completion as it is kept.
    """
    kept = Completions(output_dir, examined.name, {each.key: each.digest for each in wanted})
    there = kept.resume()
    missing = [
        each
        for each in wanted
        if each.key not in there and each.key[2] % processes() == process_index()
    ]
    if missing:
        ask(examined, missing, recipe, kept, prompts_of, line_of)
        forget_model()
    return kept.finish()


def ask(
    examined: Examined,
    missing: Sequence[W],
    recipe: StageRecipe,
    kept: Completions,
    prompts_of: Callable[[Sequence[W], Any], Sequence[Prompt]],
    line_of: Callable[[W, Completion], Mapping[str, Any]],
) -> None:
    """Load the model, and have it complete what is missing; arguments as in `answered`."""
    tokenizer = examined.load_tokenizer()
    engine = TransformersEngine(
        examined.load_model(), tokenizer, batch_size=recipe["per_device_eval_batch_size"]
    )
    runs: list[tuple[list[W], Iterator[tuple[int, Completion]]]] = []
    for sampling in dict.fromkeys(each.sampling for each in missing):
        chosen = [each for each in missing if each.sampling == sampling]
        # every prompt is checked here, before the first completion
        runs.append((chosen, engine.generate(prompts_of(chosen, tokenizer), sampling)))
    with ExamProgress(examined.name, len(missing)) as progress:
        for chosen, completions in runs:
            for index, completion in completions:
                kept.append(line_of(chosen[index], completion))
                progress.advance(len(completion.input_ids))


def forget_model() -> None:
    """Give back the memory of a model that nobody holds any more, and the base that is kept."""
    kept.forget()
    kept.give_back()
