"""What makes a completion good: the reward functions that training and exams use.

    import toolkit.rewards
    toolkit.rewards.names()
    graded = toolkit.rewards.get("format", tags=["think", "answer"])
    graded(prompts=["…"], completions=["<think>…</think><answer>…</answer>"])  # [1.0]

A reward has TRL's signature, `f(prompts, completions, **columns) -> list[float | None]`, sync or
async. Importing this package loads none of them.
"""

from toolkit.rewards.checked import Checked, OnError, Reward, checked, checked_all
from toolkit.rewards.registry import get, load_reward, names

__all__ = ["Checked", "OnError", "Reward", "checked", "checked_all", "get", "load_reward", "names"]
