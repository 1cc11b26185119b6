"""Changes as watchers see them, in the encoding that etcd's WatchResponse carries: each is encoded once, and each run
of them joined once, however many watchers take it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from oarlock.machines.kv.encoding import encode_key_value, mod_revision_of, varint

NO_PUT, NO_DELETE = 1, 2
"""Filters of a watcher, as bits."""

BATCH_BYTES = 128 * 1024
"""Where a batch ends, at the next border between revisions: what a reader must take at one time."""


class WatchEvent:
    """One change. `record` is the encoded key-value that a put stored, None for a deletion; `previous` what the key had
    before the revision, None if it had nothing or nobody can know any more."""

    __slots__ = ("_plain", "_whole", "key", "main", "previous", "record")

    def __init__(self, main: int, key: bytes, record: bytes | None, previous: bytes | None) -> None:
        self.main = main
        self.key = key
        self.record = record
        self.previous = previous
        self._plain = b""
        self._whole = b""

    @property
    def deleted(self) -> bool:
        return self.record is None

    def wire(self, prev_kv: bool) -> bytes:
        """The event as one element of field 11 of a WatchResponse; with what was there before if `prev_kv`."""
        if prev_kv and self.previous is not None:
            if not self._whole:
                self._whole = self._encode(b"\x1a" + varint(len(self.previous)) + self.previous)
            return self._whole
        if not self._plain:
            self._plain = self._encode(b"")
        return self._plain

    def _encode(self, previous: bytes) -> bytes:
        record = self.record
        if record is None:
            record = encode_key_value(self.key, 0, self.main, 0, b"", 0)
            body = b"\x08\x01\x12" + varint(len(record)) + record + previous
        else:
            body = b"\x12" + varint(len(record)) + record + previous
        return b"\x5a" + varint(len(body)) + body

    def __repr__(self) -> str:
        return f"<{'delete' if self.deleted else 'put'} {self.key!r} at {self.main}>"


class EventBatch:
    """Events of one or more whole revisions, `first` to `last`, for watchers of one kind."""

    __slots__ = ("_data", "events", "first", "last", "prev_kv", "size")

    def __init__(self, events: list[WatchEvent], prev_kv: bool) -> None:
        assert events, "a batch has events"
        self.events = events
        self.prev_kv = prev_kv
        self.first = events[0].main
        self.last = events[-1].main
        self.size = sum([len(event.wire(prev_kv)) for event in events])
        self._data = b""

    @property
    def data(self) -> bytes:
        """All events as they stand in a WatchResponse. Joined once, whoever asks."""
        if not self._data:
            events = self.events
            if len(events) == 1:
                self._data = events[0].wire(self.prev_kv)
            else:
                self._data = b"".join([event.wire(self.prev_kv) for event in events])
        return self._data

    def wires(self) -> list[bytes]:
        """Each event by itself, for who must cut a revision into fragments."""
        return [event.wire(self.prev_kv) for event in self.events]


def cut_batches(
    events: Iterable[WatchEvent], filters: int, prev_kv: bool, bytes_max: int | None = None
) -> list[EventBatch]:
    """The events that pass `filters`, in batches of about `bytes_max`. A revision is never cut. (BZ-127 is here.)"""
    if bytes_max is None:
        bytes_max = BATCH_BYTES
    batches: list[EventBatch] = []
    held: list[WatchEvent] = []
    size = 0
    for event in events:
        if filters and filters & (NO_DELETE if event.record is None else NO_PUT):
            continue
        if size >= bytes_max and event.main != held[-1].main:
            batches.append(EventBatch(held, prev_kv))
            held, size = [], 0
        held.append(event)
        size += len(event.wire(prev_kv))
    if held:
        batches.append(EventBatch(held, prev_kv))
    return batches


def settle_previous(events: Sequence[WatchEvent]) -> None:
    """Where one revision changes a key more than once, what was there before is what the revision found.

    etcd reads it at the revision before, and never for a put that makes the key. The log has what each change replaced.
    """
    main = 0
    found: dict[bytes, bytes | None] = {}
    for at, event in enumerate(events):
        if event.main != main:
            if at + 1 == len(events) or events[at + 1].main != event.main:
                continue  # the only change of its revision, as nearly all are
            main = event.main
            found = {}
        previous = event.previous
        if event.key not in found:
            found[event.key] = previous
        elif previous is not None and mod_revision_of(previous) == main:
            event.previous = found[event.key]
