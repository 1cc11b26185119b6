"""The replicated side of leases: what every member knows alike. (docs/explanation/leases.md)

A *lease clock* counts the time that leaders measured while leases existed; nothing here knows any other time. Each
lease has the TTL that was granted and a *ceiling*: the reading of the lease clock up to which somebody may have been
promised that the lease lives. Who leads keeps finer deadlines in memory, at or below the ceilings
(`node.replica.leases`).

Tables: `leases` holds, under eight zero bytes, the clock (8 bytes), and under the id of each lease its TTL in seconds
and its ceiling in ns (8 bytes each); `lease_keys` has one empty value for each attached key, under the id followed by
the key. Numbers are big-endian, ids as unsigned.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from oarlock.machines.kv.commands import KvError, encode
from oarlock.machines.kv.commands_lease import LeaseExpire, LeaseRenew, LeaseTick
from oarlock.machines.store import Table

SECOND: Final = 1_000_000_000
TTL_MAX: Final = 9_000_000_000
"""Seconds; etcd's."""

LEASES_MAX: Final = 1_000_000
"""Leases of one store: each is held in memory."""

SLACK_MIN: Final = 1 * SECOND
SLACK_MAX: Final = 30 * SECOND
CLOCK_MAX: Final = (1 << 64) - 1

_ID_MASK: Final = (1 << 64) - 1
_CLOCK_KEY: Final = bytes(8)
_CLOCK: Final = struct.Struct(">Q")
_LEASE: Final = struct.Struct(">qQ")


