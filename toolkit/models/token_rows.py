"""Which rows of the embedding and of the head an adapter trains: those of added tokens."""

from peft import LoraConfig
from transformers import PreTrainedModel

from toolkit.errors import RecipeError


def rows_to_train(
    model: PreTrainedModel, ids: list[int], config: LoraConfig
) -> dict[str, list[int]] | None:
    """PEFT's `trainable_token_indices`: the embedding's rows, and an untied head's.

    A tied head follows the embedding by itself; matrices that are trained whole need no rows.

    Raises:
        RecipeError: if only one of the two matrices is trained whole, or LoRA is on one of them.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    both = matrix_names(model)
    whole = set(both) & set(config.modules_to_save or ())
    if not ids or whole == set(both):
        return None
    targets = config.target_modules
    adapted = set() if isinstance(targets, str) else set(both) & set(targets or ())
    if adapted:
        raise RecipeError(
            f"lora_target_modules names {', '.join(sorted(adapted))}, whose rows of added tokens "
            "must be trained, which LoRA on the same matrix prevents; leave it out, or name "
            f"{', '.join(both)} in lora_modules_to_save instead"
        )
    if whole:
        raise RecipeError(
            f"lora_modules_to_save names {', '.join(whole)}: of the two matrices that hold the "
            f"added tokens, name both ({', '.join(both)}) or none, and only their rows are trained"
        )
    tied = head is None or head.weight is embedding.weight
    return {name: sorted(ids) for name in (both[:1] if tied else both)}


def matrix_names(model: PreTrainedModel) -> list[str]:
    """The last part of the name of the embedding, and of the head."""
    names = {module: name.rpartition(".")[2] for name, module in model.named_modules()}
    both = (model.get_input_embeddings(), model.get_output_embeddings())
    return [names[module] for module in both if module is not None]


def further_rows(
    model: PreTrainedModel, ids: list[int], config: LoraConfig
) -> dict[str, list[int]] | None:
    """The rows that an adapter trains already, in their order, and after them those of new tokens.

    Raises:
        RecipeError: if only one of the two matrices is trained whole, or LoRA is on one of them.
    """
    rows = rows_to_train(model, ids, config)
    if rows is None:
        return None
    held = config.trainable_token_indices or {}
    if not isinstance(held, dict):  # PEFT's short form, for the embedding
        held = {next(iter(rows)): held}
    short = {name.rpartition(".")[2] for name in held}
    names = [*held, *(name for name in rows if name not in short)]
    return {
        name: [*held.get(name, ()), *(i for i in sorted(ids) if i not in held.get(name, ()))]
        for name in names
    }
