"""From a conversation to token ids and labels: the inference-exact response mask.

The tokens that carry loss are those that the model must itself produce at inference: what follows
`apply_chat_template(messages[:i], add_generation_prompt=True)`, to the end of the turn and with its
stop token. Nothing is known about any template; it is rendered, and what it renders is compared.

Words: the *prompt* of a turn is the text that inference gives; the *finished* turn is the
conversation up to and with it; the *answer* is what the finished turn has after the prompt, up to
and with the *stop* token; the *trailer* is what the finished turn has after that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from toolkit.data.chat_kept import left_out
from toolkit.data.chat_tokens import IGNORED, Encoder
from toolkit.data.chat_turns import Turn, prefill_of, turn_at
from toolkit.data.template_render import MARKERS, USER_TEXT, Ending, Message, Template
from toolkit.errors import DataError


@dataclass(frozen=True)
class TemplateReport:
    """What a chat template does to training, found by rendering a conversation of two turns.

    Args:
        mode: "exact" where one sequence serves all turns, "split" where each turn needs its own,
            "refused" where no such conversation can be trained.
        stop: the text of the token that ends a turn, trained with it.
        prefill: what the generation prompt writes of the assistant's own words, such as `<think>`.
        content_as_blocks: whether the template reads content only as blocks.
        reason: why it is not plainly exact, or what it drops; empty if there is nothing to say.
    """

    mode: str
    stop: str
    prefill: str
    content_as_blocks: bool
    reason: str


@dataclass(frozen=True)
class Reading:
    """A conversation as the template reads it.

    Args:
        sequences: as `training_sequences` gives them.
        template: what rendered it.
        conversation: in the form that the template can read.
        tools: as given.
        whole: all of it, rendered.
    """

    sequences: list[dict[str, list[int]]]
    template: Template
    conversation: list[Message]
    tools: Any
    whole: str

    def left_out(self, *, answers: bool = False) -> list[str]:
        """What the template leaves out of what others than the assistant say, in words.

        Args:
            answers: whether to look at the assistant's turns too, which are refused where trained.
        """
        return left_out(self.template, self.conversation, self.tools, self.whole, answers=answers)


def training_sequences(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Any] | None = None,
) -> list[dict[str, list[int]]]:
    """Token ids and labels of a conversation; every assistant turn is trained.

    Args:
        tokenizer: with a chat template.
        messages: mappings with `role` and `content`, and whatever else the template reads.
        tools: as `apply_chat_template` takes them.

    Returns:
        One `{"input_ids", "labels"}`, or one per assistant turn where no single sequence shows each
        turn what inference would show it. A label is the token at its own index, or -100.

    Raises:
        DataError: if the mask cannot be exact for a turn, with the reason.
    """
    return read_conversation(tokenizer, messages, tools).sequences


def completion_sequences(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[Mapping[str, Any]],
    completion: str | Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Any] | None = None,
) -> list[dict[str, list[int]]]:
    """Token ids and labels of a prompt and its completion; the completion is trained.

    Args:
        tokenizer: with a chat template if prompt and completion are messages.
        prompt: text, or the messages before.
        completion: text, which the end-of-sequence token follows, or the messages after; of these
            the assistant's are trained.
        tools: as `apply_chat_template` takes them.

    Returns:
        As `training_sequences`.

    Raises:
        DataError: if the mask cannot be exact, or only one of the two is text.
    """
    if isinstance(prompt, str) and isinstance(completion, str):
        return [_plain_completion(tokenizer, prompt, completion)]
    if isinstance(prompt, str) or isinstance(completion, str):
        raise DataError("prompt and completion must both be text or both be lists of messages")
    return read_conversation(tokenizer, [*prompt, *completion], tools, len(prompt)).sequences


def text_sequence(tokenizer: PreTrainedTokenizerBase, text: str) -> dict[str, list[int]]:
    """Token ids and labels of plain text; every token is trained, and the end of it.

    Args:
        tokenizer: adds what special tokens it adds to any text.
        text: one document.

    Returns:
        `{"input_ids", "labels"}`, both the same tokens, which end with the end-of-sequence token.

    Raises:
        DataError: if the tokenizer has no end-of-sequence token, or the text would begin twice.
    """
    end = _end_id(tokenizer)
    ids = _one_start(tokenizer, list(tokenizer(text).input_ids))
    if not ids or ids[-1] != end:
        ids.append(end)
    return {"input_ids": ids, "labels": list(ids)}


def describe_template(tokenizer: PreTrainedTokenizerBase) -> TemplateReport:
    """What the tokenizer's chat template does to training, to be told before it starts.

    Raises:
        DataError: if the tokenizer has no chat template, or one that cannot render a question.
    """
    template, _ = state_of(tokenizer, None)
    blocks = not template.reads_strings and template.reads_blocks
    user: Message = {"role": "user", "content": USER_TEXT}
    plain: Message = {"role": "assistant", "content": MARKERS[0]}
    context = template.normalise([user], None)
    (prompt,) = template.render([context], None, prompt=True)
    (marked,) = template.normalise([plain], None)
    prefill = prefill_of(template, context, marked, None, prompt)
    if not prefill:  # the finished turn may have it too; what history lacks of it is prefilled
        (history,) = template.render([[*context, marked, *context]], None)
        prefill = prompt[template.common_length(prompt, history) :]
    refusal = ""
    for answer in (plain, *_reasoned(prefill, plain)):
        try:
            sequences = training_sequences(tokenizer, [user, answer, user, answer])
            ending = template.ending(context, template.normalise([answer], None)[0], "user", None)
        except DataError as error:
            refusal = refusal or str(error)
            continue
        mode = "exact" if len(sequences) == 1 else "split"
        return TemplateReport(mode, ending.stop, prefill, blocks, _reason(mode, ending, refusal))
    return TemplateReport("refused", "", prefill, blocks, refusal)


def _reasoned(prefill: str, plain: Message) -> list[Message]:
    """The plain answer with reasoning, as a field and inside the content."""
    opened = prefill.strip()
    inside = f"{prefill}{MARKERS[1]}\n{opened.replace('<', '</', 1)}\n\n{plain['content']}"
    return [{**plain, "reasoning_content": MARKERS[1]}, {**plain, "content": inside}]


def _reason(mode: str, ending: Ending, refusal: str) -> str:
    reasons = []
    if refusal:
        reasons.append(f"an answer without reasoning is refused: {refusal}")
    if mode == "split":
        reasons.append("the template or the tokenizer shows a turn otherwise once others follow it")
    if ending.borrowed:
        reasons.append(f"a turn has no end of its own: the next header, {ending.stop!r}, stops it")
    return "; ".join(reasons)


# What was found out about the tokenizers last used; each keeps its tokenizer, so that ids hold.
_STATES: dict[tuple[Any, ...], tuple[Template, Encoder]] = {}


def state_of(tokenizer: PreTrainedTokenizerBase, tools: Any) -> tuple[Template, Encoder]:
    """What is known about a tokenizer and its template; forgotten when either changes."""
    try:
        source = tokenizer.get_chat_template(None, tools)
    except ValueError as error:
        raise DataError(
            "the tokenizer has no chat template: set `chat_template_path`,"
            " or give the rows as `prompt` and `completion` or `text`"
        ) from error
    key = (id(tokenizer), source, tokenizer.eos_token, len(tokenizer))
    if key not in _STATES:
        while len(_STATES) >= 8:
            del _STATES[next(iter(_STATES))]
        _STATES[key] = Template(tokenizer), Encoder(tokenizer)
    return _STATES[key]


def read_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    tools: Any,
    first: int = 0,
) -> Reading:
    """A conversation with its sequences, of which the assistant's turns from `first` on are trained.

    Raises:
        DataError: if the mask cannot be exact for one of them, with the reason.
    """
    if not messages:
        raise DataError("the conversation is empty")
    template, encoder = state_of(tokenizer, tools)
    conversation = template.normalise(messages, tools)
    at = [i for i, m in enumerate(conversation) if m["role"] == "assistant" and i >= first]
    if at and at[0] == 0:
        raise DataError(
            "the first message is the assistant's: no prompt precedes it at inference;"
            " put a system or user message before it"
        )
    ends = [i + 1 for i in at]
    if not ends or ends[-1] < len(conversation):
        ends.append(len(conversation))
    finished = template.render([conversation[:end] for end in ends], tools)
    whole = finished[-1]
    if not at:
        sequences = [encoder.labelled(whole, []) or {}]
        return Reading(sequences, template, conversation, tools, whole)
    prompts = template.render([conversation[:i] for i in at], tools, prompt=True)
    turns = [
        turn_at(template, conversation, i, tools, prompt, text)
        for i, prompt, text in zip(at, prompts, finished, strict=False)
    ]
    text = whole
    if ends[-1] == at[-1] + 1 and "".join(turns[-1]).startswith(whole):
        text = "".join(turns[-1])  # with the stop that only a next message would have brought
    sequences = _joint(encoder, text, turns) or [_alone(encoder, turn) for turn in turns]
    return Reading(sequences, template, conversation, tools, whole)


def _joint(encoder: Encoder, whole: str, turns: list[Turn]) -> list[dict[str, list[int]]] | None:
    """The whole conversation as one sequence, if it shows every turn what inference shows it."""
    spans = []
    for turn in turns:
        start = len(turn.prompt)
        if not (whole.startswith(turn.prompt) and whole.startswith(turn.answer, start)):
            return None
        spans.append((start, start + len(turn.answer)))
    sequence = encoder.labelled(whole, spans)
    return None if sequence is None else [sequence]


def _alone(encoder: Encoder, turn: Turn) -> dict[str, list[int]]:
    """One turn after its own prompt."""
    start = len(turn.prompt)
    sequence = encoder.labelled("".join(turn), [(start, start + len(turn.answer))])
    return sequence or encoder.joined(*turn)


def _plain_completion(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str
) -> dict[str, list[int]]:
    end, eos = _end_id(tokenizer), str(tokenizer.eos_token)
    answer = completion.removesuffix(eos)
    if eos in answer:
        raise DataError(f"the completion contains {eos!r} before its end: remove it from the row")
    before = _one_start(tokenizer, list(tokenizer(prompt).input_ids))
    bare = tokenizer(prompt, add_special_tokens=False).input_ids
    if before and before[-1] == end and len(before) > len(bare) and not prompt.endswith(eos):
        before.pop()  # a tokenizer that ends every text would end the prompt before its answer
    head = before[: len(before) - len(bare)] if before[len(before) - len(bare) :] == bare else None
    if head is None:
        raise DataError("the tokenizer adds special tokens inside the prompt; no exact mask exists")
    joined = Encoder(tokenizer).continued(bare, prompt, answer) if answer else None
    ids = joined["input_ids"] if joined else bare
    trained = [*ids[len(bare) :], end]
    return {
        "input_ids": [*before, *trained],
        "labels": [IGNORED] * len(before) + trained,
    }


def _one_start(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """The tokens, if they begin but once: a text that was rendered before brings its own start."""
    start = tokenizer.bos_token_id
    if start is not None and ids[:2] == [start, start]:
        raise DataError(
            f"the text begins with {tokenizer.bos_token!r}, which the tokenizer puts first by "
            "itself: take it off the row"
        )
    return ids


def _end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    end = tokenizer.eos_token_id
    if not isinstance(end, int):
        raise DataError("the tokenizer has no eos_token, so no end can be trained: give it one")
    return end
