"""A recipe from a file, from flags and from Python: what reaches which stage, and what is refused."""

import re
from pathlib import Path

import pytest
import yaml

from toolkit.errors import RecipeError, UsageError
from toolkit.recipe import describe, keys_of, load_recipe, recipe_from_flags, recipe_from_keywords

BASE = "stage: sft\nmodel_name_or_path: org/base\ndataset_name: rows.jsonl\n"
MIXED = BASE.replace("dataset_name: rows.jsonl", "datasets: [{path: rows.jsonl}]")
SHA = "0123456789abcdef0123456789abcdef01234567"
PIPELINE = """\
model_name_or_path: org/base
lora_r: 8
seed: 0
stages:
  - stage: sft
    name: first
    dataset_name: a.jsonl
  - {stage: sft, name: second, start_from: first, dataset_name: b.jsonl, learning_rate: 1e-5}
  - {stage: evaluate, name: exam, tasks: [{name: t}], of: [base, first, second]}
"""


@pytest.fixture
def load(tmp_path):
    def from_text(text, *words, **keywords):
        path = tmp_path / "x.yaml"
        path.write_text(text)
        return load_recipe(path, words, keywords=keywords)

    return from_text


def test_one_stage(load):
    recipe = load(BASE + "learning_rate: 1e-4\n")
    (stage,) = recipe.stages
    assert (stage.stage, stage.name, recipe.is_pipeline) == ("sft", "sft", False)
    assert recipe.output_dir == Path("runs/x")
    assert stage["learning_rate"] == 1e-4
    assert stage.where["learning_rate"].endswith("x.yaml:4")
    assert stage["max_length"] == 1024
    assert stage.is_written("learning_rate")
    assert not stage.is_written("max_length")
    assert stage.arguments("SFTConfig") == {"learning_rate": 1e-4, "assistant_only_loss": True}
    assert stage.arguments("ScriptArguments") == {"dataset_name": "rows.jsonl"}
    assert stage.get("nothing") is None
    with pytest.raises(KeyError):
        stage["nothing"]


def test_defaults_that_differ(load):
    stage = load(BASE).stages[0]
    assert stage.differing_defaults() == {
        "dtype": ("auto", "float32"),
        "assistant_only_loss": (True, False),
        "use_peft": (True, False),
        "learning_rate": (2e-4, 2e-5),
        "lora_target_modules": ("all-linear", None),
    }
    full = load(BASE + "use_peft: false\n").stages[0]
    assert set(full.differing_defaults()) == {"assistant_only_loss"}
    assert full["learning_rate"] == 2e-5
    continued = load(BASE + "start_from: org/adapter\n").stages[0]
    assert "lora_target_modules" not in continued.differing_defaults()
    assert continued["learning_rate"] == 2e-4


def test_a_pipeline_shares_what_each_stage_knows(load):
    recipe = load(PIPELINE + "output_dir: out/run\n")
    assert recipe.is_pipeline
    assert recipe.output_dir == Path("out/run")
    assert [stage.name for stage in recipe.stages] == ["first", "second", "exam"]
    assert [stage.get("lora_r") for stage in recipe.stages] == [8, 8, None]
    assert [stage["seed"] for stage in recipe.stages] == [0, 0, 0]
    assert recipe.stages[1]["learning_rate"] == 1e-5
    assert recipe.stages[2]["of"] == ["base", "first", "second"]


@pytest.mark.parametrize(
    "text", [BASE, PIPELINE, BASE + "name: mine\noutput_dir: o\nmax_length: null\n"]
)
def test_what_is_resolved_reads_back_the_same(load, text):
    recipe = load(text)
    again = load(yaml.safe_dump(recipe.resolved(), sort_keys=False))
    assert again.resolved() == recipe.resolved()
    assert [[stage[key] for key in keys_of(stage.stage)] for stage in again.stages] == [
        [stage[key] for key in keys_of(stage.stage)] for stage in recipe.stages
    ]
    assert again.output_dir == recipe.output_dir


