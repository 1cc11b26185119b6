"""Which half-open ranges of keys hold a given key: an index for stabbing queries that is cheap to change.

Ranges stand in a few sorted arrays whose sizes go down by halves (the logarithmic method of Bentley and Saxe): adding
one merges the arrays that have come to be of like size, which sorting does in linear time. Each array is searched as an
implicit balanced tree that knows the highest end of every subtree. With n ranges, of which m hold the key, a query
takes O((1 + m) log^2 n) steps, adding O(log n) amortised, and memory is O(n) whatever the ranges overlap.
"""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class Interval(Generic[T]):
    """One range, `[start, end)`, where an `end` of None is no bound, and what it stands for."""

    __slots__ = ("end", "live", "start", "value")

    def __init__(self, start: bytes, end: bytes | None, value: T) -> None:
        self.start = start
        self.end = end
        self.value = value
        self.live = True


def _start_of(interval: Interval[T]) -> bytes:
    return interval.start


class _Level(Generic[T]):
    """A sorted array as an implicit tree: the root of `[low, high)` is its middle."""

    __slots__ = ("highest", "intervals")

    def __init__(self, intervals: list[Interval[T]]) -> None:
        intervals.sort(key=_start_of)
        self.intervals = intervals
        self.highest: list[bytes | None] = [b""] * len(intervals)  # end of the subtree whose root is here
        self._measure(0, len(intervals))

    def _measure(self, low: int, high: int) -> bytes | None:
        if low >= high:
            return b""
        middle = (low + high) >> 1
        highest = self.intervals[middle].end
        for end in (self._measure(low, middle), self._measure(middle + 1, high)):
            if highest is not None and (end is None or end > highest):
                highest = end
        self.highest[middle] = highest
        return highest

    def stab(self, key: bytes, found: list[T]) -> None:
        intervals, highest = self.intervals, self.highest
        waiting = [(0, len(intervals))]
        while waiting:
            low, high = waiting.pop()
            while low < high:
                middle = (low + high) >> 1
                top = highest[middle]
                if top is not None and top <= key:
                    break  # all of this subtree ends before the key
                interval = intervals[middle]
                if interval.start <= key:
                    end = interval.end
                    if interval.live and (end is None or key < end):
                        found.append(interval.value)
                    waiting.append((low, middle))
                    low = middle + 1
                else:
                    high = middle


class IntervalIndex(Generic[T]):
    """Ranges and what they stand for. The order of what a query finds depends only on what was added and removed."""

    __slots__ = ("_dead", "_levels", "_live")

    def __init__(self) -> None:
        self._levels: list[_Level[T]] = []  # the largest first
        self._live = 0
        self._dead = 0

    def __len__(self) -> int:
        return self._live

    def add(self, start: bytes, end: bytes | None, value: T) -> Interval[T]:
        """Add a range; what is returned is what `remove` takes."""
        interval = Interval(start, end, value)
        merged = [interval]
        levels = self._levels
        while levels and len(levels[-1].intervals) <= len(merged):
            merged += levels.pop().intervals
        levels.append(_Level(merged))
        self._live += 1
        return interval

    def remove(self, interval: Interval[T]) -> None:
        """Take a range out. Its place goes when half of all places are empty."""
        assert interval.live, f"{interval.start!r} was removed before"
        interval.live = False
        self._live -= 1
        self._dead += 1
        if self._dead > self._live:
            rest = [kept for level in self._levels for kept in level.intervals if kept.live]
            self._levels = [_Level(rest)] if rest else []
            self._dead = 0

    def stab(self, key: bytes) -> list[T]:
        """What the ranges that hold `key` stand for."""
        found: list[T] = []
        for level in self._levels:
            level.stab(key, found)
        return found
