"""Skip, overwrite, hand over: what a run does with what is already on disk."""

import json

import pytest
from safetensors.torch import load_file

import toolkit
from tests import tiny
from toolkit.errors import HubError, RecipeError, TrainingError
from toolkit.models import proof
from toolkit.pipeline import one_line


def sft(base, rows, directory, **keys):
    settings = {
        "model_name_or_path": str(base), "dataset_name": str(rows), "output_dir": str(directory),
        "lora_r": 4, "max_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1,
    } | keys  # fmt: skip
    return toolkit.sft(**settings)


def test_a_stage_leaves_what_the_design_promises(tiny_base, chats, tmp_path, capsys):
    result = sft(tiny_base, chats, tmp_path / "run", test_split_size=0.25, eval_strategy="epoch")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names >= {
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja",
        "README.md", "stage.json", "log.jsonl", "recipe.yaml", "generation_config.json",
    }  # fmt: skip
    assert not names & {"training_args.bin", "started.json"}
    manifest = json.loads((tmp_path / "run" / "stage.json").read_text())
    assert manifest == json.loads(json.dumps(result.manifest, default=str))
    assert manifest["verification"]["verified"] == "fresh_load"
    assert manifest["base"]["name"] == str(tiny_base)
    assert manifest["data"][0] | {"dataset_name": str(chats), "rows": 24} == manifest["data"][0]
    assert manifest["sequences"]["eval"]["rows"] == 6
    assert manifest["outputs"].keys() >= {"adapter_model.safetensors", "tokenizer.json"}
    assert manifest["peak_memory_bytes"] > 1e8
    assert result.metrics["eval_loss"] > 0
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2]
    printed = capsys.readouterr().out
    assert "the assistant's turns" in printed
    assert "defaults that differ from TRL's" in printed
    assert all(len(line) <= 80 or str(tmp_path) in line for line in printed.splitlines())


