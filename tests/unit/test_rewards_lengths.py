"""Length and repetition, against TRL's own and against numbers by hand."""

import pytest

from toolkit.rewards import get

IDS = [[1] * 50, [1] * 80, [1] * 90, [1] * 100, [1] * 101, []]


def graded(reward, ids):
    return reward(prompts=[""] * len(ids), completions=[""] * len(ids), completion_ids=ids)


def test_a_target():
    reward = get("length", target=80, tolerance=10)
    assert graded(reward, IDS) == [0.75, 1.0, 1.0, 0.875, 0.8625, 0.125]
    assert graded(reward, [[1] * 170, [1] * 171, [1] * 500]) == [0.0, 0.0, 0.0]


def test_the_soft_overlong_punishment_is_trls():
    from trl.rewards import get_soft_overlong_punishment

    found = graded(get("length", max_completion_len=100, soft_punish_cache=20), IDS)
    assert found == [0.0, 0.0, -0.5, -1.0, -1.0, 0.0]
    assert found == get_soft_overlong_punishment(100, 20)(IDS)


def test_repetition_is_trls():
    from trl.rewards import get_repetition_penalty_reward

    ids = [[1, 2, 3, 4], [5] * 5, [], [1, 2, 1, 2, 1, 2]]
    found = graded(get("repetition", ngram_size=2, max_penalty=-2.0), ids)
    assert found == get_repetition_penalty_reward(2, -2.0)(ids)
    assert found[:3] == [0.0, -1.5, 0.0]


@pytest.mark.parametrize(
    ("reward", "text", "value"),
    [
        (get("length", target=4), "one two three four", 1.0),
        (get("length", target=4), "one two", 0.5),
        (get("length", max_completion_len=4, soft_punish_cache=2), "one two three", -0.5),
        (get("repetition", ngram_size=1), "no no no no", -0.75),
        (get("repetition", ngram_size=1), "no one ever repeats", 0.0),
    ],
)
def test_without_tokens_words_count(reward, text, value):
    assert reward(prompts=[""], completions=[text]) == [value]
    assert reward(prompts=[""], completions=[[{"role": "assistant", "content": text}]]) == [value]
