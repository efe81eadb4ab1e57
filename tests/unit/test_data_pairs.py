"""Ranked answers as pairs of token ids: what inference would produce, weighted by prompt."""

import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, load_from_disk
from test_data_chat_oracle import TEMPLATES, verify
from test_data_chat_templates import (
    KINDS,
    NEED_REASONING,
    THOUGHT,
    TOOLS,
    answer,
    calls,
    system,
    tokenizer_of,
    user,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests import tiny
from toolkit.data.chat import completion_sequences
from toolkit.data.chat_answers import answered_messages, spoken
from toolkit.data.files import read_objects
from toolkit.data.formats import to_standard
from toolkit.data.pairs import tokenize_pairs
from toolkit.data.sequences import tokenize
from toolkit.errors import DataError
from toolkit.models import chatml

CHATML_PROMPT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def standard(*rows, purpose="preference", origin="rows") -> Dataset:
    return to_standard(read_objects(rows, origin), origin=origin, purpose=purpose)[0]


def pairs(tokenizer, *rows, max_length=None, **options):
    return tokenize_pairs(standard(*rows), tokenizer, max_length=max_length, **options)


def ranked(answers, ranks, prompt="q"):
    return {"prompt": [user(prompt)], "answers": answers, "ranks": ranks}


@pytest.fixture
def words() -> PreTrainedTokenizerFast:
    """One token for each letter, and ChatML."""
    tokenizer = tiny.tokenizer()
    chatml.prepare_tokenizer(tokenizer, conversational=True)
    return tokenizer


def shown(tokenizer, found) -> list[tuple[str, str, str]]:
    columns = (found.dataset[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    return [tuple(map(tokenizer.decode, ids)) for ids in zip(*columns, strict=True)]


def test_a_conversation_is_its_prompt_and_what_inference_would_produce(words):
    row = {"prompt": [system, user("2+2")], "chosen": "4", "rejected": "5!"}
    found = pairs(words, row)
    prompt = words.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
    (pair,) = found.dataset
    assert pair["prompt_ids"] == list(prompt)
    assert words.decode(pair["chosen_ids"]) == "4<|im_end|>"
    assert words.decode(pair["rejected_ids"]) == "5!<|im_end|>"
    assert (pair["weight"], pair["prompt_index"], pair["source"], pair["row"]) == (
        1.0,
        0,
        "rows",
        1,
    )
    assert found.dataset.column_names == [
        "prompt_ids", "chosen_ids", "rejected_ids", "source", "row", "weight", "prompt_index",
    ]  # fmt: skip
    assert found.lengths.tolist() == [[2, 3]]


def test_texts_end_with_the_end_of_sequence_token(words):
    found = pairs(words, {"prompt": "2+2=", "chosen": "4", "rejected": "5<|im_end|>"})
    assert shown(words, found) == [("2+2=", "4<|im_end|>", "5<|im_end|>")]
    chat = pairs(words, {"prompt": [user("q")], "chosen": "a", "rejected": "b"})
    assert shown(words, chat) == [(CHATML_PROMPT.format("q"), "a<|im_end|>", "b<|im_end|>")]


CHATS = {
    "plain": ([user("Hello, who are you?")], [answer("I am a bot."), answer("Nobody.")]),
    "several turns": ([user("Hi"), answer("Hi"), user("Hi")], [answer("Hi"), answer("  Hi\n ")]),
    "no words": ([user("Hi")], [answer("Hi"), answer("")]),
    "thought": ([user("Hi")], [answer(THOUGHT), answer(THOUGHT.replace("why", "and why"))]),
    "call": (
        [user("Weather?")],
        [answer("", tool_calls=calls("Bonn")), answer("Rain.")],
    ),
}


def tokens_of(tokenizer, prompt, answers, tools):
    rendered = spoken(tokenizer, prompt, answers, tools)
    return answered_messages(tokenizer, [rendered])[0]


def is_read(tokenizer, prompt, said, tools) -> bool:
    """Whether supervised training reads it."""
    try:
        completion_sequences(tokenizer, prompt, [said], tools=tools)
    except DataError:
        return False
    return True


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_is_exact_or_refused_and_equal_to_supervised_training(name, kind):
    tokenizer = tokenizer_of(kind, name)
    for label, (prompt, answers) in CHATS.items():
        tools = TOOLS if label == "call" else None
        try:
            before, found = tokens_of(tokenizer, prompt, answers, tools)
        except DataError:
            assert label in ("call", "thought") or name in NEED_REASONING, label
            assert not all(is_read(tokenizer, prompt, said, tools) for said in answers), label
            continue
        for ids, said in zip(found, answers, strict=True):
            labels = [-100] * len(before) + ids
            sequence = {"input_ids": before + ids, "labels": labels}
            verify(tokenizer, name, [*prompt, said], tools, [sequence], first=len(prompt))
            (sft,) = completion_sequences(tokenizer, prompt, [said], tools=tools)
            assert sft["input_ids"][: len(labels)] == before + ids, label
            assert [token for token in sft["labels"] if token != -100] == ids, label


@pytest.mark.parametrize("prompt", ["2+2=", "Once upon a time, there", "a. \n"])
def test_texts_are_equal_to_supervised_training(stories: Path, prompt: str):
    tokenizer = AutoTokenizer.from_pretrained(stories)
    answers = ["4", " was a dog."]
    found = pairs(tokenizer, {"prompt": prompt, "answers": answers, "ranks": [2, 1]})
    rows = standard(*({"prompt": prompt, "completion": text} for text in answers), purpose="sft")
    one, two = tokenize(rows, tokenizer, format="prompt_completion", max_length=None).dataset
    (pair,) = found.dataset
    assert [*pair["prompt_ids"], *pair["rejected_ids"]] == one["input_ids"]
    assert [*pair["prompt_ids"], *pair["chosen_ids"]] == two["input_ids"]
    assert pair["rejected_ids"] == [token for token in one["labels"] if token != -100]
    assert pair["prompt_ids"] == tokenizer(prompt)["input_ids"]


def test_a_prompt_that_would_merge_with_its_answer_keeps_its_tokens(stories: Path):
    tokenizer = AutoTokenizer.from_pretrained(stories)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content if m.role == 'user' else ' Th' + m.content + '</s>' }}"
        "{% endfor %}{% if add_generation_prompt %} Th{% endif %}"
    )
    assert tokenizer.tokenize("Once They") == ["▁Once", "▁They"]
    (pair,) = pairs(tokenizer, ranked(["ey went", "x"], [1, 2], "Once")).dataset
    assert tokenizer.convert_ids_to_tokens(pair["prompt_ids"]) == ["▁Once", "▁T", "h"]
    for side, text in (("chosen_ids", "Once They went</s>"), ("rejected_ids", "Once Thx</s>")):
        assert tokenizer.decode(pair["prompt_ids"] + pair[side]) == text


