"""TRL's configuration: what an optimizer step sees does not depend on the number of devices."""

import pytest

from toolkit.errors import RecipeError
from toolkit.recipe import recipe_from_keywords
from toolkit.stages.arguments import batch_arguments


def batch(monkeypatch, devices: int, **keys) -> tuple[int, int]:
    monkeypatch.setenv("WORLD_SIZE", str(devices))
    recipe = recipe_from_keywords("sft", model_name_or_path="x", dataset_name="y", **keys)
    found = batch_arguments(recipe.stages[0])
    each, accumulated = found["per_device_train_batch_size"], found["gradient_accumulation_steps"]
    assert each * accumulated * devices == keys["global_batch_size"]
    return each, accumulated


@pytest.mark.parametrize(
    ("devices", "wanted", "each", "formed"),
    [
        (1, 16, 4, (4, 4)),
        (2, 16, 4, (4, 2)),
        (2, 16, 16, (8, 1)),  # as much as a device holds at most
        (8, 16, 16, (2, 1)),
        (1, 8, 16, (8, 1)),
        (1, 12, None, (6, 2)),  # TRL's 8 does not divide it
        (3, 12, None, (4, 1)),
        (1, 7, None, (7, 1)),
    ],
)
def test_accumulation_is_derived(devices, wanted, each, formed, monkeypatch):
    keys = {} if each is None else {"per_device_train_batch_size": each}
    assert batch(monkeypatch, devices, global_batch_size=wanted, **keys) == formed


@pytest.mark.parametrize(
    ("devices", "wanted", "each", "nearest"),
    [(1, 6, 4, 8), (3, 16, 4, 12), (8, 4, 1, 8), (2, 7, None, 6)],
)
def test_what_cannot_be_formed_is_refused_with_the_nearest(
    devices, wanted, each, nearest, monkeypatch
):
    keys = {} if each is None else {"per_device_train_batch_size": each}
    with pytest.raises(RecipeError, match=rf"nearest that can is {nearest}$"):
        batch(monkeypatch, devices, global_batch_size=wanted, **keys)


def test_accumulation_that_contradicts_is_refused(monkeypatch):
    with pytest.raises(RecipeError, match="asks for gradient_accumulation_steps 2"):
        batch(
            monkeypatch, 1, global_batch_size=8, per_device_train_batch_size=4,
            gradient_accumulation_steps=3,
        )  # fmt: skip


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_a_rollout_that_would_depend_on_the_devices_is_refused(stage):
    keys = {"model_name_or_path": "x", "dataset_name": "y", "reward_funcs": ["answer"]}
    keys |= {"global_batch_size": 8, "steps_per_generation": 2}
    (recipe,) = recipe_from_keywords(stage, **keys).stages
    with pytest.raises(RecipeError, match="write generation_batch_size, in completions"):
        batch_arguments(recipe)
