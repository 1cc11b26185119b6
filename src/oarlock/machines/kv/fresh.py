"""What of a captured state goes into a new cluster, and how it is changed on the way.
(docs/how-to/back-up-and-restore.md)

Keys, their history, users and roles go as they are. Every lease gets its whole TTL again, counted from the lease clock
of the capture: nobody knows how long the backup lay. Alarms stay behind, since they name members of the old cluster,
and so do the annex's keys that the caller names (sessions and members' records). The revision may be raised, so that
clients that saw revisions after the backup do not meet them again with other contents; then everything before can be
compacted, which ends watches that would go on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from oarlock.machines.kv.layout import ALARMS, ANNEX, LEASES, META, STATE_KEY, pack_state, unpack_state
from oarlock.machines.kv.leases import full_ceiling, unpack_clock
from oarlock.machines.store import Replacement

REVISION_MAX = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class FreshStart:
    """`annex_prefixes` are of keys that stay behind. `bump_revision` is added to the revision; `mark_compacted` then
    makes it the compacted one."""

    annex_prefixes: Sequence[bytes] = ()
    bump_revision: int = 0
    mark_compacted: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.bump_revision <= REVISION_MAX:
            raise ValueError(f"bump-revision: {self.bump_revision} must be in 0..2**62")


class FreshReplacement:
    """A `Replacement` on top of another one, which it fills with what `FreshStart` leaves."""

    def __init__(self, inner: Replacement, fresh: FreshStart) -> None:
        self._inner = inner
        self._fresh = fresh
        self._clock = 0

    def put(self, table: str, key: bytes, value: bytes) -> None:
        fresh = self._fresh
        if table == ALARMS or (table == ANNEX and any(key.startswith(prefix) for prefix in fresh.annex_prefixes)):
            return
        if table == LEASES:
            clock = unpack_clock(key, value)
            if clock is not None:
                self._clock = clock  # it comes before all leases
            else:
                value = full_ceiling(value, self._clock)
        elif table == META and key == STATE_KEY:
            state = unpack_state(value)
            revision = state.revision + fresh.bump_revision
            state = state._replace(revision=revision)
            if fresh.mark_compacted:
                state = state._replace(compact_revision=revision)
            value = pack_state(state)
        self._inner.put(table, key, value)

    def commit(self) -> None:
        self._inner.commit()

    def abort(self) -> None:
        self._inner.abort()
