from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, load_from_disk
from transformers import PreTrainedTokenizerFast

from tests import tiny
from toolkit.data.files import read_objects
from toolkit.data.formats import to_standard
from toolkit.data.sequence_report import check_stops, readable, report_of
from toolkit.data.sequences import tokenize
from toolkit.data.splits import joined
from toolkit.errors import DataError
from toolkit.models import chatml

# Of a turn, `history` leaves out what is before the bar; so each turn needs a sequence of its own.
SPLITTING = (
    "{% for m in messages %}[{{ m.role }}]"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('|')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def turn(asked: int, answered: int) -> list[dict[str, str]]:
    """A question and an answer of so many letters, each of which is one token."""
    return [
        {"role": "user", "content": "q" * asked},
        {"role": "assistant", "content": "a" * answered},
    ]


def standard(*rows, origin: str = "rows") -> Dataset:
    return to_standard(read_objects(rows, origin), origin=origin)[0]


@pytest.fixture
def words() -> PreTrainedTokenizerFast:
    tokenizer = tiny.tokenizer()
    chatml.prepare_tokenizer(tokenizer, conversational=True)
    return tokenizer


# With ChatML a turn is 21 tokens and its letters: <|im_start|> user⏎ … <|im_end|> ⏎ are 8, and
# <|im_start|> assistant⏎ … <|im_end|> ⏎ are 13. The answer and its <|im_end|> are trained.
ROWS = [
    {"messages": turn(2, 2)},  # 25 tokens, 3 trained
    {"messages": turn(2, 10)},  # 33, the stop token is the 32nd: cut, 9 trained
    {"messages": turn(20, 2)},  # 43, the first trained token is the 40th: lost
    {"messages": turn(2, 2) + turn(40, 1)},  # 87: of the first turn 3 are trained
    {"messages": turn(2, 8)},  # 31: only the newline after the stop token is cut, 9 trained
]


def test_every_row_is_accounted_for(words: PreTrainedTokenizerFast):
    found = tokenize(standard(*ROWS), words, format="messages", max_length=30)
    report = found.report
    assert (report.rows, report.sequences, report.longest) == (5, 4, 87)
    assert (report.tokens, report.trained_tokens) == (25 + 30 + 30 + 30, 3 + 9 + 3 + 9)
    assert (report.rows_cut, report.rows_stop_lost, report.rows_split) == (4, 2, 0)
    assert (report.rows_overlong, report.rows_lost, report.stops_lost) == (1, 1, 3 / 5)
    assert report.lines() == [
        "5 rows → 4 sequences, 115 tokens, 21% trained: the assistant's turns; the longest has 87",
        "4 rows (rows 2, 3, 4, 5) cut at max_length 30; 2 lose their stop token",
        "1 row (row 3) lost, not trained: no trained token within max_length 30",
    ]
    assert found.dataset["row"][:] == [1, 2, 4, 5]
    assert found.dataset.column_names == ["input_ids", "labels", "source", "row"]
    assert [len(ids) for ids in found.dataset["input_ids"]] == [25, 30, 30, 30]


def test_nothing_is_cut_without_a_max_length(words: PreTrainedTokenizerFast):
    report = tokenize(standard(*ROWS), words, format="messages", max_length=None).report
    assert (report.sequences, report.rows_cut, report.rows_lost) == (5, 0, 0)
    assert report.tokens == 25 + 33 + 43 + 87 + 31
    assert len(report.lines()) == 1


def test_labels_are_the_answer_and_its_stop_token(words: PreTrainedTokenizerFast):
    (row,) = tokenize(standard(ROWS[0]), words, format="messages", max_length=None).dataset
    trained = [(at, label) for at, label in enumerate(row["labels"]) if label != -100]
    assert [at for at, _ in trained] == [21, 22, 23]
    assert words.decode([label for _, label in trained]) == "aa<|im_end|>"
    assert [row["input_ids"][at] for at, _ in trained] == [label for _, label in trained]


def test_rows_split_and_turns_lost(words: PreTrainedTokenizerFast):
    words.chat_template = SPLITTING
    two = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "why|yes"}]
    rows = standard({"messages": two * 2}, {"messages": [*two, *turn(50, 1)]})
    found = tokenize(rows, words, format="messages", max_length=60)
    assert (found.report.rows_split, found.report.turns_lost, found.report.sequences) == (2, 1, 3)
    assert found.dataset["row"][:] == [1, 1, 2]
    assert "2 rows (rows 1, 2) split, one sequence per assistant turn" in found.report.lines()[1]
    lost = "1 turn (row 2) lost, not trained: what precedes fills max_length 60"
    assert lost in found.report.lines()
    shown = [words.decode(ids) for ids in found.dataset["input_ids"]]
    assert shown[1].endswith(
        "[assistant]yes<|im_end|>[user]q<|im_end|>[assistant]why|yes<|im_end|>"
    )


