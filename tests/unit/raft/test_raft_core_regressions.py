"""One test for each defect that the random walks found in the core, as small as it could be made."""

from __future__ import annotations

import random
from typing import Any

from oarlock.raft import events as ev
from oarlock.raft import messages as ms
from oarlock.raft.core import Raft, RaftConfig
from oarlock.raft.progress import ProgressState
from oarlock.raft.roles import Leader
from oarlock.raft.types import Configuration, Entry, EntryKind, HardState, MemberInfo, MemberRole, SnapshotMeta

T = 1_000_000_000


def member(
    node: int = 1,
    *,
    voters: Configuration | None = None,
    term: int = 1,
    entries: tuple[Entry, ...] = (),
    seed: int = 0,
    applied: int = 0,
    commit: int = 0,
    **options: Any,
) -> Raft:
    return Raft(
        RaftConfig(id=node, **options),
        hard_state=HardState(term, 0, commit),
        snapshot=SnapshotMeta(),
        entries=entries,
        applied=applied,
        initial=voters or Configuration.of_voters(1, 2, 3),
        incarnation=0,
        rng=random.Random(seed),
        now=0,
    )


def sent(effects: list[ev.Effect]) -> list[ms.Message]:
    found = [e.message for e in effects if isinstance(e, ev.Send)]
    return found + [s.message for e in effects if isinstance(e, ev.Persist) for s in e.release]


def persist(raft: Raft, effects: list[ev.Effect], now: int) -> list[ev.Effect]:
    tickets = [e.ticket for e in effects if isinstance(e, ev.Persist)]
    return raft.handle([ev.Persisted(tickets[-1])], now) if tickets else []


def test_a_restarted_member_does_not_number_its_read_requests_as_before() -> None:
    """Else an answer from before the crash, still on its way, passes for a fresh one and the read is stale."""
    requests = []
    for process in range(2):
        raft = member(2, seed=process)
        raft.handle([ev.MessageReceived(1, ms.Heartbeat(term=1, commit_index=0, round=0))], 1)
        effects = raft.handle([ev.ReadRequested(7)], 2)
        requests += [m.request for m in sent(effects) if isinstance(m, ms.ReadIndex)]
    assert len(set(requests)) == 2


def test_an_empty_append_is_not_sent_from_a_compacted_index() -> None:
    """A silent follower whose next entry is compacted meanwhile gets a snapshot; the leader's log must not be asked
    for it."""
    voters = Configuration.of_voters(1, 2, 3)
    raft = member(1, voters=voters, tail_entries_max=0, inflight_messages_max=1, pre_vote=False)
    now = raft.next_deadline()
    effects = raft.handle([ev.TimePassed()], now)
    effects = persist(raft, effects, now)
    effects = raft.handle([ev.MessageReceived(2, ms.RequestVoteReply(term=2, granted=True))], now)
    assert raft.is_leader
    persist(raft, effects, now)
    for peer in (2, 3):
        raft.handle([ev.MessageReceived(peer, ms.AppendEntriesReply(term=2, success=True, index=1))], now)
    for token in range(5):
        effects = raft.handle([ev.Proposed(token, b"x")], now)
        persist(raft, effects, now)
        raft.handle([ev.MessageReceived(2, ms.AppendEntriesReply(term=2, success=True, index=token + 2))], now)
    while raft.last_applied < raft.commit_index:
        effects = raft.handle([ev.Applied(raft._apply_sent)], now)
    effects = raft.handle([ev.SnapshotWritten(raft.snapshot_meta(6))], now)
    persist(raft, effects, now)
    assert raft.log.first_index == 7
    role = raft.role
    assert isinstance(role, Leader)
    assert role.progress[3].next_index < raft.log.first_index
    now += T // 2
    raft.handle([ev.MessageReceived(3, ms.HeartbeatReply(term=2, round=0, sent=now - 1))], now)
    assert role.progress[3].state is ProgressState.SNAPSHOT


def test_a_higher_term_without_a_vote_does_not_restart_the_timer() -> None:
    """Raft 5.2: only a granted vote or the leader's word does. Else a candidate that cannot win starves those who
    can."""
    entries = (Entry(1, 1, EntryKind.NORMAL, b"kept"),)
    raft = member(1, entries=entries, pre_vote=False, check_quorum=False)
    deadline = raft.next_deadline()
    raft.handle([ev.MessageReceived(2, ms.RequestVote(term=2, last_log_index=0, last_log_term=0))], deadline - 1)
    assert raft.current_term == 2
    assert raft.next_deadline() == deadline


def test_a_witness_joins_by_a_snapshot_older_than_its_arrival() -> None:
    """Its own configuration is empty and the snapshot's does not know it yet: it must not refuse for that."""
    raft = member(4, voters=Configuration(), term=0)
    meta = SnapshotMeta(index=5, term=1, configuration=Configuration.of_voters(1, 2, 3))
    message = ms.InstallSnapshot(term=1, snapshot=meta, offset=0, data=b"", done=True)
    raft.handle([ev.MessageReceived(1, message)], 1)
    assert raft.log.last_index == 5


def test_a_voter_refuses_a_snapshot_without_data() -> None:
    raft = member(2)
    meta = SnapshotMeta(index=5, term=1, configuration=Configuration.of_voters(1, 2, 3))
    message = ms.InstallSnapshot(term=1, snapshot=meta, offset=0, data=b"", done=True)
    raft.handle([ev.MessageReceived(1, message)], 1)
    assert raft.log.last_index == 0


def test_a_restarted_follower_keeps_the_patience_that_a_lease_may_rest_on() -> None:
    """It may have echoed a heartbeat before its crash; a hint that the leader is down must not shorten its wait."""
    raft = member(2, lease_reads=True)
    raft.handle(
        [
            ev.MessageReceived(
                1, ms.AppendEntries(term=1, prev_log_index=0, prev_log_term=0, entries=(), commit_index=0)
            )
        ],
        1,
    )
    raft.handle([ev.PeerDown(1)], 2)
    assert raft.next_deadline() >= T


def test_a_restore_under_way_does_not_swallow_the_wish_for_a_snapshot() -> None:
    """A `StartSnapshot` that the driver could not serve is asked for again once the machine is whole."""
    raft = member(2)
    raft._snapshot_started = True
    witness = MemberInfo(id=3, role=MemberRole.WITNESS)
    configuration = Configuration.of(MemberInfo(id=1), MemberInfo(id=2), witness)
    meta = SnapshotMeta(index=5, term=1, configuration=configuration, size=1, digest=b"d" * 32)
    raft.handle([ev.MessageReceived(1, ms.Heartbeat(term=1, commit_index=0, round=0))], 1)
    raft.handle([ev.ChunkWritten(1, meta, 1, True)], 1)
    assert raft.log.last_index == 5
    assert not raft._snapshot_started
