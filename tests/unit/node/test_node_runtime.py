"""The driver alone: what leaves when, what a stall does, when a disk counts as sick. Peers and log are fakes."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from tests.support.member_group import ListMachine

from oarlock.errors import DiskFull, ProposalDropped, RaftError, StorageError, SyncFailed
from oarlock.node.replica import Member, MemberLimits
from oarlock.node.replica.batch import encode_batch, encode_group
from oarlock.node.replica.directory import encode_record
from oarlock.node.runtime import ANSWERS_FLUSHED, DISK_WINDOWS_SICK, Node
from oarlock.node.snapshot_files import SnapshotFiles
from oarlock.raft.config import RaftConfig
from oarlock.raft.messages import AppendEntries, AppendEntriesReply, Heartbeat, RequestVote, RequestVoteReply
from oarlock.raft.types import Configuration, Entry, EntryKind, HardState, MemberInfo, SnapshotMeta
from oarlock.transport.handshake import Hello, LocalIdentity, PeerAddress

MS = 1_000_000


class FakeLog:
    """Syncs only when `gate` is open."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.appended: list[tuple[HardState | None, tuple[Any, ...]]] = []
        self.syncs: list[int] = []  # how many appends each made durable
        self.synced_by: list[int] = []  # the thread of each sync
        self.notes = 0
        self.error: BaseException | None = None
        self.prepared = 0
        self.prepare_error: Exception | None = None
        self.closed = False
        self.segment_count = 1
        self.room = 1 << 20
        self._since = 0

    def append(
        self, group: int, hard_state: Any, entries: Any, *, snapshot: Any = None, reset_log: bool = False
    ) -> None:
        self.appended.append((hard_state, tuple(entries)))
        self._since += 1

    def note_synced(self) -> None:
        assert self.error is None
        self.notes += 1

    def sync(self, *, note: bool = True) -> None:
        assert self.gate.wait(120)
        if self.error is not None:
            raise self.error
        self.syncs.append(self._since)
        self.synced_by.append(threading.get_ident())
        self._since = 0

    def prepare_next(self) -> None:
        self.prepared += 1
        if self.prepare_error is not None:
            raise self.prepare_error

    def release(self, group: int, index: int) -> None: ...

    def close(self) -> None:
        self.closed = True


class FakePeers:
    def __init__(self, identity: LocalIdentity, **callbacks: Any) -> None:
        self.callbacks = callbacks
        self.sent: list[tuple[int, Any]] = []
        self.flushes = 0
        self.peers: list[PeerAddress] = []

    async def listen(self, urls: Sequence[str]) -> list[str]:
        return list(urls)

    def set_peers(self, peers: list[PeerAddress]) -> None:
        self.peers = peers

    def send(self, to: int, group: int, message: Any) -> None:
        self.sent.append((to, message))

    def flush(self) -> None:
        self.flushes += 1

    async def close(self) -> None: ...

    def receive(self, sender: int, *messages: Any) -> None:
        self.callbacks["on_messages"](sender, [(0, message) for message in messages])

    def of(self, kind: type) -> list[Any]:
        return [message for _, message in self.sent if isinstance(message, kind)]


class Bench:
    """One node of three, with a clock that tests may push."""

    def __init__(self, voters: Sequence[int] = (1, 2, 3), *, kernel_sync: Any = None) -> None:
        self.log = FakeLog()
        self.ahead = 0
        infos = [MemberInfo(id=i, context=encode_record(f"m{i}", [f"http://p{i}:1"])) for i in voters]
        initial = replace(Configuration.of(*infos), removed=frozenset({7}))
        self.machine = ListMachine()
        member = Member(
            RaftConfig(id=1), hard_state=HardState(), snapshot=SnapshotMeta(), entries=(), initial=initial,
            incarnation=0, machine=self.machine, boot=1, rng=random.Random(1), now=self.clock(),
            wall_clock=time.time_ns, limits=MemberLimits(),
        )  # fmt: skip

        class NoFiles(SnapshotFiles):
            def __init__(self) -> None: ...
            def close(self) -> None: ...

        self.node = Node(
            member, identity=LocalIdentity(1, 1, 1, "m1"), wal=self.log, snapshots=NoFiles(),
            make_transport=FakePeers, listen_urls=["http://p1:1"], clock=self.clock, kernel_sync=kernel_sync,
        )  # fmt: skip
        peers = self.node.transport
        assert isinstance(peers, FakePeers)
        self.peers = peers

    def clock(self) -> int:
        return time.monotonic_ns() + self.ahead

    def follow(self, term: int = 1) -> None:
        """Member 2 leads."""
        self.peers.receive(2, Heartbeat(term=term, commit_index=0, round=1))

    def vote(self, term: int = 1) -> None:
        self.peers.receive(2, RequestVote(term=term, last_log_index=0, last_log_term=0))


