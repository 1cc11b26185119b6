"""The one interface between consensus and the world: events go in, effects come out. (docs/explanation/architecture.md)

`effects = raft.handle(events, now)`. An event says what happened; an effect says what the driver must do. Nothing else
crosses. The order of effects in a list is the order in which they must be *begun*; only `Persist.release` waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeAlias

from oarlock.raft.messages import Message
from oarlock.raft.types import Entry, HardState, Index, MemberInfo, NodeId, SnapshotMeta

# ---------------------------------------------------------------- events


@dataclass(init=False, slots=True, unsafe_hash=True)
class MessageReceived:
    sender: Final[NodeId]
    message: Final[Message]

    def __init__(self, sender: NodeId, message: Message) -> None:
        self.sender = sender
        self.message = message


@dataclass(frozen=True, slots=True)
class Proposed:
    """Append one NORMAL entry with this payload, if this member leads; the answer is `Appended` or `ProposalRefused`.

    `token` is the driver's and comes back as it is. `waiting` are other members at which somebody waits for this entry:
    they hear of its commit at once, where an idle follower would hear of it with the next message.
    """

    token: int
    payload: bytes
    waiting: tuple[NodeId, ...] = ()


@dataclass(frozen=True, slots=True)
class ReadRequested:
    """A linearizable read wants an index; the answer is `ReadReady` or `ReadFailed`. One token may stand for many
    reads. `confirmed`: a majority must be heard after it, whatever leases say."""

    token: int
    confirmed: bool = False


@dataclass(init=False, slots=True, unsafe_hash=True)
class Persisted:
    """The fsync of every `Persist` with a ticket up to and including this one has returned without error."""

    ticket: Final[int]

    def __init__(self, ticket: int) -> None:
        self.ticket = ticket


@dataclass(frozen=True, slots=True)
class Applied:
    """The machine has applied everything up to `index`."""

    index: Index


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Nothing happened but time. `handle` looks at its `now` in every call; this event only makes a call."""


class ChangeKind(Enum):
    ADD_VOTER = "add voter"  # also: promote a learner
    ADD_LEARNER = "add learner"  # also: demote a voter
    ADD_WITNESS = "add witness"
    REMOVE = "remove"
    UPDATE = "update"  # priority, incarnation, context; no voting set changes


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """One step of a change; `member.role` is ignored (the kind says it), `member.id` alone counts for REMOVE.

    UPDATE leaves a field alone when its flag is off.
    """

    kind: ChangeKind
    member: MemberInfo
    set_priority: bool = True
    set_incarnation: bool = True
    set_context: bool = True


@dataclass(frozen=True, slots=True)
class ConfigChangeRequested:
    """Change the configuration, all steps at once (diss. 4.3). The answer is `ConfigChanged` or `ConfigRefused`.

    `auto_leave` off: the joint configuration stays until a request with no steps leaves it.
    """

    token: int
    changes: tuple[ConfigChange, ...]
    auto_leave: bool = True


@dataclass(frozen=True, slots=True)
class TransferRequested:
    """Hand leadership to `target` (0: the most suitable voter). The answer is `TransferDone`."""

    token: int
    target: NodeId


@dataclass(frozen=True, slots=True)
class PeerConnected:
    """A connection with a peer was made; its handshake said which disk it has."""

    peer: NodeId
    incarnation: int


@dataclass(frozen=True, slots=True)
class PeerDown:
    """Evidence that a peer's process is gone (its host refused a connection). A hint for liveness; safety never needs
    it."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class SnapshotWritten:
    """The state up to `snapshot.index` is durable: as a file (`has_file`) or in the machine's own store."""

    snapshot: SnapshotMeta


@dataclass(frozen=True, slots=True)
class SnapshotLost:
    """The file of `snapshot`, which was to be sent, is rotten or gone: it must not be asked for again."""

    snapshot: SnapshotMeta


@dataclass(frozen=True, slots=True)
class ChunkWritten:
    """A chunk of a snapshot being received is in its partial file; `next_offset` is what to ask for next.

    `complete`: the whole file is durable under its final name, and its digest is right. A chunk that does not fit gets
    `next_offset` of the partial file as it is; a wrong digest gets 0 (start again).
    """

    sender: NodeId
    snapshot: SnapshotMeta
    next_offset: int
    complete: bool


@dataclass(frozen=True, slots=True)
class Restored:
    """The machine now holds the state of `snapshot`."""

    snapshot: SnapshotMeta


@dataclass(frozen=True, slots=True)
class DiskHealth:
    """The driver's opinion of its own disk; a leader with a sick one hands leadership away."""

    sick: bool


Event: TypeAlias = (
    MessageReceived
    | Proposed
    | ReadRequested
    | Persisted
    | Applied
    | TimePassed
    | ConfigChangeRequested
    | TransferRequested
    | PeerConnected
    | PeerDown
    | SnapshotWritten
    | SnapshotLost
    | ChunkWritten
    | Restored
    | DiskHealth
)

