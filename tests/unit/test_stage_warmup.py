"""A warm-up must fit into the run, however its steps are counted."""

from pathlib import Path

import pytest

import toolkit
from tests import tiny
from toolkit.errors import RecipeError


@pytest.mark.parametrize("warmup", [3, 4, 0.5])
def test_a_warm_up_longer_than_the_epochs_is_refused(tmp_path: Path, tiny_base: Path, warmup):
    keys = {
        "model_name_or_path": str(tiny_base), "train_dataset": tiny.ROWS, "num_train_epochs": 1,
        "per_device_train_batch_size": 8, "output_dir": str(tmp_path / "run"), "warmup_steps": warmup,
    }  # fmt: skip
    if warmup != 4:
        assert toolkit.sft(**keys).metrics
        return
    with pytest.raises(RecipeError, match="warmup_steps 4 is more than the 3 steps of this run"):
        toolkit.sft(**keys)
