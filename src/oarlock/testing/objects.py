"""A workload for a program's own object: calls of its methods in place of bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, ParamSpec, TypeVar

from oarlock.machines.objects.declare import Command, Query
from oarlock.machines.objects.machine import ANY_TERM, END, RENEW, TICK, ObjectMachine
from oarlock.testing.workload import Choose, Workload

M = TypeVar("M")
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Call:
    """A method and its arguments. Made by `calling`."""

    declared: Command[Any, ..., Any] | Query[Any, ..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    path: str = ""


def calling(method: Command[M, P, R] | Query[M, P, R], /, *args: P.args, **kwargs: P.kwargs) -> Call:
    """`calling(Counter.add, 5)`: the call of a `@command` or `@query`, checked by types as the call itself would be."""
    return Call(method, args, kwargs)


@dataclass(frozen=True, slots=True)
class HolderEvent:
    """What happens to a lease that locks and the like hang on. Made by `lease_granted`, `lease_renewed`,
    `lease_revoked` and `time_passes`."""

    name: str
    args: tuple[Any, ...]


def lease_granted(name: str, ttl: float) -> HolderEvent:
    """A lease (a holder, in the words of `StateMachine.holder_lives`) begins, for `ttl` seconds."""
    return HolderEvent(RENEW, (name, round(ttl * 1e9), True))


def lease_renewed(name: str, ttl: float) -> HolderEvent:
    """Its node was heard of."""
    return HolderEvent(RENEW, (name, round(ttl * 1e9), False))


def lease_revoked(name: str) -> HolderEvent:
    """It is given up."""
    return HolderEvent(END, (name,))


def time_passes(seconds: float) -> HolderEvent:
    """The clock by which leases end goes on; at most one second at a time, as that of a leader."""
    return HolderEvent(TICK, (ANY_TERM, round(seconds * 1e9)))


class ObjectWorkload(Workload):
    """As `Workload`, for a class with `@command` methods.

    @simulated(seeds=50)
    class TestCounter(ObjectWorkload):
        make = Counter

        def call(self, choose): return calling(Counter.add, choose.below(5))
    """

    make: ClassVar[Callable[[], object]]
    """Makes a fresh object: the class, or a `staticmethod`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "make"):
            cls.machine = staticmethod(lambda: ObjectMachine(cls.make()))

    def call(self, choose: Choose) -> Call | HolderEvent:
        """One call of a command that a client might make, or something that happens to a lease."""
        raise NotImplementedError(f"{type(self).__name__} must say in `call` what clients call")

    def ask(self, choose: Choose) -> Call | None:
        """One call of a query, if there are any worth asking."""
        return None

    def holds(self, target: Any) -> None:
        """Raise `AssertionError` if the object is in a state that must not be. Called after every entry."""

    # -- as the simulator wants it

    def command(self, choose: Choose) -> bytes:
        call = self.call(choose)
        if isinstance(call, HolderEvent):
            return self._encoder().codec.encode([call.name, list(call.args)])
        if not isinstance(call.declared, Command):
            raise TypeError(f"call() gave {call.declared.name}, which is no @command")
        return self._encoder().encode_call(call.path, call.declared, call.args, call.kwargs)

    def query(self, choose: Choose) -> Any:
        return self.ask(choose)

    def read(self, machine: Any, query: Any) -> object:
        if query is None:
            return None
        assert isinstance(query, Call)
        return query.declared.function(machine.spec.root, *query.args, **query.kwargs)

    def check(self, machine: Any) -> None:
        self.holds(machine.spec.root)

    def plain(self, result: object) -> object:
        return result

    def _encoder(self) -> ObjectMachine:
        found: ObjectMachine | None = self.__dict__.get("_machine_for_encoding")
        if found is None:
            found = self.__dict__["_machine_for_encoding"] = ObjectMachine(type(self).make())
        return found
