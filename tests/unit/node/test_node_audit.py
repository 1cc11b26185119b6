"""Members compare their states: one that differs is named, alarmed and put into quarantine, and the others go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.support.member_group import MS
from tests.unit.node.test_node_leases import Kv, LeaseGroup, others_of

from oarlock.machines.base import Context
from oarlock.machines.kv.commands import Put, PutResult, Refused, decode, encode
from oarlock.machines.kv.commands_alarm import AlarmType, AuditMark
from oarlock.machines.kv.layout import TABLES
from oarlock.machines.memory_store import MemoryStore
from oarlock.node.replica import MemberLimits
from oarlock.node.replica import events as ev

SECOND = 1000 * MS
LIMITS = MemberLimits(audit_interval_ns=2 * SECOND)


class Forgetful(Kv):
    """Applies a put with another value from some revision on."""

    def reopen(self) -> Forgetful:
        return Forgetful(MemoryStore(TABLES))

    def apply(self, context: Context, commands: Sequence[bytes]) -> list[object]:
        changed = []
        for command in commands:
            decoded = decode(command) if command else None
            if isinstance(decoded, Put) and decoded.value == b"poison":
                command = encode(Put(decoded.key, b"something else"))
            changed.append(command)
        return super().apply(context, changed)


def group_with(*forgetful: int, **kw: Any) -> LeaseGroup:
    group = LeaseGroup(limits=LIMITS, **kw)
    for node in forgetful:
        group.crash(node)
        group.machines[node] = Forgetful(MemoryStore(TABLES))
        group.start(node)
    return group


def corrupt(group: LeaseGroup, node: int) -> list[int]:
    return [member for member, _ in group.machines[node].alarms.active(AlarmType.CORRUPT)]


def marks(group: LeaseGroup) -> int:
    return sum(isinstance(command, AuditMark) for command in group.log_of(group.leader))


def test_equal_states_raise_no_alarm_and_idle_ones_are_not_compared_again() -> None:
    group = group_with()
    leader = group.elect()
    for number in range(5):
        assert isinstance(group.run_command(leader, Put(b"k", b"%d" % number)), PutResult)
        group.run(SECOND)
    group.run(3 * SECOND)
    seen = marks(group)
    assert 2 <= seen <= 4
    book = group.machines[leader].alarms
    assert len(book.reports()) == 3 and len(set(book.reports().values())) == 1
    group.run(20 * SECOND)
    assert marks(group) == seen
    for node in group.members:
        assert corrupt(group, node) == [] and not group.members[node].quarantined


def test_a_follower_that_diverged_is_named_and_the_others_go_on() -> None:
    group = group_with(2)
    leader = group.elect()
    if leader == 2:
        group.crash(2)
        leader = group.elect()
        group.start(2)
        group.run(SECOND)
    assert isinstance(group.run_command(leader, Put(b"k", b"poison")), PutResult)
    group.run(3 * SECOND)
    for node in group.members:
        assert corrupt(group, node) == [2]
        assert group.members[node].quarantined is (node == 2)
    assert isinstance(group.run_command(leader, Put(b"k", b"more")), PutResult), "the healthy majority stopped"
    # It still has a vote: with the third member gone the two go on.
    third = next(node for node in others_of(group) if node != 2)
    group.crash(third)
    group.run(SECOND)
    assert isinstance(group.run_command(leader, Put(b"k", b"on two")), PutResult)


def test_a_leader_that_diverged_hands_over_and_sends_nobody_its_state() -> None:
    group = group_with()
    first = group.elect()
    group = group_with(first)
    assert group.elect() == first, "the seed has changed: choose the leader another way"
    group.run_command(first, Put(b"k", b"poison"))
    group.run(4 * SECOND)
    assert group.members[first].quarantined
    assert group.leader != first and not group.members[first].raft.is_leader
    group.handle(first, *[])
    assert not any(node == first and isinstance(effect, ev.WriteSnapshot) for node, effect in group.background)


def test_with_two_members_nobody_can_say_who_is_wrong() -> None:
    group = group_with(2, ids=(1, 2))
    leader = group.elect()
    group.run_command(leader, Put(b"k", b"poison"))
    group.run(4 * SECOND)
    assert corrupt(group, 1) == [0] and corrupt(group, 2) == [0]
    refused = group.run_command(leader, Put(b"k", b"more"))
    assert isinstance(refused, Refused) and refused.error.name == "CORRUPT"
