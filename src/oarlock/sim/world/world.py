"""The simulated world: an agenda in virtual time, the members, everything around them, and the phases of a seed.

A seed runs through: safety (anything may fail) - heal (nothing fails any more) - converge - serve - cold restart of
everything from the disks - durability scan. (docs/explanation/simulation.md)
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable
from hashlib import blake2b
from heapq import heappop, heappush
from typing import Any, Final

import msgspec

from oarlock.node.replica import MemberLimits
from oarlock.node.replica import events as ev
from oarlock.node.replica.sessions import plain
from oarlock.raft import events as raft
from oarlock.raft.config import RaftConfig
from oarlock.raft.roles import Leader
from oarlock.raft.types import Configuration, MemberInfo, MemberRole, NodeId
from oarlock.sim.failures import Violation
from oarlock.sim.invariants import majority_holds, quorum_holds
from oarlock.sim.world.application import Application
from oarlock.sim.world.choices import Choices, Edits
from oarlock.sim.world.faults import Faults
from oarlock.sim.world.features import EtcdApplication
from oarlock.sim.world.network import Network
from oarlock.sim.world.oracle import Oracle
from oarlock.sim.world.process import Process
from oarlock.sim.world.recording import Recording
from oarlock.sim.world.swarm import draw_swarm
from oarlock.sim.world.trials import Trials
from oarlock.sim.world.workload import Client, Persistent

EVENTS: Final = 1200  # turns of the safety phase, unless told otherwise
TRACE_KEPT: Final = 60
SAFETY_TIMEOUTS: Final = 3000  # the safety phase ends after so many election timeouts, however little happened
# Frozen bounds of liveness, in election timeouts after the heal.
LEADER_TIMEOUTS: Final = 60  # with somebody in the lead; [T, 2T) is drawn, so 30 times the longest election timeout
CONVERGE_TIMEOUTS: Final = 150
SERVE_TIMEOUTS: Final = 60
DRAIN_TIMEOUTS: Final = 40
TURNS_MAX: Final = 150_000  # of one of these phases; a healthy one takes some hundreds


class Stopped(Exception):
    """The run was asked to end after so many turns."""


class NoQuorumLeft(Exception):
    """Rot and losses left a configuration without a quorum: then stopping is all that can be asked for."""


class World:
    """One run. `run` raises `Violation`, or returns when everything held.

    `events` bounds the safety phase, in turns; `stop_after` ends the whole run after so many turns; `off` takes classes
    of faults and features away; `edits` changes choices; `keep` is how many of the last events the trace holds (None:
    all); `application` is what runs on the members (the key-value machine with the features that the seed draws);
    `recording` is told of everything.
    """

    def __init__(
        self,
        seed: int,
        *,
        events: int = EVENTS,
        off: frozenset[str] = frozenset(),
        edits: Edits | None = None,
        stop_after: int | None = None,
        keep: int | None = TRACE_KEPT,
        application: Application | None = None,
        recording: Recording | None = None,
    ) -> None:
        self.seed = seed
        self.events = events
        self.stop_after = stop_after
        self.choices = Choices(seed, edits)
        self.swarm = draw_swarm(self.choices, off)
        self.application: Application = application if application is not None else EtcdApplication(self.swarm.features)
        self.now = 0
        self.healed = False
        self.turns = 0
        self.phase = "safety"
        self.recording = recording
        self.trace: deque[tuple[int, int, NodeId, Any, Any]] = deque(maxlen=keep)
        self._log: list[tuple[int, ...]] = []
        self._agenda: list[tuple[int, int, Callable[..., None], Any]] = []
        self._sequence = 0
        self.crashes = self.choices.stream("crash")
        self.disk_times = self.choices.stream("disk times")
        self.oracle = Oracle(self.application)
        self.network = Network(self)
        self.processes: dict[NodeId, Process] = {}
        swarm = self.swarm
        self.rots = "rot" in swarm.classes or "misdirect" in swarm.classes
        self._ranks: dict[NodeId, int] = {}
        points = self.choices.stream("turning points")
        self._turning_points = sorted((points.draw(max(1, events)) for _ in range(swarm.turning_points)), reverse=True)
        self._raft_configs: dict[NodeId, RaftConfig] = {}
        self._led: dict[NodeId, int] = {}  # member -> the last term in which it was seen to lead
        self.limits = MemberLimits(
            request_timeout_ns=swarm.request_timeout,
            snapshot_entries=swarm.snapshot_entries,
            snapshot_bytes=4096,
            checkpoint_bytes=200 * swarm.snapshot_entries,
            checkpoint_interval_ns=5 * swarm.timeout,
        )
        self._begin()
        self.clients = [Client(self, name) for name in range(1, swarm.clients + 1)]
        self.faults = Faults(self)
        self.trials = Trials(self)

    def _begin(self) -> None:
        swarm = self.swarm
        infos = []
        mixed = self.choices.draw("priorities", 4) == 3
        for node in range(1, swarm.voters + swarm.learners + 1):
            role = MemberRole.VOTER
            if node > swarm.voters:
                role = MemberRole.LEARNER
            elif node > swarm.voters - swarm.witnesses:
                role = MemberRole.WITNESS
            priority = 1 + (mixed and self.choices.draw("priority", 3) == 2)
            infos.append(MemberInfo(id=node, role=role, priority=priority))
        initial = Configuration.of(*infos)
        self.oracle.configuration = initial
        for info in infos:
            process = Process(self, info.id, initial, witness=info.role is MemberRole.WITNESS)
            self.processes[info.id] = process
            self.later(self.choices.draw("start", swarm.timeout), process.start)

    def raft_config(self, node: NodeId) -> RaftConfig:
        found = self._raft_configs.get(node)
        if found is None:
            found = self._raft_configs[node] = self._make_raft_config(node)
        return found

    def _make_raft_config(self, node: NodeId) -> RaftConfig:
        swarm = self.swarm
        return RaftConfig(
            id=node,
            election_timeout_ns=swarm.timeout,
            heartbeat_interval_ns=min(swarm.heartbeat, swarm.timeout // 3),
            pre_vote=swarm.pre_vote,
            check_quorum=swarm.check_quorum,
            lease_reads=swarm.lease_reads,
            clock_drift_ppm=swarm.drift_ppm,
            priority_handback_ns=10 * swarm.timeout,
            commit_notice_ns=max(1, swarm.heartbeat // 8),
            message_bytes_max=swarm.message_bytes,
            inflight_messages_max=swarm.inflight,
            inflight_bytes_max=swarm.inflight_bytes,
            uncommitted_bytes_max=swarm.uncommitted_bytes,
            apply_bytes_max=swarm.apply_bytes,
            tail_entries_max=swarm.tail_entries,
            promote_lag_entries_max=swarm.promote_lag,
        )

    # ------------------------------------------------------------------ the agenda

    def at(self, when: int, what: Callable[..., None], argument: Any) -> None:
        self._sequence += 1
        heappush(self._agenda, (when, self._sequence, what, argument))

    def later(self, wait: int, what: Callable[..., None], *argument: Any) -> None:
        """`what()` or `what(argument)` after `wait` ns."""
        self._sequence += 1
        heappush(self._agenda, (self.now + wait, self._sequence, what, argument[0] if argument else _NOTHING))

    def _advance(self, until: Callable[[], bool], deadline: int, budget: int) -> bool:
        """Let time pass until `until`, at most to `deadline` and for `budget` more turns. Whether `until` came."""
        agenda = self._agenda
        last = self.turns + budget
        look = self.turns - 1
        while agenda:
            if self.turns != look:
                look = self.turns
                if until():
                    return True
            if agenda[0][0] > deadline or self.turns >= last:
                break
            when, _, what, argument = heappop(agenda)
            self.now = when
            if argument is _NOTHING:
                what()
            else:
                what(argument)
        self.now = max(self.now, min(deadline, self.now))
        return until()

    def turned(self, process: Process, events: list[ev.MemberEvent], effects: list[ev.MemberEffect]) -> None:
        """A member has handled a turn."""
        self.turns += 1
        core = process.core
        log = core.log
        self._log.append(
            (self.now, process.id, len(events), core.current_term, core.voted_for, log.last_index, log.commit_index,
             log.last_applied, log.snapshot_index, len(effects), self.network.sent)
        )  # fmt: skip
        self.trace.append((self.now, self.turns, process.id, events, effects))
        if self.recording is not None:
            self.recording.ended(process, effects)
        if core.is_leader and self._led.get(process.id) != core.current_term:
            self._led[process.id] = core.current_term
            self.faults.elected(process)
        if self._turning_points and self.turns >= self._turning_points[-1]:
            self._turning_points.pop()
            ranks = self.choices.stream("ranks")
            self._ranks = {node: ranks.draw(1 << 20) for node in sorted(self.processes)}
        if self.turns == self.stop_after:
            raise Stopped

    def note(self, process: Process, what: str) -> None:
        """Something happened to a member from outside."""
        self._log.append((self.now, process.id, -1))
        self.trace.append((self.now, self.turns, process.id, what, None))
        if self.recording is not None:
            self.recording.note(self.now, process, what)

    def digest(self) -> str:
        """A digest of everything that happened: equal for equal runs, in every process."""
        whole = blake2b(digest_size=16)
        whole.update(msgspec.msgpack.encode((self._log, sorted(self.oracle.hashes.items()), self.oracle.committed)))
        return whole.hexdigest()

    def outranked(self, process: Process) -> bool:
        """Whether another member that has something to do goes first. (probabilistic concurrency testing: strict
        priorities, changed at a few random turns)"""
        ranks = self._ranks
        if not ranks:
            return False
        own = ranks.get(process.id, 0)
        return any(
            other.wants_turn and ranks.get(other.id, 0) > own
            for other in self.processes.values()
            if other is not process
        )

    # ------------------------------------------------------------------ members

    def up(self) -> list[Process]:
        return [process for process in self.processes.values() if process.member is not None]

    def well(self) -> set[NodeId]:
        """Members whose disks are what they should be."""
        return {p.id for p in self.processes.values() if not p.broken and not p.rotten and not p.foreign}

    def is_foreign(self, node: NodeId) -> bool:
        """Whether this member's disk was replaced under its name: the others must not hear it."""
        process = self.processes.get(node)
        return process is not None and process.foreign

    def can_lose(self, node: NodeId) -> bool:
        """Whether every configuration that anybody may act on has a quorum without this member, rot and loss counted.

        A majority of a group's disks must stay intact, or no protocol could keep its promises (the fault atlas).
        """
        newest = self.oracle.configuration
        if node not in newest.ids and node not in newest.removed:
            return False  # a newcomer, who may get a vote later
        left = self.well() - {node}
        full = {n for n in left if not self.processes[n].witness}
        configurations = [c for watched in self.oracle.watched.values() for _, c in watched.log.configurations]
        for configuration in (*configurations, self.oracle.configuration):
            if not configuration.voters:
                continue  # of a newcomer, who was not told yet
            if not quorum_holds(configuration, left):
                return False
            if not majority_holds(frozenset(configuration.ids), left):
                return False  # learners may get a vote later
            if configuration.witnesses or not full & configuration.voters:
                return False  # a witness may hold what nobody else does any more, and its vote may then be missed
        return True

    def join(self, node: NodeId, *, witness: bool = False) -> None:
        """A new process with an empty disk that waits to be told of the group."""
        process = self.processes[node] = Process(self, node, Configuration(), witness=witness)
        process.start()

    def replace_disk(self, process: Process) -> None:
        """The same member on an empty disk."""
        fresh = Process(self, process.id, Configuration(), witness=process.witness)
        fresh.life = process.life + 1
        fresh.number = process.number
        fresh.foreign = True
        self.processes[process.id] = fresh

    def restart_later(self, process: Process) -> None:
        draw = self.crashes
        timeout = self.swarm.timeout
        wait = timeout * (1 + draw.draw(20)) // 4 if draw.draw(4) < 3 else timeout * (10 + draw.draw(40))
        self.later(wait, self._restart, process.id)

    def _restart(self, node: NodeId) -> None:
        process = self.processes[node]
        if not process.halted:
            process.start()

    # ------------------------------------------------------------------ phases

    def run(self) -> None:
        """All phases. Raises `Violation` at the first thing that is not as it must be."""
        collecting = gc.isenabled()
        gc.disable()
        try:
            self._safety()
            self._heal()
            if self._hopeless():
                raise NoQuorumLeft
            self._converge("after the heal")
            self._serve()
            self._drain()
            self._trial()
            self._cold_restart()
            self._scan()
            self.phase = "done"
        except Stopped:
            pass
        except NoQuorumLeft:
            self.phase = "no quorum left"
        finally:
            if collecting:
                gc.enable()

    def _safety(self) -> None:
        self._advance(lambda: self.turns >= self.events, SAFETY_TIMEOUTS * self.swarm.timeout, self.events)

    def _heal(self) -> None:
        self.phase = "heal"
        self.healed = True
        self.network.heal()
        self._ranks, self._turning_points = {}, []
        self._leave_for_dead()
        for client in self.clients:
            client.stopped = True
        for process in list(self.processes.values()):
            process.unpause()
            process.release = max(process.release, 0)  # the upgrade is finished: nobody is of the release before
            process.cpu = self.swarm.cpu
            process.clock.thaw(self.now)
            process.repair()
            if process.up:
                if process.called_sick:  # else it would look for a healthy successor long after
                    process.called_sick = False
                    process.give(raft.DiskHealth(False))
                process.wake_if_up()
            elif not process.halted:
                process.start()

    def _leave_for_dead(self) -> None:
        """In some seeds only a core of the group comes back; what is left of each voting set is a quorum."""
        if "core" not in self.swarm.classes:
            return
        draw = self.choices.stream("core")
        for process in list(self.processes.values()):
            if draw.draw(2) and not process.broken and self.can_lose(process.id):
                process.die(power=False)
                process.broken = "left for dead at the heal"
                self.note(process, process.broken)

    def _hopeless(self) -> bool:
        """Whether rot and losses left a configuration without a quorum."""
        left = self.well()
        for node in self.oracle.watched:
            if node in left and not self.processes[node].halted:
                configuration = self.oracle.watched[node].log.configuration
                if configuration.voters and not quorum_holds(configuration, left):
                    return True
        return not quorum_holds(self.oracle.configuration, left)

    def members(self) -> list[Process]:
        """Those of the committed configuration that can take part."""
        well = self.well()
        return [self.processes[n] for n in self.oracle.configuration.ids if n in well and n in self.processes]

    def leader(self) -> Process | None:
        """Whoever leads in the highest term."""
        leaders = [p for p in self.up() if p.leads]
        return max(leaders, key=lambda p: p.core.current_term, default=None)

    def settled(self) -> bool:
        """Whether one leads, all is committed, and all have applied it."""
        leader = self.leader()
        if leader is None or not self.oracle.configuration.is_voter(leader.id):
            return False  # one that the group has removed does not count
        core = leader.core
        commit = core.commit_index
        if commit != core.log.last_index or commit != self.oracle.commit_max:
            return False
        if core.configuration_index > commit or core.configuration.joint:
            return False
        if isinstance(core.role, Leader) and core.role.transfer is not None:
            return False
        return all(
            p.member is not None and p.member.applied_index == commit and p.core.leader_id == leader.id
            for p in self.members()
        )

    def _converge(self, when: str) -> None:
        self.phase = "converge"
        began = self.now
        deadline = began + CONVERGE_TIMEOUTS * self.swarm.timeout
        last_turn = self.turns + TURNS_MAX
        led = False
        step = self.now
        while not self._advance(self.settled, min(deadline, step), last_turn - self.turns):
            led = led or self.leader() is not None
            late = not led and step >= began + LEADER_TIMEOUTS * self.swarm.timeout
            if (late or step >= deadline or self.turns >= last_turn) and self._hopeless():
                raise NoQuorumLeft  # a removal that was asked for before took away whom others depended on
            if late:
                raise Violation("LIVE", f"nobody leads {LEADER_TIMEOUTS} election timeouts {when}: {self.picture()}")
            if step >= deadline or self.turns >= last_turn:
                raise Violation(
                    "LIVE", f"no convergence within {CONVERGE_TIMEOUTS} election timeouts {when}: {self.picture()}"
                )
            step += self.swarm.timeout
            for process in self.members():  # what a supervisor does
                if process.member is None and not process.broken:
                    process.start()
            leader = self.leader()
            if leader is not None and leader.core.configuration.joint and not leader.core.configuration.auto_leave:
                leader.change(())  # an operator finishes what was begun

    def _highest_term(self) -> int:
        """Of the members of the committed configuration; what a removed one thinks does not matter."""
        return max((p.core.current_term for p in self.members() if p.up), default=0)

    def _serve(self) -> None:
        """Every member takes a write and a linearizable read, and answers."""
        self.phase = "serve"
        client = self.clients[0]
        oracle = self.oracle
        term = self._highest_term()
        served = Persistent(client)
        for turn in range(2):
            for process in self.members():
                if process.witness:
                    continue
                served.wait_for(process, plain(self.application.serving(turn, process.id)))
            deadline = self.now + SERVE_TIMEOUTS * self.swarm.timeout
            if not self._advance(lambda: served.left == 0, deadline, TURNS_MAX):
                raise Violation(
                    "LIVE",
                    f"writes and reads without an answer in {SERVE_TIMEOUTS} election timeouts: {self.picture()}",
                )
        grown = self._highest_term() - term
        priorities = {info.priority for info in oracle.configuration.members}
        if grown and len(priorities) == 1 and self.members():
            raise Violation("ELT", f"the term grew by {grown} in a healthy group: {self.picture()}")

    def _drain(self) -> None:
        """Everybody who waits for something is told in time."""
        self.phase = "drain"
        deadline = self.now + DRAIN_TIMEOUTS * self.swarm.timeout + 2 * self.swarm.request_timeout
        quiet = lambda: all(  # noqa: E731 - a predicate of two lines
            not p.outstanding and not p.reads and not p.tokens and p.member is not None and not p.member.pending_count
            for p in self.members()
        )
        if not self._advance(quiet, deadline, TURNS_MAX):
            left = {p.id: (len(p.outstanding), len(p.reads), p.tokens) for p in self.members()}
            raise Violation("LEAK", f"without an answer (commands, reads, operators): {left}")

    def advance(self, until: Callable[[], bool], timeouts: int) -> bool:
        """Let so many election timeouts pass, at most until `until`. Whether that came."""
        return self._advance(until, self.now + timeouts * self.swarm.timeout, TURNS_MAX)

    def _trial(self) -> None:
        """Things that a healthy group must be able to do; after each, everybody is told again."""
        for kind in self.trials.chosen():
            self.phase = f"trial: {kind}"
            self.trials.run(kind)
            self._converge(f"after the trial {kind}")
            self._drain()

    def _cold_restart(self) -> None:
        """All members lose power at once and come back from what their disks hold."""
        self.phase = "cold restart"
        for process in self.up():
            process.die(power=True)
        for process in self.members():
            process.start()
        self._converge("after a cold restart")

    def _scan(self) -> None:
        """Nothing that was acknowledged is lost, and all members hold the same."""
        self.phase = "scan"
        oracle = self.oracle
        application = self.application
        everything = application.everything()
        captures: dict[int, tuple[bytes, NodeId]] = {}
        if added := sorted(oracle.never_added & {*oracle.configuration.ids, *oracle.configuration.removed}):
            raise Violation("CFG", f"members {added} were added although that was refused: {oracle.configuration}")
        for process in self.members():
            machine = process.machine
            if machine is None:
                continue
            index = machine.applied_index
            if index < oracle.acknowledged:
                raise Violation("DUR", f"member {process.id} holds {index}; {oracle.acknowledged} was acknowledged")
            oracle.read(process.id, 0, 0, index, everything, application.answer(machine.inner, everything))
            oracle.state(process.id, index, application.digest(machine.inner))
            try:
                application.validate(machine.inner)
            except AssertionError as error:
                raise Violation("HASH", f"the machine of member {process.id}: {error}") from error
            if not machine.durable:  # a durable one shows its last checkpoint, and these need not agree
                capture = machine.capture()
                data = b"".join(capture.chunks())
                capture.close()
                known, other = captures.setdefault(index, (data, process.id))
                if known != data:
                    raise Violation("HASH", f"the captures of members {other} and {process.id} at {index} differ")

    # ------------------------------------------------------------------ looking

    def picture(self) -> str:
        """Where every member stands, for a person."""
        words = []
        for process in self.processes.values():
            if process.member is None:
                why = process.broken[:40] or process.halted or "down"
                words.append(f"{process.id}: {why}")
                continue
            core = process.core
            role = type(core.role).__name__.lower()
            log = core.log
            words.append(
                f"{process.id}: {role} t{core.current_term} leader {core.leader_id} "
                f"log {log.snapshot_index}-{log.last_index} "
                f"commit {log.commit_index} applied {log.last_applied}"
            )
        configuration = self.oracle.configuration
        joint = f" outgoing {sorted(configuration.outgoing)}" if configuration.outgoing else ""
        words.append(f"voters {sorted(configuration.voters)}{joint}; committed {self.oracle.commit_max}")
        return "; ".join(words)


_NOTHING: Final = object()
