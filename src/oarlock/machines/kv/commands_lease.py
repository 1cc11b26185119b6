"""Commands and results that concern leases. They are part of `machines.kv.commands.Command`: tags 6 to 15.

`LeaseTick`, `LeaseRenew` and `LeaseExpire` are the leader's own. They carry its term, and an entry of another term that
holds them changes nothing: what a leader measured means nothing once it has been replaced.
(docs/explanation/leases.md)
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec


class LeaseGrant(msgspec.Struct, tag=6, array_like=True, gc=False):
    """Grant a lease of `ttl` seconds under the id `id`, which is not 0. The proposer has applied its minimum."""

    id: int
    ttl: int


class LeaseRevoke(msgspec.Struct, tag=7, array_like=True, gc=False):
    """End a lease and delete what is attached to it."""

    id: int


class LeaseTick(msgspec.Struct, tag=8, array_like=True, gc=False):
    """The leader of `term` read the lease clock as `clock` ns when it proposed this."""

    term: int
    clock: int


class LeaseRenew(msgspec.Struct, tag=9, array_like=True, gc=False):
    """Raise the deadlines of leases: `deadlines[i]` ns on the lease clock for `ids[i]`. Deadlines never fall."""

    term: int
    ids: list[int]
    deadlines: list[int]


class LeaseExpire(msgspec.Struct, tag=10, array_like=True, gc=False):
    """The leader of `term` found these expired: end them, each in a revision of its own if keys are attached.

    One whose ceiling is not `ceilings[i]` any more is another lease under the same id, and lives on.
    """

    term: int
    ids: list[int]
    ceilings: list[int]


LeaseCommand: TypeAlias = LeaseGrant | LeaseRevoke | LeaseTick | LeaseRenew | LeaseExpire


class LeaseGranted(msgspec.Struct, gc=False):
    revision: int
    id: int
    ttl: int


class LeaseDone(msgspec.Struct, gc=False):
    """The result of every other lease command that was not refused."""

    revision: int


LeaseResult: TypeAlias = LeaseGranted | LeaseDone
