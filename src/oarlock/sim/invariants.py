"""What must hold after every step of every group: counted on ledgers and on messages, sharing no code with the core.

The names in violations are those of `docs/explanation/invariants.md`. Log matching is checked by induction: each entry
`(term, index)` has one payload and one predecessor term in the whole history of the group, so two logs that share an
entry share everything before it; then one comparison of terms says whether a log contains a committed entry.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from oarlock.raft import events as ev
from oarlock.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Message,
    RequestVote,
    RequestVoteReply,
)
from oarlock.raft.types import (
    Configuration,
    Entry,
    EntryKind,
    Index,
    NodeId,
    SnapshotMeta,
    Term,
    decode_configuration,
)
from oarlock.sim.failures import Violation as Violation
from oarlock.sim.stage import Actor, Answer, Ledger


def majority_holds(voters: frozenset[NodeId], holders: set[NodeId]) -> bool:
    return 2 * len(voters & holders) > len(voters)


def quorum_holds(configuration: Configuration, holders: set[NodeId]) -> bool:
    """Whether `holders` contain a majority of every active voting set. (diss. 4.3)"""
    return majority_holds(configuration.voters, holders) and (
        not configuration.outgoing or majority_holds(configuration.outgoing, holders)
    )


def ledger_term(actor: Actor) -> Term | None:
    """The term of the last entry that this member knows to be committed."""
    return actor.mirror.term(actor.core.commit_index)


@dataclass(slots=True)
class _Shadow:
    """What a member's indexes were when we last looked."""

    term: Term = 0
    commit: Index = 0
    applied: Index = 0
    led: bool = False
    configuration: Configuration = field(default_factory=Configuration)
    last: Index = 0