def test_the_three_forms_and_what_each_trains(words: PreTrainedTokenizerFast):
    def one(row, form, **options):
        found = tokenize(standard(row), words, format=form, max_length=None, **options)
        labels = [label for label in found.dataset[0]["labels"] if label != -100]
        return words.decode(labels), found.report.mode

    messages, pair, text = (
        {"messages": turn(2, 2)},
        {"prompt": "q: ", "completion": "a"},
        {"text": "t"},
    )
    chat = {"prompt": turn(2, 2)[:1], "completion": turn(2, 2)[1:]}
    everything = words.apply_chat_template(messages["messages"], tokenize=False)
    assert one(messages, "messages") == ("aa<|im_end|>", "the assistant's turns")
    assert one(messages, "messages", assistant_only_loss=False) == (everything, "every token")
    assert one(pair, "prompt_completion") == ("a<|im_end|>", "the completion")
    assert one(pair, "prompt_completion", completion_only_loss=False) == (
        "q: a<|im_end|>",
        "every token",
    )
    assert one(chat, "prompt_completion") == ("aa<|im_end|>", "the completion")
    assert one(chat, "prompt_completion", completion_only_loss=False) == (everything, "every token")
    assert one(text, "text") == ("t<|im_end|>", "every token")


def test_one_process_and_two_give_the_same(words: PreTrainedTokenizerFast):
    rows = standard(*ROWS * 3)
    one, two = (
        tokenize(rows, words, format="messages", max_length=30, num_proc=count)
        for count in (None, 2)
    )
    assert one.report == two.report
    assert one.dataset[:] == two.dataset[:]


def test_cached_sequences_are_not_those_of_another_template(
    words: PreTrainedTokenizerFast, tmp_path: Path
):
    standard(*ROWS).save_to_disk(tmp_path / "rows")  # what is on disk is cached on disk
    rows = load_from_disk(str(tmp_path / "rows"))
    assert isinstance(rows, Dataset)

    def files_of(**options):
        found = tokenize(rows, words, format="messages", **{"max_length": None, **options})
        return [file["filename"] for file in found.dataset.cache_files]

    first = files_of()
    assert first
    assert files_of() == first
    assert files_of(max_length=30) != first
    assert files_of(assistant_only_loss=False) != first
    words.chat_template = SPLITTING
    assert files_of() != first


def test_a_mixture_is_accounted_for_by_data_set(words: PreTrainedTokenizerFast):
    rows = joined([standard(*ROWS[:2], origin="a.jsonl"), standard(ROWS[2], origin="b.jsonl")], "")
    found = tokenize(rows, words, format="messages", max_length=30)
    assert {name: (r.rows, r.sequences, r.rows_lost) for name, r in found.by_dataset.items()} == {
        "a.jsonl": (2, 2, 0),
        "b.jsonl": (1, 0, 1),
    }
    assert found.by_dataset["b.jsonl"].trained_tokens == 0
    assert "2 rows (rows a.jsonl:2, b.jsonl:1) cut" in found.report.lines()[1]
    assert tokenize(standard(*ROWS), words, format="messages", max_length=30).by_dataset == {}


def test_keep_end_cuts_the_beginning_off(words: PreTrainedTokenizerFast):
    rows = [
        {"messages": turn(20, 2)},  # 43 tokens, 3 trained at 39..41: the question is cut
        {"messages": turn(2, 40)},  # 63, 41 trained at 21..61: the answer begins before the cut
        {"messages": [*turn(2, 2), *turn(40, 1)[:1]]},  # 73: what follows fills max_length: lost
        {"messages": turn(2, 2)},  # 25: whole
    ]
    options = {"format": "messages", "max_length": 30}
    found = tokenize(standard(*rows), words, truncation_mode="keep_end", **options)
    assert [len(ids) for ids in found.dataset["input_ids"]] == [30, 30, 25]
    whole = tokenize(standard(*rows), words, format="messages", max_length=None).dataset
    for row in found.dataset:
        (full,) = [one for one in whole if one["row"] == row["row"]]
        for name in ("input_ids", "labels"):
            assert row[name] == full[name][-30:]
    report = found.report
    assert (report.rows_cut, report.rows_overlong, report.rows_stop_lost) == (3, 1, 0)
    assert (report.rows_start_lost, report.trained_tokens) == (1, 3 + 29 + 3)
    assert (
        "3 rows (rows 1, 2, 3) cut to the last 30 (max_length); 1 loses its first trained tokens"
        in report.lines()
    )
    start = tokenize(standard(*rows), words, **options)
    assert start.dataset["row"][:] == [2, 3, 4]
    with pytest.raises(DataError, match=r"row 1, is number 2 from the end; raise max_length"):
        tokenize(
            standard(rows[0]), words, format="messages", max_length=1, truncation_mode="keep_end"
        )


