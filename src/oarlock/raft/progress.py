"""What a leader knows of one follower, and how much it may send to it. (Raft 5.3; diss. 10.2.1; etcd's three states)"""

from __future__ import annotations

from collections import deque
from enum import Enum

from oarlock.raft.types import Index


class ProgressState(Enum):
    PROBE = "probe"  # where the logs agree is not known: one message at a time
    REPLICATE = "replicate"  # they agree: messages are pipelined within the window
    SNAPSHOT = "snapshot"  # what it needs is compacted away: a snapshot is on its way


class Inflights:
    """The sliding window of AppendEntries sent and not answered, bounded in messages and in payload bytes."""

    __slots__ = ("_sent", "bytes", "bytes_max", "messages_max")

    def __init__(self, messages_max: int, bytes_max: int) -> None:
        self.messages_max = messages_max
        self.bytes_max = bytes_max
        self.bytes = 0
        self._sent: deque[tuple[Index, int]] = deque()

    def __len__(self) -> int:
        return len(self._sent)

    @property
    def full(self) -> bool:
        return len(self._sent) >= self.messages_max or self.bytes >= self.bytes_max

    def add(self, last_index: Index, size: int) -> None:
        assert not self.full, "a message was sent through a full window"
        self._sent.append((last_index, size))
        self.bytes += size

    def free_to(self, index: Index) -> None:
        """Everything up to `index` is answered."""
        sent = self._sent
        while sent and sent[0][0] <= index:
            self.bytes -= sent.popleft()[1]

    def clear(self) -> None:
        self._sent.clear()
        self.bytes = 0


class Progress:
    """One follower. `match_index` is what it is known to hold durably, `next_index` what to send next.

    Times are the leader's clock in ns. `next_index` is always above `match_index`.
    """

    __slots__ = (
        "commit_sent",
        "inflights",
        "last_append_at",
        "last_heard",
        "lease_sent",
        "match_index",
        "next_index",
        "notify_from",
        "probe_sent",
        "promotable",
        "round_acked",
        "snapshot_acked_at",
        "snapshot_index",
        "snapshot_offset",
        "state",
        "witness",
    )

    def __init__(self, next_index: Index, messages_max: int, bytes_max: int, now: int) -> None:
        self.state = ProgressState.PROBE
        self.match_index: Index = 0
        self.next_index = next_index
        self.inflights = Inflights(messages_max, bytes_max)
        self.probe_sent = False
        self.witness = False
        self.promotable = False  # a learner that becomes a voter once it has caught up
        self.last_heard = now  # a new leader gives everybody one election timeout to answer (CheckQuorum)
        self.last_append_at = now  # of the last probe sent or answer received
        self.round_acked = 0
        self.lease_sent = 0
        self.commit_sent: Index = 0
        self.notify_from: Index = 0  # tell this follower at once when the commit index reaches this (0: no hurry)
        self.snapshot_index: Index = 0  # of the snapshot under way (0: none chosen yet)
        self.snapshot_offset = -1  # the offset last asked to be sent (-1: none)
        self.snapshot_acked_at = now

    @property
    def may_send(self) -> bool:
        if self.state is ProgressState.PROBE:
            return not self.probe_sent
        if self.state is ProgressState.REPLICATE:
            return not self.inflights.full
        return False

    def become_probe(self) -> None:
        """Go back to one message at a time, from the first index not known to match."""
        if self.state is ProgressState.SNAPSHOT:
            self.next_index = max(self.match_index + 1, self.snapshot_index + 1)
        else:
            self.next_index = self.match_index + 1
        self._enter(ProgressState.PROBE)

    def become_replicate(self) -> None:
        self.next_index = self.match_index + 1
        self._enter(ProgressState.REPLICATE)

    def become_snapshot(self) -> None:
        self._enter(ProgressState.SNAPSHOT)

    def _enter(self, state: ProgressState) -> None:
        self.state = state
        self.probe_sent = False
        self.inflights.clear()
        self.snapshot_index = 0
        self.snapshot_offset = -1

    def record_match(self, index: Index) -> bool:
        """The follower holds everything up to `index`. Returns whether that is news. Late answers change nothing."""
        news = index > self.match_index
        if news:
            self.match_index = index
        self.next_index = max(self.next_index, index + 1)
        self.inflights.free_to(index)
        return news

    def record_refusal(self, refused: Index, retry: Index) -> bool:
        """The follower has no match at `refused`; try again so that `retry` is the previous index. False if it is
        stale."""
        if self.state is ProgressState.REPLICATE:
            if refused <= self.match_index:
                # sometimes: a refusal comes after the success
                return False
            # sometimes: a pipeline is refused
            self._enter(ProgressState.PROBE)
            self.next_index = max(self.match_index + 1, min(refused, retry + 1))
            return True
        if self.state is ProgressState.SNAPSHOT or refused != self.next_index - 1:
            # sometimes: a refusal of a probe before the last one
            return False
        self.next_index = max(self.match_index + 1, min(refused, retry + 1))
        self.probe_sent = False
        return True
