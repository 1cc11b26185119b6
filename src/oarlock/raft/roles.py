"""The four roles. State of one role lives in that role, so that a follower has no `match_index` to misuse."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from oarlock.raft.progress import Progress
from oarlock.raft.types import Index, NodeId


@dataclass(slots=True)
class Follower:
    """Also a learner, a witness, and a member that knows no leader."""


@dataclass(slots=True)
class PreCandidate:
    """Asks whether it could win before it disturbs anybody. Its term is unchanged. (diss. 9.6)"""

    votes: dict[NodeId, bool] = field(default_factory=dict)


@dataclass(slots=True)
class Candidate:
    """Its own vote counts only once it is durable."""

    votes: dict[NodeId, bool] = field(default_factory=dict)
    transfer: bool = False


@dataclass(frozen=True, slots=True)
class Read:
    """A read waiting for an index: of this member (`peer` 0) or asked for by `peer`, whose counter `token` then is."""

    peer: NodeId
    token: int
    confirmed: bool = False  # not by a lease


@dataclass(slots=True)
class Transfer:
    """The target has an election timeout to catch up, then one to be elected; after `deadline` it is given up."""

    target: NodeId
    deadline: int
    sent_at: int = -1  # when TimeoutNow was last sent; -1: the target is still catching up


@dataclass(slots=True)
class Leader:
    """`match_index` and `next_index` are in `progress`, one for every other member; `departing` are removed members
    that still have to learn of it."""

    first_index: Index  # of the no-op that opened the term
    elected_at: int
    progress: dict[NodeId, Progress] = field(default_factory=dict)
    departing: dict[NodeId, tuple[Progress, int]] = field(default_factory=dict)
    heartbeat_at: int = 0
    quorum_check_at: int = 0
    notice_at: int = -1  # when idle followers are told the commit index; -1: they all know
    round: int = 0  # of heartbeats; grows with each read round
    reads_waiting: list[Read] = field(default_factory=list)  # no round begun for them yet
    reads_round: list[Read] = field(default_factory=list)  # of the round under way
    reads_index: Index = 0
    reads_round_number: int = 0
    transfer: Transfer | None = None
    lease_void: bool = False  # a TimeoutNow has left: it may be obeyed at any later time, so no lease in this term
    handback_at: int = 0


Role: TypeAlias = Follower | PreCandidate | Candidate | Leader
