"""`toolkit check` finds no error in any of the recipes: on their own data, or on stand-ins for the Hub's."""

import pytest

from toolkit.preflight import checks
from toolkit.preflight.look import Options
from toolkit.recipe import load_recipe

from .test_real_model_recipes import PIPELINE, PREFERENCES, ROLLOUTS, ROOT, SFT, on_stand_ins

OWN = ("recipes/quickstart.yaml", "recipes/quickstart_base.yaml", "recipes/guard.yaml")


@pytest.mark.parametrize("recipe", [*OWN, *SFT, *PREFERENCES, *ROLLOUTS, PIPELINE])
def test_a_recipe_has_no_errors(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # a recipe's own paths are read from here
    changed = {} if recipe in OWN else on_stand_ins(recipe, tmp_path)[1]
    if recipe == "recipes/quickstart_base.yaml":  # its documents are written beforehand
        changed["dataset_name"] = str(tmp_path / "documents.jsonl")
        (tmp_path / "documents.jsonl").write_text('{"text": "Pelrik lives in Ashford."}\n' * 9)
    found = checks.check(load_recipe(ROOT / recipe, keywords=changed), Options(gpu="RTX 4090"))
    assert found.exit_code == 0, [one for one in found.found if one.level == "error"]
    trained = [stage.name for stage in load_recipe(ROOT / recipe).stages if stage.stage == "sft"]
    for name in trained:
        assert found.facts[name]["memory"]["peak"] > 0
        assert found.samples[name]