def test_what_the_template_leaves_out_is_told(words: PreTrainedTokenizerFast):
    words.chat_template = (
        "{% for m in messages %}{% if m.role in ['user', 'assistant'] %}[{{ m.role }}]"
        "{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    rule = {"role": "developer", "content": "q"}  # the question says it too
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    rows = standard(
        {"messages": turn(1, 1), "tools": None},
        {"messages": [rule, *turn(1, 1)], "tools": None},
        {"messages": [{"role": "system", "content": "s"}, rule, *turn(1, 1)], "tools": [tool]},
    )
    report = tokenize(rows, words, format="messages", max_length=None).report
    assert (report.rows_left_out, report.sequences) == (2, 3)
    assert set(report.left_out) == {"developer messages", "system messages", "the tools"}
    assert any(
        line.startswith("2 rows (rows 2, 3) with what the chat template leaves out (")
        and "chat_template_path" in line
        for line in report.lines()
    )
    chat = standard({"prompt": [rule, *turn(1, 1)[:1]], "completion": turn(1, 1)[1:]})
    report = tokenize(chat, words, format="prompt_completion", max_length=None).report
    assert report.left_out == ["developer messages"]
    words.chat_template = words.chat_template.replace("'user',", "'user', 'developer', 'system',")
    report = tokenize(rows, words, format="messages", max_length=None).report
    assert report.left_out == ["the tools"]


def test_what_is_left_out_where_every_token_is_trained(words: PreTrainedTokenizerFast):
    thought = [*turn(1, 1)[:1], {**turn(1, 1)[1], "reasoning_content": "why"}]
    options = {"format": "messages", "max_length": None, "assistant_only_loss": False}
    rows = standard({"messages": turn(1, 1)}, {"messages": thought})
    report = tokenize(rows, words, **options).report
    assert (report.rows_left_out, report.sequences) == (1, 2)
    assert report.left_out == ["the assistant's reasoning (`reasoning_content`)"]
    words.chat_template = SPLITTING  # shows less of an earlier turn than of the last
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "why | yes"}]
    report = tokenize(standard({"messages": said * 2}), words, **options).report
    assert report.left_out == ["the assistant's content"]
    assert tokenize(standard({"messages": said}), words, **options).report.left_out == []


def test_nothing_left_to_train_is_an_error(words: PreTrainedTokenizerFast):
    with pytest.raises(
        DataError, match=r"max_length 20: .* of rows, row 1, is number 22; raise max"
    ):
        tokenize(standard(*ROWS), words, format="messages", max_length=20)


def test_a_broken_template_names_the_row(words: PreTrainedTokenizerFast):
    words.chat_template = "{% for m in messages %}{{ m.content }}{% if m.content == 'bad' %}{{ raise_exception('no!') }}{% endif %}<|im_end|>{% endfor %}"
    bad = [{"role": "user", "content": "bad"}, *turn(1, 1)[1:]]
    rows = standard({"messages": turn(1, 1)}, {"messages": bad})
    for only in (True, False):
        with pytest.raises(
            DataError, match=r"rows, row 2: the chat template cannot render .*no!"
        ) as error:
            tokenize(rows, words, format="messages", max_length=None, assistant_only_loss=only)
        assert "\n" not in str(error.value)


def test_many_lost_stop_tokens_are_refused(words: PreTrainedTokenizerFast):
    def report(long: int, **options):
        rows = [{"messages": turn(2, 2)}] * (20 - long) + [{"messages": turn(2, 9)}] * long
        return tokenize(standard(*rows), words, format="messages", max_length=30, **options).report

    check_stops(report(1))  # 5 %
    with pytest.raises(DataError) as error:
        check_stops(report(2))
    assert str(error.value) == (
        "max_length 30: 2 of 20 rows (10%; rows 19, 20) lose their stop token, more than 5%, and the "
        "model would not learn to end: raise max_length to 31, or set truncation_mode: keep_end, or "
        "take the longest rows out"
    )
    check_stops(report(2, truncation_mode="keep_end"))
    assert report(2).stops_kept_at == 31
    lost = tokenize(standard(*ROWS[:3]), words, format="messages", max_length=35).report
    assert (lost.rows_overlong, lost.rows_stop_lost, lost.stops_lost) == (1, 0, 1 / 3)
    with pytest.raises(DataError, match=r"1 of 3 rows \(33%; row 3\) lose their stop token"):
        check_stops(lost)


def test_the_max_length_that_is_told_is_enough():
    """Also where a row is several sequences: two of twenty rows end late, of forty sequences."""
    last = np.array([[4, 9]] * 18 + [[4, 29]] * 2).ravel()

    def report(max_length):
        length = last + 1
        kept = np.minimum(length, max_length)
        counts = {
            "at": np.arange(40),
            "part": np.array([0, 1] * 20),
            "length": length,
            "kept": kept,
        }
        counts |= {"first_trained": length * 0, "last_trained": last, "trained": length}
        counts["left_out"] = np.array([""] * 40)
        return report_of(counts, str, mode="", max_length=max_length, truncation_mode="keep_start")

    with pytest.raises(DataError, match=r"2 of 20 rows .* raise max_length to 30"):
        check_stops(report(10))
    check_stops(report(30))


@pytest.mark.parametrize(
    ("number", "text"),
    [(999, "999"), (54_321, "54,321"), (123_456, "123k"), (4_020_000_000, "4.02B")],
)
def test_readable(number, text):
    assert readable(number) == text