def test_overrides(load):
    words = (
        "--learning_rate",
        "3e-4",
        "--second.learning_rate=4e-4",
        "--packing",
        "--max-steps",
        "5",
    )
    recipe = load(PIPELINE, *words)
    assert [s["learning_rate"] for s in recipe.stages[:2]] == [3e-4, 4e-4]
    assert [s["packing"] for s in recipe.stages[:2]] == [True, True]
    assert [s["max_steps"] for s in recipe.stages[:2]] == [5, 5]
    assert recipe.stages[1].where["learning_rate"] == "--second.learning_rate"
    assert load(BASE, "--no_gradient_checkpointing").stages[0]["gradient_checkpointing"] is False
    assert load(BASE, "--sft.max_steps", "3").stages[0]["max_steps"] == 3
    assert load(BASE, output_dir="o", max_steps=3).output_dir == Path("o")
    assert load(BASE.replace("stage: sft\n", ""), "--stage", "sft").stages[0].stage == "sft"
    assert load(PIPELINE, **{"second.max_steps": 7}).stages[1]["max_steps"] == 7


def test_flags_and_keywords_alone():
    words = [
        "--model_name_or_path",
        "m",
        "--dataset_name",
        "d.jsonl",
        "--lora_target_modules",
        "q",
        "v",
    ]
    recipe = recipe_from_flags("sft", words)
    assert recipe.stages[0]["lora_target_modules"] == ["q", "v"]
    assert recipe.output_dir == Path("runs/sft")
    recipe = recipe_from_keywords("sft", given={"model": 1, "train_dataset": 2}, max_steps=2)
    assert recipe.path is None
    assert recipe.stages[0].where == {"max_steps": "keyword"}
    recipe = recipe_from_keywords("evaluate", model_name_or_path=Path("m"), tasks=[{"name": "t"}])
    assert recipe.stages[0]["num_generations"] == 4
    assert recipe.stages[0]["model_name_or_path"] == "m"


def test_a_working_trl_file_runs(load):
    recipe = load("""\
# Model
model_name_or_path: Qwen/Qwen3-0.6B
model_revision: main
dtype: bfloat16
attn_implementation: sdpa
# Data
datasets:
  - path: trl-lib/Capybara
    split: train[:10%]
  - {path: json, data_files: {train: a.jsonl}, columns: [messages]}
test_split_size: 0.1
dataset_num_proc: 4
chat_template_path: template.jinja
eos_token: <|im_end|>
# Training
learning_rate: 2.0e-5
gradient_checkpointing: true
gradient_checkpointing_kwargs: {use_reentrant: false}
model_init_kwargs: {use_cache: false}
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs: {min_lr_rate: 0.1}
packing: true
eval_strategy: no
report_to: [wandb]
trust_remote_code: false
""", "--stage", "sft")  # fmt: skip
    stage = recipe.stages[0]
    assert stage["datasets"][1] == {
        "path": "json", "data_files": {"train": "a.jsonl"}, "columns": ["messages"],
    }  # fmt: skip
    assert stage["eval_strategy"] == "no"


