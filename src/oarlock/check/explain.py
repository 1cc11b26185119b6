"""Why a history has no order, for a person: the longest part that has one, and what stands in the way of the rest."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

from oarlock.check.history import UNKNOWN, Operation
from oarlock.check.linearizability import CONFIGURATIONS_MAX, Configuration, Trail, Violation, _search
from oarlock.check.models import IMPOSSIBLE, Append, Cas, Get, Model, Put, Read, Swap, Write

STATES_SHOWN: Final = 50  # of those that the model could have had
ORDERS_TRIED: Final = 64
SAID_MAX: Final = 4  # of them in a sentence
TEXT_SHOWN: Final = 44  # characters of a value in a sentence


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of the order that was found, and the state after it."""

    operation: Operation
    state: Hashable


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """`order` explains everything that returned before `unplaced` did; `start` is the state before its first step.

    `states` are all states that some order could have led to then, with the operations still open placed or not, and
    what the model would have answered to the call in each (None: it is not said). `fits_after` is the number of steps
    after which `unplaced` would have fitted last (None: never), and `blocker` an operation that must come before it
    and makes that place impossible. `reasons` says all this in sentences.
    """

    violation: Violation
    start: Hashable
    order: tuple[Step, ...]
    states: tuple[tuple[Hashable, str], ...]
    fits_after: int | None
    blocker: Operation | None
    reasons: tuple[str, ...]


def explain(model: Model, violation: Violation, configurations_max: int = CONFIGURATIONS_MAX) -> Explanation:
    """Walk the operations of the violation again and remember how everything came about."""
    trails: list[Trail] = []
    again = _search(model, violation.key, violation.operations, configurations_max, trails=trails)
    assert again is not None, "a violation's operations have no order"
    unplaced = violation.unplaced
    states = tuple(dict.fromkeys(at for at, _ in trails[-1].placed))[:STATES_SHOWN]
    start = model.initial()
    steps: list[Step] = []
    fits_after: int | None = None
    ends = [configuration for configuration, how in trails[-1].placed.items() if how is None]
    for end in ends[:ORDERS_TRIED]:  # of several orders, one in which the operation would have fitted at least once
        steps = _played(model, start, _order(trails, end))
        fits = [
            at
            for at, before in enumerate([start, *(step.state for step in steps)])
            if model.step(before, unplaced.call, unplaced.result) is not IMPOSSIBLE
        ]
        if fits:
            fits_after = fits[-1]
            break
    blocker = None
    if fits_after is not None:
        later = [step.operation for step in steps[fits_after:]]
        blocker = next((one for one in later if one.end is not None and one.end < unplaced.start), None)
    return Explanation(
        violation=violation,
        start=start,
        order=tuple(steps),
        states=tuple((at, expected_answer(unplaced.call, at)) for at in states),
        fits_after=fits_after,
        blocker=blocker,
        reasons=tuple(_reasons(violation, steps, states, fits_after, blocker)),
    )


def _played(model: Model, state: Hashable, order: list[Operation]) -> list[Step]:
    """The order with the state after each step."""
    steps: list[Step] = []
    for operation in order:
        state = model.step(state, operation.call, operation.result)
        assert state is not IMPOSSIBLE, f"the order is none: {operation}"
        steps.append(Step(operation, state))
    return steps


def _order(trails: list[Trail], configuration: Configuration) -> list[Operation]:
    """The order of everything that returned before the last event which led to this configuration."""
    found: list[Operation] = []
    for trail in reversed(trails[:-1]):
        configuration, bit = trail.ended[configuration]
        if bit:
            found.append(trail.opened[bit])
        while (how := trail.placed[configuration]) is not None:
            configuration, bit = how
            found.append(trail.opened[bit])
    found.reverse()
    return found


def call_text(call: Hashable) -> str:
    """`write 3`, `cas 1 to 2`, `append "x"`."""
    match call:
        case Read() | Get():
            return "read" if isinstance(call, Read) else "get"
        case Write(value) | Put(value) | Append(value) | Swap(value):
            return f"{type(call).__name__.lower()} {value_text(value)}"
        case Cas(expected, value):
            return f"cas {value_text(expected)} to {value_text(value)}"
        case _:
            return repr(call)


def operation_text(operation: Operation) -> str:
    """`read = 3`: the call and, where there is something to say, its answer."""
    call, result = operation.call, operation.result
    text = call_text(call)
    if result is UNKNOWN:
        return f"{text} = ?"
    match call:
        case Write() | Put() | Append():
            return text
        case Cas():
            return f"{text} {'done' if result is True else 'refused'}"
        case _:
            return f"{text} = {value_text(result)}"


def value_text(value: Hashable) -> str:
    """A value as JSON would print it; `nothing` for an absent one."""
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(value_text(item) for item in value)}]"
    return str(value)


def short(text: str) -> str:
    """At most `TEXT_SHOWN` characters: the beginning and the end."""
    if len(text) <= TEXT_SHOWN:
        return text
    half = TEXT_SHOWN // 2 - 1
    return f"{text[:half]}…{text[-half:]}"


def expected_answer(call: Hashable, state: Hashable) -> str:
    """What the models of this package answer to `call` in `state`; empty for a model of somebody else's."""
    match call:
        case Read() | Get() | Swap():
            return value_text(state)
        case Cas(expected, _):
            return "done" if state == expected else "refused"
        case _:
            return ""


def _reasons(
    violation: Violation,
    steps: list[Step],
    states: tuple[Hashable, ...],
    fits_after: int | None,
    blocker: Operation | None,
) -> list[str]:
    unplaced = violation.unplaced
    what = operation_text(unplaced)
    could = " or ".join(short(value_text(state)) for state in states[:SAID_MAX])
    if len(states) > SAID_MAX:
        could += f" or one of {len(states) - SAID_MAX} others"
    reasons = [f"Between its call and its answer the value can only have been {could}: {short(what)} was never right."]
    if fits_after is None:
        writers = [
            one
            for one in violation.operations
            if one is not unplaced and getattr(one.call, "value", unplaced) == unplaced.result
        ]
        if isinstance(unplaced.call, Read) and not writers:
            reasons.append(f"No operation that had begun by then wrote {short(value_text(unplaced.result))}.")
        return reasons
    where = f"after step {fits_after}" if fits_after else "before step 1"
    reasons.append(f"The last place where it would fit is {where}.")
    if blocker is not None:
        number = 1 + next(at for at, step in enumerate(steps) if step.operation is blocker)
        reasons.append(
            f"But step {number}, {short(operation_text(blocker))} of process {blocker.process}, had ended before it "
            "began, so it must come later than that."
        )
    elif fits_after < len(steps):
        following = steps[fits_after].operation
        reasons.append(
            f"Step {fits_after + 1}, {short(operation_text(following))} of process {following.process}, overlaps it; "
            "but what others saw leaves no order with the two exchanged."
        )
    return reasons
