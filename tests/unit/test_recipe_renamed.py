"""Every key that upstream renamed or removed is answered with what to write instead."""

import re

import pytest

from toolkit.errors import RecipeError
from toolkit.recipe import STAGES, keys_of, load_recipe, recipe_from_keywords
from toolkit.recipe.renamed import NEIGHBOURS, TABLE
from toolkit.recipe.resolve import _unknown
from toolkit.recipe.values import Given, convert

CASES = [(entry, stage) for entry in TABLE for stage in entry.stages]


@pytest.mark.parametrize(("entry", "stage"), CASES, ids=[f"{e.old}-{s}" for e, s in CASES])
def test_entry(entry, stage):
    assert entry.old not in keys_of(stage), "TRL knows this key: the entry is wrong"
    message = _unknown(entry.old, Given(0.1, "x.yaml:3", "file"), stage)
    assert message.startswith(f"x.yaml:3: '{entry.old}' was re")
    assert "{" not in message or "{" in entry.write
    if entry.successor is None:
        assert message == f"x.yaml:3: '{entry.old}' was removed: {entry.write}"
    else:
        assert entry.successor in keys_of(stage)
        assert f"was renamed: write '{entry.successor}: " in message


@pytest.mark.parametrize(("word", "key"), NEIGHBOURS.items())
def test_words_of_other_tools(word, key):
    stages = [stage for stage in STAGES if key in keys_of(stage)]
    assert stages
    for stage in stages:
        if word not in keys_of(stage):
            assert _unknown(word, Given(1, "x", "file"), stage).endswith(f"did you mean '{key}'?")


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("torch_dtype: bfloat16", "'torch_dtype' was renamed: write 'dtype: bfloat16'"),
        ("warmup_ratio: 0.1", "'warmup_ratio' was renamed: write 'warmup_steps: 0.1'"),
        ("max_seq_length: 512", "'max_seq_length' was renamed: write 'max_length: 512'"),
        (
            "evaluation_strategy: steps",
            "'evaluation_strategy' was renamed: write 'eval_strategy: steps'",
        ),
        ("no_cuda: true", "'no_cuda' was renamed: write 'use_cpu: true'"),
        ("adafactor: true", "'adafactor' was renamed: write 'optim: adafactor'"),
        (
            "gradient_checkpointing_use_reentrant: false",
            "write 'gradient_checkpointing_kwargs: {use_reentrant: false}'",
        ),
    ],
)
def test_in_a_file_with_the_line(tmp_path, line, answer):
    path = tmp_path / "x.yaml"
    for text, number in (
        (f"stage: sft\nmodel_name_or_path: m\n{line}\n", 3),
        (f"{line}\nstages:\n  - stage: sft\n", 1),
        (f"stages:\n  - stage: sft\n    {line}\n", 3),
    ):
        path.write_text(text)
        with pytest.raises(RecipeError, match=re.escape(answer)) as error:
            load_recipe(path)
        assert str(error.value).startswith(f"{path}:{number}: ")


@pytest.mark.parametrize(
    "keys", [{"warmup_steps": 0.1}, {"warmup_steps": 100}, {"optim": "adafactor"}, {"use_cpu": True},
             {"train_sampling_strategy": "group_by_length"}, {"include_for_metrics": ["inputs"]},
             {"debug": "tpu_metrics_debug"}, {"fsdp": True}, {"attn_implementation": "flash_attention_2"}]
)  # fmt: skip
def test_what_the_table_says_to_write_is_accepted(keys):
    recipe_from_keywords("sft", model_name_or_path="m", dataset_name="d", **keys)
    assert "sft" in STAGES


def test_values_for_stages_that_are_not_built_yet():
    rpo = convert(keys_of("dpo")["loss_weights"], Given([1.0, 0.5], "x", "file"))
    assert rpo == [1.0, 0.5]
    assert convert(keys_of("dpo")["loss_type"], Given("sigmoid", "x", "file")) == ["sigmoid"]
    assert convert(keys_of("grpo")["vllm_mode"], Given("colocate", "x", "file")) == "colocate"
