"""The reference: what the key-value machine and the sessions must answer, written for clearness and kept whole.

It shares nothing with the machine but the shapes of commands: every version of every key is kept for ever, and a read
of the past looks it up. Results are plain tuples; `plain_result` brings a member's answer into the same form.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, TypeAlias

from oarlock.errors import Rejected
from oarlock.machines.base import Context
from oarlock.machines.kv import commands as kv
from oarlock.node.replica.sessions import SessionClosed, SessionOpened
from oarlock.sim.world.session_model import ESCAPED, FIRST_PLAIN, PUBLISH, SESSION, SessionModel, Submission

Plain: TypeAlias = Any
"""A result as nested tuples of plain values."""

DENIED: Plain = ("denied",)
"""The result of what somebody asked for without the right to it."""


def encode_kv(key: bytes, create: int, mod: int, version: int, value: bytes) -> bytes:
    """`mvccpb.KeyValue` in protobuf's encoding."""
    out = b"\x0a" + _varint(len(key)) + key + b"\x10" + _varint(create) + b"\x18" + _varint(mod)
    out += b"\x20" + _varint(version)
    if value:
        out += b"\x2a" + _varint(len(value)) + value
    return out


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


class _Version:
    """What a key was from `(main, sub)` on; `version` 0: deleted."""

    __slots__ = ("create", "place", "value", "version")

    def __init__(self, place: tuple[int, int], create: int, version: int, value: bytes) -> None:
        self.place = place
        self.create = create
        self.version = version
        self.value = value


class Model:
    """State after all committed entries so far."""

    def __init__(self, application: Any = None) -> None:
        """`application` is for those who extend it."""
        self.revision = 1
        self.compacted = -1
        self.index = 0
        self.revisions: list[int] = [1]  # the revision after each index
        self._keys: dict[bytes, list[_Version]] = {}
        self._sessions = SessionModel()

    @property
    def repeats(self) -> int:
        """Commands of sessions that came again."""
        return self._sessions.repeats

    # -- entries

    def skip(self, context: Context | None = None) -> None:
        """An entry without commands."""
        self.index += 1
        self.revisions.append(self.revision)

    def apply(self, commands: Sequence[bytes], context: Context | None = None) -> list[Plain]:
        """The commands of the next entry."""
        self.index += 1
        results = [self._command(place, command) for place, command in enumerate(commands)]
        self.revisions.append(self.revision)
        return results

    def _command(self, place: int, data: bytes) -> Plain:
        kind = data[0] if data else FIRST_PLAIN
        if kind == PUBLISH:
            return None
        if kind == ESCAPED:
            return self._execute(data[1:])
        if kind != SESSION:
            return self._execute(data)
        sessions = self._sessions
        found = sessions.take(self.index << 20 | place, data)
        if not isinstance(found, Submission):
            return found
        if found.key in sessions.replies:
            sessions.repeats += 1
        else:
            sessions.replies[found.key] = self._execute(found.command)
        return sessions.replies[found.key]

    # -- commands

    def _execute(self, data: bytes) -> Plain:
        try:
            command = kv.decode(data)
        except ValueError:
            return ("refused", int(kv.KvError.MALFORMED), self.revision)
        return self._run(command)

    def _run(self, command: Any) -> Plain:
        if isinstance(command, kv.Compact):
            if command.revision <= self.compacted:
                return ("refused", int(kv.KvError.COMPACTED), self.revision)
            if command.revision > self.revision:
                return ("refused", int(kv.KvError.FUTURE_REVISION), self.revision)
            self.compacted = command.revision
            return ("compacted", self.revision)
        self._sub = 0
        if isinstance(command, kv.Txn):
            refused = self._refuse(command)
            if refused is not None:
                return refused
            branch = self._branches.pop(0)
            responses = tuple(self._op(op) for op in (command.success if branch else command.failure))
            self.revision += bool(self._sub)
            return ("txn", self.revision, branch, responses)
        if isinstance(command, kv.Range):
            error = self._range_error(command.revision)
            if error:
                return ("refused", error, self.revision)
        result = self._op(command)
        self.revision += bool(self._sub)
        return result

    def _range_error(self, revision: int) -> int:
        if revision > self.revision:
            return int(kv.KvError.FUTURE_REVISION)
        if 0 < revision < self.compacted:
            return int(kv.KvError.COMPACTED)
        return 0

    def _refuse(self, txn: kv.Txn) -> Plain:
        """Decide all branches on the state before; a read that cannot be refuses the whole transaction."""
        self._branches: list[bool] = []
        taken: list[Any] = []

        def walk(one: kv.Txn) -> None:
            branch = all(self._holds(compare) for compare in one.compare)
            self._branches.append(branch)
            for op in one.success if branch else one.failure:
                if isinstance(op, kv.Txn):
                    walk(op)
                else:
                    taken.append(op)

        walk(txn)
        for op in taken:
            if isinstance(op, kv.Range):
                error = self._range_error(op.revision)
                if error:
                    return ("refused", error, self.revision)
        return None

    def _op(self, op: Any) -> Plain:
        if isinstance(op, kv.Txn):
            branch = self._branches.pop(0)
            return ("txn", 0, branch, tuple(self._op(inner) for inner in (op.success if branch else op.failure)))
        main = self.revision + 1
        if isinstance(op, kv.Put):
            old = self._latest(op.key)
            place = (main, self._sub)
            self._sub += 1
            fresh = _Version(place, old.create if old else main, old.version + 1 if old else 1, op.value)
            before = self._encode(op.key, old) if old else None
            self._keys.setdefault(op.key, []).append(fresh)
            return ("put", main, before if op.prev_kv else None)
        if isinstance(op, kv.DeleteRange):
            gone = []
            for key in self._matching(op.key, op.range_end):
                old = self._latest(key)
                if old:
                    gone.append(self._encode(key, old))
                    self._keys[key].append(_Version((main, self._sub), 0, 0, b""))
                    self._sub += 1
            return ("deleted", main if self._sub else self.revision, len(gone), tuple(gone) if op.prev_kv else ())
        assert isinstance(op, kv.Range)
        now = main if self._sub else self.revision
        return self._range(op, now, op.revision if 0 < op.revision < now else now)

    def _range(self, op: kv.Range, now: int, at: int) -> Plain:
        found = []
        for key in self._matching(op.key, op.range_end):
            version = self._latest(key, at)
            if version:
                found.append(self._encode(key, version, b"" if op.keys_only else None))
        if op.count_only:
            return ("range", now, (), False, len(found))
        shown = found[: op.limit] if op.limit > 0 else found
        return ("range", now, tuple(shown), len(shown) < len(found), len(found))

    def _deleted(self, key: bytes) -> None:
        """A key was deleted, at the next revision, by something other than a command of its own."""

    def digest(self) -> bytes:
        """The machine's digest is its own affair: members are compared with each other, and by what they answer."""
        return b""

    # -- reading

    def read(self, op: kv.Range, index: int) -> Plain:
        """What a member that has applied exactly `index` answers to a read of the present."""
        at = self.revisions[index]
        return self._range(op, at, at)

    def deleted_at(self, revision: int) -> list[bytes]:
        """Keys whose last change is their deletion at this revision, ascending."""
        return sorted(
            key
            for key, versions in self._keys.items()
            if versions[-1].place[0] == revision and not versions[-1].version
        )

    def _matching(self, key: bytes, end: bytes) -> list[bytes]:
        if not end:
            return [key] if key in self._keys else []
        return sorted(k for k in self._keys if k >= key and (end == b"\0" or k < end))

    def _latest(self, key: bytes, at: int | None = None) -> _Version | None:
        """The version of `key` at revision `at` (None: now); None if there is none or it is deleted."""
        versions = self._keys.get(key)
        if not versions:
            return None
        if at is None or versions[-1].place[0] <= at:
            found = versions[-1]
        else:
            position = bisect_right(versions, (at, 1 << 60), key=lambda version: version.place)
            if not position:
                return None
            found = versions[position - 1]
        return found if found.version else None

    @staticmethod
    def _encode(key: bytes, version: _Version, value: bytes | None = None) -> bytes:
        shown = version.value if value is None else value
        return encode_kv(key, version.create, version.place[0], version.version, shown)

    def _holds(self, compare: kv.Compare) -> bool:
        if compare.range_end:
            versions = [self._latest(key) for key in self._matching(compare.key, compare.range_end)]
            present = [version for version in versions if version]
        else:
            one = self._latest(compare.key)
            present = [one] if one else []
        if not present:
            if compare.target == kv.CompareTarget.VALUE:
                return False
            return _test(0, compare)
        return all(_test(self._field(compare.target, version), compare) for version in present)

    @staticmethod
    def _field(target: int, version: _Version) -> int | bytes:
        if target == kv.CompareTarget.VALUE:
            return version.value
        if target == kv.CompareTarget.VERSION:
            return version.version
        return version.create if target == kv.CompareTarget.CREATE else version.place[0]


