"""Everything a person needs to see of one member, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from oarlock.raft.types import Configuration, Index, NodeId, Term


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStatus:
    """A leader's view of one follower. `silent_ns` is how long nothing was heard from it."""

    id: NodeId
    state: str
    match_index: Index
    next_index: Index
    inflight_messages: int
    inflight_bytes: int
    silent_ns: int
    departing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RaftStatus:
    id: NodeId
    role: str  # follower, learner, witness, precandidate, candidate, leader
    term: Term
    voted_for: NodeId
    leader_id: NodeId
    first_index: Index
    last_index: Index
    last_term: Term
    stable_index: Index
    commit_index: Index
    last_applied: Index
    snapshot_index: Index
    configuration: Configuration
    configuration_index: Index
    configuration_committed: bool
    peers: tuple[PeerStatus, ...]  # empty unless leading
    reads_pending: int
    uncommitted_bytes: int
    transfer_target: NodeId
    lease_until_ns: int  # on the leader's own clock; 0: no lease
    leading_since_ns: int  # on the leader's own clock; 0: it does not lead
    disk_sick: bool
    ignored_messages: int
