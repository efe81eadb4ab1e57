"""What every test shares: no network, no telemetry, the real assets where they are."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are small, and a worker has one core

import hypothesis
import pytest

hypothesis.settings.register_profile("toolkit", deadline=None)  # a busy machine is no error
hypothesis.settings.load_profile("toolkit")


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder with a real base checkpoint and real data; the test is skipped without it."""
    root = Path(__file__).resolve().parents[1]
    path = Path(os.environ.get("TOOLKIT_TEST_ASSETS", root.parent / "shared"))
    if not (path / "models" / "stories260K").is_dir():
        pytest.skip("real assets not found; set TOOLKIT_TEST_ASSETS to their folder")
    return path


@pytest.fixture(scope="session")
def stories(assets: Path) -> Path:
    """A real pretrained base checkpoint of 260 thousand parameters, without a chat template."""
    return assets / "models" / "stories260K"


@pytest.fixture(scope="session")
def gsm8k(assets: Path) -> Path:
    """The GSM8K training problems, one JSON object per line: `question`, `answer`."""
    return assets / "data" / "gsm8k" / "train.jsonl"


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random base of two layers with a tied head, without a chat template."""
    from tests import tiny

    return tiny.save_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def untied_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a head of its own."""
    from tests import tiny

    return tiny.save_base(tmp_path_factory.mktemp("untied") / "base", tie_word_embeddings=False)


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """Two dozen short chats as JSONL, of uneven length."""
    from tests import tiny

    return tiny.save_rows(tmp_path / "chats.jsonl", tiny.ROWS)


@pytest.fixture(autouse=True)
def unasked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No probes around the stages of most tests, for the time that they take; see `probes_asked`."""
    pipeline = sys.modules.get("toolkit.pipeline")
    if pipeline is not None and "probes_asked" not in request.fixturenames:
        monkeypatch.setattr(pipeline, "probed", lambda *_: {})


@pytest.fixture
def probes_asked() -> None:
    """The stages of this test are probed, as those of a user are."""


@pytest.fixture(params=["as it is", "mapped"])
def walls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bubblewrap, once as this user runs it, and once as a user does who is not root."""
    from toolkit.rewards import sandbox

    if reason := sandbox._why_not(sandbox.BUBBLEWRAP):
        pytest.skip(f"no bubblewrap here: {reason}")
    if request.param == "mapped":
        monkeypatch.setattr(sandbox.os, "geteuid", lambda: 1000)
