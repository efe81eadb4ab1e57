"""Preferences on policy: what is sampled, how it is ranked, what is left out, and that it resumes."""

import json

import pytest

from tests import tiny
from tests.exams import interrupted, lines_of, train_reward, train_sft, watched
from toolkit.data.sources import load_rows
from toolkit.errors import DataError, RecipeError, TrainingError
from toolkit.pipeline import run_recipe
from toolkit.recipe import recipe_from_keywords
from toolkit.stages.examined import BASE
from toolkit.stages.ranking import Counts, ranking
from toolkit.stages.scored import Answer

CHATS = [
    {"prompt": [{"role": "user", "content": f"What is {index}?"}], "answer": f"{index}", "hard": index > 3}
    for index in range(6)
]  # fmt: skip
TEXTS = [{"prompt": f"{index}: once", "answer": f"{index}"} for index in range(4)]


@pytest.fixture(scope="module")
def adapter(tiny_base, tmp_path_factory):
    return train_sft(tiny_base, tmp_path_factory.mktemp("sft"))


@pytest.fixture(scope="module")
def talkative(tmp_path_factory):
    """A base that ends one token in five: some answers end and some do not."""
    base = tiny.save_base(tmp_path_factory.mktemp("talkative") / "base", seed=3)
    config = json.loads((base / "config.json").read_text())
    stops = list(range(0, 257, 5))
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    assert config["eos_token_id"] == 0
    return base


def shortest(prompts, completions, **columns):
    return [-float(len(text)) for text in completions]


def settings(base, directory, rows=TEXTS, **keys):
    file = tiny.save_rows(directory.parent / "asked.jsonl", rows)
    return {
        "model_name_or_path": str(base), "output_dir": str(directory), "dataset_name": str(file),
        "num_generations": 6, "max_completion_length": 6, "per_device_eval_batch_size": 8,
        "reward_funcs": [f"{__file__}:shortest"],
    } | keys  # fmt: skip


def rank(base, directory, rows=TEXTS, **keys):
    recipe = recipe_from_keywords("rank", **settings(base, directory, rows, **keys))
    return run_recipe(recipe).stages["rank"]


def ranked_of(directory):
    text = (directory / "ranked.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_answers_are_sampled_and_ranked(talkative, tmp_path, capsys):
    result = rank(talkative, tmp_path / "rank")
    rows = ranked_of(tmp_path / "rank")
    lines = lines_of(tmp_path / "rank")
    assert len(lines) == 4 * 6
    assert result.metrics == {
        "prompts": 4,
        "answers": 24,
        "ranked": len(rows),
        "written": sum(len(row["answers"]) for row in rows),
        "unstopped": sum(not line["stopped"] for line in lines),
        "repeated": 24
        - sum(not line["stopped"] for line in lines)
        - len({(line["question"], line["text"]) for line in lines if line["stopped"]}),
        "unscored": 0,
        "alone": 0,
        "tied": 4 - len(rows),
    }
    assert result.metrics["unstopped"] > 0 < result.metrics["repeated"]
    for row in rows:
        assert list(row) == ["prompt", "answers", "ranks", "scores", "answer"]
        index = int(row["answer"])
        assert row["prompt"] == TEXTS[index]["prompt"]
        ended = {line["text"] for line in lines if line["question"] == index and line["stopped"]}
        assert set(row["answers"]) == ended
        assert row["scores"] == [-len(text) for text in row["answers"]]
        order = sorted({-len(text) for text in row["answers"]}, reverse=True)
        assert row["ranks"] == [order.index(score) + 1 for score in row["scores"]]
        assert max(row["ranks"]) > 1
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        f"{len(rows)} of 4 prompts ranked, with {result.metrics['written']} of 24 answers"
        in printed
    )
    assert "answers left out: cut off at max_completion_length" in printed
    assert "toolkit reward --dataset_name" in printed
    assert result.manifest["policy"] == {"name": BASE, "place": str(talkative)}


def test_what_is_written_is_read_as_preferences(talkative, tmp_path):
    rank(talkative, tmp_path / "rank")
    file = tmp_path / "rank" / "ranked.jsonl"
    recipe = recipe_from_keywords("dpo", model_name_or_path="x", dataset_name=str(file))
    rows = load_rows(recipe.stages[0], purpose="preference")
    assert rows.format == "ranked"
    written = ranked_of(tmp_path / "rank")
    assert [row["answers"] for row in rows.train] == [row["answers"] for row in written]


