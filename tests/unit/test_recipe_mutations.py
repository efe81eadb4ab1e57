"""Whatever a file or a command line says: it is accepted, or refused in one line."""

import contextlib
from pathlib import Path

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolkit.errors import RecipeError, UsageError
from toolkit.recipe import keys_of, load_recipe
from toolkit.recipe.renamed import TABLE

SETTINGS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
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


def attempt(path: Path, words: list[str]) -> None:
    refused = None
    try:
        recipe = load_recipe(path, words)
    except (RecipeError, UsageError) as error:
        refused = str(error)
    if refused is not None:
        assert "\n" not in refused
        return
    yaml.safe_dump(recipe.resolved())
    for stage in recipe.stages:
        for key in keys_of(stage.stage):
            _ = stage[key]


@SETTINGS
@given(changes=st.dictionaries(WORDS, VALUES, max_size=3))
def test_mutated_keys(tmp_path, changes):
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(BASE | changes, allow_unicode=True), encoding="utf-8")
    attempt(path, [])


@SETTINGS
@given(
    stages=st.lists(
        st.dictionaries(WORDS, VALUES, max_size=3).map(lambda d: BASE | d) | VALUES, max_size=3
    )
)
def test_mutated_pipelines(tmp_path, stages):
    path = tmp_path / "x.yaml"
    path.write_text(
        yaml.safe_dump({"seed": 1, "stages": stages}, allow_unicode=True), encoding="utf-8"
    )
    attempt(path, [])


@SETTINGS
@given(
    words=st.lists(st.one_of(WORDS.map(lambda word: f"--{word}"), st.text(max_size=8)), max_size=4)
)
def test_mutated_command_lines(tmp_path, words):
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(BASE), encoding="utf-8")
    attempt(path, words)


@SETTINGS
@given(text=st.text(alphabet="abst:-*&{}[]<\"'!|># \n\t\\1.e", max_size=60))
def test_any_text(tmp_path, text):
    path = tmp_path / "x.yaml"
    with contextlib.suppress(UnicodeEncodeError):
        path.write_text(text, encoding="utf-8")
        attempt(path, [])
