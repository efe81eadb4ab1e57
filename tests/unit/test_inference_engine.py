"""Engines: every prompt has its own adapter, limits and seed, and what is judged is on the same base."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests import tiny
from toolkit.errors import RecipeError
from toolkit.inference import vllm_engine
from toolkit.inference.decoding import Limits
from toolkit.inference.engine import BASE, Completion, Prompt, Sampling
from toolkit.inference.remembering import Remembering
from toolkit.inference.sampling import TransformersEngine
from toolkit.models.reward import load_reward_model

WORDS = tiny.tokenizer()
DRAWN = Sampling(10, temperature=0.9)


def save_adapter(base, folder, seed, *, judge=False):
    """An adapter whose weights are drawn, and its tokenizer."""
    kind = AutoModelForSequenceClassification if judge else AutoModelForCausalLM
    model = kind.from_pretrained(base, **({"num_labels": 1} if judge else {}))
    task = TaskType.SEQ_CLS if judge else TaskType.CAUSAL_LM
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type=task)
    adapted = get_peft_model(model, config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if weight.requires_grad:
                weight.copy_(torch.randn_like(weight) * (0.3 if "lora" in name else 1.0))
    adapted.save_pretrained(str(folder))
    WORDS.save_pretrained(str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def adapters(tiny_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.modeling_utils.logger.warning", lambda *_: None)
        return {
            "one": save_adapter(tiny_base, folder / "one", 1),
            "two": save_adapter(tiny_base, folder / "two", 2),
            "judge": save_adapter(tiny_base, folder / "judge", 3, judge=True),
        }


def loaded(base):
    return AutoModelForCausalLM.from_pretrained(base)


def written(engine, prompts, sampling=DRAWN):
    found = dict(engine.generate(prompts, sampling))
    return [found[index] for index in range(len(prompts))]


def prompts_of(**changed):
    return [
        Prompt(WORDS(f"{n}: " + "why? " * (n % 3)).input_ids, seed=n, **changed) for n in range(6)
    ]


def test_each_prompt_speaks_through_its_own_adapter(tiny_base, adapters):
    engine = TransformersEngine(loaded(tiny_base), WORDS, batch_size=4)
    alone = {BASE: written(TransformersEngine(loaded(tiny_base), WORDS), prompts_of())}
    for name in ("one", "two"):
        model = PeftModel.from_pretrained(loaded(tiny_base), adapters[name])
        alone[name] = written(TransformersEngine(model, WORDS), prompts_of())
        engine.add_adapter(name, adapters[name])
    assert len({str(found) for found in alone.values()}) == 3
    names = [BASE, "one", "two", "two", BASE, "one"]
    mixed = [
        Prompt(each.input_ids, each.seed, adapter=name)
        for each, name in zip(prompts_of(), names, strict=True)
    ]
    assert written(engine, mixed) == [alone[name][at] for at, name in enumerate(names)]
    assert written(engine, prompts_of()) == alone[BASE], "it stays as it was given"
    with pytest.raises(RecipeError, match="known: base, one, two"):
        engine.generate(prompts_of(adapter="three"), DRAWN)
    with pytest.raises(RecipeError, match="already"):
        engine.add_adapter("one", adapters["one"])
    with pytest.raises(RecipeError, match="found a reward"):
        engine.add_adapter("judge", adapters["judge"])


def test_the_judge_scores_on_the_same_base_as_its_own_model_does(tiny_base, adapters):
    engine = TransformersEngine(loaded(tiny_base), WORDS, batch_size=2)
    before = written(engine, prompts_of())
    engine.add_adapter("one", adapters["one"])
    engine.add_judge("judge", adapters["judge"])
    rows = [each.input_ids for each in prompts_of()]
    expected = load_reward_model(adapters["judge"])[0].score(rows)
    assert engine.scores("judge", rows) == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) > 3
    assert written(engine, prompts_of(adapter=BASE)) == before


def test_an_adapter_of_other_words_is_refused(tiny_base, adapters, tmp_path):
    other = tiny.tokenizer()
    other.add_tokens(["<new>"])
    engine = TransformersEngine(loaded(tiny_base), other)
    with pytest.raises(RecipeError, match="another vocabulary"):
        engine.add_adapter("one", adapters["one"])


def test_log_probabilities_are_those_of_each_row_alone(tiny_base):
    engine = TransformersEngine(loaded(tiny_base), WORDS, batch_size=4)
    prompts, answers = prompts_of(), [WORDS("because " * (1 + n % 3)).input_ids for n in range(6)]
    found = engine.log_probabilities(prompts, answers)
    for prompt, answer, row in zip(prompts, answers, found, strict=True):
        ids = torch.tensor([[*prompt.input_ids, *answer]])
        logs = loaded(tiny_base)(ids).logits[0, :-1].log_softmax(-1)
        own = logs[range(len(prompt.input_ids) - 1, ids.shape[1] - 1), answer]
        assert row == pytest.approx(own.tolist(), abs=1e-4)


def test_a_shorter_limit_gives_the_beginning_of_the_same(tiny_base):
    engine = TransformersEngine(loaded(tiny_base), WORDS, batch_size=4)
    whole = written(engine, prompts_of())
    mixed = [
        Prompt(each.input_ids, each.seed, max_tokens=limit)
        for each, limit in zip(prompts_of(), (1, 3, 9, 10, None, 50), strict=True)
    ]
    for short, each, prompt in zip(written(engine, mixed), whole, mixed, strict=True):
        limit = prompt.max_tokens or 10
        assert short.input_ids == each.input_ids[:limit]
        assert short.stopped == (each.stopped and len(each.input_ids) <= limit)


def test_a_deadline_ends_the_row_it_belongs_to_and_no_other():
    rows = [Prompt([1], deadline=2.5), Prompt([1]), Prompt([1], max_tokens=4)]
    clock = iter(range(9))
    limits = Limits(rows, [2, 2, 2], clock=lambda: float(next(clock)))
    for length in range(1, 6):
        limits(torch.zeros(3, 2 + length, dtype=torch.long), None)
    assert limits.lengths == [4, None, 4]


def test_what_is_remembered_is_not_written_again(tiny_base):
    asked = []

    class Watched(TransformersEngine):
        def generate(self, prompts, sampling):
            asked.append(len(prompts))
            return super().generate(prompts, sampling)

    def load():
        return Watched(loaded(tiny_base), WORDS)

    whole = written(load(), prompts_of())
    known = {
        (tuple(prompt.input_ids), prompt.seed): made
        for prompt, made in zip(prompts_of()[:4], whole, strict=False)
    }
    engine = Remembering(load, WORDS, known, DRAWN)
    assert written(engine, prompts_of()) == whole
    assert written(engine, prompts_of()[:4]) == whole[:4]
    assert asked == [6, 2]
    written(engine, prompts_of(max_tokens=1)[:1])
    written(engine, prompts_of(deadline=1e12)[:1])
    written(engine, prompts_of()[:1], Sampling(10))
    assert asked == [6, 2, 1, 1, 1]


class StandIn:
    """What VllmEngine asks of vLLM's LLMEngine: one token a step for every request."""

    def __init__(self, arguments):
        self.arguments, self.requests, self.aborted = arguments, {}, []

    @classmethod
    def from_engine_args(cls, arguments):
        return cls(arguments)

    def add_request(self, key, asked, params, lora_request=None):
        self.requests[key] = (asked["prompt_token_ids"], params, lora_request, [])

    def abort_request(self, keys):
        self.aborted += keys
        for key in keys:
            del self.requests[key]

    def step(self):
        outputs = []
        for key, (ids, params, lora, made) in list(self.requests.items()):
            number = lora.number if lora else 0
            made.append(1 + (sum(ids) + (params.seed or 0) + 100 * number + len(made)) % 200)
            is_stop = made[-1] in (params.stop_token_ids or ())
            is_done = is_stop or len(made) == params.max_tokens
            reason = "stop" if is_stop else "length" if is_done else None
            one = SimpleNamespace(text=str(made), token_ids=list(made), finish_reason=reason)
            logs = [None, *({token: SimpleNamespace(logprob=-float(token))} for token in ids[1:])]
            outputs.append(
                SimpleNamespace(
                    request_id=key, finished=is_done, outputs=[one], prompt_logprobs=logs
                )
            )
            if is_done:
                del self.requests[key]
        return outputs


