"""A group of members in one thread: their clocks, disks, machines and the network between them are plain values here.

`Stage` drives the production core (`raft.core.Raft`) through `handle` and performs its effects on models. Nothing
happens
by itself: whoever holds the stage (a scenario, a test, a random walk) decides what is delivered, synced, lost or late.

The disk of a member is two ledgers: `mirror` is everything that the core has ordered to persist (its log in memory must
equal it), `durable` is what a power loss leaves. Between the two stand the `Persist`s whose fsync has not returned.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias

from oarlock.raft import events as ev
from oarlock.raft.core import Raft, RaftConfig
from oarlock.raft.messages import InstallSnapshot, Message
from oarlock.raft.types import (
    NOBODY,
    Configuration,
    Entry,
    EntryKind,
    HardState,
    Index,
    MemberRole,
    NodeId,
    SnapshotMeta,
    Term,
    decode_configuration,
)
from oarlock.sim.failures import DoesNotSettle

MILLISECOND = 1_000_000
PUMP_STEPS_MAX = 200_000  # deliveries and completions of one `settle`; a group that needs more is in a loop

Answer: TypeAlias = (
    ev.Appended
    | ev.ProposalRefused
    | ev.ReadReady
    | ev.ReadFailed
    | ev.ConfigChanged
    | ev.ConfigRefused
    | ev.TransferDone
)


@dataclass(slots=True)
class Packet:
    """A message on its way."""

    number: int
    sender: NodeId
    to: NodeId
    message: Message


class Ledger:
    """A log, its hard state and its snapshot mark, as a sequence of `Persist`s describes them.

    Shares no code with `raft.log`: the invariants are counted on ledgers.
    """

    __slots__ = ("configurations", "entries", "first", "hard_state", "initial", "snapshot")

    def __init__(self, initial: Configuration) -> None:
        self.initial = initial
        self.hard_state = HardState()
        self.snapshot = SnapshotMeta()
        self.first: Index = 1  # index of entries[0]; may be at or below the snapshot's index (a kept tail)
        self.entries: list[Entry] = []
        self.configurations: list[tuple[Index, Configuration]] = []  # those in `entries`, ascending

    def copy(self) -> Ledger:
        other = Ledger(self.initial)
        other.hard_state, other.snapshot, other.first = self.hard_state, self.snapshot, self.first
        other.entries, other.configurations = list(self.entries), list(self.configurations)
        return other

    @property
    def last_index(self) -> Index:
        return max(self.first + len(self.entries) - 1, self.snapshot.index)

    @property
    def last_term(self) -> Term:
        term = self.term(self.last_index)
        assert term is not None
        return term

    def term(self, index: Index) -> Term | None:
        """The term of the entry at `index`; 0 for index 0; None if this ledger does not say."""
        if 0 <= index - self.first < len(self.entries):
            return self.entries[index - self.first].term
        if index == self.snapshot.index:
            return self.snapshot.term
        return None

    def entry(self, index: Index) -> Entry | None:
        if 0 <= index - self.first < len(self.entries):
            return self.entries[index - self.first]
        return None

    def covers(self, index: Index, term: Term) -> bool:
        """Whether entry `term.index` is in the log, or in the state that the snapshot stands for."""
        return index <= self.snapshot.index or self.term(index) == term

    @property
    def configuration(self) -> Configuration:
        """The configuration in force: that of the last configuration entry, committed or not. (Raft 6)"""
        if self.configurations and self.configurations[-1][0] > self.snapshot.index:
            return self.configurations[-1][1]
        return self.snapshot.configuration if self.snapshot.index else self.initial

    def configuration_at(self, index: Index) -> Configuration:
        """The last configuration at or below `index`."""
        found = self.snapshot.configuration if self.snapshot.index else self.initial
        for at, configuration in self.configurations:
            if self.snapshot.index < at <= index:
                found = configuration
        return found

    def put(self, persist: ev.Persist) -> tuple[Entry, ...]:
        """Perform one `Persist`, in its documented order. Returns the entries that it cut off."""
        cut: tuple[Entry, ...] = ()
        if persist.snapshot is not None:
            if persist.reset_log:
                cut = tuple(self.entries)
                self.entries, self.configurations = [], []
                self.first = persist.snapshot.index + 1
            self.snapshot = persist.snapshot
        if persist.hard_state is not None:
            self.hard_state = persist.hard_state
        if persist.entries:
            start = persist.entries[0].index
            if not self.entries and start == self.snapshot.index + 1:
                self.first = start
            keep = start - self.first
            assert 0 <= keep <= len(self.entries), f"{persist.entries[0]} leaves a gap after index {self.last_index}"
            cut += tuple(self.entries[keep:])
            del self.entries[keep:]
            while self.configurations and self.configurations[-1][0] >= start:
                self.configurations.pop()
            for entry in persist.entries:
                assert entry.index == self.first + len(self.entries), f"gap before {entry}"
                self.entries.append(entry)
                if entry.kind == EntryKind.CONFIG:
                    self.configurations.append((entry.index, decode_configuration(entry.payload)))
        return cut

    def release(self, index: Index) -> None:
        """Drop the entries at or below `index`."""
        drop = min(max(index - self.first + 1, 0), len(self.entries))
        if drop:
            del self.entries[:drop]
            self.first += drop
            self.configurations = [pair for pair in self.configurations if pair[0] >= self.first]


@dataclass(slots=True)
class State:
    """The state of a toy machine: a digest of everything that it applied."""

    index: Index = 0
    term: Term = 0
    digest: int = 0
    configuration: Configuration = field(default_factory=Configuration)
    stripped: bool = False  # a witness: it applied entries without their payloads, so its digest says nothing

    def apply(self, entry: Entry) -> None:
        assert entry.index == self.index + 1, f"applied {entry} after index {self.index}"
        self.index, self.term = entry.index, entry.term
        self.digest = hash((self.digest, entry.term, entry.index, int(entry.kind), zlib.crc32(entry.payload))) & (
            2**63 - 1
        )
        if entry.kind == EntryKind.CONFIG:
            self.configuration = decode_configuration(entry.payload)
        elif entry.kind == EntryKind.STRIPPED:
            self.stripped = True

    def dump(self) -> bytes:
        """The bytes of a snapshot file: 48 of them, so that small chunks make several messages."""
        return f"{self.index} {self.term} {self.digest}".encode().ljust(48, b".")


def load_state(data: bytes, configuration: Configuration) -> State:
    index, term, digest = data.rstrip(b".").split()
    return State(int(index), int(term), int(digest), configuration)


class Disk:
    """What one member has written. `durable` survives a power loss; `pending` has been ordered and not yet synced."""

    def __init__(self, initial: Configuration) -> None:
        self.durable = Ledger(initial)
        self.pending: deque[ev.Persist | ev.ReleaseLog] = deque()
        self.files: dict[tuple[Index, Term], bytes] = {}  # complete snapshot files
        self.partial: dict[bytes, bytearray] = {}  # by digest
        self.machine: State | None = None  # the durable state of a machine that keeps its own


MachineTask: TypeAlias = ev.Apply | ev.Restore | ev.StartSnapshot


class Actor:
    """One member with everything that it owns. `raft` is None while the process is down."""

    def __init__(self, node: NodeId, initial: Configuration, incarnation: int) -> None:
        self.id = node
        self.incarnation = incarnation
        self.initial = initial
        self.disk = Disk(initial)
        self.mirror = Ledger(initial)
        self.raft: Raft | None = None
        self.clock = 0
        self.machine = State(configuration=initial)
        self.tasks: deque[MachineTask] = deque()
        self.chunks: deque[ev.WriteChunk] = deque()
        self.answers: list[Answer] = []
        self.halted = ""  # the reason of a Halt
        self.hold_syncs = False
        self.hold_applies = False
        self.connected: set[NodeId] = set()

    @property
    def up(self) -> bool:
        return self.raft is not None

    @property
    def core(self) -> Raft:
        assert self.raft is not None, f"member {self.id} is down"
        return self.raft

    @property
    def is_leader(self) -> bool:
        return self.raft is not None and self.raft.is_leader


class Observer(Protocol):
    """Watches a stage: where the invariants hang."""

    def before_handle(self, actor: Actor, events: tuple[ev.Event, ...]) -> None: ...
    def ordered(self, actor: Actor, persist: ev.Persist, cut: tuple[Entry, ...]) -> None: ...
    def sent(self, actor: Actor, to: NodeId, message: Message) -> None: ...
    def answered(self, actor: Actor, answer: Answer) -> None: ...
    def applied(self, actor: Actor, entry: Entry) -> None: ...
    def restored(self, actor: Actor, snapshot: SnapshotMeta) -> None: ...
    def after_handle(self, actor: Actor, events: tuple[ev.Event, ...]) -> None: ...
    def restarted(self, actor: Actor) -> None: ...


class Random(Protocol):
    """What the core draws from: the part of `random.Random` that it may use."""

    def randrange(self, stop: int, /) -> int: ...


class FixedRandom:
    """Draws the same fraction of every range, so that a scenario says when a member times out."""

    def __init__(self, fraction: float) -> None:
        self.fraction = fraction

    def randrange(self, stop: int, /) -> int:
        return int(stop * self.fraction)


class Stage:
    """Members, their disks and the network between them."""

    def __init__(
        self,
        initial: Configuration,
        *,
        rng: Callable[[NodeId], Random],
        options: dict[str, Any] | None = None,
        chunk_bytes: int = 16,
        observer: Observer | None = None,
        incarnations: bool = False,
        start: bool = True,
    ) -> None:
        self.initial = initial
        self.rng = rng
        self.options: dict[str, Any] = dict(options or {})
        self.chunk_bytes = chunk_bytes
        self.incarnations = incarnations  # whether members tell each other which disk they have
        self.observer = observer
        self.actors: dict[NodeId, Actor] = {}
        self.network: deque[Packet] = deque()
        self.cut: set[tuple[NodeId, NodeId]] = set()
        self.packets = 0
        self.sent_hook: Callable[[Packet, bool], bool] | None = None  # True: the hook has taken the packet
        self.event_hook: Callable[[str], None] | None = None  # told of what a reader of a scenario wants to know
        self.now = 0
        self._incarnations = 0
        for node in initial.ids:
            self.add(node, start=start)

    # -- members

    def add(self, node: NodeId, *, initial: Configuration | None = None, start: bool = True) -> Actor:
        """A member with an empty disk. `initial` is empty for one that joins a running group."""
        self._incarnations += 1
        actor = Actor(node, self.initial if initial is None else initial, self._incarnations)
        actor.clock = self.now
        self.actors[node] = actor
        if start:
            self.start(node)
        return actor

    def start(self, node: NodeId) -> None:
        """Start the process from what its disk holds."""
        actor = self.actors[node]
        assert actor.raft is None and not actor.disk.pending
        disk = actor.disk
        ledger = disk.durable
        actor.mirror = ledger.copy()
        machine = State(configuration=actor.initial)
        if disk.machine is not None:
            machine = replace(disk.machine)
        if ledger.snapshot.index > machine.index:
            if ledger.snapshot.has_file:
                data = disk.files[ledger.snapshot.index, ledger.snapshot.term]
                machine = load_state(data, ledger.snapshot.configuration)
            else:
                machine = self._witnessed(actor, ledger.snapshot)
        actor.machine = machine
        actor.tasks.clear()
        actor.chunks.clear()
        actor.connected.clear()
        actor.hold_syncs = actor.hold_applies = False
        actor.raft = Raft(
            RaftConfig(id=node, **self.options),
            hard_state=ledger.hard_state,
            snapshot=ledger.snapshot,
            entries=tuple(ledger.entries),
            applied=machine.index,
            initial=actor.initial,
            incarnation=self._disk_identity(actor),
            rng=self.rng(node),
            now=actor.clock,
        )
        if self.observer is not None:
            self.observer.restarted(actor)
        self.connect(node)

    def crash(self, node: NodeId, *, keep: int | None = None) -> None:
        """End the process. `keep`: how many of the pending disk operations reached the disk (None: all of them)."""
        actor = self.actors[node]
        assert actor.raft is not None
        actor.raft = None
        for operation in list(actor.disk.pending)[: len(actor.disk.pending) if keep is None else keep]:
            self._write(actor, operation)
        actor.disk.pending.clear()
        actor.answers.clear()
        for other in self.actors.values():
            other.connected.discard(node)

    def wipe(self, node: NodeId, *, initial: Configuration | None = None) -> None:
        """Replace the disk of a member that is down by an empty one."""
        actor = self.actors[node]
        assert actor.raft is None
        self._incarnations += 1
        self.actors[node] = fresh = Actor(node, actor.initial if initial is None else initial, self._incarnations)
        fresh.clock = actor.clock

    @staticmethod
    def _witnessed(actor: Actor, snapshot: SnapshotMeta) -> State:
        """What a witness has in place of a machine: it skips what a snapshot without a file stands for."""
        info = snapshot.configuration.member(actor.id)
        assert info is None or info.role is MemberRole.WITNESS, f"member {actor.id} skips to {snapshot.index}"
        return State(snapshot.index, snapshot.term, 0, snapshot.configuration, stripped=True)

    def _disk_identity(self, actor: Actor) -> int:
        return actor.incarnation if self.incarnations else 0

    def connect(self, node: NodeId) -> None:
        """Make the connections between `node` and everybody that it can reach: both sides learn the other's
        incarnation."""
        for other in sorted(self.actors):
            self.connect_pair(node, other)

    def connect_pair(self, a: NodeId, b: NodeId) -> None:
        one, two = self.actors[a], self.actors[b]
        if a == b or not one.up or not two.up or (a, b) in self.cut or (b, a) in self.cut or b in one.connected:
            return
        one.connected.add(b)
        two.connected.add(a)
        self.submit(a, ev.PeerConnected(b, self._disk_identity(two)))
        if two.up:
            self.submit(b, ev.PeerConnected(a, self._disk_identity(one)))

    # -- one call of the core

    def submit(self, node: NodeId, *events: ev.Event) -> None:
        """One turn of a member: one call of `handle`, and its effects begun."""
        actor = self.actors[node]
        raft = actor.core
        if self.observer is not None:
            self.observer.before_handle(actor, events)
        effects = raft.handle(list(events), actor.clock)
        for effect in effects:
            self._perform(actor, effect)
        raft.validate()
        if self.observer is not None:
            self.observer.after_handle(actor, events)
        if actor.halted:
            self.crash(node)

    def _perform(self, actor: Actor, effect: ev.Effect) -> None:
        match effect:
            case ev.Send():
                self._send(actor, effect)
            case ev.Persist():
                cut = actor.mirror.put(effect)
                if self.observer is not None:
                    self.observer.ordered(actor, effect, cut)
                if self.event_hook is not None and cut:
                    self.event_hook(f"{actor.id} cut {' '.join(map(str, cut))}")
                actor.disk.pending.append(effect)
                if effect.reset_log and effect.snapshot is not None and not effect.snapshot.has_file:
                    actor.tasks.clear()
                    actor.machine = self._witnessed(actor, effect.snapshot)
            case ev.ReleaseLog():
                actor.mirror.release(effect.index)
                actor.disk.pending.append(effect)
            case ev.Apply() | ev.Restore() | ev.StartSnapshot():
                actor.tasks.append(effect)
            case ev.WriteChunk():
                actor.chunks.append(effect)
            case ev.SendSnapshot():
                self._send_snapshot(actor, effect)
            case ev.MembersChanged():
                pass  # everybody on the stage is connected with everybody
            case ev.Halt():
                actor.halted = effect.reason
                if self.event_hook is not None:
                    self.event_hook(f"{actor.id} halts: {effect.reason}")
            case _:
                actor.answers.append(effect)
                if self.observer is not None:
                    self.observer.answered(actor, effect)

    def _send(self, actor: Actor, send: ev.Send) -> None:
        if self.observer is not None:
            self.observer.sent(actor, send.to, send.message)
        self.packets += 1
        packet = Packet(self.packets, actor.id, send.to, send.message)
        is_cut = (actor.id, send.to) in self.cut
        if self.sent_hook is not None and self.sent_hook(packet, is_cut):
            return
        if not is_cut:
            self.network.append(packet)

    def _send_snapshot(self, actor: Actor, effect: ev.SendSnapshot) -> None:
        data = actor.disk.files.get((effect.snapshot.index, effect.snapshot.term))
        if data is None:
            return  # its file was replaced meanwhile; the core asks again
        chunk = data[effect.offset : effect.offset + self.chunk_bytes]
        message = InstallSnapshot(
            term=effect.term,
            snapshot=effect.snapshot,
            offset=effect.offset,
            data=chunk,
            done=effect.offset + len(chunk) >= len(data),
        )
        self._send(actor, ev.Send(effect.to, message))

    # -- completions

    def sync(self, node: NodeId, count: int = 1) -> bool:
        """Let the fsync of the first `count` pending disk operations return. Returns whether there was one."""
        actor = self.actors[node]
        ticket = 0
        release: list[ev.Send] = []
        done = False
        while count > 0 and actor.disk.pending:
            operation = actor.disk.pending.popleft()
            self._write(actor, operation)
            done = True
            if isinstance(operation, ev.Persist):
                ticket = operation.ticket
                release.extend(operation.release)
                count -= 1
        for send in release:
            self._send(actor, send)
        if ticket:
            self.submit(node, ev.Persisted(ticket))
        return done

    @staticmethod
    def _write(actor: Actor, operation: ev.Persist | ev.ReleaseLog) -> None:
        if isinstance(operation, ev.Persist):
            actor.disk.durable.put(operation)
        else:
            actor.disk.durable.release(operation.index)

    def run_task(self, node: NodeId) -> bool:
        """Perform the first task of a member's machine. Returns whether there was one."""
        actor = self.actors[node]
        if not actor.tasks:
            return False
        task = actor.tasks.popleft()
        match task:
            case ev.Apply():
                for entry in task.entries:
                    actor.machine.apply(entry)
                    if self.observer is not None:
                        self.observer.applied(actor, entry)
                self.submit(node, ev.Applied(actor.machine.index))
            case ev.Restore():
                data = actor.disk.files[task.snapshot.index, task.snapshot.term]
                actor.machine = load_state(data, task.snapshot.configuration)
                if actor.disk.machine is not None:
                    actor.disk.machine = replace(actor.machine)
                if self.observer is not None:
                    self.observer.restored(actor, task.snapshot)
                self.submit(node, ev.Restored(task.snapshot))
            case ev.StartSnapshot():
                self.take_snapshot(node)
        return True

    def write_chunk(self, node: NodeId) -> bool:
        """Put the first received chunk into its partial file. Returns whether there was one."""
        actor = self.actors[node]
        if not actor.chunks:
            return False
        chunk = actor.chunks.popleft()
        meta = chunk.snapshot
        complete = (meta.index, meta.term) in actor.disk.files
        offset = meta.size
        if not complete:
            partial = actor.disk.partial.setdefault(meta.digest, bytearray())
            if chunk.offset == len(partial):
                partial += chunk.data
            offset = len(partial)
            if chunk.done and offset >= meta.size:
                if len(partial) == meta.size and hashlib.sha256(partial).digest() == meta.digest:
                    actor.disk.files[meta.index, meta.term] = bytes(partial)
                    complete = True
                else:
                    offset = 0
                del actor.disk.partial[meta.digest]
        self.submit(node, ev.ChunkWritten(chunk.sender, meta, offset, complete))
        return True

    def take_snapshot(self, node: NodeId, *, mark: bool = False) -> SnapshotMeta | None:
        """Capture the machine and write it: to a file, or (`mark`) to the machine's own store.

        Returns None without an effect while the machine waits to be replaced by a newer snapshot than it holds.
        """
        actor = self.actors[node]
        machine = actor.machine
        if machine.index < actor.core.log.snapshot_index:
            return None
        meta = actor.core.snapshot_meta(machine.index)
        if mark:
            actor.disk.machine = replace(machine)
        else:
            data = machine.dump()
            actor.disk.files[machine.index, machine.term] = data
            meta = replace(meta, size=len(data), digest=hashlib.sha256(data).digest())
        self.submit(node, ev.SnapshotWritten(meta))
        return meta

    # -- the network

    def deliver(self, packet: Packet) -> bool:
        """Hand a message over. Returns whether its receiver was there."""
        actor = self.actors.get(packet.to)
        if actor is None or not actor.up:
            return False
        self.submit(packet.to, ev.MessageReceived(packet.sender, packet.message))
        return True

    def partition(self, *sides: Iterable[NodeId]) -> None:
        """Nobody reaches anybody on another side. Members that no side names form a side of their own."""
        place = {node: number for number, side in enumerate(sides) for node in side}
        for a in self.actors:
            for b in self.actors:
                if a != b and place.get(a, -1) != place.get(b, -1):
                    self.cut_link(a, b)

    def cut_link(self, a: NodeId, b: NodeId) -> None:
        """Nothing that `a` sends reaches `b` any more, what is on its way included."""
        self.cut.add((a, b))
        self.actors[a].connected.discard(b)
        self.actors[b].connected.discard(a)
        self.network = deque(p for p in self.network if (p.sender, p.to) != (a, b))

    def heal(self) -> None:
        self.cut.clear()
        for node in sorted(self.actors):
            self.connect(node)

    # -- letting things run

    def run_completions(self, node: NodeId) -> bool:
        """Let a member's disk and machine finish one thing each, where they are not held."""
        actor = self.actors[node]
        did = False
        if actor.up and not actor.hold_syncs:
            did = self.sync(node, len(actor.disk.pending))
        if actor.up:
            did = self.write_chunk(node) or did
        if actor.up and not actor.hold_applies:
            did = self.run_task(node) or did
        return did

    def settle(self) -> None:
        """Deliver and complete, first come first served, until nothing is left. Time stands still."""
        for _ in range(PUMP_STEPS_MAX):
            did = False
            for node in sorted(self.actors):
                if self.actors[node].up:
                    did = self.run_completions(node) or did
            if self.network:
                self.deliver(self.network.popleft())
                did = True
            if not did:
                return
        raise DoesNotSettle(f"{PUMP_STEPS_MAX} steps and still {len(self.network)} messages on their way")

    def next_timer(self) -> tuple[int, NodeId] | None:
        """How long until the next timer of a running member, and whose it is."""
        due = [
            (max(actor.raft.next_deadline() - actor.clock, 0), node)
            for node, actor in self.actors.items()
            if actor.raft is not None
        ]
        return min(due, default=None)

    def advance(self, delta: int, nodes: Iterable[NodeId] | None = None) -> None:
        """Move the clocks (of `nodes` only, if given) without telling anybody."""
        for actor in self.actors.values() if nodes is None else [self.actors[n] for n in nodes]:
            actor.clock += delta
        if nodes is None:
            self.now += delta

    def wait(self, duration: int) -> None:
        """Let time pass on all clocks alike; timers fire in order, and messages take no time."""
        self.settle()
        left = duration
        while (timer := self.next_timer()) is not None and timer[0] <= left:
            delta, node = timer
            self.advance(delta)
            left -= delta
            self.submit(node, ev.TimePassed())
            self.settle()
        self.advance(left)

    # -- looking

    @property
    def leader(self) -> NodeId:
        """The leader of the highest term among the running members, or 0."""
        leaders = [(a.core.current_term, a.id) for a in self.actors.values() if a.is_leader]
        return max(leaders, default=(0, NOBODY))[1]
