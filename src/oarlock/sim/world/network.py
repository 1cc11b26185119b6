"""The network between members: delays, losses, repetitions, ghosts, cuts and clogs."""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING, Final

from oarlock.raft import events as raft
from oarlock.raft.messages import AppendEntries, Message, TimeoutNow, TransferLeadership
from oarlock.raft.types import NodeId
from oarlock.sim.world.choices import MILLION
from oarlock.sim.world.recording import Sent
from oarlock.sim.world.versions import ENCODED_MASK, carried

if TYPE_CHECKING:
    from oarlock.sim.world.process import Process
    from oarlock.sim.world.world import World

STEPS: Final = 64
# The quantiles of an exponential distribution of mean 1024; the first is 0.
EXPONENTIAL: Final = tuple(round(-1024 * log(1 - step / STEPS)) for step in range(STEPS))


class Network:
    """Every message is a choice: how late, whether at all, how often."""

    def __init__(self, world: World) -> None:
        self._world = world
        swarm = world.swarm
        self._delay = world.choices.stream("net/delay")
        self._fate = world.choices.stream("net/fate")
        self._minimum = swarm.latency_min
        self._mean = swarm.latency_mean
        self._unruly = bool(swarm.loss or swarm.duplicate or swarm.ghost)
        self._jitter = "jitter" in swarm.classes
        self._stream = swarm.stream
        self._last: dict[tuple[NodeId, NodeId], int] = {}
        self._epochs: dict[tuple[NodeId, NodeId], int] = {}
        self.cut: set[tuple[NodeId, NodeId]] = set()
        self.clogged: dict[tuple[NodeId, NodeId], int] = {}
        self.sent = self.dropped = self.encoded = 0

    def send(self, sender: Process, to: NodeId, message: Message) -> None:
        world = self._world
        world.oracle.sent(sender, to, message)
        self.sent += 1
        link = (sender.id, to)
        recorded = None
        if world.recording is not None:
            recorded = world.recording.sent(world.now, sender.id, to, message)
        if self.cut and link in self.cut:
            self.dropped += 1
            if recorded is not None:
                recorded.fate = "cut"
            return
        other = world.processes.get(to)
        if sender.release or (other is not None and other.release) or not self.sent & ENCODED_MASK:
            self.encoded += 1
            carrying = carried(sender, other, message)
            if carrying is None:
                self.dropped += 1
                if recorded is not None:
                    recorded.fate = "unknown"
                return
            message = carrying
        ghost = 0
        copies = 1
        if self._unruly and not world.healed:
            swarm = world.swarm
            # One choice for all of it; the lowest numbers are the quiet ones.
            fate = MILLION - 1 - self._fate.draw(MILLION)
            if fate < swarm.loss:
                self.dropped += 1
                if recorded is not None:
                    recorded.fate = "lost"
                return
            fate -= swarm.loss
            if fate < swarm.duplicate // 2:
                copies = 2
            elif fate < swarm.duplicate // 2 + swarm.ghost or (
                swarm.ghost
                and type(message) is AppendEntries
                and not message.prev_log_index
                and world.choices.draw("net/first entries", 4) == 3
            ):  # the first entries of a log make the most harmful ghosts
                ghost = self._mean * world.choices.stream("net/ghost").scaled(10, 1000)
                copies = 1 + world.choices.draw("net/ghost", 2)
        for copy in range(copies):
            delay = self._minimum + (self._mean * EXPONENTIAL[self._delay.draw(STEPS)] >> (10 if self._jitter else 13))
            when = world.now + delay
            if ghost and copy == copies - 1:
                when += ghost
            elif self._stream:
                when = max(when, self._last.get(link, 0) + 1)
                self._last[link] = when
            if self.clogged and link in self.clogged:
                when = max(when, self.clogged[link])
            epoch = -1 if ghost else self._epochs.get(link, 0)
            world.at(when, self._arrive, (sender.id, to, sender.incarnation, epoch, message, recorded))

    def reset(self, one: NodeId, other: NodeId) -> None:
        """The connection breaks: what is under way in either direction is lost; a new one is made at once."""
        for link in ((one, other), (other, one)):
            self._epochs[link] = self._epochs.get(link, 0) + 1
            process = self._world.processes.get(link[0])
            if process is not None and process.up:
                process.known.pop(link[1], None)

    def connected(self, one: NodeId, other: NodeId) -> None:
        """A new connection between the two: both are told, whatever either has to say."""
        for node, peer in ((one, other), (other, one)):
            process, far = self._world.processes.get(node), self._world.processes.get(peer)
            if process is None or far is None or not process.up or not far.up:
                continue
            if self._world.swarm.incarnations:
                process.known[peer] = far.incarnation
            process.give(raft.PeerConnected(peer, far.incarnation if self._world.swarm.incarnations else 0))

    def _arrive(self, packet: tuple[NodeId, NodeId, int, int, Message, Sent | None]) -> None:
        sender, to, incarnation, epoch, message, recorded = packet
        world = self._world
        process = world.processes.get(to)
        if process is None or process.member is None:
            return
        if epoch < 0 and world.healed and isinstance(message, TransferLeadership | TimeoutNow):
            return  # the ghost of an operator's word: nobody may wonder at what follows from it
        if epoch >= 0 and self._epochs and epoch != self._epochs.get((sender, to), 0):
            self.dropped += 1
            return
        if world.swarm.incarnations:
            # A connection begins with a handshake that names the sender's disk.
            known = process.known.get(sender)
            if known != incarnation:
                if known is not None and world.processes[sender].incarnation != incarnation:
                    return  # of a disk that was replaced: its connection is gone
                process.known[sender] = incarnation
                process.give(raft.PeerConnected(sender, incarnation))
        if recorded is not None and world.recording is not None:
            world.recording.arrived(recorded)
        process.give(raft.MessageReceived(sender, message))

    def heal(self) -> None:
        self._jitter = False
        self._last.clear()
        self.cut.clear()
        self.clogged.clear()
