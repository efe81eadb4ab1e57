"""Ways of thinking: what each makes of its samples, and that none spends more than its budget."""

import math
import random
from dataclasses import replace
from itertools import count

import pytest
from transformers import AutoModelForCausalLM

from tests import tiny
from toolkit.errors import RecipeError
from toolkit.inference.engine import Completion, Prompt, Sampling
from toolkit.inference.sampling import TransformersEngine
from toolkit.inference.thinking.adaptive import adaptive, holds, stands
from toolkit.inference.thinking.best_of import best_of
from toolkit.inference.thinking.budget import Budget
from toolkit.inference.thinking.budget_forcing import budget_forcing
from toolkit.inference.thinking.methods import METHODS, method_of
from toolkit.inference.thinking.refine import refine
from toolkit.inference.thinking.reward_vote import reward_vote
from toolkit.inference.thinking.running import replay, think
from toolkit.inference.thinking.steps import Judge, Likelihood, Problem, Write
from toolkit.inference.thinking.vote import vote, weighted_vote

WORDS = tiny.tokenizer()
LONGEST = 12


def said(text):
    return text.strip() or None


def problem(**changed):
    return Problem(Prompt([5, 6], seed=3), Sampling(LONGEST), said, **changed)


def samples(*texts, tokens=4):
    """Completions that ended, but for those with a "…" behind them."""
    return [Completion(text.rstrip("…"), [1] * tokens, not text.endswith("…")) for text in texts]


def test_a_vote_is_won_by_the_answer_given_most_often_and_first():
    found = replay(vote(problem(), Budget(), n=5), samples("b", "a", "a ", "b", "c…"))
    assert (found.text, found.said, found.votes) == ("b", "b", {"b": 2, "a": 2})
    assert found.tokens == 20
    nobody = replay(vote(problem(), Budget(), n=2), samples("", "x…"))
    assert (nobody.said, nobody.votes) == (None, {})


def test_a_weighted_vote_counts_each_sample_s_likelihood():
    made = samples("a", "b", "b")
    begun = weighted_vote(problem(), Budget(), n=3)
    assert isinstance(next(begun), Write)
    assert isinstance(begun.send(made), Likelihood)
    with pytest.raises(StopIteration) as end:
        begun.send([[-0.1, -0.1], [-2.0, -2.0], [-3.0, 0.0]])
    assert end.value.value.said == "a"
    assert end.value.value.votes["a"] == pytest.approx(2.718281828**-0.1)


def test_best_of_takes_the_highest_score_and_a_reward_vote_the_most():
    made, scores = samples("a", "b", "b", "c"), [1.0, 0.8, 0.9, None]
    assert replay(best_of(problem(), Budget(), n=4), made, scores).said == "a"
    assert replay(best_of(problem(), Budget(), n=4), made, scores).score == 1.0
    assert replay(reward_vote(problem(), Budget(), n=4), made, scores).said == "b"
    assert replay(reward_vote(problem(), Budget(), n=4, scale=0.01), made, scores).said == "a"
    nothing = replay(best_of(problem(), Budget(), n=4), made, [None] * 4)
    assert (nothing.text, nothing.stopped) == ("", False)


def test_adaptive_stops_when_the_vote_is_decided():
    easy = replay(adaptive(problem(), Budget(), confidence=0.95, n=8), samples(*"aaaaaaaa"))
    assert len(easy.completions) == 2
    assert easy.confidence >= 0.95
    unsure = replay(adaptive(problem(), Budget(), confidence=0.5, n=8), samples(*"aabbbbbb"))
    assert len(unsure.completions) == 2, "one sample decides nothing"
    hard = replay(adaptive(problem(), Budget(), confidence=0.95, n=8), samples(*"abababab"))
    assert len(hard.completions) == 8
    sure = replay(adaptive(problem(), Budget(), confidence=1.0, n=8), samples(*"aaaaaaaa"))
    assert len(sure.completions) == 5, "only then nothing can overtake"


def with_likelihood(texts, shares, **parameters):
    """Adaptive sampling of texts that the model is asked the probability of."""
    begun = adaptive(problem(), Budget(), likelihood=True, **parameters)
    step, texts, shares = next(begun), iter(texts), iter(shares)
    try:
        while True:
            if isinstance(step, Likelihood):
                step = begun.send([[math.log(next(shares))]])
            else:
                text = next(texts)
                step = begun.send([Completion(text, [ord(text)], True)])
    except StopIteration as end:
        return end.value


