"""One peer training our rows of sft, in a process and an environment of its own.

    FOLDER/PEER/bin/python -m tests.benchmarks.peers.step PEER FOLDER SHAPE STEPS fp32|bf16

FOLDER holds what `tests.benchmarks.cpu_rows.write` wrote. More words KEY=VALUE replace keys of the
peer's yaml. Of the project only that is imported which needs none of its dependencies.
"""

import json
import resource
import sys
import tempfile
import time
import types
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.benchmarks.cpu_rows import END, SHAPES
from tests.benchmarks.scaling import FOUND, processor_seconds

HERE = Path(__file__).parent
STOP, PAD = "<|endoftext|>", 1  # of the tokenizer that `cpu_rows.write` saves
IGNORED = -100
LIBRARIES = ("transformers", "trl", "peft", "accelerate", "torch")


def first_fit(lengths: list[int], capacity: int) -> int:
    """How many packs rows need, the longest first: how both peers pack."""
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        at = next((at for at, left in enumerate(room) if left >= length), len(room))
        if at == len(room):
            room.append(capacity)
        room[at] -= length
    return len(room)


def room(lengths: list[int], packs: int = 2) -> int:
    """Tokens of a pack, a multiple of eight, with the least padding in so many of them."""
    return next(
        tokens
        for tokens in range(8, sum(lengths) + 16, 8)
        # one is left free by LLaMA-Factory
        if max(lengths) < tokens and first_fit(lengths, tokens - 1) <= packs
    )


def filled(peer: str, **places: Any) -> dict[str, Any]:
    """The peer's yaml with its places filled in."""
    text = (HERE / f"{peer}.yaml").read_text(encoding="utf-8")
    for name, value in places.items():
        text = text.replace(f"{{{name}}}", str(value))
    return yaml.safe_load(text)


class Watch:
    """What the steps of a Trainer take, and what its model is really given.

    Attributes:
        ends: processor seconds at the end of every step.
        wall: seconds by the clock from the start of the process to the end of the first.
        peak: the most memory until training ended, in bytes.
        slots: tokens that the model was given, padding among them.
        real: those that are not padding.
        labelled: those that are learnt.
        losses: of every step.
        model: what is trained.
        pack: the last batch whose first pack holds several rows, and where its second row begins.
    """

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.wall = 0.0
        self.peak = self.slots = self.real = self.labelled = 0
        self.losses: list[float] = []
        self.model: Any = None
        self.pack: tuple[dict[str, Any], int] = {}, 0

    def callback(self) -> Any:
        """For the Trainer."""
        from transformers import TrainerCallback

        watch = self

        class Noted(TrainerCallback):
            def on_train_begin(self, *_: Any, model: Any, **__: Any) -> None:
                watch.model = model
                model.register_forward_pre_hook(watch.count, with_kwargs=True)

            def on_step_end(self, *_: Any, **__: Any) -> None:
                watch.ends.append(processor_seconds())
                if len(watch.ends) == 1:
                    watch.wall = time.time() - psutil.Process().create_time()

            def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
                if "loss" in logs:
                    watch.losses.append(float(logs["loss"]))

            def on_train_end(self, *_: Any, **__: Any) -> None:
                watch.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

        return Noted()

    def count(self, _: Any, __: Any, given: dict[str, Any]) -> None:
        """Look at what the model is given, as long as it is trained."""
        if self.peak:
            return
        real = given["input_ids"] != PAD
        self.slots += real.numel()
        self.real += int(real.sum())
        self.labelled += int((given["labels"] != IGNORED).sum())
        starts = ((given["position_ids"] == 0) & real)[0].nonzero().flatten().tolist()
        if len(starts) > 1:
            self.pack = given, starts[1]

    def leak(self) -> float:
        """The most that a logit of a pack's other rows changes with the first row's first token."""
        import torch

        batch, second = self.pack
        if not batch:
            return 0.0  # every row is alone in its pack
        names = ("input_ids", "attention_mask", "position_ids")
        given = {name: batch[name] for name in names if name in batch}
        other = given["input_ids"].clone()
        other[0, 0] += 1
        self.model.eval()
        with torch.no_grad():
            before = self.model(**given).logits[0].float()
            after = self.model(**given | {"input_ids": other}).logits[0].float()
        moved = (before - after).abs().amax(-1)
        assert moved[:second].max() > 0, "its own row does not see the token"
        learnt = (batch["labels"][0] != IGNORED)[second:]
        return float(moved[second:][learnt].max())

    def as_dict(self) -> dict[str, Any]:
        """The keys of `tests.benchmarks.cpu_step`, and what shows that the work is the same."""
        pairs = zip(self.ends[:-1], self.ends[1:], strict=True)
        steps, weights = len(self.ends), list(self.model.parameters())
        return {
            "steps": [after - before for before, after in pairs], "first": self.ends[0],
            "first_wall": self.wall, "peak": self.peak, "loss": self.losses[0],
            "losses": self.losses, "real": self.real // steps, "labelled": self.labelled // steps,
            "slots": self.slots // steps, "leak": self.leak(),
            "trained": sum(each.numel() for each in weights if each.requires_grad),
        }  # fmt: skip