def _test(actual: Any, compare: kv.Compare) -> bool:
    match compare.result:
        case kv.CompareResult.EQUAL:
            return bool(actual == compare.operand)
        case kv.CompareResult.GREATER:
            return bool(actual > compare.operand)
        case kv.CompareResult.LESS:
            return bool(actual < compare.operand)
        case _:
            return bool(actual != compare.operand)


def plain_result(result: object) -> Plain:
    """A member's answer in the model's form. A repeated command's answer comes as a dict."""
    match result:
        case None:
            return None
        case kv.PutResult():
            return ("put", result.revision, result.prev_kv)
        case kv.DeleteResult():
            return ("deleted", result.revision, result.deleted, tuple(result.prev_kvs))
        case kv.RangeResult():
            return ("range", result.revision, tuple(result.kvs), result.more, result.count)
        case kv.TxnResult():
            return ("txn", result.revision, result.succeeded, tuple(plain_result(r) for r in result.responses))
        case kv.CompactResult():
            return ("compacted", result.revision)
        case kv.Refused():
            return ("refused", int(result.error), result.revision)
        case SessionOpened():
            return ("session", result.session)
        case SessionClosed():
            return ("closed",)
        case Rejected():
            return ("rejected", result.reason)
        case {"error": error, "revision": revision}:
            return ("refused", error, revision)
        case {"deleted": deleted, "revision": revision, "prev_kvs": previous}:
            return ("deleted", revision, deleted, tuple(previous))
        case {"kvs": kvs, "revision": revision, "more": more, "count": count}:
            return ("range", revision, tuple(kvs), more, count)
        case {"succeeded": succeeded, "revision": revision, "responses": responses}:
            return ("txn", revision, succeeded, tuple(plain_result(r) for r in responses))
        case {"prev_kv": previous, "revision": revision}:
            return ("put", revision, previous)
        case {"revision": revision}:
            return ("compacted", revision)
        case _:
            return ("unknown", repr(result))
