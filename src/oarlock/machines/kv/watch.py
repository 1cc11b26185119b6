"""Watches over the key-value machine: who is told of which change, and that nobody misses one.

A *reader* (`WatchStream`) has many *watchers*; watchers of the same keys, filters and kind share a *topic*, and with it
every event's encoding. The machine hands over the changes of each `apply` once. A watcher is

- *synced*: it has been given everything up to the machine's revision, and is given what comes;
- *behind*: it is given what the log holds, slice by slice (`WatchHub.advance`), in turn with the others;
- *blocked*: behind, and its reader has enough to read for now.

What is given waits in the reader's outbox, which is bounded: a watcher whose reader's outbox is full falls behind where
it stands and catches up from the log once the reader has read. So a slow reader costs a bounded amount of memory and
loses nothing. Each watcher's `next_revision` is the first one of which it has not been told everything; it never goes
back. A watcher whose next revision is compacted is cancelled with the compacted revision, whatever the state of its
outbox. (etcd's mvcc/watchable_store.go, whose mistakes are the entries BZ-124 to 127 of the bug zoo: each place that
could make one of them says so.)

Nothing here reads a clock or waits. All methods are called on the machine's thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Final

from oarlock.machines.kv.events import EventBatch, WatchEvent, cut_batches, settle_previous
from oarlock.machines.kv.history import History, Slice
from oarlock.machines.kv.intervals import Interval, IntervalIndex

OUTBOX_BYTES_MAX: Final = 1 << 20
"""What one reader's outbox holds before its watchers fall behind. An empty one takes any batch."""

OUTBOX_TOTAL_BYTES_MAX: Final = 256 << 20
"""The same for all readers together: beyond it only empty outboxes take anything."""

DELIVERY_BYTES: Final = 160
"""What a delivery counts beside its events."""

WALK_STEPS: Final = 1024
"""Steps back through a key's history in one `advance`."""

ALL: Final = -1
"""The watch id that stands for all watchers of a stream."""


class State(IntEnum):
    SYNCED = 0
    BEHIND = 1
    BLOCKED = 2
    CANCELLED = 3


class Kind(IntEnum):
    CREATED = 0  # the watch has begun
    EVENTS = 1
    PROGRESS = 2  # the watcher, or every watcher of the stream, has been told everything up to `revision`
    COMPACTED = 3  # the watch has ended, because what it needs next is compacted
    CANCELLED = 4  # the watch was ended by its reader
    REFUSED = 5  # there is no watch, for `reason`: for the layer above to say in order


class Delivery:
    """One thing to tell a reader. `revision`: the watcher has been told everything up to it, or, at its creation, the
    store stands there. `watch_id` is `ALL` where all watchers of the stream are meant."""

    __slots__ = ("batch", "compact_revision", "kind", "reason", "revision", "size", "watch_id")

    def __init__(
        self,
        kind: Kind,
        watch_id: int,
        revision: int,
        batch: EventBatch | None = None,
        *,
        compact_revision: int = 0,
        reason: str = "",
    ) -> None:
        self.kind = kind
        self.watch_id = watch_id
        self.revision = revision
        self.batch = batch
        self.compact_revision = compact_revision
        self.reason = reason
        self.size = DELIVERY_BYTES if batch is None else DELIVERY_BYTES + batch.size


class Topic:
    """Watchers of the same keys, filters and kind."""

    __slots__ = ("behind", "end", "filters", "key", "pending", "place", "prev_kv", "single", "synced")

    def __init__(self, key: bytes, end: bytes | None, single: bool, filters: int, prev_kv: bool) -> None:
        self.key = key
        self.end = end
        self.single = single
        self.filters = filters
        self.prev_kv = prev_kv
        self.synced: dict[Watcher, None] = {}  # in the order in which they became so
        self.behind = 0
        self.pending: list[WatchEvent] = []  # of the batch under way
        self.place: Interval[Topic] | None = None


