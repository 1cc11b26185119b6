"""One member between its callers, the core and its machine: three real members, a network and disks made of lists."""

from __future__ import annotations

import random

import pytest
from tests.support.member_group import MS, TIMEOUT, Group

from oarlock.errors import (
    DeadlineExceeded,
    LeadershipLost,
    NoLeader,
    Outcome,
    Overloaded,
    ProposalDropped,
    RaftError,
    Stopped,
)
from oarlock.node.replica import MemberLimits
from oarlock.node.replica import events as ev
from oarlock.node.replica.batch import COMMAND_BYTES_MAX, decode_batch, encode_group
from oarlock.node.replica.directory import encode_record
from oarlock.raft import events as raft_events
from oarlock.raft.messages import AppendEntries, AppendEntriesReply, Propose, ProposeReply
from oarlock.raft.types import EntryKind


def followers(group: Group) -> list[int]:
    return [i for i in group.members if i != group.leader and i not in group.witnesses]


def test_a_turn_of_proposals_is_one_entry_and_each_gets_its_own_result() -> None:
    group = Group()
    leader = group.elect()
    before = group.members[leader].raft.log.last_index
    first = group.propose(leader, b"a", b"b", b"c")
    group.settle()
    assert group.members[leader].raft.log.last_index == before + 1
    assert [group.results[leader, first + i] for i in range(3)] == [[0, b"a"], [1, b"b"], [2, b"c"]]
    group.run(200 * MS)
    assert group.applied() == {(b"a", b"b", b"c")}


def test_a_follower_passes_proposals_on_and_answers_itself() -> None:
    group = Group()
    group.elect()
    follower = followers(group)[0]
    first = group.propose(follower, b"x", b"y")
    group.settle()  # no time passes: the follower hears of the commit at once
    assert group.results == {(follower, first): [0, b"x"], (follower, first + 1): [1, b"y"]}


def test_groups_of_several_members_share_one_entry() -> None:
    group = Group()
    leader = group.elect()
    one, other = followers(group)
    proposes = []
    for follower in (one, other):
        group.propose(follower, b"f%d" % follower)
        proposes.append(group.network.pop())
    group.numbers[leader] = 1
    group.handle(leader, *(raft_events.MessageReceived(s, m) for s, _, m in proposes), ev.Submit(0, [b"l"]))
    entry = group.members[leader].raft.log.entry(group.members[leader].raft.log.last_index)
    assert [g.origin for g in decode_batch(entry.payload).groups] == [one, other, leader]
    group.settle()
    assert len(group.results) == 3


def test_without_a_leader_proposals_wait_and_are_proposed_when_there_is_one() -> None:
    group = Group()
    first = group.propose(1, b"early")
    assert not group.results
    group.elect()
    assert group.results == {(1, first): [0, b"early"]}


def test_without_a_leader_for_too_long_nothing_was_executed() -> None:
    group = Group()
    group.isolate(1)
    first = group.propose(1, b"lost")
    group.run(8_000 * MS)
    error = group.results[1, first]
    assert isinstance(error, NoLeader)
    assert error.outcome is Outcome.NOT_EXECUTED


def test_a_proposal_on_a_leader_that_was_cut_off_is_proposed_again_and_executed_once() -> None:
    group = Group()
    old = group.elect()
    group.isolate(old)
    first = group.propose(old, b"again")
    group.settle()
    assert group.members[old].raft.log.entry(group.members[old].raft.log.last_index).kind == EntryKind.NORMAL
    group.run(3_000 * MS)
    new = group.leader
    assert new != old
    group.propose(new, b"other")
    group.settle()
    group.heal()
    group.run(1_000 * MS)
    assert group.results[old, first] == [1, b"again"]
    assert group.members[old].resubmitted == 1
    assert group.applied() == {(b"other", b"again")}


def test_a_proposal_that_survived_the_change_of_leader_is_not_proposed_again() -> None:
    """The old leader's entry reached a majority, its acknowledgements did not: the new leader commits it."""
    group = Group()
    old = group.elect()
    group.drop = lambda sender, to, message: isinstance(message, AppendEntriesReply)
    first = group.propose(old, b"kept")
    group.settle()
    group.drop = lambda sender, to, message: False
    group.isolate(old)
    group.run(3_000 * MS)
    assert group.leader != old
    group.heal()
    group.run(1_000 * MS)
    assert group.results[old, first] == [0, b"kept"]
    assert group.members[old].resubmitted == 0
    assert group.applied() == {(b"kept",)}


