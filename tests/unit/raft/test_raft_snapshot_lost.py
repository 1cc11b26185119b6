"""A leader whose snapshot file turns out rotten has another one made instead of sending it for ever."""

from __future__ import annotations

import random

from oarlock.raft import events as ev
from oarlock.raft import messages as ms
from oarlock.raft.core import Raft, RaftConfig
from oarlock.raft.types import Configuration, HardState, SnapshotMeta

T = 1_000_000_000


def leader_with_a_follower_that_needs_a_snapshot() -> tuple[Raft, SnapshotMeta, int]:
    raft = Raft(
        RaftConfig(id=1, pre_vote=False, tail_entries_max=0), hard_state=HardState(), snapshot=SnapshotMeta(),
        entries=(), applied=0, initial=Configuration.of_voters(1, 2, 3), incarnation=0, rng=random.Random(1), now=0,
    )  # fmt: skip
    now = raft.next_deadline()

    def persist(effects: list[ev.Effect]) -> list[ev.Effect]:
        return raft.handle([ev.Persisted(e.ticket) for e in effects if isinstance(e, ev.Persist)], now)

    persist(raft.handle([ev.TimePassed()], now))
    persist(raft.handle([ev.MessageReceived(2, ms.RequestVoteReply(term=1, granted=True))], now))
    for index in (1, 2, 3):
        raft.handle([ev.MessageReceived(2, ms.AppendEntriesReply(term=1, success=True, index=index))], now)
        raft.handle([ev.Applied(index)], now)
        if index < 3:
            persist(raft.handle([ev.Proposed(index, b"x")], now))
    found = raft.snapshot_meta(3)
    meta = SnapshotMeta(index=3, term=1, configuration=found.configuration, size=10, digest=b"d" * 32)
    persist(raft.handle([ev.SnapshotWritten(meta)], now))
    assert raft.log.first_index == 4
    return raft, meta, now


def refusal() -> ev.MessageReceived:
    """Member 3 has nothing at all."""
    return ev.MessageReceived(3, ms.AppendEntriesReply(term=1, success=False, index=0, hint_index=0, hint_term=0))


def test_a_lost_snapshot_is_replaced() -> None:
    raft, meta, now = leader_with_a_follower_that_needs_a_snapshot()
    effects = raft.handle([refusal()], now)
    if not any(
        isinstance(e, ev.SendSnapshot) for e in effects
    ):  # the probe had gone out already: its answer is awaited
        effects = raft.handle([ev.MessageReceived(3, ms.HeartbeatReply(term=1, round=0, sent=0))], now + T // 2)
    assert [e.snapshot for e in effects if isinstance(e, ev.SendSnapshot)] == [meta]
    effects = raft.handle([ev.SnapshotLost(meta)], now + T // 2)
    assert [e for e in effects if isinstance(e, ev.StartSnapshot | ev.SendSnapshot)] == [ev.StartSnapshot(3)]
    again = SnapshotMeta(index=3, term=1, configuration=meta.configuration, size=10, digest=b"e" * 32)
    effects = raft.handle([ev.SnapshotWritten(again)], now + T // 2)
    assert [e.snapshot for e in effects if isinstance(e, ev.SendSnapshot)] == [again]


def test_word_of_an_older_snapshot_changes_nothing() -> None:
    raft, meta, now = leader_with_a_follower_that_needs_a_snapshot()
    older = SnapshotMeta(index=2, term=1, configuration=meta.configuration, size=1, digest=b"o" * 32)
    assert raft.handle([ev.SnapshotLost(older)], now) == []
    assert raft.snapshot == meta