# ---------------------------------------------------------------- effects


@dataclass(init=False, slots=True, unsafe_hash=True)
class Send:
    """Hand `message` to the transport now. It may be lost, repeated or late."""

    to: Final[NodeId]
    message: Final[Message]

    def __init__(self, to: NodeId, message: Message) -> None:
        self.to = to
        self.message = message


@dataclass(init=False, slots=True, unsafe_hash=True)
class Persist:
    """Make this durable, in this order: the snapshot mark, then `hard_state`, then `entries`; only then hand over
    `release` and give back `Persisted(ticket)`. (Raft Fig. 2; diss. 10.2.1)

    Tickets count up by one. A first entry at or below the log's last index cuts the log there. When `snapshot` is set
    and `reset_log` too, every entry of the log is dropped first. A driver may merge several `Persist` into one fsync,
    in order.
    """

    ticket: Final[int]
    hard_state: Final[HardState | None]
    entries: Final[tuple[Entry, ...]]
    snapshot: Final[SnapshotMeta | None]
    reset_log: Final[bool]
    release: Final[tuple[Send, ...]]

    def __init__(
        self,
        ticket: int,
        hard_state: HardState | None = None,
        entries: tuple[Entry, ...] = (),
        snapshot: SnapshotMeta | None = None,
        reset_log: bool = False,
        release: tuple[Send, ...] = (),
    ) -> None:
        self.ticket = ticket
        self.hard_state = hard_state
        self.entries = entries
        self.snapshot = snapshot
        self.reset_log = reset_log
        self.release = release


@dataclass(frozen=True, slots=True)
class Apply:
    """Give these committed entries to the machine, in order, each once; then give back `Applied(last.index)`."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Appended:
    """The proposal is in the leader's log at `(term, index)`; it is not committed yet."""

    token: int
    term: int
    index: Index


@dataclass(frozen=True, slots=True)
class ProposalRefused:
    """Nothing was appended. `reason`: not_leader, overloaded, transferring. `leader` as far as known (0: nobody)."""

    token: int
    reason: str
    leader: NodeId


@dataclass(frozen=True, slots=True)
class ReadReady:
    """A read with this token is linearizable once the machine has applied `index`."""

    token: int
    index: Index


@dataclass(frozen=True, slots=True)
class ReadFailed:
    """No index could be had (no leader for an election timeout, leadership lost, queue full). Nothing was read."""

    token: int
    reason: str


@dataclass(frozen=True, slots=True)
class ConfigChanged:
    """The requested configuration is committed and in force (a joint one with `auto_leave` has been left)."""

    token: int


@dataclass(frozen=True, slots=True)
class ConfigRefused:
    """`reason` is a short word: not_leader, pending, not_ready (own term not committed yet), unknown_member,
    removed_before, already_member, no_voters, too_many, not_caught_up, no_change, lost, not_joint."""

    token: int
    reason: str


@dataclass(frozen=True, slots=True)
class TransferDone:
    """`error` is empty on success, else: not_leader, unknown_member, not_voter, timeout, superseded, self."""

    token: int
    error: str


@dataclass(frozen=True, slots=True)
class StartSnapshot:
    """Somebody needs a snapshot file at or above `index`: capture the machine and write one; give back
    `SnapshotWritten`.

    It is asked for once: a driver that fails to write it (a full disk) tries again by itself.
    """

    index: Index


@dataclass(frozen=True, slots=True)
class SendSnapshot:
    """Read one chunk of `snapshot` from `offset` and send it to `to` as `InstallSnapshot` of `term`."""

    to: NodeId
    term: int
    snapshot: SnapshotMeta
    offset: int


@dataclass(frozen=True, slots=True)
class WriteChunk:
    """Put this chunk into the partial file of `snapshot`; give back `ChunkWritten`."""

    sender: NodeId
    snapshot: SnapshotMeta
    offset: int
    data: bytes
    done: bool


@dataclass(frozen=True, slots=True)
class Restore:
    """Replace the machine's state by that of `snapshot` (its file is durable, its mark too); give back `Restored`."""

    snapshot: SnapshotMeta


@dataclass(frozen=True, slots=True)
class ReleaseLog:
    """Entries at or below `index` are not needed again; storage may drop segments that hold nothing else."""

    index: Index


@dataclass(frozen=True, slots=True)
class MembersChanged:
    """The set of members in force changed: the transport opens and closes connections accordingly."""

    members: tuple[MemberInfo, ...]


@dataclass(frozen=True, slots=True)
class Halt:
    """This member must stop (it was removed, or found what must not be). `reason` is for a person."""

    reason: str


Effect: TypeAlias = (
    Send
    | Persist
    | Apply
    | Appended
    | ProposalRefused
    | ReadReady
    | ReadFailed
    | ConfigChanged
    | ConfigRefused
    | TransferDone
    | StartSnapshot
    | SendSnapshot
    | WriteChunk
    | Restore
    | ReleaseLog
    | MembersChanged
    | Halt
)
