"""Reading the machine's log forwards, as those watchers need it that are behind.

The log is an undo log: an entry holds what its change replaced. What a put itself stored is therefore what the next
change of its key replaced or, if there was none, what the key has now. A slice of the log finds it in three places: in
the slice and a look ahead; in the present; and else by following the key back from the present, step by step. Such a
walk may be long (a key that rested and was then changed a million times), so it can stop and go on: nothing that
it has seen can change, because history does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from oarlock.machines.kv.encoding import mod_revision_of
from oarlock.machines.kv.events import WatchEvent, settle_previous

SLICE_ENTRIES = 512
"""Entries of the log in a slice; the last revision is taken whole, however many it has."""

LOOK_AHEAD_ENTRIES = 512
"""Entries after the slice in which the values of its puts are sought."""


class Change(Protocol):
    """See `machine.Change`."""

    @property
    def main(self) -> int: ...
    @property
    def key(self) -> bytes: ...
    @property
    def deleted(self) -> bool: ...
    @property
    def previous(self) -> bytes | None: ...


class Walk:
    """A key on its way back through its history: `record` or `deletion` (a place in the log) is what it had then."""

    __slots__ = ("before", "deletion", "key", "record")

    def __init__(self, key: bytes, record: bytes | None, deletion: bytes | None) -> None:
        self.key = key
        self.record = record
        self.deletion = deletion
        self.before: bytes | None = None  # the place of the change that made what we hold is below this


class History(Protocol):
    """What the hub needs of the machine."""

    @property
    def revision(self) -> int: ...
    @property
    def compact_revision(self) -> int: ...
    def changes(self, start: int, end: int | None = None, *, limit: int = 0) -> Sequence[Change]: ...
    def range_one(self, key: bytes) -> bytes | None: ...
    def last_change(self, key: bytes) -> int:
        """The revision of the last change of `key`; 0 if none is known."""

    def walk(self, key: bytes) -> Walk:
        """Begin at what the key has now."""

    def walk_back(self, walk: Walk, revision: int, steps: int) -> int:
        """Go back until the key has what it had at `revision`, or so many steps; returns those that are left over, -1
        if the walk is not at its end."""

    def feed(self, on: bool) -> None:
        """Whether the hub is handed the changes of each `apply`."""


class Slice:
    """Some whole revisions of the log, from `first` to `last`, with the events among them that are `wanted`."""

    __slots__ = ("_history", "_walks", "events", "first", "last")

    def __init__(
        self, history: History, first: int, wanted: Callable[[bytes], bool], bounds: tuple[int, int] | None = None
    ) -> None:
        """`bounds` take the place of `SLICE_ENTRIES` and `LOOK_AHEAD_ENTRIES`."""
        self._history = history
        self.first = first
        size, look_ahead = bounds if bounds is not None else (SLICE_ENTRIES, LOOK_AHEAD_ENTRIES)
        limit = size + look_ahead
        entries = list(history.changes(first, limit=limit))
        end = len(entries)
        if end < limit:
            self.last = history.revision
        else:
            end = size
            self.last = entries[end - 1].main
            while end < limit and entries[end].main == self.last:
                end += 1
            if end == limit:  # a revision beyond what was read: it has to be read whole
                entries = [entry for entry in entries if entry.main < self.last]
                entries += history.changes(self.last, self.last + 1)
                end = len(entries)
        self.events: list[WatchEvent] = []
        self._walks: list[tuple[WatchEvent, Walk]] = []
        self._read(entries, end, wanted)

    def _read(self, entries: list[Change], end: int, wanted: Callable[[bytes], bool]) -> None:
        history = self._history
        # A compacted revision cannot be read, so what was there before the first one that can is not known. (As etcd.)
        known_from = history.compact_revision + 1
        found: list[WatchEvent] = []
        replaced: dict[bytes, bytes | None] = {}  # what the next change of a key took away
        for at in range(len(entries) - 1, -1, -1):
            entry = entries[at]
            key = entry.key
            if at < end and wanted(key):
                main = entry.main
                event = WatchEvent(main, key, None, entry.previous)
                if not entry.deleted:
                    if key in replaced:
                        event.record = replaced[key]
                    else:
                        event.record = history.range_one(key)
                    if event.record is None or mod_revision_of(event.record) != main:
                        assert key not in replaced, f"what replaced {key!r} of {main} is of another revision"
                        self._walks.append((event, history.walk(key)))
                        event.record = b""  # not a deletion; the walk fills it in
                found.append(event)
            replaced[key] = entry.previous
        found.reverse()
        settle_previous(found)
        for event in found:
            if event.main >= known_from:
                break
            event.previous = None
        self.events = found

    def resolve(self, steps: int) -> bool:
        """Follow walks for so many steps; whether all events are complete."""
        walks = self._walks
        while walks:
            event, walk = walks[-1]
            steps = self._history.walk_back(walk, event.main, steps)
            if steps < 0:
                return False
            record = walk.record
            assert record is not None and mod_revision_of(record) == event.main, f"no put of {event!r} in the log"
            event.record = record
            walks.pop()
        return True
