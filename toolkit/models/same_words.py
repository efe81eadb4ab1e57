"""Adapters over one base read and write the same tokens, or they cannot stand beside one another."""

from transformers import PreTrainedTokenizerBase

from toolkit.errors import RecipeError
from toolkit.models.load import load_tokenizer


def check_same_words(directory: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse an adapter that reads other tokens, or another chat, than the policy writes.

    Raises:
        RecipeError: naming the adapter and what differs.
    """
    own = load_tokenizer(directory)
    for what, one, other in (
        ("vocabulary", own.get_vocab(), tokenizer.get_vocab()),
        ("chat template", own.chat_template, tokenizer.chat_template),
    ):
        if one != other:
            raise RecipeError(
                f"{directory} was trained with another {what} than the policy has; "
                "train both from one stage (start_from), or on one tokenizer"
            )
