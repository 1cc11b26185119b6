"""Ranges of keys as sets, for permissions: normalised once, merged, asked in logarithmic time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple


class Interval(NamedTuple):
    """The keys from `start` up to but not including `end`; no `end` is no bound."""

    start: bytes
    end: bytes | None


def interval(key: bytes, range_end: bytes) -> Interval:
    """The keys that a request with `key` and `range_end` means. The only place that knows what "" and one zero byte
    mean there, so a check and what is done after it cannot differ (GHSA-xg4h-6gfc-h4m8).

    >>> interval(b"a", b""), interval(b"a", bytes(1)), interval(b"a", b"b")
    (Interval(start=b'a', end=b'a\\x00'), Interval(start=b'a', end=None), Interval(start=b'a', end=b'b'))
    """
    if not range_end:
        return Interval(key, key + b"\0")
    return Interval(key, None if range_end == b"\0" else range_end)


class IntervalSet:
    """A union of intervals, fixed once built."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, intervals: Iterable[Interval]) -> None:
        self._starts: list[bytes] = []
        self._ends: list[bytes | None] = []
        for start, end in sorted((i for i in intervals), key=lambda i: i.start):
            if end is not None and end <= start:
                continue  # holds no key
            if self._starts and (self._ends[-1] is None or start <= self._ends[-1]):
                last = self._ends[-1]
                if last is not None and (end is None or end > last):
                    self._ends[-1] = end
            else:
                self._starts.append(start)
                self._ends.append(end)

    def covers(self, asked: Interval) -> bool:
        """Whether all keys of `asked` are in the set. One that can hold no key is in none: who asks for it has nothing
        to ask for."""
        if asked.end is not None and asked.end <= asked.start:
            return False
        at = bisect_right(self._starts, asked.start) - 1
        if at < 0:
            return False
        end = self._ends[at]
        return end is None or (asked.start < end and asked.end is not None and asked.end <= end)
