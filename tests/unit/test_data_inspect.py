import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests import tiny
from toolkit.data import inspect
from toolkit.data.files import read_objects
from toolkit.data.formats import to_standard
from toolkit.data.sequence_report import SequenceReport
from toolkit.data.sequences import Sequences, tokenize
from toolkit.models import chatml

CHAT = "<|im_start|>user\nqq<|im_end|>\n<|im_start|>assistant\naa<|im_end|>\n"


ROWS = [{"messages": [{"role": "user", "content": "q" * n}, {"role": "assistant", "content": "a"}]}
        for n in (1, 2, 30)]  # fmt: skip


def turn(asked: int, answered: int) -> list[dict[str, str]]:
    """A question and an answer of so many letters, each of which is one token."""
    return [
        {"role": "user", "content": "q" * asked},
        {"role": "assistant", "content": "a" * answered},
    ]


def standard(*rows):
    return to_standard(read_objects(rows, "rows"), origin="rows")[0]


@pytest.fixture
def words() -> PreTrainedTokenizerFast:
    tokenizer = tiny.tokenizer()
    chatml.prepare_tokenizer(tokenizer, conversational=True)
    return tokenizer


def sequence(words, *messages) -> dict:
    rows = standard({"messages": list(messages) or turn(2, 2)})
    return tokenize(rows, words, format="messages", max_length=None).dataset[0]


def printed(renderable, **options) -> str:
    screen = io.StringIO()
    Console(file=screen, width=80, highlight=False, **options).print(renderable)
    return screen.getvalue()


def test_trained_tokens_are_enclosed_without_colour(words: PreTrainedTokenizerFast):
    shown = inspect.render(sequence(words), words, colour=False).plain
    assert shown == (
        "── rows, row 1 · 25 tokens, 3 trained (12%)\n"
        "<|im_start|>user⏎\nqq<|im_end|>⏎\n<|im_start|>assistant⏎\n⟦aa<|im_end|>⟧⏎\n"
    )


def test_trained_tokens_are_coloured_and_others_are_not(words: PreTrainedTokenizerFast):
    text = inspect.render(sequence(words), words, colour=True)
    assert "⟦" not in text.plain
    styled = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert styled["aa"] == inspect.TRAINED
    assert styled["user⏎\nqq"] == inspect.CONTEXT
    trained = [style for words, style in styled.items() if inspect.TRAINED in style]
    assert len(trained) == 2  # the answer and its stop token
    assert "\x1b[1;32maa" in printed(text, force_terminal=True, color_system="standard")


def test_colour_follows_the_terminal(
    words: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
):
    assert "⟦" in inspect.render(sequence(words), words).plain
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert "⟦" not in inspect.render(sequence(words), words).plain
    monkeypatch.setenv("NO_COLOR", "1")
    assert "⟦" in inspect.render(sequence(words), words).plain


def test_a_row_cannot_write_to_the_terminal(words: PreTrainedTokenizerFast):
    hostile = {"role": "user", "content": "\x1b[2J\x1b]0;title\x07a\rb\x9bc[bold]"}
    shown = printed(inspect.render(sequence(words, hostile, turn(1, 1)[1]), words, colour=False))
    assert not [c for c in shown if (ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160]
    assert "␛[2J␛]0;title␇a␍b<9b>c[bold]" in shown


def test_json_has_ids_labels_text_and_spans(words: PreTrainedTokenizerFast):
    found = inspect.to_json(sequence(words, *turn(2, 2), *turn(1, 1)), words)
    assert json.loads(json.dumps(found)) == found
    assert (found["source"], found["row"]) == ("rows", 1)
    # 25 tokens; then 20 up to the answer (8 and the letter, and 11), the letter and the stop token
    assert found["spans"] == [
        {"start": 21, "end": 24, "text": "aa<|im_end|>"},
        {"start": 45, "end": 47, "text": "a<|im_end|>"},
    ]
    assert found["text"] == CHAT + CHAT.replace("qq", "q").replace("aa", "a")
    assert found["text"] == words.decode(found["input_ids"])
    for span in found["spans"]:
        inside = range(span["start"], span["end"])
        assert (
            found["labels"][inside.start : inside.stop]
            == found["input_ids"][inside.start : inside.stop]
        )
    outside = [label for label in found["labels"] if label != -100]
    assert len(outside) == sum(span["end"] - span["start"] for span in found["spans"])


def test_the_beginning_of_a_sequence_for_the_manifest(words: PreTrainedTokenizerFast):
    found = inspect.marked(sequence(words), words, most=22)
    assert (found["source"], found["row"], found["tokens"], found["trained"]) == ("rows", 1, 25, 3)
    before, after = found["spans"]
    assert before == ("<|im_start|>user\nqq<|im_end|>\n<|im_start|>assistant\n", False)
    assert after == ("a", True)  # of three trained tokens, the first


def test_spans_of_a_tokenizer_that_hides_the_first_space(stories: Path):
    tokenizer = AutoTokenizer.from_pretrained(stories)
    rows = standard({"prompt": "Once upon", "completion": " a time"})
    row = tokenize(rows, tokenizer, format="prompt_completion", max_length=None).dataset[0]
    (span,) = inspect.to_json(row, tokenizer)["spans"]
    assert span["text"] == " a time</s>"


def test_statistics_fit_in_80_columns(words: PreTrainedTokenizerFast):
    found = tokenize(standard(*ROWS), words, format="messages", max_length=30)
    lines = [line.rstrip() for line in printed(inspect.statistics({"train": found})).splitlines()]
    assert lines[0].split() == [
        "data",
        "rows",
        "sequences",
        "tokens",
        "trained",
        "split",
        "cut",
        "no",
        "stop",
        "lost",
    ]
    assert lines[1].split() == ["train", "3", "2", "47", "8.5%", "0", "1", "0", "1"]
    assert lines[2] == "trained: the assistant's turns"


def test_statistics_of_a_large_mixture_fit_too():
    large = SequenceReport(
        mode="the completion", max_length=4096, rows=12_345_678, sequences=23_456_789,
        tokens=9_876_543_210, trained_tokens=1_234_567_890, longest=99_999, rows_split=1_234_567,
        rows_cut=1_234_567, rows_stop_lost=1_234_567, rows_overlong=12,
        turns_lost=1_234_567, rows_single=0,
    )  # fmt: skip
    names = ("HuggingFaceTB/smoltalk2_everyday_convs", "/very/long/path/to/some/file.jsonl")
    found = Sequences(standard(*ROWS), large, dict.fromkeys(names, large))
    shown = printed(inspect.statistics({"train": found}))
    assert max(map(len, shown.splitlines())) <= 80
    for number in ("12.3M", "23.5M", "9.88B", "12.5%", "1.23M", "12+1.23M"):
        assert number in shown
    assert "lost: rows + turns of others" in shown
