"""What must hold in every state of a scope, for the group as a whole. It reads logs, disks and notes of what members
said; it asks no decision of the core and shares no code with it.

- ES: one leader a term, in the whole history; only a voter leads.
- LM: two logs that agree on an entry's term agree on it and on all before it; a snapshot has its entry's term.
- LC: a new leader's log holds everything that was committed in an earlier term.
- SMS: members agree on what is committed at each index, and apply just that, in order.
- COQ: what becomes committed is durable on a quorum of each voting set in force.
- DUR: nothing committed is ever cut from a log or a disk that held it.
- CFG: one configuration change at a time, simple to joint to simple, begun by a leader that has committed in its term;
  a member acts on the last configuration of its log.
- READ: a read's index is not below what was committed when it was asked.

`member` checks MONO, LAO, one vote a term, and promises against the disk, for each member alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from oarlock.raft.types import Configuration, Index, NodeId, Term
from oarlock.sim.invariants import Violation, quorum_holds

if TYPE_CHECKING:
    from oarlock.sim.scopes.member import Action, Local, Members, Step, View


class History(NamedTuple):
    """What an observer remembers: (term, leader) of every election won, the terms of the committed entries from index
    1 on, the terms in which they were committed, and (token, member, committed when it was asked) of each read that
    waits."""

    leaders: tuple[tuple[Term, NodeId], ...] = ()
    committed: tuple[Term, ...] = ()
    since: tuple[Term, ...] = ()
    reads: tuple[tuple[int, NodeId, Index], ...] = ()


class Checker:
    """Raises `Violation` at the first thing that does not hold."""

    def __init__(self, nodes: Sequence[NodeId], members: Members) -> None:
        self.nodes = tuple(nodes)
        self._agree: dict[tuple[View, View], str] = {}

    def check(self, history: History, before: Sequence[Local], place: int, action: Action, step: Step) -> History:
        """The history after a step of the member at `place`; `before` is the group before it."""
        node = self.nodes[place]
        after = list(before)
        after[place] = step.local
        leaders, committed, since, reads = history
        if action.kind == "read":
            reads = (*reads, (action.argument, node, len(committed)))
        applied = []
        for note in step.notes:
            match note:
                case ("leader", term):
                    leaders = self._leader(node, term, leaders, committed, since, step.local)
                case ("commit", _, to):
                    committed = self._commit(node, to, committed, before[place], after, step.local)
                    since += (step.local.view.term,) * (len(committed) - len(since))
                case ("apply", entries):
                    applied += entries
                case ("configuration", index, previous):
                    _check_change(node, index, previous, committed, before[place], step.local)
                case ("ready", token, index):
                    for asked in reads:
                        if asked[0] == token and index < asked[2]:
                            raise Violation("READ", f"read {token} at member {node} may look at {index}; {asked[2]} "
                                            "was committed when it was asked")  # fmt: skip
                    reads = tuple(asked for asked in reads if asked[0] != token)
                case ("failed", token):
                    reads = tuple(asked for asked in reads if asked[0] != token)
                case ("restart",):
                    reads = tuple(asked for asked in reads if asked[1] != node)
        for entry in applied:
            if entry.index > len(committed) or committed[entry.index - 1] != entry.term:
                raise Violation("SMS", f"member {node} applies {entry}; committed are the terms {committed}")
        marks = [step.local.disk.snapshot, *(p.snapshot for p in step.local.disk.waiting if p.snapshot is not None)]
        for mark in marks:
            if mark.index > len(committed):
                raise Violation("SMS", f"member {node} has a snapshot at {mark.index}; {len(committed)} are committed")
            if mark.index and committed[mark.index - 1] != mark.term:
                raise Violation("LM", f"member {node} dates its snapshot {mark.index} with term {mark.term}; the entry "
                                f"there is of term {committed[mark.index - 1]}")  # fmt: skip
        self._nothing_lost(node, committed, before[place], step.local, restarted=action.kind == "crash")
        if step.local.view.log != before[place].view.log:
            for at, other in enumerate(after):
                if at != place:
                    self._match(node, self.nodes[at], step.local.view, other.view)
        return History(leaders, committed, since, reads)

    def _leader(
        self, node: NodeId, term: Term, leaders: tuple[tuple[Term, NodeId], ...], committed: tuple[Term, ...],
        since: tuple[Term, ...], local: Local,
    ) -> tuple[tuple[Term, NodeId], ...]:  # fmt: skip
        for other_term, other in leaders:
            if other_term == term and other != node:
                raise Violation("ES", f"members {other} and {node} both lead t{term}")
        newest = local.configurations[-1][1]
        in_force = _in_force(local.configurations, local.view.commit)
        if not newest.is_voter(node) and not in_force.is_voter(node):
            raise Violation("CFG", f"member {node} leads t{term} without being a voter")
        view = local.view
        for index, known in enumerate(committed, 1):
            if since[index - 1] < term and index >= view.base and view.term_at(index) != known:
                raise Violation(
                    "LC", f"member {node} leads t{term} without {known}.{index}, which is committed; it holds "
                    f"{view.term_at(index)}.{index}"
                )  # fmt: skip
        return leaders if (term, node) in leaders else tuple(sorted((*leaders, (term, node))))

    def _commit(
        self, node: NodeId, to: Index, committed: tuple[Term, ...], before: Local, after: Sequence[Local], local: Local
    ) -> tuple[Term, ...]:
        view = local.view
        for index in range(max(1, view.base), min(to, len(committed)) + 1):
            if view.term_at(index) != committed[index - 1]:
                raise Violation("SMS", f"member {node} takes {view.term_at(index)}.{index} for committed; "
                                f"{committed[index - 1]}.{index} is")  # fmt: skip
        if to <= len(committed):
            return committed
        news = [view.term_at(index) for index in range(len(committed) + 1, to + 1)]
        last = news[-1]
        if None in news or last is None:
            raise Violation("SMS", f"member {node} commits up to {to} and does not hold all of it")
        holders = {self.nodes[at] for at, other in enumerate(after) if other.disk.covers(to, last)}
        # One step may commit first and change the configuration then: any that was in force in it will do.
        known = before.configurations[-1][0]
        candidates = [before.configurations[-1][1], *(c for at, c in local.configurations if at > known)]
        if not any(quorum_holds(configuration, holders) for configuration in candidates):
            raise Violation("COQ", f"member {node} commits {last}.{to}; durable only on {sorted(holders)} of voters "
                            f"{sorted(candidates[-1].voters)} outgoing {sorted(candidates[-1].outgoing)}")  # fmt: skip
        return (*committed, *[term for term in news if term is not None])

    @staticmethod
    def _nothing_lost(
        node: NodeId, committed: tuple[Term, ...], before: Local, after: Local, *, restarted: bool
    ) -> None:
        was, now = before.view, after.view
        for index, term in enumerate(committed, 1):
            if not restarted and was.term_at(index) == term and index > now.base and now.term_at(index) != term:
                raise Violation("DUR", f"member {node} cuts {term}.{index}, which is committed")
            if before.disk.covers(index, term) and not after.disk.covers(index, term):
                raise Violation("DUR", f"the disk of member {node} loses {term}.{index}, which is committed")

    def _match(self, node: NodeId, other: NodeId, ours: View, theirs: View) -> None:
        """Log matching: the highest index at which the terms agree decides for all before it."""
        agreed = False
        for index in range(min(ours.last, theirs.last), max(ours.base, theirs.base), -1):
            mine, its = ours.log[index - ours.base - 1], theirs.log[index - theirs.base - 1]
            if mine.term == its.term:
                agreed = True
            if agreed and mine != its:
                raise Violation(
                    "LM", f"members {node} and {other} agree above {index}, and hold {mine} and {its} there"
                )


def _in_force(configurations: Sequence[tuple[Index, Configuration]], index: Index) -> Configuration:
    found = configurations[0][1]
    for at, configuration in configurations:
        if at <= index:
            found = configuration
    return found


def _check_change(
    node: NodeId, index: Index, previous: Index, committed: tuple[Term, ...], before: Local, local: Local
) -> None:
    """A leader appended a configuration."""
    if previous > max(len(committed), local.view.commit):
        raise Violation("CFG", f"leader {node} appends configuration {index} while {previous} is not committed")
    term = local.view.term
    if not any(local.view.term_at(at) == term for at in range(local.view.base, min(local.view.commit, index - 1) + 1)):
        raise Violation("CFG", f"leader {node} appends configuration {index} before it has committed in t{term}")
    changed = dict(local.configurations)
    old, new = changed[previous], changed[index]
    if old.joint:
        right = new.voters == old.voters and not (new.joint and new.outgoing != old.outgoing)
    else:
        right = new.outgoing == old.voters if new.joint else new.voters == old.voters
    if not right:
        raise Violation("CFG", f"leader {node} goes from voters {sorted(old.voters)} outgoing {sorted(old.outgoing)} "
                        f"to voters {sorted(new.voters)} outgoing {sorted(new.outgoing)} in one step")  # fmt: skip
