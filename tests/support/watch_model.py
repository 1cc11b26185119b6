"""What a store's watchers should see, worked out naively from the commands, and the hub's deliveries in the form that
`oarlock.check.watch` judges."""

from __future__ import annotations

from oarlock.check.watch import EventHistory, WatchAnswer, WatchChecker, WatchedEvent, WatchRequest
from oarlock.machines.kv.commands import Command, DeleteRange, Put, Range, Txn
from oarlock.machines.kv.encoding import decode_key_value, encode_key_value
from oarlock.machines.kv.events import NO_DELETE, NO_PUT, WatchEvent
from oarlock.machines.kv.watch import ALL, Delivery, Kind, WatchStream


class EventModel:
    """A dict, and the list of everything that happened to it."""

    def __init__(self) -> None:
        self.revision = 1
        self.history = EventHistory()
        self._kvs: dict[bytes, bytes] = {}

    def run(self, command: Command) -> None:
        """Apply a command that is not refused."""
        main = self.revision + 1
        before = dict(self._kvs)
        changed = self._run(command, main, before)
        if changed:
            self.revision = main

    def _run(self, command: Command, main: int, before: dict[bytes, bytes]) -> bool:
        if isinstance(command, Put):
            old = self._kvs.get(command.key)
            if old is None:
                record = encode_key_value(command.key, main, main, 1, command.value, 0)
            else:
                kv = decode_key_value(old)
                record = encode_key_value(command.key, kv.create_revision, main, kv.version + 1, command.value, 0)
            self._kvs[command.key] = record
            # as etcd: what was there a revision before, save that a put which makes its key shows nothing
            previous = None if old is None else before.get(command.key)
            self.history.append(WatchedEvent(main, command.key, record, old is None, previous))
            return True
        if isinstance(command, DeleteRange):
            keys = [key for key in sorted(self._kvs) if inside(key, command.key, command.range_end)]
            for key in keys:
                del self._kvs[key]
                self.history.append(WatchedEvent(main, key, None, False, before.get(key)))
            return bool(keys)
        if isinstance(command, Txn):
            assert not command.compare
            changed = [self._run(op, main, before) for op in command.success]
            return any(changed)
        assert isinstance(command, Range)
        return False


def inside(key: bytes, start: bytes, range_end: bytes) -> bool:
    if not range_end:
        return key == start
    return key >= start and (range_end == b"\0" or key < range_end)


def as_watched(event: WatchEvent, prev_kv: bool) -> WatchedEvent:
    record = event.record
    create = False
    if record is not None:
        kv = decode_key_value(record)
        assert (kv.key, kv.mod_revision) == (event.key, event.main)
        create = kv.create_revision == kv.mod_revision
    return WatchedEvent(event.main, event.key, record, create, event.previous if prev_kv else None)


class FollowedStream:
    """A reader of the hub whose watches are all checked."""

    def __init__(self, stream: WatchStream, history: EventHistory) -> None:
        self.stream = stream
        self.history = history
        self.checkers: dict[int, WatchChecker] = {}
        self.created: set[int] = set()
        self.progress = 0

    def watch(
        self,
        watch_id: int,
        key: bytes,
        range_end: bytes = b"",
        start: int = 0,
        *,
        filters: int = 0,
        prev_kv: bool = False,
    ) -> WatchChecker:
        begin = self.stream.watch(watch_id, key, range_end, start, filters=filters, prev_kv=prev_kv)
        request = WatchRequest(
            key=key, range_end=range_end, start_revision=begin, prev_kv=prev_kv,
            no_put=bool(filters & NO_PUT), no_delete=bool(filters & NO_DELETE),
        )  # fmt: skip
        checker = self.checkers[watch_id] = WatchChecker(request, self.history, name=f"watch {watch_id}")
        return checker

    def read(self, bytes_max: int = 1 << 30) -> int:
        """Take from the outbox; everything is checked."""
        deliveries = self.stream.take(bytes_max)
        for delivery in deliveries:
            self._take(delivery)
        return len(deliveries)

    def _take(self, delivery: Delivery) -> None:
        if delivery.watch_id == ALL:
            assert delivery.kind == Kind.PROGRESS
            self.progress += 1
            for watch_id, checker in self.checkers.items():
                if watch_id in self.created and not checker.cancelled:
                    checker.answer(WatchAnswer(revision=delivery.revision, progress=True))
            return
        checker = self.checkers[delivery.watch_id]
        match delivery.kind:
            case Kind.CREATED:
                self.created.add(delivery.watch_id)
                return
            case Kind.EVENTS:
                assert delivery.watch_id in self.created, "events before the watch was said to be created"
                assert delivery.batch is not None
                events = [as_watched(event, checker.request.prev_kv) for event in delivery.batch.events]
                checker.answer(WatchAnswer(revision=delivery.revision, events=events))
            case Kind.PROGRESS:
                checker.answer(WatchAnswer(revision=delivery.revision, progress=True))
            case Kind.COMPACTED:
                checker.answer(
                    WatchAnswer(revision=delivery.revision, compact_revision=delivery.compact_revision, cancelled=True)
                )
            case Kind.CANCELLED:
                checker.answer(WatchAnswer(revision=delivery.revision, cancelled=True))
            case _:
                raise AssertionError(delivery.kind)

    def check(self) -> None:
        for checker in self.checkers.values():
            assert not checker.violations, "; ".join(map(str, checker.violations))

    def close(self, revision: int) -> None:
        """Everything was read: each watch that was not cancelled must have been told of everything."""
        for checker in self.checkers.values():
            checker.close(revision)
        self.check()
