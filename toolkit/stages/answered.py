"""Has a model complete prompts, and keeps each completion at once: what exams and rankings share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from toolkit.evaluation.graded import Key
from toolkit.inference.engine import Completion, Engine, Prompt, Sampling
from toolkit.inference.sampling import TransformersEngine
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
    path: Path | None = None,
    engine_of: Callable[[Examined, StageRecipe], Engine] | None = None,
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
        path: the file of the lines, if it is not to have the usual name in the folder.
        engine_of: loads the model as an engine; by default by transformers.
    """
    digests = {each.key: each.digest for each in wanted}
    kept = Completions(output_dir, examined.name, digests, path=path)
    there = kept.resume()
    missing = [
        each
        for each in wanted
        if each.key not in there and each.key[2] % processes() == process_index()
    ]
    if missing:
        engine = (engine_of or by_transformers)(examined, recipe)
        ask(examined.name, missing, engine, kept, prompts_of, line_of)
        del engine
        forget_model()
    return kept.finish()


def by_transformers(examined: Examined, recipe: StageRecipe) -> TransformersEngine:
    """A model as the engine that runs everywhere."""
    size, tokenizer = recipe["per_device_eval_batch_size"], examined.load_tokenizer()
    return TransformersEngine(examined.load_model(), tokenizer, batch_size=size)


def ask(
    name: str,
    missing: Sequence[W],
    engine: Engine,
    kept: Completions,
    prompts_of: Callable[[Sequence[W], Any], Sequence[Prompt]],
    line_of: Callable[[W, Completion], Mapping[str, Any]],
) -> None:
    """Have an engine complete what is missing; the other arguments as in `answered`."""
    runs: list[tuple[list[W], Iterator[tuple[int, Completion]]]] = []
    for sampling in dict.fromkeys(each.sampling for each in missing):
        chosen = [each for each in missing if each.sampling == sampling]
        # every prompt is checked here, before the first completion
        runs.append((chosen, engine.generate(prompts_of(chosen, engine.tokenizer), sampling)))
    with ExamProgress(name, len(missing)) as progress:
        for chosen, completions in runs:
            for index, completion in completions:
                kept.append(line_of(chosen[index], completion))
                progress.advance(len(completion.input_ids))


def forget_model() -> None:
    """Give back the memory of a model that nobody holds any more, and the base that is kept."""
    kept.forget()
    kept.give_back()
