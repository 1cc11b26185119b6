"""From a failing seed to a short run that fails in the same way. (docs/explanation/simulation.md)

In this order, and a candidate counts only if the same invariant fires in the same layer: drop whole classes of faults,
make the group smaller (members, clients), cut the tail, bisect how long the beginning may be quiet, then delta
debugging over the choices: first those of faults, operators and clients, then those of crashes and of the network; what
is left of the world's own numbers goes to its quiet value last. A choice that is taken back takes its quiet value 0. A
replay is tolerant: choices that nobody asks for any more are not used.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from oarlock.sim.failures import Violation
from oarlock.sim.world.application import Application
from oarlock.sim.world.choices import Choices, Edits
from oarlock.sim.world.outcome import Outcome, Replay, run_replay
from oarlock.sim.world.swarm import CLASSES, FEATURES, Swarm, draw_swarm

ATTEMPTS_MAX = 600  # runs that shrinking may take, unless told otherwise
EVENTFUL = ("fault/", "client/", "crash", "net/fate", "net/ghost")  # choices of what happens at all
BEGINNINGS = 16  # parts of a stream, for bisecting where what matters begins
FEWER_TRIES = 12  # smaller worlds that are tried before the present size is kept
SHAPE_CHARS = 60  # of a message, with its numbers left out, that say where it comes from

# What may be taken back, in this order; of a fault only whether it strikes (every choice, the interval before it too).
KINDS = ("fault/", "client/", "crash", "net/fate", "net/ghost", "net/delay", "disk times")


class Shrinker:
    """`progress(replay, attempts)` is called after every improvement; `application()` makes what members run."""

    def __init__(
        self,
        replay: Replay,
        *,
        attempts: int = ATTEMPTS_MAX,
        progress: Callable[[Replay, int], None] | None = None,
        application: Callable[[], Application | None] = lambda: None,
    ) -> None:
        self.best = replay
        self._application = application
        self.attempts = 0
        self._budget = attempts
        self._progress = progress
        self.outcome = self._run(replay)
        if not self.outcome.failed:
            raise ValueError(f"seed {replay.seed} does not fail: there is nothing to shrink")
        self.best = msgspec.structs.replace(replay, invariant=self.outcome.invariant, reason=self.outcome.what)

    def _run(self, replay: Replay) -> Outcome:
        self.attempts += 1
        return run_replay(replay, application=self._application())

    def _try(self, candidate: Replay) -> bool:
        if self.attempts >= self._budget:
            return False
        outcome = self._run(candidate)
        if shape(outcome) != shape(self.outcome):
            return False
        self.outcome = outcome
        self.best = msgspec.structs.replace(candidate, reason=outcome.what)
        if self._progress is not None:
            self._progress(self.best, self.attempts)
        return True

    def shrink(self) -> Replay:
        """The shortest that was found within the budget of attempts."""
        self._cut_tail()
        self._drop_classes()
        self._fewer_people()
        self._cut_tail()
        self._quiet_beginning()
        for kind in KINDS:
            self._take_back(kind)
        self._quiet_numbers()
        self._cut_tail()
        return self.best

    def _drop_classes(self) -> None:
        present = [name for name in (*FEATURES, *CLASSES) if name in self._classes()]
        size = len(present)
        while size:
            for start in range(0, len(present), size):
                part = [name for name in present[start : start + size] if name not in self.best.off]
                if part:
                    self._try(msgspec.structs.replace(self.best, off=sorted({*self.best.off, *part})))
            size //= 2

    def _classes(self) -> frozenset[str]:
        swarm = self._swarm(self.best.edits)
        return swarm.classes | swarm.features

    def _swarm(self, edits: Edits) -> Swarm:
        return draw_swarm(Choices(self.best.seed, edits or None), frozenset(self.best.off))

    def _fewer_people(self) -> None:
        """Fewer members and clients, as long as a smaller world fails alike. What a number means is found by trying."""
        while self.attempts < self._budget:
            now = _size(self._swarm(self.best.edits))
            choices = Choices(self.best.seed, self.best.edits or None)
            draw_swarm(choices, frozenset(self.best.off))
            smaller: list[tuple[int, int, int]] = []
            for number, value in enumerate(choices.stream("swarm").values):
                for other in (0, 5, 10):
                    if other != value:
                        size = _size(self._swarm(_set(self.best.edits, "swarm", number, other)))
                        if size < now:
                            smaller.append((size, number, other))
            smaller.sort()
            if not any(
                self._try(msgspec.structs.replace(self.best, edits=_set(self.best.edits, "swarm", number, value)))
                for _, number, value in smaller[:FEWER_TRIES]
            ):
                return

    def _quiet_numbers(self) -> None:
        """Sizes, times and switches of the world, each to 0 where it does not matter."""
        for number, value in enumerate(self._recorded().get("swarm", [])):
            if value and number not in self.best.edits.get("swarm", {}):
                edits = _set(self.best.edits, "swarm", number, 0)
                if _size(self._swarm(edits)) <= _size(self._swarm(self.best.edits)):
                    self._try(msgspec.structs.replace(self.best, edits=edits))

    def _cut_tail(self) -> None:
        """Nothing after the violation matters; a shorter safety phase may show it too."""
        if self.outcome.phase == "safety":
            self._try(msgspec.structs.replace(self.best, stop_after=self.outcome.turns + 1))
            return
        low, high = 1, min(self.best.events, self.outcome.turns)
        while high - low > 8:
            middle = (low + high) // 2
            if self._try(msgspec.structs.replace(self.best, events=middle)):
                high = middle
            else:
                low = middle

    def _quiet_beginning(self) -> None:
        """Bisect how much of the beginning can be without faults, crashes and requests: the violation needs the end."""
        recorded = self._recorded()
        low, high = 0, BEGINNINGS  # in parts of each stream; `low` is known to do
        while low < high and self.attempts < self._budget:
            middle = (low + high + 1) // 2
            part = [
                (kind, number)
                for kind, values in recorded.items()
                if kind.startswith(EVENTFUL)
                for number, value in enumerate(values[: len(values) * middle // BEGINNINGS])
                if value
            ]
            if part and self._try(msgspec.structs.replace(self.best, edits=_with(self.best.edits, part))):
                low = middle
            else:
                high = middle - 1

    def _take_back(self, prefix: str) -> None:
        """Delta debugging over the choices whose kind begins with `prefix`."""
        left = [
            (kind, number)
            for kind, values in self._recorded().items()
            if kind.startswith(prefix)
            for number, value in enumerate(values)
            if value and number not in self.best.edits.get(kind, {})
        ]
        size = len(left)
        while size and self.attempts < self._budget:
            kept: list[tuple[str, int]] = []
            for start in range(0, len(left), size):
                part = left[start : start + size]
                if not self._try(msgspec.structs.replace(self.best, edits=_with(self.best.edits, part))):
                    kept += part
            left = kept
            if size == 1:
                break
            size = min(size // 2, max(1, len(left)))

    def _recorded(self) -> dict[str, list[int]]:
        world = self.best.world(application=self._application())
        try:
            world.run()
        except Violation:
            pass  # that it fails is what we know
        return world.choices.recorded()


def shape(outcome: Outcome) -> tuple[str, str]:
    """What must stay the same: the invariant and, where one stands for many places in the code, which of them."""
    if outcome.invariant not in ("ASSERT", "CRASH"):
        return outcome.invariant, ""
    return outcome.invariant, re.sub(r"[\d.]+", "#", outcome.what)[:SHAPE_CHARS]


def _size(swarm: Swarm) -> int:
    return 4 * (swarm.voters + swarm.learners) + 2 * swarm.clients + swarm.witnesses


def _set(edits: Edits, kind: str, number: int, value: int) -> dict[str, dict[int, int]]:
    merged = {name: dict(values) for name, values in edits.items()}
    merged.setdefault(kind, {})[number] = value
    return merged


def _with(edits: Edits, part: list[tuple[str, int]]) -> dict[str, dict[int, int]]:
    merged = {kind: dict(values) for kind, values in edits.items()}
    for kind, number in part:
        merged.setdefault(kind, {})[number] = 0
    return merged
