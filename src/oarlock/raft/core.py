"""Consensus: one member of one group, after Figure 2 of the Raft paper. Synchronous, deterministic, free of I/O.

`Raft.handle(events, now)` is the only way in, its list of effects the only way out (see `events`). A call takes
everything that arrived since the last one; what it must make durable comes out as at most one `Persist`.

Differs from Figure 2 in these places, each where the code says so: an election may be preceded by PreVote (diss. 9.6);
a leader steps down without a majority (diss. 6.2); heartbeats are messages of their own, so that none waits for a disk;
a leader's own log counts towards a majority only as far as it is durable (diss. 10.2.1).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, assert_never

from oarlock.raft import membership, quorum
from oarlock.raft.config import RaftConfig
from oarlock.raft.durability import Durability
from oarlock.raft.events import (
    Appended,
    Applied,
    Apply,
    ChangeKind,
    ChunkWritten,
    ConfigChange,
    ConfigChanged,
    ConfigChangeRequested,
    ConfigRefused,
    DiskHealth,
    Effect,
    Event,
    Halt,
    MembersChanged,
    MessageReceived,
    PeerConnected,
    PeerDown,
    Persisted,
    ProposalRefused,
    Proposed,
    ReadFailed,
    ReadReady,
    ReadRequested,
    ReleaseLog,
    Restored,
    Send,
    SendSnapshot,
    SnapshotLost,
    SnapshotWritten,
    StartSnapshot,
    TimePassed,
    TransferDone,
    TransferRequested,
    WriteChunk,
)
from oarlock.raft.log import Log
from oarlock.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    ChangeMembers,
    ChangeMembersReply,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    InstallSnapshotReply,
    LeaseAnswer,
    LeaseAsk,
    Message,
    Propose,
    ProposeReply,
    ReadIndex,
    ReadIndexReply,
    RequestVote,
    RequestVoteReply,
    TimeoutNow,
    TransferLeadership,
)
from oarlock.raft.progress import Progress, ProgressState
from oarlock.raft.quorum import VoteResult
from oarlock.raft.reads import ReadQueue
from oarlock.raft.roles import Candidate, Follower, Leader, PreCandidate, Read, Role, Transfer
from oarlock.raft.status import PeerStatus, RaftStatus
from oarlock.raft.trace import TRACES_MAX, Trace, entry_name, node_name
from oarlock.raft.types import (
    NOBODY,
    Configuration,
    Entry,
    EntryKind,
    HardState,
    Index,
    MemberInfo,
    MemberRole,
    NodeId,
    SnapshotMeta,
    Term,
    decode_configuration,
    encode_configuration,
)

__all__ = ["Raft", "RaftConfig"]

NEVER = 2**63 - 1  # a deadline that does not come
READ_REQUEST_START_MAX = 2**48  # a process begins its read request numbers below this, at random
PRIORITY_RANKS_MAX = 4  # how many ranks of priority lengthen an election timeout


class Rng(Protocol):
    """The part of `random.Random` that is used: a seeded one is given by the driver."""

    def randrange(self, stop: int, /) -> int: ...


class _TransferWatch:
    """Somebody here asked for a transfer and waits for how it ends."""

    __slots__ = ("deadline", "target", "token")

    def __init__(self, token: int, target: NodeId, deadline: int) -> None:
        self.token = token
        self.target = target
        self.deadline = deadline


class Raft:
    """One member of one group.

    `snapshot`, `entries` and `hard_state` are what recovery gave back; `applied` is how far the machine's own state
    goes; `initial` is the configuration at index 0 of a new group (empty for a member that joins one). `incarnation`
    identifies this member's disk (0: not used). `rng` is the only source of randomness, `now` the driver's monotonic
    clock in ns.
    """

    def __init__(
        self,
        config: RaftConfig,
        *,
        hard_state: HardState,
        snapshot: SnapshotMeta,
        entries: Sequence[Entry],
        applied: Index,
        initial: Configuration,
        incarnation: int,
        rng: Rng,
        now: int,
    ) -> None:
        self.config = config
        self.id = config.id
        self.incarnation = incarnation
        self._rng = rng
        self._now = now
        self.current_term: Term = hard_state.term
        self.voted_for: NodeId = hard_state.vote
        self.leader_id: NodeId = NOBODY
        self.role: Role = Follower()

        base_index, base_term, kept = snapshot.index, snapshot.term, list(entries)
        if kept and kept[-1].index < snapshot.index:
            kept = []  # all of it is older than the snapshot, and nothing joins the two
        if kept and kept[0].index <= snapshot.index:
            # Entries kept behind the snapshot for slow followers. The first of them becomes the base: its term is
            # known.
            base_index, base_term = kept[0].index, kept[0].term
            kept = kept[1:]
        self.log = Log(base_index, base_term, kept)
        if applied > self.log.last_index:
            raise ValueError(
                f"the machine has applied {applied} but the log ends at {self.log.last_index}: "
                "the log and the machine's state are not of the same member or of the same time"
            )
        self.log.commit_index = max(snapshot.index, min(hard_state.commit, self.log.last_index), base_index, applied)
        self.log.last_applied = max(applied, base_index)
        self._apply_sent = self.log.last_applied
        self.log.validate()

        # Configurations in the log, oldest first; the last one is in force, committed or not (diss. 4.1).
        first = snapshot.configuration if snapshot.index else initial
        self._configurations = membership.ConfigurationHistory(snapshot.index, first)
        for entry in kept:
            if entry.kind == EntryKind.CONFIG and entry.index > snapshot.index:
                self._configurations.append(entry.index, decode_configuration(entry.payload))

        self._durability = Durability(self.log, hard_state)
        self._known_hard_state = hard_state
        self._restore: SnapshotMeta | None = None  # the machine is behind the log until this is restored
        self.snapshot: SnapshotMeta | None = snapshot if snapshot.has_file else None  # the newest one with a file
        self._snapshot_started = False

        self._uncommitted_bytes = 0
        self._reads = ReadQueue(config.reads_pending_max, now, rng.randrange(READ_REQUEST_START_MAX))
        self._config_waits: list[tuple[int, Index]] = []
        self._transfer_watch: _TransferWatch | None = None
        self._connected: dict[NodeId, int] = {}  # incarnations as handshakes showed them
        self._foreign: set[NodeId] = set()  # peers whose disk is not the one that the configuration knows
        self._disk_sick = False
        self._halted = False
        self._removed_reported = False
        self._handback_wait = now

        self._suspect_until = now  # until then the leader is taken for dead on its host's word
        self._leader_uses_lease = False
        self._last_contact = now
        # A restarted follower has forgotten when it last heard a leader. With leases it may have promised patience
        # until one timeout from now, so it keeps that promise before it votes (diss. 6.4.1).
        self._patience_until = now + config.election_timeout_ns if config.lease_reads and hard_state.term else now
        self._election_timeout = 0
        self._election_at = 0
        self._draw_election_timeout()
        self._hasten_first_election()
        self.ignored_messages = 0
        self._traces: deque[Trace] = deque(maxlen=TRACES_MAX)
        self._effects: list[Effect] = []
        self._voter: MemberInfo | None = None
        self._voter_known: tuple[Index, bool] | None = None  # the configuration that `_voter` was found in
        # What `_finish` has to look at; set by whatever may have changed the answer.
        self._replicate_wanted = False
        self._commit_wanted = False
        self._configuration_wanted = False
        if self.log.last_applied >= snapshot.index:
            # Storage keeps whole segments; of what it gave back, memory keeps the usual tail.
            self.log.compact_to(self._compaction_base(snapshot.index))

    # ------------------------------------------------------------------ what others may look at

    @property
    def is_leader(self) -> bool:
        return isinstance(self.role, Leader)

    @property
    def commit_index(self) -> Index:
        return self.log.commit_index

    @property
    def last_applied(self) -> Index:
        return self.log.last_applied

    @property
    def configuration(self) -> Configuration:
        """The configuration in force: the latest in the log."""
        return self._configurations.current

    @property
    def configuration_index(self) -> Index:
        return self._configurations.current_index

    @property
    def committed_configuration(self) -> Configuration:
        return self._configurations.at(self.log.commit_index)

    def configuration_at(self, index: Index) -> Configuration:
        """The configuration that a snapshot at `index` must carry."""
        return self._configurations.at(index)

    def snapshot_meta(self, index: Index) -> SnapshotMeta:
        """The identity of a snapshot at `index`, which must be applied: the entry's own term, its own configuration."""
        assert index <= self.log.last_applied, f"snapshot at {index}, applied {self.log.last_applied}"
        term = self.log.term(index)
        assert term is not None, f"snapshot at {index} below the base {self.log.snapshot_index}"
        return SnapshotMeta(index=index, term=term, configuration=self.configuration_at(index))

    @property
    def transferring(self) -> bool:
        """Whether proposals are refused because leadership is being handed over."""
        return isinstance(self.role, Leader) and self.role.transfer is not None

    @property
    def leaving(self) -> bool:
        """Whether this leader is handing over, or has told somebody in this term to begin: that may be obeyed at any
        later time, whatever followers hear from us."""
        return isinstance(self.role, Leader) and (self.role.transfer is not None or self.role.lease_void)

    @property
    def has_traces(self) -> bool:
        return bool(self._traces)

    def persisted_can_wait(self) -> bool:
        """Whether nothing would follow from the end of the latest write, so that its `Persisted` may come with whatever
        comes next.

        True for a follower for which no message, restore or release waits beyond what the `Persist` itself releases,
        and for a leader as long as no follower holds anything that is not committed: its own disk alone makes no
        majority.
        """
        if self._durability.something_waits or self._restore is not None:
            return False
        role = self.role
        if isinstance(role, Leader):
            commit = self.log.commit_index
            return len(self.configuration.voters) > 1 and all(
                progress.match_index <= commit and not progress.witness for progress in role.progress.values()
            )
        return isinstance(role, Follower)

    def reply_can_wait(self, sender: NodeId, message: AppendEntriesReply | HeartbeatReply) -> bool:
        """Whether nothing would follow from this answer, of a follower that has been sent everything: it acknowledges
        only what is committed, or a heartbeat for which no read waits any more."""
        role = self.role
        if not isinstance(role, Leader) or message.term != self.current_term:
            return False
        progress = role.progress.get(sender)
        if (
            progress is None
            or progress.state is not ProgressState.REPLICATE
            or progress.next_index <= self.log.last_index
            or role.transfer is not None
            or self.configuration.joint
        ):
            return False
        if isinstance(message, HeartbeatReply):
            return not (role.reads_round or self.config.lease_reads) and progress.match_index == self.log.last_index
        return (
            message.success
            and message.index <= self.log.commit_index
            and not progress.inflights.full
            and not progress.promotable
        )

    def take_traces(self) -> list[Trace]:
        """What happened since the last call, oldest first; at most `TRACES_MAX`."""
        traces = list(self._traces)
        self._traces.clear()
        return traces

    def status(self) -> RaftStatus:
        role = self.role
        peers: list[PeerStatus] = []
        transfer, lease, reads = NOBODY, 0, len(self._reads)
        if isinstance(role, Leader):
            peers = [self._peer_status(i, p, departing=False) for i, p in sorted(role.progress.items())]
            peers += [self._peer_status(i, p, departing=True) for i, (p, _) in sorted(role.departing.items())]
            transfer = role.transfer.target if role.transfer else NOBODY
            lease = self._lease_until(role)
            reads += len(role.reads_waiting) + len(role.reads_round)
        return RaftStatus(
            id=self.id,
            role=self._role_name(),
            term=self.current_term,
            voted_for=self.voted_for,
            leader_id=self.leader_id,
            first_index=self.log.first_index,
            last_index=self.log.last_index,
            last_term=self.log.last_term,
            stable_index=self.log.stable_index,
            commit_index=self.log.commit_index,
            last_applied=self.log.last_applied,
            snapshot_index=self.log.snapshot_index,
            configuration=self.configuration,
            configuration_index=self.configuration_index,
            configuration_committed=self.configuration_index <= self.log.commit_index,
            peers=tuple(peers),
            reads_pending=reads,
            uncommitted_bytes=self._uncommitted_bytes,
            transfer_target=transfer,
            lease_until_ns=lease,
            leading_since_ns=role.elected_at if isinstance(role, Leader) else 0,
            disk_sick=self._disk_sick,
            ignored_messages=self.ignored_messages,
        )

    def _peer_status(self, node: NodeId, progress: Progress, *, departing: bool) -> PeerStatus:
        return PeerStatus(
            id=node,
            state=progress.state.value,
            match_index=progress.match_index,
            next_index=progress.next_index,
            inflight_messages=len(progress.inflights),
            inflight_bytes=progress.inflights.bytes,
            silent_ns=self._now - progress.last_heard,
            departing=departing,
        )

    def _role_name(self) -> str:
        match self.role:
            case Leader():
                return "leader"
            case Candidate():
                return "candidate"
            case PreCandidate():
                return "precandidate"
            case Follower():
                info = self.configuration.member(self.id)
                if info is not None and info.role is MemberRole.WITNESS:
                    return "witness"
                return "follower" if info is None or self.configuration.is_voter(self.id) else "learner"
            case _:
                assert_never(self.role)

    def validate(self) -> None:
        """What is true between any two calls, if this code is right. The simulator and the tests call it after each."""
        self.log.validate()
        assert self._apply_sent <= self.log.commit_index
        assert self._uncommitted_bytes >= 0
        assert self._configurations.current_index <= self.log.last_index
        role = self.role
        if isinstance(role, Leader):
            assert self.leader_id == self.id
            assert self._durability.durable.term == self.current_term, "leads in a term that is not durable"
            for node, progress in role.progress.items():
                assert progress.match_index < progress.next_index, f"{node}: next is not above match"
                assert progress.match_index <= self.log.last_index, f"{node} matches beyond our log"

    # ------------------------------------------------------------------ the step

    def handle(self, events: Sequence[Event], now: int) -> list[Effect]:
        """Take everything that arrived since the last call; say what to do. `now` never goes back."""
        assert now >= self._now, f"time went back: {self._now} then {now}"
        self._now = now
        if self._is_halted():
            return []
        for event in events:
            self._take(event)
            if self._is_halted():
                break
        else:
            self._check_time()
            self._finish()
        effects, self._effects = self._effects, []
        return effects

    def _is_halted(self) -> bool:
        return self._halted

    def _take(self, event: Event) -> None:
        match event:
            case MessageReceived(sender, message):
                self._receive(sender, message)
            case Persisted(ticket):
                self._persisted(ticket)
            case Proposed():
                self._propose(event)
            case ReadRequested(token, confirmed):
                self._read_requested(token, confirmed)
            case Applied(index):
                assert index <= self._apply_sent, f"applied {index}, handed out {self._apply_sent}"
                self.log.last_applied = max(self.log.last_applied, index)
            case TimePassed():
                pass
            case ConfigChangeRequested():
                self._change_requested(event)
            case TransferRequested(token, target):
                self._transfer_requested(token, target)
            case PeerConnected(peer, incarnation):
                self._peer_connected(peer, incarnation)
            case PeerDown(peer):
                self._peer_down(peer)
            case SnapshotWritten(snapshot):
                self._snapshot_written(snapshot)
            case SnapshotLost(snapshot):
                self._snapshot_lost(snapshot)
            case ChunkWritten():
                self._chunk_written(event)
            case Restored(snapshot):
                self._restored(snapshot)
            case DiskHealth(sick):
                self._disk_health(sick)
            case _:
                assert_never(event)

    def _finish(self) -> None:
        """What follows from all events of this call together: commit, configuration, reads, replication,
        persistence."""
        role = self.role
        if isinstance(role, Leader):
            if self._commit_wanted:
                self._commit_wanted = False
                self._maybe_commit(role)
                if self._is_halted():  # what was committed is the removal of this member
                    return
            if self._configuration_wanted:
                self._configuration_wanted = False
                self._advance_configuration(role)
            if role.reads_waiting:
                self._start_read_round(role)
            if self._replicate_wanted:
                self._replicate_wanted = False
                self._replicate(role)
        elif self._reads.wants_to_ask and self.leader_id != NOBODY:
            request = self._reads.ask(self._now)
            confirmed = self._reads.asked_confirmed
            self._send(self.leader_id, ReadIndex(term=self.current_term, request=request, confirmed=confirmed))
        self._durability.emit(self._effects, self._hard_state())
        self._emit_apply()  # last: nobody else has to wait until it is done

    # ------------------------------------------------------------------ sending

    def _send(self, to: NodeId, message: Message) -> None:
        self._effects.append(Send(to, message))

    def _send_durable(self, to: NodeId, message: Message, index: Index = 0) -> None:
        """Send once term and vote, and the log up to `index`, are durable; at once if they are. (Raft Fig. 2)"""
        self._durability.send_when_durable(self._effects, Send(to, message), self._hard_state(), index)

    def _hard_state(self) -> HardState:
        """The present one; the same object for as long as nothing in it changes."""
        known = self._known_hard_state
        commit = self.log.commit_index
        if known.commit != commit or known.term != self.current_term or known.vote != self.voted_for:
            known = self._known_hard_state = HardState(self.current_term, self.voted_for, commit)
        return known

    def _persisted(self, ticket: int) -> None:
        self._durability.persisted(self._effects, ticket, self._restore)
        self._commit_wanted = True
        role = self.role
        if isinstance(role, Leader) and any(m.role is MemberRole.WITNESS for m in self.configuration.members):
            self._replicate_wanted = True  # what has become durable here may now go to a witness
        durable = self._durability.durable
        if isinstance(role, Candidate) and durable.term == self.current_term and self.id not in role.votes:
            assert durable.vote == self.id, "a candidate's durable vote is not for itself"
            role.votes[self.id] = True
            self._count_votes(role)

    def _emit_apply(self) -> None:
        log = self.log
        if self._apply_sent >= log.commit_index or self._restore is not None or self._apply_sent > log.last_applied:
            return  # one `Apply` at a time: the next goes out when `Applied` came back
        entries = log.slice(self._apply_sent + 1, log.commit_index, self.config.apply_bytes_max)
        self._apply_sent = entries[-1].index
        self._effects.append(Apply(entries))

    def _trace(self, event: str, *fields: tuple[str, object]) -> None:
        self._traces.append(Trace(event, self.current_term, fields))

    # ------------------------------------------------------------------ time

    def next_deadline(self) -> int:
        """When `handle` must be called next even if nothing happens, on the driver's clock in ns."""
        if self._halted:
            return NEVER
        role = self.role
        if isinstance(role, Leader):
            deadline = role.heartbeat_at
            if self.config.check_quorum:
                deadline = min(deadline, role.quorum_check_at)
            if role.notice_at >= 0:
                deadline = min(deadline, role.notice_at)
            if role.transfer is not None:
                deadline = min(deadline, role.transfer.deadline)
        else:
            deadline = self._election_at if self._campaigns_by_itself() else NEVER
            retry_at = self._reads.retry_at(self.config.heartbeat_interval_ns)
            give_up_at = self._reads.give_up_at(2 * self.config.election_timeout_ns)
            deadline = min(deadline, retry_at or NEVER, give_up_at or NEVER)
        if self._transfer_watch is not None:
            deadline = min(deadline, self._transfer_watch.deadline)
        return deadline

    def _check_time(self) -> None:
        now = self._now
        role = self.role
        if isinstance(role, Leader):
            self._check_leader_time(role)
        else:
            if now >= self._election_at and self._campaigns_by_itself():
                self._campaign(pre_vote=self.config.pre_vote)
            retry_at = self._reads.retry_at(self.config.heartbeat_interval_ns)
            if retry_at is not None and now >= retry_at:
                self._reads.unask()
            give_up_at = self._reads.give_up_at(2 * self.config.election_timeout_ns)
            if give_up_at is not None and now >= give_up_at:
                self._effects.extend(ReadFailed(token, "no_leader") for token in self._reads.take_all()[0])
        watch = self._transfer_watch
        if watch is not None and now >= watch.deadline:
            # sometimes: who asked for a transfer is told that it took too long
            self._end_transfer_watch("timeout")

    def _check_leader_time(self, role: Leader) -> None:
        now = self._now
        config = self.config
        if config.check_quorum and now >= role.quorum_check_at:
            heard = {node: p.last_heard for node, p in role.progress.items()}
            heard[self.id] = now
            heard_at = quorum.agreed(heard, self.configuration)
            if heard_at + config.election_timeout_ns <= now:
                # sometimes: a leader that hears no majority steps down
                self._trace("stepped_down", ("reason", "no majority heard for an election timeout"))
                self._become_follower(self.current_term, NOBODY)
                return
            role.quorum_check_at = heard_at + config.election_timeout_ns
        if role.transfer is not None and now >= role.transfer.deadline:
            # sometimes: a transfer is given up
            target = role.transfer.target
            self._trace("transfer_aborted", ("target", node_name(target)))
            role.transfer = None
            if self._transfer_watch is not None and self._transfer_watch.target == target:
                self._end_transfer_watch("timeout")
            self._configuration_wanted = True
        for node, (_, deadline) in list(role.departing.items()):
            if now >= deadline:
                # sometimes: a removed member is not told of it in time
                del role.departing[node]
        if now >= role.heartbeat_at:
            role.heartbeat_at = now + config.heartbeat_interval_ns
            self._broadcast_heartbeat(role)
            self._nudge_snapshots(role)
            if role.transfer is not None and role.transfer.sent_at >= 0:
                self._send_timeout_now(role, role.transfer)
            self._maybe_hand_back(role)
        elif 0 <= role.notice_at <= now:
            self._replicate_wanted = True

    def _draw_election_timeout(self) -> None:
        """A new random timeout, beginning now. (Raft 5.2)"""
        timeout = self.config.election_timeout_ns
        if self._now < self._suspect_until:
            timeout = self.config.heartbeat_interval_ns
        self._election_timeout = timeout + self._rng.randrange(timeout) + self._rank() * timeout // 2
        self._election_at = self._now + self._election_timeout

    def _hasten_first_election(self) -> None:
        """A member that has just started asks early whether a leader is wanted: after two to seven heartbeat intervals.

        Differs from the paper, which has it wait for an election timeout. PreVote makes that safe for a living leader:
        nobody who hears one says yes (diss. 9.6). A group that starts as a whole has a leader a second sooner. With
        leases every member is patient after a start, so there it would be in vain.
        """
        if self.config.pre_vote and self._now >= self._patience_until:
            interval = self.config.heartbeat_interval_ns
            early = self._now + 2 * interval + self._rng.randrange(5 * interval) + self._rank() * interval
            self._election_at = min(self._election_at, early)

    def _rank(self) -> int:
        """How many distinct priorities of other voters are above ours; a sick disk counts like one more each way."""
        configuration = self.configuration
        own = configuration.member(self.id)
        if own is None:
            return 0
        above = {
            m.priority for m in configuration.members if m.id in configuration.voters and m.priority > own.priority
        }
        return min(PRIORITY_RANKS_MAX, len(above) + (2 if self._disk_sick else 0))

    def _may_lead(self) -> bool:
        """Whether this member may become leader at all: a full voter whose machine is not behind its own log."""
        info = self._as_voter()
        return info is not None and info.role is not MemberRole.WITNESS and self._restore is None

    def _campaigns_by_itself(self) -> bool:
        info = self._as_voter()
        return self._may_lead() and info is not None and info.priority > 0

    def _as_voter(self) -> MemberInfo | None:
        """This member as a voter of the configuration in force, or, while that is not committed, of the committed one.

        A member that the newest configuration leaves out may be the only one whose log holds it: it must then be able
        to win once more, or nobody can (diss. 4.2.2). Its own vote does not count in that election.
        """
        committed = self.log.commit_index >= self.configuration_index
        if self._voter_known is not None and self._voter_known == (self.configuration_index, committed):
            return self._voter
        self._voter = self._find_voter(committed)
        self._voter_known = (self.configuration_index, committed)
        return self._voter

    def _find_voter(self, committed: bool) -> MemberInfo | None:
        if self.configuration.is_voter(self.id):
            return self.configuration.member(self.id)
        if not committed and self.committed_configuration.is_voter(self.id):
            # sometimes: a member that the newest configuration leaves out may still have to win
            info = self.committed_configuration.member(self.id)
            return (
                replace(info, role=MemberRole.VOTER) if info is not None and info.role is MemberRole.LEARNER else info
            )
        return None

    # ------------------------------------------------------------------ elections

    def _campaign(self, *, pre_vote: bool, transfer: bool = False) -> None:
        """Ask for votes; with `pre_vote`, first ask whether they would be given. (Raft 5.2; diss. 9.6, 3.10)"""
        assert self._may_lead()
        self.leader_id = (
            NOBODY  # also before a PreVote: two members that lost one leader must not protect it (diss. 9.6)
        )
        self._leader_uses_lease = False
        if pre_vote:
            precandidate = PreCandidate(votes={self.id: True})
            self.role = precandidate
            self._draw_election_timeout()
            self._trace("became_precandidate", ("log", entry_name(*self.log.position)))
            self._count_votes(precandidate)
            if isinstance(self.role, PreCandidate):
                request = self._vote_request(self.current_term + 1, pre_vote=True, transfer=False)
                for peer in self._voting_peers():
                    self._send(peer, request)
            return
        self.current_term += 1
        self.voted_for = self.id
        self.role = Candidate(transfer=transfer)
        self._draw_election_timeout()
        self._trace("became_candidate", ("log", entry_name(*self.log.position)))
        request = self._vote_request(self.current_term, pre_vote=False, transfer=transfer)
        for peer in self._voting_peers():
            self._send_durable(peer, request)

    def _vote_request(self, term: Term, *, pre_vote: bool, transfer: bool) -> RequestVote:
        last_term, last_index = self.log.position
        return RequestVote(
            term=term, last_log_index=last_index, last_log_term=last_term, pre_vote=pre_vote, transfer=transfer
        )

    def _voting_peers(self) -> list[NodeId]:
        configuration = self.configuration
        return [node for node in configuration.ids if node != self.id and configuration.is_voter(node)]

    def _count_votes(self, role: PreCandidate | Candidate) -> None:
        result = quorum.tally(role.votes, self.configuration)
        if result is VoteResult.PENDING:
            return
        if result is VoteResult.LOST:
            # sometimes: an election is lost
            self._trace("election_lost")
            self._become_follower(self.current_term, NOBODY)
        elif isinstance(role, PreCandidate):
            self._campaign(pre_vote=False)
        elif role.votes.get(self.id):
            self._become_leader()
        # else: a majority of others elected us before our own vote was durable; our term is durable in this moment at
        # the latest when that write returns, and `_persisted` counts again

    def _answer_vote(self, sender: NodeId, message: RequestVote) -> None:
        """Grant or refuse. (Raft 5.2, 5.4.1; diss. 9.6)"""
        ours = self.log.position
        theirs = (message.last_log_term, message.last_log_index)
        if message.pre_vote:
            # Nothing is promised, so nothing has to be durable; the granted answer carries the *asked* term.
            granted = message.term > self.current_term and theirs >= ours and not self._protects_leader(message)
            term = message.term if granted else self.current_term
            self._send(sender, RequestVoteReply(term=term, granted=granted, pre_vote=True))
            return
        assert message.term == self.current_term
        free = self.voted_for == sender or (self.voted_for == NOBODY and self.leader_id == NOBODY)
        granted = free and theirs >= ours
        if granted:
            assert not isinstance(self.role, Candidate | Leader), "voted for nobody in a term of its own"
            self.role = Follower()
            self.voted_for = sender
            self._draw_election_timeout()
            self._trace("vote_granted", ("to", node_name(sender)))
        self._send_durable(sender, RequestVoteReply(term=self.current_term, granted=granted))

    def _protects_leader(self, message: RequestVote) -> bool:
        """Whether a live leader is not to be disturbed by this request (diss. 4.2.3, 6.4.1)."""
        if message.transfer:
            # sometimes: an election by transfer passes a living leader
            return False  # the leader itself asked for the election
        if self._now < self._patience_until:
            # sometimes: a member that has just started is patient, as leases ask
            return True
        if not (self.config.pre_vote or self.config.check_quorum) or self.leader_id == NOBODY:
            return False
        if isinstance(self.role, Leader):
            return self.config.check_quorum
        return self._now >= self._suspect_until and self._now < self._last_contact + self.config.election_timeout_ns

    def _vote_received(self, sender: NodeId, message: RequestVoteReply) -> None:
        role = self.role
        if isinstance(role, PreCandidate):
            if message.pre_vote and (not message.granted or message.term == self.current_term + 1):
                role.votes[sender] = message.granted
                self._count_votes(role)
        elif isinstance(role, Candidate) and not message.pre_vote:
            role.votes[sender] = message.granted
            self._count_votes(role)
        # else: a late answer to an election we have left

    def _become_follower(self, term: Term, leader: NodeId) -> None:
        """Follow `leader` (or nobody yet) in `term`. (Raft 5.1)"""
        assert term >= self.current_term, f"term went back from {self.current_term} to {term}"
        was = self.role
        if term > self.current_term:
            self.current_term = term
            self.voted_for = NOBODY
            self.leader_id = NOBODY
        if isinstance(was, Leader):
            self._leave_leadership(was)
        if leader != self.leader_id or not isinstance(was, Follower):
            self._trace("became_follower", ("leader", node_name(leader)))
        self.role = Follower()
        self._follow(leader)
        if leader != NOBODY or not isinstance(was, Follower):
            # A follower's timer runs on when it merely learns of a higher term (Raft 5.2): else a candidate that
            # cannot win but times out first, again and again, would keep those who can from ever campaigning.
            self._draw_election_timeout()

    def _follow(self, leader: NodeId) -> None:
        if leader != self.leader_id:
            self.leader_id = leader
            self._leader_uses_lease = False
            if leader != NOBODY:
                self._check_transfer_watch(leader)
                self._reads.unask()  # they were asked of somebody else

    def _leave_leadership(self, role: Leader) -> None:
        self.leader_id = NOBODY
        self._uncommitted_bytes = 0
        for read in role.reads_round + role.reads_waiting:
            if read.peer == NOBODY:
                self._queue_read(read.token, read.confirmed)  # the next leader answers it
            else:
                self._send(read.peer, ReadIndexReply(term=self.current_term, request=read.token, index=0))
        for token, _ in self._config_waits:
            self._effects.append(ConfigRefused(token, "lost"))
        self._config_waits.clear()

    def _become_leader(self) -> None:
        """Win the election: a no-op opens the term, so that entries of earlier terms can be committed. (Raft 5.4.2,
        8)"""
        now = self._now
        config = self.config
        self.leader_id = self.id
        self._suspect_until = now
        role = Leader(
            elected_at=self._now,
            first_index=self.log.last_index + 1,
            heartbeat_at=now + config.heartbeat_interval_ns,
            quorum_check_at=now + config.election_timeout_ns,
            handback_at=now + config.priority_handback_ns,
        )
        self.role = role
        self._trace("became_leader", ("log", entry_name(*self.log.position)))
        self._uncommitted_bytes = self.log.payload_bytes(self.log.commit_index + 1, self.log.last_index)
        self._sync_progress(role)
        self._append(EntryKind.NOOP, b"")
        self._commit_wanted = self._configuration_wanted = True
        self._check_transfer_watch(self.id)
        tokens, confirmed = self._reads.take_all()
        role.reads_waiting = [Read(NOBODY, token, confirmed) for token in tokens]

    # ------------------------------------------------------------------ messages

    def _receive(self, sender: NodeId, message: Message) -> None:
        """Take one message from a peer. (Raft Fig. 2, "Rules for Servers")"""
        if sender in (self.id, NOBODY) or sender in self._foreign:
            self._ignore(sender, message, "not a peer, or its disk was replaced")
            return
        committed = self.committed_configuration
        if (
            sender in committed.removed
            and not committed.joint
            and sender != self.leader_id
            and not self._departs(sender, message)
        ):
            # sometimes: a removed member is not heard
            # It may not disturb the others (diss. 4.2.3). The leader that led its own removal is heard to its end.
            self._ignore(sender, message, "removed from the group")
            return
        term = message.term
        if term > self.current_term:
            if term > self.current_term + self.config.term_jump_max:
                self._ignore(sender, message, "its term is too far ahead")
                return
            if not self._adopt_term(sender, message):
                return
        elif term < self.current_term:
            self._answer_stale(sender, message)
            return
        match message:
            case AppendEntries():
                if self._heard_leader(sender, message):
                    self._append_entries(sender, message)
            case AppendEntriesReply():
                if isinstance(self.role, Leader):
                    self._append_reply(self.role, sender, message)
            case Heartbeat():
                if self._heard_leader(sender, message):
                    self._heartbeat(sender, message)
            case HeartbeatReply():
                if isinstance(self.role, Leader):
                    self._heartbeat_reply(self.role, sender, message)
            case RequestVote():
                self._answer_vote(sender, message)
            case RequestVoteReply():
                self._vote_received(sender, message)
            case InstallSnapshot():
                if self._heard_leader(sender, message):
                    self._install_snapshot(sender, message)
            case InstallSnapshotReply():
                if isinstance(self.role, Leader):
                    self._snapshot_reply(self.role, sender, message)
            case TimeoutNow():
                self._timeout_now(sender)
            case TransferLeadership():
                if isinstance(self.role, Leader):
                    self._begin_transfer(self.role, message.target)
            case ReadIndex():
                self._read_index_asked(sender, message)
            case ReadIndexReply():
                self._read_index_answered(message)
            case Propose() | ProposeReply() | LeaseAsk() | LeaseAnswer() | ChangeMembers() | ChangeMembersReply():
                self._ignore(sender, message, "proposals, leases and changes of members are the replica's business")
            case _:
                assert_never(message)

    def _departs(self, sender: NodeId, message: Message) -> bool:
        """Whether a removed member answers what it is still sent: the entry that removes it, and that this is
        committed."""
        return (
            isinstance(self.role, Leader)
            and sender in self.role.departing
            and isinstance(message, AppendEntriesReply | InstallSnapshotReply)
            and message.term == self.current_term
        )

    def _ignore(self, sender: NodeId, message: Message, reason: str) -> None:
        self.ignored_messages += 1
        self._trace("ignored", ("from", node_name(sender)), ("message", type(message).__name__), ("reason", reason))

    def _adopt_term(self, sender: NodeId, message: Message) -> bool:
        """A message of a higher term: follow it, unless it only asks. Returns whether to go on with the message."""
        match message:
            case RequestVote():
                if message.pre_vote:
                    return True  # asks what would be; our term stays
                if self._protects_leader(message):
                    # sometimes: a candidate is not heard, because a leader is alive
                    self._ignore(sender, message, "a leader is alive")
                    return False
                self._become_follower(message.term, NOBODY)
            case RequestVoteReply():
                if message.pre_vote and message.granted:
                    return True  # carries the term that we asked about
                self._become_follower(message.term, NOBODY)
            case AppendEntries() | Heartbeat() | InstallSnapshot():
                self._become_follower(message.term, sender)
            case _:
                self._become_follower(message.term, NOBODY)
        return True

    def _answer_stale(self, sender: NodeId, message: Message) -> None:
        """A message of a lower term: tell its sender the present one where that helps it. (Raft 5.1)"""
        match message:
            case AppendEntries() | Heartbeat() | InstallSnapshot():
                # sometimes: a deposed leader is told the present term
                # A deposed leader steps down; and a leader whose term is below that of a member which was cut off for
                # long learns of it here, because vote requests of that member are not heard (diss. 4.2.3).
                reply = AppendEntriesReply(term=self.current_term, success=False, index=0)
                self._send_durable(sender, reply)
            case RequestVote():
                refusal = RequestVoteReply(term=self.current_term, granted=False, pre_vote=message.pre_vote)
                self._send_durable(sender, refusal)
            case ReadIndex():
                self._send(sender, ReadIndexReply(term=self.current_term, request=message.request, index=0))
            case _:
                pass  # a late answer

    def _heard_leader(self, sender: NodeId, message: AppendEntries | Heartbeat | InstallSnapshot) -> bool:
        """A message that only the leader of this term sends. (Raft 5.2)"""
        if isinstance(self.role, Leader) or self.leader_id not in (NOBODY, sender):
            self._ignore(sender, message, f"a second leader in one term; ours is {node_name(self.leader_id)}")
            return False
        if not isinstance(self.role, Follower):  # a candidate of this very term has lost (Raft 5.2)
            # sometimes: a candidate loses to the leader of its own term
            self._become_follower(self.current_term, sender)
        self._follow(sender)
        self._last_contact = self._now
        if self._suspect_until > self._now:
            # sometimes: a leader that was taken for dead is alive
            self._suspect_until = self._now
            self._draw_election_timeout()
        self._election_at = self._now + self._election_timeout
        return True

    # ------------------------------------------------------------------ replication, the follower's side

    def _append_entries(self, sender: NodeId, message: AppendEntries) -> None:
        """Check, cut at the first conflict only, append, and acknowledge just what this message verified. (Raft 5.3)"""
        log = self.log
        entries = message.entries
        prev_index, prev_term = message.prev_log_index, message.prev_log_term
        verified = prev_index + len(entries)
        if prev_index < log.commit_index:
            # sometimes: an append begins below what is committed
            # What is committed here is in the log of every later leader (Raft 5.4): skip to what may be news.
            skip = min(log.commit_index - prev_index, len(entries))
            entries = entries[skip:]
            verified = max(verified, log.commit_index)
        elif not log.matches(prev_index, prev_term):
            # sometimes: an append is refused
            hint_index, hint_term = log.hint(prev_index, prev_term)
            refusal = AppendEntriesReply(
                term=self.current_term, success=False, index=prev_index, hint_index=hint_index, hint_term=hint_term
            )
            self._send_durable(sender, refusal)
            return
        fresh = 0
        while fresh < len(entries) and log.matches(entries[fresh].index, entries[fresh].term):
            fresh += 1
        news = entries[fresh:]
        if news:
            configurations = self._decode_configurations(sender, message, news)
            if configurations is None:
                return
            if news[0].index <= log.last_index:
                self._truncate_from(news[0].index)
            for entry in news:
                log.append(entry)
            if configurations:
                for index, configuration in configurations:
                    self._configurations.append(index, configuration)
                self._configuration_in_force()
        self._follow_commit(min(message.commit_index, verified))
        self._send_durable(sender, AppendEntriesReply(term=self.current_term, success=True, index=verified), verified)

    def _decode_configurations(
        self, sender: NodeId, message: AppendEntries, entries: tuple[Entry, ...]
    ) -> list[tuple[Index, Configuration]] | None:
        """The configurations among well-formed entries; None if they are not well-formed (the message is then
        ignored)."""
        found: list[tuple[Index, Configuration]] = []
        term = self.log.term(entries[0].index - 1)
        if term is None:
            self._ignore(sender, message, f"entries begin at {entries[0].index}, beyond the log")
            return None
        index = entries[0].index
        for entry in entries:
            if entry.index != index or not term <= entry.term <= self.current_term:
                self._ignore(sender, message, f"entry {entry} does not follow")
                return None
            if entry.kind == EntryKind.CONFIG:
                try:
                    found.append((entry.index, decode_configuration(entry.payload)))
                except ValueError as error:
                    self._ignore(sender, message, f"entry {entry}: {error}")
                    return None
            index, term = index + 1, entry.term
        return found

    def _truncate_from(self, index: Index) -> None:
        """A new leader's log replaces ours from here; a configuration in that part is no longer in force. (diss.
        4.1)"""
        # sometimes: a log is cut
        self._trace("truncated", ("from", entry_name(self.log.term(index) or 0, index)), ("last", self.log.last_index))
        self.log.truncate_from(index)
        self._durability.cut(index)
        if self._configurations.truncate_from(index):
            # sometimes: a configuration is cut away
            self._configuration_in_force()

    def _follow_commit(self, index: Index) -> None:
        if index > self.log.commit_index:
            self.log.commit_to(index)
            self._committed_configuration_changed()

    def _heartbeat(self, sender: NodeId, message: Heartbeat) -> None:
        if message.commit_index > self.log.last_index:
            # The leader only names what we have acknowledged in its term: entries that were durable here are gone.
            self._halt(
                f"the log ends at {self.log.last_index} but this member acknowledged {message.commit_index}: "
                "its disk lost data; replace the member (remove it, add it again with an empty directory)"
            )
            return
        self._leader_uses_lease = message.lease
        self._follow_commit(message.commit_index)
        self._send_durable(sender, HeartbeatReply(term=self.current_term, round=message.round, sent=message.sent))

    # ------------------------------------------------------------------ replication, the leader's side

    def _append(self, kind: EntryKind, payload: bytes) -> Index:
        entry = Entry(self.current_term, self.log.last_index + 1, int(kind), payload)
        self.log.append(entry)
        self._uncommitted_bytes += len(payload)
        self._replicate_wanted = True
        return entry.index

    def _propose(self, event: Proposed) -> None:
        role = self.role
        token, payload = event.token, event.payload
        if not isinstance(role, Leader):
            self._effects.append(ProposalRefused(token, "not_leader", self.leader_id))
        elif role.transfer is not None:
            # sometimes: a proposal comes during a transfer
            self._effects.append(ProposalRefused(token, "transferring", self.id))
        elif self._uncommitted_bytes and self._uncommitted_bytes + len(payload) > self.config.uncommitted_bytes_max:
            # sometimes: too much is not committed yet
            self._effects.append(ProposalRefused(token, "overloaded", self.id))
        else:
            index = self._append(EntryKind.NORMAL, payload)
            self._effects.append(Appended(token, self.current_term, index))
            for node in event.waiting:
                if node in role.progress:
                    self._hurry(role.progress[node], index)

    def _sync_progress(self, role: Leader) -> None:
        """One `Progress` for every other member of the configuration in force; removed members depart."""
        config = self.config
        wanted = {node for node in self.configuration.ids if node != self.id}
        for node in sorted(wanted - role.progress.keys()):
            returning = role.departing.pop(node, None)
            role.progress[node] = (
                returning[0]
                if returning
                else Progress(
                    self.log.last_index + 1, config.inflight_messages_max, config.inflight_bytes_max, self._now
                )
            )
        for info in self.configuration.members:
            if info.id != self.id:
                progress = role.progress[info.id]
                progress.promotable = info.promote_when_ready and info.role is MemberRole.LEARNER
                progress.witness = info.role is MemberRole.WITNESS
        for node in sorted(role.progress.keys() - wanted):
            role.departing[node] = (role.progress.pop(node), self._now + config.election_timeout_ns)
        self._replicate_wanted = True

    def _peer_progress(self, role: Leader, node: NodeId) -> Progress | None:
        found = role.progress.get(node)
        if found is None and node in role.departing:
            found = role.departing[node][0]
        if found is not None:
            found.last_heard = self._now
        return found

    def _replicate(self, role: Leader) -> None:
        """Send every follower what it may be sent. (Raft 5.3, pipelined: diss. 10.2.1)"""
        commit = self.log.commit_index
        notice_due = 0 <= role.notice_at <= self._now
        behind = False
        for node, progress in role.progress.items():
            self._replicate_to(node, progress)
            if progress.commit_sent < min(commit, progress.match_index):
                hurry = 0 < progress.notify_from <= commit
                if hurry or notice_due:
                    self._send_heartbeat(role, node, progress)
                else:
                    behind = True
        for node, (progress, _) in list(role.departing.items()):
            self._replicate_to(node, progress)
            if progress.match_index >= self.configuration_index and commit >= self.configuration_index:
                # sometimes: a removed member learns of it
                self._send_heartbeat(role, node, progress)  # it learns that its removal is committed
                del role.departing[node]
        if behind and (role.notice_at < 0 or notice_due):
            role.notice_at = self._now + self.config.commit_notice_ns
        elif not behind:
            role.notice_at = -1

    def _replicate_to(self, node: NodeId, progress: Progress) -> None:
        log = self.log
        last = self._last_for(progress)
        while progress.may_send:
            if progress.next_index < log.first_index:
                # sometimes: a follower needs what is compacted away
                self._begin_snapshot(node, progress)
                return
            if progress.next_index > last and progress.state is ProgressState.REPLICATE:
                return
            if progress.next_index > last and progress.match_index >= last:
                return
            self._send_append(node, progress)

    def _last_for(self, progress: Progress) -> Index:
        """The last entry that this follower may be sent: for a witness only what is durable here.

        A witness cannot lead. Held it an entry that no full member has (our disk lost it before its fsync), it would
        refuse every candidate, and a group that needs its vote would have no leader ever again.
        """
        return self.log.stable_index if progress.witness else self.log.last_index

    def _send_append(self, node: NodeId, progress: Progress, *, empty: bool = False) -> None:
        log = self.log
        prev_index = progress.next_index - 1
        prev_term = log.term(prev_index)
        assert prev_term is not None, f"prev {prev_index} is compacted away (base {log.snapshot_index})"
        entries: tuple[Entry, ...] = ()
        last = self._last_for(progress)
        if not empty and progress.next_index <= last:
            entries = log.slice(progress.next_index, last, self.config.message_bytes_max)
            if progress.witness:
                entries = tuple(_stripped(entry) for entry in entries)
        commit = log.commit_index
        message = AppendEntries(
            term=self.current_term,
            prev_log_index=prev_index,
            prev_log_term=prev_term,
            entries=entries,
            commit_index=commit,
        )
        self._send(node, message)
        progress.commit_sent = max(progress.commit_sent, min(commit, prev_index + len(entries)))
        if progress.state is ProgressState.PROBE:
            progress.probe_sent = True
            progress.last_append_at = self._now
        elif entries:
            progress.inflights.add(entries[-1].index, sum(len(e.payload) for e in entries))
            progress.next_index = entries[-1].index + 1

    def _append_reply(self, role: Leader, sender: NodeId, message: AppendEntriesReply) -> None:
        progress = self._peer_progress(role, sender)
        if progress is None or message.index > self.log.last_index:
            # sometimes: an append is answered that this leader never sent
            self._ignore(sender, message, "answers what was never sent")
            return
        progress.last_append_at = self._now
        self._replicate_wanted = True
        if not message.success:
            retry, _ = self.log.hint(message.hint_index, message.hint_term)
            progress.record_refusal(message.index, retry)
            return
        if progress.record_match(message.index):
            self._commit_wanted = True
            if progress.promotable:
                self._configuration_wanted = True
            if progress.state is ProgressState.PROBE or (
                progress.state is ProgressState.SNAPSHOT and progress.match_index >= self.log.snapshot_index
            ):
                progress.become_replicate()
            self._maybe_time_out_target(role, sender, progress)
        elif progress.state is ProgressState.PROBE and message.index == progress.next_index - 1:
            progress.become_replicate()

    def _maybe_commit(self, role: Leader) -> None:
        """Commit what a quorum holds durably, if it is of this term. (Raft 5.3, 5.4.2)"""
        log = self.log
        match = {node: progress.match_index for node, progress in role.progress.items()}
        match[self.id] = log.stable_index  # our own log counts as far as our own disk has it (diss. 10.2.1)
        index = quorum.agreed(match, self.configuration)
        if index <= log.commit_index or log.term(index) != self.current_term:
            return
        self._uncommitted_bytes = max(0, self._uncommitted_bytes - log.payload_bytes(log.commit_index + 1, index))
        before = log.commit_index
        log.commit_to(index)
        self._replicate_wanted = True
        if before < self.configuration_index <= index or before < role.first_index:
            self._configuration_wanted = True
        self._committed_configuration_changed()

    # ------------------------------------------------------------------ heartbeats

    def _broadcast_heartbeat(self, role: Leader) -> None:
        for node, progress in role.progress.items():
            self._send_heartbeat(role, node, progress)

    def _send_heartbeat(self, role: Leader, node: NodeId, progress: Progress) -> None:
        commit = min(self.log.commit_index, progress.match_index)
        self._send(
            node,
            Heartbeat(
                term=self.current_term,
                commit_index=commit,
                round=role.round,
                sent=self._now,
                lease=self.config.lease_reads and not role.lease_void,
            ),
        )
        progress.commit_sent = max(progress.commit_sent, commit)
        if progress.commit_sent >= progress.notify_from:
            progress.notify_from = 0

    def _heartbeat_reply(self, role: Leader, sender: NodeId, message: HeartbeatReply) -> None:
        progress = self._peer_progress(role, sender)
        if progress is None or message.round > role.round or message.sent > self._now:
            self._ignore(sender, message, "answers what was never sent")
            return
        progress.round_acked = max(progress.round_acked, message.round)
        progress.lease_sent = max(progress.lease_sent, message.sent)
        quiet = self._now >= progress.last_append_at + self.config.heartbeat_interval_ns
        if progress.state is ProgressState.PROBE and progress.probe_sent and quiet:
            # sometimes: a probe is lost
            progress.probe_sent = False  # the probe or its answer may be lost; the follower is alive: try again
            self._replicate_wanted = True
        elif progress.state is ProgressState.REPLICATE and progress.match_index < self.log.last_index and quiet:
            # It answers heartbeats but has acknowledged nothing for a while: what was sent may be lost. An empty
            # message finds out; a refusal starts a probe.
            progress.last_append_at = self._now
            if progress.next_index < self.log.first_index:
                # sometimes: what a silent follower needs is compacted away meanwhile
                self._begin_snapshot(sender, progress)
            else:
                # sometimes: an empty append asks what arrived
                self._send_append(sender, progress, empty=True)
        self._confirm_reads(role)

    # ------------------------------------------------------------------ reads

    def _read_requested(self, token: int, confirmed: bool) -> None:
        role = self.role
        if isinstance(role, Leader):
            if len(role.reads_waiting) >= self.config.reads_pending_max:
                self._effects.append(ReadFailed(token, "overloaded"))
            elif not confirmed and self._lease_valid(role):
                # sometimes: a leader answers a read by its lease
                self._effects.append(ReadReady(token, self.log.commit_index))
            else:
                role.reads_waiting.append(Read(NOBODY, token, confirmed))
            return
        self._queue_read(token, confirmed)

    def _queue_read(self, token: int, confirmed: bool) -> None:
        if not self._reads.add(token, self._now, confirmed=confirmed):
            self._effects.append(ReadFailed(token, "overloaded"))

    def _read_index_asked(self, sender: NodeId, message: ReadIndex) -> None:
        role = self.role
        if not isinstance(role, Leader) or len(role.reads_waiting) >= self.config.reads_pending_max:
            self._send(sender, ReadIndexReply(term=self.current_term, request=message.request, index=0))
        elif not message.confirmed and self._lease_valid(role):
            # sometimes: a leader answers a follower's read by its lease
            self._answer_read(Read(sender, message.request), self.log.commit_index)
        else:
            role.reads_waiting.append(Read(sender, message.request, message.confirmed))

    def _read_index_answered(self, message: ReadIndexReply) -> None:
        tokens = self._reads.answered(message.request, message.index, self._now)
        self._effects.extend(ReadReady(token, message.index) for token in tokens)

    def _committed_in_term(self) -> bool:
        """Whether an entry of this term is committed: only then is the commit index known to be current (Raft 8)."""
        return self.log.term(self.log.commit_index) == self.current_term

    def _start_read_round(self, role: Leader) -> None:
        """One round of heartbeats for all reads that wait; the next begins when this one is confirmed. (diss. 6.4)"""
        if role.reads_round or not self._committed_in_term():
            return
        if self._lease_valid(role):
            # sometimes: reads that waited are answered by a lease
            for read in role.reads_waiting:
                if not read.confirmed:
                    self._answer_read(read, self.log.commit_index)
            role.reads_waiting = [read for read in role.reads_waiting if read.confirmed]
            if not role.reads_waiting:
                return
        role.round += 1
        role.reads_round, role.reads_waiting = role.reads_waiting, []
        role.reads_round_number = role.round
        role.reads_index = self.log.commit_index
        self._broadcast_heartbeat(role)
        self._confirm_reads(role)  # a single voter needs nobody

    def _confirm_reads(self, role: Leader) -> None:
        if not role.reads_round:
            return
        rounds = {node: progress.round_acked for node, progress in role.progress.items()}
        rounds[self.id] = role.round
        if quorum.agreed(rounds, self.configuration) < role.reads_round_number:
            return
        reads, role.reads_round = role.reads_round, []
        for read in reads:
            self._answer_read(read, role.reads_index)

    def _answer_read(self, read: Read, index: Index) -> None:
        if read.peer == NOBODY:
            self._effects.append(ReadReady(read.token, index))
            return
        self._send(read.peer, ReadIndexReply(term=self.current_term, request=read.token, index=index))
        if isinstance(self.role, Leader) and read.peer in self.role.progress:
            self._hurry(self.role.progress[read.peer], index)

    def _hurry(self, progress: Progress, index: Index) -> None:
        """Somebody at that follower waits for `index` to be applied there: do not let it wait for the notice timer."""
        if progress.commit_sent < index:
            progress.notify_from = max(progress.notify_from, index)
            self._replicate_wanted = True

    def _lease_until(self, role: Leader) -> int:
        """Until when no other leader can exist, on our clock. (diss. 6.4.1)

        Measured from when heartbeats were *sent*: a follower that echoed one stays patient for an election timeout
        from a later moment. Clocks may differ by the configured drift.
        """
        if not self.config.lease_reads or role.lease_void:
            return 0
        sent = {node: progress.lease_sent for node, progress in role.progress.items()}
        sent[self.id] = self._now
        confirmed = quorum.agreed(sent, self.configuration)
        return confirmed + self.config.lease_ns if confirmed else 0

    def _lease_valid(self, role: Leader) -> bool:
        return (
            role.transfer is None
            and not self.configuration.joint
            and self._committed_in_term()
            and self._now < self._lease_until(role)
        )

    # ------------------------------------------------------------------ leadership transfer

    def _transfer_requested(self, token: int, target: NodeId) -> None:
        if self._transfer_watch is not None:
            # sometimes: a transfer is asked for while another is under way
            self._end_transfer_watch("superseded")
        role = self.role
        deadline = self._now + 2 * self.config.election_timeout_ns  # to catch up, and to be elected
        if isinstance(role, Leader):
            target = target or self._best_successor(role)
            error = self._begin_transfer(role, target)
            if error:
                self._effects.append(TransferDone(token, error))
                return
        elif target != NOBODY and target == self.leader_id:
            self._effects.append(TransferDone(token, ""))
            return
        elif self.leader_id == NOBODY or target == NOBODY:
            self._effects.append(TransferDone(token, "not_leader"))
            return
        else:
            # sometimes: a follower passes a transfer on
            self._send(self.leader_id, TransferLeadership(term=self.current_term, target=target))
        self._transfer_watch = _TransferWatch(token, target, deadline)

    def _begin_transfer(self, role: Leader, target: NodeId) -> str:
        """Start handing over, replacing a transfer under way. Returns the reason if that cannot be. (diss. 3.10)"""
        info = self.configuration.member(target)
        if target == self.id:
            return "self"
        if info is None:
            return "unknown_member"
        if target not in self.configuration.voters or info.role is MemberRole.WITNESS:
            return "not_voter"
        if role.transfer is not None and role.transfer.target == target:
            return ""
        role.transfer = Transfer(target, self._now + self.config.election_timeout_ns)
        self._trace("transfer_started", ("target", node_name(target)))
        self._maybe_time_out_target(role, target, role.progress[target])
        self._replicate_wanted = True
        return ""

    def _maybe_time_out_target(self, role: Leader, node: NodeId, progress: Progress) -> None:
        transfer = role.transfer
        if transfer is None or transfer.target != node or transfer.sent_at >= 0:
            return
        if progress.match_index == self.log.last_index:
            self._send_timeout_now(role, transfer)

    def _send_timeout_now(self, role: Leader, transfer: Transfer) -> None:
        # sometimes: a leader tells its successor to begin
        if transfer.sent_at < 0:
            # Catching up may have taken most of the time. Who is told to begin has an election timeout of its own: what
            # is appended before its candidacy arrives makes everybody refuse that, and costs an election.
            transfer.deadline = self._now + self.config.election_timeout_ns
        role.lease_void = True
        transfer.sent_at = self._now
        self._send(transfer.target, TimeoutNow(term=self.current_term))

    def _best_successor(self, role: Leader) -> NodeId:
        """The voter that can take over soonest: alive, furthest in the log, then of highest priority. 0 if there is
        none."""
        candidates = []
        for node, progress in role.progress.items():
            info = self.configuration.member(node)
            if info is None or node not in self.configuration.voters or info.role is MemberRole.WITNESS:
                continue
            if self._now - progress.last_heard < self.config.election_timeout_ns:
                candidates.append((progress.match_index, info.priority, -node))
        return -max(candidates)[2] if candidates else NOBODY

    def _timeout_now(self, sender: NodeId) -> None:
        """The leader asks us to take over: campaign at once, without PreVote. (diss. 3.10)"""
        if isinstance(self.role, Follower) and self._may_lead() and sender == self.leader_id:
            # sometimes: a member is told to take over
            self._campaign(pre_vote=False, transfer=True)

    def _check_transfer_watch(self, leader: NodeId) -> None:
        if self._transfer_watch is not None:
            self._end_transfer_watch("" if leader == self._transfer_watch.target else "superseded")

    def _end_transfer_watch(self, error: str) -> None:
        watch = self._transfer_watch
        assert watch is not None
        self._transfer_watch = None
        self._effects.append(TransferDone(watch.token, error))

    def _maybe_hand_back(self, role: Leader) -> None:
        """Priorities: a leader gives way to a caught-up voter of higher priority, once it has led for a while."""
        config = self.config
        own = self.configuration.member(self.id)
        if self._now < role.handback_at or role.transfer is not None:
            return
        if self._disk_sick:
            # sometimes: a leader with a sick disk tries again to hand over
            role.handback_at = self._now + config.election_timeout_ns
            self._leave_sick_disk(role)
            return
        if own is None or config.priority_handback_ns == 0:
            return
        role.handback_at = self._now + config.priority_handback_ns
        best: tuple[int, NodeId] | None = None
        for node, progress in sorted(role.progress.items()):
            info = self.configuration.member(node)
            if info is None or info.role is MemberRole.WITNESS or node not in self.configuration.voters:
                continue
            caught_up = progress.match_index + config.promote_lag_entries_max >= self.log.last_index
            alive = self._now - progress.last_heard < 2 * config.heartbeat_interval_ns
            if info.priority > own.priority and caught_up and alive and (best is None or info.priority > best[0]):
                best = (info.priority, node)
        if best is not None:
            # sometimes: leadership is handed back by priority
            self._begin_transfer(role, best[1])

    def _disk_health(self, sick: bool) -> None:
        """A leader with a sick disk hands leadership to a healthy member; a sick follower campaigns late."""
        if sick == self._disk_sick:
            return
        self._disk_sick = sick
        self._trace("disk_sick" if sick else "disk_well")
        role = self.role
        if sick and isinstance(role, Leader) and role.transfer is None:
            # sometimes: a leader's disk falls sick
            role.handback_at = self._now + self.config.election_timeout_ns  # if nobody takes over: try again
            self._leave_sick_disk(role)

    def _leave_sick_disk(self, role: Leader) -> None:
        target = self._best_successor(role)
        if target != NOBODY:
            self._begin_transfer(role, target)

    # ------------------------------------------------------------------ peers

    def _peer_connected(self, peer: NodeId, incarnation: int) -> None:
        self._connected[peer] = incarnation
        self._configuration_wanted = True
        self._check_incarnation(peer)
        role = self.role
        if isinstance(role, Leader):
            progress = role.progress.get(peer)
            if progress is not None and progress.state is ProgressState.REPLICATE:
                # sometimes: a connection breaks under a pipeline
                progress.become_probe()  # whatever was on the old connection may be lost
                self._replicate_wanted = True
            elif progress is not None:
                progress.probe_sent = False
                self._replicate_wanted = True

    def _check_incarnation(self, peer: NodeId) -> None:
        info = self.configuration.member(peer)
        seen = self._connected.get(peer, 0)
        if info is not None and info.incarnation and seen and info.incarnation != seen:
            if peer not in self._foreign:
                self._trace("disk_replaced", ("member", node_name(peer)))
            # sometimes: a peer comes with another disk
            self._foreign.add(peer)
        else:
            self._foreign.discard(peer)

    def _peer_down(self, peer: NodeId) -> None:
        """Its process is gone. If it leads, do not wait for the election timeout.

        Differs from the paper: a hint from the network shortens the timeout. Elections stay as safe as ever; only a
        lease rests on followers' patience, so a leader that uses leases is given its full timeout.
        """
        if (
            peer == self.leader_id
            and isinstance(self.role, Follower)
            and not (self._leader_uses_lease or self._now < self._patience_until)
        ):
            # sometimes: a leader's process is said to be gone
            self._trace("leader_suspected", ("leader", node_name(peer)))
            self._suspect_until = self._now + self.config.election_timeout_ns
            interval = self.config.heartbeat_interval_ns
            self._election_at = min(
                self._election_at, self._now + self._rng.randrange(interval) + self._rank() * interval
            )

    # ------------------------------------------------------------------ membership

    def _change_requested(self, request: ConfigChangeRequested) -> None:
        reason = self._change(request)
        if reason:
            self._effects.append(ConfigRefused(request.token, reason))

    def _change(self, request: ConfigChangeRequested) -> str:
        """Append the configuration that `request` leads to; or say why not. (diss. 4.1, 4.3)"""
        role = self.role
        if not isinstance(role, Leader) or role.transfer is not None:
            return "not_leader"
        if not self._committed_in_term():
            # sometimes: a change is asked of a leader that has committed nothing
            return "not_ready"  # the single-server bug of 2015: no change before an entry of the own term is committed
        if self.configuration_index > self.log.commit_index:
            # sometimes: a change is asked for while another is under way
            return "pending"
        before = self.configuration
        if not request.changes:
            if not before.joint:
                # sometimes: a joint configuration is to be left where there is none
                return "not_joint"
            self._append_configuration(role, membership.left(before), request.token)
            return ""
        if before.joint:
            return "pending"
        after = membership.changed(before, request.changes, auto_leave=request.auto_leave)
        if isinstance(after, str):
            return after
        for node in membership.promotions(before, request.changes):
            if not self._caught_up(role, node):
                # sometimes: a learner is to get a vote too early
                return "not_caught_up"
        self._append_configuration(role, after, request.token)
        return ""

    def _caught_up(self, role: Leader, node: NodeId) -> bool:
        progress = role.progress.get(node)
        return (
            progress is not None
            and progress.state is ProgressState.REPLICATE
            and progress.match_index + self.config.promote_lag_entries_max >= self.log.last_index
            and progress.match_index >= role.first_index
            and self._now - progress.last_heard < self.config.election_timeout_ns
        )

    def _append_configuration(self, role: Leader, configuration: Configuration, token: int | None) -> None:
        index = self._append(EntryKind.CONFIG, encode_configuration(configuration))
        self._configurations.append(index, configuration)
        if token is not None:
            self._config_waits.append((token, index))
        self._configuration_in_force()
        self._sync_progress(role)

    def _configuration_in_force(self) -> None:
        """The latest configuration of the log has changed, by an entry or by a cut."""
        configuration = self.configuration
        self._trace(
            "configuration",
            ("index", self.configuration_index),
            ("voters", ",".join(map(node_name, sorted(configuration.voters)))),
            ("outgoing", ",".join(map(node_name, sorted(configuration.outgoing)))),
            ("learners", ",".join(map(node_name, sorted(configuration.learners)))),
        )
        self._voter_known = None
        self._effects.append(MembersChanged(configuration.members))
        self._commit_wanted = self._configuration_wanted = True
        for peer in list(self._connected):
            self._check_incarnation(peer)
        if isinstance(self.role, Leader):
            self._sync_progress(self.role)

    def _committed_configuration_changed(self) -> None:
        """After the commit index moved: whether a configuration became committed by it, and what follows from that."""
        committed = self.committed_configuration
        # Configurations before the newest committed one can never be needed again, except by a snapshot below it.
        if self.configuration_index > self.log.commit_index or committed.joint:
            return
        if self.id in committed.removed and not self._removed_reported:
            self._removed_reported = True
            role = self.role
            if isinstance(role, Leader):
                # sometimes: a leader removes itself
                # The leader manages the change in which it is no part, up to here (diss. 4.2.2), and then hands over.
                self._replicate_wanted = True
                for node, progress in role.progress.items():
                    self._send_heartbeat(role, node, progress)
                successor = self._best_successor(role)
                if successor != NOBODY:
                    self._send(successor, TimeoutNow(term=self.current_term))
                self._answer_config_waits(role)
                self._become_follower(self.current_term, NOBODY)
            # sometimes: a member learns that it was removed
            self._trace("removed")
            self._halt("this member was removed from the group")

    def _advance_configuration(self, role: Leader) -> None:
        """A leader's own steps: leave a committed joint configuration, note incarnations, promote ready learners."""
        self._answer_config_waits(role)
        configuration = self.configuration
        if self.configuration_index > self.log.commit_index or not self._committed_in_term():
            return
        if configuration.joint:
            if configuration.auto_leave:
                # sometimes: a joint configuration is left by itself
                self._append_configuration(role, membership.left(configuration), None)
                joint_index = self._configurations.previous_index
                left_index = self.configuration_index
                self._config_waits = [(t, left_index if i == joint_index else i) for t, i in self._config_waits]
            return
        if role.transfer is not None:
            return
        if not configuration.is_voter(self.id):
            # sometimes: a leader was made a learner
            # Demoted by a change that is committed now: it manages the group no longer (diss. 4.2.2).
            successor = self._best_successor(role)
            if successor != NOBODY:
                self._begin_transfer(role, successor)
            return
        changes = self._incarnation_changes(configuration) or self._ready_learners(role, configuration)
        if changes:
            after = membership.changed(configuration, changes, auto_leave=True)
            if isinstance(after, Configuration):
                self._append_configuration(role, after, None)

    def _incarnation_changes(self, configuration: Configuration) -> tuple[ConfigChange, ...]:
        changes = []
        for info in configuration.members:
            seen = self.incarnation if info.id == self.id else self._connected.get(info.id, 0)
            if seen and not info.incarnation:
                member = MemberInfo(id=info.id, incarnation=seen)
                changes.append(ConfigChange(ChangeKind.UPDATE, member, set_priority=False, set_context=False))
        return tuple(changes)

    def _ready_learners(self, role: Leader, configuration: Configuration) -> tuple[ConfigChange, ...]:
        return tuple(
            ConfigChange(ChangeKind.ADD_VOTER, info)
            for info in configuration.members
            if info.promote_when_ready and info.role is MemberRole.LEARNER and self._caught_up(role, info.id)
        )

    def _answer_config_waits(self, role: Leader) -> None:
        commit = self.log.commit_index
        waits, self._config_waits = self._config_waits, []
        for token, index in waits:
            configuration = self.configuration_at(index)
            leaving = configuration.joint and configuration.auto_leave
            if index <= commit and not leaving:
                self._effects.append(ConfigChanged(token))
            else:
                self._config_waits.append((token, index))

    # ------------------------------------------------------------------ snapshots, the leader's side

    def _begin_snapshot(self, node: NodeId, progress: Progress) -> None:
        """What this follower needs next is compacted away. (Raft 7)"""
        progress.become_snapshot()
        progress.snapshot_acked_at = self._now
        self._continue_snapshot(node, progress, 0)

    def _continue_snapshot(self, node: NodeId, progress: Progress, offset: int) -> None:
        if progress.witness:
            # sometimes: a witness is sent the identity of a snapshot
            # A witness has no state: the identity of the snapshot is all it needs.
            base = max(self.log.snapshot_index, self._configurations.first_index)
            term = self.log.term(base)
            assert term is not None and base <= self.log.commit_index
            meta = SnapshotMeta(index=base, term=term, configuration=self.configuration_at(base))
            progress.snapshot_index = base
            progress.snapshot_offset = 0
            message = InstallSnapshot(term=self.current_term, snapshot=meta, offset=0, data=b"", done=True)
            self._send(node, message)
            return
        snapshot = self.snapshot
        if snapshot is None or snapshot.index < self.log.snapshot_index:
            progress.snapshot_offset = -1
            progress.snapshot_index = 0
            if not self._snapshot_started:
                # sometimes: a snapshot is wanted that is not there
                self._snapshot_started = True
                self._effects.append(StartSnapshot(self.log.snapshot_index))
            return
        if progress.snapshot_index != snapshot.index:
            offset = 0
        progress.snapshot_index = snapshot.index
        progress.snapshot_offset = offset
        self._effects.append(SendSnapshot(node, self.current_term, snapshot, offset))

    def _nudge_snapshots(self, role: Leader) -> None:
        """A chunk or its answer was lost: send it again."""
        for node, progress in role.progress.items():
            if progress.state is not ProgressState.SNAPSHOT:
                continue
            if self._now >= progress.snapshot_acked_at + self.config.election_timeout_ns:
                # sometimes: a snapshot's transfer stands still
                progress.snapshot_acked_at = self._now
                self._continue_snapshot(node, progress, max(0, progress.snapshot_offset))

    def _snapshot_reply(self, role: Leader, sender: NodeId, message: InstallSnapshotReply) -> None:
        progress = self._peer_progress(role, sender)
        if progress is None:
            return
        if message.installed:
            if message.snapshot_index > self.log.last_index:
                self._ignore(sender, message, "installed what was never sent")
                return
            progress.record_match(message.snapshot_index)
            self._commit_wanted = True
            if progress.state is ProgressState.SNAPSHOT:
                progress.become_probe()
                progress.next_index = progress.match_index + 1
            self._replicate_wanted = True
        elif progress.state is ProgressState.SNAPSHOT and message.snapshot_index == progress.snapshot_index:
            progress.snapshot_acked_at = self._now
            snapshot = self.snapshot
            if snapshot is not None and 0 <= message.next_offset <= snapshot.size:
                self._continue_snapshot(sender, progress, message.next_offset)

    def _snapshot_written(self, snapshot: SnapshotMeta) -> None:
        """The state up to `snapshot.index` is durable: the log below it may go, but for a tail. (Raft 7)"""
        if snapshot.has_file:
            self._snapshot_started = False
        log = self.log
        if snapshot.index > log.last_applied or self._restore is not None:
            # sometimes: a local snapshot comes after one that was installed
            return  # of a time before a snapshot was installed over it
        if snapshot.has_file and (self.snapshot is None or snapshot.index >= self.snapshot.index):
            self.snapshot = snapshot
        role = self.role
        if isinstance(role, Leader):
            for node, progress in role.progress.items():
                if progress.state is ProgressState.SNAPSHOT and progress.snapshot_offset < 0:
                    # sometimes: a snapshot comes for a follower that waits for it
                    self._continue_snapshot(node, progress, 0)
        if snapshot.index > log.snapshot_index:
            base = self._compaction_base(snapshot.index)
            if base > log.snapshot_index:
                log.compact_to(base)
                self._configurations.forget_below(base)
                self._trace("compacted", ("to", base), ("snapshot", snapshot.index))
                self._durability.mark_snapshot(snapshot, release_to=base)
            else:
                self._durability.mark_snapshot(snapshot, release_to=None)

    def _snapshot_lost(self, snapshot: SnapshotMeta) -> None:
        """A snapshot that cannot be read serves nobody: who needs one gets a new one."""
        if self.snapshot is None or self.snapshot.index != snapshot.index:
            return
        self._trace("snapshot_lost", ("snapshot", entry_name(snapshot.term, snapshot.index)))
        self.snapshot = None
        role = self.role
        if isinstance(role, Leader):
            for node, progress in role.progress.items():
                if progress.state is ProgressState.SNAPSHOT and progress.snapshot_index == snapshot.index:
                    self._continue_snapshot(node, progress, 0)

    def _compaction_base(self, index: Index) -> Index:
        """How much of the log to keep behind a snapshot at `index`: a tail, and what a snapshot under way will need
        next."""
        log = self.log
        config = self.config
        base = max(log.snapshot_index, index - config.tail_entries_max)
        size = log.payload_bytes(base + 1, index)
        while base < index and size > config.tail_bytes_max:
            base += 1
            size -= len(log.entry(base).payload)
        role = self.role
        if isinstance(role, Leader):
            for progress in role.progress.values():
                alive = self._now - progress.last_heard < config.election_timeout_ns
                if progress.state is ProgressState.SNAPSHOT and alive:
                    # sometimes: the log is kept for a follower that is being sent a snapshot
                    base = min(base, max(progress.snapshot_index, log.snapshot_index))
        return max(log.snapshot_index, min(base, log.stable_index))

    # ------------------------------------------------------------------ snapshots, the follower's side

    def _install_snapshot(self, sender: NodeId, message: InstallSnapshot) -> None:
        meta = message.snapshot
        log = self.log
        if meta.index <= log.commit_index:
            # sometimes: a snapshot comes below what is committed
            self._snapshot_installed(sender, meta.index)
            return
        if log.matches(meta.index, meta.term):
            # sometimes: a snapshot comes for a log that holds its last entry
            # We hold the entry that the snapshot ends with, so all before it is right, and what follows must not be
            # lost (Raft Fig. 13, step 6): move the commit index instead of installing.
            self._follow_commit(meta.index)
            self._snapshot_installed(sender, meta.index)
            return
        if not meta.has_file:
            info = meta.configuration.member(self.id) or self.configuration.member(self.id)
            # A witness that joins may not know that it is one: the snapshot's configuration can be older than its
            # arrival.
            if info is not None and info.role is not MemberRole.WITNESS:
                self._ignore(sender, message, "a snapshot without data for a member that needs data")
                return
            # sometimes: a witness takes a snapshot's identity
            self._accept_snapshot(sender, meta)
            return
        if self._restore is not None:
            # sometimes: a snapshot comes while another is being restored
            self._ignore(sender, message, "another snapshot is being restored")
            return
        self._effects.append(WriteChunk(sender, meta, message.offset, message.data, message.done))

    def _snapshot_installed(self, sender: NodeId, index: Index) -> None:
        self._send_durable(
            sender,
            InstallSnapshotReply(term=self.current_term, snapshot_index=index, next_offset=0, installed=True),
            index,
        )

    def _chunk_written(self, event: ChunkWritten) -> None:
        meta = event.snapshot
        if meta.index <= self.log.commit_index:
            # sometimes: a snapshot is overtaken by the log
            self._snapshot_installed(event.sender, meta.index)
        elif event.complete and self.log.matches(meta.index, meta.term):
            # sometimes: the log reaches a snapshot that has just arrived
            self._follow_commit(meta.index)  # the log arrived by itself while the snapshot did
            self._snapshot_installed(event.sender, meta.index)
        elif event.complete:
            if self._restore is None:
                self._accept_snapshot(event.sender, meta)
        else:
            self._send_durable(
                event.sender,
                InstallSnapshotReply(term=self.current_term, snapshot_index=meta.index, next_offset=event.next_offset),
            )

    def _accept_snapshot(self, sender: NodeId, meta: SnapshotMeta) -> None:
        """The snapshot's file is durable: it takes the place of the log; the machine follows once that is durable
        too."""
        self._trace("snapshot_installed", ("snapshot", entry_name(meta.term, meta.index)))
        self.log.reset_to(meta.index, meta.term)
        self._durability.replace_log(meta)
        self._configurations.reset(meta.index, meta.configuration)
        self._apply_sent = meta.index
        if meta.has_file:
            self.snapshot = meta
            self._restore = meta
            self._snapshot_started = (
                False  # the driver cannot capture what is about to be replaced: ask again if needed
            )
        else:
            self.log.last_applied = meta.index
        self._configuration_in_force()
        self._committed_configuration_changed()
        self._snapshot_installed(sender, meta.index)

    def _restored(self, snapshot: SnapshotMeta) -> None:
        if self._restore is not None and snapshot.index == self._restore.index:
            self._restore = None
            self.log.last_applied = max(self.log.last_applied, snapshot.index)
            self._trace("restored", ("snapshot", entry_name(snapshot.term, snapshot.index)))
            self._effects.append(ReleaseLog(snapshot.index))

    # ------------------------------------------------------------------ the end

    def _halt(self, reason: str) -> None:
        if self._halted:
            return
        self._emit_apply()
        self._durability.emit(self._effects, self._hard_state())
        self._halted = True
        self._trace("halted", ("reason", reason))
        self._effects.append(Halt(reason))


def _stripped(entry: Entry) -> Entry:
    """The entry as a witness keeps it: its identity, and its payload only if it is a configuration."""
    if entry.kind == EntryKind.NORMAL:
        return Entry(entry.term, entry.index, int(EntryKind.STRIPPED), b"")
    return entry