def run(
    test: Callable[[Bench], Awaitable[None]], voters: Sequence[int] = (1, 2, 3), *, kernel_sync: Any = None
) -> None:
    threads = threading.active_count()

    async def main() -> None:
        bench = Bench(voters, kernel_sync=kernel_sync)
        try:
            await bench.node.start()
            await asyncio.wait_for(test(bench), 200)
        finally:
            bench.log.gate.set()
            await bench.node.stop(timeout_s=0.2)
        assert bench.log.closed

    asyncio.run(main())
    assert threading.active_count() == threads


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        await asyncio.sleep(0.002)


def test_a_vote_leaves_only_after_its_sync() -> None:
    async def test(bench: Bench) -> None:
        bench.log.gate.clear()
        bench.vote()
        await until(lambda: bench.log.appended)
        await asyncio.sleep(0.02)
        assert bench.log.appended[0][0] == HardState(1, 2, 0) and not bench.peers.of(RequestVoteReply)
        bench.log.gate.set()
        await until(lambda: bench.peers.of(RequestVoteReply))
        assert bench.peers.of(RequestVoteReply)[0].granted

    run(test)


def test_a_vote_whose_sync_failed_never_leaves_and_the_log_is_left_alone() -> None:
    async def test(bench: Bench) -> None:
        bench.log.gate.clear()
        bench.vote()
        await until(lambda: bench.log.appended)
        bench.vote(term=2)  # waits behind the sync that fails
        await asyncio.sleep(0.01)
        bench.log.error = SyncFailed("EIO")
        bench.log.gate.set()
        assert isinstance(await bench.node.halted, SyncFailed)
        bench.log.error = None
        bench.vote(term=5)
        with pytest.raises(RaftError) as caught:
            await bench.node.apropose(b"x")
        assert isinstance(caught.value, ProposalDropped)
        assert not bench.peers.of(RequestVoteReply) and len(bench.log.appended) == 1 and not bench.log.syncs

    run(test)


def test_what_waits_for_a_sync_is_made_durable_by_the_next_one_together() -> None:
    async def test(bench: Bench) -> None:
        bench.log.gate.clear()
        bench.vote()
        await until(lambda: len(bench.log.appended) == 1)
        for term in (2, 3, 4):
            bench.vote(term)
            await asyncio.sleep(0.01)
        bench.log.gate.set()
        await until(lambda: sum(bench.log.syncs) == 4)
        assert bench.log.syncs == [1, 3]

    run(test)


def test_a_turn_takes_everything_that_arrived_and_flushes_once() -> None:
    async def test(bench: Bench) -> None:
        await asyncio.sleep(0.02)
        turns, flushes = bench.node.metrics.turns, bench.peers.flushes
        for round_ in range(1, 20):
            bench.peers.receive(2, Heartbeat(term=1, commit_index=0, round=round_))
        bench.node.read_barrier(lambda result: None)
        bench.node.propose(b"x", lambda result: None)
        await asyncio.sleep(0)
        assert bench.node.metrics.turns == turns + 1 and bench.peers.flushes == flushes + 1

    run(test)


def test_after_a_stall_what_peers_sent_is_read_before_the_clock() -> None:
    async def test(bench: Bench) -> None:
        bench.follow()
        await until(lambda: bench.node.leader_id == 2)
        bench.ahead += 10_000 * MS  # the loop was held up; the leader's heartbeat lies in the socket
        loop = asyncio.get_running_loop()
        bench.node.read_barrier(lambda result: None)  # something makes a turn first
        loop.call_soon(loop.call_soon, bench.follow)
        await until(lambda: bench.node.metrics.stalls)
        await asyncio.sleep(0.05)
        assert bench.node.leader_id == 2 and not bench.peers.of(RequestVote)

    run(test)


def test_without_a_leader_a_stall_does_not_keep_a_member_from_campaigning() -> None:
    async def test(bench: Bench) -> None:
        bench.ahead += 10_000 * MS
        bench.node.read_barrier(lambda result: None)
        await until(lambda: bench.peers.of(RequestVote))

    run(test)


def test_a_disk_is_sick_after_some_bad_windows_and_well_after_as_many_good_ones() -> None:
    async def test(bench: Bench) -> None:
        node = bench.node
        for window in range(DISK_WINDOWS_SICK):
            assert not node.metrics.disk_sick, window
            node.metrics.fsync.add(0.7)
            node._watch_disk()
        assert node.metrics.disk_sick and node.status().disk_sick
        await until(lambda: node.member.raft.status().disk_sick)
        for _ in range(DISK_WINDOWS_SICK):
            node.metrics.fsync.add(0.001)
            node._watch_disk()
        assert not node.metrics.disk_sick
        await until(lambda: not node.member.raft.status().disk_sick)

    run(test)


