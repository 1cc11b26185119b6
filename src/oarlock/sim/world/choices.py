"""The stream of choices: everything that a simulated run leaves open is drawn here, and nowhere else.

A seed makes one stream, made of a stream for each kind of choice, so that taking one choice back does not change what
the others draw. The rule that makes shrinking possible: the value 0 is always the quiet one (no fault, the shortest
delay, no operation). What was drawn is recorded; a run is repeated by its seed, and changed by `edits`.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import TypeAlias

MILLION = 1_000_000
_STEPS = 1 << 16

Edits: TypeAlias = Mapping[str, Mapping[int, int]]
"""Kind of choice -> number of the choice (from 0) -> the value to take instead of the drawn one."""


class Stream:
    """The choices of one kind, in order. `values` is what was taken so far."""

    __slots__ = ("_edits", "_random", "_take", "values")

    def __init__(self, seed: int, kind: str, edits: Mapping[int, int] | None) -> None:
        # `random()` of a generator seeded with a string is the same in every version of Python and every process.
        self._random = Random(f"{seed}/{kind}").random
        self._edits = edits
        self.values: list[int] = []
        self._take = self.values.append

    def draw(self, n: int) -> int:
        """A choice out of 0 .. n - 1."""
        value = int(self._random() * n)
        if self._edits is not None:
            value = min(self._edits.get(len(self.values), value), n - 1)
        self._take(value)
        return value

    def chance(self, per_million: int) -> bool:
        """True with this probability."""
        return self.draw(MILLION) >= MILLION - per_million

    def between(self, low: int, high: int) -> int:
        """One of low .. high, both included."""
        return low + self.draw(high - low + 1)

    def scaled(self, low: int, high: int) -> int:
        """One of low .. high (both positive), log-uniform: each order of magnitude is as likely as the next."""
        factor: float = (high / low) ** (self.draw(_STEPS) / (_STEPS - 1))
        return round(low * factor)


class Choices:
    """All choices of one run. `draw(kind, n)` is the only source of difference between two runs."""

    def __init__(self, seed: int, edits: Edits | None = None) -> None:
        self.seed = seed
        self._edits = edits if edits is not None else {}
        self._streams: dict[str, Stream] = {}

    def stream(self, kind: str) -> Stream:
        """The choices of one kind: for whoever draws many of them."""
        found = self._streams.get(kind)
        if found is None:
            found = self._streams[kind] = Stream(self.seed, kind, self._edits.get(kind))
        return found

    def draw(self, kind: str, n: int) -> int:
        """The next choice of this kind, out of 0 .. n - 1."""
        return self.stream(kind).draw(n)

    def recorded(self) -> dict[str, list[int]]:
        """Everything taken so far, by kind."""
        return {kind: stream.values for kind, stream in sorted(self._streams.items())}