def test_a_repeated_forward_is_appended_once() -> None:
    group = Group()
    group.elect()
    follower = followers(group)[0]
    group.repeat = lambda sender, to, message: 3 if isinstance(message, Propose) else 1
    first = group.propose(follower, b"x")
    group.settle()
    group.run(500 * MS)
    assert group.results[follower, first] == [0, b"x"]
    assert group.applied() == {(b"x",)}


def test_a_lost_forward_is_passed_on_again_within_an_election_timeout() -> None:
    group = Group()
    group.elect()
    follower = followers(group)[0]
    lost = []
    group.drop = lambda sender, to, message: isinstance(message, Propose) and not lost and not lost.append(message)
    first = group.propose(follower, b"x")
    group.settle()
    assert lost and not group.results
    group.run(1_100 * MS)
    assert group.results[follower, first] == [0, b"x"]


def test_a_new_connection_repeats_what_the_old_one_may_have_lost() -> None:
    group = Group()
    leader = group.elect()
    follower = followers(group)[0]
    group.drop = lambda sender, to, message: isinstance(message, Propose)
    first = group.propose(follower, b"x")
    group.settle()
    group.drop = lambda sender, to, message: False
    group.handle(follower, raft_events.PeerConnected(leader, 0))
    group.settle()
    assert group.results[follower, first] == [0, b"x"]


def test_a_late_copy_for_an_old_term_is_neither_appended_nor_refused() -> None:
    """A refusal would make its sender propose again what the old leader had taken."""
    group = Group()
    old = group.elect()
    follower = followers(group)[0]
    copies = []
    group.drop = lambda sender, to, message: isinstance(message, Propose) and bool(copies.append(message))
    group.propose(follower, b"x")
    group.settle()
    group.drop = lambda sender, to, message: False
    group.run(1_100 * MS)  # passed on again
    assert group.applied() == {(b"x",)}
    group.handle(old, raft_events.TransferRequested(1, follower))
    group.settle()
    assert group.leader == follower
    group.handle(old, raft_events.MessageReceived(follower, copies[0]))
    assert not any(isinstance(m, ProposeReply) for _, _, m in group.network)
    group.run(500 * MS)
    assert group.applied() == {(b"x",)}


def test_a_forward_to_somebody_who_leads_no_more_is_refused_and_finds_the_new_leader() -> None:
    group = Group()
    old = group.elect()
    follower, third = followers(group)
    first = group.propose(follower, b"x")
    held = [m for m in group.network if isinstance(m[2], Propose)]
    group.network = [m for m in group.network if m not in held]
    group.handle(old, raft_events.TransferRequested(1, third))
    group.cut = {(third, follower), (old, follower)}  # the follower keeps to the old leader
    group.settle()
    assert group.leader == third
    group.handle(old, raft_events.MessageReceived(follower, held[0][2]))
    assert any(isinstance(m, ProposeReply) for _, _, m in group.network) or group.members[old].refused_forwards == 1
    group.heal()
    group.run(2_000 * MS)
    assert group.results[follower, first] == [0, b"x"]
    assert group.applied() == {(b"x",)}


def test_while_leadership_is_handed_over_proposals_wait_and_none_is_lost() -> None:
    group = Group()
    leader = group.elect()
    one, other = followers(group)
    group.cut = {(leader, one), (one, leader)}
    group.propose(leader, b"before")
    group.settle()
    group.handle(leader, raft_events.TransferRequested(7, one))
    mine = group.propose(leader, b"mine")
    theirs = group.propose(other, b"theirs")
    group.settle()
    assert (leader, mine) not in group.results and (other, theirs) not in group.results
    group.heal()
    group.run(3_000 * MS)
    assert group.results[leader, mine][1] == b"mine"  # type: ignore[index]
    assert group.results[other, theirs][1] == b"theirs"  # type: ignore[index]
    (history,) = group.applied()
    assert sorted(history) == [b"before", b"mine", b"theirs"]


