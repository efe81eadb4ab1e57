"""The drills: end a run at random moments, start again until done, compare with the unbroken run.

python -m tests.faults.drill --rounds 200 --seed 1 [--stage sft …] [--way kill|term|pause]

The ways: `kill -9`; SIGTERM, after which the run has a grace time; SIGSTOP and SIGCONT.
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
MOST_KILLS = 30  # in one round; after that it may run to its end
GRACE_S = 30.0  # as torch's launcher gives
WAYS = ("kill", "term", "pause")


@dataclass
class Report:
    """What came of a stage's rounds.

    Attributes:
        rounds: how many were played.
        kills: how often a run was killed, told to end, or paused.
        saving: how many of these runs left a checkpoint half written.
        longest: seconds from SIGTERM to the end of the run, at most.
        failures: what went wrong, a line each.
    """

    rounds: int = 0
    kills: int = 0
    saving: int = 0
    longest: float = 0.0
    failures: list[str] = field(default_factory=list)


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


def play(stage: str, rounds: int, seed: int, place: Path, base: Path, way: str = "kill") -> Report:
    """Play some rounds of one stage, and compare each with the run that nothing broke.

    Args:
        stage: a word of STAGES.
        rounds: how many.
        seed: of the moments.
        place: an empty folder.
        base: the model that is trained.
        way: a word of WAYS.
    """
    draw = random.Random(f"{stage} {seed} {way}")
    whole = place / "whole"
    begun = time.monotonic()
    code = Fork(stage_run(stage, base, whole), place / "whole.log").wait()
    length = time.monotonic() - begun
    assert code == 0, (place / "whole.log").read_text()
    wanted, report = digest(whole), Report()
    for number in range(rounds):
        folder, log = place / f"round-{number}", place / f"round-{number}.log"
        # the only checkpoints are then those that the signals have written
        changed = {"save_strategy": "no"} if way == "term" else {}
        work = stage_run(stage, base, folder, **changed)
        wrong = one_round(work, folder, log, draw, length, report, way)
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
    length: float,
    report: Report,
    way: str,
) -> str | None:
    """Start, kill and start again until it is done; what went wrong, or None."""
    for kill in range(MOST_KILLS + 1):
        fork = Fork(work, log)
        code = fork.wait(draw.uniform(0.0, 1.2 * length) if kill < MOST_KILLS else None)
        if code is None:
            report.kills += 1
            code = {"kill": killed, "term": told_to_end, "pause": paused}[way](fork, draw, report)
            report.saving += any((folder / ".saving").glob("checkpoint-*"))
        if code == 0:
            return None
        if code is not None:
            return f"start {kill + 1} ended with {code}"
    return None


def killed(fork: Fork, draw: random.Random, report: Report) -> None:
    """As a machine that loses power."""
    fork.kill()


def told_to_end(fork: Fork, draw: random.Random, report: Report) -> int | str | None:
    """SIGTERM, and the grace time; None if the run ended as it should, else its exit code."""
    begun = time.monotonic()
    fork.send(signal.SIGTERM)
    code = fork.wait(GRACE_S)
    report.longest = max(report.longest, time.monotonic() - begun)
    if code is None:
        fork.kill()
        return f"nothing, {GRACE_S:.0f} s after SIGTERM"
    # at the very start, before anything is there to be kept, it ends as any process
    return None if code in (128 + signal.SIGTERM, -signal.SIGTERM) else code


def paused(fork: Fork, draw: random.Random, report: Report) -> int | None:
    """SIGSTOP, and SIGCONT some time later; the run's exit code."""
    fork.send(signal.SIGSTOP)
    time.sleep(draw.uniform(0.0, 0.5))
    fork.send(signal.SIGCONT)
    return fork.wait()


def main() -> int:
    """Play the drill; the exit code is 1 if a round failed."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=200, help="in all, shared by the stages")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--stage", action="append", choices=STAGES)
    arguments.add_argument("--way", choices=WAYS, default="kill")
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
        found = play(stage, number, asked.seed, place / stage, base, asked.way)
        more = {
            "kill": f", {found.saving} of them while a checkpoint was written",
            "term": f", the longest took {found.longest:.1f} s to end",
        }
        print(
            f"{stage:<5} {found.rounds} rounds, {len(found.failures)} failures, {asked.way} "
            f"{found.kills} times{more.get(asked.way, '')}",
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
