"""Answers side by side: the first questions, the first and the last model, 80 columns."""

import io

from rich.console import Console

from toolkit.evaluation.samples import LONGEST, side_by_side


def line(stage, task, question, text, *, right=False, stopped=True, sample=None):
    return {
        "stage": stage, "task": task, "question": question, "text": text, "right": right,
        "stopped": stopped, "sample": sample, "asked": f"{task} question {question}?",
    }  # fmt: skip


def printed(lines, started=None) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(side_by_side(lines, started))
    return console.export_text()


LINES = [
    line(stage, task, question, f"{stage} says {question}", right=stage == "sft")
    for stage in ("base", "middle", "sft")
    for task in ("maths", "facts")
    for question in (2, 0, 1)
]


def test_first_questions_of_every_task_by_the_first_and_the_last_model():
    text = printed(LINES)
    assert "middle" not in text
    shown = [
        text.index(words) for words in ("maths question 0", "facts question 0", "maths question 1")
    ]
    assert shown == sorted(shown)
    assert "facts question 1" not in text
    assert text.count("✗ base says") == text.count("✓ sft says") == 3
    assert max(map(len, text.splitlines())) <= 80


def test_the_last_model_stands_beside_the_one_it_was_trained_on_from():
    text = printed(LINES, {"sft": "middle", "middle": "base"})
    assert text.count("✗ middle says") == text.count("✓ sft says") == 3
    assert "base" not in text


def test_right_but_never_ended_is_not_right_and_long_answers_are_cut():
    lines = [
        line("base", "t", 0, "x " * 500, right=True, stopped=False),
        line("sft", "t", 0, "", right=False),
    ]
    text = printed(lines)
    assert "✗ x x" in text
    assert "✗ (nothing)" in text
    assert "…" in text
    assert text.count("x") <= LONGEST


def test_samples_and_a_single_model_show_nothing():
    assert side_by_side([line("base", "t", 0, "a")]) is None
    assert side_by_side([line("base", "t", 0, "a", sample=0), line("sft", "t", 0, "b")]) is None


def test_markup_in_an_answer_is_text():
    text = printed([line("base", "t", 0, "[red]no[/red]"), line("sft", "t", 0, "[/x]")])
    assert "[red]no[/red]" in text
    assert "[/x]" in text


def test_an_answer_cannot_steer_the_terminal():
    text = printed([line("base", "t", 0, "a\x1b[2Jb\x07"), line("sft", "t", 0, "c")])
    assert "a·[2Jb·" in text
    assert "\x1b[2J" not in text