def test_too_many_proposals_are_refused_at_once() -> None:
    group = Group(limits=MemberLimits(proposals_pending_max=10))
    leader = group.elect()
    group.disks[leader].held = True
    group.isolate(leader)
    kept = group.propose(leader, *[b"c"] * 9)
    refused = group.propose(leader, b"d", b"e")
    error = group.results[leader, refused]
    assert isinstance(error, Overloaded) and error.bound == "proposals_pending_max" and error.limit == 10
    assert error.outcome is Outcome.NOT_EXECUTED
    assert (leader, kept) not in group.results


def test_too_many_bytes_are_refused_at_once() -> None:
    group = Group(limits=MemberLimits(proposals_pending_bytes_max=1000))
    group.propose(1, b"c" * 900)
    refused = group.propose(1, b"d" * 200)
    assert isinstance(group.results[1, refused], Overloaded)


def test_a_member_far_behind_what_is_committed_takes_nothing_new() -> None:
    """Applying is part of the step that commits, so the gap shows while a snapshot is put in place only; a bound below
    zero makes it show at any time."""
    group = Group(limits=MemberLimits(apply_gap_max=-1))
    leader = group.elect()
    for member in (leader, followers(group)[0]):
        first = group.propose(member, b"c")
        group.settle()
        error = group.results[member, first]
        assert isinstance(error, Overloaded) and error.bound == "apply_gap_max"
        assert error.outcome is Outcome.NOT_EXECUTED
    assert group.applied() == [[]] or not any(group.applied())


def test_a_command_over_the_bound_is_refused_alone() -> None:
    group = Group()
    leader = group.elect()
    first = group.propose(leader, b"small", bytes(COMMAND_BYTES_MAX + 1), b"after")
    group.settle()
    assert group.results[leader, first] == [0, b"small"]
    error = group.results[leader, first + 1]
    assert isinstance(error, Overloaded) and error.bound == "COMMAND_BYTES_MAX"
    assert group.results[leader, first + 2] == [1, b"after"]


def test_a_leader_whose_log_is_full_of_uncommitted_bytes_takes_no_more_from_others() -> None:
    group = Group(uncommitted_bytes_max=2000)
    leader = group.elect()
    follower, _third = followers(group)
    group.drop = lambda sender, to, message: isinstance(message, AppendEntriesReply)
    mine = group.propose(leader, b"m" * 1900)
    first = group.propose(follower, b"f" * 500)
    group.settle()
    error = group.results[follower, first]
    assert isinstance(error, Overloaded) and error.outcome is Outcome.NOT_EXECUTED
    own = group.propose(leader, b"n" * 500)  # its own wait for room
    assert (leader, own) not in group.results
    group.drop = lambda sender, to, message: False
    group.run(1_000 * MS)
    assert group.results[leader, mine][0] == 0 and group.results[leader, own][0] == 1  # type: ignore[index]


def test_a_deadline_says_that_nobody_knows() -> None:
    group = Group(check_quorum=False, pre_vote=False)
    leader = group.elect()
    group.isolate(leader)
    first = group.propose(leader, b"x")
    group.run(7_500 * MS)
    error = group.results[leader, first]
    assert isinstance(error, DeadlineExceeded) and error.outcome is Outcome.UNKNOWN
    group.heal()  # what was given up is not proposed again
    group.run(3_000 * MS)
    assert group.applied() == {()}


def test_stopping_answers_everybody() -> None:
    group = Group()
    leader = group.elect()
    group.isolate(leader)
    sent = group.propose(leader, b"sent")
    group.handle(leader, ev.ReadBarrier(1))
    follower = followers(group)[0]
    group.isolate(follower)
    group.run(2_500 * MS)
    queued = group.propose(follower, b"queued")
    group.perform(leader, group.members[leader].stop())
    group.perform(follower, group.members[follower].stop())
    assert isinstance(group.results[leader, sent], Stopped)
    assert isinstance(group.results[follower, queued], ProposalDropped)
    assert isinstance(group.reads[leader, 1], RaftError)
    assert group.members[leader].handle([ev.Submit(99, [b"z"])], group.now) == []


def test_reads_see_what_was_acknowledged_before_on_every_member() -> None:
    group = Group()
    leader = group.elect()
    group.propose(leader, b"x")
    group.settle()
    for node in group.members:
        group.handle(node, ev.ReadBarrier(1))
    group.settle()
    assert {node: group.reads[node, 1] for node in group.members} == {node: [b"x"] for node in group.members}


