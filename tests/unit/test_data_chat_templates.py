"""The response mask on every chat template that TRL bundles: exact or refused, never wrong."""

from collections import Counter
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_data_chat_oracle import (
    TEMPLATES,
    byte_level,
    verify,
    with_special_tokens,
)
from transformers import AutoTokenizer

from toolkit.data.chat import describe_template, training_sequences
from toolkit.errors import DataError

# The prompt opens `<think>`, and an answer without reasoning does not say what closes it.
NEED_REASONING = [n for n in TEMPLATES if n.startswith(("deepseek", "nemotron"))]
NO_SYSTEM = ["gemma", "gemma_training"]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "Its name."}},
                "required": ["city"],
            },
        },
    }
]


def user(text):
    return {"role": "user", "content": text}


def answer(text, **more):
    return {"role": "assistant", "content": text, **more}


def calls(*cities, arguments=lambda city: {"city": city}):
    return [
        {
            "id": f"c{i}",
            "type": "function",
            "function": {"name": "get_weather", "arguments": arguments(city)},
        }
        for i, city in enumerate(cities)
    ]


def result(text):
    return {"role": "tool", "content": text, "tool_call_id": "c0", "name": "get_weather"}


system = {"role": "system", "content": "Be terse."}
THOUGHT = "<think>\nwhy not\n</think>\n\nHello"
PLAIN = {
    "one turn": [user("Hello, who are you?"), answer("I am a bot.")],
    "repeated texts": [
        user("Hi"),
        answer("Hi"),
        user("Hi"),
        answer("Hi"),
        user("Hi"),
        answer("Hi"),
    ],
    "ends with the user": [user("Hi"), answer("Hello"), user("bye")],
    "header as text": [user("Assistant: x"), answer("assistant\n"), user("a"), answer("User: Hi")],
}
OTHERS = {
    "system": [system, user("Hi"), answer("Hello there"), user("x"), answer("y")],
    "whitespace": [user("  Hi \n"), answer("\n Hello  \n"), user(" \n"), answer("  x")],
    "empty answer": [user("Hi"), answer(""), user("a"), answer("b")],
    "reasoning": [
        *(user("Hi"), answer("Hello", reasoning_content="why not")),
        *(user("a"), answer("b", reasoning_content="hmm\n\nso")),
    ],
    "thinking": [user("Hi"), answer("Hello", thinking="why not"), user("a"), answer("b")],
    "think in content": [user("Hi"), answer(THOUGHT), user("a"), answer(THOUGHT)],
    "control text of the user": [user("<|im_start|>assistant\nHi<|im_end|>"), answer("Hello")],
    "two assistants": [user("Hi"), answer("One."), answer("Two."), user("a"), answer("b")],
}
TOOL_USE = {
    "call": [
        *(user("Weather?"), answer("", tool_calls=calls("Bonn")), result("rain")),
        *(answer("It rains."), user("ok"), answer("bye")),
    ],
    "call with text": [
        *(user("Weather?"), answer("Let me look.", tool_calls=calls("Bonn"))),
        *(result("rain"), answer("It rains.")),
    ],
    "call with reasoning": [
        *(user("Weather?"), answer("", reasoning_content="Look.", tool_calls=calls("Bonn"))),
        *(result("rain"), answer("It rains.", reasoning_content="So.")),
    ],
    "arguments as JSON": [
        *(
            user("Weather?"),
            answer(None, tool_calls=calls("Bonn", arguments='{{"city": "{}"}}'.format)),
        ),
        *(result("rain"), answer("It rains.")),
    ],
    "two calls": [
        *(user("Weather?"), answer("", tool_calls=calls("Bonn", "Ulm")), result("rain")),
        *(result("sun"), answer("Mixed.")),
    ],
    "ends with a call": [user("Weather?"), answer("", tool_calls=calls("Bonn"))],
}
KINDS = ["special tokens", "bytes", "bytes with a space before"]


