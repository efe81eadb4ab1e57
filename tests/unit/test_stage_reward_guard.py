"""The guard against a gamed reward, in real trainings of a tiny model against a proxy with a hole."""

import json
import shutil

import pytest
from safetensors.torch import load_file

import toolkit
from tests import hacked
from tests.exams import train_reward, train_sft
from tests.tiny_ppo import quiet
from toolkit.errors import RecipeError, TrainingError
from toolkit.recipe import recipe_from_keywords
from toolkit.stages import hacking, reward_guard
from toolkit.stages.hacking import Fall, Rollout

pytestmark = quiet
GOLD = "gold/odd_and_new/mean"


def entries(folder):
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def curve(folder, key):
    return [entry[key] for entry in entries(folder) if key in entry]


def same_adapter(one, other):
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    return one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hacked")


@pytest.fixture(scope="module")
def unguarded(tiny_base, folder):
    """The whole training, in which the guard only warns."""
    return toolkit.grpo(**hacked.keys(tiny_base, folder / "warned"))


@pytest.fixture(scope="module")
def guarded(tiny_base, folder):
    """The same with `guard: stop`."""
    return toolkit.grpo(**hacked.keys(tiny_base, folder / "stopped", guard="stop"))


def test_without_the_guard_the_proxy_rises_while_gold_falls(unguarded):
    reward, gold = (curve(unguarded.output_dir, key) for key in ("reward", GOLD))
    best = max(gold)
    assert sum(reward[-4:]) / 4 > sum(reward[:4]) / 4 + 0.2
    assert sum(gold[-4:]) / 4 < best - 0.1
    names = [one["name"] for one in unguarded.manifest["diagnoses"]]
    assert names.count("gold_falls") == 1
    told = next(one for one in unguarded.manifest["diagnoses"] if one["name"] == "gold_falls")
    assert "the reward is being gamed" in told["message"]
    assert "the best checkpoint by gold is checkpoint-" in told["message"]
    assert told["step"] < 32, "it is told before the end"
    assert unguarded.metrics["steps"] == 32, "and training goes on"


def test_with_the_guard_the_best_checkpoint_by_gold_is_the_result(unguarded, guarded):
    found, last = guarded.manifest["guard"], unguarded.manifest["guard"]["last"]["gold"]
    taken = guarded.output_dir / found["took"]
    assert found["stopped_at"] < 32
    assert same_adapter(guarded.output_dir, taken)
    assert not same_adapter(guarded.output_dir, unguarded.output_dir)
    golds = curve(unguarded.output_dir, GOLD)
    step = int(found["took"].rpartition("-")[2])
    assert golds[step] > last + 0.1, "what that policy earns when it samples next"
    saved = [int(path.name.rpartition("-")[2]) for path in guarded.output_dir.glob("checkpoint-*")]
    history = [Rollout(at, 0.0, gold) for at, gold in enumerate(golds[: found["stopped_at"]])]
    assert step == hacking.best_of(history, saved)[0]


def test_what_is_measured_changes_nothing_that_is_trained(unguarded, tiny_base, folder):
    keys = hacked.keys(tiny_base, folder / "plain", guard="none", max_steps=4)
    keys.pop("gold_funcs")
    plain = toolkit.grpo(**keys)
    assert same_adapter(plain.output_dir, unguarded.output_dir / "checkpoint-4")
    assert not [key for entry in entries(plain.output_dir) for key in entry if "guard/" in key]


def test_a_stage_that_goes_on_stops_at_the_same_step_with_the_same_result(
    guarded, tiny_base, folder
):
    again = folder / "again"
    shutil.copytree(guarded.output_dir, again)
    shutil.copy(again / "stage.json", folder / "stage.json")
    manifest = json.loads((again / "stage.json").read_text())
    (again / "started.json").write_text(json.dumps(manifest["inputs"]))
    (again / "stage.json").unlink()
    for path in again.glob("checkpoint-*"):
        if path.name != "checkpoint-8":
            shutil.rmtree(path)
    state = json.loads((again / "checkpoint-8" / "trainer_state.json").read_text())
    if state["best_model_checkpoint"]:  # it was written beside the first run's
        shutil.copytree(
            guarded.output_dir / "checkpoint-4", again / "checkpoint-4", dirs_exist_ok=True
        )
    resumed = toolkit.grpo(**hacked.keys(tiny_base, again, guard="stop"))
    assert resumed.manifest["guard"] == manifest["guard"]
    assert same_adapter(resumed.output_dir, guarded.output_dir)


def test_a_reward_that_is_gold_itself_is_left_alone(tiny_base, tmp_path, capsys):
    keys = hacked.keys(tiny_base, tmp_path / "run", guard="stop", max_steps=14)
    keys |= {"reward_funcs": [hacked.odd_and_new]}
    found = toolkit.grpo(**keys)
    assert "stopped_at" not in found.manifest["guard"]
    assert "gold_falls" not in [one["name"] for one in found.manifest["diagnoses"]]
    assert found.metrics["steps"] == 14
    assert "gold fell" not in capsys.readouterr().out


def at_three(rollouts):
    return Fall(1, (1.0, 0.5), (1.0, 2.0), 0.1) if len(rollouts) >= 3 else None


