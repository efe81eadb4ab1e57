"""Several answers to one prompt as tokens, each as inference would produce it after the prompt."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from toolkit.data.chat import completion_sequences, state_of
from toolkit.data.chat_kept import left_out
from toolkit.data.chat_tokens import IGNORED, Encoder
from toolkit.data.chat_turns import turn_at
from toolkit.errors import DataError

Ids = list[int]


class Spoken(NamedTuple):
    """A conversation and the assistant's turns that may follow it, as text.

    Attributes:
        prompt: what inference is given, the generation prompt included.
        answers: of each answer what the model must add, with its stop token.
        left_out: what the chat template leaves out of the prompt, in words.
    """

    prompt: str
    answers: list[str]
    left_out: list[str]


def answered_texts(
    tokenizer: PreTrainedTokenizerBase, prompt: str, answers: Sequence[str]
) -> tuple[Ids, list[Ids]]:
    """Tokens of a text, and of each text that may follow it with the end-of-sequence token.

    Raises:
        DataError: naming the answer whose tokens cannot be told from the prompt's.
    """
    before, found = list[int](), list[Ids]()
    for index, answer in enumerate(answers):
        try:
            (sequence,) = completion_sequences(tokenizer, prompt, answer)
        except DataError as error:
            raise DataError(f"answer {index + 1}: {error}") from error
        ids = sequence["input_ids"]
        start = sum(label == IGNORED for label in sequence["labels"])
        before = ids[:start]
        found.append(ids[start:])
    return before, found


def spoken(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[Mapping[str, Any]],
    answers: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | None,
) -> Spoken:
    """A conversation and the answers to it, rendered.

    Args:
        tokenizer: with a chat template.
        prompt: the messages before; the last is not the assistant's.
        answers: one message of the assistant's each.
        tools: as `apply_chat_template` takes them.

    Raises:
        DataError: naming the answer for which what the model must produce cannot be known.
    """
    template, _ = state_of(tokenizer, tools)
    (opened,) = template.render([template.normalise(prompt, tools)], tools, prompt=True)
    conversations = [template.normalise([*prompt, answer], tools) for answer in answers]
    finished = template.render(conversations, tools)
    turns = []
    for index, (conversation, text) in enumerate(zip(conversations, finished, strict=True)):
        try:
            turns.append(turn_at(template, conversation, len(prompt), tools, opened, text).answer)
        except DataError as error:
            raise DataError(f"answer {index + 1}: {error}") from error
    missing = left_out(template, conversations[0], tools, finished[0], answers=False)
    return Spoken(opened, turns, missing)


def answered_messages(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Spoken]
) -> list[tuple[Ids, list[Ids]]]:
    """Tokens of each prompt, and of the answers to it.

    Args:
        tokenizer: the one whose template rendered them.
        conversations: rendered prompts and answers.

    Raises:
        DataError: for the first answer that the tokenizer cannot tell from its prompt.
    """
    if not conversations:
        return []
    texts = [text for c in conversations for text in (c.prompt, *(c.prompt + a for a in c.answers))]
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
    ids, encoder = iter(encoded["input_ids"]), Encoder(tokenizer)
    found = []
    for prompt, said, _ in conversations:
        before, answers = next(ids), list[Ids]()
        for index, answer in enumerate(said):
            whole = next(ids)
            if len(whole) <= len(before) or whole[: len(before)] != before:
                try:
                    whole = encoder.continued(before, prompt, answer)["input_ids"]
                except DataError as error:
                    raise DataError(f"answer {index + 1}: {error}") from error
            answers.append(whole[len(before) :])
        found.append((before, answers))
    return found
