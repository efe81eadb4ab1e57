"""The reward for the language of a completion, told offline by py3langid."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from toolkit.errors import RecipeError
from toolkit.recipe.keys import did_you_mean
from toolkit.rewards.rows import Completion, column, texts

# Code, formulas, tags and numbers are of no language.
NO_WORDS = re.compile(r"```.*?(?:```|\Z)|\$\$?[^$]*\$\$?|</?\w+>|\\\w+|[\d_]+", re.DOTALL)
LONGEST_WORD = 200  # characters; beyond, Unicode's normal form takes quadratic time


@dataclass(frozen=True)
class Language:
    """1 where the likeliest language of the completion's words is the expected one, else 0.

    A completion without words has no language: 0. One word is seldom enough to tell.

    Args:
        language: the expected language by its ISO 639-1 code, such as "en"; without it, each row's.
        column: the column that holds each row's language.
    """

    language: str | None = None
    column: str = "language"
    __name__ = "language"

    def __post_init__(self):
        known = _identifier().labels
        if self.language is not None and self.language not in known:
            raise RecipeError(
                f"reward language: unknown language {self.language!r}"
                f"{did_you_mean(self.language, known)}; expected an ISO 639-1 code such as 'en'"
            )

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any
    ) -> list[float | None]:
        """One reward per completion; None where the row's language is not known."""
        if self.language is not None:
            expected: Sequence[Any] = [self.language] * len(completions)
        else:
            expected = column(self.column, columns, self.__name__)
        known = set(_identifier().labels)
        return [
            float(language_of(text) == wanted) if wanted in known else None
            for text, wanted in zip(texts(completions), expected, strict=True)
        ]


def language_of(text: str) -> str | None:
    """The likeliest language of a text by its ISO 639-1 code; None where there are no words."""
    words = [
        word[start : start + LONGEST_WORD]
        for word in NO_WORDS.sub(" ", text).split()
        for start in range(0, len(word), LONGEST_WORD)
    ]
    cleaned = " ".join(words).encode("utf-8", "ignore").decode("utf-8")  # no lone surrogates
    if not any(map(str.isalpha, cleaned)):
        return None
    return _identifier().classify(cleaned)[0]


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise RecipeError(
            "reward language needs py3langid: pip install 'toolkit[rewards]'"
        ) from error
    return LanguageIdentifier.from_model_file(MODEL_FILE)
