"""The key-value machine: etcd's multi-version model over an ordered store.

Tables (what is stored is a file format, and `docs/reference/kv-machine.md` describes it):

- `current`: key -> its key-value, encoded. A range of the present is a join of these bytes.
- `log`: (main revision, sub revision) -> what that change replaced. It is an undo log: a read of the past takes the
  present and follows, key by key, what was there before. Compaction is cutting off its front.
- `tombstones`: a key deleted after the compacted revision -> the place of its deletion in `log`.
- `auth`: users, roles, permissions and tokens (see `auth`).
- `leases`, `lease_keys`: see `machines.kv.leases`.
- `annex`: for the owner. `meta`: one record with revision, compacted revision, counts and the digest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

from oarlock.machines.base import Checkpoint, Context
from oarlock.machines.kv.alarms import AlarmBook
from oarlock.machines.kv.auth import AuthState
from oarlock.machines.kv.capture import KvCapture, read_capture
from oarlock.machines.kv.commands import (
    Command,
    Compact,
    CompactResult,
    Compare,
    DeleteRange,
    DeleteResult,
    KvError,
    Op,
    Put,
    PutResult,
    Range,
    RangeResult,
    Refused,
    Result,
    SortOrder,
    Txn,
    TxnResult,
    decode,
    encode,
)
from oarlock.machines.kv.commands_alarm import (
    ALARM_COMMANDS,
    AlarmActivate,
    AlarmCommand,
    AlarmDeactivate,
    AlarmResult,
    AlarmType,
    AuditMark,
    AuditReport,
    AutoCompact,
)
from oarlock.machines.kv.commands_auth import AUTH_COMMANDS, AuthResult, Checked
from oarlock.machines.kv.commands_lease import (
    LeaseCommand,
    LeaseDone,
    LeaseExpire,
    LeaseGrant,
    LeaseGranted,
    LeaseRenew,
    LeaseResult,
    LeaseRevoke,
    LeaseTick,
)
from oarlock.machines.kv.counts import KeyCounts
from oarlock.machines.kv.encoding import (
    INT64_MAX,
    INT64_MIN,
    KeyValue,
    decode_key_value,
    encode_key_value,
    key_of,
    lease_of,
    mod_revision_of,
    read_varint,
    varint,
)
from oarlock.machines.kv.events import WatchEvent
from oarlock.machines.kv.fresh import FreshReplacement, FreshStart
from oarlock.machines.kv.hashing import HashReading
from oarlock.machines.kv.history import Walk
from oarlock.machines.kv.layout import (
    ALARMS,
    ANNEX,
    AUTH,
    CURRENT,
    DELETED,
    LEASE_KEYS,
    LEASES,
    LOG,
    META,
    PLACE,
    PLACE_BYTES,
    PUT_AFTER_DELETE,
    PUT_NEW,
    PUT_OVER,
    STATE_KEY,
    TABLES,
    TOMBSTONES,
    State,
    pack_state,
    unpack_state,
)
from oarlock.machines.kv.leases import LeaseBook
from oarlock.machines.kv.reading import RANGE_BYTES_MAX, Moment, Reading, bounds, holds_for_one, taken
from oarlock.machines.kv.watch import WatchHub
from oarlock.machines.memory_store import MemoryStore
from oarlock.machines.store import Store, Table

TXN_DEPTH_MAX = 128
"""How deep transactions nest. (etcd's bound follows from its 128 operations.)"""

PAGE_KEYS_MIN, PAGE_KEYS_MAX, PAGE_BYTES = 128, 4096, 4 << 20
"""How much of a range is read at a time, where it is not known how large it is."""

PURGE_ENTRIES = 64
PURGE_ENTRIES_PER_COMMAND = 2
"""How many compacted changes an `apply` purges. For puts that is more than they make, so purging comes to an end."""

_NO_OPERATOR = {
    KvError.USER_EMPTY: "no_user",
    KvError.USER_NOT_FOUND: "unknown_user",
    KvError.PERMISSION_DENIED: "not_permitted",
}

UNDO_STEPS = 1 << 30  # more than a key has changes

_place = PLACE.pack
_KEY_TAG, _MOD_TAG, _VERSION_TAG, _VALUE_TAG, _LEASE_TAG = b"\x0a", b"\x18", b"\x20", b"\x2a", b"\x30"
_PUT_NEW, _PUT_OVER = bytes([PUT_NEW]), bytes([PUT_OVER])
_PUT_AFTER, _DELETED = bytes([PUT_AFTER_DELETE]), bytes([DELETED])
_NOTHING = KeyValue(b"", 0, 0, 0, b"", 0)


class Change(NamedTuple):
    """One entry of the log. `previous` is the key-value that was replaced or deleted, encoded."""

    main: int
    sub: int
    key: bytes
    deleted: bool
    previous: bytes | None


class KvMachine:
    """etcd's key-value store as a replicated machine. See `machines.base.Machine` for what is not described here.

    `store` has the tables `layout.TABLES`. Reading is allowed between any two calls of `apply`.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.durable: bool = store.durable
        self.auth = AuthState(store.table(AUTH))
        """Who may do what. The same object for the machine's whole life."""

        self.on_alarms: Callable[[], None] | None = None
        """Called when alarms have come or gone, before watches are told of what came with it. It must only make a
        note."""

        self.moments: list[Moment] = []
        self._feed: list[WatchEvent] | None = None  # of the batch under way, while anybody watches
        self._attach()
        self.watches = WatchHub(self)
        """Who watches this machine. Not part of the state: members have their own."""

    @classmethod
    def in_memory(cls) -> KvMachine:
        """A machine whose only persistence are captures."""
        return cls(MemoryStore(TABLES))

    @classmethod
    def on_disk(cls, path: str | os.PathLike[str]) -> KvMachine:
        """A machine that keeps its state in the directory `path`. Needs the package `lmdb`."""
        from oarlock.machines.lmdb_store import LmdbStore

        return cls(LmdbStore(path, TABLES))

    def _attach(self) -> None:
        """Take tables and state from the store: on opening, and when a restore has replaced them."""
        store = self._store
        self._current = store.table(CURRENT)
        self._log = store.table(LOG)
        self._tombstones = store.table(TOMBSTONES)
        self._annex = store.table(ANNEX)
        self._meta = store.table(META)
        self.auth.attach(store.table(AUTH))
        state = unpack_state(self._meta.get(STATE_KEY))
        self._revision = state.revision
        self._compact_revision = state.compact_revision
        self._keys = state.keys
        self.counts = KeyCounts(self._current)
        self._end_readings()
        self._tombstone_count = state.tombstones
        self._digest = state.digest
        self._purge_from = b""
        self._purging = state.compact_revision > 0
        self._changes: list[bytes] = []  # of the batch under way, for the digest
        self._term = 0  # of the entry under way
        self.leases = LeaseBook(store.table(LEASES), store.table(LEASE_KEYS), self._changes)
        """All leases; for reading."""
        self._compacted = False  # in the batch under way
        self.alarms = AlarmBook(store.table(ALARMS), self._changes)
        """All alarms; for reading."""

    # -- reading

    @property
    def applied_index(self) -> int:
        return self._store.applied_index

    @property
    def revision(self) -> int:
        """The main revision of the last change; 1 for a new store."""
        return self._revision

    @property
    def compact_revision(self) -> int:
        """Reads below this revision are refused; -1 (as in etcd) while nothing was ever compacted."""
        return self._compact_revision

    def range_one(self, key: bytes) -> bytes | None:
        """The encoded key-value of one key now: what most reads want."""
        return self._current.get(key)

    def read(self, request: Range | Txn) -> Reading | Refused:
        """Begin a read of the present or, back to `compact_revision`, of the past; or a transaction that only reads."""
        return Refused(KvError.MALFORMED, self._revision) if self._malformed(request, 0) else Reading(self, request)

    def range(self, request: Range) -> RangeResult | Refused:
        """`read`, all at once: however long it takes."""
        reading = self.read(request)
        if isinstance(reading, Refused):
            return reading
        found = reading.whole()
        assert not isinstance(found, TxnResult), request
        return found

    # What readings look at (see `reading.Source`).

    @property
    def current(self) -> Table:
        return self._current

    @property
    def tombstones(self) -> Table:
        return self._tombstones

    @property
    def key_count(self) -> int:
        return self._keys

    def size(self) -> int:
        """Bytes that the state takes, free pages included."""
        return self._store.size()

    def size_in_use(self) -> int:
        """Bytes that the state takes without free pages. Compaction lowers it."""
        return self._store.size_in_use()

    def hash(self) -> bytes:
        """A digest (16 bytes) of all changes up to `applied_index`: alike on every member, whatever its store."""
        return self._digest

    def read_hash(self, revision: int = 0) -> HashReading | Refused:
        """Begin to gather what the hash of all key-values up to `revision` (0: the present one) is made of. As etcd:
        what is compacted has none, and below the first revision there is nothing."""
        if 0 < revision <= self._compact_revision:
            return Refused(KvError.COMPACTED, self._revision)
        if revision > self._revision:
            return Refused(KvError.FUTURE_REVISION, self._revision)
        return HashReading(self, self._log, revision)

    def changes(self, start: int, end: int | None = None, *, limit: int = 0) -> list[Change]:
        """The log from main revision `start` up to but not including `end`, in order.

        A put's own key-value is what the key had at that revision: `range` at it gives it. Entries below
        `compact_revision` may be gone.
        """
        pairs = self._log.items(_place(max(start, 0), 0), None if end is None else _place(end, 0), limit=limit)
        return [self._change(place, entry) for place, entry in pairs]

    def last_change(self, key: bytes) -> int:
        """The revision of the last put or deletion of a key; 0 if it has none, or only a deletion that is compacted."""
        record = self._current.get(key)
        if record is not None:
            return mod_revision_of(record)
        deletion = self._tombstones.get(key)
        return PLACE.unpack(deletion)[0] if deletion is not None else 0

    def feed(self, on: bool) -> None:
        """For the hub of watches: whether it is told of changes."""
        self._feed = [] if on else None

    @staticmethod
    def _change(place: bytes, entry: bytes) -> Change:
        main, sub = PLACE.unpack(place)
        kind = entry[0]
        if kind == PUT_NEW:
            return Change(main, sub, entry[1:], False, None)
        if kind == PUT_AFTER_DELETE:
            return Change(main, sub, entry[1 + PLACE_BYTES :], False, None)
        previous = entry[1:]
        return Change(main, sub, key_of(previous), kind == DELETED, previous)

    # -- applying

    def lease_exists(self, lease: int) -> bool:
        """Whether a put may carry this non-zero lease id."""
        return lease in self.leases

    def refuse_operator(self, user: str) -> str:
        """See `machines.base.GuardedMachine`: it is root's affair, while authentication is on."""
        refused = self.auth.refuse_root(user)
        return "" if refused is None else _NO_OPERATOR[refused]

    def keys_of_lease(self, lease: int) -> Sequence[bytes]:
        """The keys that are attached to a lease, ascending; none if there is no such lease."""
        return self.leases.keys(lease)

    def lease_ids(self) -> Sequence[int]:
        """All leases, ascending."""
        return self.leases.ids()

    def apply(self, context: Context, commands: Sequence[bytes]) -> list[object]:
        assert context.index > self._store.applied_index, (
            f"entry {context.index} is applied after {self._store.applied_index}"
        )
        results: list[object] = []
        append = results.append
        nbytes = 64
        auth, alarms = self.auth, self.alarms
        self._term = context.term
        for data in commands:
            nbytes += 2 * len(data) + 64
            try:
                command = decode(data)
            except (ValueError, RecursionError):  # RecursionError: nested far deeper than TXN_DEPTH_MAX
                append(Refused(KvError.MALFORMED, self._revision))
                continue
            if type(command) is Put and not (
                command.lease or command.ignore_value or command.ignore_lease or auth.enabled or alarms.blocking
            ):
                # What nearly all commands are; `_apply_one` would give the same.
                if key := command.key:
                    main = self._revision + 1
                    previous = self._put(main, 0, key, command.value, 0)
                    self._revision = main
                    append(PutResult(main, previous if command.prev_kv else None))
                else:
                    append(Refused(KvError.MALFORMED, self._revision))
            else:
                append(self._apply_checked(command, context))
        if self._changes:
            self._digest = blake2b(self._digest + b"".join(self._changes), digest_size=16).digest()
            self._changes.clear()
        if self._purging:
            self._purge(PURGE_ENTRIES + PURGE_ENTRIES_PER_COMMAND * len(commands))
        self._save_state()
        self._store.commit(context.index, nbytes)
        if alarms.changed:
            self._tell_of_alarms()
        if self._feed is not None:
            self._tell_watches()
        return results

    def _tell_of_alarms(self) -> None:
        self.alarms.changed = False
        if self.on_alarms is not None:
            self.on_alarms()

    def _tell_watches(self) -> None:
        """Hand the batch's changes to the hub, once."""
        if self._feed:
            events, self._feed = self._feed, []
            self.watches.changed(events)
        if self._compacted:
            self._compacted = False
            self.watches.compacted()

    def _save_state(self) -> None:
        state = State(self._revision, self._compact_revision, self._keys, self._tombstone_count, self._digest)
        self._meta.put(STATE_KEY, pack_state(state))

    def _apply_checked(self, command: Command, context: Context) -> Result:
        """Apply a command if whoever it comes from may do what it does. While authentication is on, one that is not
        wrapped comes from nobody: from a member that had not yet heard that it is on."""
        user, auth_revision, wrapped = "", 0, False
        if isinstance(command, Checked):
            user, auth_revision, wrapped = command.user, command.auth_revision, True
            try:
                command = decode(command.command)
            except (ValueError, RecursionError):
                return Refused(KvError.MALFORMED, self._revision)
            if isinstance(command, Checked):
                return Refused(KvError.MALFORMED, self._revision)
        if self._malformed(command, 0):
            return Refused(KvError.MALFORMED, self._revision)
        if self.auth.enabled:
            refused = self.auth.refuse(user, auth_revision, command, self.keys_of_lease, wrapped=wrapped)
            if refused is not None:
                return Refused(refused, self._revision)
        if type(command) is Put and not (
            command.lease or command.ignore_value or command.ignore_lease or self.alarms.blocking
        ):
            main = self._revision + 1  # as `apply` does it
            previous = self._put(main, 0, command.key, command.value, 0)
            self._revision = main
            return PutResult(main, previous if command.prev_kv else None)
        return self._apply_one(command, context)

    def _apply_one(self, command: Command, context: Context) -> Result:
        if self.alarms.blocking and (error := self.alarms.refuse(command)) is not None:
            return Refused(error, self._revision)
        if isinstance(command, Compact | AutoCompact):
            return self._compact(command.revision)
        if isinstance(command, AUTH_COMMANDS):
            forbidden = self.auth.apply(command, context.index, context.time_ns)
            if forbidden is not None:
                return Refused(forbidden, self._revision)
            self._changes += self.auth.take_changes()
            return AuthResult(self._revision, self.auth.revision, context.index)
        assert not isinstance(command, Checked), "wrapped twice"
        if isinstance(command, LeaseGrant | LeaseRevoke | LeaseTick | LeaseRenew | LeaseExpire):
            return self._apply_lease(command)
        if isinstance(command, ALARM_COMMANDS):
            return self._apply_alarm(command, context)
        if isinstance(command, Txn):
            path: list[bool] = []
            self._decide(command, path)
            if (refused := self._refuse_txn(command, path)) is not None:
                return refused
            if self._keys > PAGE_KEYS_MIN and self._answer_too_large(taken(command, iter(path))):
                return Refused(KvError.RANGE_TOO_LARGE, self._revision)
            writes = _Writes(self._revision + 1)
            result = self._txn(command, iter(path), writes)
            if writes.sub:
                self._revision = writes.main
            result.revision = self._revision
            return result
        if (refused := self._refuse_put(command, False)) is not None:
            return refused
        if isinstance(command, Range) and (refused := self._refuse_range(command)) is not None:
            return refused
        if self._keys > PAGE_KEYS_MIN and self._answer_too_large((command,)):
            return Refused(KvError.RANGE_TOO_LARGE, self._revision)
        writes = _Writes(self._revision + 1)
        result_of_one = self._op(command, writes)
        if writes.sub:
            self._revision = writes.main
        return result_of_one

    # -- leases

    def _apply_lease(self, command: LeaseCommand) -> LeaseResult | Refused:
        book = self.leases
        if isinstance(command, LeaseGrant):
            if (error := book.refuse_grant(command.id, command.ttl)) is not None:
                return Refused(error, self._revision)
            book.grant(command.id, command.ttl)
            return LeaseGranted(self._revision, command.id, command.ttl)
        if isinstance(command, LeaseRevoke):
            if command.id not in book:
                return Refused(KvError.LEASE_NOT_FOUND, self._revision)
            self._end_lease(command.id)
            return LeaseDone(self._revision)
        if command.term != self._term:
            return Refused(KvError.LEASE_OF_OTHER_TERM, self._revision)
        if isinstance(command, LeaseTick):
            book.tick(command.clock)
        elif isinstance(command, LeaseRenew):
            book.renew(command.ids, command.deadlines)
        else:
            for lease, ceiling in zip(command.ids, command.ceilings, strict=False):
                found = book.get(lease)
                if found is not None and found[1] == ceiling:
                    self._end_lease(lease)
        return LeaseDone(self._revision)

    def _end_lease(self, lease: int) -> None:
        """Delete the attached keys, in one revision and in order of the keys, and then the lease."""
        writes = _Writes(self._revision + 1)
        for key in self.leases.keys(lease):
            self._delete_range(DeleteRange(key), writes)
        if writes.sub:
            self._revision = writes.main
        self.leases.end(lease)

    # -- alarms

    def _apply_alarm(self, command: AlarmCommand, context: Context) -> AlarmResult | Refused:
        book = self.alarms
        changed = True
        if isinstance(command, AlarmActivate | AlarmDeactivate):
            if command.alarm not in (AlarmType.NOSPACE, AlarmType.CORRUPT):
                return Refused(KvError.UNKNOWN_ALARM, self._revision)
            change = book.activate if isinstance(command, AlarmActivate) else book.deactivate
            changed = change(command.member, command.alarm)
        elif isinstance(command, AuditMark):
            if command.term == context.term:
                book.begin_audit(context.index, command.members, self._digest)
        else:
            book.report(command.member, command.index, command.digest)
        return AlarmResult(self._revision, changed)

    def audit_mark_command(self, term: int, members: int) -> bytes:
        """The command with which the leader of `term` asks for everybody's digest."""
        return encode(AuditMark(term, members))

    def audit_report_command(self, member: int, index: int, digest: bytes) -> bytes:
        """The command with which a member answers."""
        return encode(AuditReport(member, index, digest))

    # -- refusing, before anything has changed

    def _malformed(self, command: Command, depth: int) -> bool:
        """Whether a command is decoded but has no meaning. The API refuses all of these with a better text."""
        if isinstance(command, Put):
            return not command.key
        if isinstance(command, AlarmActivate | AlarmDeactivate | AuditReport):
            return not 0 <= command.member < 1 << 64
        if isinstance(command, LeaseGrant):
            return not INT64_MIN <= command.id <= INT64_MAX or not 0 < command.ttl <= INT64_MAX
        if isinstance(command, Range):
            return not 0 <= command.sort_target <= 4 or not 0 <= command.sort_order <= 2
        if isinstance(command, Txn):
            if depth == TXN_DEPTH_MAX:
                return True
            for op in (*command.success, *command.failure):
                if not op.key if type(op) is Put else self._malformed(op, depth + 1):
                    return True
        return False

    def _refuse_range(self, command: Range) -> Refused | None:
        at = command.revision
        if at > self._revision:
            return Refused(KvError.FUTURE_REVISION, self._revision)
        if 0 < at < self._compact_revision:
            return Refused(KvError.COMPACTED, self._revision)
        return None

    def _refuse_put(self, command: Op, in_txn: bool) -> Refused | None:
        """etcd looks for the lease first, but within a transaction for the key."""
        if not isinstance(command, Put):
            return None
        no_lease = bool(command.lease) and not self.lease_exists(command.lease)
        no_key = (command.ignore_value or command.ignore_lease) and self._current.get(command.key) is None
        if no_lease and not (in_txn and no_key):
            return Refused(KvError.LEASE_NOT_FOUND, self._revision)
        return Refused(KvError.KEY_NOT_FOUND, self._revision) if no_key else None

    def _decide(self, txn: Txn, path: list[bool]) -> None:
        """Evaluate the compares of a transaction and of those nested on the way taken, depth first."""
        success = all(self._holds(compare) for compare in txn.compare)
        path.append(success)
        for op in txn.success if success else txn.failure:
            if isinstance(op, Txn):
                self._decide(op, path)

    def _holds(self, compare: Compare) -> bool:
        if compare.range_end:
            return Reading(self, Txn([compare])).holds(compare)
        record = self._current.get(compare.key)
        return holds_for_one(compare, None if record is None else decode_key_value(record))

    def _refuse_txn(self, txn: Txn, path: list[bool]) -> Refused | None:
        """As etcd: first every put of the way taken, then every range, all against the state before."""
        ranges: list[Range] = []
        for op in taken(txn, iter(path)):
            if type(op) is Put and not (op.lease or op.ignore_value or op.ignore_lease):
                continue
            if isinstance(op, Range):
                ranges.append(op)
            elif (refused := self._refuse_put(op, True)) is not None:
                return refused
        for request in ranges:
            if request.revision > self._revision:
                return Refused(KvError.FUTURE_REVISION, self._revision)
            # Outside of transactions a negative revision is the present; here etcd compares it like any other.
            if request.revision and request.revision < self._compact_revision:
                return Refused(KvError.COMPACTED, self._revision)
        return None

    def _answer_too_large(self, ops: Iterable[Op]) -> bool:
        """Whether key-values over `RANGE_BYTES_MAX` would be shown, judged by what there is before. Single keys do not
        count: there are only so many operations."""
        size = 0
        for op in ops:
            if type(op) is Put:
                continue
            limit = 0
            if isinstance(op, Range):
                if op.count_only or not op.range_end:
                    continue
                if op.sort_order == SortOrder.NONE:
                    limit = max(op.limit, 0)
            elif not isinstance(op, DeleteRange) or not op.prev_kv or not op.range_end:
                continue
            for page in self._pages(*bounds(op.key, op.range_end), limit, False):
                size += sum(map(len, page))
                if size > RANGE_BYTES_MAX:
                    return True
        return False

    # -- operations; `_refuse_...` has been asked

    def _txn(self, txn: Txn, path: Iterator[bool], writes: _Writes) -> TxnResult:
        success = next(path)
        main, sub = writes.main, writes.sub
        plain = PutResult(main)  # one for all puts that have nothing more to say
        responses: list[PutResult | DeleteResult | RangeResult | TxnResult] = []
        for op in txn.success if success else txn.failure:
            if type(op) is Put and not (op.lease or op.ignore_value or op.ignore_lease):
                previous = self._put(main, sub, op.key, op.value, 0)
                sub += 1
                responses.append(PutResult(main, previous) if op.prev_kv and previous is not None else plain)
                continue
            writes.sub = sub
            responses.append(self._txn(op, path, writes) if isinstance(op, Txn) else self._op(op, writes))
            sub = writes.sub
        writes.sub = sub
        return TxnResult(0, success, responses)  # etcd gives a nested transaction no revision of its own

    def _op(self, op: Put | DeleteRange | Range, writes: _Writes) -> PutResult | DeleteResult | RangeResult:
        if isinstance(op, Put):
            value, lease = op.value, op.lease
            if op.ignore_value or op.ignore_lease:
                record = self._current.get(op.key)
                old = _NOTHING if record is None else decode_key_value(record)
                value = old.value if op.ignore_value else value
                lease = old.lease if op.ignore_lease else lease
            previous = self._put(writes.main, writes.sub, op.key, value, lease)
            writes.sub += 1
            return PutResult(writes.main, previous if op.prev_kv else None)
        if isinstance(op, DeleteRange):
            return self._delete_range(op, writes)
        # A range after a write of the same transaction sees it, and shows the revision that the write will have.
        assert isinstance(op, Range), op
        found = Reading(self, op, writes.main if writes.sub else self._revision, bytes_max=INT64_MAX).whole()
        assert isinstance(found, RangeResult), f"{op} was not refused before: {found}"
        return found

    def _put(self, main: int, sub: int, key: bytes, value: bytes, lease: int) -> bytes | None:
        """Store a key-value and log what it replaces, which is returned."""
        revision = varint(main)
        place = _place(main, sub)
        previous = self._current.get(key)
        if previous is None:
            # create revision, mod revision, and version 1
            parts = [_KEY_TAG, varint(len(key)), key, b"\x10", revision, _MOD_TAG, revision, b"\x20\x01"]
            self._keys += 1
            deletion = self._tombstones.get(key) if self._tombstone_count else None
            if deletion is None:
                self._log.put(place, _PUT_NEW + key)
            else:
                # A compacted deletion may be purged here and not there, or left out of the capture that a member was
                # restored from: what is written must not depend on it.
                known = PLACE.unpack(deletion)[0] > self._compact_revision
                self._log.put(place, _PUT_AFTER + deletion + key if known else _PUT_NEW + key)
                self._tombstones.delete(key)
                self._tombstone_count -= 1
            if self.counts.on:
                self.counts.changed(key, 1)
        else:
            deletion = None
            size = len(key)
            at = size + (3 if size < 0x80 else 2 + len(varint(size)))  # the create revision's first byte
            while previous[at] >= 0x80:
                at += 1
            behind = at + 2
            while previous[behind] >= 0x80:  # the old mod revision
                behind += 1
            version, _ = read_varint(previous, behind + 2)
            parts = [previous[: at + 1], _MOD_TAG, revision, _VERSION_TAG, varint(version + 1)]
            self._log.put(place, _PUT_OVER + previous)
        if value:
            parts += (_VALUE_TAG, varint(len(value)), value)
        if lease:
            parts += (_LEASE_TAG, varint(lease))
        record = b"".join(parts)
        if self.moments:
            for moment in self.moments:
                moment.keep(key, previous, deletion)
        self._current.put(key, record)
        self._changes.append(record)
        if lease or self.leases.attached:
            old = 0 if previous is None else lease_of(previous)
            if old != lease:
                self.leases.move(key, old, lease)
        if self._feed is not None:
            self._feed.append(WatchEvent(main, key, record, previous))
        return previous

    def _delete_range(self, op: DeleteRange, writes: _Writes) -> DeleteResult:
        if op.range_end:
            pairs = self._current.items(*bounds(op.key, op.range_end))
        else:
            record = self._current.get(op.key)
            pairs = [] if record is None else [(op.key, record)]
        for key, record in pairs:
            place = _place(writes.main, writes.sub)
            writes.sub += 1
            for moment in self.moments:
                moment.keep(key, record, None)
            if self.counts.on:
                self.counts.changed(key, -1)
            self._current.delete(key)
            self._log.put(place, _DELETED + record)
            self._tombstones.put(key, place)
            self._changes.append(place + key)
            if self.leases.attached and (lease := lease_of(record)):
                self.leases.move(key, lease, 0)
            if self._feed is not None:
                self._feed.append(WatchEvent(writes.main, key, None, record))
        self._keys -= len(pairs)
        self._tombstone_count += len(pairs)
        previous = [record for _, record in pairs] if op.prev_kv else []
        return DeleteResult(writes.main if writes.sub else self._revision, len(pairs), previous)

    # -- ranges

    def _pages(self, start: bytes, end: bytes | None, limit: int, reverse: bool) -> Iterator[list[bytes]]:
        """The key-values of a range now, at most `limit` unless that is 0, in pieces of a bearable size."""
        page, left = PAGE_KEYS_MIN, limit
        while True:
            want = min(page, left) if limit else page
            records = self._current.values(start, end, limit=want, reverse=reverse)
            if records:
                yield records
            left -= len(records)
            if len(records) < want or (limit and not left):
                return
            last = key_of(records[-1])
            if reverse:
                end = last
            else:
                start = last + b"\0"
            average = max(1, sum(map(len, records)) // len(records))
            page = min(max(PAGE_BYTES // average, PAGE_KEYS_MIN), PAGE_KEYS_MAX)

    # -- the past

    def walk(self, key: bytes) -> Walk:
        """What a key has now, from where `walk_back` goes back."""
        return Walk(key, self._current.get(key), self._tombstones.get(key))

    def walk_back(self, walk: Walk, revision: int, steps: int) -> int:
        """Follow the log back to what the key had at `revision`, which is not compacted, but at most so many changes.
        Returns how many steps are left over, -1 if it is not there yet; `walk.record` is the answer."""
        key = walk.key
        while True:
            if walk.record is not None:
                main = mod_revision_of(walk.record)
                if main <= revision:
                    return steps
                place, entry = self._find_put(key, main, walk.before)
            elif walk.deletion is not None:
                place = walk.deletion
                if PLACE.unpack(place)[0] <= revision:
                    return steps
                found = self._log.get(place)
                assert found is not None and found[0] == DELETED, f"no deletion of {key!r} at {place.hex()}"
                entry = found
            else:
                return steps
            if not steps:
                return -1
            steps -= 1
            walk.before = place
            kind = entry[0]
            walk.record = entry[1:] if kind in (PUT_OVER, DELETED) else None
            walk.deletion = entry[1 : 1 + PLACE_BYTES] if kind == PUT_AFTER_DELETE else None

    def _find_put(self, key: bytes, main: int, before: bytes | None) -> tuple[bytes, bytes]:
        """The last put of `key` within one main revision, below a place: its own place and log entry."""
        first = _place(main, 0)
        end = _place(main + 1, 0)
        if before is not None and before < end:
            end = before
        pairs = self._log.items(first, end)
        for place, entry in reversed(pairs):
            kind = entry[0]
            if kind == DELETED:
                continue
            own = entry[1:] if kind == PUT_NEW else entry[1 + PLACE_BYTES :] if kind == PUT_AFTER_DELETE else None
            if (key_of(entry[1:]) if own is None else own) == key:
                return place, entry
        raise AssertionError(f"the log has no put of {key!r} at revision {main}")

    # -- compaction

    def _compact(self, revision: int) -> CompactResult | Refused:
        if revision <= self._compact_revision:
            return Refused(KvError.COMPACTED, self._revision)
        if revision > self._revision:
            return Refused(KvError.FUTURE_REVISION, self._revision)
        self._compact_revision = revision
        self._compacted = True
        self._purging = True
        self._changes.append(b"compact" + varint(revision))
        return CompactResult(self._revision)

    @property
    def purging(self) -> bool:
        """Whether compacted changes take space still."""
        return self._purging

    def compact_some(self, entries: int) -> bool:
        """Purge up to so many compacted changes; whether some are left. No result of the machine depends on it.

        `apply` does a slice of this on its own; an idle owner may call it to free the space sooner.
        """
        if self._purging:
            done = self._purge(entries)
            self._save_state()
            self._store.commit(self._store.applied_index, done * 32)
        return self._purging

    def _purge(self, entries: int) -> int:
        """Cut entries off the log's front, and the tombstones that only they needed."""
        needed = min((moment.oldest + 1 for moment in self.moments), default=self._compact_revision)
        end = _place(max(min(self._compact_revision, needed), 0), 0)
        pairs = self._log.items(self._purge_from, end, limit=entries)
        for place, entry in pairs:
            self._log.delete(place)
            if entry[0] == DELETED:
                key = key_of(entry[1:])
                if self._tombstones.get(key) == place:
                    self._tombstones.delete(key)
                    self._tombstone_count -= 1
        if len(pairs) < entries:
            self._purging = needed < self._compact_revision
        if pairs:
            # Not to look through what is deleted and not yet off the disk each time.
            self._purge_from = pairs[-1][0] + b"\0"
        return len(pairs)

    # -- captures

    def capture(self) -> KvCapture:
        return KvCapture(self._store.view())

    def restore(self, index: int, chunks: Iterable[bytes], *, fresh: FreshStart | None = None) -> None:
        """See `machines.base.Machine.restore`. Not while a checkpoint is open. Captures taken before stay readable.

        `fresh`: for a new cluster, which leaves out what belongs to the old one.
        """
        replacement = self._store.replacement(index)
        try:
            read_capture(index, chunks, replacement if fresh is None else FreshReplacement(replacement, fresh))
            replacement.commit()
        finally:
            replacement.abort()
        self._attach()
        self._tell_of_alarms()
        self.watches.restored()

    # -- the annex

    def annex_get(self, key: bytes) -> bytes | None:
        return self._annex.get(key)

    def annex_put(self, key: bytes, value: bytes) -> None:
        assert key, "an annex key is not empty"
        self._annex.put(key, value)

    def annex_delete(self, key: bytes) -> None:
        self._annex.delete(key)

    def annex_items(self) -> list[tuple[bytes, bytes]]:
        return self._annex.items()

    # -- durability

    def dirty_bytes(self) -> int:
        return self._store.dirty_bytes()

    def checkpoint(self) -> Checkpoint:
        return self._store.checkpoint()

    def checkpointed(self, checkpoint: Checkpoint) -> None:
        self._store.checkpointed(checkpoint)

    def close(self) -> None:
        self._end_readings()
        self._store.close()

    def _end_readings(self) -> None:
        moments, self.moments = self.moments, []
        for moment in moments:
            moment.lost = True

    # -- invariants

    def validate(self) -> None:
        """Check the whole state against itself, reading all of it. For tests, the simulator and `verify` commands."""
        assert -1 <= self._compact_revision <= self._revision, (self._compact_revision, self._revision)
        self.auth.validate()
        count = 0
        attached: dict[bytes, int] = {}
        for key, record in self._current.items():
            kv = decode_key_value(record)
            if kv.lease:
                attached[key] = kv.lease
            assert lease_of(record) == kv.lease, kv
            count += 1
            assert kv.key == key, f"the record of {key!r} is of {kv.key!r}"
            assert encode_key_value(*kv) == record, f"the record of {key!r} is not as protobuf writes it"
            assert 1 < kv.create_revision <= kv.mod_revision <= self._revision, (kv, self._revision)
            assert kv.version >= 1, kv
            assert self._tombstones.get(key) is None, f"{key!r} exists and has a tombstone"
        assert count == self._keys, f"{count} keys, and the machine counts {self._keys}"
        tombstones = self._tombstones.items()
        assert len(tombstones) == self._tombstone_count, (len(tombstones), self._tombstone_count)
        for key, place in tombstones:
            if PLACE.unpack(place)[0] > self._compact_revision:
                entry = self._log.get(place)
                assert entry is not None and entry[0] == DELETED, f"tombstone of {key!r} without its deletion"
        last = (max(self._compact_revision, 1), 0)
        for place, entry in self._log.items(_place(last[0] + 1, 0)):
            main, sub = PLACE.unpack(place)
            assert (main, sub) in ((last[0], last[1] + 1), (last[0] + 1, 0)), f"log: {last}, then {(main, sub)}"
            last = (main, sub)
            assert entry[0] in (PUT_NEW, PUT_OVER, PUT_AFTER_DELETE, DELETED), entry[0]
        self.counts.validate()
        self.leases.validate(attached)
        self.alarms.validate()
        assert last[0] == self._revision, f"the log ends at {last}, the revision is {self._revision}"


class _Writes:
    """The place of the next change of the command under way."""

    __slots__ = ("main", "sub")

    def __init__(self, main: int) -> None:
        self.main = main
        self.sub = 0
