"""A Hypothesis state machine over one to five members: Hypothesis chooses every delivery, fault and request, the
invariants
of `oarlock.sim.invariants` are checked after each, and at the end the healed group must converge. Failures are shrunk.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from raft_cluster import MEMBERS_EVER_MAX, TIMEOUT, Cluster

from oarlock.raft import events as ev
from oarlock.raft.types import Configuration, MemberInfo, MemberRole
from oarlock.sim.stage import MILLISECOND, Packet


class RaftMachine(RuleBasedStateMachine):
    """See the module."""

    cluster: Cluster

    @initialize(
        voters=st.integers(1, 5),
        learner=st.booleans(),
        witness=st.booleans(),
        pre_vote=st.booleans(),
        check_quorum=st.booleans(),
        lease=st.booleans(),
        tail=st.sampled_from([0, 2, 100]),
        window=st.sampled_from([1, 2, 100]),
        seed=st.integers(0, 2**16),
    )
    def begin(
        self,
        voters: int,
        learner: bool,
        witness: bool,
        pre_vote: bool,
        check_quorum: bool,
        lease: bool,
        tail: int,
        window: int,
        seed: int,
    ) -> None:
        infos = [MemberInfo(id=i) for i in range(1, voters + 1)]
        if witness and voters >= 3:
            infos[-1] = MemberInfo(id=voters, role=MemberRole.WITNESS)
        if learner:
            infos.append(MemberInfo(id=voters + 1, role=MemberRole.LEARNER))
        options = {
            "pre_vote": pre_vote,
            "check_quorum": check_quorum or lease,
            "lease_reads": lease,
            "tail_entries_max": tail,
            "inflight_messages_max": window,
        }
        self.cluster = Cluster(Configuration.of(*infos), seed, options)
        self.ghosts: list[Packet] = []

    def some(self, data: st.DataObject, nodes: list[int]) -> int:
        return data.draw(st.sampled_from(sorted(nodes))) if nodes else 0

    # -- messages and completions

    @precondition(lambda self: self.cluster.stage.network)
    @rule(data=st.data(), count=st.integers(1, 6))
    def deliver_first(self, data: st.DataObject, count: int) -> None:
        for _ in range(min(count, len(self.cluster.stage.network))):
            self.cluster.stage.deliver(self.cluster.stage.network.popleft())

    @precondition(lambda self: self.cluster.stage.network)
    @rule(data=st.data(), keep=st.booleans())
    def deliver_any(self, data: st.DataObject, keep: bool) -> None:
        """Out of order; with `keep` it stays on its way and arrives again."""
        network = self.cluster.stage.network
        at = data.draw(st.integers(0, len(network) - 1))
        packet = network[at]
        if keep:
            self.ghosts.append(packet)
        else:
            del network[at]
        self.cluster.stage.deliver(packet)

    @precondition(lambda self: self.ghosts)
    @rule(data=st.data())
    def deliver_ghost(self, data: st.DataObject) -> None:
        self.cluster.stage.deliver(self.ghosts[data.draw(st.integers(0, len(self.ghosts) - 1))])

    @precondition(lambda self: self.cluster.stage.network)
    @rule(data=st.data(), count=st.integers(1, 5))
    def lose(self, data: st.DataObject, count: int) -> None:
        network = self.cluster.stage.network
        for _ in range(min(count, len(network))):
            del network[data.draw(st.integers(0, len(network) - 1))]

    @rule(data=st.data(), count=st.integers(1, 3))
    def complete(self, data: st.DataObject, count: int) -> None:
        node = self.some(data, self.cluster.up())
        if node:
            self.cluster.stage.sync(node, count)
        if node and self.cluster.stage.actors[node].up:
            self.cluster.stage.run_task(node)
        if node and self.cluster.stage.actors[node].up:
            self.cluster.stage.write_chunk(node)

    @rule()
    def everything_settles(self) -> None:
        self.cluster.stage.settle()

    # -- time

    @rule(data=st.data(), step=st.integers(1, 2000))
    def time_passes(self, data: st.DataObject, step: int) -> None:
        self.cluster.stage.advance(step * MILLISECOND)
        for node in self.cluster.up():
            if self.cluster.stage.actors[node].up:
                self.cluster.fire(node)

    @rule(data=st.data())
    def one_times_out(self, data: st.DataObject) -> None:
        node = self.some(data, [n for n in self.cluster.up() if n not in self.cluster.leaders()])
        if node:
            actor = self.cluster.stage.actors[node]
            self.cluster.stage.advance(min(max(actor.core.next_deadline() - actor.clock, 0), 4 * TIMEOUT))
            self.cluster.fire(node)

    # -- faults

    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        node = self.some(data, self.cluster.up())
        if node:
            pending = len(self.cluster.stage.actors[node].disk.pending)
            self.cluster.stage.crash(node, keep=data.draw(st.integers(0, pending)))

    @rule(data=st.data())
    def restart(self, data: st.DataObject) -> None:
        node = self.some(data, self.cluster.down())
        if node:
            self.cluster.stage.start(node)

    @rule(data=st.data())
    def partition(self, data: st.DataObject) -> None:
        side = data.draw(st.frozensets(st.sampled_from(sorted(self.cluster.stage.actors)), min_size=1))
        self.cluster.stage.partition(side)

    @precondition(lambda self: self.cluster.stage.cut)
    @rule()
    def heal(self) -> None:
        self.cluster.stage.heal()

    # -- requests

    @rule(data=st.data(), count=st.integers(1, 3))
    def propose(self, data: st.DataObject, count: int) -> None:
        node = self.some(data, self.cluster.leaders() or self.cluster.up())
        if node:
            self.cluster.propose(node, count)

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        node = self.some(data, self.cluster.up())
        if node:
            self.cluster.read(node)

    @rule(data=st.data(), auto_leave=st.booleans(), kinds=st.lists(st.sampled_from(ev.ChangeKind), max_size=3))
    def change(self, data: st.DataObject, auto_leave: bool, kinds: list[ev.ChangeKind]) -> None:
        node = self.some(data, self.cluster.leaders())
        if not node:
            return
        known = sorted(self.cluster.stage.actors)
        choice = [*known, min(known[-1] + 1, MEMBERS_EVER_MAX)]
        steps = tuple(ev.ConfigChange(kind, MemberInfo(id=data.draw(st.sampled_from(choice)))) for kind in kinds)
        self.cluster.change(node, steps, auto_leave=auto_leave)

    @rule(data=st.data())
    def transfer(self, data: st.DataObject) -> None:
        node = self.some(data, self.cluster.leaders())
        if node:
            target = data.draw(st.sampled_from([0, *sorted(self.cluster.stage.actors)]))
            self.cluster.stage.submit(node, ev.TransferRequested(self.cluster.token(), target))

    @rule(data=st.data(), mark=st.booleans())
    def snapshot(self, data: st.DataObject, mark: bool) -> None:
        node = self.some(data, self.cluster.up())
        if node:
            self.cluster.snapshot(node, mark=mark)

    @rule(data=st.data())
    def peer_down(self, data: st.DataObject) -> None:
        node = self.some(data, self.cluster.up())
        if node:
            self.cluster.stage.submit(node, ev.PeerDown(self.some(data, list(self.cluster.stage.actors))))

    def teardown(self) -> None:
        if hasattr(self, "cluster"):
            self.cluster.converge()


RaftMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
TestRaftMachine = RaftMachine.TestCase
