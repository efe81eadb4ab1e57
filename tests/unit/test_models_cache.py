"""A cache with room: what transformers' own holds, without copies of it."""

import pytest
import torch
from transformers import DynamicCache

from toolkit.models.cache import ROOM, with_room


def states(tokens, rows=3):
    return torch.rand(rows, 2, tokens, 4), torch.rand(rows, 2, tokens, 4)


def both():
    """The same prompt in a plain cache and in one with room."""
    plain, roomy, prompt = DynamicCache(), DynamicCache(), states(5)
    plain.update(*prompt, 0)
    roomy.update(*prompt, 0)
    return plain, with_room(roomy)


def test_it_holds_what_a_plain_one_holds_whatever_happens_to_its_rows():
    plain, roomy = both()
    rows = 3
    for step in range(2 * ROOM):
        if step in (7, 8, 30):
            places = torch.tensor([0, 2, 1, 1][: 4 if step == 7 else rows - 1])
            rows = len(places)
            plain.reorder_cache(places)
            roomy.reorder_cache(places)
        if step == 20:
            plain.crop(-4)
            roomy.crop(-4)
        new = states(1 + step % 3, rows)
        for held, found in zip(plain.update(*new, 0), roomy.update(*new, 0), strict=True):
            assert torch.equal(held, found)
    assert roomy.get_seq_length() == plain.get_seq_length()


@pytest.mark.parametrize("has_room", [True, False])
def test_a_token_is_written_where_there_is_room(has_room):
    plain, roomy = both()
    cache = roomy if has_room else plain
    places = {cache.update(*states(1), 0)[0].data_ptr() for _ in range(ROOM)}
    assert (len(places) == 1) == has_room


def test_what_was_handed_out_stays_as_it_was():
    _, roomy = both()
    first, _ = roomy.update(*states(1), 0)
    kept = first.clone()
    for _ in range(3):
        roomy.update(*states(1), 0)
    assert torch.equal(first, kept)
