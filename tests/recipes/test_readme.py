"""What the README shows is run as it stands, on a tiny base in place of the one it names."""

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

import toolkit
from tests import tiny
from toolkit.errors import RecipeError
from toolkit.recipe import keys_of, load_recipe

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BASE = "HuggingFaceTB/SmolLM2-360M"


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def commands(start: str) -> list[str]:
    lines = [line for block in blocks("") for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.startswith(start)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the README's data file, and the project's own recipes."""
    tiny.save_rows(tmp_path / "my.jsonl", tiny.ROWS)
    problems = [{"prompt": f"{n} + 1 = ", "answer": str(n + 1)} for n in range(16)]
    tiny.save_rows(tmp_path / "problems.jsonl", problems)
    for name in ("recipes", "accelerate_configs", "toolkit"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands(folder, tiny_base):
    found = commands("toolkit ")
    assert len(found) >= 7
    made = commands("python -m toolkit.data.synthetic ")
    launch = commands("accelerate ")
    assert made
    for line in [*made, *found, *launch]:
        words = line.replace(BASE, str(tiny_base)).replace("60000", "300").split()
        if words[1] == "init":
            words += ["--model_name_or_path", str(tiny_base)]
        if words[1] in {"run", "sft"}:
            words += ["--max_steps", "50" if "recipes/quickstart_base.yaml" in words else "1"]
        if words[1] == "grpo":
            words += ["--max_steps", "1", "--max_completion_length", "4", "--report_to", "none"]
        if words[0] == "accelerate":
            assert Path(words[words.index("--config_file") + 1]).is_file()
            words = [*words[words.index("toolkit") :], "--output_dir", "runs/launched"]
        if words[1] in {"chat", "serve", "generate"}:
            words = [*words[:2], "runs/sft", *words[words.index("runs/quickstart") + 1 :]]
            words = [word for word in words if word not in ("--stage", "ppo")]
        code = "import sys; from toolkit.cli import main; sys.exit(main())"
        words = words if words[0] == "python" else ["python", "-c", code, *words[1:]]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        if "serve" in words:
            assert_serves([sys.executable, *words[1:]], environment)
            continue
        done = subprocess.run(
            [sys.executable, *words[1:]], env=environment, capture_output=True, input="/quit\n",
            text=True, check=False,
        )  # fmt: skip
        # a random model gets no answer right, so every reward is the same
        nothing = words[1] == "-c" and "grpo" in words and "nothing was learnt" in done.stderr
        assert done.returncode == 0 or nothing, f"{line}\n{done.stdout}\n{done.stderr}"
    assert (folder / "runs").is_dir()


def assert_serves(command: list[str], environment: dict[str, str]) -> None:
    command[command.index("8000")] = "0"  # any port that is free
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = iter(process.stdout.readline, "")
        place = next((re.search(r"http://[\w.:]+", line) for line in said if "http" in line), None)
        assert place
        with urlopen(f"{place[0]}/v1/models") as answer:  # it listens before it says so
            assert answer.status == 200
        process.terminate()
        assert process.wait() == 0


def test_the_python(folder, tiny_base):
    (code,) = blocks("python")
    code = code.replace(BASE, str(tiny_base)).replace("…", str(tiny_base))
    code = code.replace("max_steps=10)", f'max_steps=1, output_dir="{folder}/quickstart", **less)')
    code = code.replace('output_dir="runs/sft"\n', 'output_dir="runs/sft", max_steps=1\n')
    assert code.count("max_steps=1") == 2
    from transformers import TrainerCallback

    few = {"max_completion_length": 4, "per_device_eval_batch_size": 32}
    less = {f"exam.{key}": value for key, value in (few | {"num_generations": 1}).items()}
    less |= {"rank.max_completion_length": 16, "rank.dataset_train_split": "train[:40]"}
    names = {"rows": tiny.ROWS, "mine": TrainerCallback(), "less": less}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102 - our own README
    assert (folder / "runs" / "sft" / "stage.json").is_file()
    assert (folder / "quickstart" / "report.json").is_file()


def test_the_recipes(folder):
    names = []
    for text in blocks("yaml"):
        Path("my.yaml").write_text(text, encoding="utf-8")
        names.append([stage.name for stage in load_recipe("my.yaml").stages])
    assert names == [["sft", "exam"], ["evaluate"], ["sft", "reward", "ppo"]]


def test_the_exam(folder, tiny_base):
    """The second recipe's task on files, on a tiny base."""
    (text,) = (text for text in blocks("yaml") if text.startswith("stage: evaluate"))
    rows = [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(3)]
    tiny.save_rows(folder / "exam.jsonl", rows)
    tiny.save_rows(folder / "shown.jsonl", [{"question": "8 + 1?", "answer": "9"}])
    text = text.replace("Qwen/Qwen3-0.6B-Base", str(tiny_base)).replace(", runs/sft", "")
    text = "\n".join(line for line in text.splitlines() if "openai" not in line)
    Path("my.yaml").write_text(text + "\nmax_completion_length: 4\n", encoding="utf-8")
    result = toolkit.run("my.yaml", output_dir=str(folder / "exam"))
    assert {"base/exam/greedy", "base few-shot/exam/accuracy"} <= result.metrics["evaluate"].keys()


def test_the_error(folder):
    (line,) = commands("error: ")
    text = "stage: sft\nmodel_name_or_path: x\ndataset_name: y\nlearning_ratee: 1e-4\n"
    Path("my.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as error:
        load_recipe("my.yaml")
    assert f"error: {error.value}" == line


def test_the_table_of_defaults(folder):
    base = "model_name_or_path: x\ndataset_name: y\n"
    for stage in ("sft", "reward", "dpo", "grpo", "ppo"):
        rewarded = "reward_funcs: [answer]\n" if stage in ("grpo", "ppo") else ""
        Path("my.yaml").write_text(f"stage: {stage}\n{base}{rewarded}")
        differing = load_recipe("my.yaml").stages[0].differing_defaults()
        assert differing
        for key in differing:
            assert re.search(rf"^\|[^|]*`{key}`", README, re.MULTILINE), key


def test_our_own_keys_are_listed():
    ours = {
        name
        for stage in ("sft", "evaluate", "ppo")
        for name, key in keys_of(stage).items()
        if key.owner == "toolkit"
    }
    named = ("start_from", "global_batch_size", "dataset_revision", "tasks", "of", "reward_funcs")
    for name in (*named, "vf_coef", "value_start_from", "trainer_class", "missing_eos_penalty"):
        assert name in ours
        assert f"`{name}`" in README


def test_links_and_files_are_there():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for target in re.findall(r"(?:recipes|accelerate_configs)/[\w./-]+\.(?:yaml|py)", README):
        assert (ROOT / target).exists(), target


def test_make_s_two_targets_stand_at_the_top():
    first = blocks("")[0]
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", first, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert README.index("make demo") < 1200
