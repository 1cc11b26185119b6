"""From one configuration to the next: pure functions. (diss. 4.3, joint consensus for every change of a voting set)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from oarlock.raft.events import ChangeKind, ConfigChange
from oarlock.raft.types import MEMBERS_MAX, NOBODY, Configuration, Index, MemberInfo, MemberRole, NodeId

_ROLES = {
    ChangeKind.ADD_VOTER: MemberRole.VOTER,
    ChangeKind.ADD_LEARNER: MemberRole.LEARNER,
    ChangeKind.ADD_WITNESS: MemberRole.WITNESS,
}


def changed(before: Configuration, changes: Sequence[ConfigChange], *, auto_leave: bool) -> Configuration | str:
    """The configuration after `changes`, joint if a voting set changes, or the short reason of a refusal.

    `before` is not joint. Every step applies to the result of the steps before it; one refused step refuses all.
    """
    assert not before.joint, "a change was computed from a joint configuration"
    members = {info.id: info for info in before.members}
    removed = set(before.removed)
    for change in changes:
        reason = _apply(members, removed, change)
        if reason:
            return reason
    voters = frozenset(i for i, info in members.items() if info.role is not MemberRole.LEARNER)
    witnesses = sum(1 for info in members.values() if info.role is MemberRole.WITNESS)
    if len(voters) - witnesses < 1:
        # sometimes: a change would leave no voter
        return "no_voters"
    if witnesses * 2 >= len(voters):
        # Every majority must hold a full voter: witnesses keep no payloads, so a quorum of witnesses would commit
        # entries that nobody could ever apply.
        # sometimes: a change would leave too many witnesses
        return "too_many"
    outgoing = before.voters if voters != before.voters else frozenset[NodeId]()
    if outgoing:
        for node in sorted(outgoing - frozenset(members)):
            old = before.member(node)
            assert old is not None
            members[node] = old  # it still votes in the outgoing set, so it stays listed until the joint phase ends
    if len(members) > MEMBERS_MAX:
        return "too_many"
    after = Configuration(
        members=tuple(members[i] for i in sorted(members)),
        voters=voters,
        outgoing=outgoing,
        removed=frozenset(removed),
        auto_leave=auto_leave,
    )
    return "no_change" if replace(after, auto_leave=before.auto_leave) == before else after


def _apply(members: dict[NodeId, MemberInfo], removed: set[NodeId], change: ConfigChange) -> str:
    node = change.member.id
    known = members.get(node)
    if node == NOBODY:
        return "unknown_member"
    if change.kind is ChangeKind.REMOVE:
        if known is None:
            return "unknown_member"
        del members[node]
        removed.add(node)
        return ""
    if change.kind is ChangeKind.UPDATE:
        if known is None:
            return "unknown_member"
        new = change.member
        members[node] = replace(
            known,
            priority=new.priority if change.set_priority else known.priority,
            incarnation=new.incarnation if change.set_incarnation else known.incarnation,
            context=new.context if change.set_context else known.context,
        )
        return ""
    role = _ROLES[change.kind]
    if node in removed:
        # sometimes: a removed member is to be added again
        return "removed_before"
    if known is None:
        members[node] = replace(change.member, role=role)
        return ""
    if known.role is role:
        return "already_member"
    if MemberRole.WITNESS in (known.role, role):
        return (
            "already_member"  # a witness has no state to serve with and a voter must not lose its own: remove, then add
        )
    members[node] = replace(known, role=role, promote_when_ready=False)
    return ""


def left(joint: Configuration) -> Configuration:
    """The configuration after a joint one: only the incoming voters, and nobody who was only outgoing."""
    assert joint.joint
    members = tuple(m for m in joint.members if m.id not in joint.removed)
    return Configuration(members=members, voters=joint.voters, removed=joint.removed, auto_leave=True)


def promotions(before: Configuration, changes: Sequence[ConfigChange]) -> tuple[NodeId, ...]:
    """Learners that these changes would make voters: each must have caught up first (diss. 4.2.1)."""
    learners = before.learners
    return tuple(c.member.id for c in changes if c.kind is ChangeKind.ADD_VOTER and c.member.id in learners)


class ConfigurationHistory:
    """The configurations in the log, oldest first, each with its index. The last one is in force from the moment it is
    in the log, committed or not (diss. 4.1); one that is cut away gives way to the one before it."""

    __slots__ = ("_history",)

    def __init__(self, index: Index, configuration: Configuration) -> None:
        self._history = [(index, configuration)]

    @property
    def current(self) -> Configuration:
        return self._history[-1][1]

    @property
    def current_index(self) -> Index:
        return self._history[-1][0]

    @property
    def first_index(self) -> Index:
        """The lowest index at which the configuration is known."""
        return self._history[0][0]

    @property
    def previous_index(self) -> Index:
        return self._history[-2][0]

    def at(self, index: Index) -> Configuration:
        """The configuration that was in force at `index`, at least `first_index`."""
        for position, configuration in reversed(self._history):
            if position <= index:
                return configuration
        raise AssertionError(f"no configuration is known at {index}; the first one is at {self.first_index}")

    def append(self, index: Index, configuration: Configuration) -> None:
        assert index > self.current_index, f"configuration at {index} after {self.current_index}"
        self._history.append((index, configuration))

    def truncate_from(self, index: Index) -> bool:
        """Drop configurations at or after `index`. Returns whether the one in force changed."""
        count = len(self._history)
        while self._history[-1][0] >= index:
            assert len(self._history) > 1, f"a cut at {index} would leave no configuration"
            self._history.pop()
        return len(self._history) != count

    def forget_below(self, index: Index) -> None:
        """Keep the newest one at or below `index` and those after it: nothing older can be asked for again."""
        keep = 0
        for position, (at, _) in enumerate(self._history):
            if at <= index:
                keep = position
        del self._history[:keep]

    def reset(self, index: Index, configuration: Configuration) -> None:
        self._history = [(index, configuration)]
