"""Alarms, and the comparison of states that raises one of them. (docs/explanation/alarms.md)

Table `alarms`: `a` + type (1 byte) + member (8 bytes) -> 1 if a comparison of digests named this member, else 0; `m` ->
index of the last mark and how many members are to report (8 bytes each); `r` + member (8 bytes) -> the digest that it
reported for that mark. Numbers are big-endian.
"""

from __future__ import annotations

import struct
from typing import Final

from oarlock.machines.kv.commands import Compact as CompactCommand
from oarlock.machines.kv.commands import DeleteRange, KvError, Put, Range, Txn
from oarlock.machines.kv.commands_alarm import AlarmType, AutoCompact
from oarlock.machines.kv.commands_lease import LeaseExpire, LeaseGrant, LeaseRevoke
from oarlock.machines.store import Table

ALARMS_MAX: Final = 1000
DIGEST_BYTES: Final = 16
NOBODY: Final = 0
"""The member that a CORRUPT alarm names when members differ and no majority of them agrees."""

_MARK: Final = struct.Struct(">QQ")
_MARK_KEY: Final = b"m"
_BY_RPC, _BY_AUDIT = b"\0", b"\1"


def _alarm_key(member: int, alarm: int) -> bytes:
    return b"a" + bytes((alarm,)) + member.to_bytes(8, "big")


def puts(op: object) -> bool:
    """Whether a command may put something, in any branch at any depth."""
    if isinstance(op, Txn):
        return any(puts(inner) for inner in (*op.success, *op.failure))
    return isinstance(op, Put)


class AlarmBook:
    """All alarms of one machine, and the last comparison. `changes` is what the machine's digest will cover: alarms,
    but not the comparisons, so that a state that is not used has a digest that stays."""

    def __init__(self, table: Table, changes: list[bytes]) -> None:
        self._table = table
        self._changes = changes
        self._alarms: dict[tuple[int, int], bytes] = {}  # (alarm, member) -> who raised it
        self._reports: dict[int, bytes] = {}
        self.mark = 0
        """Index of the entry for which members were last asked for their digests; 0: none."""
        self.expected = 0
        """How many were asked."""
        self.blocking = False
        """Whether any command may have to be refused."""
        self.changed = False
        """Whether alarms have come or gone since the machine last told its listener."""
        self.reportable: tuple[int, bytes] | None = None
        """The last mark that this machine applied itself, and its digest there; the replica takes it from here."""
        for key, value in table.items():
            if key[:1] == b"a":
                self._alarms[key[1], int.from_bytes(key[2:], "big")] = value
            elif key == _MARK_KEY:
                self.mark, self.expected = _MARK.unpack(value)
            else:
                self._reports[int.from_bytes(key[1:], "big")] = value
        self._look()

    # -- reading

    def active(self, alarm: int = AlarmType.NONE) -> list[tuple[int, int]]:
        """Member and alarm, of one kind or of all, in order of members."""
        found = [(member, kind) for kind, member in self._alarms if alarm in (AlarmType.NONE, kind)]
        return sorted(found)

    def is_active(self, member: int, alarm: int) -> bool:
        return (alarm, member) in self._alarms

    def quarantined(self, member: int) -> bool:
        """Whether the state of `member` is known to differ from what a majority has."""
        return bool(self._alarms) and self._alarms.get((AlarmType.CORRUPT, member)) == _BY_AUDIT

    def reports(self) -> dict[int, bytes]:
        """What members have said about the last mark."""
        return dict(sorted(self._reports.items()))

    def refuse(self, command: object) -> KvError | None:
        """What the alarms refuse, as etcd: without space whatever takes some, and all changes of a corrupt cluster. A
        member that a comparison has named makes no corrupt cluster: the others agree."""
        if self._corrupt and isinstance(
            command,
            Put | DeleteRange | Range | Txn | CompactCommand | AutoCompact | LeaseGrant | LeaseRevoke | LeaseExpire,
        ):
            return KvError.CORRUPT
        if self._no_space and (isinstance(command, LeaseGrant) or puts(command)):
            return KvError.NO_SPACE
        return None

    # -- changes, by the machine only

    def _look(self) -> None:
        self._no_space = any(alarm == AlarmType.NOSPACE for alarm, _ in self._alarms)
        self._corrupt = any(alarm == AlarmType.CORRUPT and by != _BY_AUDIT for (alarm, _), by in self._alarms.items())
        self.blocking = self._no_space or self._corrupt
        self.changed = True

    def activate(self, member: int, alarm: int) -> bool:
        """Returns whether it was not active."""
        return self._raise(member, alarm, _BY_RPC)

    def _raise(self, member: int, alarm: int, by: bytes) -> bool:
        if (alarm, member) in self._alarms or len(self._alarms) >= ALARMS_MAX:
            return False
        self._alarms[alarm, member] = by
        self._table.put(_alarm_key(member, alarm), by)
        self._changes.append(b"alarm" + _alarm_key(member, alarm) + by)
        self._look()
        return True

    def deactivate(self, member: int, alarm: int) -> bool:
        """Returns whether it was active."""
        if self._alarms.pop((alarm, member), None) is None:
            return False
        self._table.delete(_alarm_key(member, alarm))
        self._changes.append(b"alarm off" + _alarm_key(member, alarm))
        self._look()
        return True

    def begin_audit(self, index: int, expected: int, digest: bytes) -> None:
        """The entry at `index` is a mark; `digest` is of the state before it."""
        for member in self._reports:
            self._table.delete(b"r" + member.to_bytes(8, "big"))
        self._reports = {}
        self.mark, self.expected = index, expected
        self._table.put(_MARK_KEY, _MARK.pack(index, expected))
        self.reportable = (index, digest)

    def report(self, member: int, index: int, digest: bytes) -> None:
        """A member's digest at a mark. Whoever differs from what a majority has is named; if all have reported, or so
        many that no majority can come of it, and none agrees, nobody in particular is."""
        if index != self.mark or len(digest) != DIGEST_BYTES or member in self._reports:
            return
        if len(self._reports) >= self.expected:
            return
        self._reports[member] = digest
        self._table.put(b"r" + member.to_bytes(8, "big"), digest)
        counts: dict[bytes, int] = {}
        for said in self._reports.values():
            counts[said] = counts.get(said, 0) + 1
        if len(counts) == 1:
            return
        majority = self.expected // 2 + 1
        agreed = [said for said, count in counts.items() if count >= majority]
        if agreed:
            for one, said in sorted(self._reports.items()):
                if said != agreed[0]:
                    self._raise(one, AlarmType.CORRUPT, _BY_AUDIT)
        elif max(counts.values()) + self.expected - len(self._reports) < majority:
            self._raise(NOBODY, AlarmType.CORRUPT, _BY_RPC)

    # -- invariants

    def validate(self) -> None:
        stored = dict(self._table.items())
        for (alarm, member), by in self._alarms.items():
            assert stored.pop(_alarm_key(member, alarm)) == by, (alarm, member)
        for member, digest in self._reports.items():
            assert stored.pop(b"r" + member.to_bytes(8, "big")) == digest, member
        assert stored.pop(_MARK_KEY, None) == (_MARK.pack(self.mark, self.expected) if self.mark else None)
        assert not stored, f"alarms: {stored}"
