"""TRL's configuration of a stage: the recipe's keys, and what the device here needs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from transformers import TrainingArguments

from toolkit.errors import RecipeError
from toolkit.models.precision import accelerator, computes_bf16
from toolkit.recipe import StageRecipe
from toolkit.stages.fast_path import is_fast
from toolkit.stages.processes import on_cpu, own_disks, processes
from toolkit.stages.terminal import note

Config = TypeVar("Config", bound=TrainingArguments)


def device_arguments(recipe: StageRecipe) -> dict[str, Any]:
    """What TRL's defaults lack to run on what is here.

    TRL asks for bf16 on every device, and stops on a CPU unless it is named.
    """
    found: dict[str, Any] = {}
    if on_cpu():
        if recipe.get("activation_offloading"):
            raise RecipeError(
                f"{recipe.where['activation_offloading']}: activation_offloading moves activations "
                "from a GPU to the CPU, and there is no GPU here; leave the key out"
            )
        found["use_cpu"] = True
        if not recipe.is_written("bf16"):
            found["bf16"] = False  # but see `suit_cpu`
        if recipe.get("torch_compile") and is_fast(recipe):
            found["torch_compile"] = False  # `train_fast` compiles the parts that gain by it
        return found
    kind = accelerator()
    if not recipe.is_written("bf16") and not recipe.is_written("fp16"):
        has_bf16 = computes_bf16()
        # without it Apple's devices compute in float32: float16 has no room for gradients
        found |= {"bf16": has_bf16, "fp16": not has_bf16 and kind == "cuda"}
    if kind == "mps" and not recipe.is_written("dataloader_pin_memory"):
        found["dataloader_pin_memory"] = False  # its memory is the CPU's; torch warns otherwise
    return found


def batch_arguments(recipe: StageRecipe) -> dict[str, int]:
    """Derive the accumulation from `global_batch_size`, or refuse what cannot be formed.

    `per_device_train_batch_size` is then what a device holds at most: with many devices it is less.

    Returns:
        `per_device_train_batch_size` and `gradient_accumulation_steps`; empty without the key.

    Raises:
        RecipeError: if the devices' batches do not divide it; the message names the nearest that
            they do.
    """
    if recipe["global_batch_size"] is None:
        return {}
    if recipe.get("steps_per_generation") is not None:
        raise RecipeError(
            f"{recipe.where['steps_per_generation']}: steps_per_generation counts the batches of a "
            "device, so with global_batch_size a rollout would depend on the number of devices; "
            "write generation_batch_size, in completions"
        )
    wanted, devices = int(recipe["global_batch_size"]), processes()
    where = recipe.where["global_batch_size"]
    share = max(1, wanted // devices)
    each = min(int(recipe["per_device_train_batch_size"]), share)
    if not recipe.is_written("per_device_train_batch_size"):
        each = next(size for size in range(each, 0, -1) if share % size == 0)
    unit = each * devices
    if wanted % unit:
        nearest = max(unit, round(wanted / unit) * unit)
        raise RecipeError(
            f"{where}: global_batch_size {wanted} cannot be formed from {devices} process(es) of "
            f"{each} sequences; the nearest that can is {nearest}"
        )
    accumulation = wanted // unit
    if recipe.is_written("gradient_accumulation_steps") and accumulation != int(
        recipe["gradient_accumulation_steps"]
    ):
        raise RecipeError(
            f"{where}: global_batch_size {wanted} asks for gradient_accumulation_steps "
            f"{accumulation}, but the recipe says {recipe['gradient_accumulation_steps']}; "
            "write one of the two"
        )
    return {"per_device_train_batch_size": each, "gradient_accumulation_steps": accumulation}


@contextmanager
def refusals(recipe: StageRecipe, *others: type[Exception]) -> Iterator[None]:
    """Turn what upstream refuses inside the block into one line that names the stage.

    Args:
        recipe: of the stage.
        *others: what upstream raises there besides, where nothing but a key can be the cause.

    Raises:
        RecipeError: with upstream's own words.
    """
    try:
        yield
    except (ValueError, TypeError, NotImplementedError, *others) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise RecipeError(f"stage {recipe.name!r}: {said} (--debug shows where)") from error


def never_pushing(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What keeps the Trainer from pushing by itself: it would send all that lies in the folder.

    `hub_private_repo` stays: trackers make Spaces, and TRL a data set of completions, by it.
    """
    of_ours = ("hub_model_id", "hub_revision", "resume_from_checkpoint")
    private = arguments.get("hub_private_repo")
    return {
        "push_to_hub": False,
        "hub_strategy": "end",
        "hub_always_push": False,
        "hub_private_repo": True if private is None else private,
    } | dict.fromkeys(of_ours)


def build_arguments(
    recipe: StageRecipe,
    config_class: type[Config],
    output_dir: Path,
    *,
    owner: str | None = None,
    **changed: Any,
) -> Config:
    """The stage's TRL configuration.

    Args:
        recipe: gives the keys of `config_class`.
        config_class: TRL's, for example SFTConfig.
        output_dir: where checkpoints go.
        owner: the class whose keys the recipe has, if it is not `config_class` itself.
        **changed: keys that the stage has dealt with itself, at the value that TRL must see.

    Raises:
        RecipeError: if TRL refuses a combination of keys.
    """
    written = recipe.arguments(owner or config_class.__name__)
    arguments: dict[str, Any] = (
        written | device_arguments(recipe) | batch_arguments(recipe) | changed
    )
    if arguments.get("enable_jit_checkpoint"):
        note("enable_jit_checkpoint: not needed, every run writes a checkpoint when it is stopped")
    # transformers' handler of SIGTERM ends as if training were finished
    arguments |= {
        "output_dir": str(output_dir),
        "disable_tqdm": True,
        "enable_jit_checkpoint": False,
    }
    if own_disks():
        arguments["save_on_each_node"] = True
    arguments |= never_pushing(arguments)
    with refusals(recipe, OSError, LookupError, AttributeError, AssertionError):
        built = config_class(**arguments)
    if processes() == 1 and built.n_gpu > 1:
        # One process would become nn.DataParallel, which TRL refuses; the launcher uses them all.
        built._n_gpu = 1
    return built
