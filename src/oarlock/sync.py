"""Oarlock for threads and programs without an event loop: the names of `oarlock`, with blocking calls.

    from oarlock.sync import Node, StateMachine, command, query

Their types for this face stand in `sync.pyi`, made by tools/build_sync_stubs.py. At run time the machines are the same
classes: what is an awaitable on `oarlock.Node` is a result on this `Node`.
"""

from __future__ import annotations

from oarlock.embed.collections import (
    LeasedDict,
    QueueFull,
    ReplicatedCounter,
    ReplicatedDict,
    ReplicatedList,
    ReplicatedPriorityQueue,
    ReplicatedQueue,
    ReplicatedSet,
)
from oarlock.embed.hold import Held
from oarlock.embed.holders import LeaseLost
from oarlock.embed.lease import BlockingLease as Lease
from oarlock.embed.locks import Barrier, Election, Lock, RWLock, Semaphore
from oarlock.embed.status import MemberStatus, NodeStatus
from oarlock.embed.sync import Leading, Node
from oarlock.embed.tools import IdGenerator, RateLimiter, Schedule
from oarlock.errors import (
    ConfigurationError,
    DeadlineExceeded,
    LeadershipLost,
    NoLeader,
    NotLeader,
    Outcome,
    Overloaded,
    ProposalDropped,
    RaftError,
    Rejected,
    Stopped,
    StorageError,
)
from oarlock.machines.objects.declare import Consistency, NotAttached, bounded, command, query
from oarlock.machines.objects.machine import ApplyContext, CommandError, HalfMadeChange, NotDeterministic, StateMachine
from oarlock.machines.objects.values import Unencodable

__all__ = [
    "ApplyContext", "Barrier", "CommandError", "ConfigurationError", "Consistency", "DeadlineExceeded", "Election",
    "HalfMadeChange", "Held", "IdGenerator", "Leading", "LeadershipLost", "Lease", "LeaseLost", "LeasedDict", "Lock",
    "MemberStatus", "NoLeader", "Node", "NodeStatus", "NotAttached", "NotDeterministic", "NotLeader", "Outcome",
    "Overloaded", "ProposalDropped", "QueueFull", "RWLock", "RaftError", "RateLimiter", "Rejected",
    "ReplicatedCounter", "ReplicatedDict", "ReplicatedList", "ReplicatedPriorityQueue", "ReplicatedQueue",
    "ReplicatedSet", "Schedule", "Semaphore", "StateMachine", "Stopped", "StorageError", "Unencodable", "bounded",
    "command", "query",
]  # fmt: skip
