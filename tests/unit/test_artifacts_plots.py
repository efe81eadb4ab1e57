"""The pictures of a stage: what stands in them, and that none of them can fail a stage."""

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from toolkit import from_python
from toolkit.artifacts import plots
from toolkit.artifacts.manifest import outputs_of
from toolkit.artifacts.plot_curves import each, moving_mean
from toolkit.artifacts.plot_panels import PANELS

STEPS = range(10, 90, 10)
ROLLOUT = {
    "reward": 0.5, "reward_std": 0.25, "rewards/answer/mean": 0.5, "completions/mean_length": 31.0,
    "kl": 0.01, "entropy": 1.2, "clip_ratio/region_mean": 0.0, "learning_rate": 1e-5,
}  # fmt: skip
LOGGED: dict[str, dict[str, Any]] = {
    "pretrain": {"loss": 2.0, "grad_norm": 1.0, "learning_rate": 1e-3},
    "sft": {"loss": 2.0, "mean_token_accuracy": 0.5, "grad_norm": 1.0, "learning_rate": 2e-4},
    "reward": {"loss": 0.7, "accuracy": 0.5, "margin": 0.1, "learning_rate": 1e-4},
    "dpo": {
        "loss": 0.7, "rewards/accuracies": 0.5, "rewards/margins": 0.1, "rewards/chosen": 0.1,
        "rewards/rejected": 0.0, "learning_rate": 1e-5,
    },
    "grpo": {**ROLLOUT, "frac_reward_zero_std": 0.25},
    "ppo": {**ROLLOUT, "value/explained_variance": 0.3},
}  # fmt: skip
HELD_OUT = {
    "sft": {"eval_loss": 1.9, "eval_mean_token_accuracy": 0.6},
    "reward": {"eval_loss": 0.6, "eval_accuracy": 0.7, "eval_margin": 0.2},
    "dpo": {"eval_loss": 0.6, "eval_rewards/accuracies": 0.7, "eval_rewards/margins": 0.2},
}


def log(stage: str) -> list[dict[str, Any]]:
    """A log as the trainers write one, with values that grow."""
    entries = [
        {"step": step, **{key: value * (1 + step / 100) for key, value in LOGGED[stage].items()}}
        for step in STEPS
    ]
    entries += [{"step": 80, **HELD_OUT.get(stage, {}), "eval_runtime": 1.0}]
    return [*entries, {"step": 80, "train_runtime": 9.0, **LOGGED[stage]}]


def curves(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    """The lines of a panel by their word in the legend."""
    found = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in found}


def panels(stage: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
    figure = plots.training_figure(stage, entries)
    assert figure is not None
    return {axes.get_title("left"): axes for axes in figure.axes}


@pytest.fixture(autouse=True)
def styled():
    with plots.style():
        yield


@pytest.mark.parametrize(
    ("stage", "titles"),
    [
        ("pretrain", ["Loss", "Learning rate"]),
        ("sft", ["Loss", "Tokens predicted right", "Learning rate", "Gradient norm"]),
        ("reward", ["Loss", "Pairs ranked right", "Margin of the better answer", "Learning rate"]),
        (
            "dpo",
            ["Loss", "Pairs ranked right", "Margin of the better answer", "Implicit reward"],
        ),
        (
            "grpo",
            ["Reward", "Length of a completion", "KL from the reference", "Entropy",
             "Tokens clipped", "Groups whose rewards are all equal"],
        ),
        (
            "ppo",
            ["Reward", "Length of a completion", "KL from the reference", "Entropy",
             "Tokens clipped", "Variance of returns that the critic explains"],
        ),
    ],
)  # fmt: skip
def test_each_kind_of_stage_has_its_curves(stage, titles, tmp_path):
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log(stage)))
    told: list[str] = []
    plots.draw(stage, tmp_path, told.append)
    assert told == []
    image = (tmp_path / "plots" / "training.png").read_bytes()
    assert image[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">I", image[16:20]) == (1440,)
    assert list(panels(stage, log(stage))) == titles


def test_every_stage_that_trains_is_drawn():
    from toolkit.recipe.keys import TRAINING

    assert PANELS.keys() == set(TRAINING)


