"""Runs side by side: seeds of one recipe, recipes that differ, paired tests."""

from pathlib import Path

import pytest

from tests import runs
from toolkit.cli import main
from toolkit.evaluation.intervals import paired_difference, student_interval
from toolkit.report.compare import compared

MORE = {"base": [0], "sft": [0, 1, 2, 3], "grpo": [1, 2, 3, 4, 5, 6, 7, 8, 9]}


@pytest.fixture
def seeds(tmp_path: Path) -> list[Path]:
    return [
        runs.write_run(tmp_path / "a", seed=0),
        runs.write_run(tmp_path / "b", seed=1, right=MORE),
    ]


def test_seeds_of_one_recipe_give_mean_spread_and_worst(seeds: list[Path]):
    found = compared(seeds)
    assert found["groups"] == [["a", "b"]]
    assert [(each["key"], each["values"]) for each in found["differences"]] == [
        ("seed", ["0", "1"])
    ]
    (task,) = found["tasks"]
    mean = task["models"][-1]["rows"][0]
    assert mean["label"] == "mean of 2"
    assert mean["value"] == "80.0"  # of 70 and 90
    assert [part["value"] for part in mean["rest"]] == ["14.1", "70.0"]
    assert mean["rest"][1]["word"] == "worst, a,"
    equal = task["models"][0]["rows"][0]
    assert (equal["value"], equal["interval"]) == ("10.0", "–")


def test_same_questions_are_tested_in_pairs(seeds: list[Path]):
    (task,) = compared(seeds)["tasks"]
    tests = {test["model"]: (test["gained"], test["lost"]) for test in task["tests"]}
    assert tests == {"sft": (0, 0), "grpo": (2, 0)}


def test_other_questions_are_not(seeds: list[Path]):
    lines = [runs.answer("grpo", q, True) | {"asked": f"another {q}"} for q in range(10)]
    for model in ("base", "sft", "grpo"):
        runs.lines(seeds[1] / "exam" / f"completions-{model}.jsonl", lines)
    found = compared(seeds)
    assert found["tasks"][0]["tests"] == []
    assert any("not asked the same questions" in note for note in found["notes"])


def test_recipes_that_differ_are_no_seeds(seeds: list[Path], tmp_path: Path):
    other = runs.write_run(tmp_path / "c", seed=0, learning_rate=0.001)
    found = compared([*seeds, other])
    assert found["groups"] == [["a", "b"], ["c"]]
    assert {"key": "learning_rate", "stages": ["sft"], "values": ["–", "–", "0.001"]} in found[
        "differences"
    ]
    labels = [row["label"] for row in found["tasks"][0]["models"][-1]["rows"]]
    assert labels == ["mean of 2", "a", "b", "c"]


def test_seeds_on_other_data_are_told(seeds: list[Path]):
    data = [{"dataset_name": "chats.jsonl", "rows": 1200, "sha256": "2"}]
    runs.change(seeds[1] / "sft" / "stage.json", data=data)
    assert any("their data are not the same" in note for note in compared(seeds)["notes"])


def test_runs_without_an_exam(seeds: list[Path]):
    for folder in seeds:
        (folder / "exam" / "report.json").unlink()
    found = compared(seeds)
    assert found["tasks"] == []
    assert {"stage": "sft", "word": "mean loss", "values": ["0.5", "0.6"]} in found["measured"]


def test_the_command(seeds: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = list(map(str, seeds))
    for name in ("compare.html", "compare.md"):
        assert main(["compare", *words, "--output", str(tmp_path / name)]) == 0
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "mean of 2" in text
        assert "80.0" in text
    said = capsys.readouterr().out
    assert "mean of 2" in said
    assert max(len(line) for line in said.splitlines() if str(tmp_path) not in line) <= 80
    assert main(["compare", words[0]]) == 2
    assert main(["compare", *words, "--output", "x.pdf"]) == 2


def test_hostile_names_are_words(seeds: list[Path], tmp_path: Path):
    evil = "<script>[red]x[/red]</script>"
    for folder in seeds:
        report = {"exam": [], "comparisons": []}
        rows = runs.json.loads((folder / "exam" / "report.json").read_text(encoding="utf-8"))[
            "exam"
        ]
        runs.dump(
            folder / "exam" / "report.json",
            report | {"exam": [row | {"stage": evil, "task": evil} for row in rows]},
        )
    path = tmp_path / "compare.html"
    assert main(["compare", *map(str, seeds), "--output", str(path)]) == 0
    text = path.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;[red]x" in text


def test_the_interval_of_a_paired_difference():
    low, high = paired_difference(5, 15, 100)  # 10/102 ± 1.96 √(21 - 100/102) / 102
    assert (low, high) == pytest.approx((0.01206, 0.18401), abs=1e-4)
    assert paired_difference(0, 0, 10) == pytest.approx((-0.16333, 0.16333), abs=1e-4)
    with pytest.raises(ValueError, match="found 6 and 5 of 10"):
        paired_difference(6, 5, 10)


def test_the_interval_of_a_mean_over_runs():
    assert student_interval([1, 2, 3]) == pytest.approx((2 - 2.48434, 2 + 2.48434), abs=1e-4)
    with pytest.raises(ValueError, match="found 1"):
        student_interval([1])
