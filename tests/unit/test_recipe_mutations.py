"""Whatever a file or a command line says: it is accepted, or refused in one line.

The slow ones go on to the run itself, with its training left out, in a folder that is compared before
and after: nothing is written but in the run's own folder.
"""

import contextlib
import io
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolkit.errors import RecipeError, UsageError
from toolkit.recipe import Recipe, keys_of, load_recipe
from toolkit.recipe.keys import TRAINING
from toolkit.recipe.ranges import RANGES
from toolkit.recipe.renamed import TABLE

SETTINGS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
MANY = settings(SETTINGS, max_examples=2000, suppress_health_check=list(HealthCheck))
WORDS = st.one_of(
    st.sampled_from(
        [*keys_of("sft"), *keys_of("evaluate"), *(entry.old for entry in TABLE), "stages"]
    ),
    st.text(max_size=8),
)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(["sft", "evaluate", "ppo", "base", "1e-4", "no", ".nan", "all-linear", 10**400]),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)
BASE = {"stage": "sft", "model_name_or_path": "org/base", "dataset_name": "rows.jsonl"}

# Where a name or a folder could lead elsewhere; {outer} is what lies around the run.
NAMES = [
    "../x", "..", ".", "a/../../x", "/x", "a/b", "a\\b", "~", "~nobody", "C:", "CON", "x" * 97, "base",
    "a\0b", "\ud83d", "", " ", "recipe.yaml", "ok", "o.k-1_", "second",
]  # fmt: skip
FOLDERS = [
    *(name for name in NAMES if name != "/x"), "~/x", "~nobody/x", "runs/y", "runs/../../y", "{outer}/y",
    "{outer}/work/runs/x/../../../y", "link", "link/y", "x" * 300, "/dev/null/x", "y/" * 3000,
]  # fmt: skip
PLAUSIBLE = {
    "int": st.integers(-2, 70), "float": st.sampled_from([0, 0.5, 1, -1, 1e-4, 3.5, float("nan")]),
    "bool": st.booleans(), "None": st.none(), "str": st.sampled_from(["a", "auto", "./x", "epoch"]),
}  # fmt: skip


def plausible(stage: str) -> st.SearchStrategy:
    """Keys of a stage, with values of about their type; now and then any other."""
    pairs = []
    for key in keys_of(stage).values():
        kinds = [kind.strip() for kind in key.annotation.split("|")]
        values = [PLAUSIBLE[kind] for kind in kinds if kind in PLAUSIBLE]
        values += [st.sampled_from(key.choices)] * 3 if key.choices else []
        values += [st.sampled_from([0, 1, 2, 0.5])] if key.name in RANGES else []
        if values and key.name not in (
            "stage",
            "name",
            "output_dir",
            "push_to_hub",
            "dataset_name",
        ):
            pairs.append(st.tuples(st.just(key.name), st.one_of(*values, LEAVES)))
    return st.lists(st.one_of(pairs), max_size=4).map(dict)


def attempt(path: Path, words: list[str]) -> Recipe | None:
    refused = None
    try:
        recipe = load_recipe(path, words)
    except (RecipeError, UsageError) as error:
        refused = str(error)
    if refused is not None:
        assert "\n" not in refused
        return None
    yaml.safe_dump(recipe.resolved())
    for stage in recipe.stages:
        for key in keys_of(stage.stage):
            _ = stage[key]
    return recipe


def written(path: Path, recipe: dict) -> Path:
    path.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    return path


KEYS = st.dictionaries(WORDS, VALUES, max_size=3)
STAGES = st.lists(KEYS.map(lambda d: BASE | d) | VALUES, max_size=3)
LINES = st.lists(st.one_of(WORDS.map(lambda w: f"--{w}"), st.text(max_size=8)), max_size=4)
TEXT = st.text(alphabet="abst:-*&{}[]<\"'!|># \n\t\\1.e", max_size=60)


@SETTINGS
@given(changes=KEYS)
def test_mutated_keys(tmp_path, changes):
    attempt(written(tmp_path / "x.yaml", BASE | changes), [])


@SETTINGS
@given(stages=STAGES)
def test_mutated_pipelines(tmp_path, stages):
    attempt(written(tmp_path / "x.yaml", {"seed": 1, "stages": stages}), [])


@SETTINGS
@given(words=LINES)
def test_mutated_command_lines(tmp_path, words):
    attempt(written(tmp_path / "x.yaml", BASE), words)


@SETTINGS
@given(text=TEXT)
def test_any_text(tmp_path, text):
    path = tmp_path / "x.yaml"
    with contextlib.suppress(UnicodeEncodeError):
        path.write_text(text, encoding="utf-8")
        attempt(path, [])


@pytest.mark.slow
@MANY
@given(changes=KEYS, stages=STAGES, words=LINES, text=TEXT)
def test_many_recipes(tmp_path, changes, stages, words, text):
    path = written(tmp_path / "x.yaml", BASE | changes)
    attempt(path, words)
    attempt(written(path, {"seed": 1, "stages": stages} | changes), words)
    if (recipe := attempt(written(path, BASE | changes), [])) is not None:
        again = attempt(written(path, recipe.resolved()), [])
        assert again is not None
        assert again.resolved() == recipe.resolved()
    with contextlib.suppress(UnicodeEncodeError):
        path.write_text(text, encoding="utf-8")
        attempt(path, [])


