"""What must hold, checked after every turn of every member; shares no code with the core.
(docs/explanation/simulation.md)

The oracle keeps three things: for each member a ledger of what it ordered to be written and one of what the simulated
disk holds durably; the log of the group as it became committed; and a reference model to which that log is played, so
that every answer to a client can be compared. Because an entry `(term, index)` has one predecessor and one content in
the whole history (checked at each append), comparing the term at an index compares everything before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from oarlock.machines.base import Context
from oarlock.raft.events import MessageReceived, Persist
from oarlock.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    InstallSnapshot,
    Message,
    RequestVote,
    RequestVoteReply,
)
from oarlock.raft.progress import Progress
from oarlock.raft.roles import Follower, Leader
from oarlock.raft.types import (
    Configuration,
    Entry,
    EntryKind,
    Index,
    MemberRole,
    NodeId,
    SnapshotMeta,
    Term,
    decode_configuration,
)
from oarlock.sim.failures import Violation
from oarlock.sim.invariants import quorum_holds
from oarlock.sim.world.application import Application
from oarlock.sim.world.ledger import Ledger
from oarlock.sim.world.model import DENIED, Plain
from oarlock.storage import GroupState

if TYPE_CHECKING:
    from oarlock.sim.world.process import Process

_decode = msgspec.msgpack.decode
REFERENCE: Final[NodeId] = 0  # no member: the reference machine
COMMAND_SHOWN: Final = 60  # bytes of a command in a message


class Watched:
    """What the oracle knows of one member's machine (a process and its disk)."""

    __slots__ = (
        "applied",
        "commit",
        "configuration",
        "disk",
        "inflight",
        "last_group",
        "led_term",
        "log",
        "matched",
        "previous",
        "seen",
        "vote_terms",
        "contact",
        "asked",
        "term",
    )

    def __init__(self, initial: Configuration) -> None:
        self.log = Ledger(initial)  # as ordered
        self.disk = Ledger(initial)  # as durable
        self.inflight: list[Persist] = []  # handed to a sync that has not returned
        self.previous: Ledger | None = None  # the disk before the last sync, kept where rot may strike
        self.last_group: list[Persist] = []  # what that sync wrote
        self.configuration = self.log.configurations[-1]  # in force when the present turn began
        self.commit: Index = 0  # of this life
        self.applied: Index = 0
        self.led_term: Term = 0  # nonzero while it leads
        self.vote_terms: dict[Term, NodeId] = {}
        self.matched: dict[NodeId, tuple[Progress, Index]] = {}  # of a leader: how far it counted each follower
        self.contact = 0  # on its own clock: when it last heard a leader, or began
        self.asked: dict[NodeId, RequestVote] = {}  # by whom it was asked for a PreVote in this turn
        self.term: Term = 0  # when the last turn ended
        self.seen: tuple[object, object] = (None, None)  # the configurations last compared: the member's and the log's


