"""The rows of an exam, what is compared with what, and what a person sees of it."""

import json
import os
import stat

import pytest
from rich.console import Console

from toolkit.evaluation.graded import Graded
from toolkit.evaluation.intervals import wilson
from toolkit.evaluation.report import Asked, comparisons, exam_report, exam_rows
from toolkit.evaluation.table import exam_table


def answers(stage, greedy, samples=(), task="exam"):
    """Completions of one stage: a letter per question and sample.

    `R` is right and ended, `r` right and cut off, `w` wrong and ended, `c` wrong and cut off.
    """
    return [
        Graded(stage, task, question, sample, "…", letter in "Rw", letter in "Rr", tokens=10)
        for sample, letters in ((None, greedy), *enumerate(samples))
        for question, letter in enumerate(letters)
    ]


def test_rows_by_hand():
    graded = answers("base", "rwcc") + answers("sft", "RRrw", ["RRww", "RrwR"])
    base, sft = exam_rows(graded)
    low, high = wilson(2, 4)
    assert sft == {
        "stage": "sft", "task": "exam", "accuracy": 0.5, "low": low, "high": high, "greedy": 0.5,
        "greedy_low": low, "greedy_high": high, "vote": 0, "best_of": {}, "n": 4, "samples": 2,
        "lenient": 5 / 8,
        "greedy_lenient": 0.75, "stopped": 7 / 8, "greedy_stopped": 0.75, "tokens": 10,
    }  # fmt: skip
    assert (base["accuracy"], base["greedy"], base["lenient"], base["samples"]) == (0, 0, 0.25, 0)
    assert base["vote"] is None
    assert (base["low"], base["high"]) == (base["greedy_low"], base["greedy_high"]) == wilson(0, 4)
    assert base["stopped"] == base["greedy_stopped"] == 0.25
    assert json.loads(json.dumps([base, sft])) == [base, sft]


def test_rows_come_in_the_order_of_the_exam():
    graded = [
        answer
        for stage in ("b", "a few-shot", "a")
        for task in ("2", "1")
        for answer in answers(stage, "Rw", task=task)
    ]
    assert [(row["stage"], row["task"]) for row in exam_rows(graded)] == [
        ("b", "2"), ("b", "1"), ("a few-shot", "2"), ("a few-shot", "1"), ("a", "2"), ("a", "1"),
    ]  # fmt: skip


