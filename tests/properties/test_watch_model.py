"""The hub of watches against a naive list of events: slow readers, compactions at any moment, captures restored into a
member that was behind, slices and walks of every size. Judged by `oarlock.check.watch`, which shares no code with it.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.support.watch_model import EventModel, FollowedStream

from oarlock.machines.base import Context
from oarlock.machines.kv import events as kv_events
from oarlock.machines.kv import history as kv_history
from oarlock.machines.kv import watch as kv_watch
from oarlock.machines.kv.commands import Compact, DeleteRange, Put, Txn, encode
from oarlock.machines.kv.layout import TABLES
from oarlock.machines.kv.machine import KvMachine
from oarlock.machines.lmdb_store import LmdbStore

KEYS = (b"a", b"b", b"ba", b"bb", b"c")
ENDS = (b"", b"", b"b", b"bb", b"c", b"\0")
keys = st.sampled_from(KEYS)
ends = st.sampled_from(ENDS)
puts = st.builds(Put, keys, st.binary(max_size=2))
deletes = st.builds(DeleteRange, keys, ends)
# A transaction puts a key once, but as etcd lets it through it may also delete it, before or after.
txns = st.lists(puts | deletes, max_size=6, unique_by=lambda op: (type(op), op.key)).map(lambda ops: Txn([], ops, []))
STREAMS = 3


class Watches(RuleBasedStateMachine):
    """`self.machine` is watched; `self.leader` is ahead of it and gives it captures."""

    def __init__(self) -> None:
        super().__init__()
        self.patched: list[tuple[Any, str, Any]] = []
        self.directory = ""

    def patch(self, module: Any, name: str, value: Any) -> None:
        self.patched.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    @initialize(
        on_disk=st.booleans(),
        slice_entries=st.sampled_from((1, 2, 5)),
        look_ahead=st.sampled_from((0, 1, 3)),
        steps=st.sampled_from((0, 1, 2, 100)),
        batch=st.sampled_from((1, 60, 1000)),
        outbox=st.sampled_from((1, 400, 1000, 100_000)),
    )
    def begin(self, on_disk: bool, slice_entries: int, look_ahead: int, steps: int, batch: int, outbox: int) -> None:
        self.patch(kv_history, "SLICE_ENTRIES", slice_entries)
        self.patch(kv_history, "LOOK_AHEAD_ENTRIES", look_ahead)
        self.patch(kv_watch, "WALK_STEPS", max(1, steps))
        self.patch(kv_events, "BATCH_BYTES", batch)
        if on_disk:
            self.directory = tempfile.mkdtemp()
            self.machine = KvMachine(LmdbStore(self.directory, TABLES))
        else:
            self.machine = KvMachine.in_memory()
        self.machine.watches.stream_bytes_max = outbox
        self.machine.watches.total_bytes_max = outbox * 2
        self.leader = KvMachine.in_memory()
        self.model = EventModel()
        self.log: list[list[bytes]] = []
        self.applied = 0
        self.ready = 0
        self.streams = [
            FollowedStream(self.machine.watches.stream(self.note), self.model.history) for _ in range(STREAMS)
        ]
        self.next_id = 1

    def note(self) -> None:
        self.ready += 1

    def append(self, *commands: Any) -> None:
        self.log.append([encode(command) for command in commands])
        index = len(self.log)
        self.leader.apply(Context(index, 1, index), self.log[-1])

    # -- the log

    @rule(commands=st.lists(puts | deletes | txns, max_size=4))
    def write(self, commands: list[Any]) -> None:
        for command in commands:
            self.model.run(command)
        self.append(*commands)
        assert self.leader.revision == self.model.revision

    @rule(back=st.integers(0, 12), more=st.lists(puts | deletes, max_size=2), before=st.booleans())
    def compact(self, back: int, more: list[Any], before: bool) -> None:
        revision = self.model.revision - back
        commands: list[Any] = []
        for command in more:
            self.model.run(command)
            commands.append(command)
        commands.insert(0 if before else len(commands), Compact(revision))
        self.append(*commands)
        for stream in self.streams:
            for checker in stream.checkers.values():
                checker.compacted(revision)

    @rule(count=st.integers(1, 4))
    def apply(self, count: int) -> None:
        for _ in range(count):
            if self.applied < len(self.log):
                self.applied += 1
                self.machine.apply(Context(self.applied, 1, self.applied), self.log[self.applied - 1])

    @precondition(lambda self: self.applied < len(self.log))
    @rule()
    def restore(self) -> None:
        capture = self.leader.capture()
        self.machine.restore(capture.index, capture.chunks())
        capture.close()
        self.applied = len(self.log)

    @rule(entries=st.integers(1, 5))
    def purge(self, entries: int) -> None:
        self.machine.compact_some(entries)

    # -- watches

    @rule(
        stream=st.integers(0, STREAMS - 1),
        key=keys,
        end=ends,
        back=st.integers(-3, 15) | st.none(),
        filters=st.sampled_from((0, 0, 0, 1, 2)),
        prev_kv=st.booleans(),
    )
    def watch(self, stream: int, key: bytes, end: bytes, back: int | None, filters: int, prev_kv: bool) -> None:
        start = 0 if back is None else max(1, self.machine.revision - back)
        reader = self.streams[stream]
        checker = reader.watch(self.next_id, key, end, start, filters=filters, prev_kv=prev_kv)
        checker.compacted(self.leader.compact_revision)
        self.next_id += 1

    @precondition(lambda self: any(stream.stream.watchers for stream in self.streams))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        stream = data.draw(st.sampled_from([s for s in self.streams if s.stream.watchers]))
        assert stream.stream.cancel(data.draw(st.sampled_from(sorted(stream.stream.watchers))))

    @rule(stream=st.integers(0, STREAMS - 1))
    def ask_for_progress(self, stream: int) -> None:
        self.streams[stream].stream.request_progress()

    @rule(data=st.data(), stream=st.integers(0, STREAMS - 1))
    def periodic_progress(self, data: st.DataObject, stream: int) -> None:
        watchers = sorted(self.streams[stream].stream.watchers)
        if watchers:
            self.streams[stream].stream.progress(data.draw(st.sampled_from(watchers)))

    @rule(stream=st.integers(0, STREAMS - 1), amount=st.sampled_from((1, 300, 10_000)))
    def read(self, stream: int, amount: int) -> None:
        self.streams[stream].read(amount)

    @rule(count=st.integers(1, 5))
    def advance(self, count: int) -> None:
        for _ in range(count):
            self.machine.watches.advance()

    # -- what holds

    @invariant()
    def told_the_truth(self) -> None:
        for stream in getattr(self, "streams", ()):
            stream.check()

    @invariant()
    def bounded(self) -> None:
        if not hasattr(self, "machine"):
            return
        hub = self.machine.watches
        assert hub.outbox_bytes == sum(stream.stream.outbox_bytes for stream in self.streams)
        assert hub.watcher_count == sum(len(stream.stream.watchers) for stream in self.streams)
        hub.validate()

    def teardown(self) -> None:
        try:
            if hasattr(self, "machine"):
                self.finish()
        finally:
            for module, name, value in reversed(self.patched):
                setattr(module, name, value)
            if self.directory:
                self.machine.close()
                shutil.rmtree(self.directory)

    def finish(self) -> None:
        """Everybody reads on: whoever was not cancelled is told of everything, and no more than that is kept."""
        hub = self.machine.watches
        for _ in range(10_000):
            more = hub.advance()
            for stream in self.streams:
                more = stream.read(500) > 0 or more
            if not more and not hub.has_work:
                break
        else:
            raise AssertionError("catching up does not come to an end")
        for stream in self.streams:
            stream.close(self.machine.revision)
            stream.stream.close()
        assert hub.watcher_count == hub.topic_count == hub.outbox_bytes == hub.unsynced_count == 0


TestWatches = Watches.TestCase
TestWatches.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


def walk(seed: int, steps: int = 60) -> None:
    """The same rules in an order that `seed` chooses: many times faster than the search above, and shrinks nothing."""
    r = random.Random(seed)
    world = Watches.__new__(Watches)
    world.patched, world.directory = [], ""
    rules: Any = Watches

    def put() -> Any:
        return Put(r.choice(KEYS), bytes([r.randrange(9)]))

    def delete() -> Any:
        return DeleteRange(r.choice(KEYS), r.choice(ENDS))

    def txn() -> Any:
        ops = [r.choice((put, delete))() for _ in range(r.randrange(6))]
        return Txn([], list({(type(op), op.key): op for op in ops}.values()), [])

    def write() -> None:
        rules.write(world, [r.choice((put, put, delete, txn))() for _ in range(r.randrange(4))])

    def compact() -> None:
        more = [r.choice((put, delete))()][: r.randrange(2)]
        rules.compact(world, back=r.choice((0, 0, 1, 2, 3, 5, 12)), more=more, before=r.random() < 0.5)

    def restore() -> None:
        if world.applied < len(world.log):
            rules.restore(world)

    def watch() -> None:
        back = r.choice((None, 0, 1, 2, 3, 5, 8, -1, -3))
        rules.watch(
            world,
            r.randrange(STREAMS),
            r.choice(KEYS),
            r.choice(ENDS),
            back,
            r.choice((0, 0, 0, 1, 2)),
            r.random() < 0.5,
        )

    def with_watcher(act: Callable[[Any, int], object]) -> None:
        streams = [s.stream for s in world.streams if s.stream.watchers]
        if streams:
            stream = r.choice(streams)
            act(stream, r.choice(sorted(stream.watchers)))

    acts: dict[Callable[[], None], int] = {
        write: 30,
        compact: 6,
        lambda: rules.apply(world, r.randrange(1, 4)): 19,
        restore: 3,
        lambda: rules.purge(world, r.randrange(1, 5)): 2,
        watch: 13,
        lambda: with_watcher(lambda stream, watch_id: stream.cancel(watch_id)): 3,
        lambda: with_watcher(lambda stream, watch_id: stream.progress(watch_id)): 3,
        lambda: rules.ask_for_progress(world, r.randrange(STREAMS)): 3,
        lambda: rules.read(world, r.randrange(STREAMS), r.choice((1, 300, 10_000))): 10,
        lambda: rules.advance(world, r.randrange(1, 4)): 8,
    }
    try:
        rules.begin(
            world, on_disk=seed % 50 == 0, slice_entries=r.choice((1, 2, 5)), look_ahead=r.choice((0, 1, 3)),
            steps=r.choice((1, 1, 2, 100)), batch=r.choice((1, 60, 1000)), outbox=r.choice((1, 400, 1000, 100_000)),
        )  # fmt: skip
        for act in r.choices(list(acts), list(acts.values()), k=steps):
            act()
            world.told_the_truth()
            world.bounded()
    finally:
        world.teardown()


@pytest.mark.parametrize("block", range(4))
def test_walks(block: int) -> None:
    for seed in range(block * 150, (block + 1) * 150):
        try:
            walk(seed)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
