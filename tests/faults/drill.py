"""The drills: end a run at random moments, start again until done, compare with the unbroken run.

python -m tests.faults.drill --rounds 200 --seed 1 [--stage sft …] [--fault kill|term|stop]
"""

import argparse
import contextlib
import hashlib
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

import toolkit
from tests import tiny
from tests.faults.forks import Fork
from tests.tiny_ppo import odd

PROMPTS = [{"prompt": f"{'ab' * (index % 4)}{index}"} for index in range(12)]
COMMON = {
    "max_steps": 8, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2,
    "learning_rate": 1e-2, "report_to": "none", "lora_r": 4, "logging_steps": 1,
}  # fmt: skip
ROLLOUTS = COMMON | {
    "train_dataset": PROMPTS, "reward_funcs": [odd], "per_device_train_batch_size": 4,
    "max_completion_length": 4, "num_generations": 2, "steps_per_generation": 2,
}  # fmt: skip
# In each, the steps pass the end of an epoch; in GRPO and PPO, most checkpoints are within a rollout.
STAGES: dict[str, dict[str, Any]] = {
    "sft": COMMON | {
        "train_dataset": tiny.ROWS, "lora_dropout": 0.1, "per_device_train_batch_size": 4,
    },
    "grpo": ROLLOUTS | {"num_iterations": 2, "beta": 0.1},
    "ppo": ROLLOUTS | {"num_iterations": 2},
}  # fmt: skip
MOST_KILLS = 4  # in one round; after that it may run to its end
MOST_STARTS = 20
GRACE_S = 30.0  # as torch's launcher gives
SAVE_S = 0.03  # about what a save takes


@dataclass
class Report:
    """What came of a stage's rounds.

    Attributes:
        rounds: how many were played.
        kills: how often a run was killed.
        saving: how many of these runs left a checkpoint half written.
        untouched: rounds that ended before anything was done to them.
        failures: what went wrong, a line each.
    """

    rounds: int = 0
    kills: int = 0
    saving: int = 0
    untouched: int = 0
    failures: list[str] = field(default_factory=list)


def half_written(folder: Path) -> bool:
    """Whether a checkpoint is being written."""
    try:
        return any(name.startswith("checkpoint-") for name in os.listdir(folder / ".saving"))
    except FileNotFoundError:  # it may go while it is looked at
        return False


def pause(fork: Fork) -> int | None:
    """Stop it for a moment, in which it holds its folder, and let it run on to its end."""
    fork.send(signal.SIGSTOP)
    time.sleep(0.1)
    fork.send(signal.SIGCONT)
    return fork.wait()


def ask_to_end(fork: Fork) -> int | None:
    """SIGTERM, and the time in which it must write a checkpoint and end; None if it does not."""
    fork.send(signal.SIGTERM)
    code = fork.wait(GRACE_S)
    if code is None:
        fork.kill()
    return code


STRIKES = {"kill": Fork.kill, "term": ask_to_end, "stop": pause}
# Before a stage trains, SIGTERM is the operating system's.
STRUCK = {"kill": (-signal.SIGKILL,), "term": (143, -signal.SIGTERM), "stop": (0,)}


@dataclass
class Fault:
    """What is done to a run, and when.

    Attributes:
        kind: a word of STRIKES.
        length: seconds that the unbroken run took.
    """

    kind: str
    length: float

    def comes(self, fork: Fork, folder: Path, draw: random.Random) -> bool:
        """Wait for a moment of the run; False if it has ended before.

        In half of the cases it is any moment; in the others it is one of a save, which is short.
        Runs that are told to end save nothing before.
        """
        if self.kind == "term" or draw.random() < 0.5:
            return fork.wait(draw.uniform(0.0, self.length)) is None
        for _ in range(draw.randint(1, 3)):
            if not fork.wait_for(lambda: not half_written(folder)):
                return False
            if not fork.wait_for(lambda: half_written(folder)):
                return False
        return fork.wait(draw.uniform(0.0, SAVE_S)) is None


def stage_run(stage: str, base: Path, folder: Path, **changed: Any) -> Callable[[], Any]:
    """One start of a stage; it goes on from what is in the folder."""
    run = getattr(toolkit, stage)
    return lambda: run(model=str(base), output_dir=str(folder), **STAGES[stage] | changed)


def digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of all weights of a finished stage."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("**/adapter_model.safetensors")):
        name = path.relative_to(folder).as_posix()
        if not name.startswith("checkpoint-"):
            found.update(name.encode() + path.read_bytes())
    return found.hexdigest()


def play(stage: str, rounds: int, seed: int, place: Path, base: Path, kind: str = "kill") -> Report:
    """Play some rounds of one stage, and compare each with the run that nothing broke.

    Args:
        stage: a word of STAGES.
        rounds: how many.
        seed: of the moments.
        place: an empty folder.
        base: the model that is trained.
        kind: what is done to them, a word of STRIKES.
    """
    draw = random.Random(f"{stage} {seed}")
    whole = place / "whole"
    begun = time.monotonic()
    code = Fork(stage_run(stage, base, whole), place / "whole.log").wait()
    fault = Fault(kind, time.monotonic() - begun)
    assert code == 0, (place / "whole.log").read_text()
    wanted, report = digest(whole), Report()
    for number in range(rounds):
        folder, log = place / f"round-{number}", place / f"round-{number}.log"
        # the only checkpoints are then those that the signals have written
        changed = {"save_strategy": "no"} if kind == "term" else {}
        work = stage_run(stage, base, folder, **changed)
        wrong = one_round(work, folder, log, draw, fault, report)
        if wrong is None and digest(folder) != wanted:
            wrong = "other weights than the unbroken run"
        report.rounds += 1
        if wrong is not None:
            report.failures.append(f"{stage}, seed {seed}, round {number}: {wrong}; see {log}")
        else:
            shutil.rmtree(folder)
            log.unlink()
    return report


def one_round(
    work: Callable[[], Any],
    folder: Path,
    log: Path,
    draw: random.Random,
    fault: Fault,
    report: Report,
) -> str | None:
    """Start, strike and start again until it is done; what went wrong, or None."""
    wanted, struck = draw.randint(1, MOST_KILLS), 0
    for start in range(MOST_STARTS):
        fork = Fork(work, log)
        if struck < wanted and fault.comes(fork, folder, draw):
            saving = half_written(folder)
            code = STRIKES[fault.kind](fork)
            if code in STRUCK[fault.kind]:
                struck += 1
                report.kills += 1
                report.saving += saving
        else:
            code = fork.wait()
        if code == 0:
            report.untouched += not struck
            return None
        if code not in STRUCK[fault.kind]:
            return f"start {start + 1} ended with {code}"
    return f"not done after {MOST_STARTS} starts"


def main() -> int:
    """Play the drill; the exit code is 1 if a round failed."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=200, help="in all, shared by the stages")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--stage", action="append", choices=STAGES)
    arguments.add_argument("--fault", choices=STRIKES, default="kill", help="kill -9, SIGTERM, or "
                           "SIGSTOP and SIGCONT")  # fmt: skip
    asked = arguments.parse_args()
    stages = asked.stage or list(STAGES)
    torch.set_num_threads(1)
    begun, failures, played = time.monotonic(), [], 0
    place = Path(tempfile.mkdtemp(prefix="drill-"))
    base = tiny.save_base(place / "base")
    warm(base, place)
    for at, stage in enumerate(stages):
        number = asked.rounds // len(stages) + (at < asked.rounds % len(stages))
        (place / stage).mkdir()
        found = play(stage, number, asked.seed, place / stage, base, asked.fault)
        print(
            f"{stage:<5} {found.rounds} rounds, {len(found.failures)} failures, {found.kills} times "
            f"{asked.fault}, {found.saving} of them while a checkpoint was written; "
            f"{found.untouched} rounds ended before",
            flush=True,
        )
        failures += found.failures
        played += found.rounds
    print(*failures, sep="\n", end="\n" if failures else "")
    print(
        f"{played - len(failures)} of {played} rounds ended as the unbroken run, to the bit; seed "
        f"{asked.seed}, {time.monotonic() - begun:.0f} s"
    )
    if not failures:
        shutil.rmtree(place)
    return 1 if failures else 0


def warm(base: Path, place: Path) -> None:
    """Import here what every fork needs, by one short run of each stage in this process."""
    for stage, keys in STAGES.items():
        keys = keys | {"output_dir": str(place / f"warm-{stage}"), "max_steps": 1}
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            getattr(toolkit, stage)(model=str(base), **keys)


if __name__ == "__main__":
    raise SystemExit(main())
