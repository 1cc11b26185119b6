"""Three members in one process: the real `Member`, a network and disks made of lists, and virtual time.

Nothing here draws random numbers but from the seed: a failing test fails again. Messages and fsyncs wait in queues
until `settle` or `run` delivers them; a test may cut links, hold fsyncs back, repeat messages, crash and restart
members.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from oarlock.machines.base import Context
from oarlock.node.replica import Member, MemberLimits
from oarlock.node.replica import events as ev
from oarlock.node.replica.directory import encode_record
from oarlock.raft import events as raft_events
from oarlock.raft.config import RaftConfig
from oarlock.raft.messages import InstallSnapshot
from oarlock.raft.types import Configuration, Entry, HardState, MemberInfo, MemberRole, SnapshotMeta

MS = 1_000_000
TIMEOUT = 1000 * MS


class ListCapture:
    def __init__(self, index: int, data: bytes) -> None:
        self.index = index
        self.closed = False
        self._data = data

    def chunks(self) -> Iterator[bytes]:
        for at in range(0, len(self._data), 64):
            yield self._data[at : at + 64]

    def close(self) -> None:
        self.closed = True


class ListCheckpoint:
    def __init__(self, machine: ListMachine) -> None:
        self._machine = machine
        self.index = machine.applied_index
        self._data = machine.encoded()

    def write(self) -> None:
        self._machine.disk = (self.index, self._data)


class ListMachine:
    """Remembers every command it was given, in order; the result is how many it had before, with the command."""

    def __init__(self, durable: bool = False) -> None:
        self.durable = durable
        self.applied_index = 0
        self.commands: list[bytes] = []
        self.times: list[int] = []
        self.annex: dict[bytes, bytes] = {}
        self.disk: tuple[int, bytes] = (0, b"")
        self.open: ListCheckpoint | None = None
        self.raises: Exception | None = None

    def apply(self, context: Context, commands: Sequence[bytes]) -> list[object]:
        assert context.index == self.applied_index + 1, f"{context.index} after {self.applied_index}"
        if self.raises is not None:
            raise self.raises
        self.applied_index = context.index
        results: list[object] = []
        for command in commands:
            results.append([len(self.commands), command])
            self.commands.append(command)
            self.times.append(context.time_ns)
        return results

    def encoded(self) -> bytes:
        return msgspec.msgpack.encode([self.applied_index, self.commands, self.times, sorted(self.annex.items())])

    def capture(self) -> ListCapture:
        if self.durable:
            return ListCapture(*self.disk)
        return ListCapture(self.applied_index, self.encoded())

    def restore(self, index: int, chunks: Iterable[bytes]) -> None:
        data = b"".join(chunks)
        at, self.commands, self.times, annex = msgspec.msgpack.decode(data)
        assert at == index
        self.applied_index, self.annex = index, dict(annex)
        self.disk = (index, data)

    def reopen(self) -> ListMachine:
        """As after a restart of the process."""
        machine = ListMachine(self.durable)
        if self.durable and self.disk[0]:
            machine.restore(self.disk[0], [self.disk[1]])
        return machine

    def annex_get(self, key: bytes) -> bytes | None:
        return self.annex.get(key)

    def annex_put(self, key: bytes, value: bytes) -> None:
        self.annex[key] = value

    def annex_delete(self, key: bytes) -> None:
        self.annex.pop(key, None)

    def annex_items(self) -> list[tuple[bytes, bytes]]:
        return sorted(self.annex.items())

    def dirty_bytes(self) -> int:
        return 0

    def checkpoint(self) -> ListCheckpoint:
        assert self.durable and self.open is None
        self.open = ListCheckpoint(self)
        return self.open

    def checkpointed(self, checkpoint: object) -> None:
        assert checkpoint is self.open
        self.open = None

    def close(self) -> None: ...


class Disk:
    """What a member's log holds durably, and what it still has to write."""

    def __init__(self) -> None:
        self.hard_state = HardState()
        self.snapshot = SnapshotMeta()
        self.entries: list[Entry] = []
        self.waiting: list[raft_events.Persist] = []
        self.files: dict[int, bytes] = {}
        self.held = False

    def write(self, persist: raft_events.Persist) -> None:
        if persist.snapshot is not None:
            if persist.reset_log:
                self.entries = []
            self.snapshot = persist.snapshot
        if persist.hard_state is not None:
            self.hard_state = persist.hard_state
        if persist.entries:
            first = persist.entries[0].index
            self.entries = [e for e in self.entries if e.index < first] + list(persist.entries)


