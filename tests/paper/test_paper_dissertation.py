"""The Raft dissertation: chapters 3 and 4, and sections 5, 6.2 to 6.4, 9.6 and 10.2.1, where they go beyond the
paper."""

from __future__ import annotations

import pytest
from raft_bench import MS, TIMEOUT, Bench, only

from oarlock.raft import events as ev
from oarlock.raft import messages as ms
from oarlock.raft.roles import Candidate, Follower, Leader, PreCandidate
from oarlock.raft.types import Configuration, MemberInfo, MemberRole


def vote(term: int, last: tuple[int, int] = (0, 0), **flags: bool) -> ms.RequestVote:
    return ms.RequestVote(term=term, last_log_term=last[0], last_log_index=last[1], **flags)


def led(**options: object) -> Bench:
    """A leader of three whose no-op is committed."""
    bench = Bench(1, **options)  # type: ignore[arg-type]
    bench.lead()
    bench.acknowledge(2, 1)
    bench.acknowledge(3, 1)
    return bench


def change(kind: ev.ChangeKind, node: int) -> ev.ConfigChange:
    return ev.ConfigChange(kind, MemberInfo(id=node))


# -- 3.8 persisted state, 3.9 timing


def test_3_8_the_commit_index_may_be_lost_and_is_learnt_again() -> None:
    """3.8: commit index and applied index may be volatile: a restarted server learns them from the next leader."""
    bench = Bench(1, terms=[1, 1, 1], commit=0)
    bench.append(2, 1, (1, 3), commit=3)
    assert bench.raft.commit_index == 3


def test_3_9_a_vote_restarts_the_timer_and_a_mere_higher_term_does_not() -> None:
    """3.4 and 3.9: the timer starts again for a granted vote or the leader's word; for nothing else."""
    bench = Bench(1, terms=[1])
    before = bench.raft.next_deadline()
    bench.pass_time(TIMEOUT - MS)
    bench.hear(2, vote(2))
    assert (bench.raft.current_term, bench.raft.next_deadline()) == (2, before)
    bench.hear(3, vote(2, (1, 1)))
    assert bench.raft.next_deadline() > before


# -- 3.10 leadership transfer


def test_3_10_transfer_stops_proposals_catches_up_and_sends_timeout_now() -> None:
    """3.10 steps 1 to 3: no new client requests; the target's log is brought up to date; then TimeoutNow."""
    bench = led()
    bench.propose(b"x")
    assert only(bench.do(ev.TransferRequested(9, 2)), ms.TimeoutNow) == []
    bench.propose(b"y")
    assert bench.answers(ev.ProposalRefused) == [ev.ProposalRefused(1, "transferring", 1)]
    assert only(bench.acknowledge(2, 2), ms.TimeoutNow) == [ms.TimeoutNow(term=1)]


def test_3_10_the_target_campaigns_at_once_and_says_why() -> None:
    """3.10: TimeoutNow is like the timer firing at once; such an election may replace a live leader."""
    bench = Bench(1, pre_vote=True, check_quorum=True)
    bench.append(2, 1, (0, 0))
    sent = bench.hear(2, ms.TimeoutNow(term=1))
    assert isinstance(bench.raft.role, Candidate)
    assert sent == [(peer, vote(2, transfer=True)) for peer in (2, 3)]
    voter = Bench(3, check_quorum=True)
    voter.append(2, 1, (0, 0))
    assert voter.reply(1, vote(2, transfer=True)) == ms.RequestVoteReply(term=2, granted=True)


def test_3_10_a_forced_election_that_fails_is_followed_by_ordinary_ones() -> None:
    """3.10 with reliability BZ-97: the permission to disturb a leader is for one election."""
    bench = Bench(1, pre_vote=True)
    bench.append(2, 1, (0, 0))
    bench.hear(2, ms.TimeoutNow(term=1))
    for _ in range(3):
        assert all(not m.transfer for m in only(bench.pass_time(), ms.RequestVote))


def test_3_10_a_transfer_ends_after_an_election_timeout() -> None:
    """3.10: if the transfer does not complete in time the leader takes client requests again. reliability BZ-95"""
    bench = led()
    bench.do(ev.TransferRequested(9, 2))
    end = bench.now + TIMEOUT
    while bench.now < end:
        bench.pass_time()
    assert bench.raft.is_leader
    bench.propose(b"x")
    assert len(bench.answers(ev.Appended)) == 1


def test_3_10_timeout_now_from_another_than_the_leader_is_not_obeyed() -> None:
    """3.10: only the present leader asks for it."""
    bench = Bench(1)
    bench.append(2, 1, (0, 0))
    assert bench.hear(3, ms.TimeoutNow(term=1)) == []
    assert isinstance(bench.raft.role, Follower)


