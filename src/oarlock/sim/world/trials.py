"""What a healthy group must be able to do: one trial a seed, after it has served. All bounds are in election timeouts.

No fault here is one that a group may be slow about: a leader that is gone, disks slower than an election timeout, a
network in which only one member reaches all others, an operator who moves leadership while clients write. Who has other
priorities than the others is left alone, because it hands leadership over by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from oarlock.sim.failures import Violation
from oarlock.sim.invariants import quorum_holds
from oarlock.sim.world.workload import Op, Persistent

if TYPE_CHECKING:
    from oarlock.sim.world.process import Process
    from oarlock.sim.world.world import World

KINDS: Final = ("handover", "slow_disks", "hub", "elections")

HANDOVER_TIMEOUTS: Final = 4  # for one handover under load, of which there are up to HANDOVER_ATTEMPTS
HANDOVER_ATTEMPTS: Final = 2
SLOW_TIMEOUTS: Final = 10  # how long the disks stay slow
HUB_TIMEOUTS: Final = 40  # for a write through the one member that reaches all
ELECTIONS: Final = 6  # leaders that are killed one after the other
ELECTIONS_TIMEOUTS: Final = 30  # for all of their successors together ...
ELECTIONS_PRE_VOTE_TIMEOUTS: Final = 18  # ... and with PreVote, where candidates get less in each other's way


class Trials:
    """Runs the trial that the seed drew. `ran` names it if it took place."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.kind = KINDS[world.choices.draw("trial", len(KINDS))]
        self.ran = ""
        self._loading = False
        self.waited: list[float] = []  # election timeouts that each thing took

    def run(self) -> None:
        world = self._world
        priorities = {info.priority for info in world.oracle.configuration.members}
        if len(priorities) > 1 or world.leader() is None:
            return
        getattr(self, f"_{self.kind}")()

    def _voters(self) -> list[Process]:
        """Members that can lead and are up."""
        configuration = self._world.oracle.configuration
        return [p for p in self._world.members() if p.up and not p.witness and configuration.is_voter(p.id)]

    def _wait(self, until: Callable[[], bool], timeouts: int) -> bool:
        world = self._world
        began = world.now
        came = world.advance(until, timeouts)
        self.waited.append((world.now - began) / world.swarm.timeout)
        return came

    # ------------------------------------------------------------------ load

    def _load(self, pause: int) -> None:
        """Clients write at whoever leads, without waiting for answers, until `_loading` is taken back."""
        self._loading = True
        self._write(pause)

    def _write(self, pause: int) -> None:
        world = self._world
        if not self._loading:
            return
        leader = world.leader()
        if leader is not None:
            client = world.clients[0]
            op = Op(client, world.oracle.acknowledged, 1)
            leader.submit(op, [world.application.serving(2, leader.id)])
        world.later(pause, self._write, pause)

    # ------------------------------------------------------------------ the trials

    def _handover(self) -> None:
        """An operator moves leadership while clients write: whoever is chosen leads soon. (diss. 3.10)"""
        world = self._world
        leader = world.leader()
        others = [p for p in self._voters() if p is not leader]
        if leader is None or not others or leader not in self._voters():
            return
        self.ran = self.kind
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

    def _slow_disks(self) -> None:
        """All disks but the leader's take longer than an election timeout: it goes on leading all the same."""
        world = self._world
        leader = world.leader()
        if leader is None or len(self._voters()) < 2:
            return
        self.ran = self.kind
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
        swarm = world.swarm
        voters = self._voters()
        if len(voters) < 3 or not swarm.pre_vote or not swarm.check_quorum:
            return
        self.ran = self.kind
        hub = voters[world.choices.draw("trial/target", len(voters))]
        ids = sorted(world.processes)
        world.network.cut |= {(a, b) for a in ids for b in ids if hub.id not in (a, b)}
        asked = Persistent(world.clients[0])
        asked.wait_for(hub, world.application.serving(2, hub.id))
        came = self._wait(lambda: asked.left == 0, HUB_TIMEOUTS)
        world.network.cut.clear()
        if not came:
            raise Violation(
                "LIVE", f"no write through {hub.id}, which reaches all others, in {HUB_TIMEOUTS} election timeouts: "
                f"{world.picture()}"
            )  # fmt: skip

    def _elections(self) -> None:
        """Leaders die one after the other; each has a successor soon."""
        world = self._world
        total = 0.0
        bound = ELECTIONS_PRE_VOTE_TIMEOUTS if world.swarm.pre_vote else ELECTIONS_TIMEOUTS
        for _ in range(ELECTIONS):
            leader = world.leader()
            left = {p.id for p in self._voters() if p is not leader} | {p.id for p in world.members() if p.witness}
            if leader is None or not quorum_holds(world.oracle.configuration, left):
                return
            self.ran = self.kind
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
