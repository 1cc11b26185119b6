"""What members say to each other. Every message carries its sender's term; the envelope (`Send`, `MessageReceived`)
carries who, the frame carries the group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from oarlock.raft.types import Entry, Index, NodeId, SnapshotMeta, Term


@dataclass(init=False, slots=True, kw_only=True, unsafe_hash=True)
class RequestVote:
    """A candidate asks for a vote. (Raft 5.2, 5.4.1; diss. 9.6 for `pre_vote`)

    With `pre_vote` the term is the one that the candidate *would* use, and nobody changes state for it. `transfer` is
    set when the present leader asked for this election: voters then do not protect that leader (diss. 4.2.3, 3.10).
    """

    term: Final[Term]
    last_log_index: Final[Index]
    last_log_term: Final[Term]
    pre_vote: Final[bool]
    transfer: Final[bool]

    def __init__(
        self, *, term: Term, last_log_index: Index, last_log_term: Term, pre_vote: bool = False, transfer: bool = False
    ) -> None:
        self.term = term
        self.last_log_index = last_log_index
        self.last_log_term = last_log_term
        self.pre_vote = pre_vote
        self.transfer = transfer


@dataclass(init=False, slots=True, kw_only=True, unsafe_hash=True)
class RequestVoteReply:
    """`term` is the request's term when a pre-vote is granted, and the responder's own in every other case."""

    term: Final[Term]
    granted: Final[bool]
    pre_vote: Final[bool]

    def __init__(self, *, term: Term, granted: bool, pre_vote: bool = False) -> None:
        self.term = term
        self.granted = granted
        self.pre_vote = pre_vote


@dataclass(init=False, slots=True, kw_only=True, unsafe_hash=True)
class AppendEntries:
    """Replicate `entries` after `(prev_log_term, prev_log_index)`. (Raft 5.3). Entries are contiguous."""

    term: Final[Term]
    prev_log_index: Final[Index]
    prev_log_term: Final[Term]
    entries: Final[tuple[Entry, ...]]
    commit_index: Final[Index]

    def __init__(
        self, *, term: Term, prev_log_index: Index, prev_log_term: Term, entries: tuple[Entry, ...], commit_index: Index
    ) -> None:
        self.term = term
        self.prev_log_index = prev_log_index
        self.prev_log_term = prev_log_term
        self.entries = entries
        self.commit_index = commit_index


@dataclass(init=False, slots=True, kw_only=True, unsafe_hash=True)
class AppendEntriesReply:
    """`index` is the last index that this very request verified (success), or its `prev_log_index` (refusal).

    A refusal carries in `hint_index` and `hint_term` the follower's best guess of where the logs may agree: its largest
    index not above `prev_log_index` whose term is not above `prev_log_term`, so that whole terms are skipped.
    """

    term: Final[Term]
    success: Final[bool]
    index: Final[Index]
    hint_index: Final[Index]
    hint_term: Final[Term]

    def __init__(self, *, term: Term, success: bool, index: Index, hint_index: Index = 0, hint_term: Term = 0) -> None:
        self.term = term
        self.success = success
        self.index = index
        self.hint_index = hint_index
        self.hint_term = hint_term


@dataclass(init=False, slots=True, kw_only=True, unsafe_hash=True)
class Heartbeat:
    """Sent on a timer and for reads; never waits for a disk. (Raft 5.2; diss. 6.4)

    `commit_index` is never above what the receiver is known to hold. `round` is the leader's own counter: the echo of a
    round proves that the leader still led after it began that round. `sent` is the leader's clock in ns, echoed for its
    lease. `lease` says that this leader may serve reads from a lease, so its followers keep to it strictly.
    """

    term: Final[Term]
    commit_index: Final[Index]
    round: Final[int]
    sent: Final[int]
    lease: Final[bool]

    def __init__(self, *, term: Term, commit_index: Index, round: int, sent: int = 0, lease: bool = False) -> None:
        self.term = term
        self.commit_index = commit_index
        self.round = round
        self.sent = sent
        self.lease = lease


@dataclass(init=False, slots=True, kw_only=True, unsafe_hash=True)
class HeartbeatReply:
    term: Final[Term]
    round: Final[int]
    sent: Final[int]

    def __init__(self, *, term: Term, round: int, sent: int = 0) -> None:
        self.term = term
        self.round = round
        self.sent = sent


@dataclass(init=False, slots=True, kw_only=True, unsafe_hash=True)
class InstallSnapshot:
    """One chunk of a snapshot, at most 1 MiB. (Raft Fig. 13)"""

    term: Final[Term]
    snapshot: Final[SnapshotMeta]
    offset: Final[int]
    data: Final[bytes]
    done: Final[bool]

    def __init__(self, *, term: Term, snapshot: SnapshotMeta, offset: int, data: bytes, done: bool) -> None:
        self.term = term
        self.snapshot = snapshot
        self.offset = offset
        self.data = data
        self.done = done


@dataclass(init=False, slots=True, kw_only=True, unsafe_hash=True)
class InstallSnapshotReply:
    """`next_offset` is the byte that the receiver wants next; `installed` says that it no longer needs this
    snapshot."""

    term: Final[Term]
    snapshot_index: Final[Index]
    next_offset: Final[int]
    installed: Final[bool]

    def __init__(self, *, term: Term, snapshot_index: Index, next_offset: int, installed: bool = False) -> None:
        self.term = term
        self.snapshot_index = snapshot_index
        self.next_offset = next_offset
        self.installed = installed


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeoutNow:
    """The leader asks its successor to begin an election at once. (diss. 3.10)"""

    term: Term


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferLeadership:
    """A member passes a request to transfer leadership to `target` on to the leader."""

    term: Term
    target: NodeId


@dataclass(init=False, slots=True, kw_only=True, unsafe_hash=True)
class ReadIndex:
    """A member asks the leader for a read index for all the reads that it has queued. (diss. 6.4)

    `request` is the asker's own counter, never used twice by it. `confirmed`: one of them must not be answered by the
    leader's lease.
    """

    term: Final[Term]
    request: Final[int]
    confirmed: Final[bool]

    def __init__(self, *, term: Term, request: int, confirmed: bool = False) -> None:
        self.term = term
        self.request = request
        self.confirmed = confirmed


@dataclass(init=False, slots=True, kw_only=True, unsafe_hash=True)
class ReadIndexReply:
    """`index` is 0 when the receiver does not lead, or cannot say yet; the asker tries again."""

    term: Final[Term]
    request: Final[int]
    index: Final[Index]

    def __init__(self, *, term: Term, request: int, index: Index) -> None:
        self.term = term
        self.request = request
        self.index = index


@dataclass(init=False, slots=True, kw_only=True, unsafe_hash=True)
class Propose:
    """Proposals that a member passes on to the leader *of this term*; any other leader refuses them. (Raft 8)

    `payload` is one group of commands as the sender encoded it; `request` is the sender's counter, for the refusal.
    """

    term: Final[Term]
    request: Final[int]
    payload: Final[bytes]

    def __init__(self, *, term: Term, request: int, payload: bytes) -> None:
        self.term = term
        self.request = request
        self.payload = payload


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposeReply:
    """A refusal (acceptance shows in the log): nothing of `request` was or will be appended. `reason` is a short word:
    `not_leader`, `overloaded`, `transferring`."""

    term: Term
    request: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseAsk:
    """A member passes its clients' questions about leases on to the leader: renew these, and tell of those how long
    they have. `request` is the asker's own counter. Asking again does no harm."""

    term: Term
    request: int
    renew: tuple[int, ...] = ()
    query: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseAnswer:
    """`renewed` has the TTL in seconds for each of `renew`, 0 for a lease that is not known; `remaining` the rest of
    the TTL in seconds for each of `query`, -1 for one that is not known. With a `reason` (`not_leader`) there is
    neither."""

    term: Term
    request: int
    renewed: tuple[int, ...] = ()
    remaining: tuple[int, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeMembers:
    """A change of membership that a member passes on to the leader *of this term*; nobody else acts on it. (diss. 4)

    `payload` is one change as the sender encoded it; `request` is the sender's counter: the leader takes each once.
    """

    term: Term
    request: int
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeMembersReply:
    """`reason` is empty once the change is committed and in force, else a short word: then nothing was changed."""

    term: Term
    request: int
    reason: str


Message: TypeAlias = (
    RequestVote
    | RequestVoteReply
    | AppendEntries
    | AppendEntriesReply
    | Heartbeat
    | HeartbeatReply
    | InstallSnapshot
    | InstallSnapshotReply
    | TimeoutNow
    | TransferLeadership
    | ReadIndex
    | ReadIndexReply
    | Propose
    | ProposeReply
    | LeaseAsk
    | LeaseAnswer
    | ChangeMembers
    | ChangeMembersReply
)
