"""The asyncio driver of one member: real time, a real disk and real sockets around `Member.handle`.

A *turn* is one callback of the event loop. It takes everything that arrived since the last one (messages, proposals,
reads, completions of the disk), steps the member once, carries out what that asks for, and arms one timer. Nothing in
it waits: the log is synced on a thread of its own, one sync at a time; snapshots and checkpoints are written on
another. A request costs no task and no future: whoever asks gives a callable. (docs/explanation/life-of-a-write.md)
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from oarlock.errors import (
    DiskFull,
    NotLeader,
    Overloaded,
    ProposalDropped,
    RaftError,
    Rejected,
    Stopped,
    StorageError,
)
from oarlock.machines.base import Checkpoint, Machine
from oarlock.node.log_writer import Kernel, LogWriter
from oarlock.node.metrics import NodeMetrics, quantile
from oarlock.node.replica import events as ev
from oarlock.node.replica.batch import COMMAND_BYTES_MAX
from oarlock.node.replica.directory import MemberRecord, decode_record
from oarlock.node.replica.leases import ASK_MAX
from oarlock.node.replica.member import NEVER, Member, MemberStatus
from oarlock.node.replica.reconfigure import MemberChange
from oarlock.node.replica.sessions import plain
from oarlock.node.snapshot_files import SnapshotFiles
from oarlock.node.threads import Log, Worker
from oarlock.raft.events import (
    ChunkWritten,
    ConfigChange,
    ConfigChanged,
    ConfigChangeRequested,
    ConfigRefused,
    DiskHealth,
    Halt,
    MembersChanged,
    MessageReceived,
    PeerConnected,
    PeerDown,
    Persist,
    Persisted,
    ReleaseLog,
    Send,
    SendSnapshot,
    SnapshotLost,
    SnapshotWritten,
    TimePassed,
    TransferDone,
    TransferRequested,
    WriteChunk,
)
from oarlock.raft.messages import AppendEntriesReply, HeartbeatReply, InstallSnapshot, Message
from oarlock.raft.types import MemberInfo, NodeId
from oarlock.transport.handshake import LocalIdentity, PeerAddress
from oarlock.transport.roster import Roster, RosterMember

log = logging.getLogger(__name__)

GROUP: Final = 0  # the one group of a node
WAITING_EVENTS_MAX: Final = 64  # events from which nothing follows by themselves; one more makes a turn
ANSWERS_FLUSHED: Final = 16  # so many leave at a time: who has one goes on while the others are still being written
STALL_HOPS: Final = 3  # loop iterations that a turn after a stall gives the sockets to be read first
DISK_WINDOW_S: Final = 1.0
TIDY_ENTRIES: Final = 2_000  # compacted changes that are freed once a second besides those freed along with entries
DISK_WINDOWS_SICK: Final = 3  # so many bad windows in a row make a sick disk, so many good ones a well one
RETRY_FULL_DISK_S: Final = 10.0
READ_WAITERS_MAX: Final = 100_000  # reads waiting for a barrier
LEASE_WAITERS_MAX: Final = 100_000  # leases asked about and not answered
QUIET_TRACES: Final = frozenset({"ignored", "vote_granted", "election_lost", "compacted", "became_precandidate"})

REMOVED_ADVICE: Final = (
    "this member was removed from the cluster. To come back it must be added again (`etcdctl member add`) and start "
    "with an empty data directory"
)

_ANSWERS: Final = (AppendEntriesReply, HeartbeatReply)
_TOLD: Final = (
    ev.Completed, ev.Failed, ev.ReadsFailed, ev.ReadsReady, ev.LeasesAnswered, ev.LeasesFailed, ev.Reconfigured
)  # fmt: skip

Done = Callable[[Any], None]


class Peers(Protocol):
    """The part of `transport.Transport` that a node uses."""

    async def listen(self, urls: Sequence[str]) -> list[str]: ...
    def set_peers(self, peers: list[PeerAddress]) -> None: ...
    def send(self, to: int, group: int, message: Message) -> None: ...
    def flush(self) -> None: ...
    async def close(self) -> None: ...


class MakeTransport(Protocol):
    """Makes the transport once the node's callbacks exist: `functools.partial(Transport, tls=..., limits=...)`."""

    def __call__(
        self,
        identity: LocalIdentity,
        *,
        on_messages: Callable[[int, list[tuple[int, Message]]], None],
        on_peer_connected: Callable[[int, int], None],
        on_peer_down: Callable[[int], None],
        admit: Callable[[Any], str | None],
        roster: Callable[[], Roster],
        on_removed: Callable[[str], None],
    ) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """What a person needs to see of one node."""

    name: str
    cluster_id: int
    member: MemberStatus
    disk_sick: bool
    fsync_p50_s: float
    fsync_p99_s: float
    stalls: int
    halted: str


