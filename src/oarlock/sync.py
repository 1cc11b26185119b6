"""Oarlock for threads and programs without an event loop: the names of `oarlock`, with blocking calls.

from oarlock.sync import Node, StateMachine, command, query
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from oarlock.embed.status import MemberStatus, NodeStatus
from oarlock.embed.sync import Node
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
from oarlock.machines.objects.declare import Consistency, NotAttached, bounded
from oarlock.machines.objects.machine import ApplyContext, CommandError, NotDeterministic, StateMachine
from oarlock.machines.objects.values import Unencodable

if TYPE_CHECKING:
    M_contra = TypeVar("M_contra", contravariant=True)
    M = TypeVar("M")
    P = ParamSpec("P")
    R = TypeVar("R")

    class CommandCall(Generic[P, R]):
        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
        def options(self, *, timeout: float | None = None, retry_safe: bool = False) -> CommandCall[P, R]: ...
        def inline(self, *args: P.args, **kwargs: P.kwargs) -> R: ...

    class QueryCall(Generic[P, R]):
        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
        def options(
            self, *, timeout: float | None = None, consistency: Consistency | bounded | None = None
        ) -> QueryCall[P, R]: ...
        def inline(self, *args: P.args, **kwargs: P.kwargs) -> R: ...

    class Command(Generic[M_contra, P, R]):
        @overload
        def __get__(self, instance: None, owner: type) -> Self: ...
        @overload
        def __get__(self, instance: M_contra, owner: type) -> CommandCall[P, R]: ...
        def __get__(self, instance: Any, owner: type) -> Any: ...

    class Query(Generic[M_contra, P, R]):
        @overload
        def __get__(self, instance: None, owner: type) -> Self: ...
        @overload
        def __get__(self, instance: M_contra, owner: type) -> QueryCall[P, R]: ...
        def __get__(self, instance: Any, owner: type) -> Any: ...

    @overload
    def command(function: Callable[Concatenate[M, P], R], /) -> Command[M, P, R]: ...
    @overload
    def command(
        *, since: int = 1, instead_of: str = ""
    ) -> Callable[[Callable[Concatenate[M, P], R]], Command[M, P, R]]: ...
    def command(*args: Any, **kwargs: Any) -> Any: ...

    @overload
    def query(function: Callable[Concatenate[M, P], R], /) -> Query[M, P, R]: ...
    @overload
    def query(
        *, consistency: Consistency | bounded = "linearizable"
    ) -> Callable[[Callable[Concatenate[M, P], R]], Query[M, P, R]]: ...
    def query(*args: Any, **kwargs: Any) -> Any: ...

else:
    from oarlock.machines.objects.declare import command, query

__all__ = [
    "ApplyContext", "CommandError", "ConfigurationError", "Consistency", "DeadlineExceeded", "LeadershipLost",
    "MemberStatus", "NoLeader", "Node", "NodeStatus", "NotAttached", "NotDeterministic", "NotLeader", "Outcome",
    "Overloaded", "ProposalDropped", "RaftError", "Rejected", "StateMachine", "Stopped", "StorageError", "Unencodable",
    "bounded", "command", "query",
]  # fmt: skip
