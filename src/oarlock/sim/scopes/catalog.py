"""The scopes A to G: small groups with bounds tight enough to visit every state. (H is `wal`.)

Each has two sizes: `quick` runs on every change, `full` on demand. What a size allows is printed with its result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from oarlock.raft import events as ev
from oarlock.raft.config import RaftConfig
from oarlock.raft.types import Configuration, MemberInfo, NodeId
from oarlock.sim.invariants import Violation
from oarlock.sim.scopes.explore import Budgets, Code, Model, Report
from oarlock.sim.scopes.member import Members

ADD_4: Final = ((ev.ConfigChange(ev.ChangeKind.ADD_VOTER, MemberInfo(id=4)),), True)
REMOVE_4: Final = ((ev.ConfigChange(ev.ChangeKind.REMOVE, MemberInfo(id=4)),), True)
REMOVE_3: Final = ((ev.ConfigChange(ev.ChangeKind.REMOVE, MemberInfo(id=3)),), True)
SWAP_3_FOR_4: Final = (
    (
        ev.ConfigChange(ev.ChangeKind.ADD_VOTER, MemberInfo(id=4)),
        ev.ConfigChange(ev.ChangeKind.REMOVE, MemberInfo(id=3)),
    ),
    True,
)
REMOVE_1: Final = ((ev.ConfigChange(ev.ChangeKind.REMOVE, MemberInfo(id=1)),), True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The bounds of one run of a scope.

    `script` leads to where the search begins. `instant`: writes are durable, and work aside is done, as soon as it is
    ordered. `waits`: those are actions of their own.
    """

    voters: int
    budgets: Budgets
    terms_max: int
    others: int = 0  # members that are not in the first configuration
    script: tuple[str, ...] = ()
    instant: bool = False
    alike: bool = False
    pre_vote: bool = False
    check_quorum: bool = False
    message_bytes_max: int = 1 << 20
    tail_entries_max: int = 0
    changes: tuple[tuple[tuple[ev.ConfigChange, ...], bool], ...] = ()
    targets: tuple[NodeId, ...] = ()
    readers: tuple[NodeId, ...] = ()

    def text(self) -> str:
        words = [f"{self.voters} voters"]
        if self.others:
            words.append(f"{self.others} more")
        words.append(f"terms up to {self.terms_max}")
        if bounds := self.budgets.text():
            words.append(bounds)
        words.append("writes are instant" if self.instant else "writes take time")
        words += [name for name, on in (("pre-vote", self.pre_vote), ("check-quorum", self.check_quorum)) if on]
        if self.script:
            words.append(f"from: {'; '.join(self.script)}")
        return ", ".join(words)

    def model(self) -> tuple[Model, tuple[Code, int]]:
        """The group, and where the search begins."""
        nodes = range(1, self.voters + self.others + 1)
        configs = {
            node: RaftConfig(
                id=node,
                pre_vote=self.pre_vote,
                check_quorum=self.check_quorum,
                priority_handback_ns=0,
                message_bytes_max=self.message_bytes_max,
                tail_entries_max=self.tail_entries_max,
            )
            for node in nodes
        }
        group = Configuration.of_voters(*range(1, self.voters + 1))
        initial = {node: group if node <= self.voters else Configuration() for node in nodes}
        model = Model(
            Members(configs, initial, instant=self.instant),
            nodes,
            self.budgets,
            terms_max=self.terms_max,
            alike=self.alike,
            changes=self.changes,
            targets=self.targets,
            readers=self.readers,
        )
        return model, model.script(self.script)


@dataclass(frozen=True, slots=True)
class Scope:
    """One question, asked exhaustively, in one or more sizes. `quick` ones take seconds, `full` ones minutes."""

    name: str
    title: str
    quick: tuple[Size, ...]
    full: tuple[Size, ...]


def explore(size: Size, states_max: int) -> Report:
    """Visit every state within the bounds, or `states_max`."""
    try:
        model, start = size.model()
    except Violation as violation:
        return Report(violation=f"before the search began: {violation}", invariant=violation.name)
    return model.explore(states_max=states_max, start=start)