REFUSED = [
    (BASE + "learning_ratee: 1\n", ":4: unknown key 'learning_ratee' for stage 'sft'; did you mean 'learning_rate'?"),
    (BASE + "lora_rank: 1\n", "; did you mean 'lora_r'?"),
    (BASE + "qqqqqq: 1\n", "; toolkit sft --help lists the keys"),
    (BASE + "num_generations: 4\n", "it is a key of grpo, ppo, rejection, rank, evaluate"),
    (BASE + "hub_token: hf_x\n", ":4: 'hub_token' is refused: a secret"),
    (BASE + "push_to_hub_token: hf_x\n", ":4: 'push_to_hub_token' is refused"),
    (BASE + "env: {A: 1}\n", ":4: 'env' is refused"),
    (BASE + "trust_remote_code: true\n", ":4: 'trust_remote_code' is refused in a file"),
    (BASE + f"trust_remote_code: org/base@{SHA}\n", ":4: 'trust_remote_code' is refused in a file"),
    (BASE + "model_init_kwargs: {trust_remote_code: true}\n", "'trust_remote_code' inside 'model_init_kwargs' is refused"),
    (BASE + """model_init_kwargs: '{"trust_remote_code": true}'\n""", "'trust_remote_code' inside"),
    (BASE + "dataset_kwargs: {a: [{token: x}]}\n", ":4: 'token' inside 'dataset_kwargs' is refused"),
    (BASE + "datasets: [{path: a}]\n", ":4: dataset_name and datasets are both given"),
    ("stage: sft\nmodel_name_or_path: m\n", "needs dataset_name (or datasets)"),
    ("stage: sft\ndataset_name: m\n", "needs model_name_or_path"),
    ("stage: evaluate\nmodel_name_or_path: m\n", "needs tasks"),
    ("model_name_or_path: m\n", "the recipe has no `stage`"),
    ("stage: stf\n", ":1: unknown stage 'stf'; did you mean 'sft'?"),
    ("stage: [sft]\n", ":1: unknown stage ['sft']"),
    (BASE + "load_in_4bit: true\nuse_peft: false\n", ":4: load_in_4bit with use_peft: false"),
    (BASE + "load_in_4bit: true\nload_in_8bit: true\n", ":5: load_in_4bit and load_in_8bit"),
    (BASE + "use_peft: false\nstart_from: ./x\n", ":5: start_from continues an adapter"),
    (BASE + "lora_task_type: SEQ_CLS\n", ":4: lora_task_type must be CAUSAL_LM for stage 'sft', found SEQ_CLS; leave"),
    (BASE + "fp16: true\nbf16: true\n", ":4: fp16 and bf16"),
    (BASE + "max_steps: 10\nwarmup_steps: 20\n", ":5: warmup_steps 20 is more than max_steps 10"),
    (BASE + "max_steps: 2.5\n", ":4: max_steps must be a whole number, found 2.5"),
    (BASE + "per_device_train_batch_size: -3\n", ":4: per_device_train_batch_size must be >= 1, found -3"),
    (BASE + "learning_rate: .nan\n", ":4: learning_rate must be a number, found nan"),
    (BASE + "learning_rate: 0\n", ":4: learning_rate must be > 0, found 0"),
    (BASE + "lora_r: 0\n", ":4: lora_r must be >= 1, found 0"),
    (BASE + "lora_alpha: .nan\n", ":4: lora_alpha must be a whole number, found nan"),
    (BASE + "seed: 1\nseed: 1\n", ":5: 'seed' is written twice, first in line 4"),
    (BASE + "max_bad_rows: -1\n", ":4: max_bad_rows must be >= 0, found -1"),
    (BASE + "max_bad_rows: .inf\n", ":4: max_bad_rows must be a whole number, found inf"),
    (BASE + "stages: []\nenv: {}\n", "stages must be a list of mappings"),
    ("stages:\n  - " + BASE.replace("\n", "\n    ") + "env: {HF_ENDPOINT: x}\n", ":5: 'env' is refused"),
    ("stages:\n  - " + BASE.replace("\n", "\n    ") + "hub_token: hf_x\n", ":5: 'hub_token' is refused"),
    ("env: {LD_PRELOAD: x}\nstages:\n  - " + BASE.replace("\n", "\n    "), ":1: 'env' is refused"),
    ("stages:\n  - " + BASE.replace("\n", "\n    ") + "trust_remote_code: true\n", ":5: 'trust_remote_code' is refused in a file"),
    ("stages:\n  - " + BASE.replace("\n", "\n    ") + "output_dir: ../x\n", ":5: output_dir belongs at the top"),
    ("stages:\n  - " + BASE.replace("\n", "\n    ") + "name: ../x\n", ":5: a stage's name is up to 96 letters"),
    (BASE + "output_dir: ../x\n", ":4: output_dir may not have '..' in a file, found '../x'"),
    (BASE + "output_dir: runs/../../x\n", ":4: output_dir may not have '..'"),
    (BASE + "output_dir: '  '\n", ":4: output_dir must name a folder"),
    (BASE + "output_dir: ~no-such-user/x\n", ":4: output_dir: there is no such user here, found '~no-such-user/x'"),
    (BASE + f"output_dir: {'x' * 256}\n", ":4: output_dir is too long to be a path"),
    (BASE + "start_from: ~no-such-user/x\n", ":4: start_from: there is no such user here"),
    (BASE + 'start_from: "./\\0"\n', ":4: start_from has a NUL"),
    (BASE + 'run_name: "\\ud83d"\n', ":4: run_name has half of a surrogate pair"),
    (BASE + f"dataset_name: {'x' * 5000}\n", "'dataset_name' is written twice"),
    (BASE.replace("rows.jsonl", "x" * 5000), ":3: dataset_name is too long to be a path"),
    (BASE + "packing: true\nmax_length: null\n", ":5: packing needs a max_length"),
    (BASE + "start_from: sft\n", ":4: start_from names 'sft', which does not come before"),
    (BASE + "start_from: nowhere\n", ":4: start_from names 'nowhere', which is no earlier stage"),
    (BASE + "name: ../x\n", ":4: a stage's name is"),
    (BASE + "name: base\n", ":4: a stage's name is"),
    (BASE + "output_dir: ''\n", ":4: output_dir must name a folder"),
    (PIPELINE.replace("seed: 0", "sed: 0"), ":3: unknown key 'sed': no stage of this pipeline (sft, evaluate) knows it; did you mean 'seed'?"),
    (PIPELINE.replace("start_from: first", "start_from: frist"), ":8: start_from names 'frist'"),
    (PIPELINE.replace("start_from: first", "start_from: second"), ":8: start_from names 'second', which does not come before"),
    (PIPELINE.replace("of: [base, first", "of: [base, frist"), ":9: of names 'frist', which is no earlier stage, no folder and no Hub id (OWNER/NAME); did you mean 'first'?"),
    (PIPELINE.replace("name: second", "name: First"), ":8: a second stage is called 'First' (the first: "),
    (PIPELINE.replace("name: first", "output_dir: x"), ":6: output_dir belongs at the top"),
    (PIPELINE.replace("    name: first\n", "").replace("name: second, start_from: first, ", ""), ":7: a second stage is called 'sft'"),
    ("stage: sft\n" + PIPELINE, ":1: 'stage' belongs inside an entry of stages"),
    (PIPELINE + "hub_token: x\n", ":10: 'hub_token' is refused"),
    (PIPELINE + "env: {}\n", ":10: 'env' is refused"),
    ("stages: {}\n", ":1: stages must be a list"), ("stages: []\n", ":1: stages must be a list"),
    ("stages: [sft]\n", ":1: an entry of stages must be a mapping"),
    ("stages:\n  - dataset_name: x\n", ":2: the recipe has no `stage`"),
    (MIXED + "dataset_config: nonsense\n", ":4: dataset_config goes with dataset_name and says nothing about datasets; write `name: nonsense` inside the entry"),
    (MIXED + "dataset_train_split: 'train[:2]'\n", ":4: dataset_train_split goes with dataset_name and says nothing about datasets; write `split: train[:2]` inside"),
    (MIXED + "dataset_test_split: held_out\n", ":4: dataset_test_split goes with dataset_name and says nothing about datasets; write test_split_size"),
    (MIXED + "dataset_revision: v1\n", ":4: dataset_revision goes with dataset_name and says nothing about datasets; an entry has no revision"),
    ("datasets:\n  - path: a\n  - pathh: b\n" + BASE.replace("dataset_name: rows.jsonl\n", ""), ":3: unknown field 'pathh' of datasets entry 2; did you mean 'path'?"),
    ("datasets:\n  - split: a\n" + BASE.replace("dataset_name: rows.jsonl\n", ""), ":2: datasets entry 1 needs 'path'"),
    ("datasets:\n  - path: a\n    columns: 3\n" + BASE.replace("dataset_name: rows.jsonl\n", ""), ":3: columns must be a list of words or null"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_refused(load, text, message):
    with pytest.raises(RecipeError, match=re.escape(message)) as error:
        load(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["learning_rate"], UsageError, "expected --key value, found 'learning_rate'"),
        (["--"], UsageError, "expected --key value"),
        (["--learning_rate"], UsageError, "--learning_rate needs a value"),
        (["--seed", "1", "--seed=2"], UsageError, "--seed is given twice"),
        (["--trust_remote_code"], UsageError, "needs a value: REPO@SHA"),
        (["--trust_remote_code", "org/base"], RecipeError, "must be REPO@SHA"),
        (["--trust_remote_code", "org/base@main"], RecipeError, "must be REPO@SHA"),
        (["--trust_remote_code", "true"], RecipeError, "must be REPO@SHA"),
        (["--hub_token", "hf_x"], RecipeError, "'hub_token' is refused"),
        (["--frist.seed", "1"], RecipeError, "no stage is called 'frist'; did you mean 'first'?"),
        (["--first.stage", "sft"], RecipeError, "set in the file alone"),
        (["--seeed", "1"], RecipeError, "--seeed: unknown key 'seeed'"),
        (["--first.output_dir", "x"], RecipeError, "output_dir belongs at the top"),
        (["--warmup_ratio", "0.1"], RecipeError, "write 'warmup_steps: 0.1'"),
        (["--group_by_length"], RecipeError, "train_sampling_strategy: group_by_length"),
    ],
)
def test_flags_refused(load, words, error, message):
    with pytest.raises(error, match=re.escape(message)):
        load(PIPELINE, *words)