# -- 4 membership


def test_4_1_one_change_at_a_time() -> None:
    """4.1: a change may begin only when the one before is committed."""
    bench = led()
    bench.do(ev.ConfigChangeRequested(1, (change(ev.ChangeKind.REMOVE, 3),)))
    bench.do(ev.ConfigChangeRequested(2, (change(ev.ChangeKind.REMOVE, 2),)))
    assert bench.answers(ev.ConfigRefused) == [ev.ConfigRefused(2, "pending")]


def test_4_1_no_change_before_an_entry_of_the_term_is_committed() -> None:
    """4.1 as corrected in 2015: else an uncommitted change of an earlier leader and a new one have disjoint
    majorities."""
    bench = Bench(1, voters=(1, 2, 3, 4))
    bench.lead()
    bench.do(ev.ConfigChangeRequested(1, (change(ev.ChangeKind.REMOVE, 4),)))
    assert bench.answers(ev.ConfigRefused) == [ev.ConfigRefused(1, "not_ready")]


def test_4_1_a_truncated_configuration_is_no_longer_in_force() -> None:
    """4.1: a server must be ready to fall back to the configuration before."""
    bench = led()
    bench.do(ev.ConfigChangeRequested(1, (change(ev.ChangeKind.ADD_VOTER, 4),)))
    assert bench.raft.configuration.joint
    bench.append(2, 5, (1, 1), [5])
    assert bench.raft.configuration == Configuration.of_voters(1, 2, 3)
    assert bench.answers(ev.ConfigRefused) == [ev.ConfigRefused(1, "lost")]
    assert bench.answers(ev.MembersChanged)[-1].members == Configuration.of_voters(1, 2, 3).members


def test_4_2_1_a_learner_has_no_vote_and_counts_for_nothing() -> None:
    """4.2.1: a new server joins without a vote while it catches up."""
    configuration = Configuration.of(
        *(MemberInfo(id=i) for i in (1, 2, 3)),
        MemberInfo(id=4, role=MemberRole.LEARNER),
        MemberInfo(id=5, role=MemberRole.LEARNER),
    )
    bench = Bench(1, configuration=configuration)
    assert {to for to, _ in bench.pass_time()} == {2, 3}
    for learner in (4, 5):
        bench.hear(learner, ms.RequestVoteReply(term=1, granted=True))
    assert isinstance(bench.raft.role, Candidate)
    bench.hear(2, ms.RequestVoteReply(term=1, granted=True))
    for learner in (4, 5):
        bench.acknowledge(learner, 1)
    assert bench.raft.commit_index == 0
    learner_bench = Bench(4, configuration=configuration)
    for _ in range(3):
        learner_bench.pass_time(5 * TIMEOUT)
    assert isinstance(learner_bench.raft.role, Follower)
    assert learner_bench.raft.current_term == 0


def test_4_2_1_promotion_waits_until_the_learner_has_caught_up() -> None:
    """4.2.1: a server is added only when it is close to the leader's log; else the group may stand still."""
    configuration = Configuration.of(MemberInfo(id=1), MemberInfo(id=2), MemberInfo(id=4, role=MemberRole.LEARNER))
    bench = Bench(1, configuration=configuration, promote_lag_entries_max=0)
    bench.lead()
    bench.acknowledge(2, 1)
    request = ev.ConfigChangeRequested(1, (change(ev.ChangeKind.ADD_VOTER, 4),))
    bench.do(request)
    assert bench.answers(ev.ConfigRefused) == [ev.ConfigRefused(1, "not_caught_up")]
    bench.acknowledge(4, 1)
    bench.do(request)
    assert bench.answers(ev.ConfigRefused) == []
    assert bench.raft.configuration.voters == {1, 2, 4}


def test_4_2_2_a_leader_that_removes_itself_leads_until_that_is_committed() -> None:
    """4.2.2: it replicates the configuration that it is no part of, does not count itself, and steps down at the
    commit."""
    bench = led()
    bench.do(ev.ConfigChangeRequested(1, (change(ev.ChangeKind.REMOVE, 1),)))
    bench.acknowledge(2, 2)
    bench.acknowledge(3, 2)  # the joint configuration is committed, the final one is appended
    assert bench.raft.is_leader
    assert bench.raft.configuration.voters == {2, 3}
    bench.acknowledge(2, 3)
    assert bench.raft.commit_index == 2
    bench.acknowledge(3, 3)
    assert bench.raft.commit_index == 3
    assert not bench.raft.is_leader
    assert len(bench.answers(ev.Halt)) == 1


