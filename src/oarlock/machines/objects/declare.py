"""`@command` and `@query`: how a plain class says which of its methods are replicated.

A command runs on every member, in the order of the log, and must be deterministic. A query only looks. On an object
that a node holds, calling either goes through the node and gives an awaitable of what the method returns; the types of
the arguments and of the result are those of the method, for people, editors and mypy alike.

Inside a command its own object is plain Python: fields, helper methods, and other commands through `inline`.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Concatenate, Final, Generic, Literal, ParamSpec, Protocol, Self, TypeVar, cast, overload

M_contra = TypeVar("M_contra", contravariant=True)
M = TypeVar("M")
P = ParamSpec("P")
R = TypeVar("R")

BINDING: Final = "_oarlock_binding"
"""The attribute by which an object knows the node that holds it. Never part of its state."""

Consistency = Literal["linearizable", "lease", "local"]


@dataclass(frozen=True, slots=True)
class bounded:
    """A read of this member's state, if it has been in step with a leader within the last `max_age` seconds."""

    max_age: float

    def __post_init__(self) -> None:
        if not self.max_age > 0:
            raise ValueError(f"bounded(max_age={self.max_age!r}): give a positive number of seconds")


def check_timeout(timeout: float | None) -> float | None:
    """A time limit as it was given. Raises `TypeError` or `ValueError` for what would upset every timer of the loop."""
    if timeout is None:
        return None
    if not isinstance(timeout, int | float):
        raise TypeError(f"timeout={timeout!r}: give seconds as a number, or None")
    if timeout != timeout:
        raise ValueError("timeout=nan: give seconds as a number, or None")
    return timeout


def whole(value: object, what: str) -> None:
    """Raises `TypeError` or `ValueError` unless `value` is an int of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{what}: it must be a whole number")
    if value < 1:
        raise ValueError(f"{what}: it must be at least 1")


class NotAttached(RuntimeError):
    """A command or query was called on an object that no node holds."""


class Binding(Protocol):
    """A node, seen from the calls on an object that it holds. `path` leads from the node's machine to the object."""

    def call_command(self, path: str, declared: AnyCommand, args: tuple[Any, ...], kwargs: dict[str, Any],
                     timeout: float | None, retry_safe: bool) -> Any: ...  # fmt: skip

    def call_query(self, target: object, declared: AnyQuery, args: tuple[Any, ...], kwargs: dict[str, Any],
                   timeout: float | None, consistency: Consistency | bounded) -> Any: ...  # fmt: skip

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do something that takes several calls: gives an awaitable, or on a node for threads the result."""

    @property
    def calls(self) -> Any:
        """The node's calls from its own event loop, whatever face the program sees."""

    def here(self) -> bool:
        """Whether this is the thread on which the node applies commands."""


class Applying(Protocol):
    """The machine around an object."""

    @property
    def context(self) -> object | None:
        """Not None while a command runs."""


@dataclass(slots=True)
class Attached:
    """The value of the attribute `BINDING`: where an object stands in which machine, and the node that holds it."""

    machine: Applying
    path: str
    binding: Binding | None = None
    memory: dict[str, Any] = field(default_factory=dict)
    """What a part remembers on this member only, between its calls. No part of the state."""

    def executing(self) -> bool:
        """Whether the caller is part of a command that is being applied."""
        return self.machine.context is not None and (self.binding is None or self.binding.here())


def _outside(instance: object, name: str) -> tuple[Binding, str]:
    """The node that holds an object, and its place there. Raises `NotAttached`, or `RuntimeError` inside a command."""
    found = getattr(instance, BINDING, None)
    if isinstance(found, Attached):
        if found.executing():
            raise RuntimeError(
                f"{name} was called inside a command: use {name}.inline(...) there, which runs it as a part of that"
            )
        if found.binding is not None:
            return found.binding, found.path
    raise NotAttached(
        f"this {type(instance).__qualname__} belongs to no node: start one with `async with Node(...)`, or run the "
        "method here and now with `.inline(...)`"
    )


