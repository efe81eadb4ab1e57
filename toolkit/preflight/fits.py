"""Whether a stage fits into the memory of its device, and what to change if it does not."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psutil
import torch

from toolkit.models.precision import accelerator
from toolkit.preflight import places
from toolkit.preflight.asked import Asked, Need
from toolkit.preflight.look import Look
from toolkit.preflight.memory import PAIRS, ROLLOUTS, need
from toolkit.preflight.price import device_named
from toolkit.preflight.schedule import batches, plan, times
from toolkit.recipe import StageRecipe
from toolkit.stages.disk import in_units
from toolkit.stages.fast_path import CHECKPOINTING, decides_checkpointing
from toolkit.stages.processes import on_cpu, processes

SUBJECT = "memory"
TIGHT = 0.9  # of the memory: nothing else is on it for sure
# bytes of what is imported once a stage trains, measured with a base of next to no weights
LIBRARIES = 78 * 10**6
CUDA_RUNTIME = 600 * 2**20  # a CUDA context and the libraries' workspaces; not measured here


def check(look: Look) -> None:
    """Estimate the peak of a stage, and compare it with what the device has."""
    if not look.trains or look.config is None or not look.lengths or processes() > 1:
        return
    asked = asked_of(look)
    kind = device_kind(look)
    runtime = look.libraries + LIBRARIES if kind == "cpu" else CUDA_RUNTIME
    have, where = memory_of(look)
    found = need(look.stage, look.config, asked, device=kind, runtime=runtime, memory=have)
    look.needs = found
    look.note(SUBJECT, device=where, available=have, **vars(asked), **found.as_dict())
    how = "checkpointed" if found.checkpointed else "activations are kept"
    line = (
        f"{in_units(found.peak)} at the peak of {in_units(have)} ({where}), {how}: {parts(found)}"
    )
    if found.peak > have:
        look.error(SUBJECT, line, remedy(look, asked, kind, runtime, have), 5)
    elif found.peak > TIGHT * have:
        look.warn(
            SUBJECT, f"{line}; that is tight", remedy(look, asked, kind, runtime, TIGHT * have)
        )
    else:
        look.ok(SUBJECT, line)
    if found.rounded:
        look.ok(SUBJECT, "computed in bfloat16, which is faster on this CPU; bf16: false: float32")
    steps = plan(look)
    saves = times(look.stage, "save", steps.steps) if steps else 0
    saved = found.gradients if look.stage.get("use_peft") else found.base
    places.disk(look, saved, found.optimizer_weights, saves)


def asked_of(look: Look) -> Asked:
    """How much of the data goes through the model at once, at worst."""
    stage = look.stage
    rows, _ = batches(stage)
    longest = max(look.lengths)
    if stage.stage in ROLLOUTS:
        steps = plan(look)
        completion = int(stage["max_completion_length"])
        sampled = steps.rollout if steps else rows
        prompts = max(1, sampled // int(stage["num_generations"] or 1))
        return Asked(rows, longest + completion, completion, sampled, completion, prompts)
    if stage.stage in PAIRS:
        return Asked(rows, longest, max(look.answers), scored=max(look.trained))
    if stage.get("packing") or stage.stage == "pretrain":
        longest = int(stage["max_length"] or longest)
        return Asked(rows, longest)
    return Asked(rows, longest, scored=max(look.trained))


def device_kind(look: Look) -> str:
    """What computes: the device that was asked about, else what is here."""
    if look.options.gpu is not None:
        return "cuda"
    return "cpu" if on_cpu() else accelerator()


def memory_of(look: Look) -> tuple[int, str]:
    """Bytes that the device has, and its name."""
    if look.options.memory is not None:
        return look.options.memory, "as you say"
    if look.options.gpu is not None:
        device = device_named(look.options.gpu)
        return int(device.memory * 2**30), device.name
    if not on_cpu() and torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory, torch.cuda.get_device_name()
    # what others use is taken, what is only cached is not
    return (
        psutil.virtual_memory().available + psutil.Process().memory_info().rss,
        "free memory here",
    )


def parts(found: Need) -> str:
    """The largest parts, in words."""
    named = {
        "base": found.base, "adapters": found.adapters, "optimizer": found.optimizer,
        "heap": found.heap, "files": found.files, "runtime": found.runtime,
    }  # fmt: skip
    if found.rollout > found.training:
        named |= {"cache": found.cache, "sampling": found.sampling}
    else:
        named |= {
            "gradients": found.gradients, "activations": found.activations,
            "logits": found.logits, "backward": found.working,
        }  # fmt: skip
    return ", ".join(f"{name} {in_units(size)}" for name, size in named.items() if size)


def remedy(look: Look, asked: Asked, kind: str, runtime: int, have: float) -> str:
    """The first change that fits, in words; the step sees the same sequences."""
    for stage, less, words in changes(look, asked, kind):
        found = need(stage, look.config, less, device=kind, runtime=runtime, memory=have)
        if found.peak <= have:
            return f"{words} fits ({in_units(found.peak)})"
    return "a smaller base, or a device with more memory: nothing else here is enough"


def changes(look: Look, asked: Asked, kind: str) -> Iterator[tuple[StageRecipe, Asked, str]]:
    """What can be changed, the harmless first; every stage is one with checkpointing."""
    stage = look.stage
    total = asked.rows * batches(stage)[1] * processes()
    undecided = kind == "cpu" and stage.get("fast") and not decides_checkpointing(stage)
    key = next((key for key in CHECKPOINTING if stage.is_written(key)), CHECKPOINTING[-1])
    stage = changed(stage, **{key: True})
    if not look.needs.checkpointed:
        yield stage, asked, f"{key}: true"
    also = f"{key}: true, " if undecided or not look.needs.checkpointed else ""
    for changed_more, less, words in smaller(stage, asked, total):
        yield changed_more, less, f"{also}{words}"


def smaller(
    stage: StageRecipe, asked: Asked, total: int
) -> Iterator[tuple[StageRecipe, Asked, str]]:
    """Smaller batches of the same `total` sequences, then smaller everything."""
    generations = int(stage.get("num_generations") or 1)
    rows, sampled = asked.rows, asked.sampled
    while rows > 1:
        rows, sampled = rows // 2, max(sampled // 2, 1) if asked.sampled else 0
        less = replace(asked, rows=rows)
        same = f"per_device_train_batch_size {asked.rows} → {rows} with global_batch_size: {total}"
        yield stage, less, same
        if asked.sampled and not stage.get("use_vllm"):
            yield (
                stage,
                replace(less, sampled=sampled, prompts=max(1, sampled // generations)),
                (f"{same} and generation_batch_size: {sampled * processes()}"),
            )
    least = replace(asked, rows=1, sampled=min(asked.sampled, generations))
    if stage.get("use_peft") is False:
        stage = changed(stage, use_peft=True, dtype="auto")
        yield stage, least, "use_peft: true with per_device_train_batch_size: 1"
    if stage.stage not in ROLLOUTS and stage.stage not in PAIRS and asked.length > 512:
        yield (
            stage,
            replace(least, length=asked.length // 2, scored=min(asked.scored, asked.length // 2)),
            (f"max_length: {asked.length // 2} with per_device_train_batch_size: 1"),
        )
    if stage.get("use_peft") and not stage.get("load_in_4bit"):
        yield (
            changed(stage, load_in_4bit=True),
            least,
            ("load_in_4bit: true with per_device_train_batch_size: 1"),
        )


def changed(stage: StageRecipe, **keys: Any) -> StageRecipe:
    """A stage with other keys."""
    return replace(stage, written={**stage.written, **keys})
