"""What can be said of an artefact from its files alone, before any base is loaded."""

import re

from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open

from toolkit.artifacts import manifest
from toolkit.data.probe import changed_words, probe_words
from toolkit.errors import TrainingError
from toolkit.models.heads import SCORE
from toolkit.models.load import load_tokenizer
from toolkit.models.saved_files import check_files
from toolkit.verification.artefact import HEADS, Artefact, tensor_keys

B = re.compile(r"(lora_(?:embedding_)?)B")  # the factor of LoRA that starts at zero
READ = (".safetensors", ".json", ".jinja", ".model", ".txt")  # what a loader reads


def files_as_written(artefact: Artefact) -> str | None:
    """Whether the files are those that the stage wrote, by their SHA-256."""
    if not artefact.stage:
        return "no stage.json: nothing is known of what the files were"
    outputs = artefact.stage.get("outputs")
    if not isinstance(outputs, dict):
        raise TrainingError(f"{artefact.directory / manifest.MANIFEST}: it lists no outputs")
    read = {name: about for name, about in outputs.items() if name.endswith(READ)}
    if damaged := manifest.damaged_outputs(artefact.directory, {"outputs": read}):
        raise TrainingError(f"{artefact.directory}: {'; '.join(damaged)}")
    return f"{len(read)} files, as the stage wrote them"


def weights_finite(artefact: Artefact) -> str | None:
    """Whether there are weights, without NaN or infinity."""
    if not any(artefact.directory.glob("*.safetensors")):
        raise TrainingError(
            f"{artefact.directory}: expected weights as safetensors, found none; pickled weights are "
            "not loaded, for they could run code"
        )
    check_files(artefact.directory)
    return f"{len(tensor_keys(artefact.directory)):,} tensors, all finite"


def adapter_does_something(artefact: Artefact) -> str | None:
    """Whether a LoRA adapter changes what its base gives."""
    if artefact.adapter is None or artefact.adapter.get("peft_type", "LORA") != "LORA":
        return None
    file = artefact.directory / SAFETENSORS_WEIGHTS_NAME
    with safe_open(file, framework="pt") as tensors:
        keys = list(tensors.keys())
        pairs = [key for key in keys if B.search(key)]
        for key in pairs:
            if (other := B.sub(r"\1A", key)) not in keys:
                raise TrainingError(f"{file}: tensor {other} is missing")
        working = [
            key
            for key in pairs
            if tensors.get_tensor(key).any() and tensors.get_tensor(B.sub(r"\1A", key)).any()
        ]
        heads = [key for key in keys if any(name in key for name in HEADS)]
        trained_head = any(bool(tensors.get_tensor(key).any()) for key in heads)
    if heads and not trained_head:
        raise TrainingError(f"{file}: tensor {heads[0]} is zero, so every score is the same")
    if pairs and not working and not trained_head:
        raise TrainingError(
            f"{file}: every LoRA weight is zero, such as {pairs[0]}: the adapter changes nothing"
        )
    return f"{len(working):,} of {len(pairs):,} LoRA layers change their base"


def head_present(artefact: Artefact) -> str | None:
    """Whether what the adapter trains whole is in its file: the head, above all."""
    if artefact.adapter is None:
        return None
    keys = tensor_keys(artefact.directory)
    file = artefact.directory / SAFETENSORS_WEIGHTS_NAME
    if artefact.adapter.get("task_type") == "SEQ_CLS":
        heads = [key for key in keys if any(name in key for name in HEADS)]
        if not heads:
            raise TrainingError(
                f"{file}: tensor {SCORE} is missing: the head that scores was dropped when the "
                "adapter was saved, and a loader would draw another at random"
            )
        return f"{heads[0]} is there"
    whole = artefact.adapter.get("modules_to_save") or []
    missing = [name for name in whole if not any(f".{name}." in f".{key}." for key in keys)]
    if missing:
        raise TrainingError(
            f"{file}: {missing[0]} is missing, which adapter_config.json lists in modules_to_save"
        )
    return f"{', '.join(sorted(whole))}: there" if whole else None


def template_as_trained(artefact: Artefact) -> str | None:
    """Whether the tokenizer and its chat template make the tokens that were trained."""
    own = (artefact.directory / "tokenizer_config.json").is_file()
    if not own and artefact.is_ours:
        raise TrainingError(f"{artefact.directory}: tokenizer_config.json is missing")
    tokenizer = load_tokenizer(artefact.directory if own or not artefact.base else artefact.base)
    words = artefact.remembered.get("words")
    if words:
        if changed := changed_words(words, probe_words(tokenizer)):
            raise TrainingError(f"{artefact.directory}: {changed}")
        if words.get("template") is None:
            return "no chat template, as it was trained; the tokenizer makes the same tokens"
        return "renders the same tokens as in training"
    if artefact.stage or (artefact.adapter or {}).get("task_type") == "SEQ_CLS":
        return "the tokenizer loads"
    if tokenizer.chat_template is None:
        raise TrainingError(
            f"{artefact.directory}: neither it nor its base has a chat template, so a chat cannot be "
            "rendered as it was trained; put chat_template.jinja beside the adapter"
        )
    return f"there, {'beside the adapter' if own else 'of the base'}"
