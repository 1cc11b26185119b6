"""A dict of bytes that can also be read in order. Writing costs what a dict costs: order is made when somebody asks, or
when much has been written."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from itertools import chain, islice
from typing import Generic, TypeVar

V = TypeVar("V")

BLOCK_KEYS = 1024
"""Keys in a block after a rebuild. A block is split when it has grown to twice that."""

UNSORTED_MAX = 1024
"""New keys that `settle` leaves for the next reader. Sorting them all at once would stop everybody else for as long as
there was no reader before."""


class OrderedMap(Generic[V]):
    """`data`, a plain dict that callers may read and *add* to directly, and its keys in ascending order on demand.

    Keys are kept in blocks of sorted lists. A dict remembers the order of insertion, so the keys that the blocks do not
    have yet are exactly its last `len(data) - len(blocks)`; a key is taken out by `remove`, which keeps that so.
    """

    __slots__ = ("_blocks", "_highest", "_sorted", "data")

    def __init__(self, data: dict[bytes, V] | None = None) -> None:
        self.data: dict[bytes, V] = {} if data is None else data
        self._blocks: list[list[bytes]] = []
        self._highest: list[bytes] = []  # the last key of each block
        self._sorted = 0  # how many keys are in the blocks

    def __len__(self) -> int:
        return len(self.data)

    def settle(self) -> None:
        """Bring new keys into their order if there are many. Called by the writer now and then."""
        if len(self.data) - self._sorted > UNSORTED_MAX:
            self._sort()

    def remove(self, key: bytes) -> None:
        """Take a key out that is in `data`."""
        self._sort()
        at = bisect_left(self._highest, key)
        block = self._blocks[at]
        del block[bisect_left(block, key)]
        if not block:
            del self._blocks[at], self._highest[at]
        else:
            self._highest[at] = block[-1]
        self._sorted -= 1
        del self.data[key]

    def keys(self, start: bytes = b"", end: bytes | None = None, limit: int = 0, reverse: bool = False) -> list[bytes]:
        """The keys in `[start, end)` in order; at most `limit`, counted from the end that comes first, unless 0."""
        if not self.data:
            return []
        if self._sorted != len(self.data):
            self._sort()
        blocks, highest = self._blocks, self._highest
        first = bisect_left(highest, start) if start else 0
        if first == len(blocks):
            return []
        if end is None:
            last, stop = len(blocks) - 1, len(blocks[-1])
        else:
            last = bisect_left(highest, end)
            if last == len(blocks):
                last, stop = len(blocks) - 1, len(blocks[-1])
            else:
                stop = bisect_left(blocks[last], end)
        begin = bisect_left(blocks[first], start) if start else 0
        if first > last or (first == last and begin >= stop):
            return []
        if first == last:
            found = blocks[first][begin:stop]
        elif limit and reverse:
            found = blocks[last][:stop]
            while len(found) < limit and last > first:
                last -= 1
                found = (blocks[last] if last > first else blocks[first][begin:]) + found
        elif limit:
            found = blocks[first][begin:]
            while len(found) < limit and first < last:
                first += 1
                found += blocks[first] if first < last else blocks[last][:stop]
        else:
            found = blocks[first][begin:]
            found += chain.from_iterable(blocks[first + 1 : last])
            found += blocks[last][:stop]
        if reverse:
            found.reverse()
        return found[:limit] if limit else found

    def count(self, start: bytes = b"", end: bytes | None = None) -> int:
        """How many keys are in `[start, end)`: time in proportion to the number of blocks."""
        if not self.data:
            return 0
        self._sort()
        return max(0, self._rank(end) - self._rank(start)) if end is not None else self._sorted - self._rank(start)

    def _rank(self, key: bytes) -> int:
        """How many keys are below `key`."""
        at = bisect_left(self._highest, key)
        below = sum(map(len, self._blocks[:at]))
        return below if at == len(self._blocks) else below + bisect_left(self._blocks[at], key)

    def _sort(self) -> None:
        """Bring the keys added since the last time into the blocks."""
        fresh_count = len(self.data) - self._sorted
        if not fresh_count:
            return
        fresh = list(islice(reversed(self.data), fresh_count))
        if fresh_count * 4 > self._sorted:
            everything = list(chain.from_iterable(self._blocks))
            everything += fresh
            everything.sort()  # the sort sees the run that is in order already
            self._blocks = [everything[i : i + BLOCK_KEYS] for i in range(0, len(everything), BLOCK_KEYS)]
            self._highest = [block[-1] for block in self._blocks]
        else:
            for key in reversed(fresh):
                self._insert(key)
        self._sorted = len(self.data)

    def _insert(self, key: bytes) -> None:
        at = bisect_right(self._highest, key)
        if at == len(self._blocks):
            at -= 1
            self._blocks[at].append(key)
            self._highest[at] = key
        else:
            insort(self._blocks[at], key)
        block = self._blocks[at]
        if len(block) >= 2 * BLOCK_KEYS:
            half = len(block) // 2
            self._blocks[at : at + 1] = [block[:half], block[half:]]
            self._highest[at : at + 1] = [block[half - 1], block[-1]]
