"""Scores of completions by rewards: which tokens are scored, and that no score is made twice."""

import json

import pytest

from tests.exams import (
    ROWS,
    examine,
    interrupted,
    lines_of,
    train_reward,
    train_sft,
    watched,
)
from toolkit.errors import RecipeError
from toolkit.models.reward import load_reward_model
from toolkit.recipe import recipe_from_keywords
from toolkit.stages import examined, scored
from toolkit.stages.completions import file_name


@pytest.fixture(scope="module")
def adapter(tiny_base, tmp_path_factory):
    return train_sft(tiny_base, tmp_path_factory.mktemp("sft"))


@pytest.fixture(scope="module")
def judge(tiny_base, adapter, tmp_path_factory):
    return train_reward(tiny_base, adapter, tmp_path_factory.mktemp("reward"))


@pytest.fixture
def engines(monkeypatch):
    return watched(monkeypatch)


def longest(prompts, completions, answer, question, completion_ids, **columns):
    """Likes long answers, and cannot say anything of the third question."""
    assert [prompt[-1]["content"] for prompt in prompts] == question
    assert all(set(found[-1]) == {"role", "content"} for found in completions)
    return [
        None if asked == "What is 2?" else float(len(ids))
        for asked, ids in zip(question, completion_ids, strict=True)
    ]


def test_the_best_sample_by_a_reward_is_reported(tiny_base, adapter, judge, tmp_path, capsys):
    result = examine(
        tiny_base, tmp_path / "exam", of=["base", str(adapter)], num_generations=9,
        reward_funcs=[f"adapter:{judge}", f"{__file__}:longest"],
        tasks=[{"name": "numbers", "rows": ROWS, "working": "e"}],
    )  # fmt: skip
    report = json.loads((tmp_path / "exam" / "report.json").read_text())
    names = [f"adapter:{judge}", f"{__file__}:longest"]
    for row in report["exam"]:
        assert {name: list(shares) for name, shares in row["best_of"].items()} == {
            name: ["8", "9"] for name in names
        }
        assert 0 <= row["worked"] <= 1
    (gain,) = report["gains"]
    assert (gain["a"], gain["b"]) == ("base", str(adapter))
    lines = {name: lines_of(tmp_path / "exam", name, "scores") for name in names}
    assert all(len(found) == 2 * 7 * 9 for found in lines.values())
    empty = [line["question"] for line in lines[names[1]] if line["score"] is None]
    assert empty == [2] * 18
    assert result.metrics
    counts = result.manifest["rewards"]
    assert counts[names[0]] == {"scored": 2 * 7 * 9, "unscored": 0}
    assert counts[names[1]] == {"scored": 2 * 6 * 9, "unscored": 18}
    assert "126 answers have no score" in " ".join(capsys.readouterr().out.split())


def test_an_adapters_scores_are_those_of_the_tokens_that_were_written(
    tiny_base, adapter, judge, tmp_path
):
    examine(
        tiny_base, tmp_path / "exam", of=[str(adapter), "base"], reward_funcs=[f"adapter:{judge}"]
    )
    model, words = load_reward_model(judge)
    scores = lines_of(tmp_path / "exam", f"adapter:{judge}", "scores")
    found = {(line["stage"], line["question"], line["sample"]): line["score"] for line in scores}
    for name in (str(adapter), "base"):
        for line in lines_of(tmp_path / "exam", name):
            if line["sample"] is None:
                continue
            messages = [{"role": "user", "content": line["asked"]}]
            prompt = words.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False
            )
            written = line["input_ids"]
            if name == "base":  # which has other tokens: the same words in the adapter's own
                stop = [words.eos_token_id] if line["stopped"] else []
                written = words(line["text"], add_special_tokens=False).input_ids + stop
            (score,) = model.score([[*prompt, *written]])
            assert found[name, line["question"], line["sample"]] == pytest.approx(score, abs=1e-5)
    assert len(set(found.values())) > 10, "it must tell answers apart"


