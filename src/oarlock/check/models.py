"""Sequential models: what one machine that answers one request at a time would say."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol, assert_never

from oarlock.check.history import UNKNOWN


class Impossible(Enum):
    """The type of `IMPOSSIBLE`: the model could not have given this answer in this state."""

    IMPOSSIBLE = "impossible"


IMPOSSIBLE: Final = Impossible.IMPOSSIBLE


class Model(Protocol):
    """The behaviour of one part (one key) of the store."""

    def initial(self) -> Hashable:
        """The state before the first operation."""

    def step(self, state: Hashable, call: Hashable, result: Hashable) -> Hashable | Impossible:
        """The state after `call` was answered with `result` in `state`, or `IMPOSSIBLE`.

        `result` may be `UNKNOWN`: then the model says what the call does if it takes effect in this state. Raises
        `TypeError` for a call that is not of this model.
        """

    def only_observes(self, call: Hashable, result: Hashable) -> bool:
        """Whether the call left the state alone: such a call may be dropped from a history without making it worse."""

    def overwrites(self, call: Hashable, result: Hashable) -> bool:
        """Whether the call fits every state and leaves one that does not depend on it.

        Answering `False` is always right; `True` saves the search from trying what such a call would wipe out.
        """


@dataclass(frozen=True, slots=True)
class Read:
    """Read the register; the result is its value, `None` if it was never written or was deleted."""


@dataclass(frozen=True, slots=True)
class Write:
    """Write `value`; `None` deletes. The result is not looked at."""

    value: Hashable


@dataclass(frozen=True, slots=True)
class Cas:
    """If the value is `expected`, write `value`. The result is whether it was."""

    expected: Hashable
    value: Hashable


@dataclass(frozen=True, slots=True)
class Swap:
    """Write `value` (`None` deletes); the result is the value before."""

    value: Hashable


@dataclass(frozen=True, slots=True)
class Register:
    """One register with read, write, compare-and-set and swap."""

    start: Hashable = None

    def initial(self) -> Hashable:
        return self.start

    def step(self, state: Hashable, call: Hashable, result: Hashable) -> Hashable | Impossible:
        if not isinstance(call, Read | Write | Cas | Swap):
            raise TypeError(f"a register knows Read, Write, Cas and Swap, not {call!r}")
        match call:
            case Read():
                return state if result is UNKNOWN or result == state else IMPOSSIBLE
            case Write():
                return call.value
            case Cas():
                swapped = state == call.expected
                if result is not UNKNOWN and result != swapped:
                    return IMPOSSIBLE
                return call.value if swapped else state
            case Swap():
                return call.value if result is UNKNOWN or result == state else IMPOSSIBLE
            case _:
                assert_never(call)

    def only_observes(self, call: Hashable, result: Hashable) -> bool:
        return isinstance(call, Read) or (isinstance(call, Cas) and result is False)

    def overwrites(self, call: Hashable, result: Hashable) -> bool:
        return isinstance(call, Write) or (isinstance(call, Swap) and result is UNKNOWN)


@dataclass(frozen=True, slots=True)
class Get:
    """Read the text under the key; an absent key reads as the empty text."""


@dataclass(frozen=True, slots=True)
class Put:
    """Replace the text under the key. The result is not looked at."""

    value: str


@dataclass(frozen=True, slots=True)
class Append:
    """Add to the end of the text under the key. The result is not looked at."""

    value: str


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key of a store of texts with get, put and append."""

    def initial(self) -> Hashable:
        return ""

    def step(self, state: Hashable, call: Hashable, result: Hashable) -> Hashable | Impossible:
        if not isinstance(call, Get | Put | Append):
            raise TypeError(f"a key-value store knows Get, Put and Append, not {call!r}")
        match call:
            case Get():
                return state if result is UNKNOWN or result == state else IMPOSSIBLE
            case Put():
                return call.value
            case Append():
                assert isinstance(state, str), f"the state is always a text: {state!r}"
                return state + call.value
            case _:
                assert_never(call)

    def only_observes(self, call: Hashable, result: Hashable) -> bool:
        return isinstance(call, Get)

    def overwrites(self, call: Hashable, result: Hashable) -> bool:
        return isinstance(call, Put)
