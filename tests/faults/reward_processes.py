"""One of two processes of a GRPO stage, in one of which a reward fails.

python -m tests.faults.reward_processes FAULT BASE OUTPUT_DIR
"""

import os
import sys

import toolkit
from toolkit import cli

FAULTY = 1  # the rank in which it fails
PATIENCE_S = 20
STEPS, EACH = 4, 2  # completions of a step in each process, of one group
PROMPTS = [{"prompt": f"{'ab' * (index % 3)}{index}"} for index in range(8)]
# what happens, and in which calls
FAULTS = {"skipped": {1}, "stops": {1}, "too often": {0, 1, 2, 3}}
calls = iter(range(100))


def judge(prompts, completion_ids, log_metric, **columns):
    """Fails in one process before it logs what the other logs."""
    call = next(calls)
    if int(os.environ["RANK"]) == FAULTY and call in FAULTS[sys.argv[1]]:
        raise ValueError("no answer in this process")
    log_metric("judged", 1.0)
    return [float(sum(ids) % 7) for ids in completion_ids]


async def later(prompts, completion_ids, **columns):
    """Never fails."""
    return [float(sum(ids) % 5) for ids in completion_ids]


def fault(words: list[str]) -> int:
    """The stage, as a command of the toolkit, so that its end is that of one."""
    kind, base, output_dir = words
    does = "stop" if kind == "stops" else "skip"
    toolkit.grpo(
        model_name_or_path=base, output_dir=output_dir, lora_r=4, train_dataset=PROMPTS,
        reward_funcs=[judge, later], max_steps=STEPS, per_device_train_batch_size=EACH,
        num_generations=2 * EACH, max_completion_length=4, logging_steps=1, save_strategy="no",
        ddp_timeout=PATIENCE_S, report_to="none", on_reward_error=does,
        max_reward_errors=0.5 if kind == "skipped" else 0.01,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    cli.COMMANDS["fault"] = fault
    sys.exit(cli.main(["fault", *sys.argv[1:]]))