def test_4_2_2_a_member_left_out_of_an_uncommitted_configuration_still_campaigns() -> None:
    """4.2.2, Figure 4.6: it may be the only one that can win; its own vote does not count."""
    bench = led()
    bench.do(ev.ConfigChangeRequested(1, (change(ev.ChangeKind.ADD_LEARNER, 1),)))
    bench.acknowledge(2, 2)
    bench.acknowledge(3, 2)
    assert bench.raft.configuration.voters == {2, 3}
    bench.hear(2, ms.RequestVoteReply(term=5, granted=False))
    assert isinstance(bench.raft.role, Follower)
    bench.pass_time()
    assert isinstance(bench.raft.role, Candidate)
    bench.hear(2, ms.RequestVoteReply(term=6, granted=True))
    assert isinstance(bench.raft.role, Candidate)
    bench.hear(3, ms.RequestVoteReply(term=6, granted=True))
    assert bench.raft.is_leader


def test_4_2_3_a_leader_alive_is_not_disturbed() -> None:
    """4.2.3: a server that hears from a leader neither adopts the term of a vote request nor answers with its vote."""
    for bench in (led(check_quorum=True), Bench(1, check_quorum=True)):
        if not bench.raft.is_leader:
            bench.append(2, 1, (0, 0))
        assert bench.hear(3, vote(8, (9, 9))) == []
        assert bench.raft.current_term == 1


def test_4_3_a_joint_configuration_is_left_by_itself_once_committed() -> None:
    """4.3: C_old,new is committed, then the leader appends C_new."""
    bench = led()
    bench.do(ev.ConfigChangeRequested(1, (change(ev.ChangeKind.ADD_VOTER, 4), change(ev.ChangeKind.REMOVE, 3))))
    assert bench.raft.configuration.voters == {1, 2, 4}
    assert bench.raft.configuration.outgoing == {1, 2, 3}
    bench.acknowledge(2, 2)  # a majority of both: 1 and 2
    assert not bench.raft.configuration.joint
    assert bench.raft.configuration.voters == {1, 2, 4}
    assert bench.answers(ev.ConfigChanged) == []
    bench.acknowledge(2, 3)
    assert bench.answers(ev.ConfigChanged) == [ev.ConfigChanged(1)]


# -- 5 compaction


def test_5_1_compaction_keeps_a_tail_and_the_term_before_it() -> None:
    """5.1: the log below a snapshot goes, but for a tail; the term of the last discarded entry stays known."""
    bench = led(tail_entries_max=2)
    bench.propose(b"a", b"b", b"c")
    bench.acknowledge(2, 4)
    bench.do(ev.SnapshotWritten(bench.raft.snapshot_meta(4)))
    assert bench.raft.log.first_index == 3
    assert bench.raft.log.term(2) == 1
    assert bench.answers(ev.ReleaseLog) == [ev.ReleaseLog(2)]


def test_5_1_a_snapshot_carries_the_configuration_of_its_index_not_the_newest() -> None:
    """5.1 with reliability BZ-71: a configuration after the snapshot's last entry is no part of it."""
    bench = led()
    bench.do(ev.ConfigChangeRequested(1, (change(ev.ChangeKind.ADD_VOTER, 4),)))
    assert bench.raft.configuration.joint
    assert bench.raft.snapshot_meta(1).configuration == Configuration.of_voters(1, 2, 3)


def test_5_1_nothing_is_released_before_the_mark_is_durable() -> None:
    """5.1: the log may go only when the snapshot that stands for it is durable. reliability BZ-86"""
    bench = led(tail_entries_max=0)
    bench.hold_syncs = True
    bench.do(ev.SnapshotWritten(bench.raft.snapshot_meta(1)))
    assert bench.persists[-1].snapshot is not None
    assert bench.answers(ev.ReleaseLog) == []
    bench.sync()
    assert bench.answers(ev.ReleaseLog) == [ev.ReleaseLog(1)]


# -- 6.2 to 6.4 clients


def test_6_2_a_leader_without_a_majority_steps_down_within_an_election_timeout() -> None:
    """6.2: so that clients of a leader cut off go elsewhere."""
    bench = led(check_quorum=True)
    start = bench.now
    while bench.raft.is_leader:
        bench.pass_time()
    assert bench.now - start <= TIMEOUT
    half = led(check_quorum=True)
    for _ in range(40):
        half.pass_time()
        half.hear(2, ms.HeartbeatReply(term=1, round=0, sent=half.now))
    assert half.raft.is_leader


