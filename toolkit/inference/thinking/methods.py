"""The ways of thinking by name, as a recipe or a command line gives them.

An entry is a name, or a mapping with the parameters of the function and a budget:

    thinking:
      - adaptive
      - {name: best_of, n: 8, tokens: 400}
      - {name: budget_forcing, end: "The answer is", minimum: 20, maximum: 60, seconds: 5}
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from toolkit.errors import RecipeError
from toolkit.inference.thinking.adaptive import adaptive
from toolkit.inference.thinking.best_of import best_of
from toolkit.inference.thinking.budget import Budget
from toolkit.inference.thinking.budget_forcing import budget_forcing
from toolkit.inference.thinking.refine import refine
from toolkit.inference.thinking.reward_vote import reward_vote
from toolkit.inference.thinking.steps import Problem, Thinking
from toolkit.inference.thinking.vote import vote, weighted_vote
from toolkit.recipe.keys import did_you_mean

METHODS: Mapping[str, Callable[..., Thinking]] = {
    "vote": vote,
    "weighted_vote": weighted_vote,
    "best_of": best_of,
    "reward_vote": reward_vote,
    "refine": refine,
    "budget_forcing": budget_forcing,
    "adaptive": adaptive,
}
JUDGED = ("best_of", "reward_vote", "refine")
"""Those that need a reward."""
BUDGET = {"tokens": int, "seconds": float}
LEAST = {"n": 1, "rounds": 1, "tokens": 1, "maximum": 1, "minimum": 0}
"""Of whole numbers; the others are above 0."""


@dataclass(frozen=True)
class Method:
    """A way of thinking with its parameters.

    Attributes:
        name: of the function.
        parameters: what it is called with.
        budget: `tokens` and `seconds`, as far as they are given.
    """

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    budget: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What a report calls it: its name, with what was given."""
        given = {**self.parameters, **self.budget}
        return " ".join([self.name, *(f"{key}={value}" for key, value in given.items())])

    def begin(self, problem: Problem) -> Thinking:
        """Think about a question, within a budget of its own."""
        return METHODS[self.name](problem, Budget(**self.budget), **self.parameters)


def method_of(entry: Any, where: str) -> Method:
    """A way of thinking from an entry, checked.

    Args:
        entry: see the head of this file.
        where: how messages call its place.

    Raises:
        RecipeError: if there is none of that name, or a parameter is unknown, of the wrong type or
            out of its range.
    """
    given = dict(entry) if isinstance(entry, Mapping) else {"name": entry}
    name = given.pop("name", None)
    if name not in METHODS:
        near = did_you_mean(str(name), METHODS, f"; known: {', '.join(METHODS)}")
        raise RecipeError(f"{where}: unknown way of thinking {name!r}{near}")
    own = {
        key: each
        for key, each in inspect.signature(METHODS[name]).parameters.items()
        if each.kind is inspect.Parameter.KEYWORD_ONLY
    }
    kinds = {key: each.annotation for key, each in own.items()} | BUDGET
    for key, value in given.items():
        if key not in kinds:
            near = did_you_mean(str(key), kinds, f"; known: {', '.join(kinds)}")
            raise RecipeError(f"{where}: {name} takes no {key!r}{near}")
        check_value(f"{where}: {name}: {key}", key, value, kinds[key])
    for key, each in own.items():
        if each.default is inspect.Parameter.empty and key not in given:
            raise RecipeError(f"{where}: {name} needs {key}")
    budget = {key: given.pop(key) for key in BUDGET if key in given}
    return Method(name, given, budget)


def check_value(where: str, key: str, value: Any, kind: type) -> None:
    """Check the type and the range of a parameter.

    Raises:
        RecipeError: if it is another.
    """
    kinds = (int, float) if kind is float else kind
    if not isinstance(value, kinds) or isinstance(value, bool) is not (kind is bool):
        raise RecipeError(f"{where}: expected {kind.__name__}, found {value!r}"[:300])
    if kind is int and value < LEAST[key]:
        raise RecipeError(f"{where}: expected at least {LEAST[key]}, found {value}")
    if kind is float and not (value > 0 and (key != "confidence" or value <= 1)):
        expected = "a share up to 1" if key == "confidence" else "a number"
        raise RecipeError(f"{where}: expected {expected} above 0, found {value}")
