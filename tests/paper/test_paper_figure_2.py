"""Figure 2 of the extended Raft paper, rule by rule."""

from __future__ import annotations

import pytest
from raft_bench import TIMEOUT, Bench, only

from oarlock.raft import events as ev
from oarlock.raft import messages as ms
from oarlock.raft.roles import Candidate, Follower, Leader


def vote(term: int, last: tuple[int, int] = (0, 0)) -> ms.RequestVote:
    return ms.RequestVote(term=term, last_log_term=last[0], last_log_index=last[1])


# -- State


def test_term_and_vote_are_durable_before_an_answer_leaves() -> None:
    """Persistent state: current term and vote are on stable storage before a server answers an RPC."""
    bench = Bench(1)
    bench.hold_syncs = True
    assert bench.hear(2, vote(5)) == []
    assert bench.persists[-1].hard_state is not None
    assert (bench.persists[-1].hard_state.term, bench.persists[-1].hard_state.vote) == (5, 2)
    assert bench.sync() == [(2, ms.RequestVoteReply(term=5, granted=True))]


def test_entries_are_durable_before_an_answer_leaves() -> None:
    """Persistent state: the log is on stable storage before a server answers an RPC."""
    bench = Bench(1)
    bench.append(2, 1, (0, 0))
    bench.hold_syncs = True
    assert only(bench.append(2, 1, (0, 0), [1, 1]), ms.AppendEntriesReply) == []
    assert [e.index for e in bench.persists[-1].entries] == [1, 2]
    assert only(bench.sync(), ms.AppendEntriesReply) == [ms.AppendEntriesReply(term=1, success=True, index=2)]


def test_term_vote_and_log_come_back_after_a_restart() -> None:
    """Persistent state is what a server starts with; commit and applied indexes start again from what is known safe."""
    bench = Bench(1, terms=[1, 1, 2], term=4, vote=3)
    assert (bench.raft.current_term, bench.raft.voted_for, bench.terms) == (4, 3, [1, 1, 2])
    assert (bench.raft.commit_index, bench.raft.last_applied) == (0, 0)
    assert isinstance(bench.raft.role, Follower)


def test_a_new_leader_starts_after_its_own_log_and_knows_of_no_match() -> None:
    """Volatile state on leaders: next index begins behind the last entry, match index at 0; set anew at every
    election."""
    bench = Bench(1, terms=[1, 1, 1])
    bench.lead()
    assert isinstance(bench.raft.role, Leader)
    for progress in bench.raft.role.progress.values():
        assert (progress.next_index, progress.match_index) == (4, 0)


# -- RequestVote, receiver


def test_request_vote_1_lower_term_is_refused() -> None:
    """RequestVote 1: refuse if the request's term is below the current one; the answer carries the current one."""
    bench = Bench(1, term=5)
    assert bench.reply(2, vote(4, (9, 9))) == ms.RequestVoteReply(term=5, granted=False)
    assert bench.raft.voted_for == 0


@pytest.mark.parametrize(
    ("voted_for", "candidate", "granted"), [(0, 2, True), (2, 2, True), (3, 2, False), (2, 3, False), (1, 2, False)]
)
def test_request_vote_2_one_vote_a_term(voted_for: int, candidate: int, granted: bool) -> None:
    """RequestVote 2: grant only if no vote was given in this term, or to this very candidate."""
    bench = Bench(1, term=5, vote=voted_for)
    assert bench.reply(candidate, vote(5)) == ms.RequestVoteReply(term=5, granted=granted)


@pytest.mark.parametrize(
    ("terms", "last", "granted"),
    [
        ([], (0, 0), True),
        ([1], (0, 0), False),
        ([1, 1], (1, 2), True),
        ([1, 1], (1, 3), True),
        ([1, 1], (1, 1), False),
        ([1, 1, 1], (2, 1), True),  # a higher last term wins over a longer log
        ([2], (1, 9), False),
        ([1, 2], (2, 2), True),
    ],
)
def test_request_vote_2_only_for_a_log_at_least_as_up_to_date(
    terms: list[int], last: tuple[int, int], granted: bool
) -> None:
    """RequestVote 2 with 5.4.1: logs compare by the term of the last entry, then by length."""
    bench = Bench(1, terms=terms)
    assert bench.reply(2, vote(7, last)) == ms.RequestVoteReply(term=7, granted=granted)


# -- AppendEntries, receiver


def test_append_entries_1_lower_term_is_refused() -> None:
    """AppendEntries 1: refuse if the leader's term is below the current one, and change nothing."""
    bench = Bench(1, terms=[1, 2], term=5)
    [reply] = only(bench.append(2, 4, (2, 2), [4], commit=2), ms.AppendEntriesReply)
    assert (reply.term, reply.success) == (5, False)
    assert (bench.terms, bench.raft.commit_index, bench.raft.leader_id) == ([1, 2], 0, 0)