def test_a_sync_that_does_not_return_makes_the_disk_sick() -> None:
    async def test(bench: Bench) -> None:
        bench.log.gate.clear()
        bench.vote()
        await until(lambda: bench.node._log_writer.sync_began)
        bench.node._watch_disk()
        assert bench.node._disk_bad == 0
        bench.node._log_writer._thread.sync_began -= 0.6
        for _ in range(DISK_WINDOWS_SICK):
            bench.node._watch_disk()
        assert bench.node.metrics.disk_sick

    run(test)


def test_heartbeats_do_not_wait_for_the_disk() -> None:
    async def test(bench: Bench) -> None:
        node, peers = bench.node, bench.peers
        bench.ahead += 3_000 * MS
        await until(lambda: [m for m in peers.of(RequestVote) if m.pre_vote])
        term = node.term + 1
        peers.receive(2, RequestVoteReply(term=term, granted=True, pre_vote=True))
        await until(lambda: [m for m in peers.of(RequestVote) if not m.pre_vote])
        peers.receive(2, RequestVoteReply(term=term, granted=True))
        await until(lambda: node.is_leader)
        bench.log.gate.clear()
        node.propose(b"x", lambda result: None)
        await until(lambda: bench.node._log_writer.sync_began)
        peers.sent.clear()
        await until(lambda: len(peers.of(Heartbeat)) >= 4)
        assert not bench.machine.commands

    run(test)


def test_a_full_disk_while_preparing_a_segment_is_no_reason_to_stop() -> None:
    async def test(bench: Bench) -> None:
        bench.log.prepare_error = DiskFull("ENOSPC")
        bench.log.segment_count = 2
        bench.vote()
        await until(lambda: bench.log.prepared >= 2)
        await asyncio.sleep(0.02)
        assert not bench.node.halted.done()
        bench.log.prepare_error = StorageError("EIO")
        bench.log.segment_count = 3
        bench.vote(term=2)
        assert isinstance(await bench.node.halted, StorageError)

    run(test)


def test_members_that_were_removed_are_not_let_in_and_strangers_are() -> None:
    async def test(bench: Bench) -> None:
        def hello(member: int) -> Hello:
            return Hello(cluster_id=1, member_id=member, incarnation=5, name="x")

        assert bench.node._admit(hello(9)) is None
        assert "was removed" in (bench.node._admit(hello(7)) or "")
        assert [(p.id, p.name, p.urls) for p in bench.peers.peers][1] == (2, "m2", ("http://p2:1",))

    run(test)


def test_what_others_wait_for_is_on_its_way_before_committed_entries_are_executed() -> None:
    """Messages and the sync of new entries must not wait until the machine has executed the last ones."""

    async def test(bench: Bench) -> None:
        bench.peers.receive(
            2, AppendEntries(term=1, prev_log_index=0, prev_log_term=0, commit_index=0, entries=entries(1))
        )  # fmt: skip
        await until(lambda: bench.peers.of(AppendEntriesReply))
        seen: list[tuple[bool, int]] = []
        apply = bench.machine.apply

        def watched(*arguments: Any) -> Any:
            seen.append((bench.node._log_writer._thread.idle, bench.peers.flushes))
            return apply(*arguments)

        bench.machine.apply = watched  # type: ignore[method-assign]
        appended, flushes = len(bench.log.appended), bench.peers.flushes
        bench.log.gate.clear()
        bench.peers.receive(
            2, AppendEntries(term=1, prev_log_index=1, prev_log_term=1, commit_index=1, entries=entries(2))
        )  # fmt: skip
        await until(lambda: seen)
        assert seen[0][1] > flushes and not seen[0][0], "messages and the sync came after it"
        bench.log.gate.set()
        await until(lambda: len(bench.log.appended) == appended + 1)

    def entries(index: int) -> tuple[Entry, ...]:
        payload = encode_batch(1, [encode_group(2, 1, index, [b"x%d" % index])])
        return (Entry(1, index, EntryKind.NORMAL, payload),)

    run(test)


def test_many_answers_leave_in_portions() -> None:
    async def test(bench: Bench) -> None:
        await until(lambda: bench.node.is_leader)
        written = 0  # and not yet on its way
        left: list[int] = []

        def flush() -> None:
            nonlocal written
            left.append(written)
            written = 0

        def done(result: object) -> None:
            nonlocal written
            if not written:
                bench.node.flush_soon(flush)
            written += 1

        for _ in range(3 * ANSWERS_FLUSHED):
            bench.node.propose(b"x", done)
        await until(lambda: sum(left) == 3 * ANSWERS_FLUSHED)
        assert max(left) <= ANSWERS_FLUSHED, "the first waited for the last"

    run(test, (1,))