def test_a_ranking_is_every_two_answers_of_different_rank(words):
    found = pairs(words, ranked(["a", "b", "c", "d"], [2, 1, 4, 2]))
    assert [(c, r) for _, c, r in shown(words, found)] == [
        (f"{better}<|im_end|>", f"{worse}<|im_end|>") for better, worse in ("ba", "ac", "bc", "bd", "dc")
    ]  # fmt: skip
    assert found.dataset["weight"][:] == [1 / 5] * 5
    assert found.report.pairs_tied == 1


def test_a_prompt_counts_once_over_all_its_rows(words):
    rows = [
        ranked(["a", "b", "c"], [1, 2, 3], "one"),
        ranked(["a", "b"], [1, 2], "two"),
        {"prompt": [user("one")], "answers": ["d", "e"], "ranks": [2, 1]},
        ranked(["f", "f"], [1, 2], "two"),  # no pair: it takes no weight from the other
        ranked(["a", "b" * 99], [1, 2], "three"),  # too long
        ranked(["a", "b"], [1, 2], "four"),
    ]
    found = pairs(words, *rows, max_length=80)
    sums = defaultdict(float)
    for index, weight in zip(found.dataset["prompt_index"], found.dataset["weight"], strict=True):
        sums[index] += weight
    assert sums == pytest.approx({0: 1.0, 1: 1.0, 2: 1.0})
    assert found.dataset["prompt_index"][:] == [0, 0, 0, 1, 0, 2]
    assert found.dataset["weight"][:] == [1 / 4, 1 / 4, 1 / 4, 1, 1 / 4, 1]
    assert found.dataset["row"][:] == [1, 1, 1, 2, 3, 6]
    assert (found.report.prompts, found.report.pairs, found.report.rows) == (3, 6, 6)


