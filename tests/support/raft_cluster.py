"""A group under a seeded random walk of messages, timers, faults and requests, with every invariant checked after
each step.

PYTHONPATH=src python tests/support/raft_cluster.py --seed 17            replay one seed, printing its last steps
PYTHONPATH=src python tests/support/raft_cluster.py --seeds 0:5000       many seeds; the first failure is printed
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from oarlock.raft import events as ev
from oarlock.raft.types import Configuration, MemberInfo, MemberRole, NodeId
from oarlock.sim.failures import Violation
from oarlock.sim.invariants import Invariants
from oarlock.sim.stage import MILLISECOND, Actor, Packet, Stage

TIMEOUT = 1000 * MILLISECOND
NETWORK_MAX = 300  # messages on their way; beyond it the oldest are lost
MEMBERS_EVER_MAX = 12
EVENTS_DEFAULT = 1500
CONVERGE_ROUNDS_MAX = 80  # rounds of half an election timeout after everything is healed


class Cluster:
    """What the walk and the Hypothesis machine have in common: requests, faults and the end."""

    def __init__(
        self,
        initial: Configuration,
        seed: int | str,
        options: dict[str, Any],
        chunk_bytes: int = 16,
        *,
        incarnations: bool = False,
    ) -> None:
        self.seed = seed
        self.starts = 0
        self.stage = Stage(
            initial,
            rng=self._rng,
            options=options,
            chunk_bytes=chunk_bytes,
            incarnations=incarnations,
            start=False,
        )
        self.invariants = Invariants(self.stage.actors)
        self.stage.observer = self.invariants
        for node in initial.ids:
            self.stage.start(node)
        self.tokens = 0
        self.removed: set[NodeId] = set()

    def _rng(self, node: NodeId) -> random.Random:
        self.starts += 1  # a process that starts again draws other numbers
        return random.Random(f"{self.seed}/{node}/{self.starts}")

    # -- looking

    def up(self) -> list[NodeId]:
        return [n for n, a in self.stage.actors.items() if a.raft is not None]

    def down(self) -> list[NodeId]:
        return [n for n, a in self.stage.actors.items() if a.raft is None and not a.halted]

    def leaders(self) -> list[NodeId]:
        return [n for n, a in self.stage.actors.items() if a.is_leader]

    def token(self) -> int:
        self.tokens += 1
        return self.tokens

    # -- requests

    def propose(self, node: NodeId, count: int = 1, size: int = 0) -> None:
        events = []
        for _ in range(count):
            token = self.token()
            events.append(ev.Proposed(token, b"%d" % token + b"." * size))
        self.stage.submit(node, *events)

    def read(self, node: NodeId) -> None:
        self.stage.submit(node, ev.ReadRequested(self.token()))

    def change(self, node: NodeId, steps: tuple[ev.ConfigChange, ...], *, auto_leave: bool = True) -> None:
        for step in steps:
            new = step.member.id
            if new not in self.stage.actors and step.kind is not ev.ChangeKind.REMOVE:
                self.stage.add(new, initial=Configuration())
        if self.stage.actors[node].up:
            self.stage.submit(node, ev.ConfigChangeRequested(self.token(), steps, auto_leave=auto_leave))

    def snapshot(self, node: NodeId, *, mark: bool = False) -> None:
        actor = self.stage.actors[node]
        # A restore under way will replace the machine; its driver would not capture it meanwhile.
        ready = actor.machine.index and actor.machine.configuration.members and not self.is_witness(actor)
        if ready and not any(isinstance(t, ev.Restore) for t in actor.tasks):
            self.stage.take_snapshot(node, mark=mark)

    @staticmethod
    def is_witness(actor: Actor) -> bool:
        return actor.id in actor.mirror.configuration.witnesses

    def fire(self, node: NodeId) -> bool:
        actor = self.stage.actors[node]
        if actor.raft is None or actor.raft.next_deadline() > actor.clock:
            return False
        self.stage.submit(node, ev.TimePassed())
        return True

    # -- the end

    def converge(self) -> None:
        """Heal everything; then the group must elect a leader, commit, and become alike everywhere."""
        stage = self.stage
        stage.heal()
        for node in self.down():
            stage.start(node)
        for actor in stage.actors.values():
            actor.hold_syncs = actor.hold_applies = False
        proposed = False
        state = ""
        for round_number in range(CONVERGE_ROUNDS_MAX):
            stage.wait(TIMEOUT // 2)
            leader = stage.leader
            if not leader:
                state = "no leader"
                continue
            if not proposed:
                self.propose(leader)
                proposed = True
                continue
            state = self.difference(leader)
            if not state:
                return
            if round_number % 10 == 9:
                proposed = False
        raise Violation("LIVE", f"{CONVERGE_ROUNDS_MAX} rounds after healing: {state}\n{self.picture()}")

    def difference(self, leader: NodeId) -> str:
        """What still differs between the members of the leader's configuration; empty when nothing does."""
        stage = self.stage
        first = stage.actors[leader]
        if first.core.commit_index != first.mirror.last_index:
            return f"leader {leader} has uncommitted entries"
        configuration = first.mirror.configuration
        if configuration.joint and configuration.auto_leave:
            return f"the configuration of leader {leader} is still joint"
        for node in configuration.ids:
            actor = stage.actors.get(node)
            if actor is None or actor.raft is None:
                if actor is None or actor.halted:
                    return f"member {node} of the configuration is gone: {actor.halted if actor else 'never made'}"
                continue
            if (actor.mirror.last_index, actor.core.commit_index) != (first.mirror.last_index, first.core.commit_index):
                return f"member {node} lags behind leader {leader}"
            if actor.core.current_term != first.core.current_term:
                return f"member {node} is in another term than leader {leader}"
            if node not in configuration.witnesses and (actor.machine.index, actor.machine.digest) != (
                first.machine.index,
                first.machine.digest,
            ):
                return f"the machine of member {node} differs from that of leader {leader}"
        return ""

    def picture(self) -> str:
        rows = []
        for node, actor in sorted(self.stage.actors.items()):
            raft = actor.raft
            if raft is None:
                rows.append(f"  {node} down {actor.halted} durable to {actor.disk.durable.last_index}")
            else:
                rows.append(
                    f"  {node} {type(raft.role).__name__} t{raft.current_term} lead {raft.leader_id} "
                    f"log {actor.mirror.first}..{actor.mirror.last_term}.{actor.mirror.last_index} "
                    f"snap {actor.mirror.snapshot.term}.{actor.mirror.snapshot.index} commit {raft.commit_index} "
                    f"applied {raft.last_applied} machine {actor.machine.index} pending {len(actor.disk.pending)} "
                    f"tasks {len(actor.tasks)} voters {sorted(actor.mirror.configuration.voters)} "
                    f"outgoing {sorted(actor.mirror.configuration.outgoing)} ids {actor.mirror.configuration.ids}"
                )
        return "\n".join(rows)