@pytest.fixture
def vllm(monkeypatch):
    class Params(SimpleNamespace):
        def __init__(self, **given):
            super().__init__(**{"seed": None, "stop_token_ids": None} | given)

    module, request = ModuleType("vllm"), ModuleType("vllm.lora.request")
    module.LLMEngine, module.SamplingParams = StandIn, Params
    module.EngineArgs = SimpleNamespace
    request.LoRARequest = lambda name, number, path: SimpleNamespace(
        name=name, number=number, path=path
    )
    for name, found in (("vllm", module), ("vllm.lora.request", request)):
        monkeypatch.setitem(sys.modules, name, found)
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: True)


def test_vllm_is_asked_with_seeds_limits_stops_and_lora_requests(vllm, adapters):
    own = {name: adapters[name] for name in ("one", "two")}
    engine = vllm_engine.VllmEngine("base", WORDS, own, speaks="one", dtype="bfloat16")
    given = engine.engine.arguments
    assert (given.model, given.enable_lora, given.max_lora_rank, given.max_loras) == (
        "base", True, 8, 2,
    )  # fmt: skip
    found = written(engine, [Prompt([5], 7), Prompt([5], 7, adapter="two", max_tokens=2)])
    assert found[0] == Completion(found[0].text, [113 + n for n in range(10)], stopped=False)
    assert found[1].input_ids == [13, 14]
    assert written(engine, [Prompt([5], 7, adapter=BASE)])[0].input_ids[0] == 13
    with pytest.raises(RecipeError, match="known: base, one, two"):
        engine.generate([Prompt([5], adapter="three")], DRAWN)
    late = written(engine, [Prompt([5], 7, deadline=0.0), Prompt([5], 7)])
    assert [len(each.input_ids) for each in late] == [1, 10]
    assert len(engine.engine.aborted) == 1
    assert engine.log_probabilities([Prompt([5, 6])], [[7, 8]]) == [[-7.0, -8.0]]


def test_vllm_refuses_what_it_cannot_serve_and_says_where_it_is_missing(
    vllm, adapters, monkeypatch
):
    with pytest.raises(RecipeError, match="judge: vLLM cannot serve it"):
        vllm_engine.VllmEngine("base", WORDS, {"judge": adapters["judge"]})
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"install toolkit\[vllm\]"):
        vllm_engine.VllmEngine("base", WORDS)