@pytest.mark.parametrize(
    ("previous", "success"),
    [((0, 0), True), ((1, 1), True), ((2, 2), True), ((1, 2), False), ((2, 3), False), ((3, 9), False)],
)
def test_append_entries_2_the_previous_entry_must_match(previous: tuple[int, int], success: bool) -> None:
    """AppendEntries 2: refuse unless the log holds an entry with the previous index and term."""
    bench = Bench(1, terms=[1, 2])
    [reply] = only(bench.append(2, 3, previous), ms.AppendEntriesReply)
    assert reply.success == success
    assert bench.terms == [1, 2]


@pytest.mark.parametrize(
    ("mine", "previous", "sent", "after"),
    [
        ([1, 1, 1], (1, 1), [2], [1, 2]),  # 3: a conflict cuts the entry and all that follow
        ([1, 1, 1], (1, 1), [1, 2], [1, 1, 2]),
        ([1, 1, 1], (1, 1), [1], [1, 1, 1]),  # no conflict: what follows stays (a delayed message)
        ([1, 1, 1], (0, 0), [1], [1, 1, 1]),
        ([1, 1, 1], (1, 3), [], [1, 1, 1]),
        ([1, 1], (1, 2), [3, 3], [1, 1, 3, 3]),  # 4: what is new is appended
        ([], (0, 0), [1, 2, 3], [1, 2, 3]),
        ([1, 2, 2], (1, 1), [2, 3], [1, 2, 3]),
    ],
)
def test_append_entries_3_and_4_cut_at_a_conflict_only_then_append(
    mine: list[int], previous: tuple[int, int], sent: list[int], after: list[int]
) -> None:
    """AppendEntries 3 and 4."""
    bench = Bench(1, terms=mine)
    [reply] = only(bench.append(2, 5, previous, sent), ms.AppendEntriesReply)
    assert reply.success
    assert reply.index == previous[1] + len(sent)
    assert bench.terms == after


@pytest.mark.parametrize(
    ("leader_commit", "previous", "sent", "commit"),
    [
        (0, (1, 3), [], 0),
        (2, (1, 3), [], 2),
        (9, (1, 3), [], 3),
        (9, (1, 1), [1], 2),
        (9, (1, 1), [], 1),
        (9, (1, 3), [2], 4),
    ],
)
def test_append_entries_5_commit_no_further_than_what_this_message_verified(
    leader_commit: int, previous: tuple[int, int], sent: list[int], commit: int
) -> None:
    """AppendEntries 5: the commit index follows the leader's, but not beyond the last entry known to agree with it."""
    bench = Bench(1, terms=[1, 1, 1])
    bench.append(2, 2, previous, sent, commit=leader_commit)
    assert bench.raft.commit_index == commit


def test_append_entries_5_the_commit_index_never_goes_back() -> None:
    """AppendEntries 5: a leader's lower commit index changes nothing."""
    bench = Bench(1, terms=[1, 1, 1])
    bench.append(2, 2, (1, 3), commit=3)
    bench.append(2, 2, (1, 3), commit=1)
    assert bench.raft.commit_index == 3


# -- Rules for servers


def test_all_servers_1_committed_entries_are_applied_in_order() -> None:
    """All servers: while the commit index is ahead of what is applied, apply the next entry."""
    bench = Bench(1, terms=[1, 1, 1], apply_bytes_max=1)
    bench.append(2, 2, (1, 3), commit=3)
    applied = [e.index for apply in bench.answers(ev.Apply) for e in apply.entries]
    assert applied == [1, 2, 3]
    assert bench.raft.last_applied == 3


@pytest.mark.parametrize(
    "message",
    [
        vote(9),
        ms.RequestVoteReply(term=9, granted=False),
        ms.AppendEntries(term=9, prev_log_index=0, prev_log_term=0, entries=(), commit_index=0),
        ms.AppendEntriesReply(term=9, success=False, index=0),
        ms.Heartbeat(term=9, commit_index=0, round=0),
        ms.HeartbeatReply(term=9, round=0),
        ms.InstallSnapshotReply(term=9, snapshot_index=0, next_offset=0),
    ],
    ids=lambda m: type(m).__name__,
)
@pytest.mark.parametrize("role", ["follower", "candidate", "leader"])
def test_all_servers_2_a_higher_term_makes_a_follower(role: str, message: ms.Message) -> None:
    """All servers: a request or answer with a higher term sets the current term and makes a follower."""
    bench = Bench(1)
    if role != "follower":
        bench.pass_time()
    if role == "leader":
        bench.hear(2, ms.RequestVoteReply(term=1, granted=True))
        assert bench.raft.is_leader
    bench.hear(3, message)
    assert bench.raft.current_term == 9
    assert isinstance(bench.raft.role, Follower)
    assert bench.raft.voted_for in (0, 3)


