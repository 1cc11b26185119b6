"""The key-value machine over both stores against a naive model, in every order of commands, checkpoints, crashes,
restores and slices of compaction. The model keeps a whole dict for every revision and shares no code with the machine.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from oarlock.machines.base import Context
from oarlock.machines.kv import counts as kv_counts
from oarlock.machines.kv import machine as kv_machine
from oarlock.machines.kv import reading as kv_reading
from oarlock.machines.kv.commands import (
    Command,
    Compact,
    CompactResult,
    Compare,
    DeleteRange,
    DeleteResult,
    KvError,
    Put,
    PutResult,
    Range,
    RangeResult,
    Refused,
    Txn,
    TxnResult,
    encode,
)
from oarlock.machines.kv.commands_alarm import AlarmActivate, AlarmDeactivate, AlarmResult, AuditMark, AuditReport
from oarlock.machines.kv.commands_lease import (
    LeaseDone,
    LeaseExpire,
    LeaseGrant,
    LeaseGranted,
    LeaseRenew,
    LeaseRevoke,
    LeaseTick,
)
from oarlock.machines.kv.encoding import decode_key_value
from oarlock.machines.kv.layout import TABLES
from oarlock.machines.kv.machine import KvMachine
from oarlock.machines.kv.reading import Reading, StateReplaced
from oarlock.machines.lmdb_store import LmdbStore

TERM = 1  # of every entry

# -- the model


@dataclass(frozen=True)
class KV:
    create: int
    mod: int
    version: int
    value: bytes
    lease: int


class Refusal(Exception):
    pass


def inside(key: bytes, start: bytes, end: bytes) -> bool:
    if not end:
        return key == start
    return key >= start if end == b"\0" else start <= key < end


class Model:
    def __init__(self) -> None:
        self.states: list[dict[bytes, KV]] = [{}, {}]  # by revision; the store begins at 1
        self.compacted = -1
        self.leases: dict[int, tuple[int, int]] = {}  # TTL in s, ceiling in ns
        self.clock = 0
        self.alarms: dict[tuple[int, int], bool] = {}  # member and kind -> whether a comparison raised it
        self.mark = (0, 0)  # index, and how many are to report
        self.reports: dict[int, bytes] = {}
        self.index = 0

    @property
    def revision(self) -> int:
        return len(self.states) - 1

    def blocked(self, command: Any) -> KvError | None:
        if any(kind == 2 and not named for (_, kind), named in self.alarms.items()):
            kinds = Put | DeleteRange | Range | Txn | Compact | LeaseGrant | LeaseRevoke | LeaseExpire
            return KvError.CORRUPT if isinstance(command, kinds) else None
        if any(kind == 1 for _, kind in self.alarms):

            def takes_space(op: Any) -> bool:
                if isinstance(op, Txn):
                    return any(takes_space(inner) for inner in op.success + op.failure)
                return isinstance(op, Put)

            return KvError.NO_SPACE if isinstance(command, LeaseGrant) or takes_space(command) else None
        return None

    def run_alarm(self, command: Any) -> Any:
        changed = True
        if isinstance(command, AlarmActivate | AlarmDeactivate):
            if command.alarm not in (1, 2):
                raise Refusal(KvError.UNKNOWN_ALARM)
            key = (command.member, command.alarm)
            changed = (key in self.alarms) is isinstance(command, AlarmDeactivate)
            if isinstance(command, AlarmActivate):
                self.alarms.setdefault(key, False)
            else:
                self.alarms.pop(key, None)
        elif isinstance(command, AuditMark):
            if command.term == TERM:
                self.mark, self.reports = (self.index, command.members), {}
        elif command.index == self.mark[0] and len(command.digest) == 16:
            members = self.mark[1]
            if command.member not in self.reports and len(self.reports) < members:
                self.reports[command.member] = command.digest
                said = list(self.reports.values())
                right = [digest for digest in set(said) if said.count(digest) > members / 2]
                if right:
                    for member, digest in self.reports.items():
                        if digest != right[0]:
                            self.alarms.setdefault((member, 2), True)
                elif len(set(said)) > 1:
                    most = max(said.count(digest) for digest in said)
                    if most + members - len(said) <= members / 2:
                        self.alarms.setdefault((0, 2), False)
        return ("alarm", self.revision, changed)

    def run(self, command: Command, *, logged: bool = True) -> Any:
        try:
            if isinstance(command, AlarmActivate | AlarmDeactivate | AuditMark | AuditReport):
                return self.run_alarm(command)
            if logged and (blocked := self.blocked(command)) is not None:
                raise Refusal(blocked)
            if isinstance(command, Compact):
                if command.revision <= self.compacted:
                    raise Refusal(KvError.COMPACTED)
                if command.revision > self.revision:
                    raise Refusal(KvError.FUTURE_REVISION)
                self.compacted = command.revision
                return ("compact", self.revision)
            if isinstance(command, LeaseGrant | LeaseRevoke | LeaseTick | LeaseRenew | LeaseExpire):
                return self.run_lease(command)
            before = self.states[-1]
            self.work, self.wrote = dict(before), False
            if isinstance(command, Txn):
                ops = list(self.flat(command, before))
                for op in ops:
                    if isinstance(op, Put):
                        self.check_put(op, before, ("key", "lease"))
                for op in ops:
                    if isinstance(op, Range):
                        self.check_range(op, in_txn=True)
                out = self.txn(command, before)
                out = (out[0], self.revision + self.wrote, *out[2:])
            else:
                if isinstance(command, Put):
                    self.check_put(command, before, ("lease", "key"))
                if isinstance(command, Range):
                    self.check_range(command, in_txn=False)
                out = self.op(command)
            if self.wrote:
                self.states.append(self.work)
            return out
        except Refusal as refusal:
            return ("refused", refusal.args[0], self.revision)

    def run_lease(self, command: Any) -> Any:
        if isinstance(command, LeaseGrant):
            if command.ttl > 9_000_000_000:
                raise Refusal(KvError.LEASE_TTL_TOO_LARGE)
            if command.id in self.leases:
                raise Refusal(KvError.LEASE_EXISTS)
            slack = max(10**9, min(30 * 10**9, command.ttl * 10**9 // 2))
            self.leases[command.id] = (command.ttl, self.clock + command.ttl * 10**9 + slack)
            return ("granted", self.revision, command.id, command.ttl)
        if isinstance(command, LeaseRevoke):
            if command.id not in self.leases:
                raise Refusal(KvError.LEASE_NOT_FOUND)
            self.end_lease(command.id)
        elif command.term != TERM:
            raise Refusal(KvError.LEASE_OF_OTHER_TERM)
        elif isinstance(command, LeaseTick):
            if self.leases:
                self.clock = max(self.clock, command.clock)
        elif isinstance(command, LeaseRenew):
            for lease, deadline in zip(command.ids, command.deadlines, strict=True):
                if lease in self.leases:
                    ttl, ceiling = self.leases[lease]
                    self.leases[lease] = (ttl, max(ceiling, deadline))
        else:
            for lease, ceiling in zip(command.ids, command.ceilings, strict=True):
                if lease in self.leases and (ceiling == self.leases[lease][1]):
                    self.end_lease(lease)
        return ("lease", self.revision)

    def end_lease(self, lease: int) -> None:
        del self.leases[lease]
        left = {key: kv for key, kv in self.states[-1].items() if kv.lease != lease}
        if len(left) < len(self.states[-1]):
            self.states.append(left)

    def attached(self, lease: int) -> list[bytes]:
        return sorted(key for key, kv in self.states[-1].items() if kv.lease == lease)

    def check_put(self, put: Put, before: dict[bytes, KV], order: tuple[str, str]) -> None:
        for what in order:
            if what == "lease" and put.lease and put.lease not in self.leases:
                raise Refusal(KvError.LEASE_NOT_FOUND)
            if what == "key" and (put.ignore_value or put.ignore_lease) and put.key not in before:
                raise Refusal(KvError.KEY_NOT_FOUND)

    def check_range(self, request: Range, in_txn: bool) -> None:
        if request.revision > self.revision:
            raise Refusal(KvError.FUTURE_REVISION)
        asked = request.revision != 0 if in_txn else request.revision > 0
        if asked and request.revision < self.compacted:
            raise Refusal(KvError.COMPACTED)

    def holds(self, txn: Txn, before: dict[bytes, KV]) -> bool:
        return all(self.compare(c, before) for c in txn.compare)

    def compare(self, c: Compare, before: dict[bytes, KV]) -> bool:
        found = [kv for key, kv in sorted(before.items()) if inside(key, c.key, c.range_end)]
        if not found:
            if c.target == 3:
                return False
            found = [KV(0, 0, 0, b"", 0)]
        for kv in found:
            actual: Any = (kv.version, kv.create, kv.mod, kv.value, kv.lease)[c.target]
            wanted: Any = c.operand
            if not (actual == wanted, actual > wanted, actual < wanted, actual != wanted)[c.result]:
                return False
        return True

    def flat(self, txn: Txn, before: dict[bytes, KV]) -> Any:
        for op in txn.success if self.holds(txn, before) else txn.failure:
            if isinstance(op, Txn):
                yield from self.flat(op, before)
            else:
                yield op

    def txn(self, txn: Txn, before: dict[bytes, KV]) -> Any:
        success = self.holds(txn, before)
        ops = txn.success if success else txn.failure
        out = [self.txn(op, before) if isinstance(op, Txn) else self.op(op) for op in ops]
        return ("txn", 0, success, out)

    def op(self, op: Put | DeleteRange | Range) -> Any:
        new = self.revision + 1
        if isinstance(op, Put):
            old = self.work.get(op.key)
            self.wrote = True
            value = old.value if old and op.ignore_value else op.value if not op.ignore_value else b""
            lease = op.lease if not op.ignore_lease else old.lease if old else 0  # the transaction may have deleted it
            if old:
                self.work[op.key] = replace(old, mod=new, version=old.version + 1, value=value, lease=lease)
            else:
                self.work[op.key] = KV(new, new, 1, value, lease)
            return ("put", new, (op.key, old) if op.prev_kv and old else None)
        if isinstance(op, DeleteRange):
            gone = [(key, kv) for key, kv in sorted(self.work.items()) if inside(key, op.key, op.range_end)]
            for key, _ in gone:
                del self.work[key]
            self.wrote = self.wrote or bool(gone)
            return ("delete", self.revision + self.wrote, len(gone), gone if op.prev_kv else [])
        state = self.states[op.revision] if op.revision > 0 else self.work
        found = [(key, kv) for key, kv in sorted(state.items()) if inside(key, op.key, op.range_end)]
        count = len(found)
        if op.count_only:
            return ("range", self.revision + self.wrote, [], False, count)
        bounds = (op.min_mod_revision, op.max_mod_revision, op.min_create_revision, op.max_create_revision)
        if op.limit > 0 and op.sort_order == 0 and not any(bounds):
            found = found[: op.limit + 1]  # as etcd: a target without an order sorts only these
        if op.min_mod_revision:
            found = [p for p in found if p[1].mod >= op.min_mod_revision]
        if op.max_mod_revision:
            found = [p for p in found if p[1].mod <= op.max_mod_revision]
        if op.min_create_revision:
            found = [p for p in found if p[1].create >= op.min_create_revision]
        if op.max_create_revision:
            found = [p for p in found if p[1].create <= op.max_create_revision]
        order = 1 if op.sort_target and not op.sort_order else op.sort_order
        if order:

            def sort_key(pair: tuple[bytes, KV]) -> Any:
                key, kv = pair
                return (key, kv.version, kv.create, kv.mod, kv.value)[op.sort_target]

            found.sort(key=sort_key, reverse=order == 2)
        more = op.limit > 0 and len(found) > op.limit
        if more:
            found = found[: op.limit]
        if op.keys_only:
            found = [(key, replace(kv, value=b"")) for key, kv in found]
        return ("range", self.revision + self.wrote, found, more, count)


def plain_kv(record: bytes) -> tuple[bytes, KV]:
    kv = decode_key_value(record)
    return kv.key, KV(kv.create_revision, kv.mod_revision, kv.version, kv.value, kv.lease)


def plain(result: Any) -> Any:
    """A result of the machine in the model's form."""
    match result:
        case Refused(error, revision):
            return ("refused", error, revision)
        case PutResult(revision, prev_kv):
            return ("put", revision, None if prev_kv is None else plain_kv(prev_kv))
        case DeleteResult(revision, deleted, prev_kvs):
            return ("delete", revision, deleted, [plain_kv(kv) for kv in prev_kvs])
        case RangeResult(revision, kvs, more, count):
            return ("range", revision, [plain_kv(kv) for kv in kvs], more, count)
        case TxnResult(revision, succeeded, responses):
            return ("txn", revision, succeeded, [plain(r) for r in responses])
        case CompactResult(revision):
            return ("compact", revision)
        case AlarmResult(revision, changed):
            return ("alarm", revision, changed)
        case LeaseGranted(revision, lease, ttl):
            return ("granted", revision, lease, ttl)
        case LeaseDone(revision):
            return ("lease", revision)
    raise AssertionError(result)


