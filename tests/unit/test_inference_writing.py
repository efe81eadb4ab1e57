"""Completions that are watched, joined and given up are those that the engine gives at once."""

import pytest
from transformers import AutoModelForCausalLM

from tests import tiny
from toolkit.errors import RecipeError
from toolkit.inference import writing as module
from toolkit.inference.engine import Prompt, Sampling
from toolkit.inference.sampling import TransformersEngine
from toolkit.inference.writing import Writing, settled

WORDS = tiny.tokenizer()
DRAWN = Sampling(40, temperature=0.9)


@pytest.fixture(scope="module")
def engine(tiny_base):
    return TransformersEngine(AutoModelForCausalLM.from_pretrained(tiny_base), WORDS)


def prompts_of(numbers, **changed):
    return [
        Prompt(WORDS(f"{n}: " + "why? " * (n % 4)).input_ids, seed=n, **changed) for n in numbers
    ]


def at_once(engine, prompts):
    found = dict(engine.generate(prompts, DRAWN))
    return [found[index] for index in range(len(prompts))]


def watched(writings):
    """All of it, in turns: of each row the pieces, and the completion."""
    pieces, ended = {}, {}
    while any(writing.rows for writing in writings):
        for writing in writings:
            for each in writing.advance() if writing.rows else ():
                pieces[each.row] = pieces.get(each.row, "") + each.text
                if each.completion:
                    ended[each.row] = each.completion
    return pieces, ended


def test_what_is_watched_is_what_is_written_at_once(engine):
    free = at_once(engine, prompts_of(range(5), max_tokens=37))
    stops = (free[0].text[8:11], free[1].text[20])
    prompts = prompts_of(range(5), max_tokens=37, stop_strings=stops)
    expected = at_once(engine, prompts)
    assert len({len(each.input_ids) for each in expected}) > 2
    pieces, ended = watched([Writing(engine, prompts, DRAWN)])
    assert [ended[row] for row in range(5)] == expected
    assert [pieces[row] for row in range(5)] == [each.text for each in expected]


def test_rows_that_come_later_go_on_with_the_others(engine):
    early, late = prompts_of([0, 3, 2]), prompts_of([7, 1, 11])
    late[1] = Prompt(late[1].input_ids, late[1].seed, max_tokens=3)
    expected = at_once(engine, [*early, *late])
    writing, other = Writing(engine, early, DRAWN), Writing(engine, late, DRAWN, numbers=[3, 4, 5])
    pieces, ended = {}, {}

    def note(found):
        for each in found:
            pieces[each.row] = pieces.get(each.row, "") + each.text
            if each.completion:
                ended[each.row] = each.completion

    assert not writing.can_join(other), "its prompts have not been read"
    for _ in range(3):
        note(writing.advance())
    note(other.advance())
    assert writing.can_join(other)
    writing.join(other)
    assert not other.rows
    assert set(writing.rows) >= {3, 4, 5}
    while writing.rows:
        note(writing.advance())
        if writing.rows:
            first = writing.batch.mask[:, 0]
            assert first.any(), "columns of nothing but padding are dropped"
    assert [ended[row] for row in range(6)] == expected
    assert [pieces[row] for row in range(6)] == [each.text for each in expected]


def test_other_sampling_or_another_adapter_joins_nothing(engine):
    one, other = (Writing(engine, prompts_of([0]), sampling) for sampling in (DRAWN, Sampling(40)))
    one.advance(), other.advance()
    assert not one.can_join(other)
    with pytest.raises(RecipeError, match="several adapters"):
        Writing(engine, [*prompts_of([0]), *prompts_of([1], adapter="base")], DRAWN)


def test_one_is_given_up_and_the_others_go_on(engine):
    prompts = prompts_of(range(4))
    expected = at_once(engine, prompts)
    writing = Writing(engine, prompts, DRAWN)
    writing.advance()
    writing.drop(1)
    assert 1 not in writing.rows
    _, ended = watched([writing])
    assert {row: expected[row] for row in (0, 2, 3)} == ended


def test_a_deadline_that_is_over_writes_nothing(engine):
    (found,) = Writing(engine, prompts_of([0], deadline=0.0), DRAWN).advance()
    assert found.completion is not None
    assert (found.text, found.completion.input_ids, found.completion.stopped) == ("", [], False)


def test_looks_come_often_where_steps_are_slow(engine, monkeypatch):
    writing = Writing(engine, prompts_of([0, 1]), DRAWN)
    monkeypatch.setattr(module, "QUICK_S", 1e9)
    sizes = []
    for _ in range(4):
        sizes.append(writing.steps)
        writing.advance()
    assert sizes == [1, 2, 4, 8]
    monkeypatch.setattr(module, "QUICK_S", 0.0)
    monkeypatch.setattr(module, "SLOW_S", 0.0)
    writing.advance()
    assert writing.steps == 4


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("word", (), "word"),
        ("word \ufffd\ufffd", (), "word "),
        ("the en", ("end",), "the "),
        ("the en", ("end", "he end"), "t"),
        ("a\ufffdb", ("x",), "a\ufffdb"),
    ],
)
def test_what_may_still_change_is_held_back(text, stops, expected):
    assert settled(text, stops) == expected
