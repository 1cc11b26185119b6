"""One member's machine in the simulated world: its disk, its clock, and, while it is up, a production `Member`.

What a driver does with a member's effects is done here with the semantics of the production runtime: one sync is in
flight at a time, what arrives meanwhile forms the next group, and a group's messages leave after its sync; snapshots
are built aside; a restart goes through the real recovery. Whatever takes time is an event on the world's agenda, so a
crash may come between any two of them, and in the middle of each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, Final

from oarlock.errors import Corrupt, Outcome, RaftError, StorageError
from oarlock.node.replica import Member
from oarlock.node.replica import events as ev
from oarlock.node.replica.directory import encode_record
from oarlock.node.replica.reconfigure import AddMember, MemberChange, PromoteMember, RemoveMember, UpdateMember
from oarlock.raft import events as raft
from oarlock.raft.core import Raft
from oarlock.raft.messages import InstallSnapshot
from oarlock.raft.types import Configuration, Index, NodeId, SnapshotMeta
from oarlock.sim.failures import Violation
from oarlock.sim.world.application import WorldMachine
from oarlock.sim.world.disks import WorldDisk
from oarlock.storage import GroupState, Identity, SnapshotReceiver, SnapshotStore, WriteAheadLog
from oarlock.storage.sim_disk import PowerCut

if TYPE_CHECKING:
    from oarlock.sim.world.workload import Op
    from oarlock.sim.world.world import World

CLUSTER: Final = 7
GROUP: Final = 0
LOG, SNAPSHOTS, MACHINE = "log", "snapshots", "machine"
NEVER: Final = 2**62  # a deadline beyond this does not come
EPOCH_NS: Final = 1_700_000_000 * 10**9
RESTLESS_MAX: Final = 50
PARTS_MAX: Final = 12  # of an interrupted write that may still reach the disk


class Clock:
    """A monotonic clock that may run fast, slow, or stand still for a while."""

    __slots__ = ("_base", "_rate", "_since")

    def __init__(self) -> None:
        self._base = 10**9
        self._since = 0
        self._rate = 1_000_000

    def read(self, now: int) -> int:
        return self._base if now <= self._since else self._base + (now - self._since) * self._rate // 1_000_000

    @property
    def rate(self) -> int:
        """Millionths of true time."""
        return self._rate

    def set_rate(self, now: int, rate: int) -> None:
        """`rate`: millionths of true time."""
        self._base, self._since, self._rate = self.read(now), max(now, self._since), rate

    def freeze(self, now: int, duration: int) -> None:
        self._base, self._since = self.read(now), max(self._since, now + duration)

    def thaw(self, now: int) -> None:
        """Run again, at the right rate."""
        self._base, self._since, self._rate = self.read(now), now, 1_000_000

    def when(self, local: int) -> int:
        """The world's time at which this clock shows `local`."""
        return self._since + -(-max(0, local - self._base) * 1_000_000 // self._rate)


class Process:
    """See the module. `member` is None while it is down."""

    def __init__(self, world: World, node: NodeId, initial: Configuration, *, witness: bool = False) -> None:
        self.world = world
        self.id = node
        self.initial = initial
        self.witness = witness
        self.disk = WorldDisk()
        self.incarnation = 1 + world.choices.draw("incarnation", 2**31)
        self.clock = Clock()
        self.wall_offset = 0
        self.cpu = world.swarm.cpu
        self.sync_factor = 1
        self.called_sick = False  # the member was told so of its disk, and not yet the contrary
        self.sync_extra = 0  # ns on top of every sync
        self.job_extra = 0  # ns on top of everything that is written aside
        self.release = 0  # -1: the one before, 1: the one after (see `versions`)
        self.member: Member | None = None
        self.machine: WorldMachine | None = None
        self.life = 0
        self.boot = 0
        self.paused_until = 0
        self._waiting: list[tuple[Callable[..., None], Any]] = []  # put off until it goes on
        self.broken = ""  # why it will never start again
        self.halted = ""  # why the member stopped itself
        self.rotten = False  # rot was put on its disk
        self.foreign = False  # its disk was replaced under its name: the others do not hear it
        self.faulty = False  # something was injected that may fail an operation
        self.ever_synced = False
        self.inbox: list[ev.MemberEvent] = []
        self.outstanding: dict[int, Op] = {}
        self.reads: dict[int, Op] = {}
        self.lease_asks: dict[int, Callable[[ev.LeasesAnswered | ev.LeasesFailed], None]] = {}
        self.tokens: dict[int, str] = {}  # of operators: what each waits for
        self._changes: dict[int, MemberChange] = {}
        self.known: dict[NodeId, int] = {}
        self.number = 1
        self._wal: WriteAheadLog | None = None
        self._store: SnapshotStore | None = None
        self._receiver: tuple[SnapshotMeta, SnapshotReceiver] | None = None
        self._begun: dict[NodeId, Index] = {}  # snapshots whose first chunk went to a peer
        self._turn_due = False
        self._timer_at = -1
        self._due = 0  # the member's deadline on its own clock
        self._restless = 0  # turns in a row that changed nothing and were asked for again at once
        self._queue: list[raft.Persist] = []
        self._group: list[raft.Persist] = []
        self._mark: Index = 0
        self._lanes: tuple[deque[Callable[[], ev.MemberEvent | None]], ...] = (deque(), deque())
        self._retries = 0
        world.oracle.new_disk(node, initial)

    # ------------------------------------------------------------------ what others look at

    @property
    def core(self) -> Raft:
        assert self.member is not None, f"member {self.id} is down"
        return self.member.raft

    @property
    def up(self) -> bool:
        return self.member is not None

    @property
    def leads(self) -> bool:
        return self.member is not None and self.member.raft.is_leader

    @property
    def syncing(self) -> bool:
        """Whether a sync of its log is under way."""
        return bool(self._group)

    @property
    def saving(self) -> bool:
        """Whether it writes a snapshot or a checkpoint."""
        return bool(self._lanes[0])

    @property
    def wants_turn(self) -> bool:
        """Whether it has something to do and could do it now."""
        return self._turn_due and self.member is not None and self.world.now >= self.paused_until

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Recover from the disk and go on. Nothing happens if it is up or can never start again."""
        if self.member is not None or self.broken:
            return
        world = self.world
        swarm = world.swarm
        crash = world.crashes
        if swarm.crash_recovery and not world.healed and crash.chance(swarm.crash_recovery):
            self.disk.cut_at = self.disk.operations + crash.draw(PARTS_MAX)
        try:
            state, machine = self._recover()
        except PowerCut:
            world.note(self, "crashes while it recovers")
            self._lose(power="power" in swarm.classes and bool(crash.draw(2)))
            world.later(swarm.timeout, self.start)
            return
        except StorageError as error:
            self.disk.kill()
            if isinstance(error, Corrupt) and self.rotten:
                self.broken = str(error)
                world.note(self, "finds rot and does not start")
            elif self.faulty:
                world.note(self, f"cannot start: {type(error).__name__}")
                self._retries += 1
                if self._retries >= 3 or world.healed:
                    self.repair()
                world.later(swarm.timeout, self.start)
            else:
                raise Violation("WAL", f"member {self.id} cannot start: {error}") from error
            return
        except Violation:
            raise
        except Exception as fault:
            raise Violation("CRASH", f"member {self.id} cannot start: {type(fault).__name__}: {fault}") from fault
        self.disk.cut_at = None
        self._retries = 0
        draw = world.choices.stream("boot")
        self.boot = 1 + draw.draw(2**40)
        record = b""
        if swarm.publish:
            record = encode_record(f"m{self.id}", [f"http://p{self.id}:1"], [f"http://c{self.id}:{draw.draw(3)}"])
        self.machine = machine
        self.known = {}
        self.halted = ""
        self._mark = state.snapshot.index
        try:
            self.member = Member(
                world.raft_config(self.id),
                hard_state=state.hard_state,
                snapshot=state.snapshot,
                entries=state.entries,
                initial=self.initial,
                incarnation=self.incarnation if swarm.incarnations else 0,
                machine=machine,
                boot=self.boot,
                rng=Random(draw.draw(2**32)),
                now=self.clock.read(world.now),
                wall_clock=self._wall,
                record=record,
                limits=world.limits,
            )
        except Exception as fault:
            raise Violation("CRASH", f"member {self.id} does not start: {type(fault).__name__}: {fault}") from fault
        world.note(self, "starts")
        world.oracle.started(self)
        self.wake()

    def _recover(self) -> tuple[GroupState, WorldMachine | None]:
        """The order of recovery: the log first (its lock guards the rest), then the machine as far as the mark says."""
        disk, swarm = self.disk, self.world.swarm
        state = GroupState()
        if WriteAheadLog.exists(disk, LOG):
            self._wal, recovered = WriteAheadLog.open(
                disk, LOG, expected=(CLUSTER, self.id), segment_bytes=swarm.segment_bytes
            )
            state = recovered.groups.get(GROUP, state)
            self.world.oracle.torn += bool(recovered.repaired)
        else:
            identity = Identity(CLUSTER, self.id, self.incarnation)
            self._wal = WriteAheadLog.create(disk, LOG, identity, segment_bytes=swarm.segment_bytes)
        if not self.world.oracle.recovered(self, state):
            raise Corrupt("rot took the last batch, which nothing vouched for any more")
        self._store = SnapshotStore(disk, SNAPSHOTS)
        if self.witness:
            return state, None
        machine = self._machine()
        mark = state.snapshot
        if machine.applied_index < mark.index:
            reader = self._store.open(GROUP, mark)
            machine.restore(mark.index, reader.chunks())
            reader.close()
        if machine.applied_index:
            self.world.oracle.restored(self, machine.applied_index, self.world.application.digest(machine.inner))
        return state, machine

    def _machine(self) -> WorldMachine:
        world = self.world
        application, oracle = world.application, world.oracle
        wrapper: type[WorldMachine] = getattr(application, "wrapper", WorldMachine)
        return wrapper(
            application.machine(self.disk, MACHINE, world.swarm.durable_machine),
            application.digest,
            lambda index, term, digest: oracle.applied(self, index, term, digest),
            lambda index, digest: oracle.restored(self, index, digest),
        )

    def _wall(self) -> int:
        return EPOCH_NS + self.world.now + self.wall_offset

    def repair(self) -> None:
        """Somebody replaced what made the disk fail; what it holds is what it held."""
        self.disk.clear_faults()
        self.disk.capacity_bytes = None
        self.faulty = False
        self.sync_factor = 1
        self.sync_extra = 0

    def die(self, *, power: bool) -> None:
        """The process is gone; with `power`, so is what the disk had not made durable."""
        if self.member is None:
            return
        self.world.note(self, "loses power" if power else "is killed")
        self._interrupt()
        self._lose(power=power)

    def _interrupt(self) -> None:
        """Of what is being written, a first part may reach the disk."""
        draw = self.world.crashes
        works: list[Callable[[], object]] = []
        if self._group:
            assert self._wal is not None
            works.append(self._wal.sync)
        works += [lane[0] for lane in self._lanes if lane]
        for work in works:
            parts = draw.draw(PARTS_MAX)
            if not parts:
                continue
            self.disk.cut_at = self.disk.operations + parts - 1
            try:
                work()
            except (PowerCut, StorageError):
                break  # the disk answers nobody any more, or the process had died of it anyway

    def _lose(self, *, power: bool) -> None:
        if self.member is not None:  # else it died while it recovered: what was under way is what it was
            self.world.oracle.watched[self.id].inflight = list(self._group)
        if power:
            self.disk.power_loss(Random(self.world.choices.draw("power", 2**32)))
        else:
            self.disk.kill()
        self._down()

    def _down(self) -> None:
        self.life += 1
        if self.member is not None:
            self.member.let_go()
        self.member = None
        self.machine = None
        self._wal = self._store = self._receiver = None
        self.inbox = []
        self._queue, self._group = [], []
        self._begun = {}
        self._turn_due = False
        self._waiting = []
        self._timer_at = -1
        for lane in self._lanes:
            lane.clear()
        self.tokens = {}
        outstanding, self.outstanding = self.outstanding, {}
        reads, self.reads = self.reads, {}
        self.lease_asks = {}
        for op in (*outstanding.values(), *reads.values()):
            op.lost(self)

    def fail(self, error: StorageError) -> None:
        """The disk failed: the member stops and tells everybody who waits, as the runtime does. It may start again."""
        if not self.faulty and not (self.rotten and isinstance(error, Corrupt)):
            raise Violation(
                "STOP", f"the disk of member {self.id} failed, and no fault was injected: {error}"
            ) from error
        assert self.member is not None
        self.world.note(self, f"stops: {type(error).__name__}")
        self._answer(self.member.stop(error))
        if self.world.crashes.draw(2):
            self.disk.drop_caches()
        self._lose(power=False)
        if isinstance(error, Corrupt):
            self.broken = str(error)
            return
        if self.world.crashes.draw(3) == 0:
            self.repair()
        self.world.later(self.world.swarm.timeout, self.start)

    # ------------------------------------------------------------------ turns

    def give(self, event: ev.MemberEvent) -> None:
        """Something happened for this member; it will be told in its next turn."""
        if self.member is not None:
            self.inbox.append(event)
            if not self._turn_due:
                self._turn_due = True
                self.world.at(self.world.now + self.cpu, self._turn, self.life)

    def wake_if_up(self) -> None:
        """A turn without an event: its timers may be due at another time now."""
        if self.member is not None:
            self._timer_at = -1
            self.wake()

    def wake(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            self.world.at(self.world.now + self.cpu, self._turn, self.life)

    def _put_off(self, what: Callable[..., None], argument: Any) -> None:
        """The process stands still: this happens when it goes on."""
        if not self._waiting:
            self.world.at(self.paused_until, self._go_on, self.life)
        self._waiting.append((what, argument))

    def _go_on(self, life: int) -> None:
        if life != self.life:
            return
        world = self.world
        if world.now < self.paused_until:  # another pause began meanwhile
            world.at(self.paused_until, self._go_on, life)
            return
        waiting, self._waiting = self._waiting, []
        for what, argument in waiting:
            world.at(world.now, what, argument)

    def unpause(self) -> None:
        """Go on now, with everything that was put off."""
        self.paused_until = 0
        self._go_on(self.life)

    def _turn(self, life: int) -> None:
        if life != self.life:
            return
        world = self.world
        if world.now < self.paused_until:
            self._put_off(self._turn, life)
            return
        if world.outranked(self):
            world.at(world.now + self.cpu, self._turn, life)
            return
        self._turn_due = False
        events, self.inbox = self.inbox, []
        member = self.member
        assert member is not None
        local = self.clock.read(world.now)
        oracle = world.oracle
        if world.recording is not None:
            world.recording.begins(world, self, events)
        try:
            effects = member.handle(events, local)
            member.validate()
        except (Violation, PowerCut):
            raise
        except StorageError as broken:
            self.fail(broken)
            return
        except AssertionError as untrue:
            raise Violation("ASSERT", f"member {self.id}: {untrue}") from untrue
        except Exception as error:  # the point of the exercise: nothing else may ever come out of a member
            raise Violation("CRASH", f"member {self.id}: {type(error).__name__}: {error}") from error
        for effect in effects:
            if type(effect) is raft.Persist:
                oracle.ordered(self, effect)
        oracle.turn(self, events)
        world.turned(self, events, effects)
        if effects:
            swarm = world.swarm
            crash_at = -1
            if swarm.crash_effect and not world.healed and world.crashes.chance(swarm.crash_effect):
                crash_at = world.crashes.draw(len(effects) + 1)
            self._perform(effects, crash_at)
            if life != self.life:
                return
            if crash_at == len(effects):
                self._die_here()
                return
        self._due = deadline = member.next_deadline()
        if deadline > local or effects or world.now < self.paused_until:
            self._restless = 0
        else:
            self._restless += 1
            if self._restless > RESTLESS_MAX:
                raise Violation("LIVE", f"member {self.id} asks for a turn again and again, and does nothing in it")
        if deadline < NEVER:
            self._set_timer(self.clock.when(deadline))

    def _set_timer(self, when: int) -> None:
        when = max(when, self.world.now + 1)
        if self._timer_at < 0 or when < self._timer_at:
            self._timer_at = when
            self.world.at(when, self._timer, (self.life, when))

    def _timer(self, which: tuple[int, int]) -> None:
        life, when = which
        if life != self.life or when != self._timer_at:
            return
        self._timer_at = -1
        if self._due >= NEVER:
            return
        due = self.clock.when(self._due)
        if due <= self.world.now:
            self.give(raft.TimePassed())
        else:
            self._set_timer(due)

    def _die_here(self) -> None:
        world = self.world
        self.die(power="power" in world.swarm.classes and bool(world.crashes.draw(2)))
        world.restart_later(self)

    # ------------------------------------------------------------------ effects

    def _perform(self, effects: list[ev.MemberEffect], crash_at: int) -> None:
        world = self.world
        for at, effect in enumerate(effects):
            if at == crash_at:
                self._die_here()
                return
            match effect:
                case raft.Send(to, message):
                    world.network.send(self, to, message)
                case raft.Persist():
                    self._queue.append(effect)
                case ev.Completed() | ev.Failed() | ev.ReadsReady() | ev.ReadsFailed() | ev.Reconfigured():
                    self._answer([effect])
                case ev.LeasesAnswered() | ev.LeasesFailed():
                    self._answer([effect])
                case raft.SendSnapshot():
                    self._work(1, lambda effect=effect: self._send_chunk(effect))  # type: ignore[misc]
                case raft.WriteChunk():
                    self._work(1, lambda effect=effect: self._write_chunk(effect))  # type: ignore[misc]
                case ev.LoadSnapshot(snapshot):
                    self._work(1, lambda snapshot=snapshot: self._load(snapshot))  # type: ignore[misc]
                case raft.ReleaseLog(index):
                    self._work(1, lambda index=index: self._release(index))  # type: ignore[misc]
                case ev.WriteSnapshot():
                    self._work(0, lambda effect=effect: self._build(effect))  # type: ignore[misc]
                case ev.WriteCheckpoint(checkpoint):
                    self._work(0, lambda checkpoint=checkpoint: self._checkpoint(checkpoint))  # type: ignore[misc]
                case raft.ConfigChanged(token):
                    self.tokens.pop(token, None)
                case raft.ConfigRefused(token) | raft.TransferDone(token):
                    self.tokens.pop(token, None)
                case raft.MembersChanged():
                    pass  # the simulated network knows everybody
                case raft.Halt(reason):
                    self._halt(reason, effects[at + 1 :])
                    return
        if self._queue and not self._group:
            self._begin_sync()

    def _halt(self, reason: str, rest: list[ev.MemberEffect]) -> None:
        """The member stops itself: only for its committed removal, or for a disk that lost what it had."""
        world = self.world
        world.note(self, f"halts: {reason}")
        if "removed" in reason:
            if self.id not in world.oracle.configuration.removed:
                raise Violation("CFG", f"member {self.id} halted as removed; the group has not removed it")
        elif not self.foreign:
            raise Violation("STOP", f"member {self.id} halted: {reason}")
        self._answer([e for e in rest if isinstance(e, ev.Failed | ev.ReadsFailed | ev.LeasesFailed)])
        self.halted = reason
        self._no_leak()
        self._lose(power=False)

    def _no_leak(self) -> None:
        if self.outstanding or self.reads or self.lease_asks:
            raise Violation("LEAK", f"member {self.id} stopped and left {len(self.outstanding)} commands, "
                            f"{len(self.reads)} reads and {len(self.lease_asks)} lease questions open")  # fmt: skip

    def _answer(self, effects: Sequence[ev.MemberEffect]) -> None:
        oracle = self.world.oracle
        for effect in effects:
            match effect:
                case ev.Completed(first, results):
                    for number, result in enumerate(results, first):
                        op = self._outstanding(number)
                        found = oracle.completed((self.id, self.boot, number), op.floor, result)
                        op.answered(self, number, found[1])
                case ev.Failed(first, count, error):
                    for number in range(first, first + count):
                        op = self._outstanding(number)
                        if error.outcome is Outcome.NOT_EXECUTED:
                            oracle.not_executed((self.id, self.boot, number), str(error))
                        op.failed(self, number, error)
                case ev.ReadsReady(tokens):
                    for token in tokens:
                        op = self._read(token)
                        op.read(self)
                case ev.ReadsFailed(token, error):
                    self._read(token).failed(self, 0, error)
                case ev.Reconfigured(token, failure):
                    self._reconfigured(token, failure)
                case ev.LeasesAnswered() | ev.LeasesFailed():
                    asked = self.lease_asks.pop(effect.token, None)
                    if asked is None:
                        raise Violation("LEASE", f"member {self.id} answered {effect}, which does not wait")
                    asked(effect)

    def _reconfigured(self, token: int, error: RaftError | None) -> None:
        """An operator is told what became of a change; what that means is looked up in the committed log."""
        if self.tokens.pop(token, None) is None:
            raise Violation("CFG", f"member {self.id} answered change {token}, which does not wait for an answer")
        change = self._changes.pop(token)
        oracle = self.world.oracle
        there, removed = oracle.configuration.ids, oracle.configuration.removed
        node = change.member
        if error is None:
            held = {
                AddMember: node in there or node in removed,
                RemoveMember: node in removed,
                PromoteMember: node in oracle.configuration.voters or node in removed,
                UpdateMember: node in there or node in removed,
            }[type(change)]
            if not held:
                raise Violation(
                    "CFG", f"member {self.id} says that {change} is done; {oracle.configuration} is committed"
                )
        elif isinstance(change, AddMember) and error.outcome is not Outcome.UNKNOWN:
            oracle.never_added.add(node)

    def _outstanding(self, number: int) -> Op:
        op = self.outstanding.pop(number, None)
        if op is None:
            raise Violation("LIN", f"member {self.id} answered command {number}, which does not wait for an answer")
        return op

    def _read(self, token: int) -> Op:
        op = self.reads.pop(token, None)
        if op is None:
            raise Violation("READ", f"member {self.id} answered read {token}, which does not wait for an answer")
        return op

    # ------------------------------------------------------------------ the log

    def _begin_sync(self) -> None:
        assert self._wal is not None
        self._group, self._queue = self._queue, []
        try:
            for persist in self._group:
                self._wal.append(
                    GROUP,
                    persist.hard_state,
                    persist.entries,
                    snapshot=persist.snapshot,
                    reset_log=persist.reset_log,
                )
        except AssertionError as error:
            raise Violation("ASSERT", f"the log of member {self.id}: {error}") from error
        draw = self.world.disk_times
        duration = self.world.swarm.sync * self.sync_factor * (1 + draw.draw(8)) // 4 + self.sync_extra
        self.world.at(self.world.now + duration, self._synced, self.life)

    def _synced(self, life: int) -> None:
        if life != self.life:
            return
        world = self.world
        if world.now < self.paused_until:
            self._put_off(self._synced, life)
            return
        assert self._wal is not None
        try:
            self._wal.sync()
        except StorageError as error:
            self.fail(error)
            return
        group = self._group
        self._group = []
        volatile = [name for name in self.disk.volatile_files(LOG) if name.endswith(".wal")]
        world.oracle.durable(self, group, not volatile)
        swarm = world.swarm
        crash = swarm.crash_effect and not world.healed and world.crashes.chance(swarm.crash_effect)
        for persist in group:
            if persist.snapshot is not None:
                self._mark = persist.snapshot.index
            for send in persist.release:
                if crash and not world.crashes.draw(2):
                    self._die_here()
                    return
                world.network.send(self, send.to, send.message)
        if crash:
            self._die_here()
            return
        self.give(raft.Persisted(group[-1].ticket))
        if self._queue:
            self._begin_sync()

    # ------------------------------------------------------------------ background work

    def _work(self, lane: int, job: Callable[[], ev.MemberEvent | None]) -> None:
        jobs = self._lanes[lane]
        jobs.append(job)
        if len(jobs) == 1:
            self._next_job(lane)

    def _next_job(self, lane: int) -> None:
        draw = self.world.disk_times
        duration = self.world.swarm.job * (1 + draw.draw(16)) // 4 >> (4 * lane)
        when = self.world.now + duration * self.sync_factor + (self.job_extra if lane == 0 else 0)
        self.world.at(when, self._job, (self.life, lane))

    def _job(self, which: tuple[int, int]) -> None:
        life, lane = which
        if life != self.life:
            return
        world = self.world
        if world.now < self.paused_until:
            self._put_off(self._job, which)
            return
        jobs = self._lanes[lane]
        try:
            event = jobs[0]()
        except StorageError as error:
            self.fail(error)
            return
        jobs.popleft()
        swarm = world.swarm
        if swarm.crash_effect and not world.healed and world.crashes.chance(4 * swarm.crash_effect):
            self._die_here()
            return
        if event is not None:
            self.give(event)
        if jobs:
            self._next_job(lane)

    def _build(self, effect: ev.WriteSnapshot) -> ev.MemberEvent:
        """Write a snapshot file. No room is not the end: it is tried again later."""
        assert self._store is not None
        meta = effect.snapshot
        writer = None
        try:
            writer = self._store.begin(GROUP, meta.index, meta.term, meta.configuration)
            for chunk in effect.capture.chunks():
                writer.write(chunk)
            written = writer.finish()
        except StorageError as error:
            if not self.faulty or "no space" not in str(error):
                raise
            if writer is not None:
                writer.abort()
            return ev.SnapshotFailed()
        finally:
            effect.capture.close()
        self.world.oracle.digest(self.id, written.index, written.digest)
        return raft.SnapshotWritten(written)

    def _checkpoint(self, checkpoint: object) -> ev.MemberEvent:
        checkpoint.write()  # type: ignore[attr-defined]
        return ev.CheckpointWritten(checkpoint)  # type: ignore[arg-type]

    def _load(self, snapshot: SnapshotMeta) -> ev.MemberEvent:
        assert self._store is not None
        reader = self._store.open(GROUP, snapshot)
        return ev.SnapshotLoaded(snapshot, reader.chunks())

    def _release(self, index: Index) -> None:
        """The mark is durable: the log and older snapshots are not needed any more."""
        assert self._wal is not None and self._store is not None
        self._wal.release(GROUP, index)
        self._store.prune(GROUP, self._mark)
        if self.world.crashes.draw(2):
            self._wal.prepare_next()

    def _send_chunk(self, effect: raft.SendSnapshot) -> None:
        assert self._store is not None
        if not self.disk.exists(
            f"{SNAPSHOTS}/{GROUP:08x}-{effect.snapshot.index:016x}-{effect.snapshot.term:016x}.snap"
        ):
            return  # pruned meanwhile: the leader will offer a newer one
        reader = self._store.open(GROUP, effect.snapshot)
        if effect.offset == 0:
            # A receiver that begins again found the digest wrong, or lost what it had: is it our file that rots?
            begun = self._begun.get(effect.to)
            if begun == effect.snapshot.index:
                reader.verify()
            self._begun[effect.to] = effect.snapshot.index
        size = self.world.swarm.chunk_bytes
        data = reader.read(effect.offset, size)
        reader.close()
        done = effect.offset + len(data) == effect.snapshot.size
        message = InstallSnapshot(
            term=effect.term, snapshot=effect.snapshot, offset=effect.offset, data=data, done=done
        )
        self.world.network.send(self, effect.to, message)

    def _write_chunk(self, effect: raft.WriteChunk) -> ev.MemberEvent:
        assert self._store is not None
        meta = effect.snapshot
        if self._receiver is None or self._receiver[0] != meta:
            if self._receiver is not None:
                self._receiver[1].close()
            self._receiver = (meta, self._store.receiver(GROUP, meta))
        receiver = self._receiver[1]
        receiver.write(effect.offset, effect.data)
        complete = receiver.next_offset == meta.size and receiver.finish()
        return raft.ChunkWritten(effect.sender, meta, receiver.next_offset, complete)

    # ------------------------------------------------------------------ people and clients

    def submit(self, op: Op, commands: list[bytes]) -> int:
        """A client hands commands to this member; returns the first number."""
        first = self.number
        self.number += len(commands)
        for number in range(first, self.number):
            self.outstanding[number] = op
        self.give(ev.Submit(first, commands))
        return first

    def barrier(self, op: Op) -> int:
        token = self.number
        self.number += 1
        self.reads[token] = op
        self.give(ev.ReadBarrier(token))
        return token

    def ask_leases(
        self, renew: list[int], query: list[int], done: Callable[[ev.LeasesAnswered | ev.LeasesFailed], None]
    ) -> None:
        """A client renews leases, and asks how long others have. Nobody is told when this member dies."""
        if self.member is None:
            return
        token = self.number
        self.number += 1
        self.lease_asks[token] = done
        self.give(ev.LeasesAsked(token, renew, query))

    def change(self, changes: tuple[raft.ConfigChange, ...], *, auto_leave: bool = True) -> int:
        token = self.number
        self.number += 1
        self.tokens[token] = "change"
        self.give(raft.ConfigChangeRequested(token, changes, auto_leave))
        return token

    def reconfigure(self, change: MemberChange) -> int:
        token = self.number
        self.number += 1
        self.tokens[token] = "reconfigure"
        self._changes[token] = change
        self.give(ev.Reconfigure(token, change))
        return token

    def transfer(self, target: NodeId) -> int:
        token = self.number
        self.number += 1
        self.tokens[token] = "transfer"
        self.give(raft.TransferRequested(token, target))
        return token
