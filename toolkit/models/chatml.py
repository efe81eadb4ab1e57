"""Gives a tokenizer what a chat needs: a template, a stop token, and a pad token of its own.

A base checkpoint often has none of the three. It gets ChatML, whose two tokens are then trained.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.errors import RecipeError
from toolkit.models.load import load_tokenizer

START, STOP, PAD = "<|im_start|>", "<|im_end|>", "<|pad|>"

# {BOS} is the tokenizer's own first token where it puts one before every text, as Llama's does:
# the base has never seen a document without it.
CHATML = (
    "{BOS}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass
class TokenizerChange:
    """What was added to a tokenizer, so that the model can follow.

    Attributes:
        trained: ids of the tokens whose embedding must be trained.
        added: those of them that the vocabulary did not have.
        stops: ids of further tokens that end a turn, beside the tokenizer's own stop token.
        notes: what the user is told, one line each.
    """

    trained: list[int] = field(default_factory=list)
    added: list[int] = field(default_factory=list)
    stops: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> list[int]:
    """Add special tokens; returns the ids of those that are new."""
    known = tokenizer.get_vocab()
    new = [token for token in tokens if token not in known]
    if new:
        tokenizer.add_special_tokens(
            {"additional_special_tokens": new},
            replace_extra_special_tokens=False,  # pyright: ignore[reportCallIssue]
        )
    return [id_of(tokenizer, token) for token in new]


def id_of(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of a token of the vocabulary."""
    return tokenizer.get_vocab()[token]


def puts_bos_first(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer begins every text with its bos token."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


def add_chatml(tokenizer: PreTrainedTokenizerBase, change: TokenizerChange) -> None:
    """Set ChatML as the chat template and its end-of-turn token as the stop token."""
    change.added += add_tokens(tokenizer, [START, STOP])
    change.trained += [id_of(tokenizer, token) for token in (START, STOP)]
    bos = "{{ bos_token }}" if puts_bos_first(tokenizer) else ""
    tokenizer.chat_template = CHATML.replace("{BOS}", bos)
    tokenizer.eos_token = STOP
    change.notes.append(
        f"chat template: the base has none, so it gets ChatML; {START} and {STOP} are trained, "
        f"and {STOP} is the stop token"
    )


def separate_pad(tokenizer: PreTrainedTokenizerBase, change: TokenizerChange) -> None:
    """Make sure that the pad token is never the stop token.

    Padding with the stop token hides it from every loss that masks padding, and the model never
    learns to stop.
    """
    taken: list[Any] = [None, tokenizer.eos_token_id, *change.stops]
    if tokenizer.pad_token_id not in taken:
        return
    if tokenizer.unk_token_id not in taken:
        tokenizer.pad_token = tokenizer.unk_token
    else:
        new = add_tokens(tokenizer, [PAD])
        change.added += new
        change.trained += new
        tokenizer.pad_token = PAD
    change.notes.append(f"pad token: {tokenizer.pad_token} (it must differ from the stop token)")


def stop_at(tokenizer: PreTrainedTokenizerBase, stop: str, change: TokenizerChange) -> None:
    """Make the token that ends a turn in the chat template end a generation too.

    Args:
        tokenizer: its own stop token stays, so that the template renders as before.
        stop: the text of the token; nothing happens unless it is one token of the vocabulary.
        change: takes it up.
    """
    token = tokenizer.get_vocab().get(stop)
    if token is None or token == tokenizer.eos_token_id:
        return
    change.stops.append(int(token))
    change.notes.append(
        f"stop token: the chat template ends a turn with {stop}, the tokenizer's own is "
        f"{tokenizer.eos_token}; generation will stop at either"
    )
    separate_pad(tokenizer, change)


def take_template(tokenizer: PreTrainedTokenizerBase, path: str, change: TokenizerChange) -> None:
    """Take the template in a Jinja file, or another tokenizer's with its tokens and stop token."""
    file = Path(path)
    if file.is_file():
        tokenizer.chat_template = file.read_text(encoding="utf-8")
        tokenizer.chat_template_origin = f"chat_template_path {path}"  # pyright: ignore[reportAttributeAccessIssue]
        return
    source = load_tokenizer(path)
    template = source.chat_template
    if not isinstance(template, str):
        raise RecipeError(f"chat_template_path: the tokenizer of {path} has no chat template")
    used = [token.content for token in source.added_tokens_decoder.values()]
    used = [token for token in used if token in template or token == source.eos_token]
    new = add_tokens(tokenizer, used)
    change.added += new
    change.trained += new
    tokenizer.chat_template = template
    tokenizer.chat_template_origin = f"chat_template_path, of the tokenizer {path}"  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.eos_token = source.eos_token
    change.notes.append(f"chat template: that of {path}; {len(new)} tokens added and trained")


def prepare_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    *,
    conversational: bool,
    chat_template_path: str | None = None,
    eos_token: str | None = None,
    pad_token: str | None = None,
) -> TokenizerChange:
    """Give the tokenizer the template, the stop token and the pad token that training needs.

    Args:
        tokenizer: changed in place.
        conversational: whether the rows are chats, which need a template.
        chat_template_path: TRL's key: a Jinja file, or where to take a tokenizer's template from.
        eos_token: TRL's key: the token that ends a turn; it must be in the vocabulary.
        pad_token: TRL's key: the token that fills; likewise, and it must not be the stop token.

    Raises:
        RecipeError: if a token is unknown, or there is no stop token, or it would be padding.
    """
    change = TokenizerChange()
    if chat_template_path is not None:
        take_template(tokenizer, chat_template_path, change)
    if conversational and tokenizer.chat_template is None:
        add_chatml(tokenizer, change)
    for key, token in (("eos_token", eos_token), ("pad_token", pad_token)):
        if token is not None:
            if token not in tokenizer.get_vocab():
                raise RecipeError(f"{key}: {token!r} is not in the tokenizer's vocabulary")
            setattr(tokenizer, key, token)
    if tokenizer.eos_token_id is None:
        raise RecipeError(
            "the tokenizer has no stop token, so nothing could teach the model to stop; name one "
            "of its tokens with eos_token"
        )
    if pad_token is not None and tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise RecipeError(
            f"pad_token: {pad_token!r} is the stop token, which padding would hide from the loss; "
            "name another, or leave the key out"
        )
    separate_pad(tokenizer, change)
    return change


