"""A slow, straightforward check of the response mask, which shares no code with what it checks.

It renders with `apply_chat_template`, tokenises each prompt by itself, and knows by hand which text
ends a turn in each template that TRL bundles. The other tests of the mask call `verify`.
"""

import json
import re
from importlib.resources import files

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEMPLATES = {
    path.name.removesuffix(".jinja"): path.read_text(encoding="utf-8")
    for path in sorted(files("trl").joinpath("chat_templates").iterdir(), key=lambda p: p.name)
    if path.name.endswith(".jinja")
}

# Which texts may end an assistant's turn: written down by hand, the longest matching name counts.
STOPS = {
    "qwen": ("<|im_end|>",),
    "lfm": ("<|im_end|>",),
    "nemotron": ("<|im_end|>",),
    "idefics": ("<end_of_utterance>",),
    "smolvlm": ("<end_of_utterance>",),
    "llama": ("<|eot_id|>",),
    "llava": ("</s>",),
    "gemma": ("<end_of_turn>",),
    "gemma4": ("<turn|>", "<|tool_response>"),
    "diffusion_gemma": ("<turn|>", "<|tool_response>"),
    "glm": ("<|user|>", "<|observation|>"),
    "gptoss": ("<|return|>", "<|call|>"),
    "cohere": ("<|END_OF_TURN_TOKEN|>",),
    "deepseek": ("<｜end▁of▁sentence｜>",),
    "phi": ("<|end|>",),
    "muse": ("<|eot|>",),
}
CONTROL = re.compile(
    r"<\|[^|<>\s'\"]+\|>|<\|[a-z_]+>|<[a-z_]+\|>|<｜[^｜<>\s]+｜>|<(?:start|end)_of_[a-z]+>|\[gMASK\]|<sop>"
)
# The pre-tokenizer of Qwen and Llama 3: letters, digits one by one, and signs with line feeds.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nHello there.\n\n Hello",
    "The answer is 42.\n\n\nAssistant: yes  no   maybe\n<|eot_id|>\n\n<end_of_turn>\n",
    "User: what is it?\nAssistant: it is  what it is</s>\n\n[INST] [/INST]",
] * 20


def stops_of(name):
    return STOPS[max((key for key in STOPS if name.startswith(key)), key=len)]


def byte_level(template="", *, special=(), eos=None, prefix_space=False):
    """A byte-level tokenizer that merges signs with line feeds; special tokens as asked for."""
    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    signs = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, signs])
    if prefix_space:  # as GPT-2's may be: a space before every text and after every special token
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos)
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = template or None
    return tokenizer


def with_special_tokens(name):
    """A tokenizer that knows the template's control tokens, with the template's stop as eos."""
    template = TEMPLATES[name]
    special = {*CONTROL.findall(template), *stops_of(name)}
    return byte_level(template, special=sorted(special), eos=stops_of(name)[0])


def forms(messages):
    """The forms in which a template may need a conversation: as given first."""

    def blocks(message):
        content = message.get("content")
        if not isinstance(content, str):
            return message
        return {**message, "content": [{"type": "text", "text": content}]}

    def arguments(message, change):
        calls = []
        for call in message.get("tool_calls") or ():
            function = call["function"]
            value = change(function["arguments"])
            calls.append({**call, "function": {**function, "arguments": value}})
        return {**message, "tool_calls": calls} if calls else message

    def load(value):
        return json.loads(value) if isinstance(value, str) else value

    def dump(value):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    yield messages
    yield [blocks(m) for m in messages]
    yield [arguments(m, load) for m in messages]
    yield [arguments(m, dump) for m in messages]
    yield [
        {**m, "content": ""} if m["role"] == "assistant" and m.get("content") is None else m
        for m in messages
    ]


def _gptoss_text(said):
    """Finishing an answer drops the analysis of an earlier tool call."""
    thought = said.get("thinking", said.get("reasoning_content"))
    analysis = f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant"
    final = f"<|channel|>final<|message|>{said['content']}<|return|>"
    return "<|start|>assistant", (analysis if thought is not None else "") + final


