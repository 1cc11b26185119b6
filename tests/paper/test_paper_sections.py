"""Sections 5.1 to 8 of the extended Raft paper, and its Figures 3, 6, 7 and 8."""

from __future__ import annotations

import pytest
from raft_bench import MS, TIMEOUT, Bench, only

from oarlock.raft import events as ev
from oarlock.raft import messages as ms
from oarlock.raft.roles import Candidate, Follower, Leader
from oarlock.raft.types import Configuration, EntryKind, SnapshotMeta
from oarlock.sim.invariants import Invariants
from oarlock.sim.stage import FixedRandom, Stage


def stage_of(*voters: int, **options: object) -> Stage:
    stage = Stage(
        Configuration.of_voters(*voters), rng=lambda node: FixedRandom(0.1 * node), options=dict(options), start=False
    )
    stage.observer = Invariants(stage.actors)
    for node in voters:
        stage.start(node)
    return stage


def test_5_1_terms_only_grow_and_stale_requests_are_refused() -> None:
    """5.1: a server that gets a request with a stale term refuses it; terms act as a logical clock."""
    bench = Bench(1, term=7)
    for message in (
        ms.RequestVote(term=6, last_log_index=9, last_log_term=6),
        ms.AppendEntries(term=6, prev_log_index=0, prev_log_term=0, entries=(), commit_index=0),
        ms.Heartbeat(term=6, commit_index=0, round=0),
    ):
        answer = bench.reply(2, message)
        assert answer.term == 7
    assert bench.raft.current_term == 7


def test_5_2_at_most_one_leader_in_a_term() -> None:
    """5.2, Figure 3 Election Safety: with one vote each, two candidates of a term cannot both have a majority."""
    stage = stage_of(1, 2, 3, pre_vote=False)
    for node in (1, 2):
        actor = stage.actors[node]
        actor.clock = actor.core.next_deadline()
        stage.submit(node, ev.TimePassed())
    stage.settle()
    leaders = [n for n, a in stage.actors.items() if a.is_leader]
    assert len(leaders) <= 1


def test_5_2_timeouts_are_random_between_one_and_two() -> None:
    """5.2: each election timeout is drawn anew from a fixed interval, so that split votes are rare and soon over."""
    bench = Bench(1)
    drawn = set()
    for _ in range(50):
        before = bench.now
        bench.pass_time()
        assert TIMEOUT <= bench.raft.next_deadline() - bench.now < 2 * TIMEOUT
        drawn.add(bench.now - before)
    assert len(drawn) > 40


def test_5_2_a_candidate_refuses_a_lower_term_leader_and_goes_on() -> None:
    """5.2: if the term of a would-be leader is below the candidate's, the candidate refuses and stays one."""
    bench = Bench(1, term=3)
    bench.pass_time()
    bench.append(2, 3, (0, 0))
    assert isinstance(bench.raft.role, Candidate)


def test_5_3_log_matching_is_checked_before_anything_is_appended() -> None:
    """5.3, Figure 3 Log Matching: the consistency check is the induction step."""
    bench = Bench(1, terms=[1, 1, 2])
    for previous in ((2, 2), (1, 3), (3, 4), (1, 9)):
        [reply] = only(bench.append(2, 4, previous, [4, 4]), ms.AppendEntriesReply)
        assert not reply.success
    assert bench.terms == [1, 1, 2]


def test_5_3_a_leader_never_cuts_its_own_log() -> None:
    """5.3, Figure 3 Leader Append-Only: whatever a leader hears in its term, its log only grows."""
    bench = Bench(1, terms=[1, 1])
    bench.lead()
    term = bench.raft.current_term
    before = list(bench.terms)
    bench.append(2, term, (0, 0), [term, term, term])
    bench.append(2, term - 1, (0, 0), [1])
    bench.hear(3, ms.AppendEntriesReply(term=term, success=False, index=2, hint_index=0, hint_term=0))
    assert bench.terms == before
    assert bench.raft.is_leader