def test_6_4_one_round_for_all_reads_that_wait() -> None:
    """6.4: the read index is the commit index when the round begins; the round proves that the leader still led
    then."""
    bench = led()
    bench.do(ev.ReadRequested(1), ev.ReadRequested(2), ev.ReadRequested(3))
    assert isinstance(bench.raft.role, Leader)
    number = bench.raft.role.round
    bench.hear(2, ms.HeartbeatReply(term=1, round=number - 1, sent=0))
    assert bench.answers(ev.ReadReady) == []
    bench.hear(2, ms.HeartbeatReply(term=1, round=number, sent=0))
    assert bench.answers(ev.ReadReady) == [ev.ReadReady(token, 1) for token in (1, 2, 3)]


def test_6_4_a_read_that_comes_during_a_round_waits_for_the_next() -> None:
    """6.4: a round confirms only what was asked before it began."""
    bench = led()
    bench.do(ev.ReadRequested(1))
    assert isinstance(bench.raft.role, Leader)
    first = bench.raft.role.round
    bench.do(ev.ReadRequested(2))
    bench.hear(2, ms.HeartbeatReply(term=1, round=first, sent=0))
    assert bench.answers(ev.ReadReady) == [ev.ReadReady(1, 1)]
    bench.hear(3, ms.HeartbeatReply(term=1, round=first, sent=0))
    assert bench.answers(ev.ReadReady) == []
    bench.hear(3, ms.HeartbeatReply(term=1, round=first + 1, sent=0))
    assert bench.answers(ev.ReadReady) == [ev.ReadReady(2, 1)]


def test_6_4_a_follower_asks_the_leader_and_serves_the_read_itself() -> None:
    """6.4: followers take reads off the leader: they ask for an index and wait until they have applied it."""
    bench = Bench(1)
    bench.append(2, 1, (0, 0))
    [request] = only(bench.do(ev.ReadRequested(1), ev.ReadRequested(2)), ms.ReadIndex)
    bench.hear(2, ms.ReadIndexReply(term=1, request=request.request + 1, index=9))
    assert bench.answers(ev.ReadReady) == []
    bench.hear(2, ms.ReadIndexReply(term=1, request=request.request, index=4))
    assert bench.answers(ev.ReadReady) == [ev.ReadReady(1, 4), ev.ReadReady(2, 4)]


def test_6_4_a_retry_is_a_new_request() -> None:
    """6.4 with reliability BZ-57: an answer to the request before the retry no longer counts."""
    bench = Bench(1)
    bench.append(2, 1, (0, 0))
    [first] = only(bench.do(ev.ReadRequested(1)), ms.ReadIndex)
    [second] = only(bench.pass_time(), ms.ReadIndex)
    assert second.request != first.request
    bench.hear(2, ms.ReadIndexReply(term=1, request=first.request, index=4))
    assert bench.answers(ev.ReadReady) == []


def test_6_4_1_a_lease_is_counted_from_when_the_heartbeat_was_sent() -> None:
    """6.4.1: the lease ends an election timeout, less the clocks' drift, after the confirmed heartbeat was *sent*."""
    bench = led(check_quorum=True, lease_reads=True, clock_drift_ppm=10_000)
    bench.pass_time()
    sent_at = bench.now
    bench.pass_time(50 * MS)  # the answer takes its time; that is no gain
    bench.hear(2, ms.HeartbeatReply(term=1, round=0, sent=sent_at))
    assert bench.raft.status().lease_until_ns == sent_at + TIMEOUT * 98 // 100
    bench.do(ev.ReadRequested(1))
    assert bench.answers(ev.ReadReady) == [ev.ReadReady(1, 1)]
    while bench.now < sent_at + TIMEOUT * 98 // 100:
        bench.pass_time(10 * MS)
    bench.do(ev.ReadRequested(2))
    assert bench.answers(ev.ReadReady) == []


@pytest.mark.parametrize("ppm", [0, 10_000, 200_000])
def test_6_4_1_the_drift_shortens_the_lease_on_both_sides(ppm: int) -> None:
    """6.4.1: our clock may be slow by the bound and a follower's fast by it."""
    bench = Bench(1, check_quorum=True, lease_reads=True, clock_drift_ppm=ppm)
    assert bench.raft.config.lease_ns == TIMEOUT * (1_000_000 - 2 * ppm) // 1_000_000


# -- 9.6 PreVote


