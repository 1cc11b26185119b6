"""One member of a group: consensus, the queue in front of it and the machine behind it.

`Member.handle(events, now)` takes everything that arrived in a turn and returns everything that is to be done. It does
no I/O, knows no clock but `now` and the wall clock it was given as a function, and executes committed entries in the
same call. Production, the simulator and the lab drive this same class. (docs/explanation/life-of-a-write.md)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

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
from oarlock.machines.base import Checkpoint, Machine, TidyMachine, has_leases, is_audited, is_guarded
from oarlock.node.replica.audit import Auditor
from oarlock.node.replica.batch import (
    BATCH_BYTES_MAX,
    COMMAND_BYTES_MAX,
    decode_batch,
    decode_group,
    encode_batch,
    encode_group,
    split,
)
from oarlock.node.replica.directory import MemberRecord, decode_record
from oarlock.node.replica.events import (
    CaptureAsked,
    Captured,
    CaptureFailed,
    CheckpointWritten,
    Completed,
    Failed,
    LeasesAsked,
    LeasesFailed,
    LoadSnapshot,
    MemberEffect,
    MemberEvent,
    ReadBarrier,
    ReadsFailed,
    ReadsReady,
    Reconfigure,
    Reconfigured,
    SnapshotFailed,
    SnapshotLoaded,
    Submit,
    WriteCheckpoint,
    WriteSnapshot,
)
from oarlock.node.replica.forwarding import ForwardedProposals, Verdict
from oarlock.node.replica.leases import LeaseKeeper
from oarlock.node.replica.pending import Group, Pending, Reads
from oarlock.node.replica.reconfigure import Reconfiguration
from oarlock.node.replica.sessions import Envelope, known_kind, plain, publish
from oarlock.raft.config import RaftConfig
from oarlock.raft.core import Raft, Rng
from oarlock.raft.events import (
    Appended,
    Applied,
    Apply,
    ConfigChanged,
    ConfigRefused,
    DiskHealth,
    Event,
    Halt,
    MessageReceived,
    PeerConnected,
    PeerDown,
    ProposalRefused,
    Proposed,
    ReadFailed,
    ReadReady,
    ReadRequested,
    Restore,
    Restored,
    Send,
    SnapshotWritten,
    StartSnapshot,
    TransferDone,
)
from oarlock.raft.messages import (
    ChangeMembers,
    ChangeMembersReply,
    LeaseAnswer,
    LeaseAsk,
    Message,
    Propose,
    ProposeReply,
)
from oarlock.raft.status import RaftStatus
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
)

NUMBER_MAX: Final = 2**62  # of the driver's proposals; ours begin here
NEVER: Final = 2**63 - 1
REQUEST_START_MAX: Final = 2**48  # a process begins the numbers of what it passes on below this, at random
SECOND: Final = 1_000_000_000
PUBLISH_RETRY_NS: Final = SECOND
SNAPSHOT_RETRY_NS: Final = 10 * SECOND  # after a snapshot or checkpoint found no room


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberLimits:
    """Bounds and habits of one member. Times in ns, sizes in bytes."""

    request_timeout_ns: int = 5 * SECOND  # and two election timeouts: how long a proposal or a read may take
    proposals_pending_max: int = 65_536  # commands without an answer, of this member's callers
    proposals_pending_bytes_max: int = 64 << 20
    reads_pending_max: int = 10_000  # read tokens without an answer
    apply_gap_max: int = 5_000  # entries committed and not applied here; above it nothing new is taken
    snapshot_entries: int = 100_000  # a volatile machine is written to a file after so many entries ...
    snapshot_bytes: int = 64 << 20  # ... or so many bytes of them
    checkpoint_bytes: int = 32 << 20  # a durable machine is checkpointed when so much is dirty ...
    checkpoint_interval_ns: int = 5 * SECOND  # ... and at least this often while anything is
    audit_interval_ns: int = 10 * SECOND  # members compare their states this often while these change; 0: never


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberStatus:
    """What a person needs to see of one member."""

    raft: RaftStatus
    applied_index: Index
    proposals_pending: int
    proposals_pending_bytes: int
    reads_pending: int
    sessions: int
    resubmitted: int  # groups handed over again after a change of leader
    refused_forwards: int  # proposals of other members that were refused
    malformed_forwards: int


class _Part(NamedTuple):
    """One group of a batch on its way into the log: of this member (`group`), passed on by `sender` for `term`, or the
    lease keeper's own, which `request` numbers."""

    data: bytes
    group: Group | None = None
    sender: NodeId = NOBODY
    boot: int = 0
    request: int = 0
    term: Term = 0


