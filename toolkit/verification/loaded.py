"""What can be said of an artefact once its base is there: whether it is the one, and the numbers."""

import warnings
from typing import Any

import torch
from peft import AutoPeftModelForSequenceClassification
from torch import Tensor

from toolkit.artifacts import manifest, proof_file
from toolkit.artifacts.base_identity import base_differences, base_identity
from toolkit.data.probe import TEXT
from toolkit.errors import TrainingError
from toolkit.models import proof
from toolkit.models.load import base_arguments, fetch, load_adapter, load_tokenizer
from toolkit.models.reward import SCORES, is_classifier, without_report
from toolkit.models.saved_files import misplaced
from toolkit.recipe import StageRecipe
from toolkit.recipe.keys import TRAINING
from toolkit.verification.artefact import HEADS, Artefact, tensor_keys

CHECKS = {check.name: check for check in (proof.LOG_PROBABILITIES, SCORES)}
# What a base is loaded with, of all that a recipe says; the rest could name code.
PRECISION = (
    "dtype", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant",
)  # fmt: skip


def base_matches(artefact: Artefact) -> str | None:
    """Whether the base is the one that the adapter was trained over."""
    if artefact.adapter is None:
        return None
    name, revision = artefact.base, artefact.adapter.get("revision")
    if not name:
        raise TrainingError(
            f"{artefact.directory}/adapter_config.json: base_model_name_or_path names no base"
        )
    fetch(name, revision)
    recorded = artefact.stage.get("base_identity") or artefact.remembered.get("base_identity")
    differing = base_differences(recorded, base_identity(name, revision))
    if differing is None:
        return f"{name}: its weights were not recorded, so another of its shape would pass"
    if differing:
        raise TrainingError(
            f"{name} is not the base that {artefact.directory} was trained over: "
            f"{' and '.join(differing)} differ; the same shapes are not the same base"
        )
    return f"{name}: the weights that it was trained over"


def numbers_again(artefact: Artefact) -> str | None:
    """Whether it loads by plain PEFT or transformers, and gives the numbers of training."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    device = torch.device("cpu") if accelerator is None else accelerator
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PEFT misses is named below
        try:
            if artefact.remembered.get("probe"):
                return proved_again(artefact, device)
            return loads(artefact, device)
        except (RuntimeError, ValueError, IndexError) as error:
            below = f" over {artefact.base}" if artefact.base else ""
            said = " ".join(str(error).split())
            raise TrainingError(f"{artefact.directory} cannot be loaded{below}: {said}") from error


def proved_again(artefact: Artefact, device: torch.device) -> str:
    """The proof that the stage ended with, once more."""
    check = CHECKS.get(str(artefact.remembered.get("check")))
    if check is None:
        raise TrainingError(f"{artefact.directory / manifest.PROOF}: it names no check")
    found = proof.prove(
        artefact.directory,
        proof.Expected.from_dict(artefact.remembered),
        device=device,
        check=check,
        elsewhere=artefact.remembered.get("device") != device.type,
        **reload_arguments(artefact),
    )
    proof_file.mark_verified(artefact.directory, found["verified"])
    beside = ", and the critic's values" if "largest_difference_of_values" in found else ""
    return (
        f"{check.name} of {found['sequences']} sequences{beside} as in training, to "
        f"{found['largest_difference']:.1g}; {found['tensors']:,} tensors to the bit"
    )


def loads(artefact: Artefact, device: torch.device) -> str:
    """Load what others made, and let it read a text."""
    name, keys = str(artefact.directory), tensor_keys(artefact.directory)
    own = (artefact.directory / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(name if own or not artefact.base else artefact.base)
    model = _load_foreign(artefact, keys).to(device)
    if artefact.adapter is not None:
        missing, more = misplaced(model, keys)
        if missing:
            raise TrainingError(f"{name}: tensor {missing[0]} is missing in the adapter")
        if more:
            raise TrainingError(f"{name}: tensor {more[0]} has no place in {artefact.base}")
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]], device=device)
    with torch.no_grad():
        given: Tensor = model.eval()(input_ids=ids).logits
    if not torch.isfinite(given).all():
        raise TrainingError(f"{name}: what it gives holds NaN or infinity")
    return f"loaded; what it gives of a text of {ids.shape[1]} tokens is finite"


def _load_foreign(artefact: Artefact, keys: dict[str, list[int]]) -> Any:
    """By plain PEFT or transformers, with as many labels as the head has."""
    name, adapter = str(artefact.directory), artefact.adapter
    task = (adapter or {}).get("task_type")
    if task not in (None, "CAUSAL_LM", "SEQ_CLS"):
        raise TrainingError(f"{name}: expected CAUSAL_LM or SEQ_CLS, found task_type {task}")
    if adapter is None and is_classifier(artefact.directory):
        return SCORES.holder(SCORES.load(name))
    if task != "SEQ_CLS":
        return proof.load_causal(name, dtype="auto")
    labels = [shape[0] for key, shape in keys.items() if any(head in key for head in HEADS)]
    with without_report():
        return load_adapter(
            name, adapter or {}, AutoPeftModelForSequenceClassification, num_labels=labels[0]
        )


def reload_arguments(artefact: Artefact) -> dict[str, Any]:
    """What the base is loaded with: the precision of training, and nothing else of the recipe."""
    recipe = artefact.recipe
    stage = recipe.get("stage")
    if artefact.adapter is None or stage not in TRAINING:
        return {"dtype": "auto"}
    written = {key: recipe[key] for key in PRECISION if key in recipe}
    written |= {"model_name_or_path": artefact.base, "model_revision": "main"}
    arguments = base_arguments(StageRecipe(stage, "", written, {}))
    arguments.pop("revision")  # PEFT takes it from the adapter
    return arguments