class Group:
    def __init__(
        self,
        ids: Sequence[int] = (1, 2, 3),
        *,
        durable: bool = False,
        witnesses: Sequence[int] = (),
        limits: MemberLimits | None = None,
        seed: int = 1,
        **config: Any,
    ) -> None:
        self.now = 1_000 * MS
        self.wall = 1_700_000_000 * 1000 * MS
        self.rng = random.Random(seed)
        self.limits = limits if limits is not None else MemberLimits()
        self.config = config
        self.durable = durable
        self.initial = Configuration.of(
            *(
                MemberInfo(
                    id=i,
                    role=MemberRole.WITNESS if i in witnesses else MemberRole.VOTER,
                    context=encode_record(f"m{i}", [f"http://peer{i}:1"]),
                )
                for i in ids
            )
        )
        self.witnesses = set(witnesses)
        self.disks = {i: Disk() for i in ids}
        self.machines: dict[int, ListMachine] = {i: ListMachine(durable) for i in ids}
        self.members: dict[int, Member] = {}
        self.network: list[tuple[int, int, Any]] = []  # sender, receiver, message
        self.cut: set[tuple[int, int]] = set()
        self.drop: Callable[[int, int, Any], bool] = lambda sender, to, message: False
        self.repeat: Callable[[int, int, Any], int] = lambda sender, to, message: 1
        self.results: dict[tuple[int, int], object] = {}
        self.reads: dict[tuple[int, int], object] = {}
        self.others: list[tuple[int, object]] = []
        self.hold_background = False
        self.chunk_bytes = 4000
        self.background: list[tuple[int, object]] = []
        self.numbers = dict.fromkeys(ids, 0)
        self.boots = 0
        for i in ids:
            self.start(i)

    # -- members

    def start(self, node: int, *, record: bytes = b"", initial: Configuration | None = None) -> Member:
        disk = self.disks[node]
        machine: ListMachine | None = None
        if node not in self.witnesses:
            machine = self.machines[node] = self.machines[node].reopen()
            if machine.applied_index < disk.snapshot.index:
                machine.restore(disk.snapshot.index, [disk.files[disk.snapshot.index]])
        self.boots += 1
        member = self.members[node] = Member(
            RaftConfig(id=node, **self.config),
            hard_state=disk.hard_state,
            snapshot=disk.snapshot,
            entries=disk.entries,
            initial=initial if initial is not None else self.initial,
            incarnation=0,
            machine=machine,
            boot=self.boots,
            rng=random.Random(self.rng.random()),
            now=self.now,
            wall_clock=lambda: self.wall,
            record=record,
            limits=self.limits,
        )
        return member

    def crash(self, node: int) -> None:
        """The process is gone, with what it had not synced."""
        del self.members[node]
        self.disks[node].waiting = []
        self.background = [job for job in self.background if job[0] != node]
        self.network = [m for m in self.network if m[1] != node]

    @property
    def leader(self) -> int:
        leads = [i for i, m in self.members.items() if m.raft.is_leader]
        assert leads, "nobody leads"
        return max(leads, key=lambda i: self.members[i].raft.current_term)

    # -- acting

    def handle(self, node: int, *events: Any) -> None:
        member = self.members.get(node)
        if member is None:
            return
        effects = member.handle(events, self.now)
        member.validate()
        self.perform(node, effects)

    def perform(self, node: int, effects: Iterable[object]) -> None:
        disk = self.disks[node]
        for effect in effects:
            match effect:
                case raft_events.Send(to, message):
                    self.post(node, to, message)
                case raft_events.Persist():
                    disk.waiting.append(effect)
                case ev.Completed(first, results):
                    for number, result in enumerate(results, first):
                        self.answer(node, number, result)
                case ev.Failed(first, count, error):
                    for number in range(first, first + count):
                        self.answer(node, number, error)
                case ev.ReadsReady(tokens):
                    for token in tokens:
                        self.answer_read(node, token, list(self.machines[node].commands))
                case ev.ReadsFailed(token, error):
                    self.answer_read(node, token, error)
                case ev.WriteSnapshot() | ev.WriteCheckpoint() | ev.LoadSnapshot() | raft_events.SendSnapshot():
                    self.background.append((node, effect))
                case raft_events.WriteChunk():
                    self.background.append((node, effect))
                case _:
                    self.others.append((node, effect))

    def post(self, sender: int, to: int, message: Any) -> None:
        if (sender, to) not in self.cut and not self.drop(sender, to, message):
            self.network += [(sender, to, message)] * self.repeat(sender, to, message)

    def answer(self, node: int, number: int, result: object) -> None:
        assert (node, number) not in self.results, f"proposal {number} of {node} was answered twice"
        self.results[node, number] = result

    def answer_read(self, node: int, token: int, result: object) -> None:
        assert (node, token) not in self.reads, f"read {token} of {node} was answered twice"
        self.reads[node, token] = result

    def propose(self, node: int, *commands: bytes) -> int:
        """Submit in one event; returns the first number."""
        first = self.numbers[node]
        self.numbers[node] += len(commands)
        self.handle(node, ev.Submit(first, list(commands)))
        return first

    def settle(self, rounds: int = 200) -> None:
        """Deliver messages, fsyncs and background work until nothing is left. No time passes."""
        for _ in range(rounds):
            if not self.deliver():
                return
        raise AssertionError("the group does not settle")

    def deliver(self) -> bool:
        """One round: everything that waits now."""
        busy = False
        network, self.network = self.network, []
        for sender, to, message in network:
            busy = True
            if (sender, to) not in self.cut:
                self.handle(to, raft_events.MessageReceived(sender, message))
        for node, disk in self.disks.items():
            if disk.waiting and not disk.held:
                busy = True
                self.sync(node)
        if not self.hold_background:
            jobs, self.background = self.background, []
            for node, job in jobs:
                busy = True
                self.work(node, job)
        return busy

    def sync(self, node: int) -> None:
        disk = self.disks[node]
        waiting, disk.waiting = disk.waiting, []
        for persist in waiting:
            disk.write(persist)
        for persist in waiting:
            for send in persist.release:
                self.post(node, send.to, send.message)
        self.handle(node, raft_events.Persisted(waiting[-1].ticket))

    def work(self, node: int, job: object) -> None:
        disk = self.disks[node]
        match job:
            case ev.WriteSnapshot(snapshot, capture):
                data = b"".join(capture.chunks())
                capture.close()
                disk.files[snapshot.index] = data
                self.handle(node, raft_events.SnapshotWritten(replace(snapshot, size=len(data), digest=b"d" * 32)))
            case ev.WriteCheckpoint(checkpoint):
                checkpoint.write()
                self.handle(node, ev.CheckpointWritten(checkpoint))
            case ev.LoadSnapshot(snapshot):
                self.handle(node, ev.SnapshotLoaded(snapshot, [disk.files[snapshot.index]]))
            case raft_events.SendSnapshot(to, term, snapshot, offset):
                data = disk.files[snapshot.index]
                chunk = data[offset : offset + self.chunk_bytes]
                done = offset + len(chunk) == len(data)
                message = InstallSnapshot(term=term, snapshot=snapshot, offset=offset, data=chunk, done=done)
                self.post(node, to, message)
            case raft_events.WriteChunk(sender, snapshot, offset, data, done):
                have = disk.files.get(snapshot.index, b"") if offset else b""
                if offset == len(have):
                    have += data
                    disk.files[snapshot.index] = have
                complete = done and len(have) == snapshot.size
                self.handle(node, raft_events.ChunkWritten(sender, snapshot, len(have), complete))

    def run(self, ns: int, *, step: int = 20 * MS) -> None:
        """Let time pass, delivering everything in each step."""
        end = self.now + ns
        while self.now < end:
            self.now += step
            self.wall += step
            for node in list(self.members):
                if self.members[node].next_deadline() <= self.now:
                    self.handle(node, raft_events.TimePassed())
            self.settle()

    def elect(self) -> int:
        """Let time pass until somebody leads everybody who can hear it."""
        for _ in range(20):
            self.run(TIMEOUT // 2)
            if any(m.raft.is_leader for m in self.members.values()):
                self.run(100 * MS)
                return self.leader
        raise AssertionError("no leader")

    def isolate(self, node: int) -> None:
        for other in self.disks:
            self.cut |= {(node, other), (other, node)}

    def heal(self) -> None:
        self.cut = set()

    def applied(self) -> set[tuple[bytes, ...]]:
        """The distinct histories that the machines of running members have seen."""
        return {tuple(self.machines[i].commands) for i in self.members if i not in self.witnesses}
