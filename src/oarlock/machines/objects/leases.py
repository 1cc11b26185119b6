"""Holders: who may hold locks and the like, and for how long without a sign of life.

Time here is a clock of its own in the replicated state, in nanoseconds. It advances only by what leaders have measured
on their monotonic clocks (`advance`), so no member's wall clock matters, it stands still while nobody leads, and a
change of leader neither shortens a lease nor begins it anew. A holder ends when its deadline has passed on this clock.

The clock lags behind: what passed since the last advance is added by the next one, also to leases that began meanwhile.
So every lease is given `ADVANCE_NS_MAX` on top, which is the most that one advance adds. A leader that slept does not
count its sleep: those who would have been heard had it been awake are not punished.
"""

from __future__ import annotations

from typing import Final

HOLDERS_MAX: Final = 65_536
ADVANCE_NS_MAX: Final = 1_000_000_000
TTL_NS_MAX: Final = 86_400 * 10**9


class Leases:
    """The deadlines of all holders. `clock_ns` and `deadlines` are replicated state."""

    def __init__(self, clock_ns: int = 0, deadlines: dict[str, int] | None = None) -> None:
        self.clock_ns = clock_ns
        self.deadlines: dict[str, int] = {} if deadlines is None else deadlines

    def state(self) -> list[object]:
        return [self.clock_ns, self.deadlines]

    def renew(self, holder: str, ttl_ns: int, *, begin: bool) -> bool:
        """Let a holder live for `ttl_ns` from now. One that is not known (any more) is made only with `begin`; False if
        it is not known, or there are too many."""
        if not 0 < ttl_ns <= TTL_NS_MAX:
            return False
        if holder not in self.deadlines and (not begin or len(self.deadlines) >= HOLDERS_MAX):
            return False
        self.deadlines[holder] = self.clock_ns + ttl_ns + ADVANCE_NS_MAX
        return True

    def advance(self, elapsed_ns: int) -> list[str]:
        """Let time pass; gives the holders whose time is over, which are forgotten."""
        self.clock_ns += min(max(0, elapsed_ns), ADVANCE_NS_MAX)
        over = [holder for holder, deadline in self.deadlines.items() if deadline < self.clock_ns]
        for holder in over:
            del self.deadlines[holder]
        return over

    def end(self, holder: str) -> list[str]:
        """A holder gives up; gives it, unless it was not known."""
        return [] if self.deadlines.pop(holder, None) is None else [holder]