# -- what is drawn

LONG = b"L" * 489
KEYS = [b"a", b"a\0", b"a\0\0", b"a\xff", b"aa", b"ab", b"b", b"b\xff\xff", b"c", b"\0", b"\xff", b"\xff\xff"]
LONG_KEYS = [
    LONG,
    LONG + b"\0",
    LONG + b"\0\0",
    LONG + b"a",
    LONG + b"a\0",
    LONG + b"ab",
    LONG + b"ac" * 99,
    LONG + b"b",
]
hot = st.sampled_from([b"a", b"ab"])  # the same keys again and again: long histories, deletions, rebirths
keys = st.one_of(hot, hot, st.sampled_from(KEYS), st.sampled_from(KEYS + LONG_KEYS))
ends = st.one_of(st.just(b""), st.just(b"\0"), st.just(b"\0"), keys)
values = st.sampled_from([b"", b"x", b"y", b"z" * 130, b"w" * 5000])
revisions = st.integers(0, 40)
puts = st.builds(
    Put,
    keys,
    values,
    st.sampled_from([0] * 6 + [7, 7, -2, 9]),
    st.booleans(),
    st.sampled_from([False, False, False, True]),
    st.sampled_from([False, False, False, True]),
)
deletes = st.builds(DeleteRange, keys, ends, st.booleans())
mostly_none = st.sampled_from([0] * 6) | revisions
ranges = st.builds(
    Range,
    keys,
    ends,
    st.integers(-1, 6),
    mostly_none | st.integers(-2, 2),
    st.sampled_from([0, 0, 1, 2]),
    st.integers(0, 4),
    st.booleans(),
    st.sampled_from([False, False, False, True]),
    mostly_none,
    mostly_none,
    mostly_none,
    mostly_none,
)
number_compares = st.builds(Compare, st.sampled_from([0, 1, 2, 4]), st.integers(0, 3), keys, st.integers(0, 12), ends)
value_compares = st.builds(Compare, st.just(3), st.integers(0, 3), keys, values, ends)
compares = st.lists(number_compares | value_compares, max_size=2)
leaf_ops = st.lists(st.one_of(puts, puts, deletes, ranges), max_size=4)
leaf_txns = st.builds(Txn, compares, leaf_ops, leaf_ops)
nested_ops = st.lists(st.one_of(puts, deletes, ranges, leaf_txns), max_size=4)
txns = st.builds(Txn, compares, nested_ops, nested_ops) | leaf_txns
read_txns = st.builds(Txn, compares, st.lists(ranges, max_size=2), st.lists(ranges, max_size=2))
read_txns = st.builds(Txn, compares, st.lists(ranges | read_txns, max_size=3), st.lists(ranges | read_txns, max_size=2))
compacts = st.builds(Compact, revisions)
lease_ids = st.sampled_from([7, 7, -2, 9])
terms = st.sampled_from([TERM, TERM, TERM, TERM + 1])
clocks = st.integers(0, 100 * 10**9)
grants = st.builds(LeaseGrant, lease_ids, st.sampled_from([1, 2, 60, 9_000_000_000, 9_000_000_001]))
leases = st.one_of(
    grants,
    grants,
    st.builds(LeaseRevoke, lease_ids),
    st.builds(LeaseTick, terms, clocks),
    st.lists(st.tuples(lease_ids, clocks), max_size=3).flatmap(
        lambda pairs: st.builds(LeaseRenew, terms, st.just([p[0] for p in pairs]), st.just([p[1] for p in pairs]))
    ),
    st.lists(st.tuples(lease_ids, st.sampled_from([-1, 0, 1])), max_size=2).flatmap(
        lambda pairs: st.builds(LeaseExpire, terms, st.just([p[0] for p in pairs]), st.just([p[1] for p in pairs]))
    ),
)
members = st.sampled_from([0, 1, 2, 3])
alarms = st.one_of(
    st.builds(AlarmActivate, members, st.sampled_from([1, 1, 2, 0, 3])),
    *[st.builds(AlarmDeactivate, members, st.sampled_from([1, 2]))] * 3,
    st.builds(AuditMark, terms, st.sampled_from([2, 3, 3, 5])),
    *[
        st.builds(
            AuditReport, st.integers(1, 5), st.sampled_from([0, 0, 0, 1]), st.sampled_from([b"A" * 16, b"B" * 16, b"A"])
        )
    ]
    * 4,
)
commands = st.one_of(puts, puts, puts, deletes, ranges, txns, compacts, leases, grants, alarms)