def test_a_read_waits_until_the_machine_has_what_was_acknowledged() -> None:
    group = Group()
    leader = group.elect()
    behind = followers(group)[0]
    group.drop = lambda sender, to, message: to == behind and isinstance(message, AppendEntries)
    first = group.propose(leader, b"x")
    group.settle()
    assert group.results[leader, first] == [0, b"x"]
    group.handle(behind, ev.ReadBarrier(1))
    group.settle()
    assert not group.reads
    group.drop = lambda sender, to, message: False
    group.run(500 * MS)
    assert group.reads == {(behind, 1): [b"x"]}


def test_a_refusal_counts_only_from_whom_it_was_passed_on_to() -> None:
    group = Group()
    leader = group.elect()
    follower, third = followers(group)
    first = group.propose(follower, b"x")
    ((_, _, propose),) = group.network
    lie = ProposeReply(term=propose.term, request=propose.request, reason="overloaded")
    group.handle(follower, raft_events.MessageReceived(third, lie))
    assert not group.results
    group.handle(follower, raft_events.MessageReceived(leader, lie))
    assert isinstance(group.results[follower, first], Overloaded)


def test_reads_without_a_leader_fail_and_are_bounded() -> None:
    group = Group(limits=MemberLimits(reads_pending_max=2))
    for token in range(3):
        group.handle(1, ev.ReadBarrier(token))
    assert isinstance(group.reads[1, 2], Overloaded)
    group.isolate(1)
    group.run(8_000 * MS)
    assert isinstance(group.reads[1, 0], NoLeader) and isinstance(group.reads[1, 1], NoLeader)


def test_a_read_on_a_leader_that_cannot_reach_anybody_fails_in_time() -> None:
    group = Group(check_quorum=False, pre_vote=False)
    leader = group.elect()
    group.isolate(leader)
    group.handle(leader, ev.ReadBarrier(1))
    group.run(7_500 * MS)
    error = group.reads[leader, 1]
    assert isinstance(error, DeadlineExceeded) and error.outcome is Outcome.NOT_EXECUTED


def test_time_in_the_state_never_goes_back() -> None:
    group = Group()
    leader = group.elect()
    group.propose(leader, b"a")
    group.settle()
    group.wall -= 3_600 * 1000 * MS
    group.handle(leader, raft_events.TransferRequested(1, followers(group)[0]))
    group.settle()
    group.propose(group.leader, b"b")
    group.settle()
    group.run(200 * MS)
    for node in group.members:
        times = group.machines[node].times
        assert len(times) == 2 and times[0] <= times[1]
    assert len({tuple(group.machines[n].times) for n in group.members}) == 1


def test_an_exception_of_the_machine_leaves_handle() -> None:
    group = Group()
    leader = group.elect()
    group.machines[leader].raises = RuntimeError("a bug")
    group.propose(leader, b"x")
    with pytest.raises(RuntimeError, match="a bug"):
        group.settle()


def test_malformed_forwards_are_counted_and_dropped() -> None:
    group = Group()
    leader = group.elect()
    sender = followers(group)[0]
    term = group.members[leader].raft.current_term
    bad = [
        b"", b"\xff" * 20, b"\x94\x01\x01\x00",
        encode_group(leader, 5, 0, [b"x"]),  # of another member than its sender
        encode_group(sender, 5, 0, []),
        encode_group(sender, 5, 0, [b"\x07later version"]),
        encode_group(sender, 5, 0, [bytes(2 << 20), bytes(1 << 20)]),
    ]  # fmt: skip
    last = group.members[leader].raft.log.last_index
    for request, payload in enumerate(bad, 1):
        message = Propose(term=term, request=request, payload=payload)
        group.handle(leader, raft_events.MessageReceived(sender, message))
    assert group.members[leader].malformed_forwards == len(bad)
    assert group.members[leader].raft.log.last_index == last


# -- snapshots, checkpoints, restart


def test_a_volatile_machine_is_written_to_a_file_and_starts_from_it() -> None:
    group = Group(limits=MemberLimits(snapshot_entries=10), tail_entries_max=2)
    leader = group.elect()
    for i in range(25):
        group.propose(leader, b"%d" % i)
        group.settle()
    group.run(300 * MS)
    for node in group.members:
        assert group.disks[node].snapshot.index >= 20
    for node in list(group.members):
        group.crash(node)
        group.start(node)
        assert group.members[node].applied_index >= 20
    group.elect()
    group.run(300 * MS)
    assert group.applied() == {tuple(b"%d" % i for i in range(25))}


