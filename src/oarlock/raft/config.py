"""The knobs of consensus and the bounds of its queues. All times are nanoseconds of the driver's monotonic clock."""

from __future__ import annotations

from dataclasses import dataclass

from oarlock.raft.types import NOBODY, NodeId

MS = 1_000_000
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RaftConfig:
    """Raises `ValueError` naming the field for combinations that could never work.

    Election timeouts are drawn from [T, 2T) with T = `election_timeout_ns`; every member of a group must use the same T
    when `lease_reads` is on, because a leader's lease rests on the others' patience.
    """

    id: NodeId
    election_timeout_ns: int = 1000 * MS
    heartbeat_interval_ns: int = 100 * MS
    pre_vote: bool = True  # diss. 9.6
    check_quorum: bool = True  # diss. 6.2: a leader that hears no majority for T steps down
    lease_reads: bool = False  # diss. 6.4.1; needs check_quorum
    clock_drift_ppm: int = 10_000  # how much faster or slower than real time any member's clock may run (1 %)
    priority_handback_ns: int = 10_000 * MS  # a leader hands over to a caught-up voter of higher priority; 0: never
    commit_notice_ns: int = 10 * MS  # how long an idle follower may wait to hear of a new commit index
    message_bytes_max: int = MIB  # payload of one AppendEntries (one larger entry goes alone)
    inflight_messages_max: int = 128  # AppendEntries sent and not answered, to one follower
    inflight_bytes_max: int = 16 * MIB
    uncommitted_bytes_max: int = 64 * MIB  # of the leader's own proposals; above it they are refused
    apply_bytes_max: int = 4 * MIB  # payload of one `Apply`
    reads_pending_max: int = 10_000  # read tokens waiting for an index
    tail_entries_max: int = 5_000  # entries kept behind a snapshot for slow followers
    tail_bytes_max: int = 16 * MIB
    promote_lag_entries_max: int = 100  # how far behind a learner may be when it is promoted
    term_jump_max: int = 2**40  # a message further ahead than this is noise or an attack, and is ignored

    def __post_init__(self) -> None:
        if self.id == NOBODY:
            raise ValueError("id: 0 means nobody; give the member an id of its own")
        if self.heartbeat_interval_ns <= 0:
            raise ValueError(f"heartbeat_interval_ns: {self.heartbeat_interval_ns} must be positive")
        if self.election_timeout_ns < 3 * self.heartbeat_interval_ns:
            raise ValueError(
                f"election_timeout_ns: {self.election_timeout_ns} must be at least 3 heartbeat intervals "
                f"({3 * self.heartbeat_interval_ns}), or one lost heartbeat would start an election"
            )
        if self.lease_reads and not self.check_quorum:
            raise ValueError("lease_reads: needs check_quorum, or a leader cut off would serve old data")
        if not 0 <= self.clock_drift_ppm < 400_000:
            raise ValueError(f"clock_drift_ppm: {self.clock_drift_ppm} must be in 0..399999")
        for name in ("message_bytes_max", "inflight_messages_max", "inflight_bytes_max", "uncommitted_bytes_max",
                     "apply_bytes_max", "reads_pending_max"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1")

    @property
    def lease_ns(self) -> int:
        """How long a heartbeat's echo lets its leader serve reads: T less what two clocks may drift apart in T."""
        return self.election_timeout_ns * (1_000_000 - 2 * self.clock_drift_ppm) // 1_000_000
