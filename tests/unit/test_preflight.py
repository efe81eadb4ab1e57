"""`toolkit check`: what it finds in a recipe that is right, and the faults that are planted in others."""

import json
import re
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from tests import tiny
from toolkit import cli
from toolkit.errors import UsageError
from toolkit.preflight import checks, data, page, price, rewards
from toolkit.preflight.findings import ERROR, WARNING
from toolkit.preflight.fits import CUDA_RUNTIME
from toolkit.preflight.look import Options
from toolkit.recipe import load_recipe

SUMS = [{"question": f"What is {n} + 100?", "answer": str(n + 100)} for n in range(24)]


@pytest.fixture
def write(tiny_base, chats, tmp_path):
    """Writes a recipe of one stage, with keys changed or added."""

    def written(**changed):
        path = tmp_path / "recipe.yaml"
        return tiny.save_recipe(path, tiny_base, chats, **({"save_steps": 20} | changed))

    return written


@pytest.fixture
def grpo(write, tmp_path):
    """Writes a recipe of stage grpo with a reward."""

    def written(reward, rows=SUMS, **changed):
        data_path = tiny.save_rows(tmp_path / "sums.jsonl", rows)
        keys = {"stage": "grpo", "max_completion_length": 16} | changed
        return write(
            dataset_name=str(data_path), reward_funcs=[reward], num_generations=4, **keys
        )  # fmt: skip

    return written


def found(path, **options):
    return checks.check(load_recipe(path), Options(**options))


def lines(findings, level, subject):
    return [one.line for one in findings.found if one.level == level and one.subject == subject]


