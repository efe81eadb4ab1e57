"""What counts as an input: whatever changes what a stage gives changes its inputs, and no more."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, EarlyStoppingCallback, TrainerCallback

from tests import tiny
from toolkit.artifacts.inputs import inputs_of, object_identity
from toolkit.artifacts.manifest import MANIFEST, changed_inputs, write_json
from toolkit.errors import RecipeError
from toolkit.recipe import recipe_from_keywords


def given(stage="sft", **keys):
    recipe = recipe_from_keywords(stage, model_name_or_path="somebody/base", **keys)
    return inputs_of(recipe.stages[0], {}, {})


@pytest.mark.parametrize("change", ["rows", "mixture", "template"])
def test_a_file_that_changed_is_another_input(change, tmp_path):
    file = tiny.save_rows(tmp_path / "rows.jsonl", tiny.ROWS)
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages }}")
    keys = {
        "rows": {"dataset_name": str(file)},
        "mixture": {"datasets": [{"path": "json", "data_files": [str(file)]}]},
        "template": {"dataset_name": "somebody/rows", "chat_template_path": str(template)},
    }[change]
    before = given(**keys)
    assert given(**keys) == before
    if change == "template":
        template.write_text("{{ messages[0] }}")
    else:
        tiny.save_rows(file, tiny.ROWS[:-1])
    assert given(**keys) != before


def test_what_is_shown_or_where_it_goes_is_no_input(tmp_path):
    keys = {"dataset_name": "somebody/rows", "learning_rate": 1e-4}
    before = given(**keys)
    assert given(**keys, logging_steps=3, save_steps=7, output_dir=str(tmp_path)) == before
    assert given(**keys | {"learning_rate": 2e-4}) != before


def test_rows_given_to_a_task_count_by_their_content():
    def exam(answer):
        rows = Dataset.from_list([{"question": "1 + 1?", "answer": answer}])
        return given("evaluate", tasks=[{"name": "sums", "rows": rows}])

    assert exam("2") == exam("2")
    assert exam("2") != exam("3")


def test_a_model_and_a_tokenizer_count_by_what_they_hold(tiny_base):
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    words = tiny.tokenizer()
    before = object_identity(model), object_identity(words)
    assert (object_identity(model), object_identity(words)) == before
    with torch.no_grad():
        model.lm_head.weight[3, 5] += 1e-3
    words.chat_template = "{{ messages }}"
    assert object_identity(model) != before[0]
    assert object_identity(words) != before[1]


def test_an_exam_depends_on_every_earlier_stage_unless_it_names_them(tmp_path):
    def exam(**keys):
        recipe = recipe_from_keywords(
            "evaluate",
            model_name_or_path="somebody/base",
            tasks=[{"name": "a", "rows": []}],
            **keys,
        )
        return inputs_of(recipe.stages[0], {"sft": tmp_path, "second": tmp_path}, {})

    assert {"from sft", "from second"} <= exam().keys()
    assert "from sft" not in exam(of=["base"])


class Stop(TrainerCallback):
    def __init__(self, at):
        self.at = at
        self.seen = 0


class Other(TrainerCallback):
    pass


def test_callbacks_count_by_their_class_and_settings():
    one = Stop(3)
    before = object_identity([one])
    assert object_identity((Stop(3),)) == before
    others = [[], [Stop(4)], [Other()], [Stop], [one, Other()], [EarlyStoppingCallback(3)]]
    found = {before, *(object_identity(callbacks) for callbacks in others)}
    assert len(found) == 1 + len(others)
    assert object_identity([EarlyStoppingCallback(2)]) != object_identity(
        [EarlyStoppingCallback(3)]
    )
    one.seen += 1
    assert object_identity([one]) == before


def test_streamed_rows_are_no_model():
    streamed = Dataset.from_list(tiny.ROWS).to_iterable_dataset()
    assert object_identity(streamed) == "IterableDataset"


def test_an_adapter_is_continued_over_the_weights_it_was_trained_over(tmp_path):
    base = tiny.save_base(tmp_path / "base")
    keys = {"model_name_or_path": str(base), "dataset_name": "somebody/rows"}

    def inputs(**more):
        return inputs_of(recipe_from_keywords("sft", **keys, **more).stages[0], {}, {})

    before, adapter = inputs(), tmp_path / "adapter"
    adapter.mkdir()
    inputs(start_from=str(adapter))  # no manifest: nothing is known
    write_json(adapter / MANIFEST, {"inputs": before, "outputs": {}})
    (base / "generation_config.json").write_text("{}")
    changed = changed_inputs(before, inputs())
    assert changed == [f"base {base}: its content changed"]
    inputs(start_from=str(adapter))  # what an adapter stands on is the weights alone
    tiny.save_base(base, seed=5)
    with pytest.raises(RecipeError, match=r"are not those that .* was trained over; put them back"):
        inputs(start_from=str(adapter))
