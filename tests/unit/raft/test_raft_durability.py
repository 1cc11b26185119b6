"""What a finished fsync vouches for, and what it does not."""

from __future__ import annotations

from raft_bench import Bench, only

from oarlock.raft import events as ev
from oarlock.raft import messages as ms
from oarlock.raft.types import Configuration, SnapshotMeta


def test_a_write_under_way_does_not_vouch_for_what_took_its_place() -> None:
    """Reliability BZ-32, BZ-33: entry 1.1 is being written when 2.1 replaces it; its completion says nothing of 2.1."""
    bench = Bench(1, voters=(1, 2, 3))
    bench.hold_syncs = True
    bench.append(2, 1, (0, 0), [1])
    first = bench.persists[-1].ticket
    bench.append(3, 2, (0, 0), [2])
    second = bench.persists[-1].ticket
    bench.do(ev.Persisted(first))
    assert bench.raft.log.stable_index == 0
    again = bench.append(3, 2, (0, 0), [2])
    assert only(again, ms.AppendEntriesReply) == [], "2.1 is not durable yet"
    bench.do(ev.Persisted(second))
    assert bench.raft.log.stable_index == 1


def test_an_acknowledgement_waits_for_the_write_that_its_entry_is_in() -> None:
    """A repeated message finds its entries in the log, and on no disk: the answer waits as the first one did."""
    bench = Bench(1)
    bench.hold_syncs = True
    bench.append(2, 1, (0, 0), [1, 1])
    assert only(bench.append(2, 1, (0, 0), [1, 1]), ms.AppendEntriesReply) == []
    sent = bench.do(ev.Persisted(bench.persists[-1].ticket))
    assert only(sent, ms.AppendEntriesReply) == [ms.AppendEntriesReply(term=1, success=True, index=2)]


def test_a_snapshot_is_acknowledged_when_its_mark_is_durable() -> None:
    """The file is on the disk before; the log's own mark must be too, or a restart would not know of it."""
    bench = Bench(1, terms=[1])
    meta = SnapshotMeta(index=5, term=1, configuration=Configuration.of_voters(1, 2, 3), size=1, digest=b"d" * 32)
    bench.hear(2, ms.InstallSnapshot(term=1, snapshot=meta, offset=0, data=b"x", done=True))
    bench.hold_syncs = True
    assert only(bench.do(ev.ChunkWritten(2, meta, 1, True)), ms.InstallSnapshotReply) == []
    assert bench.answers(ev.Restore) == []
    assert bench.raft.log.stable_index == 0
    sent = bench.sync() + bench.do(ev.Persisted(bench.persists[-1].ticket))
    assert [m.installed for m in only(sent, ms.InstallSnapshotReply)] == [True]


def test_a_change_of_the_commit_index_alone_is_never_written() -> None:
    bench = Bench(1, terms=[1, 1], term=1)
    bench.append(2, 1, (1, 2), commit=2)
    assert bench.raft.commit_index == 2
    assert bench.persists == []
