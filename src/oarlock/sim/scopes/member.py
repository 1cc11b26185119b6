"""One member of a scope: the production core on a modelled disk, one step at a time, as a function of values.

A member's state is a value (`Local`). A step takes one (its core thawed, stepped, frozen again) and gives the next,
with what left the member and what an observer must know. Nothing else decides, so a step is computed once for each
pair of state and action, however many states of the group contain it.

The disk is what was synced, and the `Persist` effects that wait for a sync, in order. A crash keeps a first part of
those. Whatever else a driver does aside (snapshots, restores) is a job, which ends at any time, or never.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, TypeAlias

from oarlock.raft import events as ev
from oarlock.raft.config import RaftConfig
from oarlock.raft.core import READ_REQUEST_START_MAX, Raft
from oarlock.raft.messages import AppendEntriesReply, InstallSnapshot, Message, RequestVote, RequestVoteReply
from oarlock.raft.roles import Leader
from oarlock.raft.types import Configuration, Entry, EntryKind, HardState, Index, NodeId, SnapshotMeta, Term
from oarlock.raft.types import decode_configuration as _decode
from oarlock.sim.invariants import Violation
from oarlock.sim.scopes.capture import Frozen, Immutable, freeze, thaw

REQUESTS_A_LIFE: Final = 1000  # read request numbers of two lives of a member do not meet
SNAPSHOT_BYTE: Final = b"s"  # the whole content of a modelled snapshot file


class Action(NamedTuple):
    """What happens to one member: `kind` and its argument.

    elect: its election timeout passes. wake: its next other timer. sync: the disk writes everything that waits.
    crash (number of waiting writes that survive): it loses the rest and starts again. message (sender, message).
    job (event): work aside ends. propose (payload), read (token), change (changes, auto_leave), transfer (target),
    snapshot: what users ask for.
    """

    kind: str
    argument: Any = None


class ScopeRng(Immutable):
    """No randomness: every draw is the lowest value, but for the read request numbers, which differ in each life."""

    __slots__ = ("life",)

    def __init__(self, life: int) -> None:
        self.life = life

    def randrange(self, stop: int, /) -> int:
        return self.life * REQUESTS_A_LIFE if stop == READ_REQUEST_START_MAX else 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScopeRng) and other.life == self.life

    def __hash__(self) -> int:
        return hash(("rng", self.life))


class ModelDisk(NamedTuple):
    """`entries` are contiguous and may begin before the snapshot's end; `waiting` is what no sync has covered."""

    hard_state: HardState = HardState()
    snapshot: SnapshotMeta = SnapshotMeta()
    entries: tuple[Entry, ...] = ()
    waiting: tuple[ev.Persist, ...] = ()

    def written(self, count: int) -> ModelDisk:
        """After the first `count` waiting writes, in their documented order: mark, hard state, entries."""
        hard_state, snapshot, entries = self.hard_state, self.snapshot, self.entries
        for persist in self.waiting[:count]:
            if persist.snapshot is not None:
                snapshot = persist.snapshot
                if persist.reset_log:
                    entries = ()
            if persist.hard_state is not None:
                hard_state = persist.hard_state
            if persist.entries:
                start = persist.entries[0].index
                entries = tuple(e for e in entries if e.index < start) + persist.entries
        return ModelDisk(hard_state, snapshot, entries, self.waiting[count:])

    def covers(self, index: Index, term: Term) -> bool:
        """Whether the entry would be there after a power loss, in the log or in the snapshot's state."""
        if index <= self.snapshot.index:
            return True
        at = index - self.entries[0].index if self.entries else -1
        return 0 <= at < len(self.entries) and self.entries[at].term == term


class View(NamedTuple):
    """What an observer reads off a core after a step; no decision of the core is asked for."""

    term: Term
    vote: NodeId
    leads: bool
    base: Index
    base_term: Term
    log: tuple[Entry, ...]
    commit: Index
    applied: Index

    def term_at(self, index: Index) -> Term | None:
        at = index - self.base
        if at == 0:
            return self.base_term
        return self.log[at - 1].term if 0 < at <= len(self.log) else None

    @property
    def last(self) -> Index:
        return self.base + len(self.log)


class Local(NamedTuple):
    """A member's whole state. `core` is frozen; None once it has stopped itself (`halted` says why)."""

    core: Frozen
    disk: ModelDisk
    jobs: tuple[ev.Event, ...]
    clock: int
    life: int
    configurations: tuple[tuple[Index, Configuration], ...]  # of its log as ordered, oldest first
    view: View
    halted: str