REASONING = ("reasoning_content", "thinking", "reasoning")
WORD = re.compile(r"<[^<>\s]+>|[^<\s]+|<")
OWN_TEXTS = {"gptoss": _gptoss_text, "gptoss_training": _gptoss_text}


def runs(labels):
    """The runs of trained tokens as (first, after last)."""
    found, start = [], None
    for i, label in enumerate([*labels, -100]):
        if label != -100 and start is None:
            start = i
        if label == -100 and start is not None:
            found.append((start, i))
            start = None
    return found


class Wrong(AssertionError):
    """A mask that is not exact."""


def verify(tokenizer, name, messages, tools, sequences, first=0):
    """Check the definition word by word; returns "exact" or "split"."""
    problems = []
    for form in forms(messages):
        try:
            return _verify(tokenizer, name, form, tools, sequences, first)
        except Wrong as wrong:
            problems.append(str(wrong))
        except Exception as error:  # the template refuses this form
            problems.append(f"{type(error).__name__}: {error}")
    raise Wrong("\n".join(problems))


def _expect(condition, what, *values):
    if not condition:
        raise Wrong(f"{what}: " + " | ".join(repr(value) for value in values))


def _verify(tokenizer, name, messages, tools, sequences, first):
    def text(upto, prompt):
        return tokenizer.apply_chat_template(
            messages[:upto], tools=tools, add_generation_prompt=prompt, tokenize=False
        )

    def ids(upto, prompt):
        return list(
            tokenizer.apply_chat_template(
                messages[:upto], tools=tools, add_generation_prompt=prompt
            ).input_ids
        )

    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant" and i >= first]
    joint = len(sequences) == 1
    _expect(joint or len(sequences) == len(turns), "number of sequences", len(sequences), turns)
    if not turns:
        _expect(not runs(sequences[0]["labels"]), "nothing to train", sequences)
        _expect(sequences[0]["input_ids"] == ids(len(messages), False), "the whole text")
        return "exact"
    spans = [(sequence, run) for sequence in sequences for run in runs(sequence["labels"])]
    _expect(len(spans) == len(turns), "one run per turn", len(spans), turns)
    answers = []
    for i, (sequence, (start, end)) in zip(turns, spans, strict=True):
        tokens, labels = sequence["input_ids"], sequence["labels"]
        _expect(len(tokens) == len(labels), "lengths", len(tokens), len(labels))
        _expect(labels[start:end] == tokens[start:end], "labels are the tokens")
        _expect(tokens[:start] == ids(i, True), "the prompt's tokens", i)
        if not joint:
            _expect(len(runs(labels)) == 1, "one turn a sequence", runs(labels))
        answers.append(
            _check_answer(
                tokenizer, name, messages, i, text(i, True), text(i + 1, False), tokens, start, end
            )
        )
    if joint:
        _check_whole(tokenizer, messages, turns, sequences[0], text, ids)
    else:
        _check_split_needed(tokenizer, messages, turns, answers, text, ids)
    return "exact" if joint else "split"


