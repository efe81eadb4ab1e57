"""Keys of pushing and reporting that are each right and together wrong."""

import pytest

from toolkit.errors import RecipeError
from toolkit.recipe import recipe_from_keywords

BASE = {"model_name_or_path": "a/b", "dataset_name": "a/c"}
GRPO = BASE | {"reward_funcs": ["answer"], "log_completions": True}
SAVING = {"push_to_hub": True, "hub_strategy": "checkpoint"}


@pytest.mark.parametrize(
    "name",
    ["a/b/c", "a/", "/b", "a--b", "a/b..c", "a/.b", "a/b-", "a/b.git", "a b", "ä/b", "x" * 97, ""],
)
def test_a_repository_that_the_hub_would_refuse(name):
    with pytest.raises(RecipeError, match="hub_model_id must be NAMESPACE/NAME or NAME"):
        recipe_from_keywords("sft", **BASE, hub_model_id=name)


@pytest.mark.parametrize("name", ["a/b", "b", "A_1/b.c-d", "x" * 96])
def test_a_repository_that_it_takes(name):
    assert recipe_from_keywords("sft", **BASE, hub_model_id=name).stages[0]["hub_model_id"] == name


@pytest.mark.parametrize(
    ("stage", "keys", "said"),
    [
        ("sft", BASE | SAVING | {"hub_private_repo": False}, "go to a private repository alone"),
        ("sft", BASE | SAVING | {"save_only_model": True}, "save_only_model: true does not save"),
        ("sft", BASE | SAVING | {"save_strategy": "no"}, "save_strategy: no saves nothing"),
        ("sft", BASE | SAVING | {"load_best_model_at_end": True}, "hub_strategy: all_checkpoints"),
        ("grpo", GRPO | {"report_to": "wandb"}, "would send prompts and completions to wandb"),
        ("ppo", GRPO | {"report_to": ["mlflow", "trackio"]}, "completions to trackio"),
        ("grpo", GRPO | {"report_to": "all"}, "completions to all"),
        ("grpo", GRPO | {"log_completions_hub_repo": "a/d"}, "to log_completions_hub_repo"),
    ],
)
def test_what_goes_against_one_another(stage, keys, said):
    with pytest.raises(RecipeError, match=said):
        recipe_from_keywords(stage, **keys)


@pytest.mark.parametrize(
    ("stage", "keys"),
    [
        ("sft", BASE | SAVING),
        ("sft", BASE | SAVING | {"push_to_hub": False, "hub_private_repo": False}),
        ("sft", BASE | {"push_to_hub": True, "hub_private_repo": False}),
        ("grpo", GRPO),
        ("grpo", GRPO | {"report_to": "tensorboard"}),
        ("grpo", GRPO | {"report_to": "wandb", "share_samples": True}),
    ],
)
def test_what_goes_together(stage, keys):
    recipe_from_keywords(stage, **keys)


def test_what_is_pushed_is_private_and_proved_unless_it_is_written():
    stage = recipe_from_keywords("sft", **BASE, push_to_hub=True).stages[0]
    assert (stage["hub_private_repo"], stage["hub_strategy"]) == (True, "end")
    assert stage.differing_defaults()["hub_strategy"] == ("end", "every_save")
    assert "hub_strategy" not in recipe_from_keywords("sft", **BASE).stages[0].differing_defaults()
