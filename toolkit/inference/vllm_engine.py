"""The same engine by vLLM, which holds one base and applies adapters request by request.

Written against vLLM 0.11 to 0.17 (vllm/v1/engine/llm_engine.py, vllm/sampling_params.py,
vllm/lora/request.py). It was run nowhere yet but against a stand-in: no GPU was at hand.
"""

import importlib
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from toolkit.errors import DataError, RecipeError
from toolkit.inference.engine import BASE, Completion, Prompt, Sampling, longest
from toolkit.models.load import fetch, stop_token_ids
from toolkit.models.vllm_adapter import vllm_obstacles, vllm_rank

WORD = 2**63
"""vLLM takes seeds of 64 bits with a sign."""


class VllmEngine:
    """Completes prompts by vLLM.

    Seeds reproduce; that a completion is the same in any batch is promised for
    `TransformersEngine` only, for vLLM's kernels round differently in another batch.

    Args:
        base: a folder or Hub id.
        tokenizer: the adapters'.
        adapters: folders or Hub ids, by the names that prompts call them.
        speaks: the adapter of prompts that name none.
        **arguments: of vLLM's EngineArgs, such as `dtype` or `gpu_memory_utilization`.

    Raises:
        RecipeError: if vLLM is not installed, or cannot serve an adapter.
    """

    def __init__(
        self,
        base: str,
        tokenizer: PreTrainedTokenizerBase,
        adapters: Mapping[str, str] | None = None,
        *,
        speaks: str = BASE,
        **arguments: Any,
    ):
        if find_spec("vllm") is None:
            raise RecipeError(
                "vLLM is not installed here; install toolkit[vllm] (docs/rollouts.md), or leave "
                "--engine vllm out"
            )
        folders = {name: Path(fetch(place)) for name, place in (adapters or {}).items()}
        for name, folder in folders.items():
            if found := vllm_obstacles(folder):
                raise RecipeError(f"{name}: vLLM cannot serve it: {'; '.join(found)}; merge it")
        self.vllm = importlib.import_module("vllm")
        request = importlib.import_module("vllm.lora.request").LoRARequest
        self.adapters = {
            name: request(name, number, str(folder))
            for number, (name, folder) in enumerate(folders.items(), 1)
        }
        if folders:
            ranks = [vllm_rank(folder) or 0 for folder in folders.values()]
            arguments |= {
                "enable_lora": True, "max_lora_rank": max(ranks), "max_loras": len(folders),
            }  # fmt: skip
        given = self.vllm.EngineArgs(model=base, **arguments)
        self.engine = self.vllm.LLMEngine.from_engine_args(given)
        self.tokenizer, self.speaks = tokenizer, speaks
        self.stop_ids = stop_token_ids(None, tokenizer)
        self.made = 0

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling
    ) -> Iterator[tuple[int, Completion]]:
        """As of `Engine`; in the order in which they end."""
        for prompt in prompts:
            if not prompt.input_ids:
                raise DataError(f"{prompt.where}: the prompt has no tokens")
            self.lora(prompt)
        return self._completed(prompts, sampling)

    def log_probabilities(
        self, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """As of `Engine`; vLLM reads the answer as part of a prompt, and writes one token more."""
        params = self.vllm.SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False
        )
        places: dict[str, int] = {}
        for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            places[self._add(prompt, [*prompt.input_ids, *answer], params)] = index
        found: list[list[float]] = [[] for _ in prompts]
        for key, output in self._ended(places, {}):
            index = places[key]
            answer = answers[index]
            tail = output.prompt_logprobs[-len(answer) :]
            found[index] = [at[token].logprob for at, token in zip(tail, answer, strict=True)]
        return found

    def lora(self, prompt: Prompt) -> Any:
        """What vLLM is told of a prompt's adapter.

        Raises:
            RecipeError: if there is no such adapter.
        """
        name = self.speaks if prompt.adapter is None else prompt.adapter
        if name != BASE and name not in self.adapters:
            known = ", ".join([BASE, *self.adapters])
            raise RecipeError(f"there is no adapter {name!r}; known: {known}")
        return self.adapters.get(name)

    def _completed(
        self, prompts: Sequence[Prompt], sampling: Sampling
    ) -> Iterator[tuple[int, Completion]]:
        places: dict[str, int] = {}
        deadlines: dict[str, float] = {}
        for index, prompt in enumerate(prompts):
            key = self._add(prompt, prompt.input_ids, self._params(prompt, sampling))
            places[key] = index
            if prompt.deadline is not None:
                deadlines[key] = prompt.deadline
        for key, output in self._ended(places, deadlines):
            yield places[key], self._completion(output)

    def _params(self, prompt: Prompt, sampling: Sampling) -> Any:
        return self.vllm.SamplingParams(
            max_tokens=longest(prompt, sampling),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=prompt.seed % WORD,
            stop=list(prompt.stop_strings),
            stop_token_ids=self.stop_ids,
        )

    def _add(self, prompt: Prompt, input_ids: Sequence[int], params: Any) -> str:
        self.made += 1
        key = str(self.made)
        asked = {"prompt_token_ids": list(input_ids)}
        self.engine.add_request(key, asked, params, lora_request=self.lora(prompt))
        return key

    def _ended(
        self, places: Mapping[str, int], deadlines: Mapping[str, float]
    ) -> Iterator[tuple[str, Any]]:
        """Each request and what it came to, when it ends or its deadline is over.

        Of a request that was not begun in its time, there is None.
        """
        newest: dict[str, Any] = {}
        left = set(places)
        while left:
            ended = []
            for output in self.engine.step():
                newest[output.request_id] = output
                ended += [output.request_id] if output.finished else []
            now = time.monotonic()
            late = [key for key in left if key not in ended and now >= deadlines.get(key, now + 1)]
            if late:
                self.engine.abort_request(late)
            for key in (*ended, *late):
                left.remove(key)
                yield key, newest.get(key)

    def _completion(self, output: Any) -> Completion:
        if output is None:
            return Completion("", [], False)
        made = output.outputs[0]
        return Completion(str(made.text), list(made.token_ids), made.finish_reason == "stop")