class Walk(Cluster):
    """One seed: a group, a set of faults that are on, and a walk among them (swarm testing)."""

    def __init__(self, seed: int) -> None:
        rng = self.rng = random.Random(seed)
        voters = rng.choices([1, 2, 3, 4, 5, 6, 7], [5, 5, 45, 15, 25, 3, 2])[0]
        infos = [MemberInfo(id=n, priority=rng.choice([1, 1, 1, 2, 5])) for n in range(1, voters + 1)]
        if voters >= 3 and rng.random() < 0.15:
            witness = rng.randrange(voters)
            infos[witness] = MemberInfo(id=witness + 1, role=MemberRole.WITNESS)
        if rng.random() < 0.2:
            infos.append(MemberInfo(id=voters + 1, role=MemberRole.LEARNER))
        lease = rng.random() < 0.25
        options: dict[str, Any] = {
            "pre_vote": rng.random() < 0.7,
            "check_quorum": lease or rng.random() < 0.7,
            "lease_reads": lease,
            "tail_entries_max": rng.choice([0, 0, 1, 5, 50]),
            "apply_bytes_max": rng.choice([1, 64, 1 << 20]),
            "inflight_messages_max": rng.choice([1, 2, 8, 256]),
            # drawn apart, so that the seeds in raft_regressions.txt keep their meaning
            "inflight_bytes_max": random.Random(f"{seed}/bytes").choice([1, 60, 1 << 24]),
            "message_bytes_max": rng.choice([16, 64, 1 << 20]),
        }
        chunk_bytes, incarnations = rng.choice([16, 16, 48, 64]), rng.random() < 0.3
        super().__init__(Configuration.of(*infos), seed, options, chunk_bytes, incarnations=incarnations)
        self.trace: deque[str] = deque(maxlen=60)
        self.ghosts: list[Packet] = []
        on = lambda p: rng.random() < p  # noqa: E731
        rate = lambda low, high: rng.uniform(low, high)  # noqa: E731
        weights: dict[Callable[[], str], float] = {
            self.do_deliver: 100,
            self.do_complete: rate(40, 120),
            self.do_time: rate(3, 12),
            self.do_propose: rate(3, 15),
        }
        optional: list[tuple[Callable[[], str], float, float, float]] = [
            (self.do_drop, 0.5, 1, 20),
            (self.do_duplicate, 0.5, 1, 10),
            (self.do_keep_ghost, 0.4, 0.5, 3),
            (self.do_ghost, 0.4, 0.5, 3),
            (self.do_crash, 0.6, 0.2, 2),
            (self.do_partition, 0.6, 0.3, 2),
            (self.do_cut_one_way, 0.3, 0.2, 1),
            (self.do_read, 0.6, 1, 8),
            (self.do_change, 0.5, 0.5, 3),
            (self.do_transfer, 0.4, 0.3, 2),
            (self.do_snapshot, 0.6, 0.5, 5),
            (self.do_peer_down, 0.2, 0.2, 1),
            (self.do_elect, 0.5, 0.3, 3),
            (self.do_batch, 0.5, 5, 40),
            (self.do_sick, 0.1, 0.1, 0.5),
        ]
        for action, chance, low, high in optional:
            if on(chance):
                weights[action] = rate(low, high)
        if self.do_crash in weights:
            weights[self.do_restart] = weights[self.do_crash] * rate(1, 6)
        if self.do_partition in weights or self.do_cut_one_way in weights:
            weights[self.do_heal] = rate(0.5, 3)
        if self.do_drop in weights and on(0.3):
            weights[self.do_drop_all] = rate(0.1, 1)
        self.actions = list(weights)
        self.weights = list(weights.values())
        self.marks = on(0.3)
        self.fifo = on(0.3)

    def run(self, events: int = EVENTS_DEFAULT) -> None:
        """Walk, then heal and converge. A failure is raised with the seed, the last steps and the command that
        replays it."""
        try:
            for number, action in enumerate(self.rng.choices(self.actions, self.weights, k=events)):
                said = action()
                if said:
                    self.trace.append(f"{number:5} {said}")
            self.trace.append("converge")
            self.converge()
        except Exception as error:
            command = f"PYTHONPATH=src python tests/support/raft_cluster.py --seed {self.seed} --events {events}"
            note = f"seed {self.seed}: {command}"
            error.add_note("\n".join([note, "last steps:", *self.trace, self.picture()]))
            raise

    # -- actions; each says what it did, or nothing if it could not

    def _pick(self, nodes: list[NodeId]) -> NodeId:
        return self.rng.choice(nodes) if nodes else 0

    def do_deliver(self) -> str:
        network = self.stage.network
        while len(network) > NETWORK_MAX:
            network.popleft()
        if not network:
            return self.do_complete()
        packet = self._take_packet()
        self.stage.deliver(packet)
        return f"deliver {packet.sender}->{packet.to} {packet.message}"

    def _take_packet(self) -> Packet:
        network = self.stage.network
        at = 0 if self.fifo or self.rng.random() < 0.5 else self.rng.randrange(len(network))
        packet = network[at]
        del network[at]
        return packet

    def do_batch(self) -> str:
        """Several messages and completions in one turn."""
        network = self.stage.network
        if not network:
            return ""
        to = network[0].to
        mine = [p for p in network if p.to == to][: self.rng.randrange(1, 6)]
        for packet in mine:
            network.remove(packet)
        actor = self.stage.actors.get(to)
        if actor is None or actor.raft is None:
            return ""
        events: list[ev.Event] = [ev.MessageReceived(p.sender, p.message) for p in mine]
        if actor.is_leader and self.rng.random() < 0.5:
            token = self.token()
            events.insert(self.rng.randrange(len(events) + 1), ev.Proposed(token, b"%d" % token))
        if self.rng.random() < 0.2:
            events.insert(self.rng.randrange(len(events) + 1), ev.ReadRequested(self.token()))
        self.stage.submit(to, *events)
        return f"batch to {to}: {events}"

    def do_complete(self) -> str:
        node = self._pick(self.up())
        if not node:
            return ""
        actor = self.stage.actors[node]
        choices = []
        if actor.disk.pending:
            choices.append("sync")
        if actor.tasks:
            choices.append("task")
        if actor.chunks:
            choices.append("chunk")
        if not choices:
            return ""
        what = self.rng.choice(choices)
        if what == "sync":
            self.stage.sync(node, self.rng.choice([1, 2, 100]))
        elif what == "task":
            self.stage.run_task(node)
        else:
            self.stage.write_chunk(node)
        return f"{what} at {node}"

    def do_time(self) -> str:
        timer = self.stage.next_timer()
        delta = self.rng.randrange(1, 120 * MILLISECOND)
        if timer is not None and self.rng.random() < 0.5:
            delta = min(timer[0], TIMEOUT)
        self.stage.advance(delta)
        awake = [node for node in self.up() if self.rng.random() < 0.9]
        fired = [node for node in awake if self.stage.actors[node].up and self.fire(node)]
        return f"time {delta / MILLISECOND:.1f}ms fired {fired}"

    def do_elect(self) -> str:
        """One member's clock-driven election without waiting for the others."""
        node = self._pick([n for n in self.up() if n not in self.leaders()])
        if not node:
            return ""
        delta = self.rng.randrange(TIMEOUT // 2, 2 * TIMEOUT)
        self.stage.advance(delta)
        self.fire(node)
        return f"time {delta / MILLISECOND:.1f}ms fired [{node}] only"

    def do_propose(self) -> str:
        node = self._pick(self.leaders() or self.up())
        if not node:
            return ""
        self.propose(node, self.rng.choice([1, 1, 1, 3]), self.rng.choice([0, 0, 10, 40]))
        return f"propose {node}"

    def do_read(self) -> str:
        node = self._pick(self.up())
        if not node:
            return ""
        self.read(node)
        return f"read {node}"

    def do_drop(self) -> str:
        if not self.stage.network:
            return ""
        packet = self._take_packet()
        return f"drop {packet.sender}->{packet.to} {packet.message}"

    def do_drop_all(self) -> str:
        self.stage.network.clear()
        return "drop everything"

    def do_duplicate(self) -> str:
        network = self.stage.network
        if not network:
            return ""
        packet = network[self.rng.randrange(len(network))]
        network.append(packet)
        return f"duplicate {packet.sender}->{packet.to} {packet.message}"

    def do_keep_ghost(self) -> str:
        network = self.stage.network
        if network and len(self.ghosts) < 40:
            self.ghosts.append(network[self.rng.randrange(len(network))])
        return ""

    def do_ghost(self) -> str:
        if not self.ghosts:
            return ""
        packet = self.ghosts.pop(self.rng.randrange(len(self.ghosts)))
        self.stage.deliver(packet)
        return f"ghost {packet.sender}->{packet.to} {packet.message}"

    def do_crash(self) -> str:
        node = self._pick(self.up())
        if not node:
            return ""
        pending = len(self.stage.actors[node].disk.pending)
        keep = self.rng.randrange(pending + 1)
        self.stage.crash(node, keep=keep)
        return f"crash {node} keeping {keep} of {pending} pending operations"

    def do_restart(self) -> str:
        node = self._pick(self.down())
        if not node:
            return ""
        self.stage.start(node)
        return f"restart {node}"

    def do_partition(self) -> str:
        nodes = list(self.stage.actors)
        leaders = self.leaders()
        if leaders and self.rng.random() < 0.4:
            side = [self.rng.choice(leaders)]
        else:
            side = self.rng.sample(nodes, self.rng.randrange(1, len(nodes) + 1))
        self.stage.partition(side)
        return f"partition {sorted(side)}"

    def do_cut_one_way(self) -> str:
        if len(self.stage.actors) < 2:
            return ""
        a, b = self.rng.sample(list(self.stage.actors), 2)
        self.stage.cut_link(a, b)
        return f"cut {a}->{b}"

    def do_heal(self) -> str:
        if not self.stage.cut:
            return ""
        self.stage.heal()
        return "heal"

    def do_change(self) -> str:
        node = self._pick(self.leaders() or self.up())
        if not node:
            return ""
        known = list(self.stage.actors[node].mirror.configuration.ids)
        steps = []
        for _ in range(self.rng.choice([1, 1, 2, 3])):
            kind = self.rng.choice(list(ev.ChangeKind))
            fresh = max(self.stage.actors) + 1 + len(steps)
            if kind in (ev.ChangeKind.ADD_LEARNER, ev.ChangeKind.ADD_VOTER, ev.ChangeKind.ADD_WITNESS):
                if self.rng.random() < 0.6 and fresh <= MEMBERS_EVER_MAX:
                    target = fresh
                else:
                    target = self._pick(known)
            else:
                target = self._pick(known)
            if target:
                steps.append(
                    ev.ConfigChange(
                        kind,
                        MemberInfo(
                            id=target, priority=self.rng.choice([1, 1, 3]), promote_when_ready=self.rng.random() < 0.3
                        ),
                    )
                )
        if self.rng.random() < 0.1:
            steps = []
        self.change(node, tuple(steps), auto_leave=self.rng.random() < 0.8)
        return f"change {node} {[(s.kind.value, s.member.id) for s in steps]}"

    def do_transfer(self) -> str:
        node = self._pick(self.leaders() or self.up())
        if not node:
            return ""
        target = self.rng.choice([0, *self.stage.actors])
        self.stage.submit(node, ev.TransferRequested(self.token(), target))
        return f"transfer {node} to {target}"

    def do_snapshot(self) -> str:
        node = self._pick(self.up())
        if not node:
            return ""
        self.snapshot(node, mark=self.marks and self.rng.random() < 0.5)
        return f"snapshot {node}"

    def do_peer_down(self) -> str:
        if len(self.stage.actors) < 2:
            return ""
        a, b = self.rng.sample(list(self.stage.actors), 2)
        if not self.stage.actors[a].up:
            return ""
        self.stage.submit(a, ev.PeerDown(b))
        return f"{a} hears that {b} is down"

    def do_sick(self) -> str:
        node = self._pick(self.up())
        if not node:
            return ""
        sick = self.rng.random() < 0.3
        self.stage.submit(node, ev.DiskHealth(sick))
        return f"disk of {node} {'sick' if sick else 'well'}"


def main() -> int:
    parser = argparse.ArgumentParser(description="random walks over the consensus core")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--seeds", default="0:200", help="first:last")
    parser.add_argument("--events", type=int, default=EVENTS_DEFAULT)
    parser.add_argument("--keep-going", action="store_true")
    parser.add_argument("--seconds", type=float, default=0, help="stop after so many seconds")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        Walk(arguments.seed).run(arguments.events)
        return 0
    first, last = (int(part) for part in arguments.seeds.split(":"))
    begun = time.monotonic()
    failures: dict[str, list[int]] = {}
    elections = commits = reads = done = 0
    for seed in range(first, last):
        if arguments.seconds and time.monotonic() - begun > arguments.seconds:
            break
        walk = Walk(seed)
        try:
            walk.run(arguments.events)
        except Exception as error:
            if not arguments.keep_going:
                raise
            failures.setdefault(re.sub(r"\d+", "#", f"{type(error).__name__}: {str(error)[:110]}"), []).append(seed)
        done += 1
        elections += walk.invariants.elections
        commits += walk.invariants.commit_max
        reads += walk.invariants.reads_ready
    took = time.monotonic() - begun
    print(f"{done} seeds in {took:.1f} s: {elections} elections, {commits} entries committed, {reads} reads answered")
    for what, seeds in sorted(failures.items(), key=lambda item: -len(item[1])):
        print(f"{len(seeds):5} seeds, such as {seeds[:6]}: {what}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