def test_rows_need_no_cache_of_their_own(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", cache)
    cache.chmod(stat.S_IRUSR | stat.S_IXUSR)
    before = os.listdir(os.getcwd())
    assert exam_rows(answers("base", "Rw"))[0]["greedy"] == 0.5
    assert list(cache.iterdir()) == []
    assert os.listdir(os.getcwd()) == before


def test_comparisons_are_of_strict_greedy_answers():
    graded = answers("base", "RrwwwwR", ["RRRRRRR"]) + answers("sft", "wRRRRRR", ["ccccccc"])
    assert comparisons(graded) == [
        {"task": "exam", "a": "base", "b": "sft", "a_only": 1, "b_only": 5, "n": 7, "p": 14 / 64}
    ]


def test_each_stage_stands_beside_the_one_before_and_the_first():
    graded = [a for stage in "abcd" for a in answers(stage, "RwR")]
    graded += answers("a", "R", task="more") + answers("c", "w", task="more")
    pairs = [(found["task"], found["a"], found["b"]) for found in comparisons(graded)]
    assert pairs == [
        ("exam", "a", "b"), ("exam", "b", "c"), ("exam", "a", "c"), ("exam", "c", "d"),
        ("exam", "a", "d"), ("more", "a", "c"),
    ]  # fmt: skip
    assert comparisons(answers("a", "RRR")) == []
    assert comparisons(answers("a", "RRR") + answers("b", "RR")) == []  # other questions


def test_a_stage_stands_beside_the_one_it_was_trained_on_from():
    graded = [a for stage in ("base", "sft", "ppo", "grpo") for a in answers(stage, "RwR")]
    started = {"ppo": "sft", "grpo": "sft", "sft": "elsewhere"}
    pairs = [(found["a"], found["b"]) for found in comparisons(graded, started)]
    assert pairs == [
        ("base", "sft"), ("sft", "ppo"), ("base", "ppo"), ("sft", "grpo"), ("base", "grpo"),
    ]  # fmt: skip


def said(stage, *questions, task="exam"):
    """Samples of one stage, all of them ended; of each, what is said. "7" is right."""
    return [
        Graded(stage, task, question, sample, text, True, text.endswith("7"), 3, text[-1])
        for question, texts in enumerate(questions)
        for sample, text in ((None, texts[0]), *enumerate(texts))
    ]


def test_votes_and_best_samples_are_rows_of_the_report():
    graded = said("sft", ["7", "5", "7"], ["5", "7", "5"], ["7", "7", "5"])
    keys = [answer.key for answer in graded if answer.sample is not None]
    scores = dict(zip(keys, [1, 2, 3, 3, 4, 1, None, None, None], strict=True))
    (row,) = exam_rows(graded, Asked(scores={"adapter:reward": scores, "length": {**scores}}))
    assert row["vote"] == 2 / 3
    assert row["best_of"] == {"adapter:reward": {"3": 2 / 3}, "length": {"3": 2 / 3}}


def test_gains_are_between_a_stage_and_what_it_started_from():
    graded = [
        answer
        for stage in ("base", "base few-shot", "sft", "ppo", "grpo")
        for answer in said(stage, ["count 7", "7"], ["5", "count 5"])
    ]
    models = ("base", "sft", "ppo", "grpo")
    asked = Asked(models, {"ppo": "sft", "grpo": "sft"}, {"exam": "count"})
    report = exam_report(graded, asked)
    assert [(gain["a"], gain["b"]) for gain in report["gains"]] == [
        ("base", "sft"), ("sft", "ppo"), ("sft", "grpo"),
    ]  # fmt: skip
    assert {row["worked"] for row in report["exam"]} == {0.5}
    assert exam_report(graded)["gains"] == []
    assert "worked" not in exam_report(graded)["exam"][0]


@pytest.fixture
def printed():
    def show(graded, width=80, asked=None):
        console = Console(width=width, highlight=False, color_system=None)
        with console.capture() as capture:
            console.print(exam_table(exam_report(graded, asked)))
        return capture.get()

    return show


def test_a_person_reads_scores_and_sentences(printed):
    graded = answers("base", "c" * 240, ["r" + "c" * 239]) + answers("sft", "R" * 240, ["R" * 240])
    lines = [" ".join(line.split()) for line in printed(graded).splitlines()]
    assert lines[0] == "exam: 240 questions, greedy and 1 sample each"
    assert lines[1] == "model sampled greedy lenient ended"
    assert lines[3] == "base 0.0 [0.0, 1.6] 0.0 [0.0, 1.6] 0.4 0.0"
    assert lines[4] == "sft 100.0 [98.4, 100.0] 100.0 [98.4, 100.0] 100.0 100.0"
    whole = " ".join(lines)
    assert "sft answers 240 questions right that base does not, 0 the other p = 1e-72 way" in whole


def test_sentences(printed):
    def said(a, b):
        return " ".join(printed(answers("a", a) + answers("b", b), width=200).split())

    assert "b and a answer the same questions right p = 1.00" in said("RRw", "RRc")
    assert "a answers 1 question right that b does not, 0 the other way p = 1.00" in said(
        "RR", "Rr"
    )
    assert "b answers 5 questions right that a does not, 0 the other way p = 0.06" in said(
        "wwwww", "RRRRR"
    )
    assert "p = 0.12" in said("wwww", "RRRR")
    assert "p < 1e-300" in said("w" * 1200, "R" * 1200)


def test_the_table_fits_80_columns_and_loses_nothing(printed):
    long = "runs/with/a/long/name/" + "x" * 90
    graded = [
        answer
        for stage in ("base", "base few-shot", long, "markup[b]")
        for task in ("[i]one", "two")
        for answer in answers(stage, "R" * 1319, ["R" * 1319] * 2, task=task)
    ]
    text = printed(graded)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("base few-shot ") == 6, "in one line, in both tables and four sentences"
    assert "markup[b]" in text
    assert "[i]one: 1,319 questions, greedy and 2 samples each" in text
    assert "100.0 [99.7, 100.0]" in text
    assert text.count("x") == (2 + 6) * 90 + 1, "whole in tables and sentences; one is of «exact»"


def test_models_in_folders_are_called_by_what_tells_them_apart(printed):
    def shown(*names):
        lines = printed([one for name in names for one in answers(name, "R")]).splitlines()
        return [line.split()[0] for line in lines[3 : 3 + len(names)]]

    assert shown("base", "runs/one/sft", "runs/one/ppo") == ["base", "sft", "ppo"]
    assert shown("runs/one/sft", "runs/two/sft") == ["one/sft", "two/sft"]
    assert shown("sft", "runs/sft") == ["sft", "runs/sft"]


def test_everything_at_once_fits_80_columns(printed):
    models = ("base", "sft", "a-long-name-of-a-stage", "grpo")
    graded = [
        answer
        for stage in ("base", "base few-shot", *models[1:])
        for answer in said(stage, *[["count 7", "5"] + ["7"] * 14] * 1000)
    ]
    keys = [answer.key for answer in graded if answer.sample is not None]
    asked = Asked(
        models,
        working={"exam": "count"},
        scores={"adapter:reward": dict.fromkeys(keys, 1.0)},
    )
    text = printed(graded, asked=asked)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert max(map(len, text.splitlines())) <= 80
    assert "model sampled greedy vote lenient ended" in lines
    assert "sft 93.8 [92.1, 95.1] 100.0 [99.6, 100.0] 100.0 93.8 100.0" in lines
    assert "the sample that adapter:reward scores best" in lines
    assert "model of 1 of 8 of 16" in lines
    assert "sft 93.8 100.0 100.0" in lines
    assert "model shown right if shown right if not" in lines
    assert "sft 6.2 100.0 93.3" in lines
    assert "from to gain showing it more better working better at once" in lines
    assert "base sft +0.0 +0.0 +0.0 +0.0" in lines
    two = Asked(
        models, scores={"one[i]": asked.scores["adapter:reward"], "two": dict.fromkeys(keys, 1.0)}
    )
    lines = [" ".join(line.split()) for line in printed(graded, asked=two).splitlines()]
    assert "model reward of 1 of 8 of 16" in lines
    assert "sft one[i] 93.8 100.0 100.0" in lines


def test_without_samples_there_is_no_column_for_them(printed):
    text = printed(answers("base", "Rw"))
    assert "sampled" not in text
    assert "sample" not in text
    assert "50.0 [9.5, 90.5]" in text