def test_a_likely_answer_takes_one_sample():
    one = with_likelihood("a", [0.9], n=9)
    assert (len(one.completions), one.said) == (1, "a")
    assert one.confidence == holds(1, 0, 8, 0.9) >= 0.95
    two = with_likelihood("aa", [0.6], n=9)
    assert two.confidence == max(stands(2, 0, 0, 7), holds(2, 0, 7, 0.6)), "a text counts once"
    wins = sum(math.comb(8, k) * 0.6**k * 0.4 ** (8 - k) for k in range(4, 9))
    assert holds(1, 0, 8, 0.6) == pytest.approx(wins)
    cooler = replace(problem(), sampling=Sampling(LONGEST, temperature=0.5))
    with pytest.raises(RecipeError, match="temperature 1"):
        next(adaptive(cooler, Budget(), likelihood=True))


def test_the_confidence_is_how_often_the_leader_wins_in_the_end():
    """By drawing: rates from the prior, then all samples; where they begin so, who wins?"""
    draw, seen = random.Random(0), []
    while len(seen) < 400:
        parts = [draw.gammavariate(0.5, 1) for _ in range(3)]
        rolls = draw.choices("abo", parts, k=9)
        if sorted(rolls[:4]) == ["a", "a", "a", "b"]:
            a, b = rolls.count("a"), rolls.count("b")
            seen.append(1.0 if a > b else 0.5 if a == b else 0.0)
    assert sum(seen) / len(seen) == pytest.approx(stands(3, 1, 0, 5), abs=0.05)


def test_an_early_vote_agrees_as_often_as_it_is_sure():
    draw, same = random.Random(1), []
    for _ in range(300):
        rate = draw.random()
        made = samples(*("a" if draw.random() < rate else draw.choice("bcd") for _ in range(16)))
        early = replay(adaptive(problem(), Budget(), confidence=0.9, n=16), made)
        same.append(early.said == replay(vote(problem(), Budget(), n=16), made).said)
    assert sum(same) / len(same) >= 0.9


@pytest.mark.parametrize("tokens", [1, 7, 12, 13, 30, 48, 49])
def test_a_budget_gives_what_writing_one_after_the_other_gives(tokens):
    made = [Completion(str(n), [1] * length, True) for n, length in enumerate((5, 12, 3, 9, 12, 7))]
    left, expected = tokens, []
    for each in made:
        if left > 0:
            expected.append(min(len(each.input_ids), left))
            left -= expected[-1]
    found = replay(vote(problem(), Budget(tokens=tokens), n=6), made)
    assert [len(each.input_ids) for each in found.completions] == expected
    assert found.tokens == sum(expected) == min(tokens, 48)


def conversation(**changed):
    return problem(
        messages=[{"role": "user", "content": "?"}],
        render=lambda turns: list("".join(turn["content"] for turn in turns).encode()),
        **changed,
    )


def refined(texts, scores, **parameters):
    """A refinement whose turns are these texts, and whose judge gives these scores."""
    begun = refine(conversation(), Budget(), **parameters)
    texts, scores, asked = iter(texts), iter(scores), []
    step = next(begun)
    try:
        while True:
            if isinstance(step, Judge):
                step = begun.send([next(scores)])
            else:
                asked.append(bytes(step.prompts[0].input_ids).decode("latin-1"))
                step = begun.send(samples(next(texts)))
    except StopIteration as end:
        return end.value, asked


def test_refine_keeps_the_better_and_stops_when_it_gets_no_better():
    found, asked = refined(["draft", "hm", "good", "hm", "bad"], [1.0, 2.0, 1.5])
    assert (found.text, found.score, len(found.completions)) == ("good", 2.0, 5)
    assert "draft" in asked[1]
    assert "hm" in asked[2]
    assert "good" in asked[3]
    found, asked = refined(["draft", "hm", "worse"], [1.0, 1.0])
    assert (found.text, len(asked)) == ("draft", 3)
    assert len(refined(["d", "c", "e"], [0.0, 1.0], rounds=1)[1]) == 3
    with pytest.raises(RecipeError, match="chat template"):
        next(refine(problem(), Budget()))


def forced(turns, budget=None, **parameters):
    """Budget forcing over turns of text, each of which ended at the marker or by itself."""
    begun = budget_forcing(problem(tokenizer=WORDS), budget or Budget(), end="END", **parameters)
    turns, asked = iter(turns), []
    step = next(begun)
    try:
        while True:
            (prompt,) = step.prompts
            asked.append((WORDS.decode(prompt.input_ids[2:]), prompt.max_tokens))
            text = next(turns)
            ids = WORDS(text).input_ids[: prompt.max_tokens]
            is_cut = len(ids) < len(text)
            step = begun.send(
                [Completion(WORDS.decode(ids).split("END")[0], ids, stopped=not is_cut)]
            )
    except StopIteration as end:
        return end.value, asked


