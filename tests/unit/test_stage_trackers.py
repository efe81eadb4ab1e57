"""What a tracker is shown of a run: no local paths, and no repository that not everybody may see."""

import json
from typing import Any

import pytest
from transformers import TrainerCallback

import toolkit
from tests.hub_stand_in import in_process
from toolkit.errors import RecipeError
from toolkit.recipe import recipe_from_keywords
from toolkit.stages import trackers


class Tracker(TrainerCallback):
    """Keeps all that transformers' callbacks of wandb, trackio and TensorBoard send."""

    def __init__(self):
        self.seen = []

    def see(self, args, state, control, model: Any = None, logs=None, **kwargs):
        adapters = {name: config.to_dict() for name, config in model.peft_config.items()}
        told = [args.to_dict(), args.to_sanitized_dict(), model.config.to_dict(), adapters, logs]
        text = args.to_json_string() + model.config.to_json_string()
        self.seen.append(json.dumps(told, default=str) + text)
        self.place = args.output_dir

    on_train_begin = on_log = see

    def on_save(self, args, state, control, **kwargs):
        self.saved = args


@pytest.fixture
def trained(tiny_base, chats, tmp_path, monkeypatch):
    """Trains with a tracker; gives it, and the trainer."""

    def run(**keys):
        tracker = Tracker()
        given = {
            "model_name_or_path": str(tiny_base), "dataset_name": str(chats), "lora_r": 4,
            "output_dir": str(tmp_path / "run"), "max_steps": 1, "run_name": str(tmp_path / "run"),
            "logging_steps": 1,
        }  # fmt: skip
        trainer = toolkit.build("sft", **given, callbacks=[tracker])
        recipe = recipe_from_keywords("sft", **given, **keys).stages[0]
        trainer.args.report_to = ["trackio"]
        monkeypatch.setattr(trackers, "get_reporting_integration_callbacks", lambda told: [Tracker])
        trackers.keep_private(trainer, recipe)
        trainer.train()
        return tracker, trainer

    return run


def test_paths_are_cut_down_to_their_last_part(trained, tiny_base, tmp_path):
    tracker, trainer = trained()
    assert len(tracker.seen) > 1
    for text in tracker.seen:
        for place in (str(tmp_path), str(tiny_base), str(tiny_base.parent)):
            assert place not in text
        assert '"_name_or_path": "base"' in text
        assert '"learning_rate": 0.0002' in text
    assert tracker.place == str(tmp_path / "run"), "where a tracker writes its own files"
    assert tracker.saved is trainer.args
    assert trainer.model.config._name_or_path == str(tiny_base), "only while it is shown"
    assert trainer.model.peft_config["default"].base_model_name_or_path == str(tiny_base)


def test_who_shares_samples_shows_all(trained, tmp_path):
    tracker, _ = trained(share_samples=True)
    assert all(str(tmp_path) in text for text in tracker.seen)


def test_repositories_that_not_everybody_may_see_have_no_name(monkeypatch):
    keys = {
        "model_name_or_path": "org/base", "start_from": "me/secret", "dataset_name": "a/b",
        "reward_funcs": ["answer", "adapter:me/judge", "adapter:runs/a/reward"],
    }  # fmt: skip
    recipe = recipe_from_keywords("grpo", **keys).stages[0]
    with in_process(monkeypatch) as hub:
        hub.add("org/base", {})
        hub.add("me/secret", {}, private=True)
        monkeypatch.setattr("toolkit.stages.trackers.HfApi", lambda: _api(hub))
        rename = trackers.renaming(recipe, "runs/grpo/it")
    assert rename("org/base") == "org/base"
    assert rename("me/secret") == "(a private repository)"
    assert rename("rewards/adapter:me/judge/mean") == "rewards/adapter:(a private repository)/mean"
    assert rename("rewards/adapter:runs/a/reward/mean") == "rewards/adapter:reward/mean"
    assert rename("runs/grpo/it") == "it"


def _api(hub):
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.endpoint)


def test_a_variable_that_sends_whole_folders_is_refused(trained, monkeypatch):
    monkeypatch.setitem(trackers.SENDS_FOLDERS, "trackio", "WANDB_LOG_MODEL")
    monkeypatch.setenv("WANDB_LOG_MODEL", "end")
    with pytest.raises(
        RecipeError, match="WANDB_LOG_MODEL asks trackio to send the model's folder"
    ):
        trained()