class Watcher:
    """One watch. `next_revision` is exact while the watcher is not synced; of a synced one it says only that nothing
    below it is wanted, which matters to a watch that begins in the future."""

    __slots__ = ("next_revision", "state", "stream", "topic", "watch_id")

    def __init__(self, stream: WatchStream, watch_id: int, topic: Topic, next_revision: int) -> None:
        self.stream = stream
        self.watch_id = watch_id
        self.topic = topic
        self.next_revision = next_revision
        self.state = State.CANCELLED  # until the hub has it


class WatchStream:
    """One reader. `on_ready` is called when the outbox, empty before, has something; it must only make a note."""

    __slots__ = ("_outbox", "unsynced", "blocked", "future", "hub", "on_ready", "outbox_bytes", "watchers")

    def __init__(self, hub: WatchHub, on_ready: Callable[[], None]) -> None:
        self.hub = hub
        self.on_ready = on_ready
        self.watchers: dict[int, Watcher] = {}
        self.blocked: dict[Watcher, None] = {}
        self.future: dict[Watcher, None] = {}  # began beyond the present, and may still be there
        self.outbox_bytes = 0
        self._outbox: deque[Delivery] = deque()
        self.unsynced = 0

    def watch(
        self,
        watch_id: int,
        key: bytes,
        range_end: bytes | None = None,
        start_revision: int = 0,
        *,
        filters: int = 0,
        prev_kv: bool = False,
    ) -> int:
        """Watch `key`, or with `range_end` the range from it to there (one zero byte: to the end of all keys), from
        `start_revision` on (0: from the next one). Returns the revision at which the watch begins.

        `watch_id` is the caller's, and not in use on this stream. The first delivery says that the watch was created;
        if its start is compacted, the second one ends it.
        """
        assert key, "a watch has a key"
        assert watch_id not in self.watchers, f"watch id {watch_id} is in use"
        return self.hub.add(self, watch_id, key, range_end, start_revision, filters, prev_kv)

    def cancel(self, watch_id: int) -> bool:
        """End a watch; whether there was one. What is in the outbox for it stays there, and the end comes behind it."""
        watcher = self.watchers.get(watch_id)
        if watcher is None:
            return False
        self.push(Delivery(Kind.CANCELLED, watch_id, self.hub.revision))
        self.hub.remove(watcher)
        return True

    def is_synced(self, watch_id: int) -> bool:
        """Whether the watcher was given everything up to the present, and its start is not still to come."""
        watcher = self.watchers.get(watch_id)
        return watcher is not None and watcher.state == State.SYNCED and watcher.next_revision <= self.hub.revision + 1

    @property
    def all_synced(self) -> bool:
        """Whether that is true of every watcher of the stream. (BZ-126 is here: progress means no less.)"""
        if self.unsynced:
            return False
        for watcher in list(self.future):
            if watcher.next_revision > self.hub.revision + 1:
                return False
            del self.future[watcher]
        return True

    def progress(self, watch_id: int) -> bool:
        """Tell a watcher how far it is; not unless it is synced."""
        synced = self.is_synced(watch_id)
        if synced:
            self.push(Delivery(Kind.PROGRESS, watch_id, self.hub.revision))
        return synced

    def request_progress(self) -> None:
        """Tell all watchers together how far they are, now or as soon as all of them are synced. Asking again before
        the answer is the same question."""
        self.hub.request_progress(self)

    def push(self, delivery: Delivery) -> None:
        """Put a delivery behind what waits, whatever the outbox holds. For what is small and bounded elsewhere."""
        self.outbox_bytes += delivery.size
        self.hub.outbox_bytes += delivery.size
        self._outbox.append(delivery)
        if len(self._outbox) == 1:
            self.on_ready()

    def admits(self, size: int) -> bool:
        hub = self.hub
        return not self._outbox or (
            self.outbox_bytes + size <= hub.stream_bytes_max and hub.outbox_bytes + size <= hub.total_bytes_max
        )

    @property
    def waiting(self) -> int:
        """Deliveries in the outbox."""
        return len(self._outbox)

    def take(self, bytes_max: int) -> list[Delivery]:
        """Take deliveries out, about `bytes_max` of them, at least one if there is any."""
        taken: list[Delivery] = []
        outbox = self._outbox
        size = 0
        while outbox and size < bytes_max:
            delivery = outbox.popleft()
            size += delivery.size
            taken.append(delivery)
        self.outbox_bytes -= size
        self.hub.outbox_bytes -= size
        if self.blocked and self.outbox_bytes * 2 <= self.hub.stream_bytes_max:
            self.hub.unblock(self)
        return taken

    def close(self) -> None:
        """End all watches and forget the outbox."""
        for watcher in list(self.watchers.values()):
            self.hub.remove(watcher)
        self.hub.forget(self)
        self.hub.outbox_bytes -= self.outbox_bytes
        self.outbox_bytes = 0
        self._outbox.clear()

    def count_unsynced(self, change: int) -> None:
        self.unsynced += change


