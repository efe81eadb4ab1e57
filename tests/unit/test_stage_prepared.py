"""Where a stage starts: an earlier stage, a folder, or a repository at its revision."""

import pytest

from toolkit.errors import RecipeError
from toolkit.recipe import StageRecipe
from toolkit.stages.prepared import starting_point


@pytest.mark.parametrize("start", ["sft", "{folder}"])
def test_a_folder_has_no_revision(start, tmp_path):
    written = {"start_from": start.format(folder=tmp_path), "start_from_revision": "v1"}
    recipe = StageRecipe("grpo", "grpo", written, {})
    with pytest.raises(RecipeError, match=r"start_from_revision: .* is a folder here"):
        starting_point(recipe, {"sft": tmp_path / "sft"})
    written.pop("start_from_revision")
    folder = tmp_path / "sft" if start == "sft" else tmp_path
    assert starting_point(recipe, {"sft": tmp_path / "sft"}) == str(folder)