def test_interrupted_scoring_goes_on(tiny_base, adapter, judge, tmp_path, monkeypatch, capsys):
    keys = {"of": [str(adapter)], "reward_funcs": [f"adapter:{judge}"]}
    whole = examine(tiny_base, tmp_path / "whole", **keys)
    interrupted(monkeypatch, lambda: examine(tiny_base, tmp_path / "exam", **keys), after=21 + 5)
    kept = (tmp_path / "exam" / file_name(f"adapter:{judge}", "scores")).read_text().splitlines()
    assert len(kept) == 5
    monkeypatch.setattr(examined.Examined, "load_model", None)
    capsys.readouterr()
    examine(tiny_base, tmp_path / "exam", **keys)
    printed = " ".join(capsys.readouterr().out.split())
    assert "21 completions are there already, and kept" in printed
    assert "5 scores are there already, and kept" in printed
    one, two = (
        json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "exam")
    )
    assert one == two
    assert whole.metrics
    scores = lines_of(tmp_path / "exam", f"adapter:{judge}", "scores")
    assert scores == lines_of(tmp_path / "whole", f"adapter:{judge}", "scores")
    assert len({line["digest"] for line in scores}) == 14


def answer(text, prompt="1+1?", sample=0, **columns):
    """A completion that ended, and what stands beside its prompt."""
    key = ("sft", "exam", 0, sample)
    return scored.Answer(key, prompt, None, text, [1, 2], True, columns, None, "digest")


async def later(prompts, completions, completion_ids, answer):
    return [float(text == gold) for text, gold in zip(completions, answer, strict=True)]


def of_batch(prompts, completions, **columns):
    return [float(len(prompts))] * len(prompts)


def test_functions_are_called_as_trl_calls_them(tiny_base):
    recipe = recipe_from_keywords("evaluate", model_name_or_path=str(tiny_base), tasks=[{}])
    entries = [{"name": "length", "target": 3}, {"name": "length", "target": 4}, later, of_batch]
    found = scored.scorers(entries, recipe.stages[0], {})
    assert [scorer.name for scorer in found] == ["length", "length_2", "later", "of_batch"]
    assert len({scorer.identity for scorer in found}) == 4
    answers = [answer("2", answer="2"), answer("3", answer="2", more=1), answer("2", answer="2")]
    scores = [[score for _, score in scorer.score(answers, 2)] for scorer in found]
    assert scores[2] == [1, 0, 1], "an async one is awaited; `more` is no column of all"
    assert scores[3] == [2, 2, 1], "batches of two"
    assert scores[0] != scores[1]


def test_messages_are_answered_by_messages():
    seen = []

    def spy(prompts, completions, **columns):
        seen.extend([prompts, completions])
        return [0.0] * len(prompts)

    asked = [{"role": "user", "content": "1+1?"}]
    list(scored.FunctionScorer("spy", spy).score([answer("2", prompt=asked)], 8))
    assert seen == [[asked], [[{"role": "assistant", "content": "2"}]]]


def test_a_changed_file_is_another_reward(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def f(prompts, completions, **columns):\n    return [0.0] * len(prompts)\n")
    before = scored.FunctionScorer("f", f"{file}:f").identity
    assert scored.FunctionScorer("f", f"{file}:f").identity == before
    file.write_text(file.read_text().replace("0.0", "1.0"))
    assert scored.FunctionScorer("f", f"{file}:f").identity != before


def test_what_is_wrong_with_a_reward_shows_before_the_first_completion(
    tiny_base, judge, tmp_path, engines
):
    for entry, message in (
        ("lenght", "unknown reward 'lenght'; did you mean 'length'"),
        ("adapter:./nowhere", "no such folder"),
    ):
        with pytest.raises(RecipeError, match=message):
            examine(tiny_base, tmp_path / "exam", reward_funcs=[entry])
    with pytest.raises(RecipeError, match="a reward adapter scores answers and writes none"):
        examine(tiny_base, tmp_path / "exam", of=["base", str(judge)])
    assert engines == []


def test_one_model_is_in_memory_also_while_scoring(
    tiny_base, adapter, judge, tmp_path, engines, monkeypatch
):
    alive = []
    load = scored.load_reward_model

    def spy(*arguments, **keys):
        alive.append([model() is not None for model, _, _ in engines])
        return load(*arguments, **keys)

    monkeypatch.setattr(scored, "load_reward_model", spy)
    examine(tiny_base, tmp_path / "exam", of=[str(adapter)], reward_funcs=[f"adapter:{judge}"])
    assert alive == [[False, False]]
