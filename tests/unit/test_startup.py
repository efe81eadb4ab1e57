"""What a start loads: nothing heavy before a recipe is right, and of the stages only what is run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.recipe import kept_schema, upstream
from toolkit.recipe.upstream import CLASSES, ENUMS, fields_of, members_of

HEAVY = {
    "torch", "transformers", "trl", "peft", "datasets", "accelerate", "numpy", "pandas", "pyarrow",
    "matplotlib", "rich", "huggingface_hub", "jinja2", "asyncio",
}  # fmt: skip
MOST_MODULES = 260  # 205 are loaded by the largest of these; Python itself loads some 40
NOT_FOR_SFT = {
    "evaluate", "jsonschema", "torch._inductor.compile_fx", "math_verify", "matplotlib", "py3langid", "scipy", "sklearn", "vllm",
    "wandb", "trl.trainer.dpo_trainer", "trl.trainer.grpo_trainer", "trl.trainer.reward_trainer",
    "toolkit.data.pairs", "toolkit.inference.serving", "toolkit.preflight",
    "toolkit.rewards.sandbox", "toolkit.stages.dpo", "toolkit.stages.evaluate",
    "toolkit.stages.grpo", "toolkit.stages.ppo", "toolkit.stages.rejection", "toolkit.stages.reward",
}  # fmt: skip


def loaded(code: str, folder: Path) -> set[str]:
    """The modules that are there after some code, in a process of its own."""
    script = f"import sys\n{code}\nimport json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=folder, check=False
    )
    assert done.stdout, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


RECIPE = "stage: sft\nmodel_name_or_path: x\ndataset_name: y\n"
WRONG = {
    "a key": RECIPE + "learning_rat: 1\n",
    "a value": RECIPE + "learning_rate: fast\n",
    "a range": RECIPE + "lora_dropout: 2\n",
    "a combination": RECIPE + "stage_name: x\nnum_train_epochs: 1\n",
    "yaml": RECIPE + "a: [\n",
    "a stage": "stage: nothing\n",
}


def command(*words: str) -> str:
    return f"from toolkit import cli; print(cli.main({list(words)!r}))"


@pytest.mark.parametrize("wrong", WRONG)
def test_an_error_in_a_recipe_loads_nothing_heavy(wrong, tmp_path):
    (tmp_path / "recipe.yaml").write_text(WRONG[wrong])
    there = loaded(
        f"{command('run', 'recipe.yaml')}\nassert cli.main(['check', '--keys', 'recipe.yaml'])",
        tmp_path,
    )
    assert not there & HEAVY
    assert len(there) < MOST_MODULES


@pytest.mark.parametrize(
    "words", [["--help"], ["sft", "--help"], ["check", "--keys", "recipe.yaml"]]
)
def test_a_quick_command_loads_nothing_heavy(words, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    there = loaded(command(*words), tmp_path)
    assert not there & HEAVY
    assert len(there) < MOST_MODULES


def test_a_run_loads_what_its_stage_needs(tmp_path):
    still_compiles = "import os; assert 'TORCHDYNAMO_DISABLE' not in os.environ"
    there = loaded(
        f"import toolkit.cli, toolkit.pipeline, toolkit.stages.sft; {still_compiles}", tmp_path
    )
    assert "trl.trainer.sft_trainer" in there
    assert "bitsandbytes" in there
    assert not there & NOT_FOR_SFT


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache folder of its own, and nothing known yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    for known in (upstream._known, upstream.fields_of, upstream.members_of):
        known.cache_clear()


def everything() -> list:
    return [[fields_of(name) for name in CLASSES], [members_of(name) for name in ENUMS]]


def test_the_kept_schema_is_the_one_that_was_read(cache, monkeypatch):
    first = everything()
    (note,) = (cache / "toolkit" / "schema").iterdir()
    forget()
    monkeypatch.setattr(upstream, "_all", lambda: pytest.fail("it was read again"))
    assert everything() == first
    assert json.loads(note.read_text())["states"]


def test_a_change_of_the_source_is_seen(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source, number = tmp_path / "source.py", iter(range(9))

    def read() -> int:
        return kept_schema.kept([source], lambda: {"found": next(number)})["found"]

    source.write_text("a = 1")
    assert [read(), read()] == [0, 0]
    source.write_text("a = 2")
    assert [read(), read()] == [1, 1]


@pytest.mark.parametrize("said", ["", "{", "[]", '{"states": 1}'])
def test_a_broken_note_is_replaced(said, cache):
    first = everything()
    (note,) = (cache / "toolkit" / "schema").iterdir()
    whole = note.read_text()
    note.write_text(said)
    forget()
    assert everything() == first
    assert note.read_text() == whole


def test_a_cache_that_cannot_be_written_costs_nothing_else(cache):
    (cache / "toolkit").write_text("a file")
    assert fields_of("SFTConfig")["learning_rate"].default
