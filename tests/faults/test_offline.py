"""Without a connection a command ends with one line, soon, and without knocking again and again."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests import tiny

ROOT = Path(__file__).resolve().parents[2]
KNOCKS = 6  # of the model and of the data; a retry storm is five for each of a dozen files


@pytest.fixture
def refusing():
    """A port of this machine that closes every connection at once, and counts them."""
    knocks = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                knocks.append(1)
                connection.close()

        threading.Thread(target=refuse, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", knocks
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("missing", ["base", "data"])
@pytest.mark.parametrize(
    "how",
    [
        pytest.param("offline", marks=pytest.mark.slow),
        "proxy",
        pytest.param("refused", marks=pytest.mark.slow),
    ],
)
def test_one_line(how, missing, refusing, tiny_base, tmp_path):
    address, knocks = refusing
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment["HF_HOME"] = str(tmp_path / "cache")
    environment |= {
        "offline": {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": address},
        "proxy": {"HTTPS_PROXY": address, "HTTP_PROXY": address, "ALL_PROXY": address},
        "refused": {"HF_ENDPOINT": address},
    }[how]
    rows = tiny.save_rows(tmp_path / "chats.jsonl", tiny.ROWS)
    base, data = ("me/base", rows) if missing == "base" else (tiny_base, "me/data")
    done = subprocess.run(
        [sys.executable, "-m", "toolkit", "sft", "--model_name_or_path", base, "--dataset_name", data,
         "--output_dir", tmp_path / "run"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 6, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "me/base" in errors[0] or "me/data" in errors[0]
    assert "Traceback" not in done.stderr
    assert len(knocks) <= (0 if how == "offline" else KNOCKS)