def slack_ns(ttl: int) -> int:
    """How far above what is promised a ceiling is set: half the TTL, within bounds. The larger it is, the more renewals
    are answered from memory, and the longer a lease may outlive its owner if the leader changes.

    >>> slack_ns(2) / SECOND, slack_ns(20) / SECOND, slack_ns(3600) / SECOND
    (1.0, 10.0, 30.0)
    """
    return min(max(ttl * (SECOND // 2), SLACK_MIN), SLACK_MAX)


def _id_bytes(lease: int) -> bytes:
    return (lease & _ID_MASK).to_bytes(8, "big")


def unpack_clock(key: bytes, value: bytes) -> int | None:
    """The lease clock, if this record of the table `leases` is it; its key sorts before all leases."""
    return int(_CLOCK.unpack(value)[0]) if key == _CLOCK_KEY else None


def full_ceiling(value: bytes, clock: int) -> bytes:
    """The record of a lease with its whole TTL ahead of `clock`."""
    ttl, _ = _LEASE.unpack(value)
    return _LEASE.pack(ttl, min(clock + ttl * SECOND + slack_ns(ttl), CLOCK_MAX))


class LeaseBook:
    """All leases of one machine. The machine's owner calls nothing here that changes anything, but `apply` does.

    `changes` is the machine's list of what its digest will cover.
    """

    def __init__(self, leases: Table, lease_keys: Table, changes: list[bytes]) -> None:
        self._table = leases
        self._key_table = lease_keys
        self._changes = changes
        self._leases: dict[int, tuple[int, int]] = {}  # id -> TTL in s, ceiling in ns
        self.clock = 0
        """The last reading of the lease clock that is in the log, in ns."""
        self.attached = 0
        """Keys that are attached to any lease."""
        self.journal: list[tuple[int, int]] | None = None
        """What happened since its reader last emptied it: id and TTL of a grant, id and 0 of an end. None while nobody
        reads it."""
        for key, value in leases.items():
            if key == _CLOCK_KEY:
                (self.clock,) = _CLOCK.unpack(value)
            else:
                number = int.from_bytes(key, "big", signed=True)
                ttl, ceiling = _LEASE.unpack(value)
                self._leases[number] = (ttl, ceiling)
        if self._leases:
            self.attached = lease_keys.count()

    # -- reading

    def __len__(self) -> int:
        return len(self._leases)

    def __contains__(self, lease: int) -> bool:
        return lease in self._leases

    def get(self, lease: int) -> tuple[int, int] | None:
        """TTL in s and ceiling in ns."""
        return self._leases.get(lease)

    def ids(self) -> list[int]:
        """All leases, the one with the lowest ceiling first."""
        return sorted(self._leases, key=lambda lease: (self._leases[lease][1], lease))

    def unordered(self) -> list[int]:
        """All leases, in an order that differs between members."""
        return list(self._leases)

    def items(self) -> Iterator[tuple[int, tuple[int, int]]]:
        """Id, and TTL in s and ceiling in ns; in an order that differs between members."""
        return iter(self._leases.items())

    def keys(self, lease: int) -> list[bytes]:
        """The attached keys in ascending order."""
        start = _id_bytes(lease)
        end = _id_bytes(lease + 1) if lease & _ID_MASK != _ID_MASK else None
        return [key[8:] for key, _ in self._key_table.items(start, end)]

    # -- the leader's commands

    def slack_ns(self, ttl: int) -> int:
        """How far above a promise a ceiling for this TTL is set."""
        return slack_ns(ttl)

    def tick_command(self, term: int, clock: int) -> bytes:
        return encode(LeaseTick(term, min(clock, CLOCK_MAX)))

    def renew_command(self, term: int, ids: list[int], deadlines: list[int]) -> bytes:
        return encode(LeaseRenew(term, ids, deadlines))

    def expire_command(self, term: int, ids: list[int], ceilings: list[int]) -> bytes:
        return encode(LeaseExpire(term, ids, ceilings))

    # -- changes, by the machine only

    def tick(self, clock: int) -> None:
        """The clock never goes back, and stands while there are no leases."""
        if clock > self.clock and self._leases:
            self._set_clock(clock)

    def _set_clock(self, clock: int) -> None:
        self.clock = clock
        raw = _CLOCK.pack(clock)
        self._table.put(_CLOCK_KEY, raw)
        self._changes.append(b"lease clock" + raw)

    def refuse_grant(self, lease: int, ttl: int) -> KvError | None:
        """Why a grant cannot be, in etcd's order."""
        if lease == 0:
            return KvError.LEASE_NOT_FOUND
        if ttl > TTL_MAX:
            return KvError.LEASE_TTL_TOO_LARGE
        if lease in self._leases:
            return KvError.LEASE_EXISTS
        return KvError.LEASES_FULL if len(self._leases) >= LEASES_MAX else None

    def grant(self, lease: int, ttl: int) -> None:
        """`refuse_grant` has been asked."""
        self._set(lease, ttl, self.clock + ttl * SECOND + slack_ns(ttl))
        if self.journal is not None:
            self.journal.append((lease, ttl))

    def _set(self, lease: int, ttl: int, ceiling: int) -> None:
        self._leases[lease] = (ttl, ceiling)
        raw = _LEASE.pack(ttl, ceiling)
        key = _id_bytes(lease)
        self._table.put(key, raw)
        self._changes.append(b"lease" + key + raw)

    def renew(self, ids: list[int], deadlines: list[int]) -> None:
        """Leases that are gone are passed over."""
        for lease, deadline in zip(ids, deadlines, strict=False):
            found = self._leases.get(lease)
            if found is not None and found[1] < deadline <= CLOCK_MAX:
                self._set(lease, found[0], deadline)

    def end(self, lease: int) -> None:
        """The lease is over, and its keys have been deleted."""
        del self._leases[lease]
        key = _id_bytes(lease)
        self._table.delete(key)
        self._changes.append(b"lease end" + key)
        if self.journal is not None:
            self.journal.append((lease, 0))

    def move(self, key: bytes, old: int, new: int) -> None:
        """`key` was attached to `old` (0: to none) and is now attached to `new` (0: to none)."""
        if old:
            self._key_table.delete(_id_bytes(old) + key)
            self.attached -= 1
        if new:
            self._key_table.put(_id_bytes(new) + key, b"")
            self.attached += 1

    # -- invariants

    def validate(self, attached: dict[bytes, int]) -> None:
        """`attached` is which lease every key of the store with one is attached to."""
        stored = self._table.items()
        assert len(stored) - (self._table.get(_CLOCK_KEY) is not None) == len(self._leases), "leases: table and memory"
        for lease, (ttl, ceiling) in self._leases.items():
            assert self._table.get(_id_bytes(lease)) == _LEASE.pack(ttl, ceiling), f"lease {lease:x}"
            assert ceiling > 0, f"lease {lease:x} with ceiling {ceiling}"
        there = {}
        for raw in (pair[0] for pair in self._key_table.items()):
            lease = int.from_bytes(raw[:8], "big", signed=True)
            assert lease in self._leases, f"{raw[8:]!r} is attached to lease {lease:x}, which is gone"
            there[raw[8:]] = lease
        assert there == attached, "attached keys: table and records"
        assert len(there) == self.attached, (len(there), self.attached)
