"""Oarlock: Raft for Python, as a library and as a server that speaks etcd's API.

    from oarlock import Node, StateMachine, command, query

Names are loaded when they are first used: importing this module costs nothing. For threads: `oarlock.sync`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
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
    from oarlock.embed.lease import Lease
    from oarlock.embed.locks import Barrier, Election, Lock, RWLock, Semaphore
    from oarlock.embed.node import Node
    from oarlock.embed.status import MemberStatus, NodeStatus
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
    from oarlock.machines.objects.machine import (
        ApplyContext,
        CommandError,
        HalfMadeChange,
        NotDeterministic,
        StateMachine,
    )
    from oarlock.machines.objects.values import Unencodable

_HOMES = {
    "oarlock.embed.collections": (
        "LeasedDict", "QueueFull", "ReplicatedCounter", "ReplicatedDict", "ReplicatedList", "ReplicatedPriorityQueue",
        "ReplicatedQueue", "ReplicatedSet",
    ),
    "oarlock.embed.hold": ("Held",),
    "oarlock.embed.holders": ("LeaseLost",),
    "oarlock.embed.lease": ("Lease",),
    "oarlock.embed.locks": (
        "Barrier",
        "Election",
        "Lock",
        "RWLock",
        "Semaphore",
    ),
    "oarlock.embed.tools": (
        "IdGenerator",
        "RateLimiter",
        "Schedule",
    ),
    "oarlock.embed.node": ("Node",),
    "oarlock.embed.status": ("MemberStatus", "NodeStatus"),
    "oarlock.errors": (
        "ConfigurationError",
        "DeadlineExceeded",
        "LeadershipLost",
        "NoLeader",
        "NotLeader",
        "Outcome",
        "Overloaded",
        "ProposalDropped",
        "RaftError",
        "Rejected",
        "Stopped",
        "StorageError",
    ),
    "oarlock.machines.objects.declare": ("Consistency", "NotAttached", "bounded", "command", "query"),
    "oarlock.machines.objects.machine": (
        "ApplyContext", "CommandError", "HalfMadeChange", "NotDeterministic", "StateMachine",
    ),
    "oarlock.machines.objects.values": ("Unencodable",),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ApplyContext", "Barrier", "CommandError", "ConfigurationError", "Consistency", "DeadlineExceeded", "Election",
    "HalfMadeChange", "Held", "IdGenerator", "LeadershipLost", "Lease", "LeaseLost", "LeasedDict", "Lock",
    "MemberStatus", "NoLeader", "Node", "NodeStatus", "NotAttached", "NotDeterministic", "NotLeader", "Outcome",
    "Overloaded", "ProposalDropped", "QueueFull", "RWLock", "RaftError", "RateLimiter", "Rejected",
    "ReplicatedCounter", "ReplicatedDict", "ReplicatedList", "ReplicatedPriorityQueue", "ReplicatedQueue",
    "ReplicatedSet", "Schedule", "Semaphore", "StateMachine", "Stopped", "StorageError", "Unencodable", "bounded",
    "command", "query",
]  # fmt: skip


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value: object = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