def test_a_recipe_that_is_right(write, capsys):
    assert (
        cli.main(["check", write(max_length=512), "--json", "--gpu", "RTX 4090", "--price", "0.4"])
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report["counts"]["error"] == 0
    facts = report["stages"]["sft"]
    assert facts["data"]["rows"] == len(tiny.ROWS)
    assert sum(bar["count"] for bar in facts["data"]["histogram"]) == len(tiny.ROWS)
    assert facts["data"]["duplicates"] == 0
    assert 0.1 < facts["data"]["trained_share"] < 0.9
    assert facts["template"]["mode"] == "exact"
    assert facts["schedule"] | {"tokens": 0} == {
        "steps": 60, "batch": 4, "tokens": 0, "warmup_steps": 0, "saves": 3, "evaluations": 0,
        "completions": 0,
    }  # fmt: skip
    assert facts["price"]["cost"]["likely"] == pytest.approx(
        facts["price"]["hours"]["likely"] * 0.4
    )
    assert facts["memory"]["peak"] >= facts["memory"]["base"]
    named = {one["subject"] for one in report["findings"]}
    assert named >= {"keys", "places", "data", "template", "memory", "schedule", "price"}


@pytest.mark.parametrize("width", [80, 120])
def test_the_report_fits_into_a_terminal(write, width):
    console = Console(width=width, record=True, file=open("/dev/null", "w"), color_system=None)  # noqa: SIM115
    with console.file:
        page.show(found(write(max_length=512)), console)
        text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    for word in ("✓ nothing stands in the way", "tokens", "█", "⟦Answer 0.", "peak of a step"):
        assert word in text, text


def test_errors_end_it_with_their_code_and_say_what_to_do(write, capsys):
    assert cli.main(["check", write(max_length=60)]) == 4
    printed = " ".join(capsys.readouterr().out.split())
    assert "lose their stop token" in printed
    assert "→ max_length:" in printed
    assert cli.main(["check", write(lora_r=-1), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["findings"][0]["exit_code"] == 3


def test_places_that_are_not_there(write):
    gone = found(write(model_name_or_path="./no/such"))
    assert gone.exit_code == 3
    assert "no such folder" in lines(gone, ERROR, "places")[0]
    offline = found(write(model_name_or_path="nobody/nothing"))
    assert offline.exit_code == 0
    assert "unchecked" in lines(offline, WARNING, "places")[0]


def test_a_file_that_is_missing_is_no_data_set_of_the_hub(write):
    gone = found(write(dataset_name="no/such.jsonl"))
    assert gone.exit_code == 4
    assert not lines(gone, WARNING, "places")
    assert "no such" in lines(gone, ERROR, "data")[0] or "no file" in lines(gone, ERROR, "data")[0]


def test_a_fault_is_told_once(write):
    odd = found(write(global_batch_size=7, max_length=512))
    assert odd.exit_code == 3
    assert len([one for one in odd.found if one.level == ERROR]) == 1


def test_more_tokens_than_positions(write, grpo, tmp_path):
    rows = [tiny.ROWS[0]["messages"][0], {"role": "assistant", "content": "and so on " * 900}]
    path = tiny.save_rows(tmp_path / "long.jsonl", [{"messages": rows}] * 4)
    long = found(write(dataset_name=str(path), max_length=None))
    assert long.exit_code == 3
    assert "positions" in lines(long, ERROR, "data")[0]
    answers = found(grpo("answer", max_completion_length=5000))
    assert "prompt with its completion" in lines(answers, ERROR, "data")[0]


def test_fewer_prompts_than_a_rollout_takes(grpo):
    few = found(grpo("answer", rows=SUMS[:2], generation_batch_size=64))
    assert few.exit_code == 3
    assert "takes 16 prompts, and there are 2" in lines(few, ERROR, "schedule")[0]


def test_a_full_disk(write, monkeypatch):
    monkeypatch.setattr("toolkit.preflight.places.free", lambda folder: 1000)
    full = found(write(max_length=512))
    assert full.exit_code == 5
    assert "are free" in lines(full, ERROR, "places")[0]


def test_copies_and_what_is_held_out_and_trained(write, tmp_path):
    path = tiny.save_rows(tmp_path / "twice.jsonl", tiny.ROWS * 2)
    twice = found(write(dataset_name=str(path), test_split_size=6, max_length=512))
    said = " ".join(lines(twice, WARNING, "data"))
    assert "copies of another; one is there 2 times" in said
    assert "held-out rows are training rows too" in said


def test_a_large_file_is_sampled_and_its_rows_keep_their_numbers(write, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "LARGE", 100)
    monkeypatch.setattr(data, "SAMPLE", 5)
    rows = [*tiny.ROWS[:20], {"messages": [{"role": "user", "content": "no answer"}]}]
    path = tiny.save_rows(tmp_path / "large.jsonl", rows * 1)
    few = found(write(dataset_name=str(path), max_length=512, max_bad_rows=1))
    assert few.facts["sft"]["data"]["rows"] == 21
    assert few.facts["sft"]["data"]["sampled"] <= 5
    assert any("of 21 rows" in line for line in lines(few, "ok", "data"))
    shown = few.samples["sft"][0].plain
    number = int(shown.partition("row ")[2].partition(" ")[0])
    assert str(path) in shown
    assert f"Question {number - 1}:" in shown


def test_a_template_that_cannot_be_trained(write, tmp_path):
    template = tmp_path / "lost.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content[:3] }}\n{% endfor %}")
    refused = found(write(chat_template_path=str(template), max_length=512))
    assert refused.exit_code == 4


def test_memory_that_does_not_fit_says_what_would(write):
    enough = found(write(max_length=512, per_device_train_batch_size=16), gpu="T4")
    peak = enough.facts["sft"]["memory"]["peak"]
    small = found(
        write(max_length=512, per_device_train_batch_size=16), gpu="T4", memory=int(peak * 0.95)
    )
    assert small.exit_code == 5
    error = next(one for one in small.found if one.level == ERROR)
    assert "fits" in error.fix
    assert "16 → " in error.fix
    assert "global_batch_size: 16" in error.fix
    none = found(write(max_length=512), gpu="T4", memory=1000)
    assert "a smaller base" in next(one for one in none.found if one.level == ERROR).fix


FIX = re.compile(r"(\w+)(?:: | \d+ → )(\w+)")


@pytest.mark.parametrize(
    ("stage", "keys", "share"),
    [
        ("sft", {"per_device_train_batch_size": 16}, 0.9),
        ("sft", {"per_device_train_batch_size": 4, "gradient_checkpointing": False}, 0.9),
        ("grpo", {"per_device_train_batch_size": 16, "generation_batch_size": 32}, 0.8),
    ],
)
def test_what_is_said_to_fit_does(write, grpo, stage, keys, share):
    def checked(memory=None, **more):
        given = {"max_length": 512} | keys | more if stage == "sft" else keys | more
        path = write(**given) if stage == "sft" else grpo("answer", **given)
        return found(path, gpu="T4", memory=memory)

    before = checked().facts[stage]
    memory = int(CUDA_RUNTIME + (before["memory"]["peak"] - CUDA_RUNTIME) * share)
    error = next(one for one in checked(memory).found if one.level == ERROR)
    fix = {key: yaml.safe_load(value) for key, value in FIX.findall(error.fix.partition("(")[0])}
    assert fix, error.fix
    after = checked(memory, **fix)
    assert after.exit_code == 0, (fix, after.found)
    assert after.facts[stage]["memory"]["peak"] <= memory
    for same in ("batch", "steps"):  # the same global batch
        assert after.facts[stage]["schedule"][same] == before["schedule"][same]


def test_exam_questions_that_are_trained(write, tmp_path):
    rows = [{"question": f"Question {n}: what?", "answer": "1"} for n in (1, 2)]
    asked = tiny.ROWS[3]["messages"][-2]["content"]
    path = tiny.save_rows(tmp_path / "exam.jsonl", [*rows, {"question": asked, "answer": "1"}])
    keys = yaml.safe_load(Path(write(max_length=512)).read_text(encoding="utf-8"))
    keys.pop("stage")
    stages = [{"stage": "sft"}, {"stage": "evaluate", "tasks": [{"dataset_name": str(path)}]}]
    recipe = tmp_path / "examined.yaml"
    recipe.write_text(yaml.safe_dump(keys | {"stages": stages}), encoding="utf-8")
    (said,) = lines(found(str(recipe)), WARNING, "data")
    assert "1 of its questions are among the prompts of stage sft" in said


def test_a_stage_that_trains_on_its_own_exam(grpo, tmp_path):
    asked = [{"question": SUMS[0]["question"], "answer": "1"}, {"question": "why?", "answer": "1"}]
    tasks = [{"dataset_name": str(tiny.save_rows(tmp_path / "exam.jsonl", asked))}]
    said = lines(found(grpo("answer", stage="rejection", tasks=tasks)), WARNING, "data")
    assert any("1 of its questions are among the prompts of stage rejection" in one for one in said)


def test_rewards_that_are_right(grpo):
    good = found(grpo("answer"))
    assert good.exit_code == 0, good.found
    values = good.facts["grpo"]["rewards"]["answer"]
    assert max(values[f"gold {form}"]["mean"] for form in range(4)) == 1.0
    assert values["wrong"]["highest"] == values["hostile"]["highest"] == 0.0
    assert (
        found(grpo({"name": "length", "max_completion_len": 20, "soft_punish_cache": 5})).exit_code
        == 0
    )


REWARDS = """
def never(completions, **columns):
    return [0.0 for _ in completions]

def nonsense(completions, **columns):
    return [len(str(one)) / 1e6 for one in completions]

def breaks(completions, **columns):
    return [1.0 / len(one[-1]["content"].split()[0]) for one in completions]

def nothing(completions, **columns):
    return [None for _ in completions]
"""


@pytest.mark.parametrize(
    ("name", "level", "said"),
    [
        ("never", ERROR, "gives 0.0 to all 8 gold answers"),
        ("nonsense", WARNING, "nonsense gets more than gold answers"),
        ("breaks", ERROR, "raised IndexError"),
        ("nothing", ERROR, "scores none of"),
    ],
)
def test_rewards_with_a_fault(grpo, tmp_path, name, level, said):
    file = tmp_path / "mine.py"
    file.write_text(REWARDS)
    report = found(grpo(f"{file}:{name}"))
    assert any(said in line for line in lines(report, level, "rewards")), report.found
    assert (report.exit_code != 0) == (level == ERROR)


def test_a_wrong_answer_is_not_another_that_ends_in_the_same_number():
    assert rewards.same("So it is 12.", "We get 12")
    assert not rewards.same("12", "13")
    assert not rewards.same("red", "blue")
    golds = ["6 is half of 12", "so 12", "it is 7"]
    assert rewards.completions(golds, 3)["wrong"] == [rewards.WRONG, "it is 7", golds[0]]


def test_a_proxy_beside_a_gold_check_may_give_nothing_to_gold_answers(grpo, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(REWARDS)
    proxy = found(grpo(f"{file}:never", gold_funcs=["answer"]))
    assert proxy.exit_code == 0, proxy.found
    assert any("gives 0.0 to all 8 gold" in line for line in lines(proxy, WARNING, "rewards"))
    gold = found(grpo("answer", gold_funcs=[f"{file}:never"]))
    assert gold.exit_code == 4


def test_a_pipeline_whose_stages_are_to_come(grpo, write, tmp_path, capsys):
    stages = [
        {"stage": "sft"},
        {"stage": "grpo", "start_from": "sft", "dataset_name": str(tmp_path / "sums.jsonl"),
         "reward_funcs": ["answer"], "num_generations": 4, "max_completion_length": 16},
    ]  # fmt: skip
    grpo("answer")
    keys = yaml.safe_load(Path(write(max_length=512)).read_text(encoding="utf-8"))
    keys.pop("stage")
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(keys | {"stages": stages}))
    report = found(str(path), step=True)
    assert report.exit_code == 0, report.found
    assert "has to be run first" in lines(report, WARNING, "step")[0]
    assert "one step: loaded" in lines(report, "ok", "step")[0]
    assert not (tmp_path / "run").exists()


def test_timed_steps(write):
    timed = found(write(max_length=512), time=True)
    facts = timed.facts["sft"]["schedule"]
    assert len(facts["seconds_per_step"]) == 4
    assert facts["hours"] == pytest.approx(sum(facts["seconds_per_step"][1:]) / 3 * 60 / 3600)


def test_devices_by_name():
    assert price.device_named("NVIDIA GeForce RTX 4090").flops == 165.2e12
    assert price.device_named("a100").memory == 40
    assert price.device_named("H100").name == "H100 PCIe"
    with pytest.raises(UsageError, match="known: RTX 3090"):
        price.device_named("GTX 1080")


def test_hours_shrink_with_devices(write):
    path = write(max_length=512)
    one, two = (found(path, gpu="L4", devices=n).facts["sft"]["price"]["hours"] for n in (1, 2))
    assert one["likely"] == pytest.approx(2 * two["likely"])
    assert one["low"] < one["likely"] < one["high"]


def test_the_command_line(write, capsys):
    assert cli.main(["check", write(), "--gpu", "abacus"]) == 2
    assert "not in the table" in capsys.readouterr().err