class Invariants:
    """Watches a stage and raises `Violation` at the first step after which an invariant does not hold.

    `actors` is the stage's own dictionary, so that durable copies can be counted.
    """

    def __init__(self, actors: dict[NodeId, Actor]) -> None:
        self.actors = actors
        self.leaders: dict[Term, NodeId] = {}
        self.votes: dict[tuple[int, Term], NodeId] = {}  # (incarnation of the voter, term) -> candidate
        self.predecessors: dict[tuple[Term, Index], Term] = {}
        self.payloads: dict[tuple[Term, Index], tuple[int, bytes]] = {}
        self.committed: list[Term] = [0]  # the term of the committed entry at each index
        self.states: dict[Index, int] = {}  # the digest of every machine at an applied index
        self.shadows: dict[NodeId, _Shadow] = {}
        self.reads: dict[tuple[int, int], Index] = {}  # (incarnation of the asker, token) -> what was committed by then
        self.reads_ready = 0
        self.elections = 0
        self.check_reads = True  # off where the assumptions of a lease are broken on purpose

    @property
    def commit_max(self) -> Index:
        return len(self.committed) - 1

    # -- what the stage tells

    def restarted(self, actor: Actor) -> None:
        shadow = self.shadows[actor.id] = _Shadow()
        raft = actor.core
        ledger = actor.mirror
        if raft.current_term < ledger.hard_state.term:
            raise Violation(
                "MONO", f"member {actor.id} started in term {raft.current_term}, its disk says {ledger.hard_state.term}"
            )
        self._look(actor, shadow, [ledger.configuration])

    def before_handle(self, actor: Actor, events: tuple[ev.Event, ...]) -> None:
        shadow = self.shadows[actor.id]
        shadow.configuration = actor.mirror.configuration
        shadow.last = actor.mirror.last_index
        for event in events:
            if isinstance(event, ev.ReadRequested):
                self.reads[actor.incarnation, event.token] = self.commit_max

    def ordered(self, actor: Actor, persist: ev.Persist, cut: tuple[Entry, ...]) -> None:
        shadow = self.shadows[actor.id]
        ledger = actor.mirror
        raft = actor.core
        # the leader at the beginning of this turn that still leads in the same term
        if shadow.led and raft.is_leader and raft.current_term == shadow.term and (cut or persist.reset_log):
            raise Violation("LAO", f"leader {actor.id} of term {shadow.term} cut {[str(e) for e in cut]} from its log")
        for entry in cut:
            if (
                entry.index <= self.commit_max
                and self.committed[entry.index] == entry.term
                and (persist.snapshot is None or persist.snapshot.index < entry.index)
            ):
                raise Violation("DUR", f"member {actor.id} cut the committed entry {entry}")
        if persist.snapshot is not None:
            self._check_snapshot(actor, persist.snapshot)
        for entry in persist.entries:
            previous = ledger.term(entry.index - 1) if entry.index - 1 >= ledger.first - 1 else None
            if previous is None and entry.index == 1:
                previous = 0
            if previous is None:
                previous = self.predecessors.get((entry.term, entry.index))
                assert previous is not None, f"{entry} of member {actor.id} has no known predecessor"
            if previous > entry.term:
                raise Violation("LM", f"member {actor.id} appended {entry} after an entry of term {previous}")
            if self.predecessors.setdefault((entry.term, entry.index), previous) != previous:
                known = self.predecessors[entry.term, entry.index]
                raise Violation(
                    "LM", f"{entry} follows term {previous} at member {actor.id} and term {known} elsewhere"
                )
            if entry.kind != EntryKind.STRIPPED:
                content = (int(entry.kind), entry.payload)
                if self.payloads.setdefault((entry.term, entry.index), content) != content:
                    raise Violation("LM", f"{entry} has two contents; member {actor.id} holds the second")
            if entry.kind == EntryKind.CONFIG:
                self._check_configuration(actor, entry)

    def _check_snapshot(self, actor: Actor, snapshot: SnapshotMeta) -> None:
        if snapshot.index > self.commit_max:
            raise Violation(
                "SNAP", f"member {actor.id} holds a snapshot at {snapshot.index}; only {self.commit_max} is committed"
            )
        if self.committed[snapshot.index] != snapshot.term:
            raise Violation(
                "SNAP",
                f"member {actor.id} dates its snapshot at {snapshot.index} with term {snapshot.term}; "
                f"the entry there is of term {self.committed[snapshot.index]}",
            )
        for index in range(snapshot.index, 0, -1):
            kind, payload = self.payloads.get((self.committed[index], index), (EntryKind.STRIPPED, b""))
            if kind == EntryKind.CONFIG:
                if decode_configuration(payload) != snapshot.configuration:
                    raise Violation(
                        "CFG",
                        f"snapshot {snapshot.index} of member {actor.id} lacks the configuration of entry {index}",
                    )
                return
        bootstrap = [a.initial for a in self.actors.values() if a.initial.members]
        if bootstrap and snapshot.configuration != bootstrap[0]:
            raise Violation(
                "CFG", f"the snapshot at {snapshot.index} of member {actor.id} lost the initial configuration"
            )

    def _check_configuration(self, actor: Actor, entry: Entry) -> None:
        new = decode_configuration(entry.payload)
        old = actor.mirror.configuration_at(entry.index - 1)
        if not old.members:
            return  # a newcomer learns of the group from its first entries
        if not new.voters:
            raise Violation("CFG", f"{entry} leaves no voters")
        if old.joint and new.joint and (old.voters, old.outgoing) != (new.voters, new.outgoing):
            raise Violation("CFG", f"{entry} goes from one joint configuration to another")
        if old.joint and not new.joint and new.voters != old.voters:
            raise Violation("CFG", f"{entry} leaves a joint configuration for other voters than its incoming ones")
        if not old.joint and new.joint and new.outgoing != old.voters:
            raise Violation("CFG", f"{entry} is joint with other outgoing voters than the present ones")
        if not old.joint and not new.joint and new.voters != old.voters:
            raise Violation("CFG", f"{entry} changes the voters without a joint configuration")
        if old.removed - new.removed:
            raise Violation("CFG", f"{entry} forgets that {sorted(old.removed - new.removed)} were removed")
        if actor.core.is_leader and entry.term == actor.core.current_term:
            for at, _ in actor.mirror.configurations:
                if max(self.commit_max, actor.core.commit_index) < at < entry.index:
                    raise Violation(
                        "CFG", f"leader {actor.id} appended {entry} while the configuration at {at} is not committed"
                    )
            if ledger_term(actor) != entry.term:
                raise Violation(
                    "CFG", f"leader {actor.id} appended {entry} before it committed an entry of its own term"
                )

    def sent(self, actor: Actor, to: NodeId, message: Message) -> None:
        durable = actor.disk.durable
        match message:
            case RequestVote(term=term, pre_vote=False):
                self._vote(actor, term, actor.id)
                self._check_durable_vote(actor, durable, term, actor.id, message)
                if (message.last_log_term, message.last_log_index) > (durable.last_term, durable.last_index) and not (
                    durable.term(message.last_log_index) == message.last_log_term
                ):
                    # Allowed only while the candidate's own vote waits for the same fsync; see `invariants.md`, VOTE.
                    raise Violation(
                        "VOTE",
                        f"candidate {actor.id} boasts of {message.last_log_term}.{message.last_log_index}, not durable",
                    )
            case RequestVoteReply(term=term, granted=True, pre_vote=False):
                self._vote(actor, term, to)
                self._check_durable_vote(actor, durable, term, to, message)
            case AppendEntriesReply(term=term, success=True, index=index):
                if durable.hard_state.term < term:
                    raise Violation(
                        "ACK", f"member {actor.id} acknowledged in term {term}, its disk says {durable.hard_state.term}"
                    )
                # An acknowledgement that shared its fsync with a later term's cut may name an entry that is gone
                # again: its
                # leader is deposed, and the quorum that deposed it did not hold the entry.
                if durable.hard_state.term == term and durable.last_index < index:
                    raise Violation(
                        "ACK", f"member {actor.id} acknowledged index {index}; only {durable.last_index} is durable"
                    )
            case AppendEntries(entries=entries, prev_log_index=prev):
                for offset, entry in enumerate(entries):
                    if entry.index != prev + 1 + offset:
                        raise Violation("LM", f"member {actor.id} sent {entry} at position {offset} after index {prev}")
            case _:
                pass

    def _vote(self, actor: Actor, term: Term, candidate: NodeId) -> None:
        if self.votes.setdefault((actor.incarnation, term), candidate) != candidate:
            first = self.votes[actor.incarnation, term]
            raise Violation("VOTE", f"member {actor.id} voted for {first} and for {candidate} in term {term}")

    @staticmethod
    def _check_durable_vote(actor: Actor, durable: Ledger, term: Term, candidate: NodeId, message: Message) -> None:
        state = durable.hard_state
        if state.term < term or (state.term == term and state.vote != candidate):
            raise Violation(
                "VOTE", f"member {actor.id} sent {message}; its disk says term {state.term}, vote {state.vote}"
            )

    def answered(self, actor: Actor, answer: Answer) -> None:
        if isinstance(answer, ev.ReadReady):
            self.reads_ready += 1
            asked = self.reads.pop((actor.incarnation, answer.token), None)
            if asked is not None and answer.index < asked and self.check_reads:
                raise Violation(
                    "READ", f"member {actor.id} reads at {answer.index}; {asked} was committed when the read began"
                )
        elif isinstance(answer, ev.ReadFailed):
            self.reads.pop((actor.incarnation, answer.token), None)

    def applied(self, actor: Actor, entry: Entry) -> None:
        if entry.index > self.commit_max or self.committed[entry.index] != entry.term:
            raise Violation("SMS", f"member {actor.id} applied {entry}, which is not committed")
        if not actor.machine.stripped:
            known = self.states.setdefault(entry.index, actor.machine.digest)
            if known != actor.machine.digest:
                raise Violation("SMS", f"the machine of member {actor.id} differs from the others at {entry}")

    def restored(self, actor: Actor, snapshot: SnapshotMeta) -> None:
        known = self.states.setdefault(snapshot.index, actor.machine.digest)
        if known != actor.machine.digest:
            raise Violation("SMS", f"member {actor.id} restored another state at {snapshot.index}")

    def after_handle(self, actor: Actor, events: tuple[ev.Event, ...]) -> None:
        shadow = self.shadows[actor.id]
        ledger = actor.mirror
        in_force = [shadow.configuration, ledger.configuration]
        in_force += [c for at, c in ledger.configurations if at > shadow.last]
        self._look(actor, shadow, in_force)

    # -- what we look at

    def _look(self, actor: Actor, shadow: _Shadow, in_force: list[Configuration]) -> None:
        raft = actor.core
        ledger = actor.mirror
        term, commit, applied = raft.current_term, raft.commit_index, raft.last_applied
        if term < shadow.term:
            raise Violation("MONO", f"the term of member {actor.id} went back from {shadow.term} to {term}")
        if commit < shadow.commit:
            raise Violation("MONO", f"the commit index of member {actor.id} went back from {shadow.commit} to {commit}")
        if applied < shadow.applied:
            raise Violation(
                "MONO", f"the applied index of member {actor.id} went back from {shadow.applied} to {applied}"
            )
        if not applied <= commit <= ledger.last_index:
            raise Violation("ORD", f"member {actor.id}: applied {applied}, commit {commit}, last {ledger.last_index}")
        if ledger.hard_state.term != term:
            raise Violation(
                "MONO", f"member {actor.id} is in term {term} and ordered {ledger.hard_state.term} to be durable"
            )
        if (raft.log.last_index, raft.log.last_term) != (ledger.last_index, ledger.last_term):
            raise Violation(
                "WAL",
                f"the log of member {actor.id} ends at {raft.log.last_term}.{raft.log.last_index}, "
                f"what it ordered to persist at {ledger.last_term}.{ledger.last_index}",
            )
        if raft.is_leader:
            if self.leaders.setdefault(term, actor.id) != actor.id:
                raise Violation("ES", f"members {self.leaders[term]} and {actor.id} both lead in term {term}")
            if not shadow.led or term != shadow.term:
                self.elections += 1
                self._check_leader(actor)
        if commit > shadow.commit:
            self._check_commit(actor, shadow.commit, commit, in_force)
        if raft.configuration != ledger.configuration:
            raise Violation("CFG", f"member {actor.id} uses another configuration than the last one in its log")
        shadow.term, shadow.commit, shadow.applied = term, commit, applied
        shadow.led = raft.is_leader

    def _check_leader(self, actor: Actor) -> None:
        ledger = actor.mirror
        top = self.commit_max
        if not ledger.covers(top, self.committed[top]):
            raise Violation(
                "LC",
                f"leader {actor.id} of term {actor.core.current_term} lacks committed {self.committed[top]}.{top}",
            )
        if ledger.snapshot.index > top:
            raise Violation(
                "SNAP", f"leader {actor.id} has a snapshot at {ledger.snapshot.index} above all that is committed"
            )

    def _check_commit(self, actor: Actor, low: Index, high: Index, in_force: list[Configuration]) -> None:
        ledger = actor.mirror
        for index in range(low + 1, min(high, self.commit_max) + 1):
            term = ledger.term(index)
            if term is not None and term != self.committed[index]:
                raise Violation(
                    "SMS",
                    f"member {actor.id} committed {term}.{index}; {self.committed[index]}.{index} was committed before",
                )
        if high <= self.commit_max:
            return
        term = ledger.term(high)
        assert term is not None
        holders = {
            a.id
            for a in self.actors.values()
            if a.disk.durable.covers(high, term) and a.disk.durable.last_index >= high
        }
        if not any(quorum_holds(configuration, holders) for configuration in in_force if configuration.voters):
            raise Violation(
                "COQ",
                f"member {actor.id} committed {term}.{high}; durable only on {sorted(holders)}, no quorum",
            )
        if actor.core.is_leader and term != actor.core.current_term:
            raise Violation(
                "COQ", f"leader {actor.id} of term {actor.core.current_term} committed {term}.{high} by counting"
            )
        for index in range(self.commit_max + 1, high + 1):
            known = ledger.term(index)
            assert known is not None
            self.committed.append(known)