def test_ppo_takes_its_critic_back_too(tiny_base, tmp_path, monkeypatch):
    monkeypatch.setattr(hacking, "fallen", at_three)
    monkeypatch.setattr(hacking, "gold_at", lambda rollouts, step: -step)
    keys = hacked.keys(tiny_base, tmp_path / "run", guard="stop", max_steps=5)
    keys |= {"save_steps": 1, "num_generations": 1, "num_iterations": 1, "lora_alpha": 8}
    keys["train_dataset"] = [*hacked.PROMPTS] * 6
    found = toolkit.ppo(**keys)
    assert (found.manifest["guard"]["took"], found.metrics["steps"]) == ("checkpoint-1", 3)
    for part in ("", "value"):
        assert same_adapter(tmp_path / "run" / part, tmp_path / "run" / "checkpoint-1" / part)
        assert not same_adapter(tmp_path / "run" / part, tmp_path / "run" / "checkpoint-3" / part)


def test_held_out_prompts_are_what_counts_where_there_are_some(tiny_base, tmp_path, monkeypatch):
    monkeypatch.setattr(hacking, "fallen", at_three)
    keys = hacked.keys(tiny_base, tmp_path / "run", guard="stop", max_steps=8, save_steps=2)
    keys |= {"eval_dataset": [{"prompt": "seven"}, {"prompt": "eight"}], "eval_steps": 2}
    keys |= {"eval_strategy": "steps", "per_device_eval_batch_size": 16, "save_total_limit": 1}
    found = toolkit.grpo(**keys)
    assert found.manifest["guard"]["stopped_at"] == 6, "the third evaluation"
    assert found.manifest["guard"]["rollouts"] == 3, "two batches of 16 are one"
    assert found.manifest["guard"]["took"] in ("checkpoint-2", "checkpoint-4")
    assert (tmp_path / "run" / found.manifest["guard"]["took"]).is_dir(), "the limit spares it"
    assert f"eval_{GOLD}" in {key for entry in entries(tmp_path / "run") for key in entry}


def test_a_stop_before_the_first_checkpoint_is_one_clear_error(tiny_base, tmp_path, monkeypatch):
    monkeypatch.setattr(reward_guard.hacking, "fallen", at_three)
    keys = hacked.keys(tiny_base, tmp_path / "run", guard="stop", max_steps=8, save_steps=5)
    with pytest.raises(TrainingError, match=r"before there is a checkpoint .* write a smaller"):
        toolkit.grpo(**keys)


def test_checkpoints_that_would_come_too_late_are_refused(tiny_base, tmp_path):
    keys = hacked.keys(tiny_base, tmp_path / "run", guard="stop", max_steps=8, save_steps=8)
    with pytest.raises(RecipeError, match="with save_steps 8 none is written before the last of 8"):
        toolkit.grpo(**keys)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "there is no gold check; write gold_funcs"),
        ({"gold_funcs": ["answer"], "save_strategy": "no"}, "save_strategy: no writes none"),
        ({"gold_funcs": ["answer"], "load_best_model_at_end": True}, "leave one of the two out"),
        ({"gold_funcs": ["adapter:nobody"]}, "gold_funcs names 'nobody'"),
        ({"gold_funcs": ["answer"], "guard": "halt"}, "guard"),
    ],
)
def test_keys_that_promise_what_cannot_be_are_refused(keys, words):
    given = {"model_name_or_path": "x", "dataset_name": "x.jsonl", "reward_funcs": ["answer"]}
    with pytest.raises(RecipeError, match=words):
        recipe_from_keywords("grpo", **given | {"guard": "stop"} | keys)


def test_a_second_reward_adapter_is_gold(tiny_base, tmp_path):
    """What it gives as gold is what it gives as the reward, of the same first rollout."""
    sft = train_sft(tiny_base, tmp_path / "sft")
    one, other = (
        train_reward(tiny_base, sft, tmp_path / name, seed=seed)
        for seed, name in enumerate(("one", "other"))
    )
    chats = [{"prompt": [{"role": "user", "content": f"What is {each}?"}]} for each in range(6)]
    keys = hacked.keys(tiny_base, tmp_path / "x") | {
        "train_dataset": chats, "start_from": str(sft), "max_steps": 2, "save_strategy": "no",
    }  # fmt: skip
    keys.pop("lora_r")
    rewards, golds = [f"adapter:{one}"], [f"adapter:{other}"]
    of = {"output_dir": str(tmp_path / "both")}
    both = toolkit.grpo(**keys | of | {"reward_funcs": rewards, "gold_funcs": golds})
    of = {"output_dir": str(tmp_path / "swapped")}
    swapped = toolkit.grpo(**keys | of | {"reward_funcs": golds, "gold_funcs": rewards})
    gold = curve(both.output_dir, f"gold/{golds[0]}/mean")[0]
    assert gold == pytest.approx(curve(swapped.output_dir, f"rewards/{golds[0]}/mean")[0], rel=1e-5)
    assert gold != pytest.approx(curve(both.output_dir, "reward")[0], rel=1e-3)
    assert curve(both.output_dir, "guard/agreement")
