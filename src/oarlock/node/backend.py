"""A node as the API sees it (`oarlock.api.backend.Backend`, which it satisfies without importing it)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, cast

from oarlock.errors import RaftError
from oarlock.node.ids import added_member_id
from oarlock.node.replica.reconfigure import AddMember, PromoteMember, RemoveMember, UpdateMember
from oarlock.node.runtime import Node
from oarlock.raft.types import MemberRole

Done = Callable[[RaftError | None], None]

SECOND: Final = 1_000_000_000


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
    raft_index: int
    raft_applied_index: int
    is_learner: bool
    db_size: int
    db_size_in_use: int
    errors: tuple[str, ...] = ()


class Sized(Protocol):
    """What the status asks of a machine."""

    def size(self) -> int: ...
    def size_in_use(self) -> int: ...


class NodeBackend:
    """See `oarlock.api.backend.Backend`. The methods that every request uses are the node's own."""

    def __init__(self, node: Node, *, strict_reconfig_check: bool = True) -> None:
        self.node = node
        self.cluster_id = node.cluster_id
        self.member_id = node.member_id
        self.propose: Callable[[bytes, Callable[[object], None]], None] = node.propose
        self.read_barrier: Callable[[Callable[[RaftError | None], None]], None] = node.read_barrier
        self.flush_soon: Callable[[Callable[[], None]], None] = node.flush_soon
        self.ask_leases: Callable[[Sequence[int], Sequence[int], Callable[[object], None]], None] = node.ask_leases
        self.capture: Callable[[Callable[[object], None]], None] = node.capture
        self._raft = node.member.raft
        timing = node.member.raft.config
        ticks = timing.election_timeout_ns // timing.heartbeat_interval_ns
        self.lease_ttl_min = -(-(3 * ticks // 2 * timing.heartbeat_interval_ns) // SECOND)
        """Seconds. etcd's rule, rounded up: one and a half election timeouts, in heartbeats."""
        self._strict = strict_reconfig_check

    @property
    def term(self) -> int:
        return self._raft.current_term

    @property
    def quarantined(self) -> bool:
        return self.node.member.quarantined

    @property
    def kv(self) -> object:
        """The member's machine, for reads only."""
        return self.node.member.machine

    def members(self) -> list[MemberView]:
        """A member that will vote as soon as it has caught up is no learner here, as it is none in etcd."""
        configuration = self._raft.configuration
        return [
            MemberView(node, record.name, record.peer_urls, record.client_urls, self._learns(node))
            for node, record in self.node.records().items()
            if node in configuration.voters or node in configuration.learners  # one that is leaving is gone
        ]

    def _learns(self, node: int) -> bool:
        """Whether the member is here to learn only. One that joins does, until it knows better."""
        info = self._raft.configuration.member(node)
        return info is None or (info.role is MemberRole.LEARNER and not info.promote_when_ready)

    def status(self) -> StatusView:
        raft = self._raft
        machine = cast(Sized | None, self.node.member.machine)
        node = self.node
        errors: list[str] = []
        if raft.leader_id == 0:
            errors.append("etcdserver: no leader")
        if node.metrics.disk_sick:
            errors.append("oarlock: the disk is slow")
        if node.halted.done():
            errors.append(f"oarlock: {node.halted.result()}")
        return StatusView(
            leader=raft.leader_id,
            raft_term=raft.current_term,
            raft_index=raft.commit_index,
            raft_applied_index=node.member.applied_index,
            is_learner=self._learns(node.member_id),
            db_size=machine.size() if machine is not None else 0,
            db_size_in_use=machine.size_in_use() if machine is not None else 0,
            errors=tuple(errors),
        )

    def add_member(self, peer_urls: tuple[str, ...], learner: bool, asker: str, done: Done) -> int:
        member = added_member_id(self.cluster_id, peer_urls, time.time_ns())
        role = MemberRole.LEARNER if learner else MemberRole.VOTER
        self.node.reconfigure(AddMember(member, peer_urls, int(role), self._strict, asker), done)
        return member

    def remove_member(self, member: int, asker: str, done: Done) -> None:
        self.node.reconfigure(RemoveMember(member, self._strict, asker), done)

    def update_member(self, member: int, peer_urls: tuple[str, ...], asker: str, done: Done) -> None:
        self.node.reconfigure(UpdateMember(member, peer_urls, asker), done)

    def promote_member(self, member: int, asker: str, done: Done) -> None:
        self.node.reconfigure(PromoteMember(member, self._strict, asker), done)

    def transfer_leadership(self, target: int, done: Callable[[RaftError | None], None]) -> None:
        self.node.transfer_leadership(target, done)
