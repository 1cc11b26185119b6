"""How many keys there are in a range, without going through them: counts of neighbouring keys, kept up to date.

The store on disk knows how many keys it has and not how many are before one. So the keys are divided into segments, and
how many each has is kept in memory: a range is then the sum of some segments and a look into the two at its ends.
Opening a store loads nothing. Segments are made from the first key on by whoever first wants to count much, a page at a
time (`extend`); from then on every change of a key's existence is told here.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Final

from oarlock.machines.store import Table

SEGMENT_KEYS: Final = 1024
"""Keys of a segment when it is made. One that has grown to twice that is divided when somebody counts."""

COUNT_KEYS_MAX: Final = 1024
"""A range with no more keys is counted one by one: no segments are made for it."""


class KeyCounts:
    """The counts for one table, which the owner tells of keys that come and go."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self.on = False
        """Whether changes have to be told. Not for a table that counts quickly by itself, nor before anybody asked."""

        self._starts: list[bytes] = []  # the lowest key that each segment may hold
        self._counts: list[int] = []
        self._frontier: bytes | None = b""  # segments hold the keys below; None: all
        self._large: dict[bytes, None] = {}  # starts of segments that have grown

    def changed(self, key: bytes, by: int) -> None:
        """`key` has come (1) or gone (-1)."""
        if self._frontier is None or key < self._frontier:
            at = bisect_right(self._starts, key) - 1
            count = self._counts[at] = self._counts[at] + by
            if count > 2 * SEGMENT_KEYS:
                self._large[self._starts[at]] = None
            elif not count and at:  # its neighbour holds nothing more by taking it over
                self._large.pop(self._starts[at], None)
                del self._starts[at], self._counts[at]

    def ready(self, start: bytes, end: bytes | None) -> bool:
        """Whether `count` of this range takes a bounded time; if not, `extend`."""
        if self._table.counts_quickly:
            return True
        if not self._large and (self._frontier is None or (end is not None and end <= self._frontier)):
            return True
        return not self.on and self._table.page_keys(start, end, COUNT_KEYS_MAX)[1] is None

    def extend(self) -> int:
        """Make one segment, or divide one; how many keys were looked at."""
        self.on = True
        if self._large:
            start = next(iter(self._large))
            del self._large[start]
            at = bisect_left(self._starts, start)
            end = self._starts[at + 1] if at + 1 < len(self._starts) else self._frontier
            keys, middle = self._table.page_keys(start, end, SEGMENT_KEYS)
            if middle is not None and (end is None or middle < end):
                rest = self._counts[at] - len(keys)
                assert rest >= 0, f"{len(keys)} keys in a part of a segment of {self._counts[at]}"
                self._counts[at : at + 1] = [len(keys), rest]
                self._starts.insert(at + 1, middle)
                if rest > 2 * SEGMENT_KEYS:
                    self._large[middle] = None
            return len(keys) + 1
        assert self._frontier is not None, "everything is counted"
        start = self._frontier
        keys, self._frontier = self._table.page_keys(start, None, SEGMENT_KEYS)
        if self._counts and self._counts[-1] + len(keys) <= SEGMENT_KEYS:
            self._counts[-1] += len(keys)
        else:
            self._starts.append(start)
            self._counts.append(len(keys))
        return len(keys) + 1

    def count(self, start: bytes, end: bytes | None) -> int:
        """How many keys there are in `[start, end)` now."""
        if end is not None and end <= start:
            return 0
        frontier = self._frontier
        if not self._starts or (frontier is not None and (end is None or end > frontier)):
            return self._table.count(start, end)
        first = bisect_right(self._starts, start) - 1
        last = len(self._starts) - 1 if end is None else bisect_left(self._starts, end) - 1
        if first == last:
            whole = end is None and self._starts[first] == start
            return self._counts[first] if whole else self._table.count(start, end)
        total = sum(self._counts[first + 1 : last])
        behind = self._starts[first + 1]
        total += self._counts[first] if self._starts[first] == start else self._table.count(start, behind)
        return total + (self._counts[last] if end is None else self._table.count(self._starts[last], end))

    def validate(self) -> None:
        """Check the counts against the table. For tests and the simulator."""
        for at, (start, count) in enumerate(zip(self._starts, self._counts, strict=True)):
            end = self._starts[at + 1] if at + 1 < len(self._starts) else self._frontier
            keys = self._table.count(start, end)
            assert keys == count, f"{keys} keys in [{start!r}, {end!r}), and {count} are counted"