class CommandCall(Generic[P, R]):
    """A command of one object, ready to be called."""

    __slots__ = ("_instance", "_declared", "_timeout", "_retry_safe")

    def __init__(
        self, instance: object, declared: AnyCommand, timeout: float | None = None, retry_safe: bool = False
    ) -> None:
        self._instance = instance
        self._declared = declared
        self._timeout = check_timeout(timeout)
        self._retry_safe = retry_safe

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
        """Replicate the command and give what it returned. What it raised is raised here, once.

        Raises a `RaftError` if it could not be done, whose `outcome` says whether it may have run, and `Unencodable`,
        before anything is sent, for arguments that cannot be replicated.
        """
        binding, path = _outside(self._instance, self._declared.name)
        result = binding.call_command(path, self._declared, args, kwargs, self._timeout, self._retry_safe)
        return cast("Awaitable[R]", result)

    def options(self, *, timeout: float | None = None, retry_safe: bool = False) -> CommandCall[P, R]:
        """The same command with a time limit in seconds, and with repetition: with `retry_safe` a call whose outcome is
        unknown is sent again within that time, and a client session sees to it that it is executed once."""
        return CommandCall(self._instance, self._declared, timeout, retry_safe)

    def inline(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the method here and now, without replication: inside a command, or on an object that no node holds."""
        found = getattr(self._instance, BINDING, None)
        if found is not None and not found.executing():
            raise RuntimeError(
                f"{self._declared.name}.inline was called outside a command: it would change this member's copy only"
            )
        return cast("R", self._declared.function(self._instance, *args, **kwargs))


class QueryCall(Generic[P, R]):
    """A query of one object, ready to be called."""

    __slots__ = ("_instance", "_declared", "_timeout", "_consistency")

    def __init__(
        self,
        instance: object,
        declared: AnyQuery,
        timeout: float | None = None,
        consistency: Consistency | bounded | None = None,
    ) -> None:
        self._instance = instance
        self._declared = declared
        self._timeout = check_timeout(timeout)
        self._consistency: Consistency | bounded = declared.consistency if consistency is None else consistency

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
        """Look, with the promise of the query's consistency (linearizable unless it was declared otherwise).

        Raises a `RaftError` if the promise could not be kept in time; nothing was read then.
        """
        binding, _ = _outside(self._instance, self._declared.name)
        result = binding.call_query(self._instance, self._declared, args, kwargs, self._timeout, self._consistency)
        return cast("Awaitable[R]", result)

    def options(
        self, *, timeout: float | None = None, consistency: Consistency | bounded | None = None
    ) -> QueryCall[P, R]:
        """The same query with a time limit in seconds, or another promise: `"linearizable"`, `"lease"`,
        `bounded(max_age)` or `"local"`."""
        return QueryCall(
            self._instance, self._declared, timeout, self._consistency if consistency is None else consistency
        )

    def inline(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the method here and now on this member's copy: inside a command, or for a look that promises nothing."""
        return cast("R", self._declared.function(self._instance, *args, **kwargs))


class Command(Generic[M_contra, P, R]):
    """A method declared with `@command`."""

    def __init__(
        self, function: Callable[Concatenate[M_contra, P], R], since: int, instead_of: str, atomic: bool | None
    ) -> None:
        _check_function(function, "command")
        if since < 1:
            raise ValueError(f"@command(since={since}): code versions begin at 1")
        if instead_of and since < 2:
            raise ValueError(f"@command(instead_of={instead_of!r}) needs since=2 or later: from when on it is used")
        self.function: Callable[..., R] = function
        self.name = function.__name__
        self.since = since
        self.instead_of = instead_of
        self._atomic = atomic
        self.atomic = atomic is not False
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        if self._atomic is None:
            self.atomic = bool(vars(owner).get("atomic_commands", True))

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: M_contra, owner: type) -> CommandCall[P, R]: ...
    def __get__(self, instance: M_contra | None, owner: type) -> Self | CommandCall[P, R]:
        return self if instance is None else CommandCall(instance, self)