def test_what_is_drawn_is_what_was_logged():
    found = panels("reward", log("reward"))
    shown = curves(found["Loss"])
    steps = list(STEPS)
    assert shown["training"] == (steps, [pytest.approx(0.7 * (1 + step / 100)) for step in steps])
    assert shown["held out"] == ([80], [0.6])
    assert found["Pairs ranked right"].get_xlabel() == "step"


def test_without_kl_the_learning_rate_fills_the_row():
    entries = [{k: v for k, v in entry.items() if k != "kl"} for entry in log("grpo")]
    assert list(panels("grpo", entries))[-1] == "Learning rate"


def test_what_a_step_could_not_have_is_a_gap():
    """TRL logs None; a diverged run logs NaN and infinity."""
    entries = log("ppo")
    for at, value in enumerate([None, float("nan"), float("inf")]):
        entries[at]["reward"] = value
    steps, values = curves(panels("ppo", entries)["Reward"])["mean"]
    assert steps == list(STEPS)
    assert [value != value for value in values] == [True] * 3 + [False] * 5
    (band,) = panels("ppo", entries)["Reward"].collections
    assert band.get_datalim(panels("ppo", entries)["Reward"].transData).xmin == 40


def test_a_critic_far_off_does_not_flatten_the_rest():
    entries = log("ppo")
    entries[0]["value/explained_variance"] = -4000.0
    axes = panels("ppo", entries)["Variance of returns that the critic explains"]
    assert axes.get_ylim()[0] > -1.2
    mark, curve = axes.get_lines()
    assert (list(mark.get_xdata()), list(mark.get_ydata())) == ([10], [-1.0])
    assert curve.get_ydata()[0] == -1.0


def test_rewards_are_named_without_places_and_repositories():
    names = ["answer", "adapter:reward", "adapter:org/judge", "/home/me/mine.py:kind", "a.b:_own"]
    found = each([{f"rewards/{name}/mean": 0.1 for name in names}], "rewards/*/mean")
    assert list(found.values()) == ["answer", "reward", "adapter", "kind", "_own"]
    entries = [entry | {"rewards/a.b:_own/mean": 0.1} for entry in log("grpo")]
    assert {"mean", "answer", "own"} == curves(panels("grpo", entries)["Reward"]).keys()


def test_a_moving_mean_leaves_gaps_out():
    assert moving_mean([1.0, 2.0, float("nan"), 4.0], 3) == [1.5, 1.5, 3.0, 4.0]


def test_many_noisy_values_are_smoothed_and_it_is_said():
    entries = [{"step": step, "loss": step % 2, "learning_rate": 0.1} for step in range(1, 101)]
    entries += [{"step": 100, "eval_loss": 0.5}]
    found = curves(panels("sft", entries)["Loss"])
    assert list(found) == ["training (mean of 3)", "held out"]
    assert set(found["training (mean of 3)"][1][1:-1]) == {1 / 3, 2 / 3}


def exam(**changed: Any) -> list[dict[str, Any]]:
    row = {
        "accuracy": 0.5, "low": 0.4, "high": 0.6, "greedy": 0.7, "greedy_low": 0.65,
        "greedy_high": 0.75, "samples": 4,
    }  # fmt: skip
    return [
        {**row, "stage": stage, "task": task, **changed}
        for stage in ("base", "sft")
        for task in ("sums", "what $5 and $6 buy")
    ]


def test_an_exam_shows_sampled_and_greedy_with_their_intervals(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"exam": exam()}))
    plots.draw("evaluate", tmp_path, pytest.fail)
    assert (tmp_path / "plots" / "exam.png").stat().st_size > 10_000
    figure = plots.exam_figure(exam())
    assert [axes.get_title("left") for axes in figure.axes] == ["sums", "what $5 and $6 buy"]
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["base", "sft"]
    sampled, greedy = axes.containers
    assert list(sampled[0].get_xdata()) == [0.5, 0.5]
    (bars,) = sampled[2]
    assert bars.get_segments()[0][:, 0].tolist() == pytest.approx([0.4, 0.6])
    assert list(greedy[0].get_xdata()) == [0.7, 0.7]


