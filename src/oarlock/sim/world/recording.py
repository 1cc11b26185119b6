"""Everything that happened in a run, as values to draw and to translate: who sent what when, and where it arrived.

The trace is text for people; a `Recording` is for programs (`oarlock.lab.diagram`, `oarlock.sim.retell`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from oarlock.raft import events as raft
from oarlock.raft.messages import Message
from oarlock.raft.types import Index, NodeId, Term

if TYPE_CHECKING:
    from oarlock.sim.world.process import Process
    from oarlock.sim.world.world import World


@dataclass(slots=True)
class Sent:
    """A message left a member. `fate` is empty while it may arrive, else `cut` or `lost`."""

    at: int
    sender: NodeId
    to: NodeId
    message: Message
    fate: str = ""


@dataclass(slots=True)
class State:
    """Where a member stands."""

    role: str = "down"
    term: Term = 0
    commit: Index = 0
    last: Index = 0


@dataclass(slots=True)
class Turn:
    """A member handled what had arrived. `arrived` are the messages among `events`, with how often each had come."""

    at: int
    node: NodeId
    events: list[Any]
    arrived: list[Sent]
    effects: list[Any] = field(default_factory=list)
    before: State = field(default_factory=State)
    after: State = field(default_factory=State)
    finished: bool = False  # the run ended in the middle of it otherwise


@dataclass(slots=True)
class Note:
    """Something happened to a member from outside (it is killed, it starts, ...)."""

    at: int
    node: NodeId
    what: str


@dataclass(slots=True)
class Links:
    """Links between members were cut, or mended; the whole set that is cut now."""

    at: int
    cut: frozenset[tuple[NodeId, NodeId]]
    members: tuple[NodeId, ...]


Moment = Sent | Turn | Note | Links


class Recording:
    """Told of everything by the world."""

    def __init__(self) -> None:
        self.moments: list[Moment] = []
        self.members: list[NodeId] = []
        self._states: dict[NodeId, State] = {}
        self._waiting: dict[NodeId, deque[Sent]] = {}

    def sent(self, at: int, sender: NodeId, to: NodeId, message: Message) -> Sent:
        found = Sent(at, sender, to, message)
        self.moments.append(found)
        return found

    def arrived(self, sent: Sent) -> None:
        """A message is in a member's inbox: its next turn takes it."""
        self._waiting.setdefault(sent.to, deque()).append(sent)

    def begins(self, world: World, process: Process, events: list[Any]) -> None:
        self._known(process.id)
        waiting = self._waiting.get(process.id, deque())
        arrived = []
        for event in events:
            if isinstance(event, raft.MessageReceived):
                while waiting:
                    sent = waiting.popleft()
                    if sent.message is event.message:
                        arrived.append(sent)
                        break
        before = self._states.get(process.id, State())
        self.moments.append(Turn(world.now, process.id, events, arrived, before=before, after=before))

    def ended(self, process: Process, effects: list[Any]) -> None:
        core = process.core
        turn = next(m for m in reversed(self.moments) if isinstance(m, Turn) and m.node == process.id)
        turn.effects = effects
        turn.finished = True
        role = type(core.role).__name__.lower()
        turn.after = State(role, core.current_term, core.commit_index, core.log.last_index)
        self._states[process.id] = turn.after

    def note(self, at: int, process: Process, what: str) -> None:
        self._known(process.id)
        if process.member is None or "starts" in what:
            self._waiting.pop(process.id, None)
            self._states.pop(process.id, None)
        self.moments.append(Note(at, process.id, what))

    def links(self, at: int, cut: set[tuple[NodeId, NodeId]], members: list[NodeId]) -> None:
        self.moments.append(Links(at, frozenset(cut), tuple(members)))

    def _known(self, node: NodeId) -> None:
        if node not in self.members:
            self.members.append(node)
            self.members.sort()
