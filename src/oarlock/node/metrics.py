"""What a node counts. Plain numbers: whoever exports them reads the attributes."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

FSYNC_SECONDS: Final[tuple[float, ...]] = (
    0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096,
    8.192,
)  # fmt: skip
TURN_SECONDS: Final[tuple[float, ...]] = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5
)  # fmt: skip


class Histogram:
    """Counts of values up to each of `bounds`, and above the last. `counts` are not cumulative."""

    __slots__ = ("bounds", "count", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.count = 0
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.count += 1
        self.sum += value

    def quantile(self, q: float) -> float:
        """The bound of the bucket that holds the `q` quantile (0..1); 0.0 if nothing was counted."""
        return quantile(self.bounds, self.counts, q)


def quantile(bounds: tuple[float, ...], counts: list[int], q: float) -> float:
    """See `Histogram.quantile`; above the last bound the answer is twice that.

    >>> quantile((1.0, 2.0), [50, 49, 1], 0.99)
    2.0
    """
    total = sum(counts)
    seen = 0
    for at, count in enumerate(counts):
        seen += count
        if total and seen >= q * total:
            return bounds[at] if at < len(bounds) else 2 * bounds[-1]
    return 0.0


class NodeMetrics:
    """Counters since the start of the node."""

    __slots__ = (
        "apply_failures", "disk_sick", "events", "fsync", "leader_changes", "messages_received", "messages_sent",
        "messages_unroutable", "persists", "persists_by_kernel", "proposals", "proposals_completed", "proposals_failed",
        "proposals_overloaded", "reads", "reads_failed", "snapshots_loaded", "snapshots_received", "snapshots_sent",
        "snapshots_written", "stalls", "turn", "turns",
    )  # fmt: skip

    def __init__(self) -> None:
        self.turns = 0
        self.turn = Histogram(TURN_SECONDS)
        self.events = 0
        self.stalls = 0  # turns that came late because the loop was held up
        self.proposals = 0
        self.proposals_completed = 0
        self.proposals_failed = 0
        self.proposals_overloaded = 0
        self.reads = 0
        self.reads_failed = 0
        self.messages_sent = 0
        self.messages_received = 0
        self.messages_unroutable = 0  # of a group that is not here
        self.persists = 0
        self.persists_by_kernel = 0  # syncs that the kernel did by itself
        self.fsync = Histogram(FSYNC_SECONDS)
        self.disk_sick = 0  # 1 while it is
        self.leader_changes = 0
        self.apply_failures = 0
        self.snapshots_written = 0
        self.snapshots_sent = 0
        self.snapshots_received = 0
        self.snapshots_loaded = 0