def fit_embeddings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, change: TokenizerChange
) -> None:
    """Make room for added tokens, start them at the mean of the others, agree on special tokens.

    The matrix never shrinks: many checkpoints hold more rows than their tokenizer has tokens.
    """
    if len(tokenizer) > matrices(model)[0].shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if change.added:
        start_at_mean(model, change.added)
    stops = [id_of(tokenizer, str(tokenizer.eos_token)), *change.stops]
    declared = model.generation_config.eos_token_id
    for token in declared if isinstance(declared, list) else [declared]:
        if token is not None and token not in stops:
            stops.append(int(token))
    model.generation_config.eos_token_id = stops if len(stops) > 1 else stops[0]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def matrices(model: PreTrainedModel) -> list[Tensor]:
    """The weights of the embedding, and of the head if it has its own; (V, H) each."""
    modules = [model.get_input_embeddings(), model.get_output_embeddings()]
    weights = [cast(Tensor, module.weight) for module in modules if module is not None]
    return weights[:1] if weights[0] is weights[-1] else weights


@torch.no_grad()
def start_at_mean(model: PreTrainedModel, ids: list[int]) -> None:
    """Set the rows of new tokens, in the embedding and in an untied head, to the others' mean."""
    for weight in matrices(model):
        others = torch.ones(weight.shape[0], dtype=torch.bool, device=weight.device)
        others[ids] = False
        # rows at and past the first new one may never have been used; they are not "the others"
        others[min(ids) :] = False
        weight[ids] = weight[others].float().mean(dim=0).to(weight.dtype)
