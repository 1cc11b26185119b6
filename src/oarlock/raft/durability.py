"""What has been handed to the disk, what the disk has confirmed, and the messages that wait in between.

`Raft` decides what must be durable; this class knows whether it is. Every message that rests on durable state goes
through `send_when_durable`, so there is one place that could ever let one out too early. (Raft Fig. 2; diss. 10.2.1)
"""

from __future__ import annotations

from collections import deque

from oarlock.raft.events import Effect, Persist, ReleaseLog, Restore, Send
from oarlock.raft.log import Log
from oarlock.raft.types import Entry, HardState, Index, SnapshotMeta

_UNBOUNDED = 2**63


class _InFlight:
    """A `Persist` whose fsync has not returned. `last_index` falls when the entries it holds are cut away meanwhile, so
    that its completion never vouches for entries that took their place."""

    __slots__ = ("hard_state", "last_index", "restore", "ticket")

    def __init__(self, ticket: int, hard_state: HardState, last_index: Index, restore: SnapshotMeta | None) -> None:
        self.ticket = ticket
        self.hard_state = hard_state
        self.last_index = last_index
        self.restore = restore


class Durability:
    """The ledger of one member's writes. `durable` is the hard state that the disk is known to hold."""

    __slots__ = (
        "_deferred",
        "_inflight",
        "_log",
        "_mark",
        "_release",
        "_releases_due",
        "_reset_log",
        "_saved",
        "_ticket",
        "_unsaved_from",
        "durable",
    )

    def __init__(self, log: Log, hard_state: HardState) -> None:
        self._log = log
        self._ticket = 0
        self._inflight: deque[_InFlight] = deque()
        self._saved = hard_state  # as last handed out
        self.durable = hard_state
        self._unsaved_from: Index = log.last_index + 1
        self._release: list[Send] = []  # for the next Persist
        self._deferred: deque[tuple[int, Send]] = (
            deque()
        )  # nothing new to write, but a write under way must return first
        self._mark: SnapshotMeta | None = None  # for the next Persist
        self._reset_log = False
        self._releases_due: deque[tuple[int, Index]] = deque()  # (ticket, index): the mark must be durable first

    def send_when_durable(self, effects: list[Effect], send: Send, current: HardState, index: Index) -> None:
        """Send once `current` term and vote, and the log up to `index`, are durable; at once if they are."""
        durable = self.durable
        if durable.term == current.term and durable.vote == current.vote and index <= self._log.stable_index:
            effects.append(send)
        else:
            self._release.append(send)

    @property
    def something_waits(self) -> bool:
        """Whether the end of a write under way lets go of more than its own `Persist.release`."""
        return bool(self._deferred or self._releases_due)

    def cut(self, index: Index) -> None:
        """Entries from `index` on left the log: no write under way vouches for that range any more."""
        for flight in self._inflight:
            # sometimes: entries are cut while they are being written
            flight.last_index = min(flight.last_index, index - 1)
        self._unsaved_from = min(self._unsaved_from, index)

    def mark_snapshot(self, snapshot: SnapshotMeta, *, release_to: Index | None) -> None:
        """Record that the state up to `snapshot.index` is durable elsewhere; then entries up to `release_to` may go."""
        if self._mark is None or snapshot.index > self._mark.index:
            self._mark = snapshot
        if release_to is not None:
            self._releases_due.append((self._ticket + 1, release_to))

    def replace_log(self, snapshot: SnapshotMeta) -> None:
        """The log in memory was reset to `snapshot`: so shall the one on disk be."""
        self.cut(1)
        self._unsaved_from = snapshot.index + 1
        self._mark = snapshot
        self._reset_log = True

    def emit(self, effects: list[Effect], current: HardState) -> None:
        """One `Persist` for everything that changed since the last one; nothing if nothing did."""
        log, saved = self._log, self._saved
        if current is saved and self._unsaved_from > log.last_index and not self._release and self._mark is None:
            return
        entries: tuple[Entry, ...] = ()
        if self._unsaved_from <= log.last_index:
            entries = log.slice(self._unsaved_from, log.last_index, _UNBOUNDED)
        dirty = current.term != saved.term or current.vote != saved.vote
        if not (dirty or entries or self._mark is not None):
            if self._release:
                self._defer(effects)
            return
        self._ticket += 1
        effects.append(
            Persist(
                ticket=self._ticket,
                # The commit index rides along; a change of it alone is never worth a write (it may lag behind).
                hard_state=current if dirty or current.commit != saved.commit else None,
                entries=entries,
                snapshot=self._mark,
                reset_log=self._reset_log,
                release=tuple(self._release),
            )
        )
        restore = self._mark if self._reset_log else None
        self._inflight.append(_InFlight(self._ticket, current, log.last_index, restore))
        self._saved = current
        self._unsaved_from = log.last_index + 1
        self._release = []
        self._mark = None
        self._reset_log = False

    def _defer(self, effects: list[Effect]) -> None:
        if self._inflight:
            # sometimes: a message waits for a write that is under way already
            ticket = self._inflight[-1].ticket
            self._deferred.extend((ticket, send) for send in self._release)
        else:
            # sometimes: a message waits for nothing after all
            effects.extend(self._release)
        self._release = []

    def persisted(self, effects: list[Effect], ticket: int, restoring: SnapshotMeta | None) -> None:
        """Every write up to `ticket` is durable: count it, and let go what waited for it."""
        log = self._log
        while self._inflight and self._inflight[0].ticket <= ticket:
            done = self._inflight.popleft()
            self.durable = done.hard_state
            log.stable_index = max(log.stable_index, done.last_index)
            if done.restore is not None and done.restore is restoring:
                # sometimes: a snapshot's mark becomes durable
                effects.append(Restore(done.restore))
        while self._deferred and self._deferred[0][0] <= ticket:
            effects.append(self._deferred.popleft()[1])
        while self._releases_due and self._releases_due[0][0] <= ticket:
            effects.append(ReleaseLog(self._releases_due.popleft()[1]))
