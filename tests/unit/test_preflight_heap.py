"""The heap that is played through: what it keeps and what it gives back."""

from toolkit.preflight.heap import MAPPED, Heap, resident

MB = 2**20


def test_a_large_block_is_mapped_and_given_back():
    heap = Heap(0)
    heap.take((0, 1), 64 * MB)
    assert heap.size >= 64 * MB
    heap.give((0, 1))
    assert heap.size == 0
    assert heap.peak >= 64 * MB


def test_blocks_are_mapped_no_more_once_one_of_their_size_was_freed():
    heap = Heap(0)
    for number in (1, 2):
        heap.take((0, number), 2 * MB)
    heap.give((0, 1))
    heap.take((0, 3), MB)
    heap.take((0, 4), MB)
    heap.give((0, 3))  # a hole below the last block
    assert heap.size >= 4 * MB


def test_a_hole_is_filled_by_what_fits_best():
    heap = Heap(1)
    sizes = [MAPPED // 2, MAPPED // 4, MAPPED // 2]
    for number, size in enumerate(sizes):
        heap.take((0, number), size)
    heap.give((0, 1))
    before = heap.size
    heap.take((0, 9), MAPPED // 8)
    assert heap.size == before


def test_what_never_overlaps_takes_little_more_than_one_and_some_holes_are_lost():
    events = [(n, 3 * MB) if on else (-n, 3 * MB) for n in range(1, 400) for on in (True, False)]
    assert 3 * MB <= resident(events) < 12 * MB
    # blocks of two sizes in turn, each freed after the next is made
    crossing = [(1, 3 * MB)]
    for n in range(2, 400):
        crossing += [(n, (3 + n % 2) * MB), (1 - n, 1)]
    assert resident(crossing) > 7 * MB
    assert resident(crossing) == resident(crossing)
