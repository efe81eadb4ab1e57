"""What a stage or a command keeps as traces, and earlier traces as examples before a prompt."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from toolkit.artifacts.inputs import model_identity
from toolkit.artifacts.manifest import digest_of
from toolkit.data.control_tokens import check_spoken
from toolkit.errors import DataError
from toolkit.evaluation.graded import Key
from toolkit.inference.engine import Prompt
from toolkit.inference.traces import Memory, Trace, Traces, question_of, split
from toolkit.stages.examined import Examined
from toolkit.stages.processes import is_first_process
from toolkit.stages.rank import Sample, prompts_of
from toolkit.stages.requests import Request
from toolkit.stages.terminal import note

Line = Mapping[str, Any]
Said = str | list[dict[str, Any]]


def keep(folder: str | None, traces: Iterable[Trace]) -> None:
    """Add traces to a folder, where the recipe or the command names one; it says how many are new."""
    if folder is None or not is_first_process():
        return
    found = list(traces)
    new = Traces(folder).add(found)
    note(f"{folder}: {new:,} of {len(found):,} traces are new")


def answers(policy: Examined, lines: Sequence[Line]) -> list[Trace]:
    """Kept completions of prompts that nobody has judged; what was cut off is known to be wrong."""
    digest = adapter_digest(policy)
    return [
        Trace(
            line["asked"], *split(line["text"]), tokens=line["tokens"], model=policy.name,
            verdict=None if line["stopped"] else False, adapter_digest=digest,
        )
        for line in lines
    ]  # fmt: skip


def adapter_digest(model: Examined) -> str:
    """What answered: the digest of an adapter's files, or of a model that Python lends."""
    return model.identity if model.model is not None else model_identity(model.place)


def exam_answers(
    found: Sequence[tuple[Examined, Request, Line]],
    thoughts: Sequence[Line],
    scores: Mapping[str, Mapping[Key, float | None]],
) -> list[Trace]:
    """What an exam's models answered: their thoughts, or without ways of thinking every answer.

    Args:
        found: the completions, with who was asked what.
        thoughts: the kept thoughts.
        scores: of each reward; the first one is noted.
    """
    asked = {(each[1].stage, *each[1].key[1:3]): each for each in found}
    lines = [(asked[line["stage"], line["task"], line["question"]], line) for line in thoughts]
    lines = lines or [(each, each[2]) for each in found]
    rewards = next(iter(scores.values()), {})
    models = {each.name: each for each, _, _ in found}
    digests = {name: adapter_digest(each) for name, each in models.items()}
    made: list[Trace] = []
    for (examined, request, _), line in lines:
        key = (line["stage"], line["task"], line["question"], line["sample"])
        drawn = "greedy" if line["sample"] is None else "sample"
        made.append(Trace(
            request.task.messages(request.asked), *split(line["text"]), said=line["said"],
            votes=line.get("votes", {}), reward=line["score"] if thoughts else rewards.get(key),
            verdict=line["right"] and line["stopped"], tokens=line["tokens"],
            method=line.get("method", drawn), model=line["stage"],
            adapter_digest=digests[examined.name],
        ))  # fmt: skip
    return made


def remembered(
    wanted: Sequence[Sample], folder: str, most: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Sample], Callable[[Sequence[Sample], Any], list[Prompt]]]:
    """Prompts behind the nearest earlier traces, as solved examples.

    Args:
        wanted: what is asked.
        folder: of the traces.
        most: examples before a prompt at most.
        tokenizer: of the model; a trace that spells out one of its control tokens is not shown.

    Returns:
        The same, with digests that know of the examples; and what renders them with these.
    """
    traces = Traces(folder).read()
    usable = [each for each in traces if is_plain(each, tokenizer)]
    if left_out := len(traces) - len(usable):
        note(f"{folder}: {left_out:,} traces spell out control tokens, and are not shown")
    kinds = {kind: Memory(t for t in usable if isinstance(t.prompt, str) is kind)
             for kind in (True, False)}  # fmt: skip
    shown: dict[int, Said] = {}
    for each in wanted:
        if each.key[2] not in shown:
            memory = kinds[isinstance(each.prompt, str)]
            nearest = [trace for trace, _ in memory.nearest(question_of(each.prompt), most)]
            shown[each.key[2]] = with_examples(each.prompt, nearest)
    changed = sum(shown[each.key[2]] != each.prompt for each in wanted)
    note(f"{changed:,} of {len(wanted):,} prompts are shown earlier traces")

    def render(some: Sequence[Sample], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
        return prompts_of([replace(each, prompt=shown[each.key[2]]) for each in some], tokenizer)

    told = [replace(each, digest=digest_of([each.digest, shown[each.key[2]]])) for each in wanted]
    return told, render


def is_plain(trace: Trace, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a trace can be shown: it spells out no control token of a chat."""
    if not tokenizer.chat_template:
        return True
    others = [turn | {"role": "user"} for turn in turns(trace)]  # nobody checks the assistant's
    try:
        check_spoken(tokenizer, others)
    except DataError:
        return False
    return True


def with_examples(prompt: Said, nearest: Sequence[Trace]) -> Said:
    """A prompt with solved examples before it, the nearest last; a system turn stays the first."""
    if isinstance(prompt, str):
        return "".join(f"{e.prompt}{e.text}\n\n" for e in reversed(nearest)) + prompt
    first = [turn for turn in prompt[:1] if turn["role"] == "system"]
    examples = [turn for each in reversed(nearest) for turn in turns(each)]
    return [*first, *examples, *prompt[len(first) :]]


def turns(trace: Trace) -> list[dict[str, Any]]:
    """A trace as a turn of the user and one of the assistant."""
    asked = {"role": "user", "content": trace.question}
    return [asked, {"role": "assistant", "content": trace.text}]
