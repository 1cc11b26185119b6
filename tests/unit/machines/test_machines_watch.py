"""The hub of watches, one property a test; `tests/properties/test_watch_model.py` searches for the rest."""

from __future__ import annotations

import random

import pytest

from oarlock.api import proto
from oarlock.machines.base import Context
from oarlock.machines.kv import events as kv_events
from oarlock.machines.kv import history as kv_history
from oarlock.machines.kv.commands import Command, Compact, DeleteRange, Put, Txn, encode
from oarlock.machines.kv.intervals import IntervalIndex
from oarlock.machines.kv.machine import KvMachine
from oarlock.machines.kv.watch import ALL, Delivery, Kind, WatchStream

Event = proto.message("mvccpb.Event")
WatchResponse = proto.message("etcdserverpb.WatchResponse")


class Store:
    """A machine in memory, and readers of its hub."""

    def __init__(self) -> None:
        self.machine = KvMachine.in_memory()
        self.hub = self.machine.watches
        self.ready: list[int] = []

    def apply(self, *commands: Command) -> None:
        index = self.machine.applied_index + 1
        self.machine.apply(Context(index, 1, index), [encode(command) for command in commands])

    def stream(self) -> WatchStream:
        number = len(self.ready)
        self.ready.append(0)

        def note() -> None:
            self.ready[number] += 1

        return self.hub.stream(note)

    def settle(self, *streams: WatchStream) -> list[Delivery]:
        """All that the streams have to read, save that watches were created."""
        found: list[Delivery] = []
        while True:
            more = self.hub.advance()
            taken = [delivery for stream in streams for delivery in stream.take(1 << 30)]
            found += [delivery for delivery in taken if delivery.kind != Kind.CREATED]
            if not more and not taken:
                return found


@pytest.fixture
def store() -> Store:
    return Store()


def seen(deliveries: list[Delivery]) -> list[tuple[int, bytes, int, bytes | None]]:
    """(watch, key, revision, value; None for a deletion) of all events, through protobuf."""
    return [
        (delivery.watch_id, event.kv.key, event.kv.mod_revision, None if event.type else event.kv.value)
        for delivery in deliveries
        if delivery.batch is not None
        for event in WatchResponse.FromString(delivery.batch.data).events
    ]


def test_synced_watchers_are_told_of_each_batch_once(store: Store) -> None:
    stream = store.stream()
    stream.watch(1, b"a")
    stream.watch(2, b"a", b"c", prev_kv=True)
    store.settle(stream)
    store.apply(Put(b"a", b"1"), Put(b"b", b"2"), Put(b"c", b"3"))
    assert seen(stream.take(1 << 20)) == [(1, b"a", 2, b"1"), (2, b"a", 2, b"1"), (2, b"b", 3, b"2")]
    assert stream.take(1 << 20) == []
    assert not store.hub.has_work


def test_events_are_encoded_as_protobuf_has_them(store: Store) -> None:
    stream = store.stream()
    stream.watch(1, b"a", prev_kv=True)
    stream.watch(2, b"a")
    store.apply(Put(b"a", b"x" * 300), DeleteRange(b"a"))
    batches = [d.batch for d in store.settle(stream) if d.batch is not None]
    whole, plain = (WatchResponse.FromString(batch.data) for batch in batches)
    assert [event.type for event in whole.events] == [0, 1]
    assert whole.events[1].prev_kv.value == b"x" * 300
    assert (whole.events[1].kv.key, whole.events[1].kv.mod_revision) == (b"a", 3)
    assert whole.events[1].kv.create_revision == whole.events[1].kv.version == 0
    assert not plain.events[1].HasField("prev_kv")
    for batch, response in zip(batches, (whole, plain), strict=True):
        assert response.SerializeToString() == batch.data == b"".join(batch.wires())