LEADER_1: Final = ("1 elect", "settle")
# An entry is committed at 1 and held by 2, which does not know that it is committed.
WRITE: Final = (*LEADER_1, "1 propose x", "2 hears 1", "2 sync", "1 sync", "1 hears 2", "drop")
# 1 and 2 have committed an entry that 3 never heard of: once 1 has compacted it away, 3 must be sent a snapshot.
SNAPSHOT: Final = (
    *("1 elect", "1 sync", "2 hears 1", "2 sync", "1 hears 2", "1 sync", "2 hears 1", "2 sync", "1 hears 2", "drop"),
    *("1 snapshot", "settle", "drop"),
)
# Figure 8 (c) of the paper: 2 holds an entry of term 2; 1, elected in term 3, is about to send an old one of term 1.
FIGURE_8: Final = (
    *("1 elect", "1 sync", "3 hears 1", "3 sync", "1 hears 3", "1 sync", "1 propose xx", "1 sync", "drop"),
    *("2 elect", "2 sync", "drop", "2 elect", "2 sync", "3 hears 2", "3 sync", "2 hears 3", "2 sync", "drop"),
    *("1 crash 0", "1 elect", "1 sync", "drop", "1 elect", "1 sync", "3 hears 1", "3 sync", "1 hears 3", "1 sync"),
    "drop",
    *("1 wake",),
)