FIGURE_7_LEADER = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]
FIGURE_7 = {
    "a": [1, 1, 1, 4, 4, 5, 5, 6, 6],
    "b": [1, 1, 1, 4],
    "c": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
    "d": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
    "e": [1, 1, 1, 4, 4, 4, 4],
    "f": [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
}


@pytest.mark.parametrize("name", FIGURE_7)
def test_5_3_figure_7_every_follower_is_made_alike(name: str) -> None:
    """5.3, Figure 7: the leader of term 8 finds the last agreement with each follower and replaces what follows it."""
    leader, follower = Bench(1, terms=FIGURE_7_LEADER, term=7), Bench(2, terms=FIGURE_7[name], term=7)
    leader.pass_time()
    sent = leader.hear(3, ms.RequestVoteReply(term=8, granted=True))
    queue = [m for to, m in sent if to == 2]
    exchanges = 0
    while queue:
        exchanges += 1
        answers = [m for to, m in follower.hear(1, queue.pop(0)) if to == 1]
        for answer in answers:
            queue += [m for to, m in leader.hear(2, answer) if to == 2]
    assert follower.terms == [*FIGURE_7_LEADER, 8]
    assert exchanges <= 5, "a whole term is skipped in one exchange"
    assert isinstance(leader.raft.role, Leader)
    assert leader.raft.role.progress[2].match_index == 11


def test_5_3_refusals_skip_whole_terms() -> None:
    """5.3: one refusal for each conflicting term, not for each conflicting entry."""
    leader, follower = Bench(1, terms=[1, *[3] * 50], term=3), Bench(2, terms=[1, *[2] * 60], term=3)
    leader.pass_time()
    queue = [m for to, m in leader.hear(3, ms.RequestVoteReply(term=4, granted=True)) if to == 2]
    refusals = 0
    while queue:
        for to, answer in follower.hear(1, queue.pop(0)):
            assert to == 1
            refusals += isinstance(answer, ms.AppendEntriesReply) and not answer.success
            queue += [m for to, m in leader.hear(2, answer) if to == 2]
    assert follower.terms == leader.terms
    assert refusals <= 3


def test_5_4_1_a_candidate_without_all_committed_entries_cannot_win() -> None:
    """5.4.1, Figure 3 Leader Completeness: a majority holds every committed entry, and each of them refuses."""
    holders = [Bench(node, terms=[1, 2], term=2) for node in (2, 3)]
    for holder in holders:
        answer = holder.reply(1, ms.RequestVote(term=3, last_log_index=5, last_log_term=1))
        assert answer == ms.RequestVoteReply(term=3, granted=False)


def test_5_4_2_figure_8_an_old_entry_on_a_majority_is_not_committed() -> None:
    """5.4.2, Figure 8 (c): the leader of term 4 brings its entry of term 2 to a majority; that commits nothing."""
    leader = Bench(1, terms=[1, 2], term=3, voters=(1, 2, 3, 4, 5))
    leader.lead()
    assert leader.raft.current_term == 4
    leader.acknowledge(2, 2)
    leader.acknowledge(3, 2)
    assert leader.raft.commit_index == 0
    leader.acknowledge(2, 3)
    leader.acknowledge(3, 3)  # (e): its own entry on a majority commits both
    assert leader.raft.commit_index == 3


def test_5_4_2_figure_8_such_an_entry_may_still_be_overwritten() -> None:
    """5.4.2, Figure 8 (d): a member with a higher last term wins over those that hold the old entry, and replaces
    it."""
    holders = [Bench(node, terms=[1, 2], term=4, voters=(1, 2, 3, 4, 5)) for node in (2, 3)]
    for holder in holders:
        assert holder.reply(5, ms.RequestVote(term=5, last_log_index=2, last_log_term=3)).granted  # type: ignore[union-attr]
        holder.append(5, 5, (1, 1), [3, 5])
        assert holder.terms == [1, 3, 5]


def test_5_4_3_state_machine_safety_through_a_change_of_leader() -> None:
    """5.4.3, Figure 3 State Machine Safety: no two machines apply different entries at one index."""
    stage = stage_of(1, 2, 3)
    stage.wait(3 * TIMEOUT)
    first = stage.leader
    stage.submit(first, ev.Proposed(1, b"one"))
    stage.settle()
    stage.crash(first)
    stage.wait(5 * TIMEOUT)
    second = stage.leader
    assert second not in (0, first)
    stage.submit(second, ev.Proposed(2, b"two"))
    stage.settle()
    stage.start(first)
    stage.wait(TIMEOUT)
    states = {(a.machine.index, a.machine.digest) for a in stage.actors.values()}
    assert len(states) == 1


def test_5_5_requests_may_be_repeated() -> None:
    """5.5: requests are idempotent: the same one twice leaves the same state and the same answer."""
    bench = Bench(1)
    first = only(bench.append(2, 1, (0, 0), [1, 1], commit=1), ms.AppendEntriesReply)
    state = (bench.terms, bench.raft.commit_index)
    assert only(bench.append(2, 1, (0, 0), [1, 1], commit=1), ms.AppendEntriesReply) == first
    assert (bench.terms, bench.raft.commit_index) == state
    voter = Bench(1)
    request = ms.RequestVote(term=2, last_log_index=0, last_log_term=0)
    assert voter.reply(2, request) == voter.reply(2, request)


def test_5_5_the_leader_repeats_what_was_lost() -> None:
    """5.5: a crashed or slow follower is tried again for as long as it takes."""
    bench = Bench(1)
    bench.lead()
    bench.propose(b"lost")
    tries = 0
    for _ in range(10):
        bench.pass_time()
        sent = bench.hear(2, ms.HeartbeatReply(term=1, round=0, sent=bench.now))
        tries += any(isinstance(m, ms.AppendEntries) for _, m in sent)
    assert tries >= 3


def test_5_6_a_leader_lives_on_heartbeats_far_below_the_timeout() -> None:
    """5.6: broadcast time << election timeout: the configuration insists on at least three heartbeats in a timeout."""
    with pytest.raises(ValueError, match="at least 3 heartbeat intervals"):
        Bench(1, election_timeout_ns=200 * MS, heartbeat_interval_ns=100 * MS)
    stage = stage_of(1, 2, 3)
    stage.wait(3 * TIMEOUT)
    leader, term = stage.leader, stage.actors[1].core.current_term
    stage.wait(20 * TIMEOUT)
    assert (stage.leader, stage.actors[1].core.current_term) == (leader, term)


def test_6_joint_consensus_needs_both_majorities_to_commit_and_to_elect() -> None:
    """6: while joint, agreement needs separate majorities of the old and of the new members."""
    joint = Configuration(
        members=Configuration.of_voters(1, 2, 3, 4, 5).members,
        voters=frozenset({1, 4, 5}),
        outgoing=frozenset({1, 2, 3}),
    )
    bench = Bench(1, configuration=joint)
    bench.pass_time()
    for peer in (4, 5):
        bench.hear(peer, ms.RequestVoteReply(term=1, granted=True))
    assert isinstance(bench.raft.role, Candidate)
    bench.hear(2, ms.RequestVoteReply(term=1, granted=True))
    assert bench.raft.is_leader
    for peer in (4, 5):
        bench.acknowledge(peer, 1)
    assert bench.raft.commit_index == 0
    bench.acknowledge(3, 1)
    assert bench.raft.commit_index == 1


def test_6_a_configuration_counts_from_the_moment_it_is_appended() -> None:
    """6: a server always uses the latest configuration in its log, committed or not."""
    stage = stage_of(1, 2, 3)
    stage.wait(3 * TIMEOUT)
    leader = stage.leader
    stage.partition([leader])
    change = ev.ConfigChange(ev.ChangeKind.ADD_VOTER, Configuration.of_voters(9).members[0])
    stage.submit(leader, ev.ConfigChangeRequested(1, (change,)))
    core = stage.actors[leader].core
    assert core.configuration.joint
    assert core.configuration.voters == {1, 2, 3, 9}
    assert core.commit_index < core.configuration_index


def test_6_votes_are_not_heard_while_a_leader_is() -> None:
    """6 (and diss. 4.2.3): a request for votes within the shortest timeout of hearing a leader changes nothing."""
    bench = Bench(1, check_quorum=True)
    bench.append(2, 1, (0, 0))
    bench.pass_time(TIMEOUT - 1)
    assert bench.hear(3, ms.RequestVote(term=9, last_log_index=9, last_log_term=9)) == []
    assert bench.raft.current_term == 1


def test_7_install_snapshot_1_lower_term_is_refused() -> None:
    """7, Figure 13 rule 1: the answer to a stale leader carries the current term."""
    bench = Bench(1, term=5)
    meta = SnapshotMeta(index=9, term=4, configuration=Configuration.of_voters(1, 2, 3), size=3, digest=b"d" * 32)
    answer = bench.reply(2, ms.InstallSnapshot(term=4, snapshot=meta, offset=0, data=b"abc", done=True))
    assert answer.term == 5
    assert bench.answers(ev.WriteChunk) == []


def test_7_install_snapshot_2_to_5_chunks_go_to_the_file_and_their_end_is_answered() -> None:
    """7, Figure 13 rules 2 to 5: data is written at its offset; the sender goes on when it hears so."""
    bench = Bench(1, term=5)
    meta = SnapshotMeta(index=9, term=4, configuration=Configuration.of_voters(1, 2, 3), size=6, digest=b"d" * 32)
    bench.hear(2, ms.InstallSnapshot(term=5, snapshot=meta, offset=0, data=b"abc", done=False))
    assert bench.answers(ev.WriteChunk) == [ev.WriteChunk(2, meta, 0, b"abc", False)]
    sent = bench.do(ev.ChunkWritten(2, meta, 3, False))
    assert sent == [(2, ms.InstallSnapshotReply(term=5, snapshot_index=9, next_offset=3))]


def test_7_install_snapshot_6_a_matching_suffix_stays() -> None:
    """7, Figure 13 rule 6: with an entry of the snapshot's last index and term in the log, what follows it is kept."""
    bench = Bench(1, terms=[1, 1, 1, 1])
    meta = SnapshotMeta(index=2, term=1, configuration=Configuration.of_voters(1, 2, 3), size=3, digest=b"d" * 32)
    answer = bench.reply(2, ms.InstallSnapshot(term=1, snapshot=meta, offset=0, data=b"abc", done=True))
    assert answer == ms.InstallSnapshotReply(term=1, snapshot_index=2, next_offset=0, installed=True)
    assert bench.terms == [1, 1, 1, 1]
    assert bench.raft.commit_index == 2


def test_7_install_snapshot_6_the_suffix_stays_also_when_it_came_during_the_transfer() -> None:
    """7, Figure 13 rule 6, when the last chunk is on the disk only after the log arrived by itself."""
    bench = Bench(1, term=1)
    meta = SnapshotMeta(index=2, term=1, configuration=Configuration.of_voters(1, 2, 3), size=3, digest=b"d" * 32)
    bench.hear(2, ms.InstallSnapshot(term=1, snapshot=meta, offset=0, data=b"abc", done=True))
    bench.append(2, 1, (0, 0), [1, 1, 1])
    bench.do(ev.ChunkWritten(2, meta, 3, True))
    assert bench.terms == [1, 1, 1]
    assert bench.answers(ev.Restore) == []


def test_7_install_snapshot_7_and_8_otherwise_log_and_state_are_replaced() -> None:
    """7, Figure 13 rules 7 and 8: the log goes, the machine takes the snapshot's state, its configuration is in
    force."""
    bench = Bench(1, terms=[1, 1, 1])
    members = Configuration.of_voters(1, 2, 3, 4)
    meta = SnapshotMeta(index=9, term=2, configuration=members, size=3, digest=b"d" * 32)
    bench.hear(2, ms.InstallSnapshot(term=2, snapshot=meta, offset=0, data=b"abc", done=True))
    sent = bench.do(ev.ChunkWritten(2, meta, 3, True))
    assert bench.persists[-1].snapshot == meta
    assert bench.persists[-1].reset_log
    assert bench.answers(ev.Restore) == [ev.Restore(meta)]
    assert (2, ms.InstallSnapshotReply(term=2, snapshot_index=9, next_offset=0, installed=True)) in sent
    assert (bench.raft.log.last_term, bench.raft.log.last_index, bench.raft.commit_index) == (2, 9, 9)
    assert bench.raft.configuration == members


def test_7_a_snapshot_names_the_term_of_its_entry_and_the_configuration_there() -> None:
    """7: a snapshot carries last included index, its term, and the latest configuration as of that index."""
    bench = Bench(1, terms=[1, 2, 2])
    bench.append(2, 5, (2, 3), [5], commit=2)
    meta = bench.raft.snapshot_meta(2)
    assert (meta.index, meta.term, meta.configuration) == (2, 2, Configuration.of_voters(1, 2, 3))


def test_8_a_new_leader_opens_its_term_with_an_empty_entry() -> None:
    """8: a leader commits a no-op at the start of its term, to learn which entries are committed."""
    bench = Bench(1, terms=[1, 1])
    bench.lead()
    assert bench.raft.log.entry(3).kind == EntryKind.NOOP
    assert bench.raft.log.entry(3).term == 2


def test_8_reads_wait_for_that_entry_and_for_a_round_of_heartbeats() -> None:
    """8: before a read is answered the leader must have committed in its term, and then confirm that it still leads."""
    bench = Bench(1, terms=[1])
    bench.lead()
    bench.do(ev.ReadRequested(7))
    bench.hear(2, ms.HeartbeatReply(term=2, round=0, sent=0))
    assert bench.answers(ev.ReadReady) == []
    [beat, *_] = only(bench.acknowledge(2, 2), ms.Heartbeat)
    assert bench.answers(ev.ReadReady) == []
    bench.hear(3, ms.HeartbeatReply(term=2, round=beat.round, sent=beat.sent))
    assert bench.answers(ev.ReadReady) == [ev.ReadReady(7, 2)]


def test_8_followers_redirect() -> None:
    """8: a server that does not lead refuses a proposal and names the leader it knows."""
    bench = Bench(1)
    bench.append(2, 1, (0, 0))
    bench.propose(b"x")
    assert bench.answers(ev.ProposalRefused) == [ev.ProposalRefused(1, "not_leader", 2)]
    assert isinstance(bench.raft.role, Follower)