class Member:
    """One replica.

    `hard_state`, `snapshot` and `entries` are what recovery gave back; `machine` has been restored so far that its
    `applied_index` is at least `snapshot.index` (None: a witness). `initial` is the configuration at index 0 of a new
    group, empty for a member that joins. `boot` identifies this life of the process: 64 random bits. `record` is this
    member's own encoded `MemberRecord`, which it publishes if the group knows another one; empty: nothing is published.
    `wall_clock` gives wall-clock time in ns, for the stamps of batches.
    """

    def __init__(
        self,
        config: RaftConfig,
        *,
        hard_state: HardState,
        snapshot: SnapshotMeta,
        entries: Sequence[Entry],
        initial: Configuration,
        incarnation: int,
        machine: Machine | None,
        boot: int,
        rng: Rng,
        now: int,
        wall_clock: Callable[[], int],
        record: bytes = b"",
        limits: MemberLimits | None = None,
    ) -> None:
        applied = machine.applied_index if machine is not None else snapshot.index
        last = entries[-1].index if entries else snapshot.index
        assert snapshot.index <= applied <= last, f"machine at {applied}, snapshot {snapshot.index}, log ends at {last}"
        self.id = config.id
        self.boot = boot
        self.machine = machine
        self.limits = limits if limits is not None else MemberLimits()
        self.raft = Raft(
            config,
            hard_state=hard_state,
            snapshot=snapshot,
            entries=entries,
            applied=applied,
            initial=initial,
            incarnation=incarnation,
            rng=rng,
            now=now,
        )
        self._config = config
        self._timeout_ns = self.limits.request_timeout_ns + 2 * config.election_timeout_ns
        self._wall_clock = wall_clock
        self._envelope = Envelope(machine) if machine is not None else None
        self._now = now
        self._out: list[MemberEffect] = []
        self._step: list[Event] = []  # for the next call of the core
        self._halted = False
        self._halt: Halt | None = None  # given out last: whoever waits is told before the driver stops

        self._pending = Pending()
        self._reads = Reads()
        self._forwarded = ForwardedProposals(hard_state.term)
        self._arrived: list[_Part] = []  # passed on to us in this turn
        self._handed: dict[int, list[_Part]] = {}  # token -> what the batch holds that the core has not answered for
        self._token = 0
        # A refusal that was meant for the process before must not pass for one of ours.
        self._request = rng.randrange(REQUEST_START_MAX)
        self._applied_term: Term = 0
        self._hold_until = 0  # the queue waits for this, or for another leader
        self._held_by: tuple[Term, NodeId] = (0, NOBODY)
        self._forward_check_at = NEVER
        self.resubmitted = 0
        self.refused_forwards = 0
        self.malformed_forwards = 0

        self._keeper: LeaseKeeper | None = None
        if has_leases(machine):
            self._keeper = LeaseKeeper(
                machine,
                timeout_ns=self._timeout_ns,
                retry_ns=config.election_timeout_ns,
                pause_ns=config.heartbeat_interval_ns,
                confirmed_ns=config.heartbeat_interval_ns // 2,
                first_request=self._request,
            )
        self._lease_round = NUMBER_MAX  # tokens of the keeper's read rounds
        self._auditor: Auditor | None = None
        if is_audited(machine):
            self._auditor = Auditor(machine, self.id, self.limits.audit_interval_ns, now)
        self._disk_sick = False
        self._changes = Reconfiguration(
            self.raft,
            timeout_ns=self._timeout_ns,
            send=self._send,
            step=self._to_core,
            answer=self._reconfigured,
            request=self._next_request,
            records=self.records,
            guard=machine.refuse_operator if is_guarded(machine) else None,
        )

        self._record = decode_record(record) if record else None
        self._record_bytes = record
        self._publishing = 0  # the number of our proposal, 0: none
        self._publish_at = now
        self._own_number = NUMBER_MAX

        self._entries_since = applied - snapshot.index  # applied since the last snapshot or checkpoint
        self._bytes_since = 0
        self._saving = False  # a snapshot or checkpoint is being written
        self._saved_at = now
        self._save_not_before = now
        self._snapshot_wanted: Index = 0  # somebody needs a snapshot file at or above this
        self._snapshot_begun: Index = 0  # the one being written
        self._loaded: SnapshotLoaded | None = None
        self._captures: list[tuple[int, Index]] = []  # captures that callers wait for: token, and what they must show

    # ------------------------------------------------------------------ what others may look at

    @property
    def applied_index(self) -> Index:
        return self.machine.applied_index if self.machine is not None else self.raft.last_applied

    @property
    def pending_count(self) -> int:
        return self._pending.count

    @property
    def pending_bytes(self) -> int:
        return self._pending.bytes

    @property
    def reads_pending(self) -> int:
        return len(self._reads)

    @property
    def halted(self) -> bool:
        return self._halted

    @property
    def quarantined(self) -> bool:
        """Whether this member's state differs from what a majority has: it must not be read."""
        return self._auditor is not None and self._auditor.quarantined

    @property
    def keeper(self) -> LeaseKeeper | None:
        """The keeper of leases; None if the machine has none."""
        return self._keeper

    @property
    def saving(self) -> bool:
        """Whether a snapshot or checkpoint is being written."""
        return self._saving

    def records(self) -> dict[NodeId, MemberRecord]:
        """Name and URLs of every member: as the configuration has them, and what members have published since."""
        published = self._envelope.records if self._envelope is not None else {}
        records: dict[NodeId, MemberRecord] = {}
        for info in self.raft.configuration.members:
            added = decode_record(info.context)
            said = published.get(info.id)
            if said is None:
                records[info.id] = added
            else:
                records[info.id] = MemberRecord(said.name or added.name, added.peer_urls, said.client_urls)
        return records

    def status(self) -> MemberStatus:
        return MemberStatus(
            raft=self.raft.status(),
            applied_index=self.applied_index,
            proposals_pending=self._pending.count,
            proposals_pending_bytes=self._pending.bytes,
            reads_pending=len(self._reads),
            sessions=self._envelope.session_count if self._envelope is not None else 0,
            resubmitted=self.resubmitted,
            refused_forwards=self.refused_forwards,
            malformed_forwards=self.malformed_forwards,
        )

    def next_deadline(self) -> int:
        """When `handle` must be called next even if nothing happens, on the driver's clock in ns."""
        if self._halted:
            return NEVER
        deadline = min(self.raft.next_deadline(), self._forward_check_at)
        oldest = self._pending.oldest()
        if oldest is not None:
            deadline = min(deadline, oldest.deadline)
            if self._pending.queue and self._hold_until > self._now:
                deadline = min(deadline, self._hold_until)
        reads = self._reads.deadline()
        if reads is not None:
            deadline = min(deadline, reads)
        if not self._changes.idle:
            deadline = min(deadline, self._changes.deadline())
        durable = self.machine is not None and self.machine.durable
        if durable and self._entries_since and not self._saving and self._can_save():
            deadline = min(deadline, max(self._saved_at + self.limits.checkpoint_interval_ns, self._save_not_before))
        if self._save_not_before > self._now and (self._snapshot_wanted or self._entries_since):
            deadline = min(deadline, self._save_not_before)
        if self._record is not None and not self._publishing and self._publish_at > self._now:
            deadline = min(deadline, self._publish_at)
        if self._keeper is not None:
            deadline = min(deadline, self._keeper.next_deadline())
        if self._auditor is not None:
            in_step = self.raft.is_leader and self._applied_term == self.raft.current_term
            deadline = min(deadline, self._auditor.next_deadline(in_step))
        return deadline

    def validate(self) -> None:
        """What is true between any two calls, if this code is right."""
        self.raft.validate()
        assert not self._handed and not self._arrived, "proposals without an answer from the core"
        assert self._pending.count >= 0 and self._pending.bytes >= 0
        assert all(group.term == 0 for group in self._pending.queue), "a group in the queue was handed over"

    # ------------------------------------------------------------------ the step

    def handle(
        self,
        events: Sequence[MemberEvent],
        now: int,
        ahead: Callable[[list[MemberEffect]], None] | None = None,
    ) -> list[MemberEffect]:
        """Take everything that arrived since the last call; say what to do. `now` never goes back.

        With `ahead`, what is to be done before committed entries are executed is handed to it then, so that messages
        and syncs are on their way meanwhile; it must not call this member. The rest is returned.

        An exception means that the state machine, or this code, is wrong: the member must not go on.
        """
        if self._halted:
            return []
        self._now = now
        self._out = []
        self._step = []
        for event in events:
            self._take(event)
        raft = self.raft
        if raft.is_leader and (self._pending.queue or self._arrived):
            self._append_queue()
        while True:
            step, self._step = self._step, []
            for effect in raft.handle(step, now):
                if ahead is not None and self._out and isinstance(effect, Apply):
                    out, self._out = self._out, []
                    ahead(out)
                self._perform(effect)
            if self.halted:
                assert self._halt is not None
                self._fail_everything(Stopped("the member stopped"))
                self._out.append(self._halt)
                break
            if raft.is_leader:
                self._forwarded.lead(raft.current_term)
            if not self._step:
                self._dispatch()
                if not self._changes.idle:
                    self._changes.turn(self._applied_term, now)
                self._maybe_publish()
                self._maybe_save()
                if self._auditor is not None:
                    self._audit(self._auditor)
                if self._keeper is not None:
                    self._keep_leases(self._keeper)
                if not self._step:
                    break
        self._expire()
        out, self._out = self._out, []
        return out

    def stop(self, error: RaftError | None = None, *, removed: bool = False) -> list[MemberEffect]:
        """The driver stops this member: everybody who waits is told. `handle` does nothing from now on.

        `removed`: because others have its removal committed, whether or not that has come here.
        """
        self._changes.removed = removed
        self._halted = True
        out: list[MemberEffect] = []
        self._out = out
        self._fail_everything(error if error is not None else Stopped("the member stopped"))
        self._out = []
        return out

    def let_go(self) -> None:
        """Nobody will call this member again. What refers back to it lets go of it, for drivers that make many members
        and do without the cyclic collector meanwhile."""
        self._halted = True
        self._changes.let_go()

    def _take(self, event: MemberEvent) -> None:
        match event:
            case MessageReceived(sender, message):
                if isinstance(message, Propose):
                    self._forward_received(sender, message)
                elif isinstance(message, ProposeReply):
                    self._refusal_received(sender, message)
                elif isinstance(message, LeaseAsk):
                    if self._keeper is not None:
                        self._keeper.ask_received(sender, message, self._now)
                elif isinstance(message, LeaseAnswer):
                    if self._keeper is not None:
                        self._keeper.answer_received(message)
                elif isinstance(message, ChangeMembers | ChangeMembersReply):
                    self._changes.received(sender, message, self._now)
                else:
                    self._step.append(event)
            case Submit(first, commands):
                assert first + len(commands) <= NUMBER_MAX, f"proposal numbers end at {NUMBER_MAX}"
                self._submit(first, commands)
            case ReadBarrier(token, confirmed):
                if len(self._reads) >= self.limits.reads_pending_max:
                    self._out.append(ReadsFailed(token, Overloaded("reads_pending_max", self.limits.reads_pending_max)))
                else:
                    self._reads.ask(token, self._now + self._timeout_ns)
                    self._step.append(ReadRequested(token, confirmed))
            case LeasesAsked(token, renew, query):
                if self._keeper is None:
                    self._out.append(LeasesFailed(token, ProposalDropped("this member's machine has no leases")))
                else:
                    self._keeper.ask(token, renew, query, self._now)
            case Reconfigure(token, change):
                self._changes.ask(token, change, self._now)
            case CaptureAsked(token):
                if self.machine is None:
                    self._out.append(CaptureFailed(token, ProposalDropped("a witness has no state machine")))
                else:
                    self._captures.append((token, self.machine.applied_index))
            case CheckpointWritten(checkpoint):
                self._checkpoint_written(checkpoint)
            case SnapshotWritten():
                self._saving = False
                self._step.append(event)
            case SnapshotFailed():
                self._saving = False
                # sometimes: a snapshot finds no room
                self._snapshot_wanted = max(self._snapshot_wanted, self._snapshot_begun)
                self._save_not_before = self._now + SNAPSHOT_RETRY_NS
            case SnapshotLoaded():
                self._loaded = event
            case DiskHealth(sick):
                self._disk_sick = sick
                self._step.append(DiskHealth(sick or self.quarantined))
            case PeerDown(peer):
                self._changes.peer_down(peer, self._now)
                self._step.append(event)
            case PeerConnected(peer, _):
                self._step.append(event)
                if peer == self.raft.leader_id:
                    # sometimes: a connection to the leader is new
                    self._forward_again(0)
            case _:
                self._step.append(event)

    def _perform(self, effect: object) -> None:
        """Carry out what concerns the queue and the machine; hand everything else to the driver."""
        match effect:
            case Apply(entries):
                self._apply(entries)
            case Appended(token, term, _):
                self._appended(token, term)
            case ProposalRefused(token, reason, _):
                self._refused(token, reason)
            case ReadReady(token, index):
                if token >= NUMBER_MAX:
                    assert self._keeper is not None
                    self._keeper.round_done(token, index)
                elif self._reads.ready(token, index, self.applied_index):
                    self._out.append(ReadsReady([token]))
            case ReadFailed(token, reason):
                if token >= NUMBER_MAX:
                    assert self._keeper is not None
                    self._keeper.round_failed(token)
                elif self._reads.fail(token):
                    self._out.append(ReadsFailed(token, self._read_error(reason)))
            case Restore(snapshot):
                self._out.append(LoadSnapshot(snapshot))
            case StartSnapshot(index):
                self._snapshot_wanted = max(index, 1)
            case ConfigChanged(token) | ConfigRefused(token) | TransferDone(token) if self._changes.takes(token):
                self._changes.core_answered(effect)
            case Halt():
                self._halted = True
                self._halt = effect
            case _:
                self._out.append(effect)  # type: ignore[arg-type]  # the rest of raft's effects are ours too

    # ------------------------------------------------------------------ changes of membership

    def _send(self, to: NodeId, message: Message) -> None:
        self._out.append(Send(to, message))

    def _to_core(self, event: Event) -> None:
        self._step.append(event)

    def _reconfigured(self, token: int, error: RaftError | None) -> None:
        self._out.append(Reconfigured(token, error))

    def _next_request(self) -> int:
        self._request += 1
        return self._request

    # ------------------------------------------------------------------ proposals: the queue

    def _submit(self, first: int, commands: Sequence[bytes]) -> None:
        limits = self.limits
        runs = split(commands)
        for run in runs:
            error: RaftError | None = None
            if self._pending.count + len(run) > limits.proposals_pending_max and len(self._pending):
                error = Overloaded("proposals_pending_max", limits.proposals_pending_max)
            elif self._pending.bytes + sum(map(len, run)) > limits.proposals_pending_bytes_max and len(self._pending):
                error = Overloaded("proposals_pending_bytes_max", limits.proposals_pending_bytes_max)
            elif self.raft.commit_index - self.raft.last_applied > limits.apply_gap_max:
                error = Overloaded("apply_gap_max", limits.apply_gap_max)
            elif self._envelope is None:
                error = ProposalDropped("a witness has no state machine: ask another member")
            elif len(run[0]) > COMMAND_BYTES_MAX:
                error = Overloaded("COMMAND_BYTES_MAX", COMMAND_BYTES_MAX)
            if error is not None:
                self._out.append(Failed(first, len(run), error))
            else:
                data = encode_group(self.id, self.boot, first, run)
                self._pending.add(Group(first, len(run), data, self._now + self._timeout_ns))
            first += len(run)

    def _dispatch(self) -> None:
        """Hand the queue over to whoever leads now, if anybody does."""
        queue = self._pending.queue
        if not queue:
            return
        raft = self.raft
        leader = (raft.current_term, raft.leader_id)
        if leader != self._held_by:
            self._hold_until = 0
        if leader[1] == NOBODY or self._now < self._hold_until:
            return
        if raft.is_leader:
            self._append_queue()
            return
        if raft.log.last_term != raft.current_term or raft.last_applied < raft.log.snapshot_index:
            # sometimes: proposals wait until this member is in step with its leader
            return  # not in step with this leader yet: a snapshot may have to come, which would hide the outcome
        if self._forward_check_at == NEVER:
            self._forward_check_at = self._now + self._config.election_timeout_ns
        while queue:
            group = queue.popleft()
            self._request += 1
            self._pending.handed_over(group, leader[0], to=leader[1], request=self._request, now=self._now)
            self._out.append(Send(leader[1], Propose(term=leader[0], request=self._request, payload=group.data)))

    def _hold(self) -> None:
        """The leader does not take proposals just now: do not ask it again at once."""
        # sometimes: a leader takes no proposals just now
        self._held_by = (self.raft.current_term, self.raft.leader_id)
        self._hold_until = self._now + self._config.heartbeat_interval_ns

    def _append_queue(self) -> None:
        """We lead: put into the log what was passed on to us, and the queue unless it is held, in few batches."""
        parts, self._arrived = self._arrived, []
        queue = self._pending.queue
        if self._now >= self._hold_until and not self.raft.transferring:
            parts += [_Part(group.data, group) for group in queue]
            queue.clear()
        keeper = self._keeper
        if parts and keeper is not None and keeper.tick_due(self._now):
            keeper.tick()
            parts.insert(0, self._lease_part(keeper))
        start = size = 0
        for at, part in enumerate(parts):
            if at > start and size + len(part.data) > BATCH_BYTES_MAX:
                self._propose(parts[start:at])
                start, size = at, 0
            size += len(part.data)
        if start < len(parts):
            self._propose(parts[start:] if start else parts)

    def _propose(self, parts: list[_Part]) -> None:
        assert self._envelope is not None, "a witness proposes nothing"
        self._token += 1
        self._handed[self._token] = parts
        stamp = max(self._wall_clock(), self._envelope.stamp_ns)
        payload = encode_batch(stamp, [part.data for part in parts])
        waiting = tuple(sorted({part.sender for part in parts} - {NOBODY}))
        self._step.append(Proposed(self._token, payload, waiting))

    def _appended(self, token: int, term: Term) -> None:
        for part in self._handed.pop(token):
            if part.group is not None:
                self._pending.handed_over(part.group, term)
            elif part.sender != NOBODY:
                # The sender counts on its own term. A leader cannot lose one term and win another in one call.
                assert term == part.term, f"a proposal for term {part.term} was appended in term {term}"

    def _refused(self, token: int, reason: str) -> None:
        back: list[Group] = []
        for part in self._handed.pop(token):
            if part.group is not None:
                back.append(part.group)
            elif part.sender == NOBODY:
                assert self._keeper is not None
                self._keeper.refused(part.request)
            else:
                self._refuse_forward(part.sender, part.boot, part.request, reason)
        if back:
            self._pending.requeue(back)
            if reason != "not_leader":
                self._hold()

    # ------------------------------------------------------------------ proposals: between members

    def _forward_received(self, sender: NodeId, message: Propose) -> None:
        """Another member passes proposals on to us, whom it takes for the leader of `message.term`."""
        raft = self.raft
        try:
            group = decode_group(message.payload)
            if group.origin != sender:
                raise ValueError(f"a group of member {group.origin:x} from member {sender:x}")
            for command in group.commands:
                if not known_kind(command):
                    raise ValueError(f"a command of kind {command[0]:#04x}, which this version does not know")
        except ValueError:
            self.malformed_forwards += 1
            return
        verdict = self._forwarded.judge(
            message.term, sender, group.boot, message.request, leads=raft.is_leader, current_term=raft.current_term
        )
        if verdict is Verdict.REFUSE:
            # sometimes: a forwarded proposal comes to a member that does not lead
            self._refuse(sender, message.request, "not_leader")
        elif verdict is Verdict.NEW:
            if raft.transferring:
                # sometimes: a forwarded proposal comes during a transfer
                self._refuse_forward(sender, group.boot, message.request, "transferring")
            elif raft.commit_index - raft.last_applied > self.limits.apply_gap_max:
                self._refuse_forward(sender, group.boot, message.request, "overloaded")
            else:
                part = _Part(message.payload, None, sender, group.boot, message.request, message.term)
                self._arrived.append(part)

    def _refuse_forward(self, sender: NodeId, boot: int, request: int, reason: str) -> None:
        self._forwarded.refused(sender, boot, request)
        self._refuse(sender, request, reason)

    def _refuse(self, sender: NodeId, request: int, reason: str) -> None:
        self.refused_forwards += 1
        self._out.append(Send(sender, ProposeReply(term=self.raft.current_term, request=request, reason=reason)))

    def _refusal_received(self, sender: NodeId, message: ProposeReply) -> None:
        group = self._pending.of_request(message.request)
        if group is None or group.to != sender:
            return
        if message.reason == "overloaded":
            # sometimes: a forwarded proposal is too much
            self._fail(group, Overloaded("uncommitted_bytes_max", self._config.uncommitted_bytes_max))
        else:
            self._pending.requeue([group])
            self._hold()

    def _forward_again(self, sent_before: int) -> None:
        """What was passed on to the present leader in its present term may be lost: pass it on again, under the same
        request numbers, by which the leader knows what it has."""
        raft = self.raft
        for group in self._pending.forwarded():
            if group.term == raft.current_term and group.to == raft.leader_id:
                if sent_before and group.sent_at > sent_before:
                    continue
                # sometimes: a forwarded proposal is passed on again
                group.sent_at = self._now
                self._out.append(Send(group.to, Propose(term=group.term, request=group.request, payload=group.data)))

    # ------------------------------------------------------------------ leases

    def _keep_leases(self, keeper: LeaseKeeper) -> None:
        """What the keeper of leases does with this turn."""
        raft = self.raft
        leader, leads = raft.leader_id, raft.is_leader
        if leads and self.quarantined:
            leader, leads = NOBODY, False  # what we know of leases is worth nothing
        keeper.turn(
            self._now, leader, raft.current_term, self.applied_index,
            leads=leads, in_step=self._applied_term == raft.current_term,
            leaving=raft.leaving, committed=raft.commit_index,
        )  # fmt: skip
        if keeper.wants_round:
            self._lease_round += 1
            keeper.begin_round(self._lease_round)
            self._step.append(ReadRequested(self._lease_round))
        if keeper.commands:
            self._arrived.append(self._lease_part(keeper))
            self._append_queue()
        if keeper.out:
            self._out += keeper.out
            keeper.out = []

    def _lease_part(self, keeper: LeaseKeeper) -> _Part:
        number = self._own_number
        commands = [plain(command) for command in keeper.take_commands(number)]
        self._own_number += len(commands)
        return _Part(encode_group(self.id, self.boot, number, commands), request=number)

    # ------------------------------------------------------------------ comparing states

    def _audit(self, auditor: Auditor) -> None:
        """Begin a comparison if we lead and it is time, answer one that was begun, and see what came of it."""
        raft = self.raft
        if raft.is_leader and self._applied_term == raft.current_term:
            states = sum(info.role is not MemberRole.WITNESS for info in raft.configuration.members)
            command = auditor.mark(raft.current_term, states, self._now)
            if command is not None:
                self._propose_own(plain(command))
        report = auditor.report()
        if report is not None:
            self._propose_own(plain(report))
        if auditor.look():
            # Whoever leads sends its state to others: this one must not. Its log is as good as any, so it may vote.
            self._step.append(DiskHealth(self._disk_sick or auditor.quarantined))

    # ------------------------------------------------------------------ the machine

    def _apply(self, entries: tuple[Entry, ...]) -> None:
        """Execute committed entries in order and answer whoever waits for them here."""
        envelope = self._envelope
        term = entries[-1].term
        if envelope is not None:
            out = self._out
            own, boot = self.id, self.boot
            keeper = self._keeper
            size = 0
            for entry in entries:
                if entry.kind != EntryKind.NORMAL:
                    envelope.apply_empty(entry.index, entry.term)
                    continue
                payload = entry.payload
                size += len(payload)
                batch = decode_batch(payload)
                groups = batch.groups
                commands = groups[0].commands if len(groups) == 1 else [c for group in groups for c in group.commands]
                results = envelope.apply(entry.index, entry.term, batch.stamp_ns, commands)
                at = 0
                for group in groups:
                    count = len(group.commands)
                    if group.origin == own and group.boot == boot and self._pending.applied(group.first, entry.term):
                        if group.first >= NUMBER_MAX:
                            self._own_done(group.first)
                        else:
                            out.append(
                                Completed(group.first, results if len(groups) == 1 else results[at : at + count])
                            )
                    elif (
                        group.first >= NUMBER_MAX and group.origin == own and group.boot == boot and keeper is not None
                    ):
                        keeper.applied(group.first)
                    at += count
            envelope.flush()
            self._bytes_since += size
        self._entries_since += len(entries)
        self._step.append(Applied(entries[-1].index))
        if term > self._applied_term:
            self._applied_term = term
            overtaken = self._pending.overtaken(term)
            if overtaken:
                # sometimes: a change of leader took a proposal's place
                self.resubmitted += len(overtaken)
                self._pending.requeue(overtaken)
        if len(self._reads):
            done = self._reads.applied(entries[-1].index)
            if done:
                self._out.append(ReadsReady(done))

    def _maybe_restore(self) -> None:
        """Put the machine into the state of a snapshot that came from the leader."""
        loaded = self._loaded
        if loaded is None or self._saving:
            return
        self._loaded = None
        assert self.machine is not None and self._envelope is not None, "a witness restores nothing"
        snapshot = loaded.snapshot
        self.machine.restore(snapshot.index, loaded.chunks)
        now_at = self.machine.applied_index
        assert now_at == snapshot.index, f"restored {snapshot.index}, but the machine is at {now_at}"
        self._envelope.load()
        self._entries_since = self._bytes_since = 0
        self._saved_at = self._now
        self._applied_term = max(self._applied_term, snapshot.term)
        for group in self._pending.up_to(snapshot.term):
            # sometimes: a snapshot hides what became of a proposal
            # Its entry may be among those that the snapshot stands for: nobody can tell any more.
            self._fail(group, LeadershipLost("a snapshot took the place of the entries that may hold this proposal"))
        self._step.append(Restored(snapshot))
        done = self._reads.applied(snapshot.index)
        if done:
            self._out.append(ReadsReady(done))

    # ------------------------------------------------------------------ snapshots and checkpoints

    def _maybe_save(self) -> None:
        """Write the machine's state down when it is time, so that the log can be cut and a restart is short."""
        self._maybe_restore()
        if self._captures:
            self._give_captures()
        if self._saving or self._loaded is not None or self._now < self._save_not_before:
            return
        limits = self.limits
        machine = self.machine
        raft = self.raft
        if machine is None:
            if self._entries_since >= limits.snapshot_entries:
                # sometimes: a witness marks what it need not keep
                # A witness has no state: that it applied the entries is all there is to say.
                self._entries_since = 0
                self._step.append(SnapshotWritten(raft.snapshot_meta(raft.last_applied)))
            return
        if not self._can_save():
            return
        if machine.durable:
            if self._snapshot_wanted and self._start_snapshot():
                return
            due = (
                machine.dirty_bytes() >= limits.checkpoint_bytes
                or self._now >= self._saved_at + limits.checkpoint_interval_ns
                or self._snapshot_wanted > 0
                or bool(self._captures)
            )
            if due and self._entries_since:
                self._begin_saving()
                self._out.append(WriteCheckpoint(machine.checkpoint()))
        elif self._snapshot_wanted:
            self._start_snapshot()
        elif self._entries_since >= limits.snapshot_entries or self._bytes_since >= limits.snapshot_bytes:
            self._snapshot_wanted = machine.applied_index
            self._start_snapshot()

    def _can_save(self) -> bool:
        """Whether the machine's state may be written down now.

        What is applied may be ahead of our own disk's log; a state beyond the log's end could not be recovered from.
        """
        machine, raft = self.machine, self.raft
        return machine is not None and raft.log.stable_index >= machine.applied_index == raft.last_applied

    def _give_captures(self) -> None:
        """To those who wait for one that shows enough. A durable machine captures its last checkpoint."""
        assert self.machine is not None
        waiting, self._captures = self._captures, []
        for token, wanted in waiting:
            capture = self.machine.capture()
            if capture.index < wanted:
                capture.close()
                self._captures.append((token, wanted))
            else:
                self._out.append(Captured(token, capture, self.raft.snapshot_meta(capture.index).term))

    def tidy(self, entries: int) -> bool:
        """For a driver that has a moment: free up to so many compacted changes, which otherwise happens along with
        what is applied, and not at all in a group that is idle, or has no space. Whether there was something."""
        machine: object = self.machine
        if self._halted or not isinstance(machine, TidyMachine) or not machine.purging:
            return False
        machine.compact_some(entries)
        self._entries_since = max(self._entries_since, 1)  # so that it reaches the disk with the next checkpoint
        return True

    def _begin_saving(self) -> None:
        self._saving = True
        self._snapshot_begun = 0
        self._saved_at = self._now
        self._entries_since = self._bytes_since = 0

    def _start_snapshot(self) -> bool:
        """Capture the machine for a snapshot file. Returns whether the capture is recent enough."""
        assert self.machine is not None
        if self.quarantined:
            return False  # others would take our state for theirs
        capture = self.machine.capture()
        if capture.index < max(self._snapshot_wanted, self.raft.log.snapshot_index):
            # sometimes: a checkpoint is too old for the snapshot that is wanted
            capture.close()
            return False
        if self.machine.durable:
            self._saving = True
        else:
            self._begin_saving()
        self._snapshot_begun, self._snapshot_wanted = self._snapshot_wanted, 0
        self._out.append(WriteSnapshot(self.raft.snapshot_meta(capture.index), capture))
        return True

    def _checkpoint_written(self, checkpoint: Checkpoint) -> None:
        assert self.machine is not None and self._saving
        self._saving = False
        self.machine.checkpointed(checkpoint)
        if checkpoint.index > self.raft.log.snapshot_index:
            self._step.append(SnapshotWritten(self.raft.snapshot_meta(checkpoint.index)))

    def final_checkpoint(self) -> Checkpoint | None:
        """For a clean stop: a checkpoint of all that is applied, if the machine is durable and the log holds it."""
        machine = self.machine
        if machine is None or not machine.durable or self._saving or self._loaded is not None:
            return None
        if self.raft.log.stable_index < machine.applied_index or not self._entries_since:
            return None
        self._begin_saving()
        return machine.checkpoint()

    # ------------------------------------------------------------------ publishing who we are

    def _maybe_publish(self) -> None:
        """Let the group know our name and client URLs, if what it knows is something else."""
        if self._record is None or self._publishing or self._envelope is None or self._now < self._publish_at:
            return
        raft = self.raft
        if raft.leader_id == NOBODY or self._applied_term != raft.current_term or raft.last_applied < raft.commit_index:
            return  # what we see of the state may be old
        if raft.configuration.member(self.id) is None:
            return
        if self._envelope.record_of(self.id) == self._record:
            # sometimes: the group knows who this member is
            self._record = None
            return
        self._publish_at = self._now + PUBLISH_RETRY_NS
        self._publishing = self._propose_own(publish(self.id, self._record_bytes))

    def _propose_own(self, command: bytes) -> int:
        """Replicate a command of this member's own, through the leader. Nobody is told of its end but `_own_done`."""
        number = self._own_number
        self._own_number += 1
        data = encode_group(self.id, self.boot, number, [command])
        self._pending.add(Group(number, 1, data, self._now + self._timeout_ns))
        self._dispatch()
        return number

    def _own_done(self, number: int) -> None:
        if number == self._publishing:
            self._publishing = 0

    # ------------------------------------------------------------------ time and errors

    def _expire(self) -> None:
        now = self._now
        while (group := self._pending.oldest()) is not None and group.deadline <= now:
            # sometimes: a proposal takes too long
            self._fail(group, self._late(group))
        for token in self._reads.expired(now):
            # sometimes: a read takes too long
            self._out.append(ReadsFailed(token, self._late_read()))
        if now >= self._forward_check_at:
            interval = self._config.election_timeout_ns
            self._forward_again(now - interval)
            self._forward_check_at = now + interval if self._pending.forwarded() else NEVER

    def _late(self, group: Group) -> RaftError:
        if group.term:
            return DeadlineExceeded("no answer in time; the command may have been executed, or may still be")
        if self.raft.leader_id == NOBODY:
            return NoLeader("no leader was elected in time; nothing was proposed")
        return ProposalDropped("the leader took no proposals in time; nothing was proposed")

    def _late_read(self) -> RaftError:
        if self.raft.leader_id == NOBODY:
            return NoLeader("no leader was elected in time; nothing was read")
        error = DeadlineExceeded("no answer in time; nothing was read")
        error.outcome = Outcome.NOT_EXECUTED
        return error

    def _read_error(self, reason: str) -> RaftError:
        if reason == "overloaded":
            return Overloaded("reads_pending_max", self._config.reads_pending_max)
        return NoLeader("no leader was elected in time; nothing was read")

    def _fail(self, group: Group, error: RaftError) -> None:
        self._pending.drop(group)
        if group.first >= NUMBER_MAX:
            self._own_done(group.first)
        else:
            self._out.append(Failed(group.first, group.count, error))

    def _fail_everything(self, error: RaftError) -> None:
        for parts in self._handed.values():  # the core halted before it came to them
            self._pending.requeue([part.group for part in parts if part.group is not None])
        self._handed.clear()
        self._arrived.clear()
        for group in self._pending.all():
            if group.term:
                self._fail(group, error)
            else:
                self._fail(group, ProposalDropped(f"{error}; nothing was proposed"))
        for token in self._reads.all():
            self._out.append(ReadsFailed(token, error))
        for token, _ in self._captures:
            self._out.append(CaptureFailed(token, error))
        self._captures = []
        if self._keeper is not None:
            self._keeper.fail_everything(error)
            self._out += self._keeper.out
            self._keeper.out = []
        self._changes.fail_everything(error)
