"""The curves of a report: gaps, long logs, flat lines, distributions."""

import math
import re

from toolkit.report.curves import against, spread, stage_curves, thinned
from toolkit.report.pen import Frame, ticks


def points(svg: str) -> list[str]:
    return re.findall(r'class="line c0" d="([^"]+)"', svg)


def drawn(kind: str, entries: list[dict]) -> dict:
    return {drawing.title: drawing for drawing in stage_curves(kind, entries)}


def test_a_gap_is_a_gap():
    values = [1.0, 2.0, math.nan, 3.0, None, 4.0]
    entries = [{"step": step, "loss": value} for step, value in enumerate(values)]
    (path,) = points(drawn("sft", entries)["Loss"].svg)
    assert path.count("M") == 3
    assert path.count("L") == 1


def test_one_value_is_no_curve():
    assert stage_curves("sft", [{"step": 1, "loss": 2.0}]) == []
    assert stage_curves("sft", []) == []
    assert stage_curves("rank", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 2.0}]) == []


def test_a_flat_line_has_a_place():
    entries = [{"step": step, "loss": 0.0, "learning_rate": 0.0} for step in (1, 2, 3)]
    for drawing in drawn("sft", entries).values():
        assert "nan" not in drawing.svg


def test_a_long_log_makes_a_small_picture():
    entries = [{"step": step, "loss": 1 + math.sin(step)} for step in range(30_000)]
    entries[17_001]["loss"] = 50.0
    svg = drawn("sft", entries)["Loss"].svg
    assert len(svg) < 20_000
    steps, values = thinned(range(30_000), [entry["loss"] for entry in entries])
    assert len(steps) <= 400
    assert 50.0 in values  # a spike stays


def test_held_out_values_are_told_apart():
    entries = [{"step": step, "loss": 1.0 * step, "eval_loss": 2.0} for step in range(5)]
    drawing = drawn("sft", entries)["Loss"]
    assert list(drawing.legend) == [("c0", "training"), ("c1 held", "held out")]


def test_what_the_guard_follows_is_drawn():
    logged = {"gold/answer/mean": 0.5, "guard/distinct_ngrams": 0.9, "guard/agreement": 0.1}
    titles = drawn("grpo", [{"step": step, **logged} for step in range(3)])
    assert {"Gold check, which is not trained on", "Repetition"} <= titles.keys()


def test_reward_against_what_moves():
    entries = [
        {"step": s, "reward": s / 10, "kl": 0.0, "completions/mean_length": 9.0 + s}
        for s in range(4)
    ]
    assert [drawing.title for drawing in against(entries)] == ["Reward against length"]
    assert against(entries[:2]) == []


def test_many_groups_stand_below_one_another():
    two = spread("Rewards", {"a": [1.0, 2.0], "b": [3.0]}, "reward")
    many = spread("Rewards", {name: [1.0, 2.0] for name in "abcd"}, "reward")
    assert two is not None
    assert two.svg.count('class="heap') == 2
    assert many is not None
    assert many.svg.count('class="heap') == 4
    assert ">d</text>" in many.svg
    assert spread("Rewards", {"a": [math.nan], "b": [1.0]}, "reward") is None
    assert spread("Rewards", {"a": [1.0, 1.0]}, "reward") is not None


def test_ticks_are_round():
    assert ticks(0, 945, most=5) == [0, 200, 400, 600, 800]
    assert ticks(-1.2, 3.1, most=4) == [0, 2] or ticks(-1.2, 3.1, most=4) == [0.0, 2.0]


def test_a_point_lies_where_its_value_is():
    frame = Frame((0, 10), (0, 1))
    assert frame.x(0) == frame.left
    assert frame.x(10) == 330
    assert (frame.y(0), frame.y(1)) == (152, 8)
    assert frame.y(99) == 8  # nothing leaves the picture
