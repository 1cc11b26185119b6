"""Histories: who asked what, when, and what came back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final


class Unknown(Enum):
    """The type of `UNKNOWN`: a call whose outcome nobody knows (a timeout, a connection that broke)."""

    UNKNOWN = "unknown"

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Final = Unknown.UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One call of one client.

    `start` and `end` are readings of one clock, in any unit; the call took effect at one moment between them. An
    operation whose `result` is `UNKNOWN` has no end: it may take effect at any moment after `start`, or never. A call
    that is known not to have been executed does not belong into a history at all.

    `key` names the part of the store that the call touches; parts with different keys are judged apart, which is sound
    because linearizability is local (Herlihy & Wing 1990, theorem 1).
    """

    call: Hashable
    result: Hashable
    start: float
    end: float | None
    process: int = 0
    key: Hashable = None

    def __post_init__(self) -> None:
        if (self.end is None) != (self.result is UNKNOWN):
            raise ValueError(f"an operation has an end if and only if its result is known: {self}")
        if self.end is not None and self.end < self.start:
            raise ValueError(f"an operation ends before it starts: {self}")

    def __str__(self) -> str:
        until = "..." if self.end is None else f"{self.end:.10g}"
        where = "" if self.key is None else f" {self.key!r}"
        return f"[{self.start:.10g}, {until}] process {self.process}{where}: {self.call!r} -> {self.result!r}"


class Recorder:
    """Writes a history down while clients run in threads or tasks.

    `clock` is read at the start and at the end of every call and must never go back (`time.monotonic` is right); the
    caller gives it, so that a simulator can give its own. Methods may be called from any thread.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._operations: list[Operation | None] = []

    def begin(self, process: int, call: Hashable, key: Hashable = None) -> int:
        """Note that a call is about to be sent; returns the ticket that `ok` or `not_executed` takes.

        Until then the operation counts as one of unknown outcome, so a client that dies needs no further care.
        """
        operation = Operation(call=call, result=UNKNOWN, start=self._clock(), end=None, process=process, key=key)
        with self._lock:
            self._operations.append(operation)
            return len(self._operations) - 1

    def ok(self, ticket: int, result: Hashable) -> None:
        """Note the answer that just arrived."""
        end = self._clock()
        with self._lock:
            operation = self._operations[ticket]
            assert operation is not None, f"ticket {ticket} was closed before"
            assert operation.end is None, f"ticket {ticket} was closed before: {operation}"
            self._operations[ticket] = replace(operation, result=result, end=end)

    def not_executed(self, ticket: int) -> None:
        """Note that the call certainly had no effect and never will: it leaves the history."""
        with self._lock:
            operation = self._operations[ticket]
            assert operation is not None, f"ticket {ticket} was closed before"
            assert operation.end is None, f"ticket {ticket} was closed before: {operation}"
            self._operations[ticket] = None

    def operations(self) -> list[Operation]:
        """The history so far, in the order of the starts."""
        with self._lock:
            return [operation for operation in self._operations if operation is not None]