Note: TypeAlias = tuple[Any, ...]
"""Something that the checks of the group need: ("leader", term), ("commit", from, to), ("apply", entries),
("configuration", index, previous index), ("ready", token, index), ("failed", token), ("restart",)."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one action leads to."""

    local: Local
    sends: tuple[tuple[NodeId, Message], ...]
    notes: tuple[Note, ...]


class Members:
    """Steps of the members of one scope, each computed once.

    `instant`: every write is synced as soon as it is ordered, and every job ends at once. Otherwise both are actions.
    """

    def __init__(
        self, configs: dict[NodeId, RaftConfig], initial: dict[NodeId, Configuration], *, instant: bool
    ) -> None:
        self.configs = configs
        self.initial = initial
        self.instant = instant
        self.computed = 0
        self._steps: dict[tuple[NodeId, int, Action], tuple[int, Step] | None] = {}
        self._numbers: dict[Local, int] = {}
        self.locals: list[Local] = []

    def number(self, local: Local) -> int:
        found = self._numbers.get(local)
        if found is None:
            found = self._numbers[local] = len(self.locals)
            self.locals.append(local)
        return found

    def start(self, node: NodeId) -> int:
        """The state of a member that begins with an empty disk."""
        stepper = _Stepper(self, node, None)
        stepper.boot(ModelDisk(), clock=1, life=0)
        return self.number(stepper.finish())

    def step(self, node: NodeId, number: int, action: Action) -> tuple[int, Step] | None:
        """The next state, or None if the action is not possible, or changes and sends nothing. Raises `Violation`."""
        key = (node, number, action)
        if key in self._steps:
            return self._steps[key]
        before = self.locals[number]
        result: tuple[int, Step] | None = None
        self.computed += 1
        if not before.halted:
            stepper = _Stepper(self, node, before)
            try:
                happened = stepper.take(action)
            except AssertionError as error:
                if isinstance(error, Violation):
                    raise
                raise Violation("ASSERT", f"member {node}: {error}") from error
            except Exception as error:  # the point of the exercise: nothing else may ever come out of a core
                raise Violation("CRASH", f"member {node}: {type(error).__name__}: {error}") from error
            if happened:
                after = stepper.finish()
                notes = tuple(stepper.notes)
                if after != before or stepper.sends or notes:
                    check_step(node, before, after, restarted=action.kind == "crash")
                    result = (self.number(after), Step(after, tuple(stepper.sends), notes))
        self._steps[key] = result
        return result


