"""Any well-formed message, from members and strangers, to a member in any role: it may be ignored, it may stop the
member,
it never raises and never takes back what was promised. `entries` are contiguous, as the type says; everything else
is free.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raft_bench import MS, Bench

from oarlock.raft import events as ev
from oarlock.raft import messages as ms
from oarlock.raft.types import U64_MAX, Configuration, Entry, EntryKind, SnapshotMeta, encode_configuration

ROLES = ("follower", "following", "pre-candidate", "candidate", "leader", "learner")
NUMBERS = st.one_of(st.integers(0, 8), st.sampled_from([2**31, 2**40, 2**63 - 1, U64_MAX]))
TERMS = st.one_of(st.integers(0, 6), st.sampled_from([2**39, 2**63 - 1, U64_MAX]))
CONFIGURATIONS = st.sampled_from(
    [Configuration(), Configuration.of_voters(1, 2, 3), Configuration.of_voters(7, 8), Configuration.of_voters(1)]
)


@st.composite
def appends(draw: st.DrawFn) -> ms.AppendEntries:
    previous = draw(NUMBERS)
    entries = []
    for offset in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from([*EntryKind, 9]))
        payload = draw(st.binary(max_size=4))
        if kind == EntryKind.CONFIG and draw(st.booleans()):
            payload = encode_configuration(draw(CONFIGURATIONS))
        entries.append(Entry(draw(TERMS), previous + 1 + offset, kind, payload))
    return ms.AppendEntries(
        term=draw(TERMS),
        prev_log_index=previous,
        prev_log_term=draw(TERMS),
        entries=tuple(entries),
        commit_index=draw(NUMBERS),
    )


snapshots = st.builds(
    SnapshotMeta,
    index=NUMBERS,
    term=TERMS,
    configuration=CONFIGURATIONS,
    size=NUMBERS,
    digest=st.sampled_from([b"", b"d" * 32]),
)
messages = st.one_of(
    st.builds(
        ms.RequestVote,
        term=TERMS,
        last_log_index=NUMBERS,
        last_log_term=TERMS,
        pre_vote=st.booleans(),
        transfer=st.booleans(),
    ),
    st.builds(ms.RequestVoteReply, term=TERMS, granted=st.booleans(), pre_vote=st.booleans()),
    appends(),
    st.builds(
        ms.AppendEntriesReply, term=TERMS, success=st.booleans(), index=NUMBERS, hint_index=NUMBERS, hint_term=TERMS
    ),
    st.builds(ms.Heartbeat, term=TERMS, commit_index=NUMBERS, round=NUMBERS, sent=NUMBERS, lease=st.booleans()),
    st.builds(ms.HeartbeatReply, term=TERMS, round=NUMBERS, sent=NUMBERS),
    st.builds(
        ms.InstallSnapshot,
        term=TERMS,
        snapshot=snapshots,
        offset=NUMBERS,
        data=st.binary(max_size=3),
        done=st.booleans(),
    ),
    st.builds(
        ms.InstallSnapshotReply, term=TERMS, snapshot_index=NUMBERS, next_offset=NUMBERS, installed=st.booleans()
    ),
    st.builds(ms.TimeoutNow, term=TERMS),
    st.builds(ms.TransferLeadership, term=TERMS, target=NUMBERS),
    st.builds(ms.ReadIndex, term=TERMS, request=NUMBERS),
    st.builds(ms.ReadIndexReply, term=TERMS, request=NUMBERS, index=NUMBERS),
    st.builds(ms.Propose, term=TERMS, request=NUMBERS, payload=st.binary(max_size=3)),
    st.builds(ms.ProposeReply, term=TERMS, request=NUMBERS, reason=st.just("overloaded")),
    st.builds(ms.ChangeMembers, term=TERMS, request=NUMBERS, payload=st.binary(max_size=3)),
    st.builds(ms.ChangeMembersReply, term=TERMS, request=NUMBERS, reason=st.just("")),
)
senders = st.sampled_from([0, 1, 2, 3, 4, 99, U64_MAX])


def in_role(role: str) -> Bench:
    node = 4 if role == "learner" else 1
    configuration = Configuration.of_voters(1, 2, 3)
    bench = Bench(
        node, terms=[1, 1, 2], configuration=configuration, pre_vote=role == "pre-candidate", check_quorum=True
    )
    if role in ("following", "learner"):
        bench.append(2, 2, (2, 3), commit=2)
    elif role in ("pre-candidate", "candidate"):
        bench.pass_time()
    elif role == "leader":
        bench.lead()
        bench.acknowledge(2, 4)
        bench.propose(b"x")
    return bench


@pytest.mark.parametrize("role", ROLES)
@settings(max_examples=150, deadline=None)
@given(heard=st.lists(st.tuples(senders, messages, st.integers(0, 400)), max_size=12))
def test_no_message_raises_or_takes_back(role: str, heard: list[tuple[int, ms.Message, int]]) -> None:
    bench = in_role(role)
    raft = bench.raft
    for sender, message, milliseconds in heard:
        term, vote, commit = raft.current_term, raft.voted_for, raft.commit_index
        kept = [raft.log.term(i) for i in range(raft.log.first_index, commit + 1)]
        bench.now += milliseconds * MS
        bench.hear(sender, message)
        assert raft.current_term >= term
        assert raft.commit_index >= commit
        if raft.current_term == term and vote:
            assert raft.voted_for == vote
        if raft.log.first_index == 1:
            assert [raft.log.term(i) for i in range(1, commit + 1)] == kept
        for write in bench.answers(ev.WriteChunk):
            bench.do(ev.ChunkWritten(write.sender, write.snapshot, write.offset, False))


@settings(max_examples=100, deadline=None)
@given(heard=st.lists(st.tuples(senders, messages), max_size=8))
def test_what_is_ignored_is_counted_and_bounded(heard: list[tuple[int, ms.Message]]) -> None:
    """A flood leaves nothing behind but counters: traces have a bound, nothing else grows."""
    bench = in_role("leader")
    for _ in range(20):
        for sender, message in heard:
            bench.hear(sender, message)
    assert len(bench.raft.take_traces()) <= 1024
    assert len(bench.raft.take_traces()) == 0