def test_thinking_that_ends_too_early_goes_on():
    found, asked = forced(["abcEND", "defghEND", " 42"], minimum=8, maximum=20, wait="W")
    assert [before for before, _ in asked] == ["", "abcW", "abcWdefghEND"]
    assert (found.text, found.said) == ("abcWdefghEND 42", "abcWdefghEND 42")
    assert found.tokens == 6 + 1 + 8 + 3


def test_thinking_that_does_not_end_is_ended():
    found, asked = forced(["a" * 30, " 42"], maximum=10)
    assert [before for before, _ in asked] == ["", "a" * 10 + "END"]
    assert found.text == "a" * 10 + "END 42"
    assert found.tokens == 10 + 3 + 3


def test_what_is_put_into_the_mouth_is_paid_for():
    for tokens in range(1, 30):
        budget = Budget(tokens=tokens)
        found, _ = forced(["abcEND", "d" * 40, "e" * 40], budget, minimum=8, maximum=12, wait="WW")
        assert found.tokens <= tokens
    with pytest.raises(RecipeError, match="minimum"):
        forced([], minimum=9, maximum=8)


@pytest.fixture(scope="module")
def engine(tiny_base):
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    return TransformersEngine(model, WORDS, batch_size=8)


def asked(number):
    prompts = [Prompt(WORDS(f"{n}: why?").input_ids, seed=n) for n in range(number)]
    return [Problem(each, Sampling(LONGEST), lambda text: text[:1], WORDS) for each in prompts]


@pytest.mark.parametrize("name", ["vote", "weighted_vote", "best_of", "reward_vote", "adaptive"])
@pytest.mark.parametrize("tokens", [5, 40, None])
def test_side_by_side_is_the_same_as_alone_and_within_the_budget(engine, name, tokens):
    def judge(pairs):
        return [float(sum(made.input_ids)) for _, made in pairs]

    def begun(each):
        return each, METHODS[name](each, Budget(tokens), n=4)

    together = think(engine, [begun(each) for each in asked(3)], judge)
    alone = [think(engine, [begun(each)], judge)[0] for each in asked(3)]
    assert [each.text for each in together] == [each.text for each in alone]
    assert [each.completions for each in together] == [each.completions for each in alone]
    for found in together:
        assert found.tokens == sum(len(each.input_ids) for each in found.completions)
        assert tokens is None or found.tokens <= tokens
    if tokens == 5:
        assert all(found.tokens == 5 for found in together)


def test_time_ends_with_the_step_that_is_on_its_way(engine, monkeypatch):
    ticks = count()
    monkeypatch.setattr("time.monotonic", lambda: float(next(ticks)))
    (question,) = asked(1)
    steps = []
    sample = TransformersEngine._generate
    monkeypatch.setattr(
        TransformersEngine, "_generate",
        lambda self, inputs, n, **given: steps.append(n) or sample(self, inputs, n, **given),
    )  # fmt: skip
    begun = vote(question, Budget(seconds=6.5, clock=lambda: float(next(ticks))), n=50)
    (found,) = think(engine, [(question, begun)])
    lengths = {len(each.input_ids) for each in found.completions if not each.stopped}
    assert len(lengths) == 1, "those that were on their way ended together"
    assert lengths < {1, 2, 3, 4, 5, 6}
    assert len(found.completions) <= 8, "of those that had not begun there is nothing"
    assert next(ticks) < 100


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("votes", "did you mean 'vote'"),
        ({"name": "best_of", "k": 3}, "takes no 'k'"),
        ({"name": "vote", "n": 0}, "at least 1"),
        ({"name": "vote", "n": "3"}, "expected int"),
        ({"name": "adaptive", "confidence": 1.5}, "a share up to 1"),
        ({"name": "vote", "seconds": 0}, "above 0"),
        ({"name": "adaptive", "likelihood": 1}, "expected bool"),
        ({"name": "vote", "n": True}, "expected int"),
        ("budget_forcing", "needs end"),
    ],
)
def test_what_is_wrong_with_an_entry_is_told(entry, said):
    with pytest.raises(RecipeError, match=said):
        method_of(entry, "recipe.yaml:3")


def test_an_entry_names_its_parameters_and_its_budget():
    found = method_of({"name": "best_of", "n": 8, "tokens": 400}, "here")
    assert (found.parameters, found.budget) == ({"n": 8}, {"tokens": 400})
    assert found.label == "best_of n=8 tokens=400"
