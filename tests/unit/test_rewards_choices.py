"""Multiple choice in the forms that data sets have it, and the language of a completion."""

import json
import sys

import pytest

from toolkit.errors import DataError, RecipeError
from toolkit.rewards import get
from toolkit.rewards import language as language_module
from toolkit.rewards.rows import texts

CITIES = ["Paris", "London", "New York"]
ARC = {"text": CITIES, "label": ["1", "2", "3"]}


def chosen(text, answer, choices):
    return get("choice")(prompts=[""], completions=[text], answer=[answer], choices=[choices])[0]


@pytest.mark.parametrize(
    ("answer", "choices"),
    [
        ("B", CITIES), ("London", CITIES), (1, CITIES), ("2", ARC), ("B", ARC), ("b", CITIES),
        ("B", json.dumps(CITIES)), ("2", json.dumps(ARC)), ("B", tuple(CITIES)),
    ],
)  # fmt: skip
def test_a_choice(answer, choices):
    assert chosen("The answer is (B).", answer, choices) == 1.0
    assert chosen("It is London, not Paris", answer, choices) == 1.0
    for text in ("A", "B or C", "", "Paris", "I think so"):
        assert chosen(text, answer, choices) == 0.0


@pytest.mark.parametrize(
    ("answer", "choices"),
    [
        ("E", CITIES), (3, CITIES), (-1, CITIES), (None, CITIES), ("", CITIES), ("Rome", CITIES),
        ("A", None), ("A", []), ("A", "Paris"), ("A", 5), (True, CITIES), ("4", ARC), ("A", {}),
    ],
)  # fmt: skip
def test_a_choice_that_cannot_be_graded(answer, choices):
    assert chosen("A", answer, choices) is None


def test_the_columns_of_a_choice():
    reward = get("choice", column="key", choices_column="options")
    assert reward(prompts=[""], completions=["A"], key=["A"], options=[CITIES]) == [1.0]
    with pytest.raises(
        DataError, match="reward choice: there is no column 'choices'; found answer"
    ):
        get("choice")(prompts=[""], completions=["A"], answer=["A"])


ENGLISH = "She sells eighteen eggs every morning, so that is what she earns."
GERMAN = "Sie verkauft jeden Morgen achtzehn Eier, und davon lebt sie ganz gut."
CHINESE = "她每天早上卖十八个鸡蛋，所以这就是她赚的钱。"


def test_a_language():
    reward = get("language", language="en")
    found = reward(prompts=[""] * 4, completions=[ENGLISH, GERMAN, CHINESE, ENGLISH.upper()])
    assert found == [1.0, 0.0, 0.0, 1.0]
    german = get("language", language="de")
    assert german(prompts=[""] * 3, completions=[ENGLISH, GERMAN, CHINESE]) == [0.0, 1.0, 0.0]


def test_the_language_of_each_row():
    found = get("language")(
        prompts=[""] * 4, completions=[ENGLISH, GERMAN, CHINESE, ENGLISH],
        language=["en", "de", "en", "klingon"],
    )  # fmt: skip
    assert found == [1.0, 1.0, 0.0, None]


@pytest.mark.parametrize(
    "text", ["", "18", "$x^2 + y^2$", "```python\nfor x in y: pass\n```", "\ud800", "😀" * 9, "_"]
)
def test_what_is_of_no_language(text):
    assert language_module.language_of(text) is None


def test_code_and_formulas_do_not_count():
    mixed = f"```\nfor each in range(5): print(each) or never mind\n```\n{GERMAN} $\\text{{is}}$"
    assert language_module.language_of(mixed) == "de"


def test_without_py3langid(monkeypatch):
    language_module._identifier.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(RecipeError, match=r"needs py3langid: pip install 'toolkit\[rewards\]'"):
        get("language", language="en")
    language_module._identifier.cache_clear()


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("a", "a"), ([{"role": "assistant", "content": "a"}], "a"), ([], ""), ([{"content": "a"}], "a"),
        ([{"role": "assistant", "content": "a"}, {"role": "tool", "content": "b"}], "a"),
        ([{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}], "b"),
        ([{"role": "assistant", "content": None, "tool_calls": []}], ""),
        ([{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}], "a"),
    ],
)  # fmt: skip
def test_the_text_of_a_completion(completion, text):
    assert texts([completion]) == [text]