class _Stepper:
    """One step under way: a live core."""

    def __init__(self, members: Members, node: NodeId, before: Local | None) -> None:
        self.members = members
        self.node = node
        self.before = before
        self.sends: list[tuple[NodeId, Message]] = []
        self.notes: list[Note] = []
        self.jobs: list[ev.Event] = []
        self.todo: list[ev.Event] = []
        self.halted = ""
        if before is not None:
            self.core: Raft = thaw(before.core)
            self.disk = before.disk
            self.jobs = list(before.jobs)
            self.clock = before.clock
            self.life = before.life
            self.configurations = list(before.configurations)

    def boot(self, disk: ModelDisk, *, clock: int, life: int) -> None:
        """Start from what is durable. The machine's own state is its snapshot's."""
        self.disk, self.clock, self.life, self.jobs = disk, clock, life, []
        initial = self.members.initial[self.node]
        mark = disk.snapshot
        self.configurations = [(mark.index, mark.configuration) if mark.index else (0, initial)]
        for entry in disk.entries:
            if entry.kind == EntryKind.CONFIG and entry.index > mark.index:
                self.configurations.append((entry.index, _decode(entry.payload)))
        self.core = Raft(
            self.members.configs[self.node],
            hard_state=disk.hard_state,
            snapshot=mark,
            entries=disk.entries,
            applied=mark.index,
            initial=initial,
            incarnation=0,
            rng=ScopeRng(life),
            now=clock,
        )
        if self.core.current_term != disk.hard_state.term or self.core.voted_for != disk.hard_state.vote:
            raise Violation("MONO", f"member {self.node} starts in t{self.core.current_term}, its disk says "
                            f"{disk.hard_state}")  # fmt: skip
        self.handle(ev.TimePassed())

    def take(self, action: Action) -> bool:
        """Whether the action is possible here; if so it has happened."""
        core = self.core
        argument = action.argument
        match action.kind:
            case "message":
                self.handle(ev.MessageReceived(*argument))
            case "sync":
                if not self.disk.waiting:
                    return False
                self.handle(self.write())
            case "elect":
                if core.is_leader or not core._campaigns_by_itself():
                    return False
                self.clock = max(self.clock, core._election_at)
                self.handle(ev.TimePassed())
            case "wake":
                due = core.next_deadline()
                if not core.is_leader and due >= core._election_at:
                    return False
                self.clock = max(self.clock, due)
                self.handle(ev.TimePassed())
            case "crash":
                if argument > len(self.disk.waiting):
                    return False
                survived = self.disk.written(argument)._replace(waiting=())
                self.notes.append(("restart",))
                self.boot(survived, clock=self.clock, life=self.life + 1)
            case "job":
                if argument not in self.jobs:
                    return False
                self.jobs.remove(argument)
                self.handle(argument)
            case "propose":
                if not core.is_leader:
                    return False
                self.handle(ev.Proposed(1, argument))
            case "read":
                self.handle(ev.ReadRequested(argument))
            case "change":
                if not core.is_leader:
                    return False
                changes, auto_leave = argument
                self.handle(ev.ConfigChangeRequested(1, changes, auto_leave))
            case "transfer":
                if not core.is_leader:
                    return False
                self.handle(ev.TransferRequested(1, argument))
            case "snapshot":
                index = core.last_applied
                if index <= self.disk.snapshot.index or (core.snapshot is not None and index <= core.snapshot.index):
                    return False
                self.job(ev.SnapshotWritten(_with_file(core.snapshot_meta(index))))
            case _:
                raise ValueError(f"no such action: {action.kind}")
        return True

    # ------------------------------------------------------------------ the driver's part

    def handle(self, event: ev.Event) -> None:
        """Give the core an event, and what follows from it at once."""
        self.todo.append(event)
        if len(self.todo) > 1:
            return  # called from inside the loop below
        while self.todo and not self.halted:
            effects = self.core.handle(self.todo[:1], self.clock)
            self.core.validate()
            self.perform(effects)
            self.todo.pop(0)
            if self.members.instant and not self.todo:
                if self.disk.waiting:
                    self.todo.append(self.write())
                elif self.jobs:
                    self.todo.append(self.jobs.pop(0))

    def write(self) -> ev.Event:
        """One group commit: what waited is durable, its messages leave, the core will be told."""
        waiting = self.disk.waiting
        for persist in waiting:
            self.disk = self.disk.written(1)
            for send in persist.release:
                self.send(send.to, send.message)
        return ev.Persisted(waiting[-1].ticket)

    def job(self, event: ev.Event) -> None:
        if event not in self.jobs:
            self.jobs.append(event)

    def send(self, to: NodeId, message: Message) -> None:
        check_promise(self.node, to, message, self.disk)
        self.sends.append((to, message))

    def perform(self, effects: Sequence[ev.Effect]) -> None:
        for effect in effects:
            match effect:
                case ev.Send(to, message):
                    self.send(to, message)
                case ev.Persist():
                    self.ordered(effect)
                case ev.Apply(entries):
                    self.notes.append(("apply", entries))
                    self.handle(ev.Applied(entries[-1].index))
                case ev.ReadReady(token, index):
                    self.notes.append(("ready", token, index))
                case ev.ReadFailed(token, _):
                    self.notes.append(("failed", token))
                case ev.SendSnapshot(to, term, snapshot, offset):
                    chunk = InstallSnapshot(term=term, snapshot=snapshot, offset=offset, data=SNAPSHOT_BYTE, done=True)
                    self.send(to, chunk)
                case ev.WriteChunk(sender, snapshot):
                    self.job(ev.ChunkWritten(sender, snapshot, snapshot.size, True))
                case ev.Restore(snapshot):
                    self.job(ev.Restored(snapshot))
                case ev.StartSnapshot():
                    self.job(ev.SnapshotWritten(_with_file(self.core.snapshot_meta(self.core.last_applied))))
                case ev.ReleaseLog(index):
                    kept = tuple(e for e in self.disk.entries if e.index > index)
                    self.disk = self.disk._replace(entries=kept)
                case ev.Halt(reason):
                    self.halted = reason
                case _:
                    pass  # answers to people, and the set of connections

    def ordered(self, persist: ev.Persist) -> None:
        """A write joins those that wait. Its configurations are in force from now on."""
        self.disk = self.disk._replace(waiting=(*self.disk.waiting, persist))
        if persist.snapshot is not None and persist.reset_log:
            self.configurations = [(persist.snapshot.index, persist.snapshot.configuration)]
        if persist.entries:
            start = persist.entries[0].index
            self.configurations = [c for c in self.configurations if c[0] < start] or self.configurations[:1]
            for entry in persist.entries:
                if entry.kind == EntryKind.CONFIG:
                    previous = self.configurations[-1][0]
                    self.configurations.append((entry.index, _decode(entry.payload)))
                    if self.core.is_leader and entry.term == self.core.current_term:
                        self.notes.append(("configuration", entry.index, previous))

    def finish(self) -> Local:
        """The state after the step. What only counts or names things is brought into one form: traces, the count of
        ignored messages, the numbers of writes."""
        core = self.core
        core.take_traces()
        core.ignored_messages = 0
        self.disk = self.disk._replace(waiting=renumber(core, self.disk.waiting))
        log = core.log
        role = core.role
        if not self.halted and core.configuration != self.configurations[-1][1]:
            raise Violation("CFG", f"member {self.node} acts on configuration {core.configuration_index}; the last one "
                            f"of its log is {self.configurations[-1][0]}")  # fmt: skip
        view = View(
            core.current_term, core.voted_for, isinstance(role, Leader), log.snapshot_index, log.snapshot_term,
            tuple(log._entries), log.commit_index, log.last_applied,
        )  # fmt: skip
        if self.before is not None:
            if view.leads and not (self.before.view.leads and self.before.view.term == view.term):
                self.notes.insert(0, ("leader", view.term))
            if view.commit > self.before.view.commit or ("restart",) in self.notes:
                self.notes.append(("commit", self.before.view.commit, view.commit))
        return Local(
            None if self.halted else freeze(core),
            self.disk,
            () if self.halted else tuple(self.jobs),
            self.clock,
            self.life,
            tuple(self.configurations),
            view,
            self.halted,
        )