hot_writes = st.builds(Put, hot, values) | st.builds(DeleteRange, hot)
long_writes = st.one_of(
    st.builds(Put, st.sampled_from(LONG_KEYS), values),
    st.builds(DeleteRange, st.sampled_from(LONG_KEYS)),
    st.builds(Range, st.sampled_from(LONG_KEYS), st.sampled_from(LONG_KEYS), st.integers(0, 3), st.just(0), st.just(2)),
    st.builds(Txn, st.just([]), st.lists(hot_writes, min_size=2, max_size=4)),
)


SMALL: list[tuple[Any, str, int]] = [
    # Slices so small that purging is always somewhere in the middle, and not at the same place in both machines.
    (kv_machine, "PURGE_ENTRIES", 1),
    (kv_machine, "PURGE_ENTRIES_PER_COMMAND", 0),
    # Few keys are many here.
    (kv_counts, "SEGMENT_KEYS", 2),
    (kv_counts, "COUNT_KEYS_MAX", 1),
    (kv_reading, "SORTED_LIMIT_MAX", 2),
]


class KvAgainstModel(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        # In memory if possible: what is tested here is order, not the disk, and it syncs often.
        shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.directory = Path(tempfile.mkdtemp(prefix="oarlock-kv-", dir=shm))
        # Slices so small that purging is always somewhere in the middle, and not at the same place in both machines.
        self.patched = [(module, name, getattr(module, name)) for module, name, _ in SMALL]
        for module, name, value in SMALL:
            setattr(module, name, value)
        self.readings: list[tuple[Reading, Any]] = []  # under way, and what they will show
        self.memory = KvMachine.in_memory()
        self.disk = self.open_disk()
        self.model = Model()
        self.entries: list[list[bytes]] = []  # entry i + 1; what a write-ahead log would hold
        self.durable_index = 0
        self.checkpoint: Any = None
        self.written = False

    def open_disk(self) -> KvMachine:
        return KvMachine(LmdbStore(self.directory / "state", TABLES, map_bytes=1 << 28))

    def settle(self) -> None:
        """End the open checkpoint, if there is one."""
        if self.checkpoint is not None:
            if not self.written:
                self.checkpoint.write()
            self.disk.checkpointed(self.checkpoint)
            self.durable_index = self.checkpoint.index
            self.checkpoint, self.written = None, False

    @rule(batch=st.lists(commands, min_size=1, max_size=5))
    def apply_a_few(self, batch: list[Command]) -> None:
        self.apply(batch)

    @rule(batch=st.lists(alarms, min_size=3, max_size=9))
    def apply_alarms(self, batch: list[Command]) -> None:
        self.apply(batch)

    @rule()
    def disarm(self) -> None:
        """Otherwise most of a run would be refused."""
        known = list(self.model.alarms)
        self.apply([AlarmDeactivate(member, kind) for member, kind in known] + [Put(b"a", b"after")])

    @rule(batch=st.lists(st.one_of(hot_writes, hot_writes, commands), min_size=8, max_size=16))
    def apply_many(self, batch: list[Command]) -> None:
        self.apply(batch)

    @rule(batch=st.lists(long_writes, min_size=4, max_size=8))
    def apply_long_keys(self, batch: list[Command]) -> None:
        self.apply(batch)

    def apply(self, batch: list[Command]) -> None:
        expected = []
        self.model.index = len(self.entries) + 1
        for command in batch:
            if isinstance(command, AuditReport) and not command.index:  # 0 was drawn for the last mark
                command.index = self.model.mark[0]
            if isinstance(command, LeaseExpire):  # what was drawn is the distance from the true ceiling
                known = self.model.leases
                command.ceilings = [
                    max(0, known.get(lease, (0, 0))[1] + (far if at % 2 else 0))
                    for at, (lease, far) in enumerate(zip(command.ids, command.ceilings, strict=True))
                ]
            expected.append(self.model.run(command))
        entry = [encode(command) for command in batch]
        self.entries.append(entry)
        context = Context(len(self.entries), TERM, 0)
        from_memory = self.memory.apply(context, entry)
        assert [plain(r) for r in from_memory] == expected
        assert self.disk.apply(context, entry) == from_memory

    @rule(request=ranges)
    def read(self, request: Range) -> None:
        before = self.model.states[:]
        expected = self.model.run(request, logged=False)
        assert before == self.model.states
        for machine in (self.memory, self.disk):
            assert plain(machine.range(request)) == expected

    @rule(request=ranges | ranges | read_txns)
    def begin_to_read(self, request: Range | Txn) -> None:
        """A read in small steps, between which everything else happens: it shows what there was when it began."""
        expected = self.model.run(request, logged=False)
        for machine in (self.memory, self.disk):
            reading = machine.read(request)
            assert isinstance(reading, Reading)
            done = False
            while not done and not reading.begun:
                done = reading.step(1)
            if done:
                assert plain(reading.result) == expected
            else:
                self.readings.append((reading, expected))

    @precondition(lambda self: self.readings)
    @rule(which=st.integers(0, 100), steps=st.integers(1, 4))
    def go_on_reading(self, which: int, steps: int) -> None:
        reading, expected = self.readings.pop(which % len(self.readings))
        try:
            for _ in range(steps):
                if reading.step(1):
                    assert plain(reading.result) == expected
                    return
        except StateReplaced:
            reading.close()
            return
        self.readings.append((reading, expected))

    @rule()
    def read_every_revision(self) -> None:
        for revision in range(max(self.model.compacted, 1), self.model.revision + 1):
            for request in (Range(b"\0", b"\0", revision=revision), Range(b"a", revision=revision)):
                expected = self.model.run(request, logged=False)
                assert plain(self.memory.range(request)) == expected
                assert plain(self.disk.range(request)) == expected

    @rule(entries=st.integers(1, 7), which=st.booleans())
    def purge(self, entries: int, which: bool) -> None:
        (self.memory if which else self.disk).compact_some(entries)

    @precondition(lambda self: self.checkpoint is None)
    @rule(write=st.booleans())
    def begin_checkpoint(self, write: bool) -> None:
        self.checkpoint = self.disk.checkpoint()
        assert self.checkpoint.index == len(self.entries)
        if write:
            self.checkpoint.write()
            self.written = True

    @precondition(lambda self: self.checkpoint is not None)
    @rule()
    def end_checkpoint(self) -> None:
        self.settle()

    @rule()
    def crash(self) -> None:
        """Whatever is not in a completed checkpoint is gone; the log brings it back."""
        if self.written:
            self.durable_index = self.checkpoint.index
        self.checkpoint, self.written = None, False
        self.disk.close()
        self.disk = self.open_disk()
        assert self.disk.applied_index == self.durable_index
        for index in range(self.durable_index, len(self.entries)):
            self.disk.apply(Context(index + 1, TERM, 0), self.entries[index])

    @rule()
    def captures_are_equal(self) -> None:
        self.settle()
        self.checkpoint = self.disk.checkpoint()
        self.settle()
        captures = self.memory.capture(), self.disk.capture()
        assert captures[0].index == captures[1].index == len(self.entries)
        streams = [b"".join(capture.chunks()) for capture in captures]
        assert streams[0] == streams[1]
        for capture in captures:
            capture.close()

    @precondition(lambda self: self.entries)
    @rule()
    def restore_disk_from_memory(self) -> None:
        self.settle()
        capture = self.memory.capture()
        self.disk.restore(capture.index, capture.chunks())
        self.durable_index = capture.index

    @precondition(lambda self: self.durable_index)
    @rule()
    def restore_memory_from_disk(self) -> None:
        capture = self.disk.capture()
        memory = KvMachine.in_memory()
        memory.restore(capture.index, capture.chunks())
        capture.close()
        for index in range(capture.index, len(self.entries)):
            memory.apply(Context(index + 1, TERM, 0), self.entries[index])
        self.memory = memory

    @invariant()
    def agree(self) -> None:
        for machine in (self.memory, self.disk):
            assert machine.revision == self.model.revision
            assert machine.compact_revision == self.model.compacted
            assert machine.applied_index == len(self.entries)
            assert dict(machine.leases.items()) == self.model.leases
            assert machine.leases.clock == self.model.clock
            assert machine.alarms.active() == sorted(self.model.alarms)
            assert machine.alarms.reports() == dict(sorted(self.model.reports.items()))
            for member in range(4):
                assert machine.alarms.quarantined(member) is self.model.alarms.get((member, 2), False)
            for lease in self.model.leases:
                assert machine.leases.keys(lease) == self.model.attached(lease)
        assert self.memory.hash() == self.disk.hash()

    def teardown(self) -> None:
        if not hasattr(self, "directory"):
            return
        while self.readings:
            self.go_on_reading(0, 3)
        for module, name, value in self.patched:
            setattr(module, name, value)
        self.memory.validate()
        self.disk.validate()
        self.disk.close()
        shutil.rmtree(self.directory)


KvAgainstModel.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestKvAgainstModel = KvAgainstModel.TestCase