def test_without_samples_there_is_no_sampled_accuracy():
    (greedy,) = plots.exam_figure(exam(samples=0)).axes[0].containers
    assert list(greedy[0].get_xdata()) == [0.7, 0.7]


def test_the_same_picture_is_the_same_bytes_without_a_date(tmp_path):
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log("grpo")))
    plots.draw("grpo", tmp_path, pytest.fail)
    first = (tmp_path / plots.TRAINING).read_bytes()
    plots.draw("grpo", tmp_path, pytest.fail)
    assert (tmp_path / plots.TRAINING).read_bytes() == first
    assert not [kind for kind in (b"tEXt", b"iTXt", b"zTXt", b"tIME") if kind in first]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no picture (FileNotFoundError: "),
        ('{"step": 1, "loss"', "no picture (JSONDecodeError: "),
        ('{"step": 1, "loss": 2.0}\n', "no picture: fewer than two values were logged"),
        ("", "no picture: fewer than two values were logged"),
    ],
)
def test_a_picture_that_fails_is_one_line_and_no_old_picture_stays(content, said, tmp_path):
    (tmp_path / "plots").mkdir()
    (tmp_path / plots.TRAINING).write_bytes(b"of an earlier run")
    if content is not None:
        (tmp_path / "log.jsonl").write_text(content)
    told: list[str] = []
    plots.draw("sft", tmp_path, told.append)
    assert len(told) == 1
    assert told[0].startswith(said)
    assert "\n" not in told[0]
    assert not (tmp_path / plots.TRAINING).exists()


def test_a_stage_that_trains_draws_and_its_picture_is_no_output(tiny_base, chats, tmp_path):
    keys: dict[str, Any] = {
        "model_name_or_path": str(tiny_base), "dataset_name": str(chats), "max_steps": 3,
        "logging_steps": 1, "per_device_train_batch_size": 2, "report_to": "none", "lora_r": 2,
        "learning_rate": 1e-2, "output_dir": str(tmp_path / "out"),
    }  # fmt: skip
    result = from_python.sft(**keys)
    picture = tmp_path / "out" / plots.TRAINING
    assert picture.is_file()
    assert not [name for name in result.manifest["outputs"] if "png" in name]
    assert result.manifest["outputs"] == outputs_of(tmp_path / "out")
    picture.unlink()
    before = (tmp_path / "out" / "stage.json").read_bytes()
    from_python.sft(**keys)  # finished: neither refused as damaged nor trained again
    assert (tmp_path / "out" / "stage.json").read_bytes() == before


def test_a_stage_whose_picture_fails_is_finished(tiny_base, chats, tmp_path, monkeypatch, capsys):
    def fail(*_: Any) -> None:
        raise MemoryError("no room for a picture")

    monkeypatch.setattr(plots, "training_figure", fail)
    result = from_python.sft(
        model_name_or_path=str(tiny_base), dataset_name=str(chats), max_steps=2, logging_steps=1,
        per_device_train_batch_size=2, report_to="none", lora_r=2, output_dir=str(tmp_path / "out"),
        learning_rate=1e-2,
    )  # fmt: skip
    assert (result.output_dir / "stage.json").is_file()
    assert "no picture (MemoryError: no room for a picture)" in capsys.readouterr().out


def test_nothing_of_pyplot_and_nothing_before_a_picture(tmp_path):
    """No window, no state that a notebook's own figures share, no second at every start."""
    code = (
        "import sys; from toolkit.artifacts import plots, plot_curves;"
        "assert 'matplotlib' not in sys.modules;"
        "import matplotlib; matplotlib.rcParams['font.size'] = 31.0;"
        "rows = [{'step': s, 'loss': 1.0 * s} for s in (1, 2)];"
        "from pathlib import Path;"
        "context = plots.style(); context.__enter__();"
        "plots.write(plots.training_figure('sft', rows), Path(sys.argv[1]));"
        "context.__exit__(None, None, None);"
        "assert 'matplotlib.pyplot' not in sys.modules;"
        "assert matplotlib.rcParams['font.size'] == 31.0"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "picture.png")], cwd=root, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
