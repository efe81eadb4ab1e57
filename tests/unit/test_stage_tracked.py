"""Which run of a tracker a stage writes to: one group per pipeline, the same run on resume."""

import os
import sys
from types import SimpleNamespace

import pytest

from toolkit.recipe import recipe_from_keywords
from toolkit.stages.tracked import tracked

VARIABLES = ("WANDB_RUN_GROUP", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_NAME")


class TensorBoardCallback:
    logging_dir = None


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def seen(folder, checkpoint=None, run_name=None, report_to=("wandb",)):
    """What trackers are told inside the block: variables, the run's name, TensorBoard's folder."""
    board = TensorBoardCallback()
    trainer = SimpleNamespace(
        args=SimpleNamespace(output_dir=str(folder), report_to=report_to, run_name=run_name),
        callback_handler=SimpleNamespace(callbacks=[SimpleNamespace(tracker=board)]),
    )
    recipe = recipe_from_keywords("sft", model_name_or_path="x", dataset_name="y").stages[0]
    with tracked(trainer, recipe, checkpoint):
        found = {name: os.environ.get(name) for name in VARIABLES}
    return found | {"run_name": trainer.args.run_name, "folder": board.logging_dir}


def test_stages_of_a_pipeline_are_one_group_and_a_run_each(tmp_path):
    run = tmp_path / "quick"
    run.mkdir()
    (run / "recipe.yaml").touch()
    found = seen(run / "sft")
    assert found["WANDB_RUN_GROUP"] == "quick"
    assert found["WANDB_NAME"] == found["run_name"]
    assert str(found["run_name"]).startswith("quick-sft-")
    assert found["folder"] == str(run / "sft" / "tensorboard")
    assert not set(VARIABLES) & os.environ.keys(), "the next stage has its own"


def test_who_goes_on_goes_on_in_the_same_run_and_who_begins_anew_in_another(tmp_path):
    first = seen(tmp_path / "sft")
    again = seen(tmp_path / "sft", checkpoint=tmp_path / "checkpoint-4")
    anew = seen(tmp_path / "sft")
    assert first == again
    assert first["WANDB_RUN_GROUP"] == "sft"
    assert first["WANDB_RUN_ID"] != anew["WANDB_RUN_ID"]
    assert first["WANDB_RESUME"] == "allow"


def test_what_the_user_has_set_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    found = seen(tmp_path / "sft", run_name="named")
    assert (found["WANDB_RUN_ID"], found["run_name"]) == ("mine", "named")
    assert os.environ["WANDB_RUN_ID"] == "mine"


def test_a_run_is_ended_with_its_stage_unless_the_user_began_it(tmp_path, monkeypatch):
    ended = []
    wandb = SimpleNamespace(run=None, finish=lambda: ended.append(True))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    seen(tmp_path / "sft")
    assert ended == [True]
    wandb.run = "begun in Python"
    seen(tmp_path / "sft")
    assert ended == [True]


def test_without_a_tracker_nothing_is_written(tmp_path):
    assert seen(tmp_path / "sft", report_to=())["WANDB_RUN_ID"] is None
    assert not (tmp_path / "sft").exists()
