"""The reward for a completion's form: tags in order, a pattern, or JSON of a schema."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import regex

from toolkit.errors import RecipeError
from toolkit.rewards.bounded import Bounded
from toolkit.rewards.rows import Completion, texts

SECONDS = 0.2  # for one match of a pattern
SCHEMA_SECONDS = 1.0  # of processor time, for one check against a schema
LONGEST_JSON = 1_000_000  # characters
A_TAG = re.compile(r"\w[\w-]{0,50}")
FENCE = re.compile(r"```(?:json)?[^\S\n]*\n(.*?)\n[^\S\n]*```", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Format:
    """1 where the completion has the form, else 0. One of `tags`, `regex` and `json_schema`.

    Args:
        tags: names of tags, as [think, answer]: each opened and closed once, in this order, none
            inside another, something in each, and nothing before and between them.
        opened: with tags: the prompt already ends in the first opening tag.
        text_after: with tags: words behind the last one must follow (true) or must not (false); by
            default they may.
        regex: a pattern of the `regex` package that the whole completion matches, but for spaces
            around it; a point matches line breaks too. A match that takes over 0.2 s is none.
        json_schema: a JSON Schema; JSON that fits it is the whole completion, or its one fenced
            block.
    """

    tags: list[str] | None = None
    opened: bool = False
    text_after: bool | None = None
    regex: str | None = None
    json_schema: dict[str, Any] | None = None
    __name__ = "format"

    def __post_init__(self):
        given = [key for key in ("tags", "regex", "json_schema") if getattr(self, key) is not None]
        if len(given) != 1:
            raise RecipeError(
                f"reward format: give one of tags, regex and json_schema, found "
                f"{' and '.join(given) or 'none'}"
            )
        if self.tags is None and (self.opened or self.text_after is not None):
            raise RecipeError("reward format: opened and text_after go with tags")
        if self.tags is not None:
            self._check_tags(self.tags)
        elif self.regex is not None:
            _ = self._pattern
        else:
            assert self.json_schema is not None
            check_schema(self.json_schema)

    def _check_tags(self, tags: Sequence[str]) -> None:
        wrong = [tag for tag in tags if not A_TAG.fullmatch(tag)]
        if wrong or not tags or len(set(tags)) < len(tags):
            raise RecipeError(
                f"reward format: tags must be different names without brackets, such as [think, "
                f"answer], found {tags}"
            )

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any
    ) -> list[float | None]:
        """One reward per completion."""
        if self.tags is not None:
            has_form = self._has_tags
        else:
            has_form = self._matches if self.regex is not None else self._fits
        return [float(has_form(text)) for text in texts(completions)]

    def _has_tags(self, text: str) -> bool:
        assert self.tags
        text = f"<{self.tags[0]}>{text}" if self.opened else text
        for tag in self.tags:
            opening, closing = f"<{tag}>", f"</{tag}>"
            if text.count(opening) != 1 or text.count(closing) != 1:
                return False
        for tag in self.tags:
            before, _, rest = text.partition(f"<{tag}>")
            inside, closed, text = rest.partition(f"</{tag}>")
            if before.strip() or not closed or not inside.strip():
                return False
            if any(f"<{other}>" in inside for other in self.tags):
                return False
        return self.text_after is None or bool(text.strip()) == self.text_after

    @cached_property
    def _pattern(self) -> "regex.Pattern[str]":
        try:
            return regex.compile(self.regex or "", regex.DOTALL)
        except regex.error as error:
            raise RecipeError(f"reward format: regex is no pattern: {error}") from error

    def _matches(self, text: str) -> bool:
        try:
            return self._pattern.fullmatch(text.strip(), timeout=SECONDS) is not None
        except TimeoutError:
            return False

    def _fits(self, text: str) -> bool:
        if len(text) > LONGEST_JSON:
            return False
        blocks = FENCE.findall(text)
        document = blocks[0] if len(blocks) == 1 else text
        try:
            return _SCHEMAS(self.json_schema, document)
        except TimeoutError:
            return False


_SCHEMAS = Bounded(f"{__name__}:fits", SCHEMA_SECONDS, loads=["jsonschema", "referencing"])


def check_schema(schema: dict[str, Any]) -> None:
    """Check that a JSON Schema is one, by the draft that it names.

    Raises:
        RecipeError: if it is none, or if jsonschema is not installed.
    """
    try:
        from jsonschema.exceptions import SchemaError
        from jsonschema.validators import validator_for
    except ImportError as error:
        raise RecipeError(
            "reward format with json_schema needs jsonschema: pip install 'toolkit[rewards]'"
        ) from error
    try:
        json.dumps(schema)
        validator_for(schema).check_schema(schema)
    except (SchemaError, TypeError, ValueError) as error:
        message = getattr(error, "message", str(error))
        raise RecipeError(f"reward format: json_schema is no JSON Schema: {message}") from error


def fits(schema: dict[str, Any], text: str) -> bool:
    """Whether a text is JSON of a schema, without a limit: for the process that may be killed."""
    from jsonschema.validators import validator_for
    from referencing import Registry

    try:
        document = json.loads(text, parse_constant=_refuse)
        # an empty registry: nothing that a schema refers to is fetched
        return validator_for(schema)(schema, registry=Registry()).is_valid(document)
    except Exception:  # no JSON, too deep, an unknown reference
        return False


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
