"""What a CPU's allocator keeps beyond what is alive: glibc's heap, played through with a step's blocks.

torch asks for blocks at addresses that are multiples of 64. glibc takes a larger piece for it and gives
the rest back; when something small has taken that rest, the hole that the block leaves is too small
for another block of its size, and the heap grows. How often that happens is not to be known; ONE_IN
was chosen by the table in docs/preflight.md.
"""

import bisect
import random
from collections.abc import Sequence
from statistics import median

ONE_IN = 14  # rests that something small takes
SPARE = 96  # bytes beside an aligned block: glibc 2.36, _int_memalign
SMALL = 4096  # bytes, below which a block finds a place of its size again
MAPPED = 128 * 2**10  # above it a block is mapped, and given back at once; it grows
MOST_MAPPED = 32 * 2**20  # no further than to here
STEPS = 2
RUNS = 3


class Heap:
    """The extent of a heap whose blocks are taken by best fit.

    Attributes:
        size: bytes that are resident.
        peak: the most of them.
    """

    def __init__(self, seed: int) -> None:
        self.size = self.peak = 0
        self._threshold = MAPPED
        self._top = 0
        self._chance = random.Random(seed)
        self._used: dict[tuple[int, int], tuple[int, int]] = {}  # block to start and size
        self._mapped: dict[tuple[int, int], int] = {}
        self._holes: dict[int, int] = {}  # start to size
        self._ends: dict[int, int] = {}  # end to start
        self._by_size: list[tuple[int, int]] = []

    def take(self, block: tuple[int, int], size: int) -> None:
        """Find room for a block."""
        size += SPARE if size > SMALL else 16
        if size >= self._threshold:
            self._mapped[block] = size
            self.size += size
        else:
            at = bisect.bisect_left(self._by_size, (size, -1))
            if at < len(self._by_size):
                have, start = self._by_size[at]
                self._fill(start)
                self._leave(start + size, have - size)
            else:
                start = self._top
                self._top += size
                self.size += size
            if size > SMALL and not self._chance.randrange(ONE_IN):
                size -= SPARE  # the rest is not given back
            self._used[block] = start, size
        self.peak = max(self.peak, self.size)

    def give(self, block: tuple[int, int]) -> None:
        """Free a block."""
        if block in self._mapped:
            size = self._mapped.pop(block)
            self.size -= size
            if size <= MOST_MAPPED:
                self._threshold = max(self._threshold, size)
            return
        start, size = self._used.pop(block)
        if start in self._ends:
            before = self._ends[start]
            start, size = before, size + self._fill(before)
        if start + size in self._holes:
            size += self._fill(start + size)
        if start + size == self._top and size > 2 * self._threshold:
            self._top = start
            self.size -= size
        else:
            self._leave(start, size)

    def _fill(self, start: int) -> int:
        """A hole is one no more; gives its size."""
        size = self._holes.pop(start)
        del self._ends[start + size]
        del self._by_size[bisect.bisect_left(self._by_size, (size, start))]
        return size

    def _leave(self, start: int, size: int) -> None:
        """There is a hole, if it has a size."""
        if size:
            self._holes[start] = size
            self._ends[start + size] = start
            bisect.insort(self._by_size, (size, start))


def resident(events: Sequence[tuple[int, int]]) -> int:
    """The most bytes that a heap has when a step is taken again.

    Args:
        events: a block's number and its size when it is made, its negative number when it is freed.
    """
    return int(median(played(events, seed) for seed in range(RUNS)))


def played(events: Sequence[tuple[int, int]], seed: int) -> int:
    """As `resident`, with one choice of the rests that are taken."""
    heap = Heap(seed)
    for step in range(STEPS):
        alive: dict[int, None] = {}
        for number, size in events:
            if number > 0:
                heap.take((step, number), size)
                alive[number] = None
            elif -number in alive:  # what was there before the step is not of it
                heap.give((step, -number))
                del alive[-number]
        for number in alive:
            heap.give((step, number))
    return heap.peak