def configured(stage: str):
    """A stage that makes its configuration, as training would, and writes a file."""
    from toolkit.artifacts.manifest import StageResult
    from toolkit.stages import dpo, ppo, reward, sft

    makers = {
        "sft": sft.sft_config, "dpo": dpo.dpo_config, "reward": reward.reward_config, "ppo": ppo.ppo_config,
    }  # fmt: skip

    def run(recipe, *, output_dir, earlier, **objects):
        if stage in makers:
            makers[stage](recipe, output_dir)
        (output_dir / "adapter.txt").write_text("trained", encoding="utf-8")
        (output_dir / "log.jsonl").open("a").close()
        return StageResult(output_dir, {}, {})

    return SimpleNamespace(run=run)


def tree(folder: Path) -> dict[str, str]:
    """Every file, folder and link below a folder, with what is in it."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place) / name
            is_plain = path.is_file() and not path.is_symlink()
            found[str(path)] = (
                path.read_text("utf-8", "replace") if is_plain else str(path.lstat().st_mode)
            )
    return found


def outcome(monkeypatch, recipe: dict, *, link: str | None = None) -> int:
    """The exit code of a run whose training is left out; fails if it writes outside of its folder."""
    from toolkit import cli, pipeline

    with tempfile.TemporaryDirectory() as temporary, monkeypatch.context() as patched:
        outer = Path(temporary).resolve()
        for folder in ("work/runs/x", "home", "elsewhere"):
            (outer / folder).mkdir(parents=True)
        (outer / "elsewhere" / "log.jsonl").write_text("mine", encoding="utf-8")
        (outer / "work" / "link").symlink_to(outer / "elsewhere")
        (outer / "work" / "rows.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
        if link is not None:
            (outer / "work" / "runs" / "x" / link).symlink_to(outer / "elsewhere")
        patched.chdir(outer / "work")
        patched.setenv("HOME", str(outer / "home"))
        patched.setenv("MPLCONFIGDIR", tempfile.gettempdir())
        patched.setattr(pipeline, "stage_module", configured)
        text = yaml.safe_dump(recipe, allow_unicode=True).replace("{outer}", str(outer))
        try:
            (outer / "work" / "x.yaml").write_text(text, encoding="utf-8")
        except UnicodeEncodeError:
            return 3
        before, said = tree(outer), io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = cli.main(["run", "x.yaml"])
        after = tree(outer)
        changed = {path for path in {*before, *after} if before.get(path) != after.get(path)}
        with contextlib.suppress(RecipeError):
            folder = load_recipe("x.yaml").output_dir.resolve()
            changed -= {path for path in changed if Path(path).is_relative_to(folder)}
            changed -= set(map(str, folder.parents))  # made for it
        assert not changed
        lines = [line for line in said.getvalue().splitlines() if line.startswith("error: ")]
        assert len(lines) == (code != 0), said.getvalue()
    return code


ALLOWED = {0, 3, 4}


@settings(SETTINGS, max_examples=40)
@given(name=st.sampled_from(NAMES), folder=st.none() | st.sampled_from(FOLDERS))
def test_no_name_leads_out_of_the_run(monkeypatch, name, folder):
    stages = {"stages": [BASE | {"name": name}, BASE | {"name": "second"}]}
    out = {} if folder is None else {"output_dir": folder}
    assert outcome(monkeypatch, stages | out) in ALLOWED
    assert outcome(monkeypatch, BASE | {"name": name} | out) in ALLOWED


RUNS = st.tuples(
    st.sampled_from([stage for stage in TRAINING if stage not in ("pretrain", "grpo")]).flatmap(
        lambda stage: plausible(stage).map(lambda keys: {"stage": stage, **keys})
    ),
    st.none() | st.sampled_from(NAMES),
    st.none() | st.sampled_from(FOLDERS),
    st.booleans(),
)


def check_run(monkeypatch, drawn) -> None:
    keys, name, folder, is_pipeline = drawn
    rewarded = {"reward_funcs": ["length"]} if keys["stage"] == "ppo" else {}
    recipe = BASE | rewarded | keys | ({} if name is None else {"name": name})
    recipe = {"stages": [recipe]} if is_pipeline else recipe
    recipe |= {} if folder is None else {"output_dir": folder}
    assert outcome(monkeypatch, recipe) in ALLOWED


@settings(SETTINGS, max_examples=25)
@given(drawn=RUNS)
def test_some_runs(monkeypatch, drawn):
    check_run(monkeypatch, drawn)


@pytest.mark.slow
@MANY
@given(drawn=RUNS)
def test_many_runs(monkeypatch, drawn):
    check_run(monkeypatch, drawn)


@pytest.mark.parametrize("link", ["sft", "recipe.yaml", "report.json"])
def test_a_link_out_of_the_run_is_refused(monkeypatch, link):
    assert outcome(monkeypatch, {"stages": [BASE]}, link=link) == 3


@pytest.mark.parametrize("link", ["log.jsonl", "adapter.txt", "checkpoint-1"])
def test_a_link_out_of_the_stage_is_refused(monkeypatch, link):
    assert outcome(monkeypatch, BASE, link=link) == 3


def test_a_plain_run_passes(monkeypatch):
    assert outcome(monkeypatch, BASE) == 0
    assert outcome(monkeypatch, {"stages": [BASE]}) == 0
    assert outcome(monkeypatch, {"stages": [BASE], "output_dir": "link"}) == 0