class Oracle:
    """Raises `Violation` at the first thing that is not as it must be."""

    def __init__(self, application: Application) -> None:
        self.application = application
        self.watched: dict[NodeId, Watched] = {}
        self.lost: list[tuple[NodeId, Ledger]] = []  # disks that are gone: what they had acknowledged still counts
        self.leaders: dict[Term, NodeId] = {}
        self.ballots: dict[tuple[Term, NodeId], set[NodeId]] = {}  # (term, candidate) -> whose durable votes it has
        self.predecessors: dict[tuple[Term, Index], Term] = {}
        self.entries: dict[tuple[Term, Index], Entry] = {}
        self.committed: list[Term] = [0]
        self.configuration = Configuration()  # the newest committed one
        self.configuration_index: Index = 0
        self.model: Any = application.reference()
        self._stamp = 0  # the leaders' clock, as entries carry it
        self.never_added: set[NodeId] = set()  # members whose addition was refused
        self.answers: dict[tuple[NodeId, int, int], tuple[Index, Plain]] = {}  # (member, boot, number)
        self.denied: set[tuple[NodeId, int, int]] = set()  # said not to be executed, now or ever
        self.acknowledged: Index = 0  # the highest index that any answer to anybody rests on
        self.hashes: dict[Index, tuple[bytes, NodeId]] = {}
        self.digests: dict[Index, tuple[bytes, NodeId]] = {}
        self.lease_broken = False
        self.elections = self.reads = self.writes = self.recoveries = self.torn = self.cuts = 0
        self.sent_early = 0  # AppendEntries with entries that their leader's own disk does not hold yet (diss. 10.2.1)

    @property
    def commit_max(self) -> Index:
        return len(self.committed) - 1

    # ------------------------------------------------------------------ disks

    def new_disk(self, node: NodeId, initial: Configuration) -> None:
        """A member begins with an empty disk. What an earlier disk of it held is lost."""
        old = self.watched.get(node)
        if old is not None:
            self.lost.append((node, old.disk))
        self.watched[node] = Watched(initial)

    def ordered(self, process: Process, persist: Persist) -> None:
        """A turn asked for this to be made durable."""
        watched = self.watched[process.id]
        log = watched.log
        if persist.snapshot is not None:
            self._check_mark(process, persist.snapshot)
        entries = persist.entries
        if entries:
            first = entries[0].index
            if first <= log.base + len(log.terms) and not persist.reset_log:
                self._check_cut(process, watched, first)
            elif first > log.last_index + 1 and not persist.reset_log:
                raise Violation("LM", f"member {process.id} wrote {entries[0]} where {log.last_index + 1} was due")
        elif persist.reset_log and watched.led_term and watched.led_term == process.core.current_term:
            raise Violation("LAO", f"leader {process.id} of term {watched.led_term} replaced its log")
        if persist.snapshot is not None:
            if persist.reset_log:
                self._check_replacement(process, watched, persist.snapshot.index)
            log.mark(persist.snapshot, persist.reset_log)
        if persist.hard_state is not None:
            state = persist.hard_state
            old = log.hard_state
            if state.term < old.term or state.commit < old.commit:
                raise Violation("MONO", f"the hard state of member {process.id} went from {old} to {state}")
            if state.term == old.term and old.vote and state.vote != old.vote:
                raise Violation(
                    "ES", f"member {process.id} voted for {old.vote} and for {state.vote} in term {state.term}"
                )
            log.hard_state = state
        for entry in entries:
            self._check_entry(process.id, log, entry)
            log.append(entry)
            if entry.kind == EntryKind.CONFIG:
                self._check_configuration(process, log, entry)

    def _check_cut(self, process: Process, watched: Watched, first: Index) -> None:
        self.cuts += 1
        log = watched.log
        if watched.led_term and process.core.is_leader and process.core.current_term == watched.led_term:
            raise Violation("LAO", f"leader {process.id} of term {watched.led_term} cut its log at {first}")
        for index in range(first, min(self.commit_max, log.last_index) + 1):
            if log.term(index) == self.committed[index]:
                raise Violation("DUR", f"member {process.id} cut the committed entry {self.committed[index]}.{index}")

    def _check_replacement(self, process: Process, watched: Watched, mark: Index) -> None:
        """A snapshot that takes the place of a log is news to it: nothing that is committed goes with the log."""
        log = watched.log
        known = max(watched.commit, log.snapshot.index)
        if mark <= known:
            raise Violation(
                "MONO", f"member {process.id} replaces its log by the snapshot {mark}; it knows {known} as committed"
            )
        for index in range(mark + 1, min(self.commit_max, log.last_index) + 1):
            if log.term(index) == self.committed[index]:
                raise Violation(
                    "DUR", f"member {process.id} gives up the committed entry {self.committed[index]}.{index} for the "
                    f"snapshot {mark}"
                )  # fmt: skip

    def _check_entry(self, node: NodeId, log: Ledger, entry: Entry) -> None:
        """Log matching, by induction: one predecessor and one content for each (term, index)."""
        key = (entry.term, entry.index)
        known = self.entries.get(key)
        if known is None or known.kind == EntryKind.STRIPPED:
            self.entries[key] = entry
        elif (
            known is not entry
            and entry.kind != EntryKind.STRIPPED
            and (known.kind, known.payload)
            != (
                entry.kind,
                entry.payload,
            )
        ):
            raise Violation("LM", f"{entry} has two contents; member {node} holds the second")
        before = log.term(entry.index - 1)
        if before is None:
            return  # compacted away: it was checked when it was written
        if before > entry.term:
            raise Violation("LM", f"member {node} holds {entry} after an entry of term {before}")
        if self.predecessors.setdefault(key, before) != before:
            other = self.predecessors[key]
            raise Violation("LM", f"{entry} follows term {before} at member {node}, and term {other} elsewhere")

    def _check_mark(self, process: Process, mark: SnapshotMeta) -> None:
        if mark.index > self.commit_max:
            raise Violation(
                "SMS", f"member {process.id} has a snapshot at {mark.index}; {self.commit_max} is committed"
            )
        if self.committed[mark.index] != mark.term:
            raise Violation(
                "LM", f"member {process.id} dates its snapshot {mark.index} with term {mark.term}; the entry there is "
                f"{self.committed[mark.index]}.{mark.index}"
            )  # fmt: skip
        for index in range(mark.index, 0, -1):
            entry = self.entries.get((self.committed[index], index))
            if entry is not None and entry.kind == EntryKind.CONFIG:
                if decode_configuration(entry.payload) != mark.configuration:
                    raise Violation(
                        "CFG", f"the snapshot {mark.index} of member {process.id} has another configuration than "
                        f"entry {entry}"
                    )  # fmt: skip
                break
        if mark.has_file:
            self.digest(process.id, mark.index, mark.digest)

    def digest(self, node: NodeId, index: Index, digest: bytes) -> None:
        """A snapshot's bytes are the same on every member."""
        known, other = self.digests.setdefault(index, (digest, node))
        if known != digest:
            raise Violation("HASH", f"the snapshots at {index} of members {other} and {node} differ")

    def _check_configuration(self, process: Process, log: Ledger, entry: Entry) -> None:
        """From one configuration to the next: simple or joint, one at a time. (diss. 4.3)"""
        new = log.configuration
        if len(log.configurations) < 2 or not log.configurations[-2][1].members:
            return  # a newcomer learns of the group by this entry
        previous_index, old = log.configurations[-2]
        where = f"{entry} at member {process.id}"
        if old.joint:
            if new.joint and (new.voters, new.outgoing) != (old.voters, old.outgoing):
                raise Violation("CFG", f"{where} goes from one joint configuration to another")
            if not new.joint and new.voters != old.voters:
                raise Violation("CFG", f"{where} leaves a joint configuration for other voters")
        elif new.joint:
            if new.outgoing != old.voters:
                raise Violation("CFG", f"{where} has outgoing voters that are not the present ones")
        elif new.voters != old.voters:
            raise Violation("CFG", f"{where} changes the voters without a joint configuration")
        if old.removed - new.removed:
            raise Violation("CFG", f"{where} forgets removed members {sorted(old.removed - new.removed)}")
        core = process.core
        if core.is_leader and entry.term == core.current_term:
            if previous_index > max(self.commit_max, core.commit_index):
                raise Violation("CFG", f"{where} was appended while configuration {previous_index} is not committed")
            commit = min(core.commit_index, entry.index - 1)
            if log.term(commit) != entry.term:
                raise Violation("CFG", f"{where} was appended before its leader committed an entry of its own term")
            self._check_promotions(process, old, new, entry, where)

    def _check_promotions(
        self, process: Process, old: Configuration, new: Configuration, entry: Entry, where: str
    ) -> None:
        """A learner gets a vote only once its own disk is nearly as far as the log. (diss. 4.2.1)"""
        lag = process.world.swarm.promote_lag
        for info in old.members:
            if info.role is not MemberRole.LEARNER or info.id not in new.voters or process.world.is_foreign(info.id):
                continue
            disk = self.watched[info.id].disk
            if disk.hard_state.term <= entry.term and disk.last_index + lag < entry.index - 1:
                raise Violation("CFG", f"{where} gives a vote to {info.id}, whose log ends at {disk.last_index}")

    def durable(self, process: Process, group: list[Persist], clean: bool) -> None:
        """A sync returned. `clean`: the disk has really nothing of the log that a power loss could take."""
        watched = self.watched[process.id]
        watched.inflight = []
        if process.world.rots:
            watched.previous, watched.last_group = watched.disk.copy(), group
        if clean:
            for persist in group:
                watched.disk.apply(persist)

    def recovered(self, process: Process, state: GroupState) -> bool:
        """A restart read this from the disk: all that was synced, and a part, from the front, of what was not.

        False if rot took the last batch and nothing vouched for it any more: that cannot be told from a torn tail, and
        the member must not go on. (docs/reference/file-formats.md)
        """
        watched = self.watched[process.id]
        self.recoveries += 1
        found = Ledger.recovered(state, process.initial)
        allowed = watched.disk.copy()
        if not self._matches_any(allowed, found, watched.inflight):
            previous = watched.previous
            if process.rotten and previous and self._matches_any(previous.copy(), found, watched.last_group):
                return False
            raise Violation(
                "WAL", f"member {process.id} recovered {_describe(found)}; synced was "
                f"{_describe(watched.disk)}, under way "
                f"{[_describe_persist(p) for p in watched.inflight]}"
            )  # fmt: skip
        for entry in state.entries:
            known = self.entries.get((entry.term, entry.index))
            if known is None or (
                EntryKind.STRIPPED not in (known.kind, entry.kind)
                and ((known.kind, known.payload) != (entry.kind, entry.payload))
            ):
                raise Violation("WAL", f"member {process.id} recovered {entry} with a content that nobody wrote")
        if process.world.rots and watched.inflight and not watched.disk.same_as(found):
            # What was under way came through: it is the last batch now, made durable by the restart and not by a sync.
            watched.previous, watched.last_group = watched.disk, watched.inflight
        watched.disk = found
        watched.log = found.copy()
        watched.configuration = found.configurations[-1]
        watched.inflight = []
        watched.commit = watched.applied = 0
        watched.led_term = 0
        return True

    @staticmethod
    def _matches_any(allowed: Ledger, found: Ledger, inflight: list[Persist]) -> bool:
        """Whether `found` is `allowed` and the first so many records of what was under way.

        The commit index may come behind the entries: it is only a hint, but never one beyond the log.
        """
        least = allowed.hard_state.commit
        if allowed.same_as(found) and found.hard_state.commit == least:
            return True
        for persist in inflight:
            if persist.snapshot is not None:
                allowed.mark(persist.snapshot, persist.reset_log)
                if allowed.same_as(found):
                    return True
            if persist.hard_state is not None:
                allowed.hard_state = persist.hard_state
                if allowed.same_as(found) and least <= found.hard_state.commit <= allowed.hard_state.commit:
                    return True
            for entry in persist.entries:
                allowed.append(entry)
                if allowed.same_as(found) and least <= found.hard_state.commit <= allowed.hard_state.commit:
                    return True
        return False

    # ------------------------------------------------------------------ turns

    def started(self, process: Process) -> None:
        """A life begins; the member stands where its disk says."""
        watched = self.watched[process.id]
        watched.contact = process.clock.read(process.world.now)
        watched.asked.clear()
        core = process.core
        state = watched.disk.hard_state
        if core.current_term != state.term or core.voted_for != state.vote:
            raise Violation("MONO", f"member {process.id} started in t{core.current_term}, its disk says {state}")
        expected = watched.disk.configuration
        if core.configuration != expected:
            raise Violation("CFG", f"member {process.id} started with another configuration than its log's last one")
        watched.commit = core.commit_index
        self._committed(process, watched, core.commit_index)

    def turn(self, process: Process, events: Sequence[object]) -> None:
        """After a turn: terms, commit index, leadership, and whether it follows the leader that it heard."""
        watched = self.watched[process.id]
        core = process.core
        log = watched.log
        if core.current_term != log.hard_state.term:
            if core.current_term < log.hard_state.term:
                raise Violation("MONO", f"the term of member {process.id} went back to {core.current_term}")
            raise Violation(
                "ES", f"member {process.id} is in t{core.current_term} and did not order that to be durable"
            )
        if core.voted_for != log.hard_state.vote:
            raise Violation("ES", f"member {process.id} did not order its vote for {core.voted_for} to be durable")
        commit = core.commit_index
        if commit != watched.commit:
            if commit < watched.commit:
                raise Violation(
                    "MONO", f"the commit index of member {process.id} went from {watched.commit} to {commit}"
                )
            if core.is_leader and watched.led_term == core.current_term and log.term(commit) != core.current_term:
                raise Violation(
                    "COQ", f"leader {process.id} of term {core.current_term} commits {log.term(commit)}.{commit} by "
                    "counting"
                )  # fmt: skip
            self._committed(process, watched, commit)
            watched.commit = commit
        if process.world.swarm.pre_vote:
            self._look_for_requests(process, watched, events)
        in_force = watched.configuration
        watched.configuration = log.configurations[-1]
        if watched.seen[0] is not core.configuration or watched.seen[1] is not log.configuration:
            watched.seen = (core.configuration, log.configuration)
            if core.configuration != log.configuration:
                raise Violation("CFG", f"member {process.id} uses another configuration than the last one in its log")
        role = core.role
        if isinstance(role, Leader):
            if process.id in log.configuration.removed:
                committed = log.configuration_at(commit)
                if committed is not None and process.id in committed.removed and not committed.joint:
                    raise Violation("CFG", f"member {process.id} leads on, though its removal is committed")
            if watched.led_term != core.current_term:
                watched.matched = {}
                self._elected(process, watched, in_force)
            for follower, progress in role.progress.items():
                known = watched.matched.get(follower)
                before = known[1] if known is not None and known[0] is progress else 0
                if progress.match_index != before or progress.next_index <= progress.match_index:
                    self._counted(process, watched, follower, progress, before)
                if len(progress.inflights) > progress.inflights.messages_max:
                    raise Violation(
                        "ORD", f"leader {process.id} has {len(progress.inflights)} messages under way to {follower}; "
                        f"the window holds {progress.inflights.messages_max}"
                    )  # fmt: skip
        else:
            watched.led_term = 0
            if not isinstance(role, Follower):
                self._heard(process, events)

    def _heard(self, process: Process, events: Sequence[object]) -> None:
        """Whoever asks for votes and hears the leader of its own term follows it. (Raft 5.2)"""
        core = process.core
        for event in events:
            if (
                isinstance(event, MessageReceived)
                and isinstance(event.message, AppendEntries | Heartbeat | InstallSnapshot)
                and event.message.term == core.current_term
                and self.leaders.get(core.current_term) == event.sender
                and event.sender not in core.committed_configuration.removed
                and not process.world.is_foreign(event.sender)
            ):
                raise Violation(
                    "ELT", f"member {process.id} heard {event.sender}, the leader of its term {core.current_term}, and "
                    "goes on asking for votes"
                )  # fmt: skip

    @staticmethod
    def _look_for_requests(process: Process, watched: Watched, events: Sequence[object]) -> None:
        """Who asked this member for a PreVote in this turn, and when it heard a leader."""
        watched.asked.clear()
        heard = bool(watched.led_term)
        several: set[NodeId] = set()
        for event in events:
            if isinstance(event, MessageReceived):
                message = event.message
                if isinstance(message, RequestVote):
                    if message.pre_vote and event.sender in watched.asked:
                        several.add(event.sender)  # which of them an answer is to cannot be told
                    elif message.pre_vote:
                        watched.asked[event.sender] = message
                elif isinstance(message, AppendEntries | Heartbeat | InstallSnapshot):
                    heard = heard or message.term >= watched.term
        watched.asked = {node: message for node, message in watched.asked.items() if node not in several}
        watched.term = process.core.current_term
        if heard:
            watched.contact = process.clock.read(process.world.now)

    def _refused(self, process: Process, watched: Watched, candidate: NodeId) -> None:
        """A PreVote is refused for a reason: a log that is behind, a term that is over, or a leader that is alive.

        Else members that lost one leader keep each other from electing the next. (diss. 9.6)
        """
        asked = watched.asked.get(candidate)
        core = process.core
        if asked is None or core.is_leader or asked.term <= core.current_term:
            return
        log, world = watched.log, process.world
        if (asked.last_log_term, asked.last_log_index) < (log.last_term, log.last_index):
            return
        silence = process.clock.read(world.now) - watched.contact
        if silence >= world.swarm.timeout and not world.is_foreign(candidate):
            raise Violation(
                "ELT", f"member {process.id} refuses {candidate} a PreVote for term {asked.term}, for a leader not "
                f"heard for {silence / world.swarm.timeout:.2f} election timeouts"
            )  # fmt: skip

    def _elected(self, process: Process, watched: Watched, in_force: tuple[Index, Configuration]) -> None:
        core = process.core
        term = core.current_term
        watched.led_term = term
        self.elections += 1
        if self.leaders.setdefault(term, process.id) != process.id:
            raise Violation("ES", f"members {self.leaders[term]} and {process.id} both lead in term {term}")
        voted = self.ballots.get((term, process.id), set())
        state = watched.disk.hard_state
        if (state.term, state.vote) == (term, process.id):
            voted = voted | {process.id}
        configurations = [in_force[1], *(c for at, c in watched.log.configurations if at > in_force[0])]
        if not any(quorum_holds(configuration, voted) for configuration in configurations):
            raise Violation("ES", f"member {process.id} leads term {term} with the votes of {sorted(voted)} only")
        last = self.commit_max
        # Late votes may still elect a leader of a term that is over already: it can commit nothing.
        if self.committed[last] < term and not watched.log.holds(last, self.committed[last]):
            raise Violation(
                "LC", f"member {process.id} leads term {term} without the committed entry {self.committed[last]}.{last}"
            )
        # A member that the newest configuration of its log leaves out may lead until that is committed. (diss. 4.2.2)
        newest, committed = watched.log.configuration, watched.log.configuration_at(core.commit_index)
        if not newest.is_voter(process.id) and not (committed is not None and committed.is_voter(process.id)):
            raise Violation("CFG", f"member {process.id} leads term {term} without being a voter")

    def _counted(self, process: Process, watched: Watched, follower: NodeId, progress: Progress, before: Index) -> None:
        """A leader counts a follower up to `match_index`: that is on the follower's disk. (Raft Fig. 2)"""
        match = progress.match_index
        if match < before:
            raise Violation("MONO", f"leader {process.id} counted {follower} to {before}, now to {match}")
        if progress.next_index <= match:
            raise Violation("ORD", f"leader {process.id} counts {follower} to {match}; next is {progress.next_index}")
        watched.matched[follower] = (progress, match)
        other = self.watched.get(follower)
        term = process.core.current_term
        if not match or other is None or process.world.is_foreign(follower) or other.disk.hard_state.term != term:
            return  # it has gone on to another term, where a later leader may have cut what it acknowledged
        meant = watched.log.term(match)  # not what is committed there: a leader that was deposed may not know of it
        if meant is None and match <= self.commit_max:
            meant = self.committed[match]
        if meant is not None and not (other.disk.holds(match, meant) and other.disk.last_index >= match):
            raise Violation(
                "COQ", f"leader {process.id} of term {term} counts {follower} to {meant}.{match}; durable there is "
                f"{other.disk.term(match)}.{match} of {other.disk.last_index}"
            )  # fmt: skip

    def _committed(self, process: Process, watched: Watched, commit: Index) -> None:
        """A member says that everything up to `commit` is committed."""
        log = watched.log
        known = min(commit, self.commit_max)
        term = log.term(known)
        if term is not None and term != self.committed[known]:
            raise Violation(
                "SMS", f"member {process.id} takes {term}.{known} for committed; {self.committed[known]}.{known} is"
            )
        if commit <= self.commit_max:
            return
        term = log.term(commit)
        if term is None:
            raise Violation("SMS", f"member {process.id} commits up to {commit}; its log ends at {log.last_index}")
        # A turn may commit first and change the configuration then: any that was in force during it will do.
        since, before = watched.configuration
        in_force = [before, *(c for at, c in log.configurations if at > since)]
        self._check_quorum(process, in_force, commit, term)
        for index in range(self.commit_max + 1, commit + 1):
            at = log.term(index)
            if at is None:
                raise Violation("SMS", f"member {process.id} commits up to {commit} and does not hold {index}")
            self.committed.append(at)
            self._witness(self.entries[at, index])

    def _check_quorum(self, process: Process, in_force: list[Configuration], index: Index, term: Term) -> None:
        """Committed means durable on a quorum of every active configuration: counted on the simulated disks."""
        holders = {node for node, watched in self.watched.items() if watched.disk.holds(index, term)}
        holders |= {node for node, disk in self.lost if disk.holds(index, term)}
        if not any(quorum_holds(configuration, holders) for configuration in in_force):
            configuration = in_force[-1]
            raise Violation(
                "COQ", f"member {process.id} commits {term}.{index}; durable only on {sorted(holders)} of voters "
                f"{sorted(configuration.voters)}"
                + (f" and outgoing {sorted(configuration.outgoing)}" if configuration.outgoing else "")
            )  # fmt: skip

    def _witness(self, entry: Entry) -> None:
        """Play a committed entry to the model: its results are what clients must be told."""
        if entry.kind == EntryKind.CONFIG:
            self.configuration = decode_configuration(entry.payload)
            self.configuration_index = entry.index
        if entry.kind != EntryKind.NORMAL:
            self.model.skip(Context(entry.index, entry.term, self._stamp))
            self._expect(entry.index)
            return
        _, stamp, groups = _decode(entry.payload)
        self._stamp = max(self._stamp, stamp)
        context = Context(entry.index, entry.term, self._stamp)
        results = self.model.apply([command for group in groups for command in group[3]], context)
        self._expect(entry.index)
        at = 0
        for origin, boot, first, commands in groups:
            for number in range(first, first + len(commands)):
                key = (origin, boot, number)
                if key in self.answers:
                    raise Violation("LIN", f"command {number} of member {origin} was executed twice, again in {entry}")
                if key in self.denied:
                    raise Violation(
                        "LIN", f"command {number} of member {origin} is in {entry}, but was said not to be executed"
                    )
                self.answers[key] = (entry.index, results[at])
                at += 1

    # ------------------------------------------------------------------ machines

    def _expect(self, index: Index) -> None:
        """Where the reference has an opinion on the state, members must agree with it."""
        digest = self.model.digest()
        if digest:
            self.state(REFERENCE, index, digest)

    def applied(self, process: Process, index: Index, term: Term, digest: bytes) -> None:
        """A member's machine executed an entry."""
        watched = self.watched[process.id]
        if watched.applied and index != watched.applied + 1:
            raise Violation("SMS", f"member {process.id} applied {index} after {watched.applied}")
        watched.applied = index
        # A commit index is looked at after the turn: until then what it applied may be news.
        if index <= self.commit_max and self.committed[index] != term:
            raise Violation(
                "SMS", f"member {process.id} applied {term}.{index}; {self.committed[index]}.{index} is committed"
            )
        self.state(process.id, index, digest)

    def restored(self, process: Process, index: Index, digest: bytes) -> None:
        watched = self.watched[process.id]
        if index < watched.applied:
            raise Violation("MONO", f"member {process.id} went back from applied {watched.applied} to {index}")
        watched.applied = index
        self.state(process.id, index, digest)

    def state(self, node: NodeId, index: Index, digest: bytes) -> None:
        known, other = self.hashes.setdefault(index, (digest, node))
        if known != digest:
            how = self.application.difference(known, digest)
            if REFERENCE in (other, node):
                member = max(other, node)
                raise Violation(
                    "HASH", f"the machine of member {member} at {index} is not what the log makes of one{how}"
                )
            raise Violation("HASH", f"the machines of members {other} and {node} differ at {index}{how}")

    # ------------------------------------------------------------------ messages

    def sent(self, process: Process, to: NodeId, message: Message) -> None:
        """Promises rest on the disk: a vote, a candidacy, an acknowledgement."""
        watched = self.watched[process.id]
        disk = watched.disk
        match message:
            case RequestVote(pre_vote=False, term=term):
                self._promised(process.id, watched, term, process.id)
            case RequestVoteReply(granted=False, pre_vote=True):
                self._refused(process, watched, to)
            case RequestVoteReply(granted=True, pre_vote=False, term=term):
                self._promised(process.id, watched, term, to)
            case AppendEntries(entries=entries):
                self.sent_early += bool(entries) and entries[-1].index > disk.last_index
            case AppendEntriesReply(success=True, term=term, index=index):
                # An acknowledgement that waited together with a later term's cut may name what is gone again.
                synced = disk.hard_state.term
                if synced < term or (synced == term and disk.last_index < index):
                    raise Violation(
                        "COQ", f"member {process.id} acknowledged {index} in t{term}; durable are t{synced} and "
                        f"{disk.last_index}"
                    )  # fmt: skip
                if synced == term == watched.log.hard_state.term and index > watched.log.snapshot.index:
                    meant = watched.log.term(index)
                    if meant is not None and not disk.holds(index, meant):
                        raise Violation(
                            "COQ",
                            f"member {process.id} acknowledged {meant}.{index}; durable is {disk.term(index)}.{index}",
                        )

    def _promised(self, node: NodeId, watched: Watched, term: Term, candidate: NodeId) -> None:
        state = watched.disk.hard_state
        if state.term < term or (state.term == term and state.vote != candidate):
            raise Violation("ES", f"member {node} let its vote for {candidate} in t{term} out; durable is {state}")
        if watched.vote_terms.setdefault(term, candidate) != candidate:
            raise Violation("ES", f"member {node} voted for {watched.vote_terms[term]} and {candidate} in t{term}")
        self.ballots.setdefault((term, candidate), set()).add(node)

    # ------------------------------------------------------------------ clients

    def completed(self, key: tuple[NodeId, int, int], floor: Index, result: object) -> tuple[Index, Plain]:
        """A client was told a result: it must be the model's, at a later place than all answered before it asked."""
        found = self.answers.get(key)
        if found is None:
            raise Violation(
                "DUR", f"command {key[2]} of member {key[0]} was acknowledged, and no committed entry holds it"
            )
        index, expected = found
        if index <= floor:
            raise Violation(
                "LIN", f"command {key[2]} of member {key[0]} is at {index}, but {floor} was answered before"
            )
        actual = self.application.plain(result)
        if actual != expected:
            raise Violation(
                _whose(actual, expected, "LIN"),
                f"command {key[2]} of member {key[0]}{self._command_text(key)} was told {actual}, must be {expected}",
            )
        if key in self.denied:
            raise Violation("LIN", f"command {key[2]} of member {key[0]} has two answers")
        self.acknowledged = max(self.acknowledged, index)
        self.writes += 1
        return found

    def _command_text(self, key: tuple[NodeId, int, int]) -> str:
        """The command itself, for a message, with the index of its entry."""
        index = self.answers[key][0]
        _, _, groups = _decode(self.entries[self.committed[index], index].payload)
        for origin, boot, first, commands in groups:
            if (origin, boot) == key[:2] and first <= key[2] < first + len(commands):
                command = commands[key[2] - first]
                return f", {command[:COMMAND_SHOWN]!r} at {index},"
        return ""

    def not_executed(self, key: tuple[NodeId, int, int], error: str) -> None:
        if key in self.answers:
            raise Violation(
                "LIN",
                f"command {key[2]} of member {key[0]} failed with {error!r}, but is executed at {self.answers[key][0]}",
            )
        self.denied.add(key)

    def read(self, node: NodeId, floor: Index, asked_at: Index, applied: Index, question: Any, result: object) -> None:
        """A linearizable read: not older than what was committed when it was asked, and what the model says."""
        if applied > self.commit_max:
            raise Violation("SMS", f"member {node} reads at {applied}; only {self.commit_max} is committed")
        if applied < asked_at and not self.lease_broken:
            raise Violation("READ", f"member {node} reads at {applied}; {asked_at} was committed when the read began")
        actual, expected = self.application.plain(result), self.model.read(question, applied)
        if actual != expected:
            name = _whose(actual, expected, "READ")
            raise Violation(name, f"member {node} at {applied} reads {actual}, must be {expected}: {question}")
        self.acknowledged = max(self.acknowledged, applied)
        self.reads += 1


def _whose(actual: Plain, expected: Plain, otherwise: str) -> str:
    """The invariant that an answer breaks: who was answered, or refused, against their rights says AUTH."""
    return "AUTH" if DENIED in (actual, expected) else otherwise


def _describe(ledger: Ledger) -> str:
    mark, state = ledger.snapshot, ledger.hard_state
    last = f"{ledger.last_term}.{ledger.last_index}"
    return f"t{state.term} vote {state.vote} commit {state.commit} [{mark.term}.{mark.index}] to {last}"


def _describe_persist(persist: Persist) -> dict[str, Any]:
    return {
        "hard_state": persist.hard_state,
        "entries": [str(entry) for entry in persist.entries],
        "mark": persist.snapshot.index if persist.snapshot else None,
    }