class Query(Generic[M_contra, P, R]):
    """A method declared with `@query`."""

    def __init__(self, function: Callable[Concatenate[M_contra, P], R], consistency: Consistency | bounded) -> None:
        _check_function(function, "query")
        self.function: Callable[..., R] = function
        self.name = function.__name__
        self.consistency = check_consistency(consistency)
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: M_contra, owner: type) -> QueryCall[P, R]: ...
    def __get__(self, instance: M_contra | None, owner: type) -> Self | QueryCall[P, R]:
        return self if instance is None else QueryCall(instance, self)


AnyCommand = Command[Any, ..., Any]
AnyQuery = Query[Any, ..., Any]


@overload
def command(function: Callable[Concatenate[M, P], R], /) -> Command[M, P, R]: ...
@overload
def command(
    *, since: int = 1, instead_of: str = "", atomic: bool | None = None
) -> Callable[[Callable[Concatenate[M, P], R]], Command[M, P, R]]: ...
def command(
    function: Callable[Concatenate[M, P], R] | None = None,
    /,
    *,
    since: int = 1,
    instead_of: str = "",
    atomic: bool | None = None,
) -> Command[M, P, R] | Callable[[Callable[Concatenate[M, P], R]], Command[M, P, R]]:
    """Declare a method that changes the state. It runs on every member, so it must depend on nothing but the state, its
    arguments and `self.context`.

    `since`: the code version (`code_version` of the class) that brought it; it can be called once every member runs
    that version. `instead_of`: the name of the command whose calls this method takes over from then on.

    `atomic`: if it raises, what it had changed is put back. That is so unless `atomic=False` is said here, or
    `atomic_commands = False` in its class; it costs a copy, before each call, of the attributes that the method names.
    Without it the method must look before it changes anything. To change this is to change what the command does.
    """
    if function is not None:
        return Command(function, since, instead_of, atomic)
    return lambda function: Command(function, since, instead_of, atomic)


@overload
def query(function: Callable[Concatenate[M, P], R], /) -> Query[M, P, R]: ...
@overload
def query(
    *, consistency: Consistency | bounded = "linearizable"
) -> Callable[[Callable[Concatenate[M, P], R]], Query[M, P, R]]: ...
def query(
    function: Callable[Concatenate[M, P], R] | None = None, /, *, consistency: Consistency | bounded = "linearizable"
) -> Query[M, P, R] | Callable[[Callable[Concatenate[M, P], R]], Query[M, P, R]]:
    """Declare a method that only looks. `consistency` says what its answer promises unless a call says otherwise:

    - `"linearizable"`: everything that had been acknowledged anywhere before the call is seen (Raft 8, diss. 6.4);
    - `"lease"`: the same without a round of messages while the leader's lease holds, which trusts the clocks' drift;
    - `bounded(max_age)`: this member's state, at most so many seconds behind;
    - `"local"`: this member's state, however old.
    """
    if function is not None:
        return Query(function, consistency)
    return lambda function: Query(function, consistency)


def check_consistency(consistency: Consistency | bounded) -> Consistency | bounded:
    """Raises `ValueError` for a word that is none."""
    if isinstance(consistency, bounded) or consistency in ("linearizable", "lease", "local"):
        return consistency
    raise ValueError(f"consistency is {consistency!r}: it must be 'linearizable', 'lease', 'local' or bounded(max_age)")


def _check_function(function: object, what: str) -> None:
    if not inspect.isfunction(function):
        raise TypeError(f"@{what} is for methods of a class, not for {function!r}")
    if any(
        is_one(function)
        for is_one in (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    ):
        raise TypeError(
            f"{function.__qualname__} is a coroutine or generator: a {what} runs in one step on every member; "
            "wait for things before you call it"
        )