def test_a_durable_machine_is_checkpointed_and_only_later_entries_are_applied_again() -> None:
    group = Group(durable=True)
    leader = group.elect()
    for i in range(5):
        group.propose(leader, b"%d" % i)
        group.settle()
    group.run(6_000 * MS)
    assert all(group.machines[n].disk[0] == group.machines[n].applied_index for n in group.members)
    group.propose(leader, b"late")
    group.settle()
    for node in list(group.members):
        group.crash(node)
        group.start(node)
    group.elect()
    group.run(300 * MS)
    assert group.applied() == {(*(b"%d" % i for i in range(5)), b"late")}


def test_a_checkpoint_never_runs_ahead_of_the_own_log() -> None:
    """A follower may apply what it has not synced: others hold it. Its machine's disk must wait for its log's."""
    group = Group(durable=True)
    leader = group.elect()
    group.run(5_500 * MS)
    slow = followers(group)[0]
    group.disks[slow].held = True
    done = group.machines[slow].disk[0]
    group.propose(leader, b"x")
    group.settle()
    group.propose(leader, b"y")  # its entry brings the word that x is committed
    group.settle()
    group.run(50 * MS)
    assert group.machines[slow].commands[:1] == [b"x"], "committed without the slow member"
    for _ in range(600):
        group.now += 20 * MS
        for node in group.members:
            group.handle(node, raft_events.TimePassed())
        group.settle()
    assert group.machines[slow].disk[0] == done
    member = group.members[slow]
    assert member.next_deadline() > group.now, "it asks for turns in which it can do nothing"
    group.disks[slow].held = False
    group.run(100 * MS)
    assert group.machines[slow].disk[0] > done


@pytest.mark.parametrize("durable", [False, True])
def test_a_member_far_behind_gets_a_snapshot(durable: bool) -> None:
    limits = MemberLimits(snapshot_entries=5, checkpoint_interval_ns=50 * MS)
    group = Group(durable=durable, limits=limits, tail_entries_max=1)
    leader = group.elect()
    behind = followers(group)[0]
    group.isolate(behind)
    for i in range(30):
        group.propose(leader, b"%d" % i)
        group.settle()
        group.run(60 * MS)
    third = next(i for i in group.members if i not in (leader, behind))
    group.handle(leader, raft_events.TransferRequested(1, third))
    group.run(2 * TIMEOUT)  # the one behind knows no leader any more
    leader = group.leader
    assert group.members[leader].raft.log.snapshot_index > group.members[behind].raft.log.last_index
    waiting = group.propose(behind, b"from behind")
    group.heal()
    group.run(3_000 * MS)
    assert group.machines[behind].commands[:30] == [b"%d" % i for i in range(30)]
    assert group.results[behind, waiting][1] == b"from behind"  # type: ignore[index]
    assert len(group.applied()) == 1


def test_a_proposal_that_a_snapshot_may_have_covered_fails_as_unknown() -> None:
    group = Group(limits=MemberLimits(snapshot_entries=3), tail_entries_max=1)
    leader = group.elect()
    behind = followers(group)[0]
    group.drop = lambda sender, to, message: to == behind and isinstance(message, AppendEntries)
    first = group.propose(behind, b"covered")
    group.settle()
    for i in range(12):
        group.propose(leader, b"%d" % i)
        group.settle()
    assert (behind, first) not in group.results
    group.drop = lambda sender, to, message: False
    group.run(2_000 * MS)
    error = group.results[behind, first]
    assert isinstance(error, LeadershipLost) and error.outcome is Outcome.UNKNOWN
    assert len(group.applied()) == 1
    (history,) = group.applied()
    assert history.count(b"covered") == 1


def test_a_witness_votes_but_serves_nobody() -> None:
    group = Group(ids=(1, 2, 3), witnesses=(3,), limits=MemberLimits(snapshot_entries=4), tail_entries_max=1)
    leader = group.elect()
    assert leader != 3
    for i in range(12):
        group.propose(leader, b"%d" % i)
        group.settle()
    other = next(i for i in (1, 2) if i != leader)
    group.isolate(other)
    first = group.propose(leader, b"with the witness")
    group.run(300 * MS)
    assert group.results[leader, first] == [12, b"with the witness"]
    refused = group.propose(3, b"x")
    assert isinstance(group.results[3, refused], ProposalDropped)
    assert group.members[3].raft.log.snapshot_index > 0, "the witness cuts its log too"


