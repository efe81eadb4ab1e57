"""Preferences for tests: rows whose chosen answer has a word that the other lacks."""

from typing import Any

QUESTIONS = [f"Question {index}: {'what is this? ' * (index % 4 + 1)}" for index in range(24)]


def pair(index: int, *, more: int = 0) -> dict[str, Any]:
    """A conversation with an answer that says yes, of uneven length, and one that says no."""
    longer = ", and so on" * (index % 5)
    yes, no = f"Yes{longer if index % 2 else ''}.", f"No{'' if index % 2 else longer}."
    return {
        "prompt": [{"role": "user", "content": QUESTIONS[index]}],
        "chosen": [{"role": "assistant", "content": yes + "!" * more}],
        "rejected": [{"role": "assistant", "content": no}],
    }


PAIRS = [pair(index) for index in range(24)]

RANKED = [
    {
        "prompt": QUESTIONS[index],
        "answers": [f"Yes, {index}.", "Perhaps.", f"No{', never' * (index % 3)}."][: 2 + index % 2],
        "ranks": [1, 2, 3][: 2 + index % 2],
    }
    for index in range(12)
]
