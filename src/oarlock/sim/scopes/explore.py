"""Every state that a small group can reach, breadth first, with the invariants checked at every step.

A state is: each member's `Local`, the messages under way (a multiset), what is left of each budget, and what an
observer remembers (who led which term, what is committed, which reads wait). Each action of each member, each
delivery of each message, once and, while there is a budget for it, twice, leads to a next state; equal states are
visited once. So the messages arrive in every order, late, repeated or, because no state has to deliver anything,
never. A crash may come in every state, with every first part of the waiting writes on the disk; because messages may
stay away, that covers a crash between any two effects.

Four reductions, none of which can hide a violation:

- an action that changes no member and sends nothing is left out: what it leads to has a message less, so everything
  that can follow can follow without it;
- members that nothing has happened to yet are alike (`alike`): only the first of them is the next to be touched;
- an answer of a term below the one that its receiver holds durably is taken away: it will never be heard, whatever
  comes (`test_scopes` delivers each of them all the same, in every state, and sees that nothing happens);
- an action that no budget bounds and that would only lead beyond `terms_max` is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

from oarlock.raft import events as ev
from oarlock.raft.messages import AppendEntries, Heartbeat, InstallSnapshot, Message, ReadIndex, RequestVote
from oarlock.raft.types import NodeId
from oarlock.sim.invariants import Violation
from oarlock.sim.notation import message_text
from oarlock.sim.scopes.checks import Checker, History
from oarlock.sim.scopes.member import Action, Members, Step

Code: TypeAlias = tuple[int, ...]
"""A state in numbers: the locals, the history, the budgets, then the packets in ascending order."""

ANSWERED: Final = (RequestVote, AppendEntries, Heartbeat, InstallSnapshot, ReadIndex)  # however late they come
FOREVER: Final = 1 << 62


class Budgets(NamedTuple):
    """How often each thing may still happen, in the whole group."""

    elections: int = 0
    wakes: int = 0
    crashes: int = 0
    repeats: int = 0  # deliveries after which the message is still under way
    proposals: int = 0
    reads: int = 0
    snapshots: int = 0
    changes: int = 0
    transfers: int = 0

    def text(self) -> str:
        return ", ".join(f"{value} {name}" for name, value in zip(self._fields, self, strict=True) if value)


@dataclass(slots=True)
class Report:
    """What an exploration reached. `exhausted`: there is no other state within the bounds."""

    states: int = 0
    transitions: int = 0
    depth: int = 0
    exhausted: bool = False
    steps: int = 0  # of single members, computed
    violation: str = ""
    invariant: str = ""
    trace: list[str] = field(default_factory=list)
    leaders: int = 0  # the most leaders of one history
    committed: int = 0  # the longest committed log of one history
    messages: tuple[str, ...] = ()  # the kinds that were sent


class Model:
    """A group within its bounds.

    `prelude` is a list of (member, action) or deliveries ("deliver", sender, to, name of the message) run before the
    search begins; messages that are left over from it can be dropped (`quiet`).
    """

    def __init__(
        self,
        members: Members,
        nodes: Sequence[NodeId],
        budgets: Budgets,
        *,
        terms_max: int,
        alike: bool,
        changes: Sequence[Any] = (),
        targets: Sequence[NodeId] = (),
        readers: Sequence[NodeId] = (),
        last_index_max: int = 0,
    ) -> None:
        self.members = members
        self.nodes = tuple(nodes)
        self.places = {node: at for at, node in enumerate(nodes)}
        self.terms_max = terms_max
        self.alike = alike
        self.changes = tuple(changes)
        self.targets = tuple(targets)
        self.readers = tuple(readers) or self.nodes
        self.last_index_max = last_index_max
        self.checker = Checker(self.nodes, members)
        self._packets: dict[tuple[NodeId, NodeId, Message], int] = {}
        self.packets: list[tuple[NodeId, NodeId, Message]] = []
        self.mortal: list[
            tuple[int, int]
        ] = []  # of each packet: its receiver's place, and the durable term that ends it
        self._budgets: dict[Budgets, int] = {}
        self.budgets: list[Budgets] = []
        self._histories: dict[History, int] = {}
        self.histories: list[History] = []
        self.width = len(self.nodes) + 2
        first = tuple(members.start(node) for node in self.nodes)
        self.first: Code = (*first, self._history(History()), self._budget(budgets))
        self.full = budgets

    def _packet(self, packet: tuple[NodeId, NodeId, Message]) -> int:
        found = self._packets.get(packet)
        if found is None:
            found = self._packets[packet] = len(self.packets)
            self.packets.append(packet)
            _, to, message = packet
            ends = FOREVER if isinstance(message, ANSWERED) else message.term
            self.mortal.append((self.places[to], ends))
        return found

    def _budget(self, budgets: Budgets) -> int:
        found = self._budgets.get(budgets)
        if found is None:
            found = self._budgets[budgets] = len(self.budgets)
            self.budgets.append(budgets)
        return found

    def _history(self, history: History) -> int:
        found = self._histories.get(history)
        if found is None:
            found = self._histories[history] = len(self.histories)
            self.histories.append(history)
        return found

    # ------------------------------------------------------------------ one step

    def apply(self, code: Code, node: NodeId, action: Action, spend: str, packet: int, *, keep: bool) -> Code | None:
        """The state after an action of one member; None if it leads nowhere new. Raises `Violation`.

        `packet` is delivered by it (-1: none) and stays under way if `keep`.
        """
        place = self.places[node]
        found = self.members.step(node, code[place], action)
        if found is None:
            return None
        number, step = found
        size = len(self.nodes)
        history = code[size]
        if step.notes or number != code[place] or action.kind == "read":
            history = self._noted(code, place, action, step)
        budget = code[size + 1]
        if spend:
            left = self.budgets[budget]
            budget = self._budget(left._replace(**{spend: getattr(left, spend) - 1}))
        packets = list(code[self.width :])
        if packet >= 0 and not keep:
            packets.remove(packet)
        if step.sends:
            places = self.places
            packets += [self._packet((node, to, message)) for to, message in step.sends if to in places]
            packets.sort()
        if packets and (step.sends or number != code[place]):
            mortal = self.mortal
            locals_ = self.members.locals
            terms = [locals_[local].disk.hard_state.term for local in code[:size]]
            terms[place] = step.local.disk.hard_state.term
            packets = [p for p in packets if terms[mortal[p][0]] <= mortal[p][1]]
        return (*code[:place], number, *code[place + 1 : size], history, budget, *packets)

    def _noted(self, code: Code, place: int, action: Action, step: Step) -> int:
        size = len(self.nodes)
        locals_ = self.members.locals
        before = [locals_[number] for number in code[:size]]
        history = self.histories[code[size]]
        return self._history(self.checker.check(history, before, place, action, step))

    # ------------------------------------------------------------------ what may happen

    def actions(self, code: Code, touched: int) -> Iterator[tuple[NodeId, Action, str, int, bool]]:
        """(member, action, budget that it takes from, packet, whether the packet stays) of everything possible."""
        size = len(self.nodes)
        locals_ = self.members.locals
        left = self.budgets[code[size + 1]]
        full = self.full
        fresh = -1  # the one of the untouched members that may be touched now
        if self.alike:
            fresh = next((at for at in range(size) if not touched >> at & 1), -1)
        allowed = [not self.alike or bool(touched >> at & 1) or at == fresh for at in range(size)]
        for at in range(size):
            if not allowed[at]:
                continue
            node = self.nodes[at]
            local = locals_[code[at]]
            if local.halted:
                continue
            view = local.view
            if local.disk.waiting:
                yield node, Action("sync"), "", -1, False
            for job in local.jobs:
                yield node, Action("job", job), "", -1, False
            if left.elections and not view.leads and view.term < self.terms_max:
                yield node, Action("elect"), "elections", -1, False
            if left.wakes:
                yield node, Action("wake"), "wakes", -1, False
            if left.crashes:
                for survive in range(len(local.disk.waiting) + 1):
                    yield node, Action("crash", survive), "crashes", -1, False
            if view.leads:
                if left.proposals:
                    payload = b"%d" % (full.proposals - left.proposals + 1)
                    yield node, Action("propose", payload), "proposals", -1, False
                if left.changes:
                    for change in self.changes:
                        yield node, Action("change", change), "changes", -1, False
                if left.transfers:
                    for target in self.targets:
                        yield node, Action("transfer", target), "transfers", -1, False
            if left.reads and node in self.readers:
                yield node, Action("read", full.reads - left.reads + 1), "reads", -1, False
            if left.snapshots:
                yield node, Action("snapshot"), "snapshots", -1, False
        previous = -1
        for packet in code[self.width :]:
            if packet == previous:
                continue
            previous = packet
            sender, to, message = self.packets[packet]
            at = self.places[to]
            if not allowed[at] or locals_[code[at]].halted:
                continue
            action = Action("message", (sender, message))
            yield to, action, "", packet, False
            if left.repeats:
                yield to, action, "repeats", packet, True

    # ------------------------------------------------------------------ the search

    def explore(self, *, states_max: int, start: tuple[Code, int] | None = None) -> Report:
        """Visit every state, or `states_max` of them. A violation ends the search; its trace is a shortest one."""
        report = Report()
        code, touched = start if start is not None else (self.first, 0)
        seen: dict[Code, int] = {code: 0}
        parents: list[tuple[int, NodeId, Action, bool]] = [(-1, 0, Action("start"), False)]
        level: list[tuple[Code, int]] = [(code, touched)]
        everybody = (1 << len(self.nodes)) - 1
        if not self.alike:
            level = [(code, everybody)]
        number = transitions = 0
        last = parents[0]
        try:
            while level:
                following: list[tuple[Code, int]] = []
                for code, touched in level:
                    number = seen[code]
                    for node, action, spend, packet, keep in self.actions(code, touched):
                        last = (number, node, action, keep)
                        after = self.apply(code, node, action, spend, packet, keep=keep)
                        if after is None:
                            continue
                        transitions += 1
                        if after in seen:
                            continue
                        seen[after] = len(parents)
                        parents.append(last)
                        following.append((after, touched | 1 << self.places[node]))
                    if len(seen) >= states_max:
                        break
                else:
                    level = following
                    report.depth += bool(following)
                    continue
                break
            else:
                report.exhausted = True
        except Violation as violation:
            report.violation, report.invariant = str(violation), violation.name
            report.trace = [*self._trace(parents, number), _line(last[1], last[2], last[3])]
        report.states, report.transitions = len(seen), transitions
        report.steps = self.members.computed
        report.leaders = max(len(h.leaders) for h in self.histories)
        report.messages = tuple(sorted({type(message).__name__ for _, _, message in self.packets}))
        report.committed = max(len(h.committed) for h in self.histories)
        return report

    def _trace(self, parents: list[tuple[int, NodeId, Action, bool]], number: int) -> list[str]:
        lines: list[str] = []
        while number > 0:
            number, node, action, keep = parents[number]
            lines.append(_line(node, action, keep))
        return lines[::-1]

    # ------------------------------------------------------------------ scripts

    def script(self, steps: Sequence[str], *, quiet: bool = False) -> tuple[Code, int]:
        """Where a script leads, and which members it touched; it spends no budget. One step a line:

        `1 elect`, `2 sync`, `1 propose x`, `2 crash 0`, `2 hears 1` (the oldest message from 1 arrives), `settle`
        (syncs and deliveries until nothing is left), `drop` (everything under way is lost).
        """
        code = self.first
        touched = 0
        for line in steps:
            words = line.split()
            if words == ["drop"]:
                code = code[: self.width]
            elif words == ["settle"]:
                code, more = self._settle(code)
                touched |= more
            else:
                node = int(words[0])
                packet = -1
                if words[1] == "hears":
                    sender = int(words[2])
                    packet = next(p for p in code[self.width :] if self.packets[p][:2] == (sender, node))
                    action = Action("message", (sender, self.packets[packet][2]))
                else:
                    action = _parsed(words[1:])
                after = self.apply(code, node, action, "", packet, keep=False)
                if after is None and packet >= 0:
                    after = _without(code, packet, self.width)
                if after is None and words[1] == "sync" and self.members.instant:
                    continue
                assert after is not None, f"nothing came of {line!r}"
                code = after
                touched |= 1 << self.places[node]
        if quiet:
            code = code[: self.width]
        return code, touched

    def _settle(self, code: Code) -> tuple[Code, int]:
        touched = 0
        for _ in range(1000):
            node, action, packet = 0, Action("none"), -1
            for at, number in enumerate(code[: len(self.nodes)]):
                local = self.members.locals[number]
                if local.disk.waiting:
                    node, action = self.nodes[at], Action("sync")
                elif local.jobs:
                    node, action = self.nodes[at], Action("job", local.jobs[0])
            if not node and len(code) > self.width:
                packet = code[self.width]
                sender, node, message = self.packets[packet]
                action = Action("message", (sender, message))
            if not node:
                return code, touched
            after = self.apply(code, node, action, "", packet, keep=False)
            code = after if after is not None else _without(code, packet, self.width)
            touched |= 1 << self.places[node]
        raise AssertionError("the group does not come to rest")


def _without(code: Code, packet: int, width: int) -> Code:
    at = code.index(packet, width)
    return code[:at] + code[at + 1 :]


def _parsed(words: Sequence[str]) -> Action:
    match words:
        case ["propose", payload]:
            return Action("propose", payload.encode())
        case ["crash", count]:
            return Action("crash", int(count))
        case [("elect" | "wake" | "sync" | "snapshot") as kind]:
            return Action(kind)
    raise ValueError(f"not a step of a script: {' '.join(words)}")


def _line(node: NodeId, action: Action, keep: bool) -> str:
    """One action for a person."""
    argument = action.argument
    match action.kind:
        case "message":
            sender, message = argument
            again = " (and is repeated later)" if keep else ""
            return f"{sender}->{node}  {message_text(message)}{again}"
        case "crash":
            return f"{node}  crashes; {argument} of the waiting writes are on the disk; restarts"
        case "elect":
            return f"{node}  election timeout"
        case "wake":
            return f"{node}  timer"
        case "job":
            return f"{node}  {_job_text(argument)}"
        case "change":
            changes, _ = argument
            return f"{node}  change: " + ", ".join(f"{c.kind.value} {c.member.id}" for c in changes)
        case "propose":
            return f"{node}  propose {argument.decode()}"
        case _:
            return f"{node}  {action.kind}" + (f" {argument}" if argument is not None else "")


def _job_text(job: ev.Event) -> str:
    match job:
        case ev.SnapshotWritten(snapshot):
            return f"snapshot written [{snapshot.term}.{snapshot.index}]"
        case ev.ChunkWritten(_, snapshot):
            return f"snapshot received [{snapshot.term}.{snapshot.index}]"
        case ev.Restored(snapshot):
            return f"restored [{snapshot.term}.{snapshot.index}]"
    return type(job).__name__