class WatchHub:
    """All watches of one machine. `on_behind` is called when there is something for `advance` to do, and was not
    before; it must only make a note."""

    def __init__(
        self,
        history: History,
        *,
        stream_bytes_max: int = OUTBOX_BYTES_MAX,
        total_bytes_max: int = OUTBOX_TOTAL_BYTES_MAX,
    ) -> None:
        self.on_behind: Callable[[], None] | None = None
        self.stream_bytes_max = stream_bytes_max
        self.total_bytes_max = total_bytes_max
        self.batch_bytes: int | None = None  # instead of `events.BATCH_BYTES`
        self.slice_bounds: tuple[int, int] | None = None  # instead of those of `history`
        self.outbox_bytes = 0
        self.watcher_count = 0
        self.events_delivered = 0  # to watchers, counting each of them
        self.fell_behind = 0  # how often a reader was too slow
        self.matched = 0  # how often a change concerned a topic
        self._history = history
        self._revision = history.revision  # of what the hub was handed
        self._topics: dict[tuple[bytes, bytes | None, bool, int, bool], Topic] = {}
        self._by_key: dict[bytes, list[Topic]] = {}
        self._ranges: IntervalIndex[Topic] = IntervalIndex()
        self._behind: dict[Watcher, None] = {}  # whose turn comes first stands first
        self._blocked: dict[Watcher, None] = {}
        self._slice: Slice | None = None
        self._slice_watchers: list[Watcher] = []
        self._progress: dict[WatchStream, None] = {}  # asked, and not all synced yet

    @property
    def revision(self) -> int:
        """Synced watchers have been given everything up to this revision."""
        return self._revision if self.watcher_count else self._history.revision

    @property
    def unsynced_count(self) -> int:
        return len(self._behind) + len(self._blocked)

    @property
    def topic_count(self) -> int:
        return len(self._topics)

    @property
    def has_work(self) -> bool:
        """Whether `advance` has something to do."""
        return bool(self._behind)

    def stream(self, on_ready: Callable[[], None]) -> WatchStream:
        """A new reader."""
        return WatchStream(self, on_ready)

    # -- watchers come and go; streams call these

    def add(
        self,
        stream: WatchStream,
        watch_id: int,
        key: bytes,
        range_end: bytes | None,
        start_revision: int,
        filters: int,
        prev_kv: bool,
    ) -> int:
        if not self.watcher_count:
            self._revision = self._history.revision
            self._history.feed(True)
        topic = self._topic(key, range_end, filters, prev_kv)
        start = start_revision or self._revision + 1
        watcher = Watcher(stream, watch_id, topic, start)
        stream.watchers[watch_id] = watcher
        self.watcher_count += 1
        stream.push(Delivery(Kind.CREATED, watch_id, self._revision))
        compact_revision = self._history.compact_revision
        if start > self._revision:
            if start > self._revision + 1:
                stream.future[watcher] = None
            self._become_synced(watcher)
        elif topic.single and start > compact_revision and self._history.last_change(key) < start:
            # Nothing has happened to this key since: the log need not be read. Not at the compacted revision: of a
            # deletion there only the log may know. (BZ-125)
            self._become_synced(watcher)
        else:
            topic.behind += 1
            stream.count_unsynced(1)
            self._become_behind(watcher)
            if start < compact_revision:
                self._cancel_compacted(watcher)
        return start

    def remove(self, watcher: Watcher) -> None:
        """Let go of a watcher, whatever its state."""
        stream, topic = watcher.stream, watcher.topic
        del stream.watchers[watcher.watch_id]
        stream.future.pop(watcher, None)
        if watcher.state == State.SYNCED:
            del topic.synced[watcher]
        else:
            if watcher.state == State.BEHIND:
                del self._behind[watcher]
            else:
                del stream.blocked[watcher]
                del self._blocked[watcher]
            topic.behind -= 1
            stream.count_unsynced(-1)
        watcher.state = State.CANCELLED
        self.watcher_count -= 1
        if not topic.synced and not topic.behind:
            self._drop_topic(topic)
        if not self.watcher_count:
            self._history.feed(False)
            self._slice = None
            self._slice_watchers = []
        if stream in self._progress and stream.all_synced:
            self._answer_progress(stream)

    def forget(self, stream: WatchStream) -> None:
        self._progress.pop(stream, None)

    def _topic(self, key: bytes, range_end: bytes | None, filters: int, prev_kv: bool) -> Topic:
        single = not range_end
        end = None if single or range_end == b"\0" else range_end
        name = (key, end, single, filters, prev_kv)
        topic = self._topics.get(name)
        if topic is None:
            topic = self._topics[name] = Topic(key, end, single, filters, prev_kv)
            if single:
                self._by_key.setdefault(key, []).append(topic)
            else:
                topic.place = self._ranges.add(key, end, topic)
        return topic

    def _drop_topic(self, topic: Topic) -> None:
        del self._topics[topic.key, topic.end, topic.single, topic.filters, topic.prev_kv]
        if topic.place is None:
            topics = self._by_key[topic.key]
            topics.remove(topic)
            if not topics:
                del self._by_key[topic.key]
        else:
            self._ranges.remove(topic.place)

    def _topics_of(self, key: bytes) -> list[Topic]:
        exact = self._by_key.get(key)
        if not len(self._ranges):
            return exact or []
        ranges = self._ranges.stab(key)
        return exact + ranges if exact else ranges

    # -- states

    def _become_synced(self, watcher: Watcher) -> None:
        watcher.state = State.SYNCED
        watcher.topic.synced[watcher] = None

    def _become_behind(self, watcher: Watcher) -> None:
        """At the end of the queue of those who are given slices of the log."""
        watcher.state = State.BEHIND
        self._behind[watcher] = None
        if len(self._behind) == 1 and self.on_behind is not None:
            self.on_behind()

    def _become_blocked(self, watcher: Watcher) -> None:
        watcher.state = State.BLOCKED
        watcher.stream.blocked[watcher] = None
        self._blocked[watcher] = None

    def _fall_behind(self, watcher: Watcher, at: int) -> None:
        """A synced watcher's reader has no room for what happened at `at`: it will read that from the log."""
        self.fell_behind += 1
        del watcher.topic.synced[watcher]
        watcher.topic.behind += 1
        watcher.stream.count_unsynced(1)
        watcher.next_revision = max(watcher.next_revision, at)
        self._become_blocked(watcher)

    def unblock(self, stream: WatchStream) -> None:
        """The reader has read: its watchers may be given more."""
        blocked, stream.blocked = stream.blocked, {}
        for watcher in blocked:
            del self._blocked[watcher]
            self._become_behind(watcher)

    # -- what the machine tells

    def changed(self, events: Sequence[WatchEvent]) -> None:
        """The changes of one `apply`, in order. Called once, with the machine at the revision of the last of them."""
        self._revision = self._history.revision
        touched: list[Topic] = []
        settle_previous(events)
        for event in events:
            for topic in self._topics_of(event.key):
                self.matched += 1
                if topic.synced:
                    if not topic.pending:
                        touched.append(topic)
                    topic.pending.append(event)
        for topic in touched:
            pending, topic.pending = topic.pending, []
            batches = cut_batches(pending, topic.filters, topic.prev_kv, self.batch_bytes)
            if batches:
                for watcher in list(topic.synced):
                    if watcher.next_revision <= pending[0].main:
                        self._give(watcher, batches, self._revision)
                    else:
                        late = [event for event in pending if event.main >= watcher.next_revision]
                        self._give(
                            watcher, cut_batches(late, topic.filters, topic.prev_kv, self.batch_bytes), self._revision
                        )
        if self._progress:
            for stream in list(self._progress):
                if stream.all_synced:
                    self._answer_progress(stream)

    def compacted(self) -> None:
        """The machine's compacted revision has risen. Whoever needs something below it is told so, and ends.

        (BZ-124 is here: that a reader's outbox is full neither moves its watchers on nor keeps the notice from it. At
        the compacted revision itself nothing is lost, deletions included: BZ-125.)
        """
        compact_revision = self._history.compact_revision
        if self._slice is not None and self._slice.first < compact_revision:
            self._slice = None  # what it still walks to may be purged
        for watcher in [*self._behind, *self._blocked]:
            if watcher.next_revision < compact_revision:
                self._cancel_compacted(watcher)

    def restored(self) -> None:
        """The machine's contents were replaced by a snapshot's, which is later than what it had. Every watcher goes on
        from where it stood, in the log that came with the snapshot, and never back."""
        before = self._revision
        self._revision = self._history.revision
        self._slice = None
        for watcher in [*self._behind, *self._blocked]:
            assert watcher.next_revision <= self._revision, (
                f"revision {self._revision} was restored, and a watcher has been told of {watcher.next_revision - 1}"
            )
        for topic in self._topics.values():
            synced, topic.synced = topic.synced, {}
            for watcher in synced:
                watcher.next_revision = max(watcher.next_revision, before + 1)
                if watcher.next_revision > self._revision:
                    topic.synced[watcher] = None
                else:
                    topic.behind += 1
                    watcher.stream.count_unsynced(1)
                    self._become_behind(watcher)
        self.compacted()

    # -- giving

    def _give(self, watcher: Watcher, batches: Sequence[EventBatch], revision: int) -> bool:
        """Put batches into the outbox of a watcher's reader, up to `revision`; one that is not behind falls behind
        where there is no room. Returns whether all were taken; if not, `next_revision` is that of the first that was
        not."""
        stream = watcher.stream
        last = len(batches) - 1
        for number, batch in enumerate(batches):
            if not stream.admits(DELIVERY_BYTES + batch.size):
                if watcher.state == State.SYNCED:
                    self._fall_behind(watcher, batch.first)
                else:
                    watcher.next_revision = batch.first
                return False
            self.events_delivered += len(batch.events)
            told = revision if number == last else batch.last
            stream.push(Delivery(Kind.EVENTS, watcher.watch_id, told, batch))
        return True

    def _cancel_compacted(self, watcher: Watcher) -> None:
        stream, watch_id = watcher.stream, watcher.watch_id
        compact_revision = self._history.compact_revision
        assert watcher.next_revision < compact_revision, (watcher.next_revision, compact_revision)
        # Before the watcher is forgotten: progress that waited only for it must not come first.
        stream.push(Delivery(Kind.COMPACTED, watch_id, self._revision, compact_revision=compact_revision))
        self.remove(watcher)

    def request_progress(self, stream: WatchStream) -> None:
        if stream.all_synced:
            self._answer_progress(stream)
        else:
            self._progress[stream] = None

    def _answer_progress(self, stream: WatchStream) -> None:
        self._progress.pop(stream, None)
        stream.push(Delivery(Kind.PROGRESS, ALL, self.revision))

    # -- catching up

    def advance(self) -> bool:
        """Read one slice of the log for the watcher whose turn it is and all others who stand within it; whether there
        is more to do. Takes a bounded number of steps, save that a revision is taken whole."""
        if self._slice is None:
            if not self._behind:
                return False
            self._begin_slice()
        assert self._slice is not None
        if self._slice.resolve(WALK_STEPS):
            self._finish_slice(self._slice)
        return bool(self._behind)

    def _begin_slice(self) -> None:
        first = next(iter(self._behind)).next_revision
        part = self._slice = Slice(self._history, first, self._wanted, self.slice_bounds)
        # Those who come later have not been asked for what they want: the slice is not for them.
        self._slice_watchers = [w for w in self._behind if first <= w.next_revision <= part.last]

    def _wanted(self, key: bytes) -> bool:
        return any(topic.behind for topic in self._topics_of(key))

    def _finish_slice(self, part: Slice) -> None:
        watchers, self._slice_watchers = self._slice_watchers, []
        self._slice = None
        by_topic: dict[Topic, list[WatchEvent]] = {}
        for event in part.events:
            for topic in self._topics_of(event.key):
                if topic.behind:
                    by_topic.setdefault(topic, []).append(event)
        cut: dict[Topic, list[EventBatch]] = {}
        for watcher in watchers:
            if watcher.state != State.BEHIND or not part.first <= watcher.next_revision <= part.last:
                continue  # cancelled, or blocked, since the slice was begun
            topic = watcher.topic
            del self._behind[watcher]
            events = by_topic.get(topic)
            if events is not None:
                if watcher.next_revision <= events[0].main:
                    batches = cut.get(topic)
                    if batches is None:
                        batches = cut[topic] = cut_batches(events, topic.filters, topic.prev_kv, self.batch_bytes)
                else:
                    rest = [event for event in events if event.main >= watcher.next_revision]
                    batches = cut_batches(rest, topic.filters, topic.prev_kv, self.batch_bytes)
                if not self._give(watcher, batches, part.last):
                    self._become_blocked(watcher)
                    continue
            watcher.next_revision = part.last + 1
            if watcher.next_revision > self._revision:
                topic.behind -= 1
                stream = watcher.stream
                stream.count_unsynced(-1)
                self._become_synced(watcher)
                if stream in self._progress and stream.all_synced:
                    self._answer_progress(stream)
            else:
                self._behind[watcher] = None

    # -- invariants

    def validate(self) -> None:
        """Check the states of all watchers against each other. For tests and the simulator."""
        synced = behind = 0
        streams: dict[WatchStream, int] = {}
        for topic in self._topics.values():
            assert topic.synced or topic.behind, f"nobody watches {topic.key!r}, and its topic is kept"
            assert not topic.pending, f"events for {topic.key!r} were not given"
            synced += len(topic.synced)
            behind += topic.behind
            assert all(watcher.state == State.SYNCED for watcher in topic.synced)
        assert synced + behind == self.watcher_count, (synced, behind, self.watcher_count)
        assert behind == len(self._behind) + len(self._blocked), (behind, len(self._behind), len(self._blocked))
        for watcher in self._behind:
            assert watcher.state == State.BEHIND, watcher.state
        for watcher in self._blocked:
            assert watcher.state == State.BLOCKED and watcher in watcher.stream.blocked, watcher.state
            assert watcher.stream.waiting, "a watcher waits for its reader, who has nothing to read"
        for watcher in [*self._behind, *self._blocked]:
            assert self._history.compact_revision <= watcher.next_revision <= self._revision, (
                f"a watcher behind stands at {watcher.next_revision}, the store at {self._revision} and compacted at "
                f"{self._history.compact_revision}"
            )
            streams[watcher.stream] = streams.get(watcher.stream, 0) + 1
        for stream, count in streams.items():
            assert stream.unsynced == count, (stream.unsynced, count)
