"""The decision: is there an order of the operations, true to real time, that the model could have answered?

The search is that of Wing & Gong (1993, "Testing and verifying concurrent objects"), walked through the history event
by event in the form that Lowe (2017, "Testing for linearizability") calls just-in-time linearization: an operation is
given its place only when an operation that has returned forces it. What has been decided at one event is a set of
*configurations*: a state of the model, and which of the operations still open have already had their effect. Equal
configurations are followed once (Lowe's memoisation).

Differs from both in the treatment of operations of unknown outcome. They stay open for ever, and k of them would give
2^k configurations. But having used fewer of them is never worse: what can happen after a configuration can also happen
after one with the same state, the same finished operations and a subset of the unknown ones. Only the minimal ones are
followed. For the same reason an unknown operation is never placed right before one that overwrites what it did.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from oarlock.check.history import UNKNOWN, Operation
from oarlock.check.models import IMPOSSIBLE, Model

CONFIGURATIONS_MAX: Final = 2_000_000
"""Configurations that one event of one key may lead through before the check gives up with `CheckTooLarge`."""

PROGRESS_EVERY: Final = 32
"""Operations between two calls of `progress`."""

SHRINK_CHECKS_MAX: Final = 400
"""Further checks that may be spent on making the explanation of a violation shorter."""


class CheckTooLarge(Exception):
    """The history is too concurrent to be decided within `CONFIGURATIONS_MAX`; neither verdict was reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """Why the operations of one key have no order.

    `operations` is a part of the history that alone has no order: all operations up to the moment at which the last
    possibility vanished, less the observations that turned out not to matter. `unplaced` is the one that returned at
    that moment; `concurrent` were open then, and `states` are the values that the model could have had before it.
    """

    key: Hashable
    unplaced: Operation
    concurrent: tuple[Operation, ...]
    states: tuple[Hashable, ...]
    operations: tuple[Operation, ...]

    def __str__(self) -> str:
        lines = [
            f"not linearizable{'' if self.key is None else f' at key {self.key!r}'}: no place for",
            f"  {self.unplaced}",
        ]
        lines.append("the state could have been " + " or ".join(repr(state) for state in self.states[:8]))
        if self.concurrent:
            lines.append("operations open at that moment:")
            lines.extend(f"  {operation}" for operation in self.concurrent[:20])
        shown = self.operations[-20:]
        lines.append(f"the {len(shown)} last of {len(self.operations)} operations that together have no order:")
        lines.extend(f"  {operation}" for operation in shown)
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a history: `linearizable` if and only if there are no `violations` (one for each bad key)."""

    violations: tuple[Violation, ...]
    operations: int
    keys: int

    @property
    def linearizable(self) -> bool:
        return not self.violations

    def __str__(self) -> str:
        if self.linearizable:
            return f"linearizable: {self.operations} operations on {self.keys} keys"
        return "\n".join(str(violation) for violation in self.violations)


def check_linearizable(
    model: Model,
    history: Iterable[Operation],
    *,
    configurations_max: int = CONFIGURATIONS_MAX,
    shrink: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Verdict:
    """Decide whether `history` is linearizable with respect to `model`, key by key.

    Two operations of which one ends at the very reading of the clock at which the other starts count as concurrent.
    `shrink=False` leaves the explanation of a violation as it was found. `progress` is told, now and then, how many
    more operations are behind the search. Raises `CheckTooLarge` when one key would need more than
    `configurations_max` configurations at one event.

    >>> from oarlock.check import Operation, Read, Register, Write
    >>> write = Operation(call=Write(1), result=None, start=0, end=1)
    >>> stale = Operation(call=Read(), result=None, start=2, end=3)
    >>> check_linearizable(Register(), [write, stale]).linearizable
    False
    >>> late = Operation(call=Read(), result=None, start=0.5, end=3)
    >>> check_linearizable(Register(), [write, late]).linearizable
    True
    """
    parts: dict[Hashable, list[Operation]] = {}
    count = 0
    for operation in history:
        count += 1
        parts.setdefault(operation.key, []).append(operation)
    violations: list[Violation] = []
    for key, operations in parts.items():
        violation = _search(model, key, operations, configurations_max, progress=progress)
        if violation is not None:
            violations.append(_shrunk(model, violation, configurations_max) if shrink else violation)
    return Verdict(violations=tuple(violations), operations=count, keys=len(parts))


@dataclass(slots=True)
class _Frontier:
    """Configurations, of which those that others dominate are not kept.

    Keyed by the state and the set of finished operations that took effect early; the value lists the sets of unknown
    operations used, none a subset of another. Sets are bit masks of open operations.
    """

    unknown: int = 0  # the bits of operations of unknown outcome
    kept: dict[tuple[Hashable, int], list[int]] = field(default_factory=dict)
    size: int = 0

    def add(self, state: Hashable, placed: int) -> bool:
        """Keep the configuration unless it is known or dominated; says whether it was kept."""
        used = placed & self.unknown
        sets = self.kept.setdefault((state, placed & ~self.unknown), [])
        for other in sets:
            if other & used == other:
                return False
        before = len(sets)
        sets[:] = [other for other in sets if other & used != used]
        sets.append(used)
        self.size += len(sets) - before
        return True

    def configurations(self) -> list[tuple[Hashable, int]]:
        return [(state, finished | used) for (state, finished), sets in self.kept.items() for used in sets]


Configuration: TypeAlias = tuple[Hashable, int]
"""A state of the model, and the bits of the operations that took effect and are still open."""


@dataclass(slots=True)
class Trail:
    """How the configurations of one event came about, to find an order again afterwards."""

    opened: dict[int, Operation]  # by bit
    returned: int  # the bit of the operation that returns here
    placed: dict[Configuration, tuple[Configuration, int] | None]  # from what, by placing what; None: it was there
    ended: dict[Configuration, tuple[Configuration, int]]  # bit 0: the operation had taken effect before


def _search(
    model: Model,
    key: Hashable,
    operations: Sequence[Operation],
    configurations_max: int,
    *,
    progress: Callable[[int], None] | None = None,
    trails: list[Trail] | None = None,
) -> Violation | None:
    """Walk the events of one key; `None` if an order exists, else the moment at which the last one vanished."""
    events: list[tuple[float, int, int]] = []  # (time, 0 for a call and 1 for a return, number of the operation)
    for number, operation in enumerate(operations):
        if operation.result is UNKNOWN and model.only_observes(operation.call, UNKNOWN):
            continue  # it changed nothing and nobody saw what it saw
        events.append((operation.start, 0, number))
        if operation.end is not None:
            events.append((operation.end, 1, number))
    events.sort()
    bits: dict[int, int] = {}  # the bit of each open operation
    free: list[int] = []
    bits_used = 0
    unknown = 0
    behind = 0
    configurations: list[Configuration] = [(model.initial(), 0)]
    for _, is_return, number in events:
        operation = operations[number]
        if not is_return:
            if free:
                bit = free.pop()
            else:
                bit = 1 << bits_used
                bits_used += 1
            bits[number] = bit
            if operation.result is UNKNOWN:
                unknown |= bit
            continue
        bit = bits[number]
        behind += 1
        if progress is not None and behind == PROGRESS_EVERY:
            progress(behind)
            behind = 0
        opened = [(bits[other], operations[other]) for other in bits]
        trail = None
        if trails is not None:
            trail = Trail(dict(opened), bit, {}, {})
            trails.append(trail)
        reached = _place(model, configurations, opened, bit, unknown, configurations_max, trail)
        if not reached:
            return Violation(
                key=key,
                unplaced=operation,
                concurrent=tuple(open_one for open_bit, open_one in opened if open_bit != bit),
                states=tuple(dict.fromkeys(state for state, _ in configurations)),
                operations=_up_to(operations, operation),
            )
        configurations = reached
        del bits[number]
        free.append(bit)
    if progress is not None:
        progress(behind)
    return None


def _place(
    model: Model,
    configurations: list[tuple[Hashable, int]],
    opened: list[tuple[int, Operation]],
    returned: int,
    unknown: int,
    configurations_max: int,
    trail: Trail | None = None,
) -> list[tuple[Hashable, int]]:
    """All minimal configurations in which the operation of bit `returned` has taken effect; its bit is dropped.

    Configurations that use fewer unknown operations are taken first, so that the dominating ones are there in time.
    """
    seen = _Frontier(unknown)
    result = _Frontier(unknown)
    moves = [
        (bit, operation.call, operation.result, model.overwrites(operation.call, operation.result))
        for bit, operation in opened
    ]
    observers = 0  # operations before which it can make sense to place an unknown one
    for bit, _, _, overwrites in moves:
        if not overwrites:
            observers |= bit
    # Entries: unknown operations used, a ticket that keeps the heap from comparing states, the configuration, and
    # whether its last operation is an unknown one.
    agenda: list[tuple[int, int, int, Hashable, bool]] = []
    ticket = 0
    for state, placed in configurations:
        if placed & returned:
            if result.add(state, placed & ~returned) and trail is not None:
                trail.ended[state, placed & ~returned] = ((state, placed), 0)
                trail.placed[state, placed] = None
        elif seen.add(state, placed):
            if trail is not None:
                trail.placed[state, placed] = None
            agenda.append(((placed & unknown).bit_count(), ticket, placed, state, False))
            ticket += 1
    heapq.heapify(agenda)
    step: Callable[[Hashable, Hashable, Hashable], Hashable] = model.step
    while agenda:
        _, _, placed, state, after_unknown = heapq.heappop(agenda)
        to_observe = observers & ~placed
        for bit, call, answer, overwrites in moves:
            if placed & bit or (after_unknown and overwrites):
                continue
            is_unknown = bool(bit & unknown)
            if is_unknown and not to_observe & ~bit:
                continue  # nobody is left who could see what it did
            after = step(state, call, answer)
            if after is IMPOSSIBLE:
                continue
            if bit == returned:
                if result.add(after, placed) and trail is not None:
                    trail.ended[after, placed] = ((state, placed), bit)
            elif is_unknown and after == state:
                continue  # an unknown operation without effect is better left for later
            elif seen.add(after, placed | bit):
                if trail is not None:
                    trail.placed.setdefault((after, placed | bit), ((state, placed), bit))
                ticket += 1
                used = ((placed | bit) & unknown).bit_count()
                heapq.heappush(agenda, (used, ticket, placed | bit, after, is_unknown))
        if seen.size + result.size > configurations_max:
            raise CheckTooLarge(
                f"more than {configurations_max} configurations at one event ({len(opened)} operations are open): "
                "use more keys or fewer clients for each key, or raise configurations_max"
            )
    return result.configurations()


def _up_to(operations: Sequence[Operation], last: Operation) -> tuple[Operation, ...]:
    """The operations that started no later than `last` ended: only these can matter to its place."""
    assert last.end is not None, f"only an operation with an end can lack a place: {last}"
    return tuple(operation for operation in operations if operation.start <= last.end)


def _shrunk(model: Model, violation: Violation, configurations_max: int) -> Violation:
    """The violation with as few observations as can be found within `SHRINK_CHECKS_MAX` further checks.

    Leaving out an operation that changes nothing makes a history easier, never harder: if the rest still has no order,
    the rest is the shorter explanation. (Leaving out a write would be no proof: a read of its value would then be
    homeless.)
    """
    checks = 0
    best = violation
    size = len(best.operations)
    while size >= 1 and checks < SHRINK_CHECKS_MAX:
        droppable = [
            number
            for number, operation in enumerate(best.operations)
            if operation is not best.unplaced and model.only_observes(operation.call, operation.result)
        ]
        size = min(size, len(droppable))
        shorter: Violation | None = None
        for first in range(0, len(droppable), size) if size else ():
            dropped = set(droppable[first : first + size])
            rest = [operation for number, operation in enumerate(best.operations) if number not in dropped]
            checks += 1
            shorter = _search(model, best.key, rest, configurations_max)
            if shorter is not None or checks >= SHRINK_CHECKS_MAX:
                break
        if shorter is not None:
            best = shorter
        else:
            size //= 2
    return best