def llamafactory(rows: list[dict[str, str]], data: Path, given: dict[str, Any]) -> None:
    """Train by LLaMA-Factory."""
    # imported by it for sound, of which there is no build for this torch; text needs none
    sound = types.ModuleType("torchaudio")
    sound.__spec__ = ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = sound
    from llamafactory.train.tuner import run_exp

    stopped = [{**row, "completion": row["completion"] + STOP} for row in rows]
    (data / "rows.json").write_text(json.dumps(stopped), encoding="utf-8")
    columns = {"prompt": "prompt", "response": "completion"}
    known = {"rows": {"file_name": "rows.json", "columns": columns}}
    (data / "dataset_info.json").write_text(json.dumps(known), encoding="utf-8")
    run_exp(given)


def axolotl(rows: list[dict[str, str]], data: Path, given: dict[str, Any]) -> None:
    """Train by Axolotl."""
    from axolotl.cli.args import TrainerCliArgs
    from axolotl.cli.config import load_cfg
    from axolotl.cli.train import do_train

    with (data / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            asked = {"label": False, "text": row["prompt"]}
            said = {"label": True, "text": row["completion"] + STOP}
            file.write(json.dumps({"segments": [asked, said]}) + "\n")
    path = data / "axolotl.yaml"
    path.write_text(yaml.safe_dump(given), encoding="utf-8")
    do_train(load_cfg(str(path)), TrainerCliArgs())


PEERS = {"llamafactory": llamafactory, "axolotl": axolotl}


def trained(
    peer: str, folder: Path, shape: str, steps: int, precision: str, more: dict[str, Any]
) -> dict[str, Any]:
    """Train, and say what it took.

    Args:
        peer: of PEERS.
        folder: has `base` and `sft.json`.
        shape: of the base, by its name.
        steps: how many.
        precision: what it computes in.
        more: keys of the yaml that are given another value.
    """
    rows = json.loads((folder / "sft.json").read_text(encoding="utf-8"))
    batch = SHAPES[shape].batch
    lengths = [len(f"{row['prompt']}{row['completion']}".split()) + END for row in rows[:batch]]
    data = Path(tempfile.mkdtemp(dir=folder, prefix=f"{peer}-"))
    given = filled(
        peer, base=folder / "base", data=data, batch=batch, steps=steps, room=room(lengths),
        bf16=str(precision == "bf16").lower(),
    ) | more  # fmt: skip
    capacity = given.get("sequence_len") or given["cutoff_len"] - 1
    given["gradient_accumulation_steps"] = first_fit(lengths, capacity)
    from transformers import trainer

    watch = Watch()
    trainer.DEFAULT_CALLBACKS.append(watch.callback())  # of the Trainer of either
    PEERS[peer](rows, data, given)
    names = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return watch.as_dict() | {"versions": f"{peer} {version(peer)} ({names})"}


def main(peer: str, folder: str, shape: str, steps: str, precision: str, *more: str) -> None:
    """What is asked, in the words of the command line."""
    pairs = (word.split("=", 1) for word in more)
    replaced = {name: yaml.safe_load(value) for name, value in pairs}
    found = trained(peer, Path(folder), shape, int(steps), precision, replaced)
    print(FOUND + json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
