"""Defects that the simulated world found, each in its smallest form."""

from __future__ import annotations

from random import Random

import member_group
import pytest

from oarlock.errors import SyncFailed
from oarlock.machines.base import Context
from oarlock.machines.kv import commands as kv
from oarlock.machines.kv.machine import KvMachine
from oarlock.raft.events import MessageReceived
from oarlock.raft.messages import Propose, ProposeReply
from oarlock.raft.reads import ReadQueue
from oarlock.raft.types import Configuration, Entry, HardState
from oarlock.storage import Identity, SnapshotStore, WriteAheadLog
from oarlock.storage.sim_disk import Fault, PowerCut, SimDisk

IDENTITY = Identity(7, 1, 99)
INTERVAL = 100


def test_a_follower_read_that_takes_longer_than_a_heartbeat_interval_is_answered() -> None:
    """Asking again drops the answer under way; asked anew at every interval, no answer ever counted. (seed 16)"""
    queue = ReadQueue(10, 0, 0)
    assert queue.add(1, 0)
    now, answer_takes = 0, 3 * INTERVAL
    asked: list[tuple[int, int]] = [(queue.ask(now), now)]
    while now < 20 * INTERVAL:
        now += INTERVAL // 4
        retry_at = queue.retry_at(INTERVAL)
        if retry_at is not None and now >= retry_at:
            queue.unask()
            asked.append((queue.ask(now), now))
        for request, at in asked:
            if at + answer_takes == now and queue.answered(request, 5, now):
                return
    raise AssertionError("the read was never answered")


def _divergent_log(disk: SimDisk) -> WriteAheadLog:
    """Entries 1-4 of term 1, of which a new leader keeps 1 and 2, in a log whose first segment is nearly full."""
    log = WriteAheadLog.create(disk, "log", IDENTITY, segment_bytes=4096)
    log.append(0, HardState(1, 1, 2), [Entry(1, i, 0, b"old") for i in range(1, 5)])
    log.sync()
    return log


@pytest.mark.parametrize("cut", range(24))
def test_a_commit_index_is_never_durable_before_its_entries(cut: int) -> None:
    """One write that is spread over two segments: what a crash keeps of it names nothing committed that is not there.

    The hard state went first, with the commit index of the whole write: a crash at the end of a segment left a log that
    refused to open, or one that took the entries about to be replaced for committed. (seed 9)
    """
    disk = SimDisk()
    log = _divergent_log(disk)
    log.append(0, HardState(2, 0, 8), [Entry(2, i, 0, b"new" * 300) for i in range(3, 9)])
    disk.cut_at = disk.operations + cut
    try:
        log.sync()
    except PowerCut:
        pass
    disk.kill()
    _, recovered = WriteAheadLog.open(disk, "log", segment_bytes=4096)
    state = recovered.groups[0]
    terms = {entry.index: entry.term for entry in state.entries}
    assert state.hard_state.commit <= state.last_index
    assert all(terms[index] == 2 for index in range(3, state.hard_state.commit + 1))


def test_a_capture_does_not_depend_on_what_is_purged() -> None:
    """A key put again after a deletion that is compacted: a member restored from a capture, which leaves the deletion
    out, wrote another log than one that still had it, and their snapshots differed. (seed 75)"""
    first = KvMachine.in_memory()
    first.apply(
        Context(1, 1, 0), [kv.encode(kv.Put(b"k", b"1")), kv.encode(kv.DeleteRange(b"k")), kv.encode(kv.Compact(3))]
    )
    second = KvMachine.in_memory()
    second.restore(1, first.capture().chunks())
    for machine in (first, second):
        machine.apply(Context(2, 1, 0), [kv.encode(kv.Put(b"k", b"2"))])
        machine.validate()
    assert b"".join(first.capture().chunks()) == b"".join(second.capture().chunks())
    past = kv.Range(b"k", revision=3)
    assert first.range(past) == second.range(past) == kv.RangeResult(4, [], False, 0)


def test_a_partial_snapshot_whose_sync_failed_is_written_again() -> None:
    """A receiver that resumed after a failed sync published what was in the page cache only. (seed 2074)"""
    disk = SimDisk()
    writer = SnapshotStore(disk, "sender").begin(0, 5, 1, Configuration())
    writer.write(b"state" * 500)
    meta = writer.finish()
    stream = disk.read_raw("sender/00000000-0000000000000005-0000000000000001.snap")[: meta.size]

    receiver = SnapshotStore(disk, "here").receiver(0, meta)
    receiver.write(0, stream)
    disk.inject("sync", Fault.EIO)
    with pytest.raises(SyncFailed):
        receiver.finish()
    disk.kill()
    again = SnapshotStore(disk, "here").receiver(0, meta)
    again.write(again.next_offset, stream[again.next_offset :])
    assert again.finish()
    disk.power_loss(Random(1))
    assert b"".join(SnapshotStore(disk, "here").open(0, meta).chunks()) == b"state" * 500


def test_a_refusal_meant_for_the_process_before_refuses_nothing() -> None:
    """Numbers of forwarded proposals began at 1 in every life of a process: a late refusal of the life before took the
    present proposal back, which was forwarded again under another number, and executed twice."""
    group = member_group.Group()
    leader = group.elect()
    follower = next(node for node in group.members if node != leader)
    sent: list[Propose] = []

    def drop(sender: int, to: int, message: object) -> bool:
        if isinstance(message, Propose):
            sent.append(message)
        return isinstance(message, Propose)

    group.drop = drop
    group.propose(follower, b"before")
    (before,) = sent
    group.crash(follower)
    group.start(follower)
    group.run(2 * member_group.TIMEOUT)
    sent.clear()
    group.propose(follower, b"now")
    term = group.members[leader].raft.current_term
    group.handle(
        follower, MessageReceived(leader, ProposeReply(term=term, request=before.request, reason="not_leader"))
    )
    group.run(member_group.TIMEOUT)
    assert len({message.request for message in sent}) == 1
