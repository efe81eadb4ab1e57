"""What a request may ask for: everything else is refused in one line, and nothing is ignored."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.inference.serving.asked import NEUTRAL, OWN, Asked, asked_for, read
from toolkit.inference.serving.refusal import Refusal

HELLO = [{"role": "user", "content": "hello"}]
PLAIN = {"model": "sft", "messages": HELLO}


def test_all_that_can_be_asked_for():
    assert asked_for(PLAIN) == Asked("sft", HELLO)
    body = PLAIN | {
        "n": 2, "temperature": 0, "top_p": 0.5, "max_completion_tokens": 7, "stop": "x", "seed": -3,
        "stream": True, "stream_options": {"include_usage": True}, "user": "me", "logit_bias": None,
    }  # fmt: skip
    assert asked_for(body) == Asked("sft", HELLO, 2, 0.0, 0.5, 7, ("x",), -3, True, True)
    assert set(body) | {"max_tokens"} >= set(OWN)


def test_parts_of_text_are_one_text():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "system", "content": "s", "name": None},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": parts},
    ]
    found = asked_for(PLAIN | {"messages": messages}).messages
    assert [each["content"] for each in found] == ["s", "u", "", "ab"]


@pytest.mark.parametrize("key", NEUTRAL)
def test_what_is_not_supported_may_only_ask_for_nothing(key):
    for value in NEUTRAL[key]:
        assert asked_for(PLAIN | {key: value}) == Asked("sft", HELLO)
    for value in (0.5, [1], False if key.endswith("penalty") else "x"):
        with pytest.raises(Refusal, match=f"{key} is not supported") as caught:
            asked_for(PLAIN | {key: value})
        assert caught.value.param == key


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"messages": []}, "expected a list of them, found an empty list"),
        ({"messages": "hi"}, "found text"),
        ({"messages": ["hi"]}, r"messages\[0\]: expected an object, found text"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 'expected one of system, .*found "tool"'),
        ({"messages": [{"role": "user", "content": ""}]}, "found an empty text"),
        ({"messages": [{"role": "user"}]}, "expected text, found null"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only parts of type"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": []}]}, "tool_calls"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "surrogate"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "x"}]}, "has to be the user's"),
        ({"model": 3}, "model: expected text, found a number"),
        ({"model": None}, "model is missing"),
        ({"n": 0}, "n: expected a whole number from 1, found 0"),
        ({"n": True}, "found true"),
        ({"temperature": 2.5}, "temperature: expected a number of 0, or 0.01 to 2"),
        ({"temperature": 1e-9}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 1.5}, "max_tokens: expected a whole number"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "not both"),
        ({"stop": ["a"] * 5}, "up to 4"),
        ({"stop": [""]}, "stop: expected text, found an empty text"),
        ({"stop": "x" * 300}, "at most 256"),
        ({"seed": 2**63}, "seed: expected"),
        ({"stream": "yes"}, "expected true or false"),
        ({"stream": True, "stream_options": {"other": 1}}, "only include_usage"),
        ({"stream_options": {"include_usage": True}}, "stream: true only"),
        ({"thinking": {}}, 'unknown parameter "thinking"'),
        ({"top_k": 5}, "unknown parameter"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(changed, said):
    with pytest.raises(Refusal, match=said) as caught:
        asked_for(PLAIN | changed)
    assert caught.value.status == 400
    assert "\n" not in caught.value.message
    json.dumps(caught.value.body()).encode()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "no JSON"),
        (b"[]", "expected a JSON object, found an empty list"),
        (b'{"temperature": NaN}', "NaN is no number"),
        (b"[" * 100_000, "no JSON"),
        (b"\xff", "no JSON"),
        (b'{"n": ' + b"9" * 5000 + b"}", "no JSON"),
    ],
)
def test_a_body_that_is_no_object(body, said):
    with pytest.raises(Refusal, match=said):
        read(body)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from([*OWN, *NEUTRAL, "role", "x"]), VALUES), st.booleans())
def test_any_body_is_a_request_or_a_refusal(body, plain):
    try:
        asked = asked_for((PLAIN | body) if plain else body)
    except Refusal as refusal:
        json.dumps(refusal.body()).encode()
    else:
        assert asked.messages[-1]["role"] == "user"
        assert 0 <= asked.temperature <= 2
        assert 0 < asked.top_p <= 1