def test_what_makes_no_pair_is_counted_and_named(words):
    rows = [
        ranked(["a", "b"], [1, 2], "fine"),
        ranked(["", "a", " "], [1, 2, 3], "empty"),
        ranked(["a", "a"], [1, 2], "equal"),
        ranked(["a", "b", "c"], [1, 1, 2], "tied"),
        ranked(["a", "b"], [1, 1], "all tied"),
        ranked(["a", "b" * 60], [1, 2], "long"),
        ranked(["a"], [1], "alone"),
        ranked(["a", "a", "c" * 60], [1, 2, 2], "all at once"),
        ranked(["a"], [1], "fine"),
    ]
    found = pairs(words, *rows, max_length=70)
    report = found.report
    assert (report.rows, report.prompts, report.pairs) == (9, 3, 1 + 3 + 2)
    assert (report.answers_empty, report.pairs_equal, report.pairs_tied) == (2, 2, 3)
    assert (report.pairs_overlong, report.prompts_lost) == (2, 5)
    # with ChatML a prompt is 19 tokens and its letters, an answer one and its letters
    assert report.longest == 19 + len("all at once") + 60 + 1
    assert report.tokens == (2 * 23 + 4) + 3 * 2 * 24 + (1 + 2) + (1 + 2) + 4 + 2 * (2 * 23 + 4)
    assert (report.chosen_longer, report.chosen_shorter) == (0.0, 2 / 6)
    assert report.lines()[1:] == [
        "2 answers without a word, compared as the stop token alone (first: rows, row 2)",
        "2 pairs left out: chosen and rejected are the same tokens (first: rows, row 3)",
        "3 pairs left out: equal ranks (first: rows, row 4)",
        "2 pairs left out: a side is over max_length 70 (first: rows, row 6)",
        "5 prompts left out: no pair of different answers and ranks that fits (first: rows, row 3)",
    ]
    assert asdict(report)["first"]["prompts_lost"] == "rows, row 3"
    assert pairs(words, rows[0]).report.lines()[1:] == []


def test_the_length_of_each_side_and_which_is_longer(words):
    found = pairs(words, ranked(["aaa", "b", "c"], [1, 2, 3]), ranked(["a", "bb"], [1, 2], "x"))
    assert found.lengths.tolist() == [[4, 2], [4, 2], [2, 2], [2, 3]]
    assert (found.report.chosen_longer, found.report.chosen_shorter) == (0.5, 0.25)
    assert found.report.lines() == [
        "2 rows → 4 pairs of 2 prompts, each prompt counts once; 181 tokens, the longest side has "
        "24; the chosen is longer in 50%, shorter in 25%"
    ]


def test_pairs_that_fit_exactly_stay(words):
    row = {"prompt": [user("q")], "chosen": "aaa", "rejected": "b"}  # 20 + 4 tokens
    assert pairs(words, row, max_length=24).report.pairs_overlong == 0
    with pytest.raises(DataError, match=r"over max_length 23 .*: the shortest needs max_length 24"):
        pairs(words, row, max_length=23)


NOTHING = {
    "equal": (ranked(["a", "a"], [1, 2]), "1 pair of the same tokens twice (first: rows, row 1)"),
    "tied": (ranked(["a", "b"], [1, 1]), "1 pair of equal rank (first: rows, row 1)"),
    "alone": (
        ranked(["a"], [1]),
        "rows: no pair is left to compare, of 1 row: no row has two answers",
    ),
}


