"""Watches in the simulated world: clients that watch, slowly, move between members and resume, and the WATCH checker.

A follower is one client's watch across everything that happens to members: it reads when it likes, leaves a member or
loses it, and goes on with another one from the revision after the last that it was told. What it was told is judged
by `oarlock.check.watch` against the committed log as the reference plays it; at the end everybody reads on, and
nothing may be missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from oarlock.check.watch import EventHistory, WatchAnswer, WatchChecker, WatchedEvent, WatchRequest
from oarlock.machines.kv import commands as kv
from oarlock.machines.kv.encoding import decode_key_value
from oarlock.machines.kv.events import NO_DELETE, NO_PUT, WatchEvent
from oarlock.machines.kv.machine import KvMachine
from oarlock.machines.kv.watch import ALL, Delivery, Kind, WatchStream
from oarlock.sim.failures import Violation
from oarlock.sim.world.model import Model, Plain, _Version

if TYPE_CHECKING:
    from oarlock.sim.world.features import EtcdApplication
    from oarlock.sim.world.process import Process
    from oarlock.sim.world.world import World

FOLLOWERS: Final = 4
OUTBOX_BYTES: Final = (1, 500, 3000, 1 << 20)
READ_BYTES: Final = (1, 400, 1 << 20)
BATCH_BYTES: Final = 200  # histories of a simulation are short: so are batches and slices
SLICE_BOUNDS: Final = (3, 2)
DRAIN_STEPS: Final = 100_000


class WatchModel(Model):
    """The reference, which also writes down what its watchers should see."""

    def __init__(self, application: Any) -> None:
        super().__init__(application)
        self.history: EventHistory = application.history

    def _op(self, op: Any) -> Plain:
        if isinstance(op, kv.Txn):
            return super()._op(op)
        main, sub = self.revision + 1, getattr(self, "_sub", 0)
        result = super()._op(op)
        if isinstance(op, kv.Range):
            return result
        keys = [op.key] if isinstance(op, kv.Put) else self._matching(op.key, op.range_end)
        changed = []
        for key in keys:
            version = self._keys[key][-1]
            if version.place[0] == main and version.place[1] >= sub:
                changed.append((version.place[1], key, version))
        for _, key, version in sorted(changed, key=lambda change: change[0]):
            self._happened(main, key, version)
        return result

    def _deleted(self, key: bytes) -> None:
        super()._deleted(key)
        self._happened(self.revision + 1, key, self._keys[key][-1])

    def _happened(self, main: int, key: bytes, version: _Version) -> None:
        before = self._latest(key, main - 1)
        creates = bool(version.version) and version.create == main
        self.history.append(
            WatchedEvent(
                main,
                key,
                self._encode(key, version) if version.version else None,
                creates,
                None if before is None or creates else self._encode(key, before),
            )
        )


class Follower:
    """See the module. One of them watches one thing at a time."""

    def __init__(self, world: World, application: EtcdApplication, number: int) -> None:
        self._world = world
        self._application = application
        self._number = number
        self._draw = world.choices.stream(f"follower/{number}")
        self._machine: KvMachine | None = None
        self._process: Process | None = None
        self._life = 0
        self._stream: WatchStream | None = None
        self._checker: WatchChecker | None = None
        self._request = WatchRequest(key=b"k")
        self._next_revision = 0
        self._waiting: list[WatchAnswer] = []  # of revisions that the reference has not played yet
        self._finished = False
        self.events = self.moves = self.compacted = self.progress = self.fell_behind = 0
        self._think()

    def _think(self) -> None:
        timeout = self._world.swarm.timeout
        self._world.later(timeout // 8 + self._draw.draw(timeout), self._act)

    def _act(self) -> None:
        if self._finished:
            return
        self._think()
        draw = self._draw
        if self._lost() or draw.draw(20) == 19:
            self._leave()
            if draw.draw(3) == 2:
                self._checker = None  # it has seen enough of this, and wants something else
                self._waiting.clear()
            up = [p for p in self._world.up() if p.machine is not None]
            if up:
                process = up[draw.draw(len(up))]
                assert process.machine is not None
                inner: Any = process.machine.inner
                self._attach(inner, process)
            return
        stream, machine = self._stream, self._machine
        assert stream is not None and machine is not None
        roll = draw.draw(8)
        if roll < 3:
            self._read(READ_BYTES[draw.draw(len(READ_BYTES))])
        elif roll < 6:
            machine.watches.advance()
        elif roll == 6:
            stream.request_progress()
        else:
            stream.progress(self._number)
        try:
            machine.watches.validate()
        except AssertionError as untrue:
            raise Violation("WATCH", str(untrue)) from untrue

    def _lost(self) -> bool:
        process = self._process
        return process is None or process.machine is None or process.life != self._life

    # -- one member after another

    def _attach(self, machine: KvMachine, process: Process | None) -> None:
        draw = self._draw
        self.moves += 1
        self._machine, self._process = machine, process
        self._life = process.life if process is not None else 0
        machine.watches.stream_bytes_max = OUTBOX_BYTES[draw.draw(len(OUTBOX_BYTES))]
        machine.watches.batch_bytes, machine.watches.slice_bounds = BATCH_BYTES, SLICE_BOUNDS
        self._stream = machine.watches.stream(_nothing)
        if self._checker is None:
            self._begin(machine)
        request = self._request
        filters = (NO_PUT if request.no_put else 0) | (NO_DELETE if request.no_delete else 0)
        began = self._stream.watch(
            self._number, request.key, request.range_end, self._next_revision, filters=filters, prev_kv=request.prev_kv
        )
        if self._checker is None:
            self._next_revision = began
            self._request = WatchRequest(
                key=request.key, range_end=request.range_end, start_revision=began, no_put=request.no_put,
                no_delete=request.no_delete, prev_kv=request.prev_kv,
            )  # fmt: skip
            name = f"follower {self._number}"
            self._checker = WatchChecker(self._request, self._application.history, name=name)

    def _begin(self, machine: KvMachine) -> None:
        """Want something new: now, in the past, or a little in the future."""
        draw = self._draw
        keys = self._world.swarm.keys
        first = draw.draw(keys)
        kind = draw.draw(4)
        key, end = b"k%02d" % first, b""
        if kind == 1:
            end = b"k%02d" % (first + 1 + draw.draw(keys))
        elif kind >= 2:
            key, end = b"\0", b"\0"
        past, future = max(1, machine.revision - draw.draw(20)), machine.revision + draw.draw(4)
        start = (0, past, future, max(1, machine.compact_revision))[draw.draw(4)]
        if start == machine.compact_revision and draw.draw(2):
            # What was deleted there is gone from everywhere but the log.
            gone = [key for key in self._world.oracle.model.deleted_at(start) if key < b"l"]
            if gone:
                key, end = gone[draw.draw(len(gone))], b""
        filtered = draw.draw(8)
        self._request = WatchRequest(
            key=key, range_end=end, no_put=filtered == 6, no_delete=filtered == 7, prev_kv=bool(draw.draw(2))
        )
        self._next_revision = start

    def _leave(self) -> None:
        if self._stream is not None and not self._lost():
            self._stream.close()
        self._stream = self._machine = self._process = None
        self._judge()

    # -- what is told

    def _read(self, bytes_max: int) -> int:
        stream, machine = self._stream, self._machine
        assert stream is not None and machine is not None and self._checker is not None
        self.fell_behind = max(self.fell_behind, machine.watches.fell_behind)
        self._checker.compacted(machine.compact_revision)
        deliveries = stream.take(bytes_max)
        for delivery in deliveries:
            self._take(delivery)
            if delivery.kind == Kind.COMPACTED:
                self._judge()
                self._checker = None  # it wants something else now
                self._waiting.clear()
                break
        self._judge()
        if self._checker is None:
            stream.close()
            self._stream = self._machine = self._process = None
        return len(deliveries)

    def _take(self, delivery: Delivery) -> None:
        if delivery.kind == Kind.CREATED:
            return
        if delivery.watch_id not in (ALL, self._number):
            raise Violation("WATCH", f"follower {self._number} was told of watch {delivery.watch_id}")
        if delivery.kind == Kind.EVENTS:
            assert delivery.batch is not None
            events = [_watched(event, self._request.prev_kv) for event in delivery.batch.events]
            self.events += len(events)
            self._next_revision = max(self._next_revision, events[-1].revision + 1)
            self._waiting.append(WatchAnswer(revision=delivery.revision, events=events))
        elif delivery.kind == Kind.PROGRESS:
            self.progress += 1
            self._next_revision = max(self._next_revision, delivery.revision + 1)
            self._waiting.append(WatchAnswer(revision=delivery.revision, progress=True))
        elif delivery.kind == Kind.COMPACTED:
            self.compacted += 1
            if delivery.compact_revision <= self._next_revision:
                raise Violation(
                    "WATCH",
                    f"follower {self._number} wanted {self._next_revision} and was told that this is compacted at "
                    f"{delivery.compact_revision}",
                )

    def _judge(self) -> None:
        """Give the checker what the reference can vouch for."""
        checker = self._checker
        known = self._world.oracle.model.revision
        while self._waiting and self._waiting[0].revision <= known:
            answer = self._waiting.pop(0)
            if checker is not None:
                checker.answer(answer)
        if checker is not None and checker.violations:
            raise Violation("WATCH", str(checker.violations[0]))

    def finish(self, machine: KvMachine) -> None:
        """The run is over: read the rest on this member, if it is ours or we have none. Nothing may be missing."""
        if self._finished:
            return
        if self._lost():
            self._leave()
            self._attach(machine, None)
        elif self._machine is not machine:
            return
        self._finished = True
        for _ in range(DRAIN_STEPS):
            more = machine.watches.advance()
            told = self._read(1 << 20)
            if self._checker is None:
                return  # it ended as compacted, and said so
            if not told and not more:
                break
        else:
            raise Violation("WATCH", f"follower {self._number} is never told everything")
        assert self._checker is not None
        if self._waiting:
            raise Violation("WATCH", f"follower {self._number} was told of {self._waiting[0]}, which never happened")
        self._checker.close(machine.revision)
        if self._checker.violations:
            raise Violation("WATCH", str(self._checker.violations[0]))


def _nothing() -> None:
    """Followers look for themselves."""


def _watched(event: WatchEvent, prev_kv: bool) -> WatchedEvent:
    creates = False
    if event.record is not None:
        record = decode_key_value(event.record)
        creates = record.create_revision == record.mod_revision
    return WatchedEvent(event.main, event.key, event.record, creates, event.previous if prev_kv else None)


__all__ = ["FOLLOWERS", "Follower", "WatchModel"]
