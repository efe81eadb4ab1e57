"""The format reward: tags, patterns and JSON Schemas, also on hostile text."""

import socket
import sys
import time

import pytest

from toolkit.errors import RecipeError
from toolkit.rewards import format as format_module
from toolkit.rewards import get

THOUGHT = "<think>a</think><answer>b</answer>"


def graded(reward, *texts):
    return reward(prompts=[""] * len(texts), completions=list(texts))


@pytest.mark.parametrize(
    ("parameters", "text", "value"),
    [
        ({}, THOUGHT, 1), ({}, f" \n{THOUGHT}\n", 1), ({}, f"{THOUGHT} and more", 1),
        ({}, "<think>\na < b\n</think>\n<answer>\nb\n</answer>", 1),
        ({}, f"Well, {THOUGHT}", 0), ({}, "<think>a</think> so <answer>b</answer>", 0),
        ({}, "<answer>b</answer><think>a</think>", 0), ({}, "<think>a</think>", 0), ({}, "", 0),
        ({}, f"{THOUGHT}<answer>b</answer>", 0), ({}, f"<think>{THOUGHT}", 0),
        ({}, "<think>a<answer>b</answer></think>", 0), ({}, "<think> </think><answer>b</answer>", 0),
        ({}, "<think>a</think><answer></answer>", 0), ({}, "<think>a</think><answer>b", 0),
        ({}, "<think>a<answer></think>b</answer>", 0), ({}, "<Think>a</Think><answer>b</answer>", 0),
        ({"text_after": False}, THOUGHT, 1), ({"text_after": False}, f"{THOUGHT} more", 0),
        ({"text_after": True}, THOUGHT, 0), ({"text_after": True}, f"{THOUGHT} more", 1),
        ({"opened": True}, "a</think><answer>b</answer>", 1), ({"opened": True}, THOUGHT, 0),
        ({"tags": ["think"], "text_after": True}, "<think>a</think> b", 1),
    ],
)  # fmt: skip
def test_tags(parameters, text, value):
    assert graded(get("format", **{"tags": ["think", "answer"]} | parameters), text) == [value]


def test_tags_agree_with_trl():
    from trl.rewards import think_format_reward

    texts = ["<think>a</think> b", "<think>a b", "a</think> b", "x <think>a</think> b", ""]
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    ours = get("format", tags=["think"])
    assert graded(ours, *chats) == think_format_reward(chats) == [1.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("pattern", "text", "value"),
    [
        (r"\d+", " 18\n", 1), (r"\d+", "18 cats", 0), ("a.*b", "a\n\nb", 1), ("(?i)yes|no", "NO", 1),
        ("(?i)yes|no", "nope", 0), (r".*#### -?\d+", "3 * 6\n#### 18", 1), ("", "", 1),
    ],
)  # fmt: skip
def test_a_pattern(pattern, text, value):
    assert graded(get("format", regex=pattern), text) == [value]


def test_a_pattern_that_backtracks_has_an_end():
    reward = get("format", regex=r"(\w+\s?)+:(\w|\w\w|\w+)*!")
    started = time.monotonic()
    assert graded(reward, "a" * 40 + ":" + "b" * 5000, "a:b!") == [0.0, 1.0]
    assert time.monotonic() - started < 2


SCHEMA = {
    "type": "object",
    "required": ["answer"],
    "properties": {"answer": {"type": "integer"}, "why": {"pattern": "^(a+)+$"}},
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"answer": 5}', 1), (' {"answer": 5}\n', 1), ('{"answer": "5"}', 0), ("{}", 0), ("5", 0),
        ('Here:\n```json\n{"answer": 5}\n```\nDone.', 1), ('```\n{"answer": 5}\n```', 1),
        ('{"answer": 5} is it', 0), ('```json\n{"answer": 5}\n```\n```json\n{"answer": 6}\n```', 0),
        ('{"answer": 5, "why": NaN}', 0), ("", 0), ("[" * 100_000, 0), ('{"answer": ' + "9" * 5000 + "}", 0),
        ('{"answer": 5, "why": "aaa"}', 1), ("x" * 2_000_000, 0), ('{"answer": 5', 0),
    ],
)  # fmt: skip
def test_a_schema(text, value):
    assert graded(get("format", json_schema=SCHEMA), text) == [value]


def test_a_schema_that_takes_for_ever_has_an_end(monkeypatch):
    monkeypatch.setattr(format_module._SCHEMAS, "seconds", 0.5)
    reward = get("format", json_schema=SCHEMA)
    started = time.monotonic()
    assert graded(reward, '{"answer": 5, "why": "%s!"}' % ("a" * 60)) == [0.0]
    assert time.monotonic() - started < 5
    monkeypatch.setattr(format_module._SCHEMAS, "seconds", 10.0)
    assert graded(reward, '{"answer": 5}') == [1.0]


def test_a_schema_fetches_nothing():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x.json"
        socket.setdefaulttimeout(0.5)
        assert format_module.fits({"$ref": url}, "5") is False
        socket.setdefaulttimeout(None)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody has called
            server.accept()


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({}, "give one of tags, regex and json_schema, found none"),
        ({"tags": ["a"], "regex": "b"}, "found tags and regex"),
        ({"regex": "("}, "regex is no pattern: missing )"),
        ({"tags": []}, "tags must be different names without brackets"),
        ({"tags": ["<think>"]}, "tags must be different names without brackets"),
        ({"tags": ["a", "a"]}, "tags must be different names"),
        ({"regex": "a", "opened": True}, "opened and text_after go with tags"),
        (
            {"json_schema": {"type": "objekt"}},
            "json_schema is no JSON Schema: 'objekt' is not valid",
        ),
        ({"json_schema": {"const": {1, 2}}}, "json_schema is no JSON Schema: Object of type set"),
    ],
)
def test_wrong_parameters(parameters, words):
    with pytest.raises(RecipeError) as caught:
        get("format", **parameters)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_jsonschema(monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonschema.exceptions", None)
    with pytest.raises(RecipeError, match=r"needs jsonschema: pip install 'toolkit\[rewards\]'"):
        get("format", json_schema={})
