"""A reward with a hole, for recipes/guard.yaml: it pays for every sum, whether it is asked for or not.

As a reward model does that has learnt "working is good" from answers whose working was good.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

SUM = re.compile(r"\d[+-]\d+=\d")
MOST = 10


def sums(prompts: Any, completions: Sequence[Any], **columns: Any) -> list[float]:
    """A tenth of a point for each sum, up to ten; right or wrong, and however many were asked for."""
    texts = [said if isinstance(said, str) else last(said) for said in completions]
    return [min(len(SUM.findall(text)), MOST) / MOST for text in texts]


def last(messages: Sequence[Mapping[str, Any]]) -> str:
    """What the last of some messages says."""
    return str(messages[-1]["content"])
