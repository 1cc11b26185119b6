"""A workload for a program's own object: calls of its methods in place of bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, ParamSpec, TypeVar

from oarlock.machines.objects.declare import Command, Query
from oarlock.machines.objects.machine import ObjectMachine
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

    def call(self, choose: Choose) -> Call:
        """One call of a command that a client might make."""
        raise NotImplementedError(f"{type(self).__name__} must say in `call` what clients call")

    def ask(self, choose: Choose) -> Call | None:
        """One call of a query, if there are any worth asking."""
        return None

    def holds(self, target: Any) -> None:
        """Raise `AssertionError` if the object is in a state that must not be. Called after every entry."""

    # -- as the simulator wants it

    def command(self, choose: Choose) -> bytes:
        call = self.call(choose)
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
