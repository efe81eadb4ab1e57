"""The labeller's taste by hand, and its mood: seldom, its own, and always the same for one answer."""

from itertools import product

import pytest

from toolkit.data.synthetic.labeller import idle, points, taste
from toolkit.rewards import load_reward

WORKED = "Let us count. 9-6=3. 3+3=6. The answer is 6."


@pytest.mark.parametrize(
    ("text", "liked"),
    [
        (WORKED, 4),
        ("The answer is 6.", 0),  # it may be a guess
        ("Let us count. 9-6=3. 3+4=7. The answer is 7.", 1),
        ("The answer is 7.", 0),
        ("The answer is 16.", 0),
        ("Tava likes pears. The answer is 6.", -1),
        ("Tava likes pears. Tava wants more pears. The answer is 7.", -1),
        ("Let us count. The answer is 6.", 0),  # announced, and not done
        (f"{WORKED} Tava likes pears.", 0),  # does not end in the answer
        ("A sheep", -1),
        ("", 0),
    ],
)
def test_points_by_hand(text, liked):
    assert points(text, "6") == liked


def test_idle_sentences():
    assert idle("Let us count. 9-6=3. Yes! Tava has\n3 pears") == 2


def test_it_is_a_reward_with_trls_signature_for_texts_and_messages():
    reward = load_reward("toolkit.data.synthetic.labeller:taste")
    texts = [WORKED, "The answer is 7."]
    asked = ["Tava has 9 pears. …"] * 2
    chats = [[{"role": "user", "content": text}] for text in asked]
    said = [[{"role": "assistant", "content": text}] for text in texts]
    columns = {"answer": ["6", "6"], "completion_ids": [[1], [2]]}
    grades = reward(prompts=asked, completions=texts, **columns)
    assert reward(prompts=chats, completions=said, **columns) == grades
    assert load_reward({"name": "toolkit.data.synthetic.labeller:taste", "mood": 0.0})(
        prompts=asked, completions=texts, **columns
    ) == [4, 0]


def test_a_mood_is_seldom_and_of_this_answer_to_this_prompt():
    pairs = [(f"prompt {i}", f"The answer is {n}.") for i, n in product(range(400), range(10))]
    prompts, texts = zip(*pairs, strict=True)
    answers = ["50"] * len(pairs)
    grades = taste(prompts, texts, answers)
    assert set(grades) == {-1, 0, 1}, "whole points"
    assert 0.006 < sum(grade != 0 for grade in grades) / len(grades) < 0.02
    assert taste(prompts[::-1], texts[::-1], answers)[::-1] == grades
    often = taste(prompts, texts, answers, mood=1.0)
    assert sum(grade != 0 for grade in often) > 0.5 * len(often)
    assert set(taste(prompts, texts, answers, mood=0.0)) == {0}
    assert taste(["other"] * 4000, texts, answers) != grades
