"""What the API needs from a member. The real one is a thin adapter over `node.runtime`; tests use a single-member one.

Everything here is called on the event loop's thread. Completion goes through plain callables, called exactly once and
never from inside the call that passed them: one request costs no task and no future.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from oarlock.errors import RaftError


@dataclass(frozen=True, slots=True)
class MemberView:
    """One member as etcd's Cluster.MemberList shows it."""

    id: int
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    is_learner: bool


@dataclass(frozen=True, slots=True)
class StatusView:
    """This member's state as Maintenance.Status shows it."""

    leader: int
    raft_term: int
    raft_index: int  # commit index
    raft_applied_index: int
    is_learner: bool
    db_size: int
    db_size_in_use: int
    errors: tuple[str, ...] = ()


class Backend(Protocol):
    """One member, seen from the API."""

    cluster_id: int
    member_id: int
    term: int
    """The member's current term (read on every response)."""

    lease_ttl_min: int
    """Seconds that a lease is granted at least."""

    @property
    def kv(self) -> object:
        """The member's `machines.kv.KvMachine`, for reads only."""

    def propose(self, command: bytes, done: Callable[[object], None]) -> None:
        """Replicate one command. `done` gets the machine's result, or a `RaftError` instance.

        Raises `Overloaded` at once when the proposal queue is full. Any member may be asked: proposals are forwarded.
        """

    def read_barrier(self, done: Callable[[RaftError | None], None]) -> None:
        """Call `done(None)` as soon as a read of this member's machine is linearizable (ReadIndex), or
        `done(error)`."""

    def ask_leases(self, renew: Sequence[int], query: Sequence[int], done: Callable[[object], None]) -> None:
        """Renew leases, and ask how long others have, wherever the leader is. `done((renewed, remaining))`: the TTL in
        s for each of `renew`, 0 for one that is unknown or over; the rest of it in s for each of `query`, -1 for such
        a one. Or `done(error)` with a `RaftError`. Raises `Overloaded` at once when too much waits."""

    @property
    def quarantined(self) -> bool:
        """Whether this member's state is known to differ from the others': it must not be read."""

    def capture(self, done: Callable[[object], None]) -> None:
        """`done((capture, term))` with a `machines.kv.capture.KvCapture` that shows at least what is applied now, and
        which the caller closes, and the term of the entry at its index; or `done(error)` with a `RaftError`."""

    def members(self) -> Sequence[MemberView]: ...

    def status(self) -> StatusView: ...

    def transfer_leadership(self, target: int, done: Callable[[RaftError | None], None]) -> None:
        """`done(NotLeader)` when this member does not lead; `done(Rejected("bad_transferee"))` for an unfit target."""

    def add_member(
        self, peer_urls: tuple[str, ...], learner: bool, asker: str, done: Callable[[RaftError | None], None]
    ) -> int:
        """Add a member; returns the id that it will have. `done(None)` once it shows in `members`; any member may be
        asked. `done(Rejected)` for a change that the rules do not allow, with a reason that `errors` knows. `asker` is
        the user who wants it, or empty: whoever decides asks again whether that user may."""

    def remove_member(self, member: int, asker: str, done: Callable[[RaftError | None], None]) -> None:
        """See `add_member`."""

    def update_member(
        self, member: int, peer_urls: tuple[str, ...], asker: str, done: Callable[[RaftError | None], None]
    ) -> None:
        """Give a member other peer URLs. See `add_member`."""

    def promote_member(self, member: int, asker: str, done: Callable[[RaftError | None], None]) -> None:
        """Make a learner a voter. See `add_member`."""

    def flush_soon(self, flush: Callable[[], None]) -> None:
        """Call `flush` once at the end of the present turn (used to write each connection's answers in one go)."""
