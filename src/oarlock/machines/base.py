"""What a replicated state machine is. A machine is deterministic: the same commands in the same order give the same
state and the same results on every member. Its only clock is `context.time_ns`, which the leader stamped.

A refusal is a result, alike on every member. An exception out of `apply` is a bug: the member stops there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeGuard, runtime_checkable


@dataclass(slots=True)
class Context:
    """Where in the log a batch stands. `time_ns` is wall-clock time as the leader stamped it, never going back."""

    index: int
    term: int
    time_ns: int


class Capture(Protocol):
    """A consistent view of a machine at one applied index, read while the machine goes on."""

    @property
    def index(self) -> int:
        """The applied index that the view shows."""

    def chunks(self) -> Iterator[bytes]:
        """The state as byte strings of at most 1 MiB, the same on every member. Called in a worker thread."""

    def close(self) -> None:
        """Let go of what the view holds. Idempotent."""


class Checkpoint(Protocol):
    """What a durable machine has applied since its last checkpoint, frozen."""

    @property
    def index(self) -> int: ...

    def write(self) -> None:
        """Make state *and* applied index durable in one atomic transaction. Called in a worker thread."""


class Machine(Protocol):
    """One state machine. All methods are called on one thread, except those of `Capture` and `Checkpoint`."""

    durable: bool
    """Whether the machine keeps its own state on disk. If not, snapshots files are its only persistence."""

    @property
    def applied_index(self) -> int:
        """The index of the last batch applied; on opening, what the durable state holds (0 for a volatile machine)."""

    def apply(self, context: Context, commands: Sequence[bytes]) -> list[object]:
        """Apply one entry's commands in order; one result for each. `commands` may be empty (a no-op entry)."""

    def capture(self) -> Capture:
        """A view of the present state. Cheap; never waits for the disk. For a durable machine it may show the state of
        the last *completed* checkpoint, which `index` says."""

    def restore(self, index: int, chunks: Iterable[bytes]) -> None:
        """Replace everything by a captured state taken at `index`. Atomic: after a crash the machine holds either the
        old state or the new one. Raises `ValueError` for chunks that no `capture` wrote; the old state then stays."""

    # -- the annex: a small ordered map that is part of the state; the replica keeps client sessions in it
    def annex_get(self, key: bytes) -> bytes | None: ...
    def annex_put(self, key: bytes, value: bytes) -> None: ...
    def annex_delete(self, key: bytes) -> None: ...
    def annex_items(self) -> list[tuple[bytes, bytes]]:
        """All pairs in ascending order of key."""

    # -- durable machines only (a volatile one raises RuntimeError)
    def dirty_bytes(self) -> int:
        """Roughly how much is applied but not checkpointed."""

    def checkpoint(self) -> Checkpoint:
        """Freeze what is applied and not yet durable. At most one checkpoint is open at a time."""

    def checkpointed(self, checkpoint: Checkpoint) -> None:
        """The checkpoint's `write` has returned: drop what it froze."""

    def close(self) -> None: ...


class Leases(Protocol):
    """The leases of a machine that has some, as the replica's lease keeper uses them. (docs/explanation/leases.md)

    A *ceiling* is the reading of the lease clock, in ns, up to which somebody may have been promised that the lease
    lives. The commands are the machine's own, encoded; one that carries another term than its entry changes nothing.
    """

    clock: int
    """The last reading of the lease clock that was applied."""

    journal: list[tuple[int, int]] | None
    """While it is a list: grants (id, TTL in s) and ends (id, 0) are added to it."""

    def __len__(self) -> int: ...

    def get(self, lease: int) -> tuple[int, int] | None:
        """TTL in s and ceiling in ns."""

    def items(self) -> Iterator[tuple[int, tuple[int, int]]]: ...

    def slack_ns(self, ttl: int) -> int:
        """How far above a promise a ceiling for this TTL is set."""

    def tick_command(self, term: int, clock: int) -> bytes: ...
    def renew_command(self, term: int, ids: list[int], deadlines: list[int]) -> bytes: ...
    def expire_command(self, term: int, ids: list[int], ceilings: list[int]) -> bytes: ...


class LeaseMachine(Protocol):
    """A machine with leases. `restore` may put another object in the place of `leases`."""

    @property
    def leases(self) -> Leases: ...


def has_leases(machine: object) -> TypeGuard[LeaseMachine]:
    return hasattr(machine, "leases")


class Alarms(Protocol):
    """What the replica's auditor sees of a machine's alarms."""

    reportable: tuple[int, bytes] | None
    """Index of the last mark that was applied here, and the digest there, until somebody takes it."""

    def quarantined(self, member: int) -> bool:
        """Whether the state of `member` is known to differ from what a majority has."""


class AuditMachine(Protocol):
    """A machine whose members compare their states. (docs/explanation/alarms.md)"""

    @property
    def alarms(self) -> Alarms: ...
    def hash(self) -> bytes:
        """A digest of all that was applied."""

    def audit_mark_command(self, term: int, members: int) -> bytes:
        """The command with which the leader of `term` asks `members` members for their digests."""

    def audit_report_command(self, member: int, index: int, digest: bytes) -> bytes: ...


def is_audited(machine: object) -> TypeGuard[AuditMachine]:
    names = ("alarms", "hash", "audit_mark_command", "audit_report_command")
    return all(hasattr(machine, name) for name in names)


class GuardedMachine(Protocol):
    """A machine that knows who may change the membership of its group."""

    def refuse_operator(self, user: str) -> str:
        """Why `user` (empty: nobody in particular) may not: "no_user", "unknown_user", "not_permitted"; or ""."""


def is_guarded(machine: object) -> TypeGuard[GuardedMachine]:
    return hasattr(machine, "refuse_operator")


@runtime_checkable
class TidyMachine(Protocol):
    """A machine that has work that is no part of its state: freeing the space of what is compacted."""

    @property
    def purging(self) -> bool:
        """Whether there is some."""

    def compact_some(self, entries: int) -> bool:
        """Do some of it; whether some is left. No result and no digest depends on it."""