def _decode(tokenizer, ids):
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def _check_answer(tokenizer, name, messages, i, prompt, finished, tokens, start, end):
    stops = stops_of(name)
    rest = finished.removeprefix(prompt)
    if finished.startswith(prompt) and name.startswith("glm4moe") and not name.endswith("training"):
        role = messages[i + 1]["role"] if i + 1 < len(messages) else ""
        tool = role == "tool" if role in ("tool", "user") else bool(messages[i].get("tool_calls"))
        rest += "<|observation|>" if tool else "<|user|>"
    if not finished.startswith(prompt) and name in OWN_TEXTS:
        # Finishing the turn changes an earlier one: the turn's own text is written down by hand.
        header, own = OWN_TEXTS[name](messages[i])
        _expect(prompt.endswith(header), "the header", prompt)
        _expect(finished.endswith(header + own), "the turn's own text", finished, header + own)
        rest = own
    elif not finished.startswith(prompt):
        # Only where the row's own words begin with what the generation prompt wrote of the turn.
        said = messages[i]["content"]
        prefill = "<think>\n"
        _expect(prompt.endswith(prefill), "a known prefill", prompt[-40:])
        _expect(said.startswith(prefill), "the content begins with the prefill", said)
        header = prompt.removesuffix(prefill)
        _expect(finished.startswith(header), "same header", finished, header)
        kept = finished.removeprefix(header).removesuffix(stops[0])
        _expect(said.endswith(kept), "history keeps the end of what was said", said, kept)
        rest = said.removeprefix(prefill) + stops[0]
    stop = min((s for s in stops if s in rest), key=rest.find, default=None)
    _expect(stop is not None, "a stop", rest)
    answer = rest[: rest.find(stop) + len(stop)]
    _check_every_word(messages[i], prompt, answer)
    _expect(not rest[len(answer) :].strip() or "phi3" in name, "after the stop", rest)
    got = tokens[start:end]
    natural = list(tokenizer(prompt + answer, add_special_tokens=False).input_ids)
    if natural[:start] == tokens[:start]:
        _expect(got == natural[start:], "the answer's tokens", _decode(tokenizer, got), answer)
    else:
        decoded = _decode(tokenizer, tokens[:end])
        _expect(decoded == _decode(tokenizer, tokens[:start]) + answer, "the answer", decoded)
    return prompt + answer


def _check_every_word(message, prompt, answer):
    """Nothing that the row has the assistant say is missing; words are parted by space and by tags."""
    content = message.get("content") or ""
    blocks = [content] if isinstance(content, str) else [block["text"] for block in content]
    said = "".join(blocks)
    given = max((n for n in range(64) if prompt.rstrip().endswith(said.strip()[:n])), default=0)
    blocks = [said.strip()[given:]] if len(blocks) == 1 else blocks
    for texts in (blocks, *([message.get(field) or ""] for field in REASONING)):
        at = 0
        for word in (word for text in texts for word in re.findall(WORD, text)):
            found = answer.find(word, at)
            _expect(found >= 0, "a word of the assistant", word, answer)
            at = found + len(word)


def _check_whole(tokenizer, messages, turns, sequence, text, ids):
    whole = ids(len(messages), False)
    if sequence["input_ids"] == whole:
        return
    _expect(len(turns) == 1 or turns[-1] == len(messages) - 1, "the whole conversation")
    if len(turns) > 1:  # a borrowed stop at the very end
        _expect(sequence["input_ids"][: len(whole)] == whole, "the whole conversation")


def _check_split_needed(tokenizer, messages, turns, answers, text, ids):
    """One sequence would do if every prompt and every answer were the start of the whole."""
    whole, whole_text = ids(len(messages), False), text(len(messages), False)
    for i, answered in zip(turns, answers, strict=True):
        prompt = ids(i, True)
        upto = list(tokenizer(answered, add_special_tokens=False).input_ids)
        if whole[: len(prompt)] != prompt or whole[: len(upto)] != upto:
            return
        if not whole_text.startswith(answered):
            return
    raise Wrong("split without need")


def test_the_oracle_refuses_a_wrong_mask():
    tokenizer = with_special_tokens("qwen2_5")
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    ids = list(tokenizer.apply_chat_template(messages).input_ids)
    start = len(tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True).input_ids)
    for first, last in ((start - 1, -1), (start, len(ids)), (start, -2), (start + 1, -1)):
        labels = [-100] * len(ids)
        labels[first:last] = ids[first:last]
        try:
            verify(tokenizer, "qwen2_5", messages, None, [{"input_ids": ids, "labels": labels}])
        except Wrong:
            continue
        raise AssertionError((first, last))