def test_the_command_line_may_climb(load):
    assert load(BASE, "--output_dir", "../x").output_dir == Path("../x")
    assert load(BASE, output_dir="../x").output_dir == Path("../x")
    assert load(BASE + "output_dir: ~/x\n").output_dir == Path("~/x").expanduser()


def test_trust_on_the_command_line(load):
    trusted = f"org/base@{SHA}"
    recipe = load(PIPELINE, "--trust_remote_code", trusted)
    assert [stage.written["trust_remote_code"] for stage in recipe.stages] == [trusted] * 3
    assert "trust_remote_code" not in recipe.stages[0].arguments("SFTConfig")


def test_defaults_beside_a_mixture_say_nothing_and_are_taken(load):
    keys = "dataset_config: null\ndataset_train_split: train\ndataset_test_split: test\n"
    assert load(MIXED + keys).stages[0]["datasets"] == [{"path": "rows.jsonl"}]


def test_the_name_of_a_folder_is_a_place(load, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load(BASE + "start_from: mine\n").stages[0]["start_from"] == "mine"


def test_a_shared_list_is_not_shared_by_reference(load):
    text = PIPELINE.replace("dataset_name: a.jsonl", "seed: 1").replace(
        "dataset_name: b.jsonl, ", ""
    )
    recipe = load("datasets: [{path: a}]\n" + text)
    first, second = (stage["datasets"] for stage in recipe.stages[:2])
    assert first == second
    assert first is not second
    assert first[0] is not second[0]


def test_a_default_list_is_a_fresh_one_each_time(load):
    stage = load(BASE).stages[0]
    stage["include_for_metrics"].append("inputs")
    assert stage["include_for_metrics"] == []


def test_help_begins_with_our_keys_and_shows_our_defaults():
    keys = list(describe("sft"))
    assert keys[0].owner == "toolkit"
    assert {key.name: key.default for key in keys}["learning_rate"] == 2e-4
    assert {key.name for key in keys} == set(keys_of("sft")) - {"stage", "name", "hub_token"}