@cache
def tokenizer_of(kind, name):
    """A tokenizer that knows the template's control tokens, or one that spells them out."""
    if kind == "special tokens":
        tokenizer = with_special_tokens(name)
    else:
        tokenizer = byte_level(TEMPLATES[name], prefix_space=kind.endswith("before"))
    tokenizer.add_special_tokens({"bos_token": "<|bos|>"})
    return tokenizer


def outcome(tokenizer, name, messages, tools=None):
    """What became of a conversation: "exact", "split" or "refused"; fails if it is wrong."""
    try:
        sequences = training_sequences(tokenizer, messages, tools=tools)
    except DataError:
        return "refused"
    return verify(tokenizer, name, messages, tools, sequences)


def test_every_bundled_template_is_tested():
    assert len(TEMPLATES) > 60
    assert any(name.endswith("_training") for name in TEMPLATES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_plain_conversations_are_exact_on_every_template(name, kind):
    tokenizer = tokenizer_of(kind, name)
    for label, messages in PLAIN.items():
        assert (outcome(tokenizer, name, messages) == "refused") == (name in NEED_REASONING), label


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_other_conversations_are_exact_or_refused(name, kind):
    tokenizer = tokenizer_of(kind, name)
    became = {k: outcome(tokenizer, name, m) for k, m in OTHERS.items()}
    became |= {k: outcome(tokenizer, name, m, TOOLS) for k, m in TOOL_USE.items()}
    if name not in [*NEED_REASONING, *NO_SYSTEM]:
        for label in ("system", "whitespace", "empty answer", "control text of the user"):
            assert became[label] != "refused", label
    if name in NEED_REASONING:
        assert became["think in content"] != "refused"


def test_few_conversations_are_refused():
    count = Counter()
    for name in TEMPLATES:
        tokenizer = tokenizer_of("special tokens", name)
        count.update(outcome(tokenizer, name, m) for m in (PLAIN | OTHERS).values())
    # Of the refused, half have reasoning that the template never shows.
    assert count["refused"] / count.total() < 0.27, count


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_tokenizer_made_for_another_text(name, stories):
    tokenizer = AutoTokenizer.from_pretrained(stories)
    tokenizer.chat_template = TEMPLATES[name]
    tokenizer.model_max_length = 1_000_000
    became = [outcome(tokenizer, name, m) for m in PLAIN.values()]
    assert ("refused" in became) == (name in NEED_REASONING)
    for messages in OTHERS.values():
        outcome(tokenizer, name, messages)


def test_which_tool_conversations_are_refused():
    agents = ["qwen2_5", "qwen3", "qwen3_5_think", "llama3_1", "glm4moe", "gptoss", "lfm2_v2"]
    for name in [
        *agents,
        "gemma4_v2",
        "muse_glimmer",
        *(f"{n}_training" for n in ("qwen3", "gptoss")),
    ]:
        tokenizer = tokenizer_of("special tokens", name)
        for label in ("call", "arguments as JSON", "ends with a call"):
            assert outcome(tokenizer, name, TOOL_USE[label], TOOLS) != "refused", (name, label)
        became = outcome(tokenizer, name, TOOL_USE["call with reasoning"], TOOLS)
        silent = ("qwen2_5", "llama3_1", "lfm2_v2", "gemma4_v2")  # show no reasoning
        assert (became == "refused") == (name in silent), name
    for name in ("lfm2", "phi3", "qwen2_5_vl"):  # drop tool calls: nothing could be learnt of them
        for label in ("call", "call with text", "ends with a call"):
            tokenizer = tokenizer_of("special tokens", name)
            assert outcome(tokenizer, name, TOOL_USE[label], TOOLS) == "refused", (name, label)


SHOW_REASONING = (
    *(
        "diffusion_gemma",
        "gemma4_v5",
        "glm4moe",
        "gptoss",
        "lfm2_2_5",
        "muse_glimmer",
        "nemotron_3",
    ),
    *("qwen3_5_think", "qwen3_6", "qwen3_8"),
)


@pytest.mark.parametrize("name", TEMPLATES)
def test_reasoning_is_trained_or_refused(name):
    tokenizer = tokenizer_of("special tokens", name)
    shown = name.startswith(SHOW_REASONING) or name in ("qwen3", "qwen3_training")
    for field in ("reasoning_content", "reasoning", "thinking"):
        row = [user("2+2?"), answer("Four.", **{field: "2+2 is 4"}), user("x"), answer("y")]
        if not shown:
            with pytest.raises(DataError, match=r"message 1: .*think"):
                training_sequences(tokenizer, row)
            continue
        row = [*row[:3], answer("y", **{field: "hmm"})]  # some refuse an answer without reasoning
        sequences = training_sequences(tokenizer, row)
        trained = [i for one in sequences for i in one["labels"] if i != -100]
        text = tokenizer.decode(trained)
        assert all(text.count(words) == 1 for words in ("2+2 is 4", "Four.", "hmm")), text


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_report_tells_how_turns_end(name):
    report = describe_template(tokenizer_of("special tokens", name))
    first = {"glm4moe": "<|user|>", "gptoss": "<|return|>", "phi3": "<|end|>", "llava": "</s>"}
    for start, stop in first.items():
        if name.startswith(start):
            assert report.stop == stop
    assert report.stop
    assert report.content_as_blocks == name.startswith(("idefics", "smolvlm", "llava"))
    assert ("without reasoning is refused" in report.reason) == (name in NEED_REASONING)
    if name.startswith(("deepseek", "qwen3_5_think", "qwen3_6")) and not name.endswith("training"):
        assert report.prefill == "<think>\n"


WORDS = st.sampled_from(
    [
        *(
            "Hello",
            "Hi",
            " a",
            "b ",
            "\n",
            " \n\n",
            "",
            "é",
            "日本",
            "🙂",
            "1 2",
            "x" * 50,
            "<b>",
            "</s>",
        ),
        *(
            "<think>\n",
            "\n</think>\n\n",
            "<think></think>",
            "assistant",
            "user\n",
            "Assistant: ",
            "'",
        ),
        *(
            "<|im_start|>assistant\n",
            "<|im_end|>",
            "<|user|>",
            "<|end|>",
            "[INST]",
            "{{ x }}",
            '"}',
        ),
    ]
)
TEXT = st.one_of(
    st.lists(WORDS, min_size=1, max_size=4).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)
TURN = st.one_of(
    st.tuples(TEXT, TEXT).map(lambda t: [user(t[0]), answer(t[1])]),
    st.tuples(TEXT, TEXT).map(lambda t: [user(t[0]), answer(t[1])]),
    st.tuples(TEXT, TEXT, TEXT).map(lambda t: [user(t[0]), answer(t[1], reasoning_content=t[2])]),
    st.tuples(TEXT, TEXT, TEXT).map(
        lambda t: [user(t[0]), answer(f"<think>\n{t[2]}\n</think>\n\n{t[1]}")]
    ),
    st.tuples(TEXT, TEXT, TEXT, TEXT).map(
        lambda t: [user(t[0]), answer(t[1], tool_calls=calls(t[2])), result(t[3]), answer(t[1])]
    ),
    st.tuples(TEXT, TEXT, TEXT).map(
        lambda t: [user(t[0]), answer("", tool_calls=calls(t[1], t[2])), result(t[1]), result(t[2])]
    ),
    TEXT.map(lambda t: [user(t)]),
    TEXT.map(lambda t: [answer(t)]),
)
CONVERSATION = st.tuples(
    st.booleans(), st.lists(TURN, min_size=1, max_size=3), st.sampled_from([None, TOOLS])
)


def _generated(name, kind, drawn):
    with_system, turns, tools = drawn
    messages = [system] * with_system + [message for turn in turns for message in turn]
    outcome(tokenizer_of(kind, name), name, messages, tools)


@settings(
    max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(st.sampled_from(sorted(TEMPLATES)), st.sampled_from(KINDS), CONVERSATION)
def test_generated_conversations_are_exact_or_refused(name, kind, drawn):
    _generated(name, kind, drawn)


@pytest.mark.slow
@settings(max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(TEMPLATES)), st.sampled_from(KINDS), CONVERSATION)
def test_many_generated_conversations_are_exact_or_refused(name, kind, drawn):
    _generated(name, kind, drawn)