class Node:
    """One running member. Made by `bootstrap.start_node`; everything is called on the event loop's thread.

    `halted` ends with the reason when the member cannot go on: a `StorageError`, `Stopped` for one that was removed, or
    whatever a bug raised. The owner then calls `stop`.
    """

    def __init__(
        self,
        member: Member,
        *,
        identity: LocalIdentity,
        wal: Log,
        snapshots: SnapshotFiles,
        make_transport: MakeTransport,
        listen_urls: Sequence[str],
        clock: Callable[[], int] = time.monotonic_ns,
        kernel_sync: Kernel | None = None,
    ) -> None:
        """`kernel_sync`: what has the kernel sync the log (docs: life-of-a-write.md); the node closes it. Without it, a
        thread does."""
        self.member = member
        self.identity = identity
        self.name = identity.name
        self.cluster_id = identity.cluster_id
        self.member_id = identity.member_id
        self.metrics = NodeMetrics()
        self.loop = asyncio.get_running_loop()
        self.halted: asyncio.Future[BaseException] = self.loop.create_future()
        self.listening: list[str] = []
        """The peer URLs with real ports, once started."""
        self._wal = wal
        self._snapshots = snapshots
        self._listen_urls = list(listen_urls)
        self._clock = clock
        self._log_writer = LogWriter(wal, GROUP, self.loop, self._synced, self._log_failed, kernel_sync)
        self._worker = Worker(self.loop)
        self.transport: Peers = make_transport(
            identity,
            on_messages=self._messages,
            on_peer_connected=self._peer_connected,
            on_peer_down=self._peer_down,
            admit=self._admit,
            roster=self._roster,
            on_removed=self._told_removed,
        )
        self._started = False
        self._stopping = False
        self._stopped: asyncio.Task[None] | None = None
        self._inbox: list[ev.MemberEvent] = []
        self._turn_due = False
        self._in_turn = False
        self._hops = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER
        self._persists: list[Persist] = []  # of this turn, not yet with the log
        self._releases: deque[tuple[int, tuple[Send, ...]]] = deque()
        self._marks: deque[int] = deque()  # tickets of persists with a snapshot mark
        self._segments = wal.segment_count
        self._flushes: list[Callable[[], None]] = []
        self._leader_seen: tuple[int, NodeId] = (0, 0)

        self._next_number = 1
        self._commands: list[bytes] = []
        self._commands_bytes = 0
        self._waiters: dict[int, Done] = {}
        self._drained: asyncio.Future[None] | None = None
        self._next_token = 1
        self._read_waiters: list[Done] = []
        self._confirmed_waiters: list[Done] = []  # of reads that no lease may answer
        self._reads: dict[int, list[Done]] = {}
        self._read_count = 0
        self._lease_asks: list[tuple[Sequence[int], Sequence[int], Done]] = []
        self._leases: dict[int, list[tuple[int, int, Done]]] = {}  # token -> numbers of each, and who waits
        self._lease_count = 0
        self._capture_waits: dict[int, Done] = {}
        self._config_waits: dict[int, Done] = {}
        self._transfer_waits: dict[int, Done] = {}

        self._disk_timer: asyncio.TimerHandle | None = None
        self._disk_counts = list(self.metrics.fsync.counts)
        self._disk_bad = 0
        self._disk_good = 0

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Listen, connect, take part. Raises `ConfigurationError` if an address cannot be had."""
        assert not self._started, "a node starts once"
        self.listening = await self.transport.listen(self._listen_urls)
        self._started = True
        self._set_peers(self.member.raft.configuration.members)
        self._log_writer.start()
        self._worker.start()
        self._worker.submit(self._wal.prepare_next, self._prepared)
        self._disk_timer = self.loop.call_later(DISK_WINDOW_S, self._watch_disk)
        self._event(TimePassed())

    async def stop(self, *, timeout_s: float = 10.0) -> None:
        """Hand leadership over, finish what is under way, write everything down and close. May be called again.

        Whoever still waits after `timeout_s` is told `Stopped`. Nothing acknowledged is lost however this ends.
        """
        if self._stopped is None:
            self._stopped = self.loop.create_task(self._stop(timeout_s), name="oarlock node stop")
        await asyncio.shield(self._stopped)

    @property
    def stopping(self) -> bool:
        """Whether it takes no more proposals and reads."""
        return self._stopping

    async def _stop(self, timeout_s: float) -> None:
        deadline = self.loop.time() + timeout_s
        if self._started and not self.halted.done():
            await self._hand_over(deadline)
            self._stopping = True
            await self._drain(deadline)
            await self._last_checkpoint(deadline)
        self._stopping = True
        for timer in (self._timer, self._disk_timer):
            if timer is not None:
                timer.cancel()
        self._perform(self.member.stop(Stopped("the member is stopping")))
        self._answer_everybody(Stopped("the member is stopping"))
        self._run_flushes()
        if self._started:
            self._log_writer.stop()
            await self._log_writer.ended
            self.transport.flush()
        self._log_writer.close()
        await self.transport.close()
        if self._started:
            self._worker.submit(self._snapshots.close, lambda result, error: None)
            self._worker.stop()
            await self._worker.ended
            self._worker.join()
        try:
            self._wal.close()
        finally:
            if self.member.machine is not None:
                self.member.machine.close()

    async def _hand_over(self, deadline: float) -> None:
        """A leader first gives leadership to somebody else, so that the group has no pause."""
        raft = self.member.raft
        if not raft.is_leader or len(raft.configuration.voters) < 2:
            return
        gone: asyncio.Future[None] = self.loop.create_future()
        self.transfer_leadership(0, lambda error: None if gone.done() else gone.set_result(None))
        await self._either(gone, deadline)

    async def _drain(self, deadline: float) -> None:
        """Wait until whoever was promised an answer has one."""
        if self._waiters and not self.halted.done():
            self._drained = self.loop.create_future()
            await self._either(self._drained, deadline)

    async def _either(self, future: asyncio.Future[None], deadline: float) -> None:
        """Wait for `future`, but not longer than the member lives or the deadline allows."""
        both: set[asyncio.Future[Any]] = {future, self.halted}
        await asyncio.wait(both, timeout=deadline - self.loop.time(), return_when=asyncio.FIRST_COMPLETED)

    async def _last_checkpoint(self, deadline: float) -> None:
        """A durable machine writes down what it has, so that the next start applies nothing again."""
        if self.halted.done():
            return
        self._event(TimePassed())  # take what waited for company, such as the end of the last write
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        checkpoint = self.member.final_checkpoint()
        if checkpoint is None:
            return
        written: asyncio.Future[None] = self.loop.create_future()

        def done(_: object, error: BaseException | None) -> None:
            if error is None:
                self._event(ev.CheckpointWritten(checkpoint))
            else:
                log.warning('checkpoint not written node=%x error="%s"', self.member_id, error)
            if not written.done():
                written.set_result(None)

        self._worker.submit(checkpoint.write, done)
        await asyncio.wait({written}, timeout=deadline - self.loop.time())
        await asyncio.sleep(0)  # the turn that takes it
        await asyncio.sleep(0)

    def _halt(self, error: BaseException, *, removed: bool = False) -> None:
        """The member must not go on. Everybody who waits is told; the owner sees `halted` and calls `stop`."""
        if self.halted.done():
            return
        level = logging.INFO if isinstance(error, Stopped) else logging.ERROR
        log.log(level, 'member halted node=%x group=%d term=%d error="%s"',
                self.member_id, GROUP, self.member.raft.current_term, error)  # fmt: skip
        self.halted.set_result(error)
        for timer in (self._timer, self._disk_timer):
            if timer is not None:
                timer.cancel()
        told = error if isinstance(error, RaftError) else Stopped(f"the member stopped: {error}")
        for effect in self.member.stop(told, removed=removed):
            if isinstance(effect, _TOLD):
                self._perform([effect])
        self._answer_everybody(told)
        self._run_flushes()

    def _answer_everybody(self, error: RaftError) -> None:
        """Whoever the member itself does not know of."""
        waiters, self._waiters = self._waiters, {}
        reads, self._reads = [*self._reads.values(), self._read_waiters, self._confirmed_waiters], {}
        leases = [done for group in self._leases.values() for _, _, done in group]
        leases += [done for _, _, done in self._lease_asks]
        self._leases, self._lease_asks, self._lease_count = {}, [], 0
        others = [*self._config_waits.values(), *self._transfer_waits.values(), *self._capture_waits.values()]
        self._capture_waits = {}
        self._commands, self._commands_bytes, self._read_waiters, self._read_count = [], 0, [], 0
        self._confirmed_waiters = []
        self._config_waits, self._transfer_waits = {}, {}
        for done in [*waiters.values(), *(d for group in reads for d in group), *leases, *others]:
            done(error)

    # ------------------------------------------------------------------ what callers ask for

    def propose(self, command: bytes, done: Done, *, enveloped: bool = False) -> None:
        """Replicate one command of the machine. `done` gets its result, or a `RaftError` whose `outcome` says more.

        `enveloped`: the command is one that `replica.sessions` made. Raises `Overloaded` at once when a queue is full.
        """
        metrics = self.metrics
        if self._stopping or self.halted.done():
            self._soon(done, ProposalDropped("the member is stopping; nothing was proposed"))
            return
        limits = self.member.limits
        if len(self._waiters) >= limits.proposals_pending_max:
            metrics.proposals_overloaded += 1
            raise Overloaded("proposals_pending_max", limits.proposals_pending_max)
        size = self._commands_bytes + len(command)
        if size + self.member.pending_bytes > limits.proposals_pending_bytes_max and self._waiters:
            metrics.proposals_overloaded += 1
            raise Overloaded("proposals_pending_bytes_max", limits.proposals_pending_bytes_max)
        if len(command) >= COMMAND_BYTES_MAX:
            metrics.proposals_overloaded += 1
            raise Overloaded("COMMAND_BYTES_MAX", COMMAND_BYTES_MAX)
        metrics.proposals += 1
        self._commands_bytes = size
        self._commands.append(command if enveloped else plain(command))
        number = self._next_number
        self._next_number = number + 1
        self._waiters[number] = done
        if not self._turn_due:
            self._schedule()

    def read_barrier(self, done: Done, *, confirmed: bool = False) -> None:
        """Call `done(None)` as soon as reading this member's machine is linearizable, or `done(error)`. `confirmed`: a
        majority is heard for it even where the leader has a lease (`lease_reads`), so no clock has to be trusted.

        All reads of a turn share one round with the leader. Raises `Overloaded` at once when too many wait.
        """
        if self._stopping or self.halted.done():
            self._soon(done, Stopped("the member is stopping; nothing was read"))
            return
        if self._read_count >= READ_WAITERS_MAX:
            raise Overloaded("READ_WAITERS_MAX", READ_WAITERS_MAX)
        self.metrics.reads += 1
        self._read_count += 1
        (self._confirmed_waiters if confirmed else self._read_waiters).append(done)
        if not self._turn_due:
            self._schedule()

    def ask_leases(self, renew: Sequence[int], query: Sequence[int], done: Done) -> None:
        """Renew leases, and ask how long others have. `done((renewed, remaining))`: the TTL in s for each of `renew`,
        0 for one that is unknown or over; the rest of it in s for each of `query`, -1 for such a one. Or `done(error)`.

        What is asked in one turn goes to the leader together. Raises `Overloaded` at once when too much waits.
        """
        if self._stopping or self.halted.done():
            self._soon(done, Stopped("the member is stopping"))
            return
        size = len(renew) + len(query)
        if self._lease_count + size > LEASE_WAITERS_MAX or size > ASK_MAX:
            raise Overloaded("LEASE_WAITERS_MAX", LEASE_WAITERS_MAX)
        self._lease_count += size
        self._lease_asks.append((renew, query, done))
        if not self._turn_due:
            self._schedule()

    def capture(self, done: Done) -> None:
        """`done((capture, term))`: a capture of the machine that shows at least what is applied now, with the term of
        the entry at its index. The caller closes it. Or `done(error)`."""
        if self._stopping or self.halted.done():
            self._soon(done, Stopped("the member is stopping"))
            return
        self._capture_waits[self._token(done)] = done
        self._event(ev.CaptureAsked(self._next_token - 1))

    def _lease_events(self, events: list[ev.MemberEvent]) -> None:
        """What was asked about leases since the last turn, in few events."""
        asks, self._lease_asks = self._lease_asks, []
        renew: list[int] = []
        query: list[int] = []
        group: list[tuple[int, int, Done]] = []
        for more_renew, more_query, done in asks:
            if group and len(renew) + len(query) + len(more_renew) + len(more_query) > ASK_MAX:
                self._lease_event(events, renew, query, group)
                renew, query, group = [], [], []
            renew += more_renew
            query += more_query
            group.append((len(more_renew), len(more_query), done))
        self._lease_event(events, renew, query, group)

    def _lease_event(
        self, events: list[ev.MemberEvent], renew: list[int], query: list[int], group: list[tuple[int, int, Done]]
    ) -> None:
        token = self._next_token
        self._next_token = token + 1
        self._leases[token] = group
        events.append(ev.LeasesAsked(token, renew, query))

    def _leases_answered(self, answer: ev.LeasesAnswered | ev.LeasesFailed) -> None:
        start = query_start = 0
        for count, query_count, done in self._leases.pop(answer.token):
            self._lease_count -= count + query_count
            if isinstance(answer, ev.LeasesFailed):
                done(answer.error)
                continue
            renewed = answer.renewed[start : start + count]
            done((renewed, answer.remaining[query_start : query_start + query_count]))
            start += count
            query_start += query_count

    def transfer_leadership(self, target: NodeId, done: Done) -> None:
        """Hand leadership to `target` (0: the most suitable voter). `done(None)`, `done(NotLeader)` if this member does
        not lead, or `done(Rejected)`: `bad_transferee` for an unfit target, `timeout`, `superseded`."""
        raft = self.member.raft
        if self.halted.done():
            self._soon(done, Stopped("the member has stopped"))
        elif not raft.is_leader:
            self._soon(done, NotLeader(raft.leader_id))
        elif target == self.member_id:
            self._soon(done, None)
        else:
            self._transfer_waits[self._token(done)] = done
            self._event(TransferRequested(self._next_token - 1, target))

    def change_members(self, changes: Sequence[ConfigChange], done: Done, *, auto_leave: bool = True) -> None:
        """Change the configuration, all steps at once. `done(None)` once it is in force, `done(NotLeader)` if this
        member does not lead, or `done(Rejected(reason))` with a reason of `raft.events.ConfigRefused`."""
        if self._stopping or self.halted.done():
            self._soon(done, Stopped("the member is stopping"))
            return
        self._config_waits[self._token(done)] = done
        self._event(ConfigChangeRequested(self._next_token - 1, tuple(changes), auto_leave))

    def reconfigure(self, change: MemberChange, done: Done) -> None:
        """Change the membership as an operator asks, at any member. `done(None)` once it is in force and shows in
        `records`, `done(Rejected)` with a reason of `reconfigure.REFUSALS`, or another `RaftError`."""
        if self._stopping or self.halted.done():
            self._soon(done, ProposalDropped("the member is stopping; the membership is as it was"))
            return
        self._config_waits[self._token(done)] = done
        self._event(ev.Reconfigure(self._next_token - 1, change))

    def _token(self, done: Done) -> int:
        token = self._next_token
        self._next_token = token + 1
        return token

    def _soon(self, done: Done, result: object) -> None:
        self.loop.call_soon(done, result)

    def flush_soon(self, flush: Callable[[], None]) -> None:
        """Call `flush` once at the end of the present turn, or soon if none is under way."""
        if not self._flushes and not self._in_turn:
            self.loop.call_soon(self._run_flushes)
        self._flushes.append(flush)

    async def apropose(self, command: bytes, *, enveloped: bool = False) -> Any:
        """`propose` for coroutines: returns the result or raises the error."""
        future: asyncio.Future[Any] = self.loop.create_future()
        self.propose(command, _into(future), enveloped=enveloped)
        return await future

    async def aread_barrier(self) -> None:
        """`read_barrier` for coroutines."""
        future: asyncio.Future[Any] = self.loop.create_future()
        self.read_barrier(_into(future))
        await future

    async def atransfer_leadership(self, target: NodeId = 0) -> None:
        """`transfer_leadership` for coroutines."""
        future: asyncio.Future[Any] = self.loop.create_future()
        self.transfer_leadership(target, _into(future))
        await future

    async def achange_members(self, changes: Sequence[ConfigChange], *, auto_leave: bool = True) -> None:
        """`change_members` for coroutines."""
        future: asyncio.Future[Any] = self.loop.create_future()
        self.change_members(changes, _into(future), auto_leave=auto_leave)
        await future

    async def areconfigure(self, change: MemberChange) -> None:
        """`reconfigure` for coroutines."""
        future: asyncio.Future[Any] = self.loop.create_future()
        self.reconfigure(change, _into(future))
        await future

    # ------------------------------------------------------------------ what others may look at

    @property
    def machine(self) -> Machine | None:
        return self.member.machine

    @property
    def term(self) -> int:
        return self.member.raft.current_term

    @property
    def leader_id(self) -> NodeId:
        return self.member.raft.leader_id

    @property
    def is_leader(self) -> bool:
        return self.member.raft.is_leader

    def records(self) -> dict[NodeId, MemberRecord]:
        """Name and URLs of every member."""
        return self.member.records()

    def status(self) -> NodeStatus:
        fsync = self.metrics.fsync
        return NodeStatus(
            name=self.name,
            cluster_id=self.cluster_id,
            member=self.member.status(),
            disk_sick=bool(self.metrics.disk_sick),
            fsync_p50_s=fsync.quantile(0.5),
            fsync_p99_s=fsync.quantile(0.99),
            stalls=self.metrics.stalls,
            halted=str(self.halted.result()) if self.halted.done() else "",
        )

    # ------------------------------------------------------------------ what arrives

    def _event(self, event: ev.MemberEvent) -> None:
        self._inbox.append(event)
        if not self._turn_due:
            self._schedule()

    def _messages(self, sender: int, messages: list[tuple[int, Message]]) -> None:
        self.metrics.messages_received += len(messages)
        inbox = self._inbox
        urgent = False
        for group, message in messages:
            if group != GROUP:
                self.metrics.messages_unroutable += 1
                continue
            inbox.append(MessageReceived(sender, message))
            if not urgent:
                # The slower half of the answers changes nothing any more: no turn of its own for them.
                urgent = not (isinstance(message, _ANSWERS) and self._can_wait(sender, message))
        if urgent and not self._turn_due:
            self._schedule()

    def _can_wait(self, sender: int, message: AppendEntriesReply | HeartbeatReply) -> bool:
        return len(self._inbox) < WAITING_EVENTS_MAX and self.member.raft.reply_can_wait(sender, message)

    def _peer_connected(self, peer: int, incarnation: int) -> None:
        self._event(PeerConnected(peer, incarnation))

    def _peer_down(self, peer: int) -> None:
        self._event(PeerDown(peer))

    def _admit(self, hello: Any) -> str | None:
        """A member of this cluster that our configuration does not have: ours may be old, so let it in (Raft 6), unless
        it was removed."""
        if hello.member_id in self.member.raft.committed_configuration.removed:
            return f"member {hello.member_id:x} was removed: it must come back with a new id and an empty directory"
        return None

    def _told_removed(self, text: str) -> None:
        """Another member says that we were removed: it has that committed, so it is so, and there is no way back."""
        log.warning('told that this member was removed node=%x by="%s"', self.member_id, text)
        if self._started:
            self._halt(Stopped(REMOVED_ADVICE), removed=True)

    def _roster(self) -> Roster:
        """Who the members are, for somebody who wants to become one."""
        raft = self.member.raft
        records = self.records()
        members = [
            RosterMember(info.id, records[info.id].name, list(records[info.id].peer_urls))
            for info in raft.configuration.members
            if info.id not in raft.configuration.removed
        ]
        return Roster(self.cluster_id, self.member_id, self.name, raft.configuration_index, raft.leader_id, members)

    def _synced(self, ticket: int, seconds: float) -> None:
        self.metrics.persists += 1
        self.metrics.persists_by_kernel = self._log_writer.kernel_syncs
        self.metrics.fsync.add(seconds)
        if self.halted.done():
            return
        send = self.transport.send
        released = False
        while self._releases and self._releases[0][0] <= ticket:
            for message in self._releases.popleft()[1]:
                self.metrics.messages_sent += 1
                send(message.to, GROUP, message.message)
                released = True
        if self.member.raft.persisted_can_wait() and len(self._inbox) < WAITING_EVENTS_MAX:
            self._inbox.append(Persisted(ticket))
            if released and not self._turn_due:
                self.transport.flush()
        else:
            self._event(Persisted(ticket))
        if self._wal.segment_count != self._segments:
            self._segments = self._wal.segment_count
            self._worker.submit(self._wal.prepare_next, self._prepared)
        pruned = False
        while self._marks and self._marks[0] <= ticket:
            self._marks.popleft()
            pruned = True
        if pruned:
            self._prune()

    def _log_failed(self, error: BaseException) -> None:
        self._halt(error)

    def _prepared(self, _: object, error: BaseException | None) -> None:
        if isinstance(error, DiskFull):
            log.warning('no room for the next log segment node=%x error="%s"', self.member_id, error)
            if not self._stopping and not self.halted.done():
                self.loop.call_later(RETRY_FULL_DISK_S, self._prepare_again)
        elif error is not None and not self._stopping:
            self._halt(error)

    def _prepare_again(self) -> None:
        if not self._stopping and not self.halted.done():
            self._worker.submit(self._wal.prepare_next, self._prepared)

    # ------------------------------------------------------------------ the turn

    def _schedule(self) -> None:
        self._turn_due = True
        self.loop.call_soon(self._turn)

    def _turn(self) -> None:
        if self.halted.done() or not self._started:
            self._turn_due = False
            return
        clock = self._clock
        now = clock()
        if self._hops:
            self._hops -= 1
        elif now > self._timer_at + self.member.raft.config.heartbeat_interval_ns:
            # The loop was held up and timers are overdue. What peers sent meanwhile lies in the sockets: read it first,
            # or we would campaign against a leader whose heartbeats we have.
            self.metrics.stalls += 1
            self._hops = STALL_HOPS
        if self._hops:
            self.loop.call_soon(self._turn)
            return
        self._turn_due = False
        self._in_turn = True
        events, self._inbox = self._inbox, []
        if self._commands:
            commands, self._commands, self._commands_bytes = self._commands, [], 0
            events.append(ev.Submit(self._next_number - len(commands), commands))
        if self._read_waiters:
            waiters, self._read_waiters = self._read_waiters, []
            token = self._next_token
            self._next_token = token + 1
            self._reads[token] = waiters
            events.append(ev.ReadBarrier(token))
        if self._confirmed_waiters:
            confirmed, self._confirmed_waiters = self._confirmed_waiters, []
            token = self._next_token
            self._next_token = token + 1
            self._reads[token] = confirmed
            events.append(ev.ReadBarrier(token, confirmed=True))
        if self._lease_asks:
            self._lease_events(events)
        metrics = self.metrics
        metrics.turns += 1
        metrics.events += len(events)
        try:
            self._carry_out(self.member.handle(events, now, self._carry_out))
        except Exception as error:  # a bug, of ours or of the state machine: the member stops here (house rule)
            metrics.apply_failures += 1
            log.exception("turn failed node=%x group=%d term=%d", self.member_id, GROUP, self.member.raft.current_term)
            self._halt(error)
        self._in_turn = False
        self._run_flushes()
        if self.halted.done():
            return
        self._trace()
        end = clock()
        metrics.turn.add((end - now) / 1e9)
        self._arm(end)
        if self._drained is not None and not self._waiters and not self._drained.done():
            self._drained.set_result(None)

    def _carry_out(self, effects: list[ev.MemberEffect]) -> None:
        """Perform, and let nothing that it puts out wait for the rest of the turn."""
        self._perform(effects)
        self.transport.flush()
        if self._persists:
            persists, self._persists = self._persists, []
            self._log_writer.put(persists)

    def _run_flushes(self) -> None:
        while self._flushes:
            flushes, self._flushes = self._flushes, []
            for flush in flushes:
                flush()

    def _arm(self, now: int) -> None:
        """One timer, for the member's next deadline. An earlier timer is left alone: it arms the next one."""
        deadline = self.member.next_deadline()
        if self._timer is not None:
            if self._timer_at <= deadline and self._timer_at > now:
                return
            self._timer.cancel()
            self._timer = None
        self._timer_at = deadline
        if deadline < NEVER:
            self._timer = self.loop.call_later(max(0, deadline - now) / 1e9, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        now = self._clock()
        if self.halted.done():
            return
        deadline = self.member.next_deadline()
        if deadline > now:
            self._arm(now)
        else:
            self._event(TimePassed())

    def _perform(self, effects: Sequence[ev.MemberEffect]) -> None:
        send = self.transport.send
        waiters = self._waiters
        metrics = self.metrics
        for effect in effects:
            kind = type(effect)
            if kind is Send:
                assert isinstance(effect, Send)
                metrics.messages_sent += 1
                send(effect.to, GROUP, effect.message)
            elif kind is Persist:
                assert isinstance(effect, Persist)
                if effect.release:
                    self._releases.append((effect.ticket, effect.release))
                if effect.snapshot is not None:
                    self._marks.append(effect.ticket)
                self._persists.append(effect)
            elif kind is ev.Completed:
                assert isinstance(effect, ev.Completed)
                number = effect.first
                metrics.proposals_completed += len(effect.results)
                for result in effect.results:
                    waiters.pop(number)(result)
                    number += 1
                    if not number % ANSWERS_FLUSHED:
                        self._run_flushes()
            elif kind is ev.ReadsReady:
                assert isinstance(effect, ev.ReadsReady)
                for token in effect.tokens:
                    reads = self._reads.pop(token)
                    self._read_count -= len(reads)
                    for done in reads:
                        done(None)
            else:
                self._perform_rare(effect)

    def _perform_rare(self, effect: ev.MemberEffect) -> None:
        match effect:
            case ev.Failed(first, count, error):
                self.metrics.proposals_failed += count
                for number in range(first, first + count):
                    self._waiters.pop(number)(error)
            case ev.ReadsFailed(token, error):
                reads = self._reads.pop(token)
                self._read_count -= len(reads)
                self.metrics.reads_failed += len(reads)
                for done in reads:
                    done(error)
            case ev.Captured(token, capture, term):
                self._capture_waits.pop(token)((capture, term))
            case ev.CaptureFailed(token, error):
                self._capture_waits.pop(token)(error)
            case ev.LeasesAnswered() | ev.LeasesFailed():
                self._leases_answered(effect)
            case ev.Reconfigured(token, error):
                self._config_waits.pop(token)(error)
            case ConfigChanged(token):
                self._config_waits.pop(token)(None)
            case ConfigRefused(token, reason):
                refused = NotLeader(self.member.raft.leader_id) if reason == "not_leader" else Rejected(reason)
                self._config_waits.pop(token)(refused)
            case TransferDone(token, reason):
                self._transfer_waits.pop(token)(self._transfer_error(reason))
            case MembersChanged(members):
                self._set_peers(members)
            case ReleaseLog(index):
                self._worker.submit(lambda: self._wal.release(GROUP, index), self._background_done)
            case ev.WriteCheckpoint(checkpoint):
                self._write_checkpoint(checkpoint)
            case ev.WriteSnapshot(snapshot, capture):
                self._worker.submit(lambda: self._snapshots.write(snapshot, capture), self._snapshot_written)
            case ev.LoadSnapshot(snapshot):
                self.metrics.snapshots_loaded += 1
                self._event(ev.SnapshotLoaded(snapshot, self._snapshots.load(snapshot)))
            case SendSnapshot():
                self._send_snapshot(effect)
            case WriteChunk():
                self._receive_snapshot(effect)
            case Halt(reason):
                self._halt(Stopped(REMOVED_ADVICE if "removed" in reason else reason))
            case _:
                raise AssertionError(f"an effect that nobody carries out: {effect!r}")

    @staticmethod
    def _transfer_error(reason: str) -> RaftError | None:
        if reason in ("", "self"):
            return None
        if reason == "not_leader":
            return NotLeader()
        if reason in ("unknown_member", "not_voter"):
            return Rejected("bad_transferee", "the target is not a voter of this group")
        return Rejected(reason, f"leadership was not handed over: {reason}")

    def _set_peers(self, members: Sequence[MemberInfo]) -> None:
        peers = []
        for info in members:
            record = decode_record(info.context)
            peers.append(PeerAddress(info.id, record.name, record.peer_urls, info.incarnation))
        self.transport.set_peers(peers)

    def _trace(self) -> None:
        raft = self.member.raft
        leader = (raft.current_term, raft.leader_id)
        if leader != self._leader_seen:
            if leader[1] and leader[1] != self._leader_seen[1]:
                self.metrics.leader_changes += 1
            self._leader_seen = leader
        if not raft.has_traces:
            return
        for trace in raft.take_traces():
            quiet = trace.event in QUIET_TRACES
            if log.isEnabledFor(logging.DEBUG if quiet else logging.INFO):
                fields = " ".join(f"{key}={value}" for key, value in trace.fields)
                log.log(
                    logging.DEBUG if quiet else logging.INFO, "%s node=%x group=%d term=%d %s",
                    trace.event, self.member_id, GROUP, trace.term, fields,
                )  # fmt: skip

    # ------------------------------------------------------------------ slow work

    def _write_checkpoint(self, checkpoint: Checkpoint) -> None:
        def done(_: object, error: BaseException | None) -> None:
            if self.halted.done():
                return
            if error is None:
                self._event(ev.CheckpointWritten(checkpoint))
            elif isinstance(error, DiskFull):
                log.warning('no room for a checkpoint node=%x error="%s"', self.member_id, error)
                self.loop.call_later(RETRY_FULL_DISK_S, self._write_checkpoint_again, checkpoint)
            else:
                self._halt(error)

        self._worker.submit(checkpoint.write, done)

    def _write_checkpoint_again(self, checkpoint: Checkpoint) -> None:
        if not self._stopping and not self.halted.done():
            self._write_checkpoint(checkpoint)

    def _snapshot_written(self, result: Any, error: BaseException | None) -> None:
        if self.halted.done():
            return
        if error is None:
            self.metrics.snapshots_written += 1
            log.info("snapshot written node=%x group=%d index=%d term=%d bytes=%d",
                     self.member_id, GROUP, result.index, result.term, result.size)  # fmt: skip
            self._event(SnapshotWritten(result))
        elif isinstance(error, DiskFull):
            log.warning('no room for a snapshot node=%x error="%s"', self.member_id, error)
            self._event(ev.SnapshotFailed())
        else:
            self._halt(error)

    def _prune(self) -> None:
        newest = self.member.raft.snapshot
        if newest is not None:
            self._worker.submit(lambda: self._snapshots.prune(newest.index), self._background_done)

    def _background_done(self, _: object, error: BaseException | None) -> None:
        if error is not None and not self._stopping:
            self._halt(error)

    def _send_snapshot(self, effect: SendSnapshot) -> None:
        snapshot, offset = effect.snapshot, effect.offset

        def done(data: Any, error: BaseException | None) -> None:
            if self.halted.done() or self._stopping:
                return
            if isinstance(error, StorageError):
                log.error('snapshot not read node=%x index=%d error="%s"', self.member_id, snapshot.index, error)
                self._event(SnapshotLost(snapshot))  # another one will be made
            elif error is not None:
                self._halt(error)
            else:
                self.metrics.snapshots_sent += offset == 0
                message = InstallSnapshot(
                    term=effect.term, snapshot=snapshot, offset=offset, data=data,
                    done=offset + len(data) >= snapshot.size,
                )  # fmt: skip
                self.transport.send(effect.to, GROUP, message)
                self.transport.flush()

        self._worker.submit(lambda: self._snapshots.read(snapshot, offset), done)

    def _receive_snapshot(self, chunk: WriteChunk) -> None:
        def done(result: Any, error: BaseException | None) -> None:
            if self.halted.done():
                return
            if isinstance(error, DiskFull):
                log.warning('no room for a snapshot node=%x error="%s"', self.member_id, error)
            elif error is not None:
                self._halt(error)
            else:
                next_offset, complete = result
                self.metrics.snapshots_received += complete
                self._event(ChunkWritten(chunk.sender, chunk.snapshot, next_offset, complete))

        self._worker.submit(lambda: self._snapshots.receive(chunk), done)

    # ------------------------------------------------------------------ the disk's health

    def _tidy(self) -> None:
        try:
            if self.member.tidy(TIDY_ENTRIES):
                self._arm(self._clock())
        except Exception as error:  # the store, or a bug of ours: as in a turn
            log.exception("tidying failed node=%x", self.member_id)
            self._halt(error)

    def _watch_disk(self) -> None:
        """Look at the last window of syncs: a disk whose syncs take half an election timeout is sick, and a leader on
        it does better to let somebody else lead. (Gray failure: slow is worse than gone.)"""
        self._disk_timer = self.loop.call_later(DISK_WINDOW_S, self._watch_disk)
        self._tidy()
        limit = self.member.raft.config.election_timeout_ns / 2e9
        counts = self.metrics.fsync.counts
        window = [new - old for new, old in zip(counts, self._disk_counts, strict=True)]
        self._disk_counts = list(counts)
        began = self._log_writer.sync_began
        stuck = began != 0.0 and time.monotonic() - began > limit
        if stuck or quantile(self.metrics.fsync.bounds, window, 0.99) > limit:
            self._disk_bad, self._disk_good = self._disk_bad + 1, 0
        else:
            self._disk_bad, self._disk_good = 0, self._disk_good + 1
        if self._disk_bad >= DISK_WINDOWS_SICK and not self.metrics.disk_sick:
            self.metrics.disk_sick = 1
            log.warning("disk is slow node=%x limit_s=%.3f", self.member_id, limit)
            self._event(DiskHealth(True))
        elif self._disk_good >= DISK_WINDOWS_SICK and self.metrics.disk_sick:
            self.metrics.disk_sick = 0
            log.info("disk is well again node=%x", self.member_id)
            self._event(DiskHealth(False))


def _into(future: asyncio.Future[Any]) -> Done:
    """A `done` that ends `future`."""

    def done(result: object) -> None:
        if future.done():
            return  # the caller was cancelled
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)

    return done
