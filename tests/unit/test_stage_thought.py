"""Ways of thinking in an exam: nothing is written twice, and the curve has every point."""

import json

import pytest

from tests.exams import examine, interrupted, lines_of, watched
from toolkit.errors import RecipeError
from toolkit.evaluation.graded import Graded
from toolkit.evaluation.scaling import agreement, scaling_points
from toolkit.report.scaling import scaling_curves

WAYS = [
    {"name": "vote", "n": 2}, {"name": "best_of", "n": 3}, {"name": "adaptive", "n": 3, "tokens": 9},
    {"name": "budget_forcing", "end": "x", "maximum": 5}, "refine",
]  # fmt: skip


def longest(completions, **columns):
    return [float(len(text)) for text in (c[0]["content"] for c in completions)]


def points_of(folder):
    return json.loads((folder / "report.json").read_text())["scaling"]


def test_an_exam_in_ways_of_thinking(tiny_base, tmp_path, monkeypatch, capsys):
    seen = watched(monkeypatch)
    examine(tiny_base, tmp_path / "exam", thinking=WAYS, reward_funcs=[longest])
    printed = " ".join(capsys.readouterr().out.split())
    assert "base: refine left out" in printed
    lines = lines_of(tmp_path / "exam", kind="thoughts")
    assert [(line["question"], line["sample"]) for line in lines] == [
        (question, way) for question in range(7) for way in range(4)
    ]
    samples = {
        (line["question"], line["sample"]): line
        for line in lines_of(tmp_path / "exam")
        if line["sample"] is not None
    }
    for line in lines:
        question, way = line["question"], line["sample"]
        if way == 0:
            assert line["tokens"] == sum(samples[question, n]["tokens"] for n in (0, 1))
        if way == 2:
            assert line["tokens"] <= 9
        if way == 1:
            scores = [samples[question, n] for n in (0, 1)]
            assert line["score"] >= max(len(each["text"]) for each in scores)
    live = [p for p in points_of(tmp_path / "exam") if p["method"] == "adaptive"]
    assert [p["setting"] for p in live] == [{"n": 3, "tokens": 9}]
    asked = [[prompt.seed for prompt in prompts] for _, _, prompts in seen]
    assert [len(seeds) for seeds in asked[:2]] == [7, 14], "the exam: greedy answers and samples"
    assert [len(seeds) for seeds in asked[2:4]] == [4, 3], "of best_of, the third samples only"
    assert not set(asked[1]) & {*asked[2], *asked[3]}


def test_an_interrupted_one_goes_on(tiny_base, tmp_path, monkeypatch, capsys):
    ways = [{"name": "vote", "n": 3}, {"name": "weighted_vote", "n": 2}]
    examine(tiny_base, tmp_path / "whole", thinking=ways)
    interrupted(
        monkeypatch, lambda: examine(tiny_base, tmp_path / "exam", thinking=ways), after=21 + 5
    )
    capsys.readouterr()
    examine(tiny_base, tmp_path / "exam", thinking=ways)
    assert "5 thoughts are there already" in " ".join(capsys.readouterr().out.split())
    assert lines_of(tmp_path / "exam", kind="thoughts") == lines_of(
        tmp_path / "whole", kind="thoughts"
    )
    assert points_of(tmp_path / "exam") == points_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("ways", "said"),
    [(["best_of"], "needs reward_funcs"), (["vote", "vote"], "twice"), (["voted"], "did you mean")],
)
def test_what_is_wrong_is_told_first(ways, said, tiny_base, tmp_path, monkeypatch):
    seen = watched(monkeypatch)
    with pytest.raises(RecipeError, match=said):
        examine(tiny_base, tmp_path / "exam", thinking=ways)
    assert not seen


def graded(question, answers, right="a"):
    return [
        Graded("sft", "t", question, n, each, True, each == right, 10, each)
        for n, each in enumerate(answers)
    ]


def test_the_points_of_a_curve():
    questions = [graded(0, "aaaaaaaa"), graded(1, "babababa"), graded(2, "bcaaaaaa")]
    scores = {each.key: float(each.said == "a") for asked in questions for each in asked}
    points = scaling_points(questions, {"r": scores})
    by_way = {
        (p["method"], p["setting"].get("n"), p["setting"].get("confidence")): p for p in points
    }
    assert by_way["vote", 1, None]["accuracy"] == pytest.approx(1 / 3)
    assert by_way["vote", 8, None]["tokens"] == 80
    assert by_way["best_of", 2, None]["accuracy"] == pytest.approx(2 / 3)
    early, whole = by_way["adaptive", 8, 0.95], by_way["vote", 8, None]
    assert early["accuracy"] == whole["accuracy"] == pytest.approx(2 / 3)
    assert early["tokens"] < whole["tokens"]
    assert agreement(questions, 0.95) == 1.0
    tasks = [{"stage": "sft", "task": "t", **point} for point in points]
    drawings = scaling_curves(tasks)
    assert [each.title for each in drawings] == [
        "vote", "adaptive", "best of, by r", "reward vote, by r",
    ]  # fmt: skip
    assert "<script" not in scaling_curves([{**tasks[0], "stage": "<script>"}])[0].svg