def test_one_encoding_serves_all_watchers_of_a_kind(store: Store) -> None:
    streams = [store.stream() for _ in range(10)]
    for stream in streams:
        for watch_id in range(10):
            stream.watch(watch_id, b"a")
    store.settle(*streams)
    store.apply(Put(b"a", b"1"), Put(b"a", b"2"))
    batches = [d.batch for d in store.settle(*streams)]
    assert len(batches) == 100
    assert len({id(batch) for batch in batches}) == 1
    assert store.hub.topic_count == 1


def test_ten_thousand_watchers_cost_nothing_for_what_does_not_concern_them(store: Store) -> None:
    """Counted, not timed: how many topics are looked at, and how many deliveries are made."""
    streams = [store.stream() for _ in range(10)]
    for number in range(10_000):
        streams[number % 10].watch(number, b"key/%d" % number)
    store.settle(*streams)
    store.apply(*[Put(b"other/%d" % number, b"x") for number in range(100)])
    assert store.hub.matched == 0
    assert not any(stream.waiting for stream in streams)
    store.apply(Put(b"key/77", b"x"))
    assert store.hub.matched == 1
    assert seen(store.settle(*streams)) == [(77, b"key/77", 102, b"x")]
    for stream in streams:
        stream.close()
    assert store.hub.watcher_count == store.hub.topic_count == store.hub.outbox_bytes == 0
    assert store.machine._feed is None, "with nobody watching, the machine keeps no events"


def test_a_start_in_the_past_is_caught_up_from_the_log(store: Store) -> None:
    store.apply(*[Put(b"k%d" % (n % 3), b"%d" % n) for n in range(2000)])
    store.apply(DeleteRange(b"k", b"l"))
    stream = store.stream()
    stream.watch(1, b"k0", start_revision=1)
    stream.watch(2, b"k", b"l", start_revision=1990)
    assert store.hub.has_work and not stream.is_synced(1)
    found = seen(store.settle(stream))
    assert [event for event in found if event[0] == 1] == [(1, b"k0", n + 2, b"%d" % n) for n in range(0, 2000, 3)] + [
        (1, b"k0", 2002, None)
    ]
    assert [event[2] for event in found if event[0] == 2] == [*range(1990, 2002), 2002, 2002, 2002]
    assert stream.is_synced(1) and stream.is_synced(2)


def test_a_key_that_did_not_change_needs_no_log(store: Store) -> None:
    store.apply(Put(b"quiet", b"1"))
    store.apply(*[Put(b"busy", b"%d" % n) for n in range(100)])
    stream = store.stream()
    stream.watch(1, b"quiet", start_revision=3)
    assert stream.is_synced(1) and not store.hub.has_work


def test_a_slow_reader_costs_a_bounded_amount_and_loses_nothing(store: Store) -> None:
    store.hub.stream_bytes_max = 2000
    slow, quick = store.stream(), store.stream()
    slow.watch(1, b"a")
    quick.watch(2, b"a")
    read: list[Delivery] = []
    for n in range(500):
        store.apply(Put(b"a", b"%d" % n))
        read += quick.take(1 << 20)
        assert slow.outbox_bytes <= 2000
    assert [value for _, _, _, value in seen(read)] == [b"%d" % n for n in range(500)]
    assert store.hub.fell_behind == 1
    assert [value for _, _, _, value in seen(store.settle(slow))] == [b"%d" % n for n in range(500)]
    assert slow.is_synced(1)
    store.apply(Put(b"a", b"last"))
    assert [value for _, _, _, value in seen(slow.take(1 << 20))] == [b"last"]


