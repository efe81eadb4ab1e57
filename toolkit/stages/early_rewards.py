"""Async rewards that begin with what has ended while the rest of a rollout is still sampled.

A service that judges a completion works then, and not after the last completion, while the CPU
samples. It is for rewards that say of themselves, by `row_by_row = True`, that a score depends on its
own row alone: they are asked about the same rows in smaller batches.

Read in TRL 1.16, trl/trainer/grpo_trainer.py: `_generate`, `_calculate_rewards`.
"""

import asyncio
import functools
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from trl import GRPOTrainer
from trl.data_utils import is_conversational

from toolkit.rewards.checked import AsyncChecked, Reward
from toolkit.rewards.returned import values_of

ATTRIBUTE = "row_by_row"
NO_COLUMNS = ("prompt", "completion", "completion_ids")


def early_rewards(trainer: GRPOTrainer) -> "EarlyRewards | None":
    """What has rewards of a trainer begin early; None where none asks for it or it is not exact."""
    own: Any = trainer
    rewards = [
        each
        for each in own.reward_funcs
        if isinstance(each, AsyncChecked) and by_row(each.function)
    ]
    tokenizer = own._tokenizer
    parsed = any(getattr(tokenizer, f"response_{kind}", None) for kind in ("template", "schema"))
    samples_elsewhere = own.use_vllm or own.use_transformers_continuous_batching
    makes_more = own.tools or own.environment_factories or own.rollout_func
    if not rewards or parsed or samples_elsewhere or makes_more:
        return None
    if own.accelerator.num_processes > 1:
        return None
    return EarlyRewards(trainer, rewards)


def by_row(function: Reward) -> bool:
    """Whether a reward says that each of its scores depends on its own row alone."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, ATTRIBUTE, False) is True


class EarlyRewards:
    """The rows of the rollout that is being sampled, for the rewards that begin early.

    Args:
        trainer: a GRPOTrainer whose `async_loop` runs.
        rewards: some of its rewards; each is asked through an `Early` from now on.
    """

    def __init__(self, trainer: GRPOTrainer, rewards: Sequence[AsyncChecked]):
        self.trainer: Any = trainer
        self.inputs: list[dict[str, Any]] = []
        self.rewards = [Early(reward.function, self.trainer.async_loop) for reward in rewards]
        for reward, early in zip(rewards, self.rewards, strict=True):
            reward.function = early
        generate = self.trainer._generate_and_score_completions

        @functools.wraps(generate)
        def generate_and_score(inputs: list[dict[str, Any]]) -> Any:
            self.inputs = inputs
            try:
                return generate(inputs)
            finally:
                self.inputs = []
                for reward in self.rewards:
                    reward.forget()

        self.trainer._generate_and_score_completions = generate_and_score

    def ended(self, rows: dict[int, list[int]]) -> None:
        """Begin with some rows of the rollout.

        Args:
            rows: their completions as token ids, by their place in the batch.
        """
        if not self.inputs or max(rows) >= len(self.inputs):
            return  # sampled for something else
        inputs = [self.inputs[row] for row in rows]
        completions: list[Any] = self.trainer.processing_class.batch_decode(
            list(rows.values()), skip_special_tokens=True
        )
        if is_conversational({"prompt": inputs[0]["prompt"]}):
            completions = [[{"role": "assistant", "content": text}] for text in completions]
        columns = {key: [row[key] for row in inputs] for key in inputs[0] if key not in NO_COLUMNS}
        asked = {
            "prompts": [row["prompt"] for row in inputs],
            "completions": completions,
            "completion_ids": list(rows.values()),
        }
        more = {"trainer_state": self.trainer.state, "log_metric": self.trainer._log_metric}
        for reward in self.rewards:
            reward.begin(list(rows), asked, columns | more)


class Early:
    """An async reward that takes up what it has begun, wherever TRL asks for just that.

    Args:
        function: the reward.
        loop: that it runs on.
    """

    def __init__(self, function: Reward, loop: asyncio.AbstractEventLoop):
        self.function, self.loop = function, loop
        self.begun: list[tuple[list[int], dict[str, Any], Logged, Future[Any]]] = []

    def begin(self, rows: list[int], asked: dict[str, Any], columns: dict[str, Any]) -> None:
        """Ask about some rows, and wait for nothing."""
        logged = Logged()
        coroutine = self._answer(**asked, **columns, log_extra=logged)
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        self.begun.append((rows, asked, logged, future))

    def forget(self) -> None:
        """End what nobody has asked for."""
        for *_, future in self.begun:
            future.cancel()
        self.begun = []

    async def __call__(self, **given: Any) -> list[Any]:
        """The scores of all rows, those of the others asked for now.

        Raises:
            Wrong: if an answer is no list of as many values as it was asked for.
            BaseException: what the reward raised, whenever it did.
        """
        number, log_extra = len(given["prompts"]), given.pop("log_extra", None)
        taken = [each for each in self.begun if same(each[0], each[1], given)]
        left = sorted(set(range(number)).difference(*(rows for rows, *_ in taken)))
        parts = [(rows, logged, asyncio.wrap_future(future)) for rows, _, logged, future in taken]
        if left:
            logged = Logged()
            columns = {
                key: [value[row] for row in left] if isinstance(value, list) else value
                for key, value in given.items()
            }
            now = asyncio.ensure_future(self._answer(**columns, log_extra=logged))
            parts.append((left, logged, now))
        answers = await asyncio.gather(*(answer for *_, answer in parts))
        found: list[Any] = [None] * number
        for (rows, *_), answer in zip(parts, answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            for row, score in zip(rows, values_of(answer, len(rows)), strict=True):
                found[row] = score
        if log_extra:
            replay([(rows, logged) for rows, logged, _ in parts], number, log_extra)
        return found

    async def _answer(self, **given: Any) -> Any:
        """What the reward returns; what it raises, so that it is raised where it is asked for."""
        try:
            return await self.function(**given)
        except (Exception, SystemExit) as error:  # the latter would end the loop of all rewards
            return error


class Logged(defaultdict[str, list[Any]]):
    """What a reward logs of some rows with `log_extra`, kept until the other rows are there."""

    def __init__(self) -> None:
        super().__init__(list)

    def __call__(self, column: str, values: Sequence[Any]) -> None:
        """As TRL's `log_extra`."""
        self[column].extend(values)


def same(rows: list[int], asked: dict[str, Any], given: dict[str, Any]) -> bool:
    """Whether TRL asks about some rows just what was asked early."""
    return all(
        max(rows) < len(given[key]) and [given[key][row] for row in rows] == values
        for key, values in asked.items()
    )


def replay(parts: list[tuple[list[int], Logged]], number: int, log_extra: Any) -> None:
    """Log what was kept, in the order of the rows; None where a part logged nothing."""
    for column in dict.fromkeys(column for _, logged in parts for column in logged):
        values: list[Any] = [None] * number
        for rows, logged in parts:
            for row, value in zip(rows, logged.get(column, []), strict=False):
                values[row] = value
        log_extra(column, values)