def test_9_6_a_pre_vote_changes_no_state_and_promises_nothing() -> None:
    """9.6: the answer to a pre-vote leaves term, vote and timer of the voter as they are."""
    bench = Bench(1, term=3)
    before = bench.raft.next_deadline()
    for candidate in (2, 3):
        answer = bench.reply(candidate, vote(4, pre_vote=True))
        assert answer == ms.RequestVoteReply(term=4, granted=True, pre_vote=True)
    assert (bench.raft.current_term, bench.raft.voted_for, bench.raft.next_deadline()) == (3, 0, before)
    assert bench.persists == []


def test_9_6_a_pre_candidate_keeps_its_term_and_its_vote() -> None:
    """9.6: the term grows only when a majority would vote; a vote already given stays. reliability BZ-04"""
    bench = Bench(1, term=3, vote=2, pre_vote=True)
    bench.pass_time()
    assert isinstance(bench.raft.role, PreCandidate)
    assert (bench.raft.current_term, bench.raft.voted_for) == (3, 2)
    assert not bench.reply(3, vote(3, (9, 9))).granted  # type: ignore[union-attr]
    bench.hear(2, ms.RequestVoteReply(term=4, granted=True, pre_vote=True))
    assert isinstance(bench.raft.role, Candidate)
    assert bench.raft.current_term == 4


@pytest.mark.parametrize(("last", "granted"), [((1, 1), False), ((1, 2), True), ((2, 1), True)])
def test_9_6_a_pre_vote_is_refused_to_a_stale_log(last: tuple[int, int], granted: bool) -> None:
    """9.6: granted only if the log would win a real vote."""
    bench = Bench(1, terms=[1, 1])
    assert bench.reply(2, vote(5, last, pre_vote=True)).granted == granted  # type: ignore[union-attr]


def test_9_6_a_pre_vote_is_refused_while_a_leader_is_heard() -> None:
    """9.6: and not before an election timeout has passed since."""
    bench = Bench(1, pre_vote=True)
    bench.append(2, 1, (0, 0))
    assert not bench.reply(3, vote(2, pre_vote=True)).granted  # type: ignore[union-attr]
    bench.pass_time(TIMEOUT)
    assert bench.reply(3, vote(2, pre_vote=True)).granted  # type: ignore[union-attr]


def test_9_6_a_pre_candidate_forgets_the_leader_that_it_lost() -> None:
    """9.6 with reliability BZ-15: two members that lost one leader do not protect it from each other."""
    bench = Bench(1, pre_vote=True, check_quorum=True)
    bench.append(2, 1, (0, 0))
    bench.pass_time()
    assert bench.raft.leader_id == 0
    assert bench.reply(3, vote(2, pre_vote=True)).granted  # type: ignore[union-attr]


# -- 10.2.1 parallel write, pipeline


def test_10_2_1_the_leader_sends_before_its_own_write_returns_and_counts_itself_after() -> None:
    """10.2.1: replication and the leader's own write go in parallel; its copy counts once it is durable."""
    bench = led()
    bench.hold_syncs = True
    sent = bench.propose(b"x")
    assert {to for to, m in sent if isinstance(m, ms.AppendEntries)} == {2, 3}
    bench.acknowledge(2, 2)
    assert bench.raft.commit_index == 1
    bench.sync()
    bench.do(ev.Persisted(bench.persists[-1].ticket))
    assert bench.raft.commit_index == 2


def test_10_2_1_followers_alone_may_commit() -> None:
    """10.2.1: an entry may be committed before the leader's own write is done, by a majority of followers."""
    bench = led()
    bench.hold_syncs = True
    bench.propose(b"x")
    bench.acknowledge(2, 2)
    bench.acknowledge(3, 2)
    assert bench.raft.commit_index == 2


def test_10_2_1_a_single_server_waits_for_its_disk() -> None:
    """10.2.1: with nobody else there is no parallel write to hide behind. reliability BZ-51"""
    bench = Bench(1, voters=(1,))
    bench.pass_time()
    assert bench.raft.is_leader
    bench.hold_syncs = True
    bench.propose(b"x")
    assert bench.raft.commit_index == 1


def test_10_2_1_messages_are_pipelined_within_the_window() -> None:
    """10.2.1: the next entry leaves before the last is answered, up to the window."""
    bench = led(inflight_messages_max=3)
    sent = [m for _ in range(5) for to, m in bench.propose(b"x") if to == 2 and isinstance(m, ms.AppendEntries)]
    assert [m.prev_log_index for m in sent] == [1, 2, 3]
    [more] = [m for to, m in bench.acknowledge(2, 4) if to == 2 and isinstance(m, ms.AppendEntries)]
    assert [e.index for e in more.entries] == [5, 6]