def test_those_behind_take_turns(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits until another one's whole history was read."""
    monkeypatch.setattr(kv_history, "SLICE_ENTRIES", 10)
    store.apply(*[Put(b"a", b"%d" % n) for n in range(1000)])
    far, near = store.stream(), store.stream()
    far.watch(1, b"a", start_revision=1)
    near.watch(2, b"a", start_revision=995)
    for _ in range(2):
        store.hub.advance()
    assert near.is_synced(2) and not far.is_synced(1)


def test_the_same_place_in_the_log_is_read_once_for_all(store: Store) -> None:
    store.apply(*[Put(b"k%d" % (n % 100), b"%d" % n) for n in range(1000)])
    stream = store.stream()
    for n in range(100):
        stream.watch(n, b"k%d" % n, start_revision=2)
    slices = 0
    while store.hub.advance():
        slices += 1
    assert slices <= 1000 // kv_history.SLICE_ENTRIES + 1
    assert len(seen(store.settle(stream))) == 1000


def test_a_revision_is_never_split(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """BZ-127: also not where a slice of the log or a batch of bytes ends."""
    monkeypatch.setattr(kv_history, "SLICE_ENTRIES", 3)
    monkeypatch.setattr(kv_history, "LOOK_AHEAD_ENTRIES", 1)
    monkeypatch.setattr(kv_events, "BATCH_BYTES", 1)
    ops = [Put(b"k%02d" % n, b"x") for n in range(20)]
    early, late = store.stream(), store.stream()
    early.watch(1, b"k", b"l")
    store.settle(early)
    store.apply(Txn([], ops, []), Put(b"k", b"y"))
    late.watch(2, b"k", b"l", start_revision=1)
    for stream in (early, late):
        batches = [d.batch for d in store.settle(stream) if d.batch is not None]
        assert [len(batch.events) for batch in batches] == [20, 1]


def test_a_watcher_below_the_compacted_revision_is_told_so_even_if_its_outbox_is_full(store: Store) -> None:
    """BZ-124."""
    store.hub.stream_bytes_max = 1
    stream = store.stream()
    stream.watch(1, b"a")
    store.apply(Put(b"a", b"1"))
    store.apply(Put(b"a", b"2"))
    store.apply(Put(b"a", b"3"))
    store.apply(Compact(4))
    deliveries = store.settle(stream)
    assert [d.kind for d in deliveries[-1:]] == [Kind.COMPACTED]
    assert deliveries[-1].compact_revision == 4
    assert 1 not in stream.watchers
    assert [event[2] for event in seen(deliveries)] in ([], [2], [2, 3])


def test_a_start_below_the_compacted_revision_is_refused_by_a_delivery(store: Store) -> None:
    store.apply(*[Put(b"a", b"%d" % n) for n in range(5)], Compact(4))
    stream = store.stream()
    stream.watch(1, b"a", start_revision=3)
    stream.watch(2, b"a", start_revision=4)
    assert [(d.kind, d.watch_id) for d in stream.take(1 << 20)][:2] == [(Kind.CREATED, 1), (Kind.COMPACTED, 1)]
    assert [event[2] for event in seen(store.settle(stream))] == [4, 5, 6]


@pytest.mark.parametrize("restored", [False, True])
@pytest.mark.parametrize("range_end", [b"", b"b"])
def test_a_deletion_at_the_compacted_revision_is_seen(store: Store, restored: bool, range_end: bytes) -> None:
    """BZ-125: also by a member that was restored from a capture, which holds no tombstone for it."""
    store.apply(Put(b"a", b"1"), DeleteRange(b"a"), Compact(3))
    store.machine.compact_some(100)
    if restored:
        capture = store.machine.capture()
        store.machine.restore(capture.index, list(capture.chunks()))
        capture.close()
    stream = store.stream()
    stream.watch(1, b"a", range_end, start_revision=3)
    assert seen(store.settle(stream)) == [(1, b"a", 3, None)]


def test_what_was_there_before_a_compacted_revision_is_not_shown(store: Store) -> None:
    """As etcd, which reads it at the revision before."""
    store.apply(Put(b"a", b"1"), Put(b"a", b"2"), Put(b"a", b"3"), Compact(3))
    stream = store.stream()
    stream.watch(1, b"a", start_revision=3, prev_kv=True)
    batches = [d.batch for d in store.settle(stream) if d.batch is not None]
    events = WatchResponse.FromString(batches[0].data).events
    assert [(event.kv.value, event.prev_kv.value) for event in events] == [(b"2", b""), (b"3", b"2")]


def test_progress_comes_behind_all_it_promises(store: Store) -> None:
    """BZ-126."""
    store.hub.stream_bytes_max = 1
    stream = store.stream()
    stream.watch(1, b"a")
    stream.watch(2, b"b", start_revision=6)
    store.settle(stream)
    store.apply(Put(b"a", b"1"))
    store.apply(Put(b"a", b"2"))
    assert not stream.progress(1), "what it was not told yet is in the log only"
    assert not stream.progress(2), "its start is still to come"
    stream.request_progress()
    stream.request_progress()
    assert seen(store.settle(stream)) == [(1, b"a", 2, b"1"), (1, b"a", 3, b"2")]
    assert stream.progress(1)
    assert [d.kind for d in stream.take(1 << 20)] == [Kind.PROGRESS]
    store.apply(Put(b"c", b"1"))
    assert stream.waiting == 0, "a watch that begins at 6 was not synced at 4"
    store.apply(Put(b"c", b"2"))
    (progress,) = stream.take(1 << 20)
    assert (progress.kind, progress.watch_id, progress.revision) == (Kind.PROGRESS, ALL, 5)


def test_a_restored_snapshot_never_sends_a_watch_back(store: Store) -> None:
    other = Store()
    commands = [Put(b"a", b"%d" % n) for n in range(6)]
    other.apply(*commands, Compact(5))
    stream = store.stream()
    stream.watch(1, b"a")
    store.apply(*commands[:2])
    stream.watch(2, b"b")
    assert len(seen(store.settle(stream))) == 2
    capture = other.machine.capture()
    store.machine.restore(capture.index, list(capture.chunks()))
    deliveries = store.settle(stream)
    # The first one needed revision 4, which is compacted: it is told so. The other one as well, for it cannot be known
    # that nothing happened to its key between 4 and 5.
    assert [(d.kind, d.watch_id, d.compact_revision) for d in deliveries] == [
        (Kind.COMPACTED, 1, 5),
        (Kind.COMPACTED, 2, 5),
    ]


def test_a_watcher_goes_on_in_the_log_of_a_restored_snapshot(store: Store) -> None:
    other = Store()
    commands = [Put(b"a", b"%d" % n) for n in range(6)]
    other.apply(*commands)
    stream = store.stream()
    stream.watch(1, b"a")
    store.apply(*commands[:2])
    capture = other.machine.capture()
    store.machine.restore(capture.index, list(capture.chunks()))
    assert [event[2] for event in seen(store.settle(stream))] == [2, 3, 4, 5, 6, 7]


def test_a_long_walk_is_cut_into_slices(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that rested for long and was then changed often: what it had is far from the present."""
    store.apply(Put(b"a", b"first"))
    store.apply(*[Put(b"z%d" % n, b"") for n in range(2000)])
    store.apply(*[Put(b"a", b"%d" % n) for n in range(5000)])
    stream = store.stream()
    stream.watch(1, b"a", start_revision=2)
    calls = 0
    while not stream.waiting or stream.take(1)[0].kind == Kind.CREATED:
        assert store.hub.advance()
        calls += 1
    assert calls >= 5000 // 1024


@pytest.mark.parametrize("seed", range(20))
def test_the_index_finds_what_a_search_finds(seed: int) -> None:
    r = random.Random(seed)
    index: IntervalIndex[int] = IntervalIndex()
    ranges: dict[int, tuple[bytes, bytes | None]] = {}
    places = {}
    points = [bytes([r.randrange(6) for _ in range(r.randrange(4))]) for _ in range(30)]
    for step in range(200):
        if ranges and r.random() < 0.4:
            number = r.choice(sorted(ranges))
            index.remove(places.pop(number))
            del ranges[number]
        else:
            start, end = r.choice(points), r.choice([*points, None])
            ranges[step] = (start, end)
            places[step] = index.add(start, end, step)
        key = r.choice(points)
        expected = [n for n, (start, end) in ranges.items() if start <= key and (end is None or key < end)]
        assert sorted(index.stab(key)) == expected
        assert len(index) == len(ranges)