def renumber(core: Raft, waiting: tuple[ev.Persist, ...]) -> tuple[ev.Persist, ...]:
    """Count the tickets of writes from 1 again. They are only compared with each other, so two states that differ in
    nothing else are one."""
    durability = core._durability
    shift = durability._ticket - len(durability._inflight)
    if shift:
        durability._ticket -= shift
        for flight in durability._inflight:
            flight.ticket -= shift
        deferred = [(ticket - shift, send) for ticket, send in durability._deferred]
        due = [(ticket - shift, index) for ticket, index in durability._releases_due]
        durability._deferred.clear()
        durability._deferred.extend(deferred)
        durability._releases_due.clear()
        durability._releases_due.extend(due)
        waiting = tuple(replace(persist, ticket=persist.ticket - shift) for persist in waiting)
    return waiting


def _with_file(meta: SnapshotMeta) -> SnapshotMeta:
    return replace(meta, size=len(SNAPSHOT_BYTE), digest=b"d")


# ---------------------------------------------------------------------- what must hold for one member alone


def check_promise(node: NodeId, to: NodeId, message: Message, disk: ModelDisk) -> None:
    """A vote, a candidacy, an acknowledgement rest on the disk. (Raft Fig. 2)"""
    state = disk.hard_state
    match message:
        case RequestVote(pre_vote=False, term=term):
            candidate = node
        case RequestVoteReply(granted=True, pre_vote=False, term=term):
            candidate = to
        case AppendEntriesReply(success=True, term=term, index=index):
            last = max(disk.entries[-1].index if disk.entries else 0, disk.snapshot.index)
            if state.term < term or (state.term == term and last < index):
                raise Violation("COQ", f"member {node} acknowledged {index} in t{term}; durable are t{state.term} and "
                                f"{last}")  # fmt: skip
            return
        case _:
            return
    if state.term < term or (state.term == term and state.vote != candidate):
        raise Violation("ES", f"member {node} let its vote for {candidate} in t{term} out; durable is {state}")


def check_step(node: NodeId, before: Local, after: Local, *, restarted: bool) -> None:
    """What may not go back, and what a leader may not do to its own log."""
    was, now = before.view, after.view
    where = f"member {node}"
    if restarted:
        durable = before.disk.hard_state
        if now.term < durable.term or (now.term == durable.term and durable.vote and now.vote != durable.vote):
            raise Violation("MONO", f"{where} restarts in t{now.term} vote {now.vote}; durable was {durable}")
        return
    if now.term < was.term or now.commit < was.commit or now.applied < was.applied:
        raise Violation("MONO", f"{where} went from t{was.term} commit {was.commit} applied {was.applied} to "
                        f"t{now.term} commit {now.commit} applied {now.applied}")  # fmt: skip
    if now.term == was.term and was.vote and now.vote != was.vote:
        raise Violation("ES", f"{where} voted for {was.vote} and for {now.vote} in t{now.term}")
    if not was.base <= now.base or now.applied > now.commit or now.commit > now.last:
        raise Violation("MONO", f"{where}: base {now.base} applied {now.applied} commit {now.commit} last {now.last}")
    if was.leads and now.leads and was.term == now.term:
        for index in range(now.base + 1, was.last + 1):
            if now.term_at(index) != was.term_at(index):
                raise Violation("LAO", f"leader {node} of t{now.term} changed its own entry {index}")