def test_a_finished_stage_is_skipped(tiny_base, chats, tmp_path, capsys):
    sft(tiny_base, chats, tmp_path / "run")
    before = (tmp_path / "run" / "adapter_model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    result = sft(tiny_base, chats, tmp_path / "run")
    assert "skipped" in capsys.readouterr().out
    assert (tmp_path / "run" / "adapter_model.safetensors").stat().st_mtime_ns == before
    assert result.metrics["steps"] == 2


def test_changed_inputs_are_named_and_need_overwrite(tiny_base, chats, tmp_path):
    sft(tiny_base, chats, tmp_path / "run")
    with pytest.raises(RecipeError, match=r"learning_rate: 0\.0002 → 0\.01.*--overwrite"):
        sft(tiny_base, chats, tmp_path / "run", learning_rate=1e-2)
    tiny.save_rows(chats, tiny.ROWS[:12])
    with pytest.raises(RecipeError, match=r"chats\.jsonl: its content changed"):
        sft(tiny_base, chats, tmp_path / "run")
    before = load_file(tmp_path / "run" / "adapter_model.safetensors")
    sft(tiny_base, chats, tmp_path / "run", overwrite=True, learning_rate=1e-2)
    after = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert any((before[key] != after[key]).any() for key in before)


def test_a_typo_in_a_run_that_never_started_needs_no_overwrite(tiny_base, chats, tmp_path):
    with pytest.raises(HubError):
        sft("nobody/nothing-of-this-name", chats, tmp_path / "run")
    assert sft(tiny_base, chats, tmp_path / "run").metrics["steps"] == 2


def test_a_refused_recipe_leaves_the_run_s_own_record(tiny_base, chats, tmp_path):
    sft(tiny_base, chats, tmp_path / "run")
    before = (tmp_path / "run" / "recipe.yaml").read_text()
    with pytest.raises(RecipeError):
        sft(tiny_base, chats, tmp_path / "run", learning_rate=1e-2)
    assert (tmp_path / "run" / "recipe.yaml").read_text() == before


def test_a_damaged_output_is_noticed(tiny_base, chats, tmp_path):
    sft(tiny_base, chats, tmp_path / "run")
    (tmp_path / "run" / "tokenizer.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"tokenizer\.json was changed since"):
        sft(tiny_base, chats, tmp_path / "run")


def test_a_stage_that_fails_is_not_finished(tiny_base, chats, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise TrainingError("what was saved does not give the numbers")

    with monkeypatch.context() as patch:
        patch.setattr(proof, "prove", fail)
        with pytest.raises(TrainingError):
            sft(tiny_base, chats, tmp_path / "run")
    assert not (tmp_path / "run" / "stage.json").exists()
    assert sft(tiny_base, chats, tmp_path / "run").metrics["steps"] == 2


def test_files_of_others_are_not_touched(tiny_base, chats):
    with pytest.raises(RecipeError, match="holds model files that no run here wrote"):
        sft(tiny_base, chats, tiny_base)


def test_a_pipeline_hands_over_and_the_parent_stays_as_it_was(tiny_base, chats, tmp_path):
    recipe = tmp_path / "two.yaml"
    recipe.write_text(f"""
model_name_or_path: {tiny_base}
dataset_name: {chats}
output_dir: {tmp_path / "run"}
max_steps: 2
per_device_train_batch_size: 4
stages:
  - {{stage: sft, name: first, lora_r: 4}}
  - {{stage: sft, name: second, start_from: first, learning_rate: 1e-2}}
""")
    result = toolkit.run(recipe)
    assert list(result.stages) == ["first", "second"]
    first, second = (
        load_file(tmp_path / "run" / name / "adapter_model.safetensors")
        for name in ("first", "second")
    )
    assert first.keys() == second.keys()
    assert any((first[key] != second[key]).any() for key in first)
    config = json.loads((tmp_path / "run" / "second" / "adapter_config.json").read_text())
    assert config["r"] == 4
    assert result.stages["second"].manifest["inputs"]["from first"].startswith("sha256:")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "second" in page
    assert "<mark>" in page  # the trained tokens of a row
    again = toolkit.run(recipe, max_steps=2)
    assert again.metrics == result.metrics


def test_full_fine_tuning_saves_a_whole_model(tiny_base, chats, tmp_path, capsys):
    result = sft(tiny_base, chats, tmp_path / "run", use_peft=False)
    assert "without effect, for use_peft is false: lora_r" in capsys.readouterr().out
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert result.manifest["verification"]["verified"] == "fresh_load"
    model, words = toolkit.load(tmp_path / "run")
    assert model.get_input_embeddings().weight.shape[0] == len(words)


def test_four_bit(tiny_base, chats, tmp_path):
    base = tiny.save_base(tmp_path / "base", hidden_size=64, intermediate_size=128)
    result = sft(base, chats, tmp_path / "run", load_in_4bit=True)
    assert result.manifest["verification"]["verified"] == "fresh_load"


@pytest.mark.parametrize(
    "keys", [{"bf16": True}, {"dtype": "bfloat16"}, {"use_dora": True}], ids=str
)
def test_what_is_saved_is_proved_in_any_precision(keys, tiny_base, chats, tmp_path):
    """Mixed precision wraps the forward pass of the model in memory, not of the one loaded."""
    proof = sft(tiny_base, chats, tmp_path / "run", **keys).manifest["verification"]
    assert proof["verified"] == "fresh_load"
    assert proof["largest_difference"] < 1e-4


def test_a_package_that_is_not_here_is_named(tiny_base, chats, tmp_path):
    with pytest.raises(RecipeError, match="needs a package that is not here: FlashAttention2"):
        sft(tiny_base, chats, tmp_path / "run", attn_implementation="flash_attention_2")


def test_a_hub_that_cannot_be_reached_is_one_line(tiny_base, chats, tmp_path):
    with pytest.raises(HubError, match="push_to_hub: HF_HUB_OFFLINE is set"):
        sft(tiny_base, chats, tmp_path / "run", push_to_hub=True)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_is_not_there(tiny_base, chats, tmp_path):
    with pytest.raises(RecipeError, match="resume_from_checkpoint: no folder"):
        sft(tiny_base, chats, tmp_path / "run", resume_from_checkpoint="./none")


@pytest.mark.parametrize(
    "said",
    [
        OSError(28, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 184384 vs 184272"),
        RuntimeError("PytorchStreamWriter failed writing file data/5: file write failed"),
    ],
    ids=["system", "torch's end", "torch's middle"],
)
def test_a_full_disk_is_one_line_whoever_says_it(said, tmp_path):
    with pytest.raises(TrainingError, match="the disk is full"), one_line(tmp_path):
        raise said


def test_a_fault_of_our_own_keeps_its_traceback(tmp_path):
    with pytest.raises(ZeroDivisionError), one_line(tmp_path):
        raise ZeroDivisionError


def test_a_global_batch_that_cannot_be_formed_is_refused(tiny_base, chats, tmp_path):
    with pytest.raises(RecipeError, match=r"global_batch_size 6 .* nearest that can is 8"):
        sft(tiny_base, chats, tmp_path / "run", global_batch_size=6)