def test_a_chat_policy_answers_messages_and_a_reward_adapter_scores_them(
    tiny_base, adapter, tmp_path, monkeypatch
):
    judge = train_reward(tiny_base, adapter, tmp_path / "reward")
    engines = watched(monkeypatch)
    result = rank(
        tiny_base, tmp_path / "rank", CHATS, start_from=str(adapter), max_completion_length=40,
        reward_funcs=[f"adapter:{judge}", {"name": "length", "target": 3}], temperature=0.7,
    )  # fmt: skip
    (row, *_) = ranked_of(tmp_path / "rank")
    assert row["prompt"] == CHATS[int(row["answer"])]["prompt"]
    assert row["hard"] is (int(row["answer"]) > 3)
    assert all(isinstance(text, str) for text in row["answers"])
    ((_, _, prompts),) = engines
    assert len(prompts) == 36
    assert len({prompt.seed for prompt in prompts}) == 36
    parts = [lines_of(tmp_path / "rank", name, "scores") for name in (f"adapter:{judge}", "length")]
    sums = {
        (one["question"], one["sample"]): one["score"] + two["score"]
        for one, two in zip(*parts, strict=True)
    }
    assert set(row["scores"]) <= set(sums.values())
    assert result.metrics["prompts"] == 6


def test_an_interrupted_ranking_goes_on(talkative, tmp_path, monkeypatch, capsys):
    whole = rank(talkative, tmp_path / "whole")
    for after in (10, 14 + 3):  # in the middle of the answers, then of the scores
        interrupted(monkeypatch, lambda: rank(talkative, tmp_path / "again"), after=after)
        assert not (tmp_path / "again" / "ranked.jsonl").exists()
    capsys.readouterr()
    result = rank(talkative, tmp_path / "again")
    printed = " ".join(capsys.readouterr().out.split())
    assert "24 completions are there already" in printed
    assert "3 scores are there already" in printed
    assert result.metrics == whole.metrics
    one, two = ((tmp_path / run / "ranked.jsonl").read_bytes() for run in ("whole", "again"))
    assert one == two


def test_a_finished_ranking_is_not_made_again(talkative, tmp_path, monkeypatch):
    first = rank(talkative, tmp_path / "rank")
    engines = watched(monkeypatch)
    assert rank(talkative, tmp_path / "rank").metrics == first.metrics
    assert engines == []


def answer(text, score, question=0, **columns):
    key = ("sft", "prompt", question, text)
    one = Answer(key, f"prompt {question}", None, text, [1], True, columns, None, "digest")
    return one, score


def ranks_of(*pairs, prompts=1):
    answers = [one for one, _ in pairs]
    counts = Counts(prompts=prompts)
    scores = {"one": {one.key: score for one, score in pairs}}
    return ranking(answers, scores, counts), counts


def test_ranks_by_hand():
    rows, counts = ranks_of(
        answer("a", 1.0, gold="7"), answer("b", 3.0), answer("c", 1.0), answer("d", -2.0)
    )
    assert rows == [
        {
            "prompt": "prompt 0", "answers": ["a", "b", "c", "d"], "ranks": [2, 1, 2, 3],
            "scores": [1.0, 3.0, 1.0, -2.0], "gold": "7",
        }
    ]  # fmt: skip
    assert (counts.ranked, counts.written) == (1, 4)


def test_what_cannot_be_ranked_is_counted():
    rows, counts = ranks_of(
        answer("a", 1.0, 0), answer("b", 1.0, 0),  # the same score
        answer("a", 1.0, 1),  # alone
        answer("a", None, 2), answer("b", 2.0, 2),  # alone, for one has no score
        answer("a", None, 3), answer("b", 2.0, 3), answer("c", 1.0, 3),
        prompts=5,  # of the fifth, no answer ended
    )  # fmt: skip
    assert [row["answers"] for row in rows] == [["b", "c"]]
    assert (counts.tied, counts.alone, counts.unscored, counts.ranked) == (1, 3, 2, 1)
    lines = " ".join(counts.lines())
    assert "1 of 5 prompts ranked, with 2 of 0 answers" in lines
    assert "2 answers left out: a reward gave no score" in lines
    assert "3 prompts left out: fewer than two different answers" in lines
    assert "1 prompts left out: all answers have the same score" in lines


def nothing(prompts, completions, **columns):
    return [None] * len(prompts)


def test_what_ranks_nothing_says_why(talkative, tiny_base, tmp_path):
    def refused(message, kind=RecipeError, base=talkative, rows=TEXTS, **keys):
        with pytest.raises(kind, match=message):
            rank(base, tmp_path / "rank", rows, **keys)

    refused("num_generations: expected at least 2 answers to a prompt, found 1", num_generations=1)
    refused("temperature: expected more than 0", temperature=0.0)
    refused("needs reward_funcs", reward_funcs=None)
    refused("unknown reward 'nice'", reward_funcs=["nice"])
    refused("the prompts are messages, and it has no chat template", rows=CHATS)
    refused(
        r"no prompt can be ranked: .*answers left out: a reward gave no score", TrainingError,
        reward_funcs=[f"{__file__}:nothing"],
    )  # fmt: skip
    refused("row 2", DataError, rows=[*TEXTS[:1], {"prompt": ""}])
