"""What a user says of a machine: how to make one, what clients ask of it, and what must hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

from oarlock.machines.base import Machine
from oarlock.sim.world.choices import Stream

T = TypeVar("T")


class Choose:
    """Where a workload takes its choices from: drawn from the seed, so that a run can be repeated and made shorter.

    Shrinking replaces choices by 0. So let the first of several possibilities be the plainest one.
    """

    def __init__(self, stream: Stream, client: int) -> None:
        self._stream = stream
        self._unique = 0
        self.client = client
        """The number of the client that asks, from 1; 0 when nobody in particular does."""

    def below(self, n: int) -> int:
        """One of 0 .. n - 1."""
        if n < 1:
            raise ValueError(f"below({n}): there is nothing to choose from")
        return self._stream.draw(n)

    def between(self, low: int, high: int) -> int:
        """One of low .. high, both included."""
        return low + self.below(high - low + 1)

    def of(self, *items: T) -> T:
        """One of the arguments."""
        return items[self.below(len(items))]

    def chance(self, percent: int) -> bool:
        """True in so many of a hundred cases."""
        return self.below(100) >= 100 - percent

    def unique(self) -> int:
        """1, 2, 3, ...: with `client` beside it, a value that nobody else writes."""
        self._unique += 1
        return self._unique


class Workload:
    """Subclass it, decorate it with `@simulated`, and let pytest find it (its name begins with `Test`).

    `machine` makes a fresh machine that holds nothing: a class (of `machines.volatile.VolatileMachine`, or anything
    that is a `machines.base.Machine` and not durable), or a `staticmethod`.
    """

    machine: ClassVar[Callable[..., Machine]]

    model: ClassVar[Callable[..., Any] | None] = None
    """Makes an independent reference, if you have one: its `command(context, command)` must answer what the machine
    answers, and its `read(query)`, if it has that method, what `read` answers."""

    def command(self, choose: Choose) -> bytes:
        """One command that a client might send."""
        raise NotImplementedError(f"{type(self).__name__} must say in `command` what clients send")

    def query(self, choose: Choose) -> Any:
        """What a client might ask in a linearizable read; `read` gets it."""
        return None

    def read(self, machine: Any, query: Any) -> object:
        """Answer a query from a member's machine, without changing it. Left out: the state itself is compared."""
        return None

    def check(self, machine: Any) -> None:
        """Raise `AssertionError` if the machine's state is one that must not be. Called after every entry."""

    # -- what a subclass seldom needs

    def plain(self, result: object) -> object:
        """A result in a form that `==` compares by content. Left out: what MessagePack makes of it."""
        return result


def commands_text(commands: Sequence[bytes]) -> str:
    """Commands for a person, shortened."""
    shown = [repr(command if len(command) <= 60 else command[:60] + b"...") for command in commands[:4]]
    return ", ".join(shown) + (f" and {len(commands) - 4} more" if len(commands) > 4 else "")
