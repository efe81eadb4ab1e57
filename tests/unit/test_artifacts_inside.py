"""What a run writes lands in its own folder, whatever links and names lie there."""

import json
from pathlib import Path

import pytest

from toolkit.artifacts.inside import check_inside
from toolkit.errors import RecipeError


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "sft"
    folder.mkdir(parents=True)
    return folder


def test_what_lies_inside_passes(tmp_path: Path, stage: Path):
    run = stage.parent
    check_inside(run, run / "not there yet")
    (stage / "latest").symlink_to(stage / "checkpoint-1")
    (run / "again").symlink_to(stage)
    (stage / "stage.json").write_text(json.dumps({"outputs": {"adapter.safetensors": {}}}))
    check_inside(run, stage)
    (tmp_path / "link").symlink_to(run)  # the run's own folder may lie on another disk
    check_inside(tmp_path / "link", tmp_path / "link" / "sft")


@pytest.mark.parametrize("name", ["log.jsonl", "checkpoint-3", "stage.json"])
def test_a_link_that_leads_out(tmp_path: Path, stage: Path, name: str):
    (stage / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        RecipeError, match=rf"sft/{name} is a link that leads out .*elsewhere; remove"
    ):
        check_inside(stage.parent, stage)


def test_a_stage_that_is_a_link(tmp_path: Path, stage: Path):
    (stage.parent / "dpo").symlink_to(tmp_path)
    with pytest.raises(RecipeError, match="run/dpo is a link"):
        check_inside(stage.parent, stage.parent / "dpo")


@pytest.mark.parametrize(
    "outputs", [{"../../mine": {}}, {"/etc/x": {}}, {"..": {}}, {"": {}}, ["a/b"], "a/b"]
)
def test_a_manifest_that_names_files_elsewhere(stage: Path, outputs):
    (stage / "stage.json").write_text(json.dumps({"outputs": outputs}))
    with pytest.raises(RecipeError, match=r"stage\.json names .*which is no file of that folder"):
        check_inside(stage.parent, stage)
