"""What a recipe names and needs: base, adapters, data, disk, devices, and the sandbox."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, constants

from toolkit.data import hub as data_hub
from toolkit.data.files import suffix_of
from toolkit.data.hub import HUB_ID
from toolkit.models.load import (
    adapter_config,
    check_model_path,
    hub_answers,
    loading,
)
from toolkit.models.precision import accelerator
from toolkit.preflight.look import Look, config_of
from toolkit.preflight.rewards import name_of
from toolkit.preflight.schedule import batches
from toolkit.recipe.keys import ADAPTER
from toolkit.rewards.sandbox import Limits, check_isolation
from toolkit.stages.disk import OPTIMIZER_BYTES, free, in_units
from toolkit.stages.processes import on_cpu, processes

SUBJECT = "places"
SHARDS = ("*.safetensors", "*.bin")
MANY = 10  # checkpoints


def check(look: Look) -> None:
    """Base, adapters, data, devices and the sandbox of a stage."""
    for part in (base, adapters_named, data_named, device, sandbox):
        with look.findings.catching(SUBJECT, look.name):
            part(look)


def base(look: Look) -> None:
    """The base's configuration, and on the Hub its revision."""
    name = look.stage.get("model_name_or_path")
    if name is None:
        return
    name = str(name)
    check_model_path(name)
    if Path(name).expanduser().is_dir():
        look.config = config_of(look.stage)
        if not any(f for kind in SHARDS for f in Path(name).expanduser().glob(kind)):
            look.error(SUBJECT, f"{name}: there is a config.json and no weights", "copy them there")
            return
        look.ok(SUBJECT, f"base {name}: {described(look.config)}")
        return
    at = look.stage["model_revision"] or "main"
    if not hub_answers(constants.ENDPOINT):
        look.config = config_of(look.stage)  # of the cache
        look.warn(SUBJECT, f"base {name}: in the local cache; offline, so {at} is unchecked")
        return
    with loading(name):
        found = HfApi().model_info(name, revision=at, timeout=data_hub.CHECK_TIMEOUT_S)
    look.config = config_of(look.stage)
    look.ok(SUBJECT, f"base {name} at {at} ({str(found.sha)[:10]}): {described(look.config)}")


def described(config: Any) -> str:
    """A base in a few words."""
    text = config.get_text_config()
    layers, width = (getattr(text, key, "?") for key in ("num_hidden_layers", "hidden_size"))
    return f"{config.model_type}, {layers} layers of width {width}"


def adapters_named(look: Look) -> None:
    """Adapters of `start_from` and `reward_funcs`: here, or made by a stage before."""
    named = [look.stage.get("start_from"), look.stage.get("value_start_from")]
    named += [each for each in look.stage.get("reward_funcs") or () if isinstance(each, str)]
    rewards = [str(n).removeprefix(ADAPTER) for n in named[1:] if str(n).startswith(ADAPTER)]
    for name in dict.fromkeys([*named[:1], *rewards]):
        if name is None or name in look.earlier():
            continue
        if adapter_config(str(name)) is None:
            check_model_path(str(name))
        else:
            look.ok(SUBJECT, f"adapter {name}: found")


def data_named(look: Look) -> None:
    """The data's place; what is on the Hub, with its revision."""
    for name, revision in sources(look):
        if name in look.earlier() or Path(name).expanduser().exists():
            continue
        if not HUB_ID.fullmatch(name) or suffix_of(Path(name)):
            continue  # reading it says what is wrong
        commit = data_hub.commit_of(name, revision)
        if commit is None:
            look.warn(SUBJECT, f"data {name}: offline, unchecked")
        else:
            look.ok(SUBJECT, f"data {name} at {revision or 'main'} ({commit[:10]})")


def sources(look: Look) -> list[tuple[str, str | None]]:
    """Every data set that a stage names, and its revision."""
    stage = look.stage
    named: list[tuple[Any, Any]] = [(stage.get("dataset_name"), stage.get("dataset_revision"))]
    named += [(entry["path"], None) for entry in stage.get("datasets") or ()]
    named += [
        (task.get("dataset_name"), task.get("dataset_revision"))
        for task in stage.get("tasks") or ()
        if isinstance(task, Mapping)
    ]
    return [(str(name), revision) for name, revision in named if name is not None]


def device(look: Look) -> None:
    """What is trained on here, and whether its batches can be formed."""
    if not look.trains:
        return
    there = "the CPU" if on_cpu() else f"{torch.accelerator.device_count()} × {accelerator()}"
    each, times = batches(look.stage)
    look.ok(
        SUBJECT,
        f"devices: {there}, {processes()} process(es); a step is {each} × {times} × {processes()} "
        f"= {each * times * processes()} sequences",
    )
    wants = [key for key in ("fp16", "tf32", "use_vllm", "flash_attn") if look.stage.get(key)]
    if on_cpu() and wants:
        look.warn(SUBJECT, f"{', '.join(wants)}: of a GPU, and there is none here")


def sandbox(look: Look) -> None:
    """The walls that code rewards need."""
    for entry in look.stage.get("reward_funcs") or ():
        if name_of(entry) != "code":
            continue
        isolation = entry.get("isolation") if isinstance(entry, Mapping) else None
        limits = Limits(isolation=isolation) if isolation else Limits()
        check_isolation(limits)
        look.ok(SUBJECT, f"sandbox: {limits.isolation} works here")


def disk(look: Look, saved: int, trained: int, saves: int) -> None:
    """Whether the disk has room for what a stage saves.

    Args:
        look: the stage.
        saved: bytes of the weights that a checkpoint holds.
        trained: how many weights the optimizer remembers.
        saves: how often it saves.
    """
    limit = look.stage["save_total_limit"]
    # an old one stays until a new one is whole
    kept = saves if limit is None else min(saves, int(limit) + 1)
    each = saved + OPTIMIZER_BYTES * trained
    need, have = kept * each + saved, free(look.folder)
    look.note(SUBJECT, checkpoint_bytes=each, disk_bytes=need, free_bytes=have)
    line = (
        f"disk: a checkpoint takes {in_units(each)}, all that is kept {in_units(need)}; "
        f"{in_units(have)} are free"
    )
    if have < need:
        look.error(SUBJECT, line, "make room, or write save_total_limit: 1", code=5)
    elif limit is None and saves > MANY and MANY * need > have:
        look.warn(SUBJECT, f"{line}; every checkpoint is kept", "save_total_limit: 2")
    else:
        look.ok(SUBJECT, line)