SCOPES: Final = (
    Scope(
        "A",
        "elections: votes, restarts, repeated messages, pre-votes",
        quick=(
            Size(voters=3, budgets=Budgets(elections=2), terms_max=2, alike=True),
            Size(voters=3, budgets=Budgets(elections=2, crashes=1), terms_max=2, alike=True, instant=True),
            Size(voters=3, budgets=Budgets(elections=2, repeats=1), terms_max=2, alike=True, instant=True),
        ),
        full=(
            Size(voters=3, budgets=Budgets(elections=2, crashes=1), terms_max=3, alike=True),
            Size(voters=3, budgets=Budgets(elections=2, repeats=1), terms_max=3, alike=True),
            Size(voters=3, budgets=Budgets(elections=2), terms_max=2, alike=True, instant=True, pre_vote=True),
            Size(voters=3, budgets=Budgets(elections=3), terms_max=3, alike=True, instant=True),
        ),
    ),
    Scope(
        "B",
        "replication: entries, crashes, a change of leader; Figure 8",
        quick=(
            Size(voters=3, budgets=Budgets(elections=1, proposals=1), terms_max=2, script=LEADER_1),
            Size(
                voters=3, budgets=Budgets(elections=1), terms_max=4, script=FIGURE_8, message_bytes_max=1, instant=True
            ),
        ),
        full=(
            Size(voters=3, budgets=Budgets(elections=1, proposals=1, crashes=1), terms_max=2, script=LEADER_1),
            Size(voters=3, budgets=Budgets(elections=1, proposals=1, repeats=1), terms_max=2, script=LEADER_1),
            Size(voters=3, budgets=Budgets(elections=1, proposals=2), terms_max=2, script=LEADER_1),
            Size(voters=3, budgets=Budgets(elections=1), terms_max=4, script=FIGURE_8, message_bytes_max=1),
        ),
    ),
    Scope(
        "C",
        "compaction and snapshots, with messages that come late and twice",
        quick=(
            Size(
                voters=2,
                budgets=Budgets(elections=1, proposals=1, snapshots=1, repeats=1),
                terms_max=2,
                script=LEADER_1,
            ),
            Size(voters=3, budgets=Budgets(wakes=2, repeats=1), terms_max=1, script=SNAPSHOT),
            Size(voters=3, budgets=Budgets(elections=1, wakes=2), terms_max=2, script=SNAPSHOT, instant=True),
        ),
        full=(
            Size(
                voters=2,
                budgets=Budgets(elections=1, wakes=1, proposals=1, snapshots=1, repeats=1),
                terms_max=2,
                script=LEADER_1,
            ),
            Size(voters=3, budgets=Budgets(wakes=2, proposals=1, repeats=1), terms_max=1, script=SNAPSHOT),
            Size(voters=3, budgets=Budgets(elections=1, wakes=2, crashes=1), terms_max=2, script=SNAPSHOT),
        ),
    ),
    Scope(
        "D",
        "from three members to four and back, two leaders",
        quick=(
            Size(
                voters=3,
                others=1,
                budgets=Budgets(changes=1),
                terms_max=1,
                script=LEADER_1,
                instant=True,
                changes=(ADD_4,),
            ),
            Size(
                voters=3,
                budgets=Budgets(elections=1, changes=1, crashes=1),
                terms_max=2,
                script=LEADER_1,
                instant=True,
                changes=(REMOVE_3,),
            ),
        ),
        full=(
            Size(
                voters=3,
                others=1,
                budgets=Budgets(elections=1, changes=1),
                terms_max=2,
                script=LEADER_1,
                instant=True,
                changes=(ADD_4,),
            ),
            Size(
                voters=3,
                others=1,
                budgets=Budgets(changes=2),
                terms_max=1,
                script=LEADER_1,
                instant=True,
                changes=(ADD_4, REMOVE_4),
            ),
            Size(
                voters=4,
                budgets=Budgets(elections=1, changes=2),
                terms_max=2,
                script=LEADER_1,
                instant=True,
                changes=(REMOVE_3, REMOVE_4),
            ),
        ),
    ),
    Scope(
        "E",
        "a joint configuration whose leader crashes, or is the one to go",
        quick=(
            Size(
                voters=3,
                budgets=Budgets(elections=1, changes=1),
                terms_max=2,
                script=LEADER_1,
                instant=True,
                changes=(REMOVE_1,),
            ),
            Size(
                voters=3,
                budgets=Budgets(elections=1, changes=1, crashes=1),
                terms_max=2,
                script=LEADER_1,
                instant=True,
                changes=(REMOVE_1,),
            ),
        ),
        full=(
            Size(
                voters=3,
                budgets=Budgets(elections=1, changes=1),
                terms_max=2,
                script=LEADER_1,
                changes=(REMOVE_1, REMOVE_3),
            ),
            Size(
                voters=3,
                others=1,
                budgets=Budgets(elections=1, changes=1, crashes=1),
                terms_max=2,
                script=LEADER_1,
                instant=True,
                changes=(SWAP_3_FOR_4,),
            ),
        ),
    ),
    Scope(
        "F",
        "linearizable reads over a change of leader, asked again",
        quick=(
            Size(voters=3, budgets=Budgets(elections=1, reads=1), terms_max=2, script=WRITE, instant=True),
            Size(
                voters=3,
                budgets=Budgets(wakes=2, reads=1),
                terms_max=1,
                script=WRITE,
                instant=True,
                readers=(2,),
            ),
        ),
        full=(
            Size(
                voters=3,
                budgets=Budgets(elections=1, wakes=1, reads=1),
                terms_max=2,
                script=WRITE,
                instant=True,
                readers=(2,),
            ),
            Size(voters=3, budgets=Budgets(elections=1, reads=1, crashes=1), terms_max=2, script=WRITE, instant=True),
        ),
    ),
    Scope(
        "G",
        "leadership transfer, with a write on its way and a rival",
        quick=(
            Size(voters=3, budgets=Budgets(proposals=1, transfers=1), terms_max=3, script=LEADER_1, targets=(2,)),
            Size(
                voters=3,
                budgets=Budgets(elections=1, transfers=1),
                terms_max=3,
                script=LEADER_1,
                instant=True,
                targets=(2,),
            ),
        ),
        full=(
            Size(
                voters=3,
                budgets=Budgets(elections=1, proposals=1, transfers=1),
                terms_max=3,
                script=LEADER_1,
                instant=True,
                targets=(2,),
            ),
            Size(
                voters=3,
                budgets=Budgets(elections=1, transfers=1, crashes=1),
                terms_max=3,
                script=LEADER_1,
                instant=True,
                targets=(2, 3),
                pre_vote=True,
                check_quorum=True,
            ),
        ),
    ),
)
