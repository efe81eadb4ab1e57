"""Pictures that leave this machine: nothing in them but what is drawn, and no other model's name."""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from toolkit.artifacts import pictures, plots
from toolkit.artifacts.card import About, model_card
from toolkit.errors import HubError

SECRET = b"hf_" + b"Zq7" * 12
LOG = [{"step": step, "loss": 1.0 / step, "learning_rate": 1e-3} for step in range(1, 9)]


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content)) + kind + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )  # fmt: skip


def with_text(image: bytes, kind: bytes, content: bytes) -> bytes:
    """A PNG with one more chunk behind its first."""
    at = 8 + 25
    return image[:at] + chunk(kind, content) + image[at:]


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """The folder of a stage with its picture."""
    folder = tmp_path / "run" / "sft"
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in LOG))
    plots.draw("sft", folder, pytest.fail)
    (folder / "stage.json").write_text(
        json.dumps({"stage": "sft", "name": "sft", "recipe": {"stage": "sft"}, "outputs": {}})
    )
    return folder


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def test_what_a_stage_has_drawn_goes_byte_for_byte(stage, scratch):
    found = pictures.pictures_of(stage, scratch, About("me/thing"))
    assert list(found) == ["plots/training.png"]
    assert found["plots/training.png"] == stage / "plots" / "training.png"
    text = model_card(stage, About("me/thing", pictures=list(found)))
    assert "![Curves of its training, over the steps](plots/training.png)" in text


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (b"tEXt", b"Comment\0" + SECRET),
        (b"zTXt", b"Comment\0\0" + zlib.compress(SECRET)),
        (b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(b"made with " + SECRET)),
        (b"iTXt", b"x\0\1\0\0\0" + zlib.compress(SECRET, 9)),
        (b"eXIf", b"II*\0" + SECRET),
    ],
)
def test_a_secret_in_a_hidden_text_stops_the_push(kind, content, stage, scratch):
    file = stage / "plots" / "training.png"
    file.write_bytes(with_text(file.read_bytes(), kind, content))
    with pytest.raises(
        HubError, match=r"plots/training\.png, a text inside it: looks as if"
    ) as raised:
        pictures.pictures_of(stage, scratch, About("me/thing"))
    assert SECRET.decode() not in str(raised.value)


def test_hidden_texts_stay_here_and_the_picture_is_the_same(stage, scratch):
    file = stage / "plots" / "training.png"
    drawn = file.read_bytes()
    texts = with_text(drawn, b"tEXt", b"Source\0/home/me/run") + b"behind the end: /home/me"
    file.write_bytes(with_text(texts, b"tIME", b"\7\xea\1\1\0\0\0"))
    found = pictures.pictures_of(stage, scratch, About("me/thing"))["plots/training.png"]
    assert found.read_bytes() == drawn
    with Image.open(found) as image:
        image.load()
        assert image.size[0] == 1440


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n\0\0\1\0IHDR", b"\x89PNG"])
def test_another_file_under_a_picture_s_name_is_refused(content, stage, scratch):
    (stage / "plots" / "mine.png").write_bytes(content)
    with pytest.raises(HubError, match=r"plots/mine\.png: expected a PNG, found another file"):
        pictures.pictures_of(stage, scratch, About("me/thing"))


def test_the_exam_is_drawn_again_with_no_other_model_than_the_card_has(stage, scratch, monkeypatch):
    row: dict[str, Any] = {
        "task": "sums", "accuracy": 0.5, "low": 0.4, "high": 0.6, "greedy": 0.5,
        "greedy_low": 0.4, "greedy_high": 0.6, "n": 10, "samples": 2,
    }  # fmt: skip
    names = ["base", "sft", "org/rival", "/home/me/other"]
    (stage.parent / "exam" / "plots").mkdir(parents=True)
    (stage.parent / "exam" / "report.json").write_text(
        json.dumps({"exam": [{**row, "stage": name} for name in names]})
    )
    shown: list[str] = []
    draw = plots.exam_figure
    monkeypatch.setattr(
        plots, "exam_figure", lambda rows: (shown.extend(r["stage"] for r in rows), draw(rows))[1]
    )
    found = pictures.pictures_of(stage, scratch, About("me/thing"))
    assert shown == ["base", "sft"]
    assert found["plots/exam.png"] == scratch / "plots" / "exam.png"
    text = model_card(stage, About("me/thing", pictures=list(found)))
    assert "of each model and task](plots/exam.png)" in text[text.index("## Evaluation") :]