def test_a_member_publishes_its_urls_once_it_knows_what_the_group_knows() -> None:
    group = Group()
    group.elect()
    follower = followers(group)[0]
    group.crash(follower)
    record = encode_record("renamed", ["http://ignored:1"], ["http://client:2379"])
    group.start(follower, record=record)
    group.run(3_000 * MS)
    for member in group.members.values():
        found = member.records()[follower]
        assert (found.name, found.peer_urls, found.client_urls) == (
            "renamed", (f"http://peer{follower}:1",), ("http://client:2379",),
        )  # fmt: skip
    last = group.members[follower].raft.log.last_index
    group.crash(follower)
    group.start(follower, record=record)
    group.run(3_000 * MS)
    assert group.members[follower].raft.log.last_index == last, "what is known is not published again"


# -- everything at once


@pytest.mark.parametrize("seed", range(25))
def test_exactly_once_whatever_happens(seed: int) -> None:
    """Crashes, cuts, repeated and lost messages, transfers: each command is executed at most once, what was
    acknowledged is there, what was refused is not, and all members agree."""
    rng = random.Random(seed)
    limits = MemberLimits(snapshot_entries=rng.choice([5, 1000]), checkpoint_interval_ns=rng.choice([100, 5000]) * MS)
    group = Group(seed=seed, durable=rng.random() < 0.5, limits=limits, tail_entries_max=rng.choice([1, 1000]))
    repeats = rng.choice([0.0, 0.2])
    losses = rng.choice([0.0, 0.1])
    group.repeat = lambda sender, to, message: 2 if rng.random() < repeats else 1
    group.drop = lambda sender, to, message: rng.random() < losses
    sent: dict[tuple[int, int], bytes] = {}
    ghosts: list[tuple[int, int, object]] = []
    for step in range(250):
        action = rng.random()
        node = rng.choice(list(group.disks))
        if action < 0.5 and node in group.members:
            commands = [b"%d.%d.%d" % (node, step, i) for i in range(rng.randrange(1, 4))]
            first = group.propose(node, *commands)
            sent.update({(node, first + i): c for i, c in enumerate(commands)})
        elif action < 0.53 and len(group.members) == 3:
            for number in [n for (m, n) in sent if m == node and (m, n) not in group.results]:
                group.results[node, number] = Stopped("crashed")
            group.crash(node)
            group.numbers[node] += 1000
        elif action < 0.58:
            for other in group.disks:
                if other not in group.members:
                    group.start(other)
        elif action < 0.61:
            group.isolate(node)
        elif action < 0.66:
            group.heal()
        elif action < 0.70 and node in group.members:
            group.handle(node, raft_events.TransferRequested(step, rng.choice(list(group.disks))))
        elif action < 0.75 and group.network:
            ghosts.append(rng.choice(group.network))
        elif action < 0.80 and ghosts:
            sender, to, message = ghosts.pop(rng.randrange(len(ghosts)))
            group.post(sender, to, message)
        group.deliver() if rng.random() < 0.5 else group.run(rng.choice([20, 20, 100, 700]) * MS)
    group.drop = lambda sender, to, message: False
    group.heal()
    for node in group.disks:
        if node not in group.members:
            group.start(node)
    group.run(15_000 * MS, step=50 * MS)
    assert len(group.applied()) == 1, "members differ"
    (history,) = group.applied()
    assert len(history) == len(set(history)), "a command was executed twice"
    executed = set(history)
    for key, command in sent.items():
        result = group.results[key]  # everybody was answered
        if isinstance(result, RaftError):
            assert result.outcome is not Outcome.NOT_EXECUTED or command not in executed, f"{command!r}: {result!r}"
        else:
            assert command in executed, f"{command!r} was acknowledged and is lost"


def test_the_timeout_is_request_timeout_and_two_elections() -> None:
    group = Group(limits=MemberLimits(request_timeout_ns=500 * MS))
    group.isolate(1)
    first = group.propose(1, b"x")
    group.run(500 * MS + 2 * TIMEOUT - 20 * MS)
    assert (1, first) not in group.results
    group.run(40 * MS)
    assert isinstance(group.results[1, first], NoLeader)
