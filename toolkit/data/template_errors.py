"""Why a chat template cannot be rendered: its own words, where it comes from, its line, a remedy."""

from traceback import walk_tb

from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from toolkit.errors import DataError

# Whoever gives a tokenizer a template says here where it has it from.
ORIGIN = "chat_template_origin"


def template_error(
    tokenizer: PreTrainedTokenizerBase, error: Exception, *, prompt: bool
) -> DataError:
    """The error to raise for what a template raised.

    Args:
        tokenizer: whose template it is; its attribute `chat_template_origin`, if there, names the
            file or the repository that the template was taken from.
        error: what the template raised.
        prompt: whether the prompt was rendered, or the whole conversation.
    """
    what = "the prompt" if prompt else "the conversation"
    words = " ".join(str(error).split()) or type(error).__name__
    line = _line(error)
    place = _origin(tokenizer) + (f", line {line}" if line else "")
    first = "mend" if isinstance(error, TemplateSyntaxError) else "change the row or"
    return DataError(
        f"the chat template cannot render {what}: {words} ({place}): {first} the template, or set"
        " `chat_template_path` to another"
    )


def _origin(tokenizer: PreTrainedTokenizerBase) -> str:
    if origin := getattr(tokenizer, ORIGIN, None):
        return str(origin)
    name = tokenizer.name_or_path
    return f"of the tokenizer {name}" if name else "the tokenizer's own"


def _line(error: Exception) -> int | None:
    """The line of the template where it happened; jinja names the frames of a template so."""
    if isinstance(error, TemplateSyntaxError):
        return error.lineno
    frames = walk_tb(error.__traceback__)
    lines = [line for frame, line in frames if frame.f_code.co_filename == "<template>"]
    return lines[-1] if lines else None
