"""The rows of a batch, laid one behind the other: every token once, and back in its place."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from tests.closeness import assert_close
from toolkit.models.fast import attention
from toolkit.models.fast.attention import Part, parts_attention
from toolkit.models.fast.packing import SHARED, Row, grouped, pack, rows_of

LONG = [*range(20)]


def rows(*ids: list[int], position: int = 0) -> list[Row]:
    return [Row(each, 100 * at, position) for at, each in enumerate(ids)]


def test_rows_are_found_behind_padding_on_either_side():
    ids = torch.tensor([[1, 2, 3, 0], [0, 0, 4, 5]])
    found = rows_of(ids, torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1]]), None)
    # a row keeps the positions that it has in the batch, as upstream gives them
    assert found == [Row([1, 2, 3], 0, 0), Row([4, 5], 6, 2)]


def test_rows_of_a_packed_batch_begin_where_positions_do():
    found = rows_of(torch.tensor([[1, 2, 3, 4]]), None, torch.tensor([[0, 1, 0, 1]]))
    assert found == [Row([1, 2], 0, 0), Row([3, 4], 2, 0)]


@pytest.mark.parametrize(
    ("mask", "positions"),
    [
        ([[1, 0, 1]], None),  # in two pieces
        ([[0, 0, 0]], None),  # none at all
        ([[1, 1, 1]], [[0, 1, 2]]),  # both: upstream knows best
        (None, [[4, 5, 6]]),  # from the middle of something
    ],
)
def test_what_cannot_be_told_is_left_alone(mask, positions):
    mask, positions = (None if each is None else torch.tensor(each) for each in (mask, positions))
    assert rows_of(torch.tensor([[1, 2, 3]]), mask, positions) is None


def test_a_group_shares_its_prompt_and_a_stranger_nothing():
    prompt = LONG[:12]
    groups = grouped(rows([*prompt, 31], [9, 9], [*prompt, 32, 33], prompt))
    assert [(share, sorted(members)) for share, members in groups] == [(12, [0, 2, 3]), (0, [1])]


def test_few_tokens_and_other_positions_are_not_shared():
    short = LONG[: SHARED - 1]
    assert [share for share, _ in grouped(rows([*short, 40], [*short, 50]))] == [0, 0]
    moved = [Row(LONG, 0, 0), Row(LONG, 100, 1)]
    assert [share for share, _ in grouped(moved)] == [0, 0]


def test_what_a_row_has_for_itself_does_not_keep_it_out():
    endings = [[number] * 30 for number in (31, 32, 33)]
    assert grouped(rows(*([*LONG, *each] for each in endings))) == [(20, [0, 1, 2])]


def test_a_group_is_not_cut_for_one_that_shares_less():
    """Two rows alike to token 20, and one to token 9: the two stay together."""
    groups = grouped(rows([*LONG, 31], [*LONG, 32], [*LONG[:9], 99]))
    assert sorted(share for share, _ in groups) == [0, 20]


ROWS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=24), min_size=1, max_size=6)


@given(ROWS, st.booleans())
def test_every_slot_finds_what_was_computed_of_it(ids, left):
    length = max(map(len, ids))
    batch, mask = (torch.zeros(len(ids), length, dtype=torch.long) for _ in range(2))
    for at, row in enumerate(ids):
        where = slice(length - len(row), None) if left else slice(len(row))
        batch[at, where], mask[at, where] = torch.tensor(row), 1
    found = rows_of(batch, mask, None)
    assert found is not None
    packed = pack(found, batch.numel())
    taken = batch.flatten()[packed.slots]
    real = mask.flatten().bool()
    assert torch.equal(taken[packed.places][real], batch.flatten()[real])
    columns = torch.arange(length).repeat(len(ids))
    assert torch.equal(packed.positions[packed.places][real], columns[real])
    assert all(part.size for part in packed.parts)
    assert sum(part.size for part in packed.parts) == len(packed.slots) <= int(real.sum())
    # what stands before a token within its parts is its own row, to the token
    ends = torch.tensor([part.size for part in packed.parts]).cumsum(0).tolist()
    whole = []
    for part, end in zip(packed.parts, ends, strict=True):
        before = [] if part.beginning is None else whole[part.beginning]
        whole.append([*before, *taken[end - part.size : end].tolist()])
    assert all(row in whole for row in ids)


def attend(parts: list[Part], window: int | None = None, rounded=torch.float64):
    """Of the parts, of a mask over all tokens that says the same, and of that in float64."""
    torch.manual_seed(0)
    total = sum(part.size for part in parts)
    tensors = [torch.randn(1, heads, total, 8).to(rounded) for heads in (4, 2, 2)]
    mask, start, of = torch.zeros(total, total, dtype=torch.bool), 0, []
    for part in parts:
        before = [] if part.beginning is None else of[part.beginning]
        own = [*before, *range(start, start + part.size)]
        of.append(own)
        for token in range(start, start + part.size):
            seen = [each for each in own if each <= token]
            mask[token, seen[-window:] if window else seen] = True
        start += part.size
    with torch.autocast("cpu", torch.bfloat16, enabled=rounded is torch.bfloat16):
        ours = parts_attention(None, *tensors, None, parts=parts, sliding_window=window)[0]
    same, exact = (
        scaled_dot_product_attention(*each, mask, enable_gqa=True).transpose(1, 2)
        for each in (tensors, [tensor.double() for tensor in tensors])
    )
    return ours, same, exact


PARTS = [Part(5), Part(9), Part(3, 1), Part(4, 1)]


@pytest.mark.parametrize("window", [None, 2, 6])
def test_parts_see_themselves_and_their_beginning(window):
    ours, same, _ = attend(PARTS, window)
    assert_close(ours, same, tolerance=1e-6)


def test_bfloat16_is_attended_in_float32():
    ours, rounded, exact = attend(PARTS, rounded=torch.bfloat16)
    assert ours.dtype is torch.bfloat16
    assert (ours - exact).norm() < (rounded - exact).norm()


def test_the_kernel_has_float32_without_autocast_and_what_the_layer_asks(monkeypatch):
    seen = []

    def kernel(query, *others, **asked):
        autocast = torch.is_autocast_enabled("cpu")
        seen.append((query.dtype, asked["scale"], asked["dropout_p"], autocast))
        return scaled_dot_product_attention(query, *others, **asked)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", kernel)
    query = torch.randn(1, 4, 21, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        parts_attention(None, query, query, query, None, parts=PARTS, scaling=0.3, dropout=0.1)
    assert seen == [(torch.float32, 0.3, 0.1, False)] * len(PARTS)


def test_without_parts_it_is_transformers():
    query = torch.randn(2, 4, 5, 8)
    module = torch.nn.Module()
    ours = parts_attention(module, query, query, query, None, is_causal=True)[0]
    theirs = scaled_dot_product_attention(query, query, query, is_causal=True).transpose(1, 2)
    assert torch.equal(ours, theirs)
