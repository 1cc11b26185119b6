"""What a healthy group must be able to do: two trials a seed, after it has served. All bounds are in election timeouts.

No fault here is one that a group may be slow about: a leader that is gone, disks slower than an election timeout, a
network in which only one member reaches all others, an operator who moves leadership while clients write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from oarlock.node.replica.sessions import plain
from oarlock.raft import events as raft
from oarlock.raft.types import MemberInfo
from oarlock.sim.failures import Violation
from oarlock.sim.invariants import majority_holds, quorum_holds
from oarlock.sim.world.workload import Op, Persistent

if TYPE_CHECKING:
    from oarlock.sim.world.process import Process
    from oarlock.sim.world.world import World

KINDS: Final = (
    "calm",
    "hub",
    "deaf",
    "slow_disks",
    "elections",
    "comeback",
    "handover",
    "removal",
    "stranded",
    "stale_reads",
)
TRIALS: Final = 2

HANDOVER_TIMEOUTS: Final = 4  # for one handover under load, of which there are up to HANDOVER_ATTEMPTS
HANDOVER_ATTEMPTS: Final = 2
UNANSWERED_MAX: Final = 16  # writes of a trial's load that wait for their answers at one time
SLOW_TIMEOUTS: Final = 10  # how long the disks stay slow
HUB_TIMEOUTS: Final = 40  # for a write through the one member that reaches all
CALM_TIMEOUTS: Final = 10  # in which nothing happens, and nothing may
DEAF_TIMEOUTS: Final = 8  # in which one member does not hear the leader
TOLD_TIMEOUTS: Final = 4  # until who asked for a handover to a dead member is told that it failed
IDLE_TIMEOUTS: Final = 8  # before a member comes back: a leader may have let go of its whole log by then
STRANDED_TIMEOUTS: Final = 12  # for a successor of a leader that is cut off, and for what is written there
LEASES_TIMEOUT_MIN: Final = 150_000_000  # with shorter ones it would take a great many heartbeats
LEASES_PERIOD_NS: Final = 1_000_000_000  # less than any TTL
LEASES_NS_MAX: Final = 20_000_000_000  # the longest TTL and half of it again, of which handovers may lose as much
CHECKPOINT_TIMEOUTS: Final = 6  # by then a durable machine has written down what it applied
STALE_TIMEOUTS: Final = 3
STALE_READS: Final = 36
COMEBACK_WRITES_MAX: Final = 80
ELECTIONS: Final = 6  # leaders that are killed one after the other
ELECTIONS_TIMEOUTS: Final = 30  # for all of their successors together ...
ELECTIONS_PRE_VOTE_TIMEOUTS: Final = 18  # ... and with PreVote, where candidates get less in each other's way


class Trials:
    """`chosen` are the trials of this seed, in order: up to `TRIALS` of those that the group can be put to."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._first = [world.choices.draw("trial", len(KINDS)) for _ in range(TRIALS)]
        self.ran: list[str] = []
        self._loading = False
        self.waited: list[float] = []  # election timeouts that each thing took

    def chosen(self) -> Iterator[str]:
        """One after the other; whether the group can be put to it is asked when its turn has come."""
        choices = self._world.choices
        if self._able("leases"):
            yield "leases"
        for number, first in enumerate(self._first):
            if number == 0 and self._world.swarm.lease_reads:
                first = KINDS.index("stale_reads")
            elif choices.draw("trial/apt", 2):
                apt = [kind for kind in KINDS if kind not in self.ran and self._apt(kind) and self._able(kind)]
                if apt:
                    yield apt[choices.draw("trial/which apt", len(apt))]
                    continue
            for kind in (*KINDS[first:], *KINDS[:first]):
                if kind not in self.ran and self._able(kind):
                    yield kind
                    break

    def run(self, kind: str) -> None:
        """Raises `Violation` if the group fails."""
        self.ran.append(kind)
        getattr(self, f"_{kind}")()

    def _apt(self, kind: str) -> bool:
        """Whether this world is one of the few in which the trial can show what it is for."""
        swarm = self._world.swarm
        shut_out = swarm.pre_vote and swarm.check_quorum
        sends_snapshots = swarm.tail_entries <= swarm.snapshot_entries
        return {
            "hub": shut_out and len(self._voters()) >= 4,  # the hub and whoever leads are no majority
            "deaf": shut_out,
            "elections": swarm.pre_vote,
            "stranded": sends_snapshots,
            "comeback": sends_snapshots and swarm.durable_machine,
        }.get(kind, False)

    def _able(self, kind: str) -> bool:
        world, swarm = self._world, self._world.swarm
        leader, voters = world.leader(), self._voters()
        if leader is None or leader not in voters:
            return False
        if kind == "calm":
            ids = {process.id for process in world.members()}
            others = [p.id for p in world.processes.values() if p.up and p.id not in ids]
            # One that was never committed as a member is not known as removed: only PreVote or CheckQuorum shut it out.
            shut_out = swarm.pre_vote or swarm.check_quorum or set(others) <= world.oracle.configuration.removed
            return self._alike() and bool(others) and shut_out
        if kind in ("comeback", "removal"):
            if kind == "removal" and not (self._alike() and len(voters) >= 2):
                return False
            return any(self._spare(process) for process in world.members())
        if kind == "leases":
            held = getattr(world.oracle.model, "leases", ())
            return bool(held) and self._alike() and len(voters) >= 2 and swarm.timeout >= LEASES_TIMEOUT_MIN
        if kind == "handover":
            return self._alike() and len(voters) >= 2
        if kind == "slow_disks":
            return self._alike() and len(voters) >= 2 and swarm.check_quorum
        if kind == "elections":
            return self._alike() and self._spare(leader)
        if kind in ("stranded", "stale_reads"):
            return len(voters) >= 3 and self._spare(leader)
        if len(voters) < 3 or not swarm.pre_vote or not swarm.check_quorum:
            return False
        return kind == "hub" or self._alike()

    def _alike(self) -> bool:
        """Whether nobody has another priority: who has hands leadership over by itself."""
        return len({info.priority for info in self._world.oracle.configuration.members}) == 1

    def _spare(self, process: Process) -> bool:
        """Whether the others are a quorum."""
        world = self._world
        left = {p.id for p in world.members() if p.up and p is not process}
        return quorum_holds(world.oracle.configuration, left)

    def _voters(self) -> list[Process]:
        """Members that can lead and are up."""
        configuration = self._world.oracle.configuration
        return [p for p in self._world.members() if p.up and not p.witness and configuration.is_voter(p.id)]

    def _leader(self) -> Process:
        leader = self._world.leader()
        assert leader is not None, "a trial begins with a leader"
        return leader

    def _wait(self, until: Callable[[], bool], timeouts: int) -> bool:
        world = self._world
        began = world.now
        came = world.advance(until, timeouts)
        self.waited.append((world.now - began) / world.swarm.timeout)
        return came

    # ------------------------------------------------------------------ load

    def _load(self, pause: int) -> None:
        """Clients write at whoever leads until `_loading` is taken back. They do not wait for each answer, but hold
        back while many are due: a queue that grows without end would say nothing but that the group is slow."""
        self._loading = True
        self._write(pause)

    def _write(self, pause: int) -> None:
        world = self._world
        if not self._loading:
            return
        leader = world.leader()
        if leader is not None and len(leader.outstanding) < UNANSWERED_MAX:
            client = world.clients[0]
            op = Op(client, world.oracle.acknowledged, 1)
            leader.submit(op, [plain(world.application.serving(2, leader.id))])
        world.later(pause, self._write, pause)

    # ------------------------------------------------------------------ the trials

    def _handover(self) -> None:
        """An operator moves leadership while clients write: whoever is chosen leads soon. (diss. 3.10)"""
        world = self._world
        others = [p for p in self._voters() if not p.leads]
        target = others[world.choices.draw("trial/target", len(others))]
        self._load(max(1, world.swarm.timeout // 40))
        for _ in range(HANDOVER_ATTEMPTS):
            leader = world.leader()
            if leader is None or leader is target:
                break
            leader.transfer(target.id)
            if self._wait(lambda: target.leads, HANDOVER_TIMEOUTS):
                break
        self._loading = False
        if not target.leads:
            raise Violation(
                "ELT", f"{HANDOVER_ATTEMPTS} times leadership was to go to {target.id}, a healthy member, and did not: "
                f"{world.picture()}"
            )  # fmt: skip

    def _leases(self) -> None:
        """Nobody renews any more, and leadership goes round more often than any TTL: leases end all the same."""
        world = self._world
        model = world.oracle.model
        deadline = world.now + LEASES_NS_MAX
        while model.leases:
            if world.now > deadline:
                raise Violation(
                    "LEASE", f"nobody renews {sorted(model.leases)}, and they last for {LEASES_NS_MAX} ns already"
                )
            leader = world.leader()
            others = [p for p in self._voters() if p is not leader]
            if leader is not None and others:
                leader.transfer(others[world.choices.draw("trial/target", len(others))].id)
            rounds = -(-LEASES_PERIOD_NS // world.swarm.timeout)
            world.advance(lambda: not model.leases, rounds)

    def _slow_disks(self) -> None:
        """All disks but the leader's take longer than an election timeout: it goes on leading all the same."""
        world = self._world
        leader = self._leader()
        term = leader.core.current_term
        for process in world.members():
            if process is not leader:
                process.sync_extra = 2 * world.swarm.timeout
        self._load(world.swarm.timeout // 4)
        self._wait(lambda: False, SLOW_TIMEOUTS)
        self._loading = False
        for process in world.members():
            process.sync_extra = 0
        now = max(p.core.current_term for p in world.members() if p.up)
        if now != term or not leader.leads:
            raise Violation("ELT", f"the term went from {term} to {now} because disks were slow: {world.picture()}")

    def _hub(self) -> None:
        """Only one member reaches all others: it leads soon, or whoever leads has it in its majority, and writes."""
        world = self._world
        voters = [p for p in self._voters() if not p.leads]
        hub = voters[world.choices.draw("trial/target", len(voters))]
        ids = sorted(world.processes)
        world.network.cut |= {(a, b) for a in ids for b in ids if hub.id not in (a, b)}
        asked = Persistent(world.clients[0])
        asked.wait_for(hub, plain(world.application.serving(2, hub.id)))
        came = self._wait(lambda: asked.left == 0, HUB_TIMEOUTS)
        world.network.cut.clear()
        if not came:
            raise Violation(
                "LIVE", f"no write through {hub.id}, which reaches all others, in {HUB_TIMEOUTS} election timeouts: "
                f"{world.picture()}"
            )  # fmt: skip

    def _deaf(self) -> None:
        """A member hears nothing of the leader, as all others do, and asks in vain. It led before, when told to.

        (diss. 4.2.3, 9.6)
        """
        world = self._world
        voters = self._voters()
        spared = [p for p in voters if self._spare(p)]
        if not spared:
            return
        deaf = spared[world.choices.draw("trial/target", len(spared))]
        for target in (deaf, next(p for p in voters if p is not deaf)):
            leader = self._leader()
            if leader is not target:
                leader.transfer(target.id)
                self._wait(lambda target=target: target.leads, HANDOVER_TIMEOUTS)  # type: ignore[misc]
        if not self._wait(world.settled, HANDOVER_TIMEOUTS):
            return
        leader = self._leader()
        if leader is deaf:
            return
        term = leader.core.current_term
        world.network.cut.add((leader.id, deaf.id))
        self._wait(lambda: False, DEAF_TIMEOUTS)
        world.network.cut.clear()
        if leader.core.current_term != term or not leader.leads:
            raise Violation("ELT", f"{deaf.id}, which alone did not hear the leader, deposed it: {world.picture()}")

    def _elections(self) -> None:
        """Leaders die one after the other; each has a successor soon."""
        world = self._world
        total = 0.0
        bound = ELECTIONS_PRE_VOTE_TIMEOUTS if world.swarm.pre_vote else ELECTIONS_TIMEOUTS
        for _ in range(ELECTIONS):
            leader = world.leader()
            if leader is None or not self._spare(leader):
                return
            world.advance(lambda: False, 3)  # a start with leases is patient for one timeout
            leader = world.leader()
            if leader is None:
                break
            leader.die(power=False)
            self._wait(lambda: world.leader() is not None, bound)
            total += self.waited[-1]
            leader.start()
            if total > bound:
                raise Violation(
                    "ELT", f"{len(self.waited)} successors took {total:.1f} election timeouts: {world.picture()}"
                )

    def _calm(self) -> None:
        """Nothing happens: nobody campaigns, whoever else may be about. (diss. 4.2.3)"""
        world = self._world
        leader = self._leader()
        term = leader.core.current_term
        self._wait(lambda: False, CALM_TIMEOUTS)
        now = max(p.core.current_term for p in world.members() if p.up)
        if now != term or not leader.leads:
            raise Violation("ELT", f"the term went from {term} to {now}, and nothing had happened: {world.picture()}")

    def _comeback(self) -> None:
        """A member is down; leadership is to go to it all the same; others write, and it comes back when they are done.

        The world's convergence says whether it catches up.
        """
        world = self._world
        leader = self._leader()
        others = [p for p in world.members() if p.up and p is not leader and self._spare(p)]
        if not others:
            return
        away = others[world.choices.draw("trial/target", len(others))]
        cut = self._apt("comeback") or world.choices.draw("trial/cut off", 2) == 1
        if cut:  # it lives, and is still writing its state down when a newer one comes
            rest = [node for node in sorted(world.processes) if node != away.id]
            world.network.cut |= {(away.id, node) for node in rest} | {(node, away.id) for node in rest}
            away.job_extra = (IDLE_TIMEOUTS + 6) * world.swarm.timeout
        else:
            away.die(power=False)
        leader.transfer(away.id)
        if not self._wait(lambda: not leader.tokens, TOLD_TIMEOUTS):
            raise Violation("LIVE", f"a handover to {away.id}, which is down, has no end: {world.picture()}")
        idle = world.choices.draw("trial/idle", 2) == 1
        if not idle:
            leader.job_extra = 2 * world.swarm.timeout
        count = min(COMEBACK_WRITES_MAX, 2 * world.swarm.snapshot_entries + 4)
        asked = Persistent(world.clients[0])
        for number in range(count):
            world.later(
                number * world.swarm.timeout // 32,
                asked.wait_once,
                (leader, plain(world.application.serving(2, number))),
            )
        if not self._wait(lambda: asked.done_once == count, HUB_TIMEOUTS):
            raise Violation("LIVE", f"{count - asked.done_once} writes without an answer: {world.picture()}")
        if idle:
            self._wait(lambda: False, IDLE_TIMEOUTS)
        world.network.cut.clear()
        away.start()
        for process in (leader, away):
            world.later(6 * world.swarm.timeout, self._quick_again, process)
        if cut and away.machine is not None and away.machine.durable:
            self._checkpointed_again(away)

    def _checkpointed_again(self, process: Process) -> None:
        """A member that was restored while it wrote its state down writes it down again, loses power, and holds it."""
        world = self._world
        self._wait(lambda: not process.saving, IDLE_TIMEOUTS + 8)
        process.job_extra = 0
        for _ in range(2):
            asked = Persistent(world.clients[0])
            asked.wait_for(process, plain(world.application.serving(3, process.id)))
            self._wait(lambda asked=asked: asked.left == 0, IDLE_TIMEOUTS)  # type: ignore[misc]
            self._wait(lambda: False, CHECKPOINT_TIMEOUTS)
        process.die(power=True)
        process.start()

    def _removal(self) -> None:
        """A member that is down is removed, comes back, and never hears of it: it disturbs nobody. (diss. 4.2.3)"""
        world = self._world
        leader = self._leader()
        well, voters = world.well(), world.oracle.configuration.voters
        others = [
            p
            for p in self._voters()
            if p is not leader and self._spare(p) and majority_holds(voters - {p.id}, well - {p.id})
        ]
        if not others:
            return
        gone = others[world.choices.draw("trial/target", len(others))]
        gone.die(power=False)
        leader.change((raft.ConfigChange(raft.ChangeKind.REMOVE, MemberInfo(id=gone.id)),))
        if not self._wait(lambda: not leader.tokens, HUB_TIMEOUTS):
            raise Violation("LIVE", f"the removal of {gone.id} is not answered: {world.picture()}")
        if gone.id not in world.oracle.configuration.removed:
            return  # refused: too many witnesses would have been left
        self._wait(world.settled, TOLD_TIMEOUTS)
        gone.start()
        self._calm()

    def _stranded(self) -> None:
        """A leader is cut off, its disk stands still: what it must unlearn is partly on its way to the disk."""
        world = self._world
        timeout = world.swarm.timeout
        old = self._leader()
        rest = [node for node in sorted(world.processes) if node != old.id]
        old.sync_extra = (STRANDED_TIMEOUTS + 4) * timeout
        world.network.cut |= {(old.id, node) for node in rest} | {(node, old.id) for node in rest}
        many = self._apt("stranded") or world.choices.draw("trial/many", 2) == 1
        count = min(COMEBACK_WRITES_MAX, 2 * world.swarm.snapshot_entries + 6) if many else 4
        for number in range(count):
            command = plain(world.application.serving(2, number))
            world.later(number * timeout // (2 * count), self._write_at, (old, command))
        came = self._wait(lambda: any(p.leads and p is not old for p in world.up()), STRANDED_TIMEOUTS)
        if came:
            asked = Persistent(world.clients[0])
            fresh = next(p for p in world.up() if p.leads and p is not old)
            more = min(COMEBACK_WRITES_MAX, world.swarm.snapshot_entries + 3) if many else 3
            for number in range(more):
                asked.wait_once((fresh, plain(world.application.serving(3, number))))
            self._wait(lambda: asked.done_once == more, STRANDED_TIMEOUTS)
        world.network.cut.clear()
        leader = world.leader()
        if leader is not None and leader is not old:
            # An answer of the old one would wait for its disk: only a new connection makes its successor try again.
            world.network.connected(leader.id, old.id)
        old.sync_extra = 0  # but what is under way takes its time: what comes meanwhile is not what that vouches for
        self._load(max(1, timeout // 8))
        self._wait(lambda: not old.syncing, STRANDED_TIMEOUTS + 4)
        self._wait(lambda: False, 1)
        self._loading = False

    def _stale_reads(self) -> None:
        """Reads where news comes late: at a follower that lags, or, with leases, at a leader that does not hear that it
        was deposed, while its clock is as slow and those of the others as fast as clocks may be.

        What they show is the oracle's business.
        """
        world = self._world
        if not world.swarm.lease_reads:
            others = [p for p in self._voters() if not p.leads]
            at = others[world.choices.draw("trial/target", len(others))]
            world.network.clogged[self._leader().id, at.id] = world.now + 2 * world.swarm.timeout
            self._read_and_write(at)
            return
        for scene in (self._late_answers, self._unheard_handover):
            if not self._able("stale_reads"):
                return
            old = self._leader()
            for process in world.processes.values():
                world.faults.skew(process, slow=process is old)
            scene(old)
            self._read_and_write(old)
            for process in world.processes.values():
                process.clock.thaw(world.now)
                process.wake_if_up()
            if not self._wait(world.settled, HUB_TIMEOUTS):
                return

    def _late_answers(self, old: Process) -> None:
        """The answers that its lease rests on are under way for nearly as long as the others are patient."""
        world = self._world
        rest = [node for node in sorted(world.processes) if node != old.id]
        for node in rest:
            world.network.clogged[node, old.id] = world.now + 7 * world.swarm.timeout // 8
        links = {(node, old.id) for node in rest} | {(old.id, node) for node in rest}
        world.later(world.swarm.timeout // 4, self._cut, links)

    def _unheard_handover(self, old: Process) -> None:
        """It hands over, and does not hear that its successor was elected."""
        world, swarm = self._world, self._world.swarm
        others = [p for p in self._voters() if p is not old]
        old.transfer(others[world.choices.draw("trial/target", len(others))].id)
        incoming = {(node, old.id) for node in sorted(world.processes) if node != old.id}
        world.later(1 + swarm.cpu * 2 + swarm.latency_min + swarm.latency_mean // 2, self._cut, incoming)

    def _read_and_write(self, at: Process) -> None:
        """Reads at one member, writes at whoever leads, side by side for a while; then the network is well again."""
        world = self._world
        for turn in range(STALE_READS):
            when = turn * STALE_TIMEOUTS * world.swarm.timeout // STALE_READS
            world.later(when, self._read_at, at)
            world.later(when, self._write_at, (None, plain(world.application.serving(2, turn))))
        self._wait(lambda: False, STALE_TIMEOUTS)
        world.network.cut.clear()
        world.network.clogged.clear()

    def _cut(self, links: set[tuple[int, int]]) -> None:
        self._world.network.cut |= links

    def _read_at(self, process: Process) -> None:
        if process.up:
            world = self._world
            question = world.application.broad_question()
            process.barrier(Op(world.clients[0], world.oracle.acknowledged, 1, question))

    def _write_at(self, what: tuple[Process | None, bytes]) -> None:
        process, command = what
        process = process if process is not None else self._world.leader()
        if process is not None and process.up:
            process.submit(Op(self._world.clients[0], self._world.oracle.acknowledged, 1), [command])

    @staticmethod
    def _quick_again(process: Process) -> None:
        process.job_extra = 0
