"""The model card: what a reader finds in it, and that the Hub's own rules accept it."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from toolkit.artifacts.card import About, model_card
from toolkit.artifacts.hub_names import WITHHELD, hiding, names_in
from toolkit.artifacts.lineage import lineage
from toolkit.artifacts.outgoing import allowed_files

SHA = "0123456789abcdef0123456789abcdef01234567"
ENVIRONMENT = {"libraries": {"torch": "2.13.0", "trl": "1.16.0"}}


def write_stage(run: Path, name: str, **about: Any) -> Path:
    """A finished stage as its manifest tells of it."""
    folder = run / name
    folder.mkdir(parents=True)
    recipe = {"stage": name, "name": name, "model_name_or_path": "org/base", **about.pop("recipe")}
    manifest = {
        "stage": name, "name": name, "recipe": recipe, "seed": 7, "seconds": 65.4, "device": "cuda",
        "processes": 2, "peak_memory_bytes": 3 << 30, "environment": ENVIRONMENT, "outputs": {},
        "base": {"name": "org/base", "commit": SHA}, "metrics": {"num_tokens": 12345.0, "steps": 40},
        **about,
    }  # fmt: skip
    (folder / "stage.json").write_text(json.dumps(manifest))
    config = {"peft_type": "LORA", "r": 8, "base_model_name_or_path": "org/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


@pytest.fixture
def grpo(tmp_path: Path) -> Path:
    """The last stage of a run of SFT, GRPO and an exam."""
    run = tmp_path / "runs" / "one"
    rows = [{"dataset_name": "org/chats", "revision": SHA, "split": "train", "rows": 2160}]
    sequences = {"train": {"mode": "the assistant's turns", "tokens": 900, "trained_tokens": 300}}
    write_stage(
        run, "sft", recipe={"dataset_name": "org/chats", "learning_rate": 0.003, "logging_steps": 4, "use_peft": True},
        data=rows, sequences=sequences, inputs={},
    )  # fmt: skip
    problems = str(tmp_path / "problems.jsonl")
    folder = write_stage(
        run, "grpo", recipe={"dataset_name": problems, "start_from": "sft", "max_steps": 36, "reward_funcs": ["answer"]},
        data=[{"dataset_name": problems, "revision": None, "split": "train", "rows": 480}],
        inputs={"from sft": "sha256:1"},
        verification={"verified": "fresh_load", "sequences": 4, "tokens": 225,
                      "largest_difference": 0.0, "tolerance": 1e-4},
    )  # fmt: skip
    row = {
        "task": "sums", "accuracy": 0.8742, "low": 0.81, "high": 0.92, "greedy": 0.9, "n": 160,
        "samples": 16,
    }  # fmt: skip
    (run / "exam").mkdir()
    exam = {
        "stage": "evaluate",
        "recipe": {"tasks": [{"name": "sums", "dataset_name": "org/sums"}]},
    }
    (run / "exam" / "stage.json").write_text(json.dumps(exam))
    found = [{"stage": "base", **row, "accuracy": 0.027}, {"stage": "grpo", **row}]
    (run / "exam" / "report.json").write_text(json.dumps({"exam": found}))
    recipe = {"output_dir": str(run), "stages": [{"stage": "sft"}, {"dataset_name": problems}]}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


LICENCES = {"org/base": "apache-2.0", "org/chats": "cc-by-4.0", "org/sums": "mit"}


def test_the_metadata_is_what_the_hub_indexes(grpo):
    card: Any = ModelCard(model_card(grpo, About("me/thing", LICENCES)))
    data = card.data.to_dict()
    assert data["base_model"] == "org/base"
    assert data["library_name"] == "peft"
    assert data["pipeline_tag"] == "text-generation"
    assert data["license"] == "apache-2.0"
    assert data["datasets"] == ["org/chats"]
    assert {"lora", "sft", "grpo", "trl"} <= set(data["tags"])
    assert card.data.eval_results is not None
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.metric_type, result.metric_value) == (
        "org/sums", "accuracy", 0.8742,
    )  # fmt: skip


def test_a_reader_can_repeat_the_run(grpo):
    text = model_card(grpo, About("me/thing", LICENCES))
    for words in (
        f"A LoRA adapter of rank 8 for `org/base` at `{SHA[:12]}`: supervised fine-tuning, then GRPO "
        "towards `answer`.",
        'AutoPeftModelForCausalLM.from_pretrained("me/thing")',
        f"| sft | supervised fine-tuning | `org/base` at `{SHA[:12]}` | `org/chats` at "
        f"`{SHA[:12]}`, train, 2,160 rows | the assistant's turns (300 of 900 tokens of one epoch) |",
        "| sft | 40 | 12,345 | 1 min 5 s | 2 × cuda | 3.0 GiB |",
        "| grpo | GRPO | sft | `problems.jsonl`, train, 480 rows | its own answers, by `answer` |",
        "- **sft**: `seed: 7`, `learning_rate: 0.003`, `use_peft: true`\n",
        '- **grpo**: `seed: 7`, `max_steps: 36`, `reward_funcs: ["answer"]`\n',
        "With torch 2.13.0, trl 1.16.0.",
        "| base | sums | 2.7 % (81.0 – 92.0 %) |",
        "| **grpo** | sums | 87.4 % (81.0 – 92.0 %) | 90.0 % | 160 × 16 |",
        "of 4 sequences, 225 numbers differ by 0 at most (allowed: 1e-04)",
        "| base | `org/base` | apache-2.0 |",
        "| data | `org/chats` | cc-by-4.0 |",
        "| data | `problems.jsonl` | not stated",
        "dataset_name: problems.jsonl",
        "It was trained to please a reward",
    ):
        assert words in text, words


def test_no_local_path_and_no_private_name(grpo, tmp_path):
    names = names_in(grpo, allowed_files(grpo))
    assert set(names) == {
        ("model", "org/base"), ("dataset", "org/chats"), ("dataset", "org/sums"),
    }  # fmt: skip
    about = About("me/thing", {"org/base": "mit"}, hiding(["org/chats"]))
    text = model_card(grpo, about)
    assert str(tmp_path) not in text
    assert "org/chats" not in text
    assert "`(a private repository)` at" in text
    assert "datasets" not in ModelCard(text).data.to_dict()


def test_every_repository_of_the_run_is_looked_up(grpo):
    """The recipe on the card is that of the whole run, stages beside the lineage included."""
    run = grpo.parent
    stages = [
        {"stage": "sft", "name": "sft", "dataset_name": "org/chats"},
        {"stage": "dpo", "name": "dpo", "start_from": "sft", "datasets": [{"path": "org/mix"}]},
        {
            "stage": "ppo", "name": "ppo", "start_from": "org/start",
            "reward_funcs": ["answer", {"name": "adapter:org/judge", "weight": 2}, "adapter:sft"],
            "value_start_from": "org/critic", "dataset_name": "problems.jsonl",
        },
        {"stage": "evaluate", "name": "exam", "of": ["base", "sft", "org/rival"],
         "tasks": [{"name": "sums", "few_shot": "org/shown"}, {"few_shot": [{"text": "a"}]}]},
    ]  # fmt: skip
    (run / "recipe.yaml").write_text(yaml.safe_dump({"stages": stages}))
    names = names_in(grpo, allowed_files(grpo))
    assert {name for kind, name in names if kind == "model"} == {
        "org/base", "org/start", "org/judge", "org/critic", "org/rival",
    }  # fmt: skip
    assert {name for kind, name in names if kind == "dataset"} == {
        "org/chats", "org/mix", "org/shown", "org/sums",
    }  # fmt: skip
    hidden = ["org/mix", "org/judge", "org/critic", "org/rival", "org/shown"]
    text = model_card(grpo, About("me/thing", LICENCES, hiding(hidden)))
    assert not [name for name in hidden if name in text]
    assert "org/chats" in text


def test_a_private_name_is_hidden_as_a_whole_word():
    rename = hiding(["org/base", "org/base-chat", "rows"])
    assert rename("org/base-chat over org/base.") == f"{WITHHELD} over {WITHHELD}."
    assert rename("org/base-7b my-org/base org/base.v2 480 rows") == (
        f"org/base-7b my-org/base org/base.v2 480 {WITHHELD}"
    )
    assert rename("adapter:org/base at 012") == f"adapter:{WITHHELD} at 012"
    assert hiding([])("org/base") == "org/base"


def test_a_policy_of_ppo_names_its_judge_and_does_not_come_from_it(grpo):
    run = grpo.parent
    write_stage(run, "reward", recipe={"start_from": "sft"}, inputs={"from sft": "sha256:1"},
                pairs={"train": {"pairs": 4770, "prompts": 335}})  # fmt: skip
    ppo = write_stage(
        run, "ppo", recipe={"start_from": "sft", "reward_funcs": ["adapter:reward"]},
        inputs={"from sft": "sha256:1", "from reward": "sha256:2"},
    )  # fmt: skip
    text = model_card(ppo, About("me/thing", LICENCES))
    assert "supervised fine-tuning, then PPO towards `adapter:reward`." in text
    assert "| reward | reward modelling | sft |" in text
    assert "which of two answers is better: 4,770 pairs, 335 prompts" in text
    tags = ModelCard(text).data.to_dict()["tags"]
    assert "ppo" in tags
    assert "reward" not in tags


def test_a_reward_model_is_measured_on_held_out_pairs(grpo):
    pairs = {"accuracy": 0.97768, "low": 0.949, "high": 0.99, "pairs": 3160, "prompts": 223}
    folder = write_stage(
        grpo.parent, "reward", recipe={}, metrics={"pairs": pairs, "num_tokens": None},
        data=[{"dataset_name": "org/chats", "revision": SHA, "rows": 10}],
    )  # fmt: skip
    card: Any = ModelCard(model_card(folder, About("me/thing", LICENCES)))
    assert "Of 3,160 pairs of answers to 223 prompts" in str(card)
    assert "97.8 % right (95 % interval 94.9 – 99.0 %" in str(card)
    assert card.data.eval_results is not None
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.dataset_revision, result.metric_value) == (
        "org/chats", SHA, 0.9777,
    )  # fmt: skip


def test_rows_that_an_earlier_stage_made_say_so_after_the_run_was_moved(grpo):
    run = grpo.parent
    write_stage(run, "rank", recipe={}, metrics={}, inputs={"from sft": "sha256:1"})
    (run / "rank" / "ranked.jsonl").write_text("")
    made = "/gone/one/rank/ranked.jsonl"
    dpo = write_stage(
        run, "dpo", recipe={"start_from": "sft", "dataset_name": made},
        data=[{"dataset_name": made, "rows": 9}],
        inputs={"from sft": "sha256:1", f"data {made}": "sha256:3"},
    )  # fmt: skip
    assert [stage["name"] for stage in lineage(dpo)] == ["sft", "rank", "dpo"]
    text = model_card(dpo, About("me/thing", LICENCES))
    assert "`ranked.jsonl` of stage rank, train, 9 rows" in text
    assert "| data | `ranked.jsonl`" not in text


def test_no_table_is_wide(grpo):
    """A page of the Hub shows some 110 letters; of a row's longest texts, which wrap, six words."""
    lines = model_card(grpo, About("me/thing", LICENCES)).splitlines()
    heads = [line for line, below in pairwise(lines) if below[:5] == "| ---"]
    assert len(heads) == 4
    assert all(head.count("|") <= 7 and len(head) < 80 for head in heads)