def test_followers_campaign_when_the_timer_fires() -> None:
    """Followers: without the leader's word or a vote given for an election timeout, become a candidate."""
    bench = Bench(1)
    bench.append(2, 1, (0, 0))
    first = bench.raft.next_deadline()
    bench.pass_time(TIMEOUT // 2)
    bench.append(2, 1, (0, 0))  # the leader's word starts the timer again
    assert bench.raft.next_deadline() >= bench.now + TIMEOUT
    assert bench.raft.next_deadline() > first - TIMEOUT
    bench.pass_time()
    assert isinstance(bench.raft.role, Candidate)


def test_candidates_1_a_new_election() -> None:
    """Candidates: next term, own vote, timer anew, RequestVote to everybody."""
    bench = Bench(1, terms=[1, 2])
    sent = bench.pass_time()
    assert bench.raft.current_term == 3
    assert bench.raft.voted_for == 1
    assert sent == [(peer, vote(3, (2, 2))) for peer in (2, 3)]
    assert bench.raft.next_deadline() >= bench.now + TIMEOUT


def test_candidates_2_a_majority_makes_a_leader() -> None:
    """Candidates: with votes from a majority, become leader."""
    bench = Bench(1, voters=(1, 2, 3, 4, 5))
    bench.pass_time()
    bench.hear(2, ms.RequestVoteReply(term=1, granted=True))
    bench.hear(2, ms.RequestVoteReply(term=1, granted=True))  # the same vote again counts once
    bench.hear(4, ms.RequestVoteReply(term=1, granted=False))
    assert isinstance(bench.raft.role, Candidate)
    bench.hear(3, ms.RequestVoteReply(term=1, granted=True))
    assert bench.raft.is_leader


def test_candidates_3_the_leader_of_the_term_makes_a_follower() -> None:
    """Candidates: AppendEntries from the new leader ends the candidacy."""
    bench = Bench(1)
    bench.pass_time()
    bench.append(2, 1, (0, 0))
    assert isinstance(bench.raft.role, Follower)
    assert (bench.raft.leader_id, bench.raft.current_term, bench.raft.voted_for) == (2, 1, 1)


def test_candidates_4_another_election_after_a_timeout() -> None:
    """Candidates: if the timer fires, start the next election."""
    bench = Bench(1)
    bench.pass_time()
    bench.pass_time()
    assert isinstance(bench.raft.role, Candidate)
    assert bench.raft.current_term == 2


def test_leaders_1_heartbeats_at_once_and_while_idle() -> None:
    """Leaders: say so to everybody on election, and again during idle periods, before any election timeout."""
    bench = Bench(1)
    sent = bench.lead()
    assert {to for to, _ in sent} == {2, 3}
    for _ in range(5):
        before = bench.now
        sent = bench.pass_time()
        assert {to for to, m in sent if isinstance(m, ms.Heartbeat | ms.AppendEntries)} == {2, 3}
        assert bench.now - before < TIMEOUT // 2


def test_leaders_2_a_command_is_appended_and_answered_after_apply() -> None:
    """Leaders: append a client's command to the own log; respond once it is applied."""
    bench = Bench(1)
    bench.lead()
    bench.propose(b"x")
    assert bench.answers(ev.Appended) == [ev.Appended(1, 1, 2)]
    assert bench.answers(ev.Apply) == []
    bench.acknowledge(2, 2)
    assert [e.payload for apply in bench.answers(ev.Apply) for e in apply.entries] == [b"", b"x"]


def test_leaders_3_success_moves_match_and_next() -> None:
    """Leaders: a success moves the follower's indexes forward."""
    bench = Bench(1)
    bench.lead()
    bench.propose(b"x")
    bench.acknowledge(2, 2)
    assert isinstance(bench.raft.role, Leader)
    progress = bench.raft.role.progress[2]
    assert (progress.match_index, progress.next_index) == (2, 3)


def test_leaders_3_a_refusal_moves_next_back_and_tries_again() -> None:
    """Leaders: after a refusal for inconsistency, try again from an earlier entry."""
    bench = Bench(1, terms=[1, 1, 1, 1])
    bench.lead()
    refusal = ms.AppendEntriesReply(term=2, success=False, index=4, hint_index=2, hint_term=1)
    [again] = [m for to, m in bench.hear(2, refusal) if to == 2]
    assert isinstance(again, ms.AppendEntries)
    assert (again.prev_log_index, again.prev_log_term) == (2, 1)
    assert [e.index for e in again.entries] == [3, 4, 5]


@pytest.mark.parametrize(
    ("terms", "acknowledged", "commit"),
    [
        ([], {2: 1}, 1),  # the no-op of this term, on two of three
        ([1, 1], {2: 2}, 0),  # only old entries on a majority: not by counting
        ([1, 1], {2: 3}, 3),  # with an entry of the own term, the old ones too
        ([1, 1], {2: 2, 3: 2}, 0),
        ([1, 1], {2: 3, 3: 3}, 3),
    ],
)
def test_leaders_4_commit_what_a_majority_holds_in_the_own_term(
    terms: list[int], acknowledged: dict[int, int], commit: int
) -> None:
    """Leaders: commit N if a majority's match index reached it and the entry at N is of the current term. (5.3,
    5.4.2)"""
    bench = Bench(1, terms=terms)
    bench.lead()
    for peer, index in acknowledged.items():
        bench.acknowledge(peer, index)
    assert bench.raft.commit_index == commit
