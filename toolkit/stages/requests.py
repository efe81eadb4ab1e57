"""What an exam asks of a model: which completions, and the prompt of each."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from transformers import PreTrainedTokenizerBase

from toolkit.artifacts.manifest import digest_of
from toolkit.data.template_render import Template
from toolkit.errors import RecipeError
from toolkit.evaluation.graded import Key
from toolkit.evaluation.tasks import Question, Task
from toolkit.inference.sampling import Prompt, Sampling
from toolkit.recipe import StageRecipe
from toolkit.stages.examined import BASE, Examined

FORMAT = 2
"""Of a kept line; one of an older version of this program is not taken up."""


@dataclass(frozen=True)
class Request:
    """One completion that the exam asks for.

    Attributes:
        stage: the row of the exam: a model, or the base shown examples.
        task: whose question is asked.
        question: its position in the task.
        sample: which of the samples; None is the greedy answer.
        shots: how many solved examples are shown before it.
        sampling: how its tokens are chosen.
        seed: of the sampling; it depends on the recipe's seed, the task, the question and the
            sample, never on the order of anything.
        digest: of everything that the completion depends on.
    """

    stage: str
    task: Task
    question: int
    sample: int | None
    shots: int
    sampling: Sampling
    seed: int
    digest: str

    @property
    def key(self) -> Key:
        """What no other completion of this model has."""
        return self.stage, self.task.name, self.question, self.sample

    @property
    def asked(self) -> Question:
        """The question itself."""
        return self.task.questions[self.question]


def requests(examined: Examined, tasks: Sequence[Task], recipe: StageRecipe) -> list[Request]:
    """Everything that is asked of one model, in the exam's order.

    The base is asked as the others are and, where a task has examples, once more with them.
    """
    found: list[Request] = []
    for task in tasks:
        few = min(recipe["num_few_shot"], len(task.few_shot)) if examined.name == BASE else 0
        for shots in (0, few) if few else (0,):
            stage = f"{examined.name} few-shot" if shots else examined.name
            chosen = (None, *range(samples(recipe)))
            for question, sample in product(range(len(task.questions)), chosen):
                sampling = sampled(recipe) if sample is not None else greedy(recipe)
                seed = seed_of(recipe, task, question, sample)
                parts = [FORMAT, examined.identity, task.digest, shots, asdict(sampling), seed]
                digest = digest_of(parts)
                found.append(Request(stage, task, question, sample, shots, sampling, seed, digest))
    return found


def seed_of(recipe: StageRecipe, task: Task, question: int, sample: int | None) -> int:
    """The seed of a completion; it is the same in whatever order things are asked."""
    return int(digest_of([recipe["seed"], task.digest, question, sample])[:13], 16)


def samples(recipe: StageRecipe) -> int:
    """How many samples are drawn per question; at temperature 0 all would be the greedy answer."""
    return recipe["num_generations"] if recipe["temperature"] > 0 else 0


def greedy(recipe: StageRecipe) -> Sampling:
    """The likeliest token at each step."""
    return Sampling(recipe["max_completion_length"], temperature=0.0)


def sampled(recipe: StageRecipe) -> Sampling:
    """As the recipe says."""
    return Sampling(
        recipe["max_completion_length"], recipe["temperature"], recipe["top_p"], recipe["top_k"]
    )


def prompts_of(wanted: Sequence[Request], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """The prompt of each request: the chat template, rendered as it is for training.

    A base without one continues a document, to a stop string.
    """
    template = Template(tokenizer) if tokenizer.chat_template else None
    written: dict[tuple[str, str, int], tuple[list[int], tuple[str, ...]]] = {}
    found: list[Prompt] = []
    for request in wanted:
        same = (request.stage, request.task.name, request.question)
        if same not in written:  # all samples of a question have one prompt
            written[same] = write(request, tokenizer, template)
        input_ids, stop_strings = written[same]
        found.append(Prompt(input_ids, request.seed, stop_strings, request.asked.where))
    return found


def write(
    request: Request, tokenizer: PreTrainedTokenizerBase, template: Template | None
) -> tuple[list[int], tuple[str, ...]]:
    """The tokens of one prompt, and the strings that end its completion."""
    if template is None:
        document, stop_strings = request.task.document(request.asked, request.shots)
        return document_ids(tokenizer, document), stop_strings
    messages = request.task.messages(request.asked, request.shots)
    return rendered(messages, None, tokenizer, template), ()


def rendered(
    prompt: str | Sequence[Mapping[str, Any]],
    tools: Any,
    tokenizer: PreTrainedTokenizerBase,
    template: Template | None,
) -> list[int]:
    """The tokens that a completion follows: of messages by the chat template, of text as it is.

    Args:
        prompt: text or messages.
        tools: what the messages may call; None for none.
        tokenizer: makes the tokens.
        template: its chat template; needed for messages.

    Raises:
        RecipeError: for messages without one.
    """
    if isinstance(prompt, str):
        return document_ids(tokenizer, prompt)
    if template is None:
        raise RecipeError(
            f"{tokenizer.name_or_path}: the prompts are messages, and it has no chat template; name "
            "a model that was trained on chats, such as what stage sft has made"
        )
    (text,) = template.render([template.normalise(prompt, tools)], tools, prompt=True)
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def document_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of an unfinished document: with what the tokenizer puts first, and no end."""
    ids = list(tokenizer(text).input_ids)
    bare = tokenizer(text, add_special_tokens=False).input_ids
    ended = len(ids) > len(bare) and ids[-1] == tokenizer.eos_token_id
    return ids[:-1] if ended else ids