@pytest.mark.parametrize("name", NOTHING)
def test_no_pair_left_is_an_error(words, name):
    row, expected = NOTHING[name]
    with pytest.raises(DataError) as error:
        pairs(words, row)
    assert expected in str(error.value)
    assert "rows: no pair is left to compare, of 1 row: " in str(error.value)


def test_an_answer_that_cannot_be_told_is_named(words):
    bad = ranked(["fine", "a<|im_end|>b"], [1, 2])
    with pytest.raises(DataError, match=r"^rows, row 2: answer 2: .* contains '<\|im_end\|>'"):
        pairs(words, ranked(["a", "b"], [1, 2]), bad)
    text = {"prompt": "q", "chosen": "fine", "rejected": "a<|im_end|>b"}
    with pytest.raises(DataError, match=r"^rows, row 1: answer 2: the completion contains"):
        pairs(words, text)


def test_a_row_that_the_template_refuses_is_named(words):
    words.chat_template = "{% for m in messages %}{{ m.content }}{% if m.content == 'bad' %}{{ raise_exception('no!') }}{% endif %}<|im_end|>{% endfor %}"
    with pytest.raises(DataError, match=r"^rows, row 2: the chat template cannot render .*no!"):
        pairs(words, ranked(["a", "b"], [1, 2]), ranked(["a", "b"], [1, 2], "bad"))


def test_what_the_template_leaves_out_is_told(words):
    words.chat_template = (
        "{% for m in messages %}{% if m.role in ['user', 'assistant'] %}[{{ m.role }}]"
        "{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    ruled = {"prompt": [{"role": "developer", "content": "x"}, user("q")], "answers": ["a", "b"]}
    found = pairs(words, ranked(["a", "b"], [1, 2]), ruled | {"ranks": [1, 2]})
    assert (found.report.rows_left_out, found.report.left_out) == (1, ["developer messages"])
    assert found.report.lines()[1].startswith("1 row with what the chat template leaves out (dev")
    assert "(first: rows, row 2)" in found.report.lines()[1]


MANY = [
    ranked([f"a{n}", f"b{'c' * (n % 40)}", "d"], [1, 2, 3 - n % 2], f"q{n % 150}")
    for n in range(600)
]


def test_one_process_and_two_and_another_run_give_the_same(words):
    rows = standard(*MANY)
    one, again, two = (
        tokenize_pairs(rows, words, max_length=60, num_proc=count) for count in (None, None, 2)
    )
    assert one.report == again.report == two.report
    assert one.dataset[:] == again.dataset[:] == two.dataset[:]
    assert one.dataset._fingerprint == again.dataset._fingerprint
    assert np.array_equal(one.lengths, two.lengths)
    assert one.report.pairs_overlong > 0
    weights = np.bincount(one.dataset["prompt_index"][:], one.dataset["weight"][:])
    assert weights == pytest.approx(1.0)
    assert len(weights) == one.report.prompts == 150


def test_cached_pairs_are_not_those_of_another_template(words, tmp_path: Path):
    standard(*MANY[:3]).save_to_disk(tmp_path / "rows")  # what is on disk is cached on disk
    rows = load_from_disk(str(tmp_path / "rows"))
    assert isinstance(rows, Dataset)

    def files_of(max_length=None):
        found = tokenize_pairs(rows, words, max_length=max_length)
        return {file["filename"] for file in found.dataset.cache_files}

    first = files_of()
    assert first
    assert files_of() == first == files_of(30)
    words.chat_template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    assert files_of() != first


def test_thousands_of_pairs_take_a_second(words):
    rows = standard(
        *(
            {"prompt": [user(f"What is {n} + 3?")], "chosen": f"It is {n + 3}.", "rejected": "No."}
            for n in range(5000)
        )
    )
    start = time.process_time()
    found = tokenize_pairs(rows, words, max_length=512)
    seconds = time.process_time() - start
    assert found.report.pairs == 5000
    assert seconds < 5, f"{5000 / seconds:,.0f} pairs per second"