def test_an_adapter_that_was_trained_elsewhere(grpo):
    (grpo / "stage.json").unlink()
    text = model_card(grpo, About("me/thing", {}))
    assert "How it was trained is not recorded." in text
    assert "base_model:" not in text
    assert ModelCard(text).data.to_dict()["library_name"] == "peft"


def test_a_reward_adapter_is_loaded_as_a_classifier(grpo):
    config = json.loads((grpo / "adapter_config.json").read_text())
    (grpo / "adapter_config.json").write_text(json.dumps(config | {"task_type": "SEQ_CLS"}))
    text = model_card(grpo, About("me/thing", LICENCES))
    assert (
        'AutoPeftModelForSequenceClassification.from_pretrained("me/thing", num_labels=1)' in text
    )
    assert ModelCard(text).data.to_dict()["pipeline_tag"] == "text-classification"


def test_a_merged_model_keeps_the_lineage_of_its_adapter(grpo, tmp_path):
    merged = tmp_path / "merged"
    merged.mkdir()
    (merged / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    text = model_card(merged, About("me/thing", LICENCES), trained=grpo)
    data = ModelCard(text).data.to_dict()
    assert (data["library_name"], data["base_model"]) == ("transformers", "org/base")
    assert f"A model trained from `org/base` at `{SHA[:12]}`: supervised fine-tuning, then" in text
    assert 'AutoModelForCausalLM.from_pretrained("me/thing")' in text


def test_a_base_that_is_a_folder_is_said_to_be_one(grpo):
    config = json.loads((grpo / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "/home/me/my_base"
    (grpo / "adapter_config.json").write_text(json.dumps(config))
    text = model_card(grpo, About("me/thing", {}))
    assert "The base was a folder, `my_base`, and is not part of this repository" in text
    assert "base_model:" not in text
    assert "/home/me" not in text


def test_stages_that_name_one_another_end(grpo):
    sft = grpo.parent / "sft" / "stage.json"
    manifest = json.loads(sft.read_text())
    sft.write_text(json.dumps(manifest | {"inputs": {"from grpo": "sha256:2"}}))
    assert [stage["name"] for stage in lineage(grpo)] == ["sft", "grpo"]
