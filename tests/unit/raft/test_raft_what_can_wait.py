"""Which completions and answers need no call of their own: only those from which nothing follows."""

from __future__ import annotations

import random

import pytest

from oarlock.raft import events as ev
from oarlock.raft import messages as ms
from oarlock.raft.core import Raft, RaftConfig
from oarlock.raft.types import Configuration, Entry, EntryKind, HardState, MemberInfo, MemberRole, SnapshotMeta

WITNESS = MemberInfo(id=3, role=MemberRole.WITNESS)


def member(initial: Configuration) -> Raft:
    return Raft(
        RaftConfig(id=1, pre_vote=False), hard_state=HardState(), snapshot=SnapshotMeta(), entries=(), applied=0,
        initial=initial, incarnation=0, rng=random.Random(1), now=0,
    )  # fmt: skip


def persist(raft: Raft, effects: list[ev.Effect], now: int) -> list[ev.Effect]:
    return raft.handle([ev.Persisted(e.ticket) for e in effects if isinstance(e, ev.Persist)], now)


def leader(initial: Configuration) -> tuple[Raft, int]:
    """A leader whose no-op is durable here and acknowledged by member 2, and whose log has one more entry."""
    raft = member(initial)
    now = raft.next_deadline()
    effects = persist(raft, raft.handle([ev.TimePassed()], now), now)
    if raft.is_leader:
        persist(raft, effects, now)
    else:
        effects = raft.handle([ev.MessageReceived(2, ms.RequestVoteReply(term=1, granted=True))], now)
        persist(raft, effects, now)
        raft.handle([ev.MessageReceived(2, ms.AppendEntriesReply(term=1, success=True, index=1))], now)
        raft.handle([ev.MessageReceived(3, ms.AppendEntriesReply(term=1, success=True, index=1))], now)
    assert raft.is_leader
    assert raft.commit_index == 1
    raft.handle([ev.Applied(1)], now)
    return raft, now


def ack(index: int, term: int = 1) -> ms.AppendEntriesReply:
    return ms.AppendEntriesReply(term=term, success=True, index=index)


def test_the_first_acknowledgement_commits_and_the_second_can_wait() -> None:
    raft, now = leader(Configuration.of_voters(1, 2, 3))
    effects = raft.handle([ev.Proposed(1, b"x")], now)
    assert raft.persisted_can_wait()  # nobody else has the entry: our own disk is no majority
    persist(raft, effects, now)
    assert not raft.reply_can_wait(2, ack(2))
    raft.handle([ev.MessageReceived(2, ack(2))], now)
    assert raft.commit_index == 2
    assert raft.reply_can_wait(3, ack(2))


def test_the_end_of_a_write_that_may_commit_cannot_wait() -> None:
    raft, now = leader(Configuration.of_voters(1, 2, 3))
    raft.handle([ev.Proposed(1, b"x")], now)
    raft.handle([ev.MessageReceived(2, ack(2))], now)
    assert raft.commit_index == 1
    assert not raft.persisted_can_wait()


@pytest.mark.parametrize(
    "reply",
    [
        ms.AppendEntriesReply(term=1, success=False, index=1, hint_index=1, hint_term=1),
        ack(1, term=2),
        ack(1, term=0),
    ],
)
def test_refusals_and_other_terms_cannot_wait(reply: ms.AppendEntriesReply) -> None:
    raft, _ = leader(Configuration.of_voters(1, 2, 3))
    assert not raft.reply_can_wait(2, reply)


def test_an_answer_that_opens_the_window_or_ends_a_transfer_cannot_wait() -> None:
    raft, now = leader(Configuration.of_voters(1, 2, 3))
    raft.handle([ev.Proposed(1, b"x")], now)
    raft.handle([ev.MessageReceived(2, ack(2))], now)
    raft.handle([ev.TransferRequested(1, 3)], now)
    assert not raft.reply_can_wait(3, ack(1))


def test_a_single_voter_never_waits_for_company() -> None:
    raft, now = leader(Configuration.of_voters(1))
    raft.handle([ev.Proposed(1, b"x")], now)
    assert not raft.persisted_can_wait()


def test_a_witness_gets_what_became_durable_at_once() -> None:
    raft, now = leader(Configuration.of(MemberInfo(id=1), MemberInfo(id=2), WITNESS))
    raft.handle([ev.Proposed(1, b"x")], now)
    assert not raft.persisted_can_wait()


def test_a_candidates_write_and_a_held_answer_cannot_wait() -> None:
    raft = member(Configuration.of_voters(1, 2, 3))
    now = raft.next_deadline()
    raft.handle([ev.TimePassed()], now)
    assert not raft.persisted_can_wait()  # its own vote
    message = ms.AppendEntries(
        term=2, prev_log_index=0, prev_log_term=0, entries=(Entry(2, 1, EntryKind.NOOP, b""),), commit_index=0
    )
    raft.handle([ev.MessageReceived(2, message)], now)
    assert raft.persisted_can_wait()  # its acknowledgement is released by the write itself
    raft.handle([ev.MessageReceived(2, message)], now)
    assert not raft.persisted_can_wait()  # a repeated one waits for that write


def test_a_heartbeats_answer_waits_only_when_no_read_does() -> None:
    raft, now = leader(Configuration.of_voters(1, 2, 3))
    effects = raft.handle([ev.ReadRequested(7)], now)
    rounds = {e.message.round for e in effects if isinstance(e, ev.Send) and isinstance(e.message, ms.Heartbeat)}
    assert len(rounds) == 1
    reply = ms.HeartbeatReply(term=1, round=rounds.pop(), sent=now)
    assert not raft.reply_can_wait(2, reply)
    effects = raft.handle([ev.MessageReceived(2, reply)], now)
    assert ev.ReadReady(7, 1) in effects
    assert raft.reply_can_wait(3, reply)


def test_a_heartbeats_answer_of_a_follower_that_misses_something_cannot_wait() -> None:
    """What was sent may be lost; the answer is what finds out."""
    raft, now = leader(Configuration.of_voters(1, 2, 3))
    raft.handle([ev.Proposed(1, b"x")], now)
    assert not raft.reply_can_wait(3, ms.HeartbeatReply(term=1, round=0, sent=now))
