"""The person who ranks the demo's answers: a taste, and a mood.

Nothing that is trained ever sees this as a formula, only the ranks that come of it.
"""

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.data.synthetic.problems import OPENING, direct

RIGHT = 3.0
WORKED = 1.0
IDLE = -1.0
"""Points for an answer that is seen to be right, for its working, and for a word beside the point.
A number without its working earns nothing, right or wrong: nobody can see whether it was a guess."""

MOOD = 0.2
"""Standard deviation of what else sways a grade. Grades are whole points, as people give them: most
answers that are as good as each other get the same, and one in eighty a point more or less."""

SUM = re.compile(r"\d[+-]\d+=\d")
SENTENCE = re.compile(r"[^.!?\n]+[.!?\n]?")

Message = Mapping[str, Any]


def taste(
    prompts: Sequence[str | Sequence[Message]],
    completions: Sequence[str | Sequence[Message]],
    answer: Sequence[str],
    *,
    mood: float = MOOD,
    **columns: Any,
) -> list[float]:
    """How much the labeller likes each answer: right and seen to be, without idle words.

    The same answer to the same prompt always gets the same grade.

    Args:
        prompts: what was asked, text or messages.
        completions: what was answered, likewise.
        answer: the right number of each.
        mood: standard deviation of the noise, in points; 0 for none.
        **columns: not read.
    """
    found = []
    for prompt, completion, number in zip(prompts, completions, answer, strict=True):
        asked, text = _words(prompt), _words(completion)
        swayed = random.Random(f"{asked}\0{text}").gauss(0, mood)
        found.append(float(round(points(text, number) + swayed)))
    return found


def points(text: str, answer: str | int) -> float:
    """What an answer is worth to somebody in no mood.

    Args:
        text: it.
        answer: the right number.
    """
    right = text.rstrip().endswith(direct(int(answer)))
    worked = OPENING in text and SUM.search(text) is not None
    return RIGHT * (right and worked) + WORKED * worked + IDLE * min(1, idle(text))


def idle(text: str) -> int:
    """How many sentences have no number in them and do not open the working."""
    sentences = [sentence.strip() for sentence in SENTENCE.findall(text)]
    return sum(
        bool(sentence) and sentence != OPENING and not any(map(str.isdigit, sentence))
        for sentence in sentences
    )


def _words(said: str | Sequence[Message]) -> str:
    """A text, or what the last of some messages says."""
    return said if isinstance(said, str) else str(said[-1]["content"])
