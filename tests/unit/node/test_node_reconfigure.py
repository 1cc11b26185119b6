"""Changes of membership as people ask for them: etcd's checks, one answer each, honest when messages are lost."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.support import member_group
from tests.support.member_group import MS, Group

from oarlock.errors import DeadlineExceeded, NoLeader, Outcome, RaftError, Rejected
from oarlock.node.replica import events as ev
from oarlock.node.replica.directory import MemberRecord, decode_record, encode_record
from oarlock.node.replica.reconfigure import (
    CHANGES_PENDING_MAX,
    REFUSALS,
    AddMember,
    Health,
    PromoteMember,
    RemoveMember,
    UpdateMember,
    decode_change,
    encode_change,
    plan,
)
from oarlock.raft.events import ChangeKind, MessageReceived, PeerDown
from oarlock.raft.messages import AppendEntries, AppendEntriesReply, ChangeMembers, ChangeMembersReply
from oarlock.raft.types import Configuration, MemberInfo, MemberRole


def health(started: set[int], active: set[int], records: dict[int, MemberRecord], **more: Any) -> Health:
    made = Health.__new__(Health)
    made.started, made.active, made.records = frozenset(started), frozenset(active), records
    made.doubtful = frozenset()
    made.match_index, made.last_index = more.get("match", {}), more.get("last", 0)
    return made


def members(*voters: int, learners: tuple[int, ...] = (), soon: tuple[int, ...] = ()) -> Configuration:
    infos = [MemberInfo(id=i, context=encode_record(f"m{i}", [f"http://m{i}:1"])) for i in voters]
    infos += [
        MemberInfo(
            id=i, role=MemberRole.LEARNER, promote_when_ready=i in soon, context=encode_record("", [f"http://m{i}:1"])
        )
        for i in (*learners, *soon)
    ]
    return Configuration.of(*infos)


def refusal(configuration: Configuration, change: Any, started: set[int], active: set[int], **more: Any) -> str:
    records = {info.id: decode_record(info.context) for info in configuration.members}
    try:
        plan(configuration, change, health(started, active, records, **more))
    except Rejected as error:
        return error.reason if error.reason in REFUSALS else f"unknown: {error.reason}"
    return ""


NEW = AddMember(9, ("http://m9:1",))
ALL = {1, 2, 3}


@pytest.mark.parametrize(
    ("configuration", "change", "started", "active", "reason"),
    [
        (members(1, 2, 3), NEW, ALL, ALL, ""),
        (members(1, 2, 3), NEW, ALL, {1, 2}, "unhealthy"),
        (members(1, 2, 3), AddMember(9, ("http://m9:1",), strict=False), ALL, {1, 2}, ""),
        (members(1, 2, 3), AddMember(9, ("http://m2:1",)), ALL, ALL, "urls_exist"),
        (members(1, 2, 3), AddMember(3, ("http://m9:1",)), ALL, ALL, "id_exists"),
        (members(1), NEW, {1}, {1}, ""),  # etcd's exception: from one to two
        (members(1, soon=(2,)), NEW, {1}, {1}, "not_enough_started"),
        (members(1, 2), NEW, {1}, {1, 2}, "not_enough_started"),
        (members(1, 2, 3, learners=(4,)), AddMember(9, ("http://m9:1",), 1), ALL, ALL, "too_many_learners"),
        (members(1, 2, 3, soon=(4,)), AddMember(9, ("http://m9:1",), 1), ALL, {*ALL, 4}, ""),
        (members(1, 2, 3), AddMember(9, ("http://m9:1",), 1), ALL, {1, 2}, "unhealthy"),
        (members(1, 2, 3), RemoveMember(3), ALL, ALL, ""),
        (members(1, 2, 3), RemoveMember(3), ALL, {1, 2}, ""),  # it is down anyway
        (members(1, 2, 3), RemoveMember(2), ALL, {1, 2}, "unhealthy"),
        (members(1, 2, 3), RemoveMember(2), ALL, {1}, "unhealthy"),  # 3 is down too: nothing could be committed
        (members(1, 2, 3), RemoveMember(2, strict=False), ALL, {1, 2}, ""),
        (members(1), RemoveMember(1), {1}, {1}, "not_enough_started"),
        (members(1, 2), RemoveMember(1), {1}, {1}, "not_enough_started"),
        (members(1, 2, 3, learners=(4,)), RemoveMember(4), {1}, {1}, ""),
        (members(1, 2, 3), RemoveMember(7), ALL, ALL, "not_found"),
        (members(1, 2, 3), UpdateMember(2, ("http://new:1",)), ALL, ALL, ""),
        (members(1, 2, 3), UpdateMember(2, ("http://m2:1",)), ALL, ALL, ""),
        (members(1, 2, 3), UpdateMember(2, ("http://m3:1",)), ALL, ALL, "urls_exist"),
        (members(1, 2, 3), UpdateMember(7, ("http://new:1",)), ALL, ALL, "not_found"),
        (members(1, 2, 3), PromoteMember(2), ALL, ALL, "not_learner"),
        (members(1, 2, 3), PromoteMember(7), ALL, ALL, "not_found"),
        (members(1, 2, soon=(3,)), PromoteMember(3), ALL, ALL, "not_learner"),
    ],
)
def test_a_change_is_judged_as_etcd_judges_it(
    configuration: Configuration, change: Any, started: set[int], active: set[int], reason: str
) -> None:
    assert refusal(configuration, change, started, active) == reason


@pytest.mark.parametrize(("match", "reason"), [(89, "not_in_sync"), (90, "")])
def test_a_learner_is_promoted_from_nine_tenths_of_the_log_on(match: int, reason: str) -> None:
    found = refusal(members(1, 2, learners=(3,)), PromoteMember(3), {1, 2}, {1, 2, 3}, match={3: match}, last=100)
    assert found == reason


def test_a_removed_id_never_comes_back() -> None:
    gone = Configuration(members(1, 2).members, frozenset({1, 2}), removed=frozenset({9}))
    assert refusal(gone, NEW, {1, 2}, {1, 2}) == "id_removed"


def test_a_member_that_is_to_vote_begins_as_a_learner_that_does_so_by_itself() -> None:
    change = plan(members(1, 2, 3), NEW, health(ALL, ALL, {}))
    assert change.kind is ChangeKind.ADD_LEARNER
    assert change.member.promote_when_ready
    assert decode_record(change.member.context) == MemberRecord("", ("http://m9:1",))


@pytest.mark.parametrize("change", [NEW, RemoveMember(2**64 - 1, False), UpdateMember(3, ("a", "b")), PromoteMember(4)])
def test_changes_come_back_equal(change: Any) -> None:
    assert decode_change(encode_change(change)) == change


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x93\x05\x01\x90", b"\x94\x01\x09\x90\x07", b"\x92\x02" + bytes(9000)]
)
def test_bytes_that_are_no_change_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode_change(data)


# ---------------------------------------------------------------- a group


class Asking(Group):
    """A group whose members are asked for changes; keeps each one's answer."""

    def __init__(self, ids: tuple[int, ...] = (1, 2, 3)) -> None:
        super().__init__(ids)
        self.token = 0
        self.elect()
        for node in ids:  # a published name is what makes a member a started one
            record = encode_record(f"m{node}", [f"http://peer{node}:1"])
            self.crash(node)
            self.start(node, record=record)
        self.run(6_000 * MS)

    def ask(self, node: int, change: Any) -> int:
        self.token += 1
        self.handle(node, ev.Reconfigure(self.token, change))
        return self.token

    def answers(self, token: int) -> list[RaftError | None]:
        return [e.error for _, e in self.others if isinstance(e, ev.Reconfigured) and e.token == token]

    def answer_of(self, token: int) -> RaftError | None:
        found = self.answers(token)
        assert len(found) == 1, f"change {token} has {len(found)} answers"
        return found[0]

    def follower(self) -> int:
        return next(i for i in sorted(self.members) if i != self.leader)

    def urls(self, node: int, of: int) -> tuple[str, ...]:
        info = self.members[node].raft.configuration.member(of)
        assert info is not None
        return decode_record(info.context).peer_urls


@pytest.mark.parametrize("at_leader", [True, False])
def test_any_member_may_be_asked(at_leader: bool) -> None:
    group = Asking()
    node = group.leader if at_leader else group.follower()
    token = group.ask(node, UpdateMember(2, ("http://moved:1",)))
    group.run(1_000 * MS)
    assert group.answer_of(token) is None
    assert group.urls(node, 2) == ("http://moved:1",)  # it shows where it was asked for
    token = group.ask(node, UpdateMember(2, ("http://peer3:1",)))
    group.run(1_000 * MS)
    refused = group.answer_of(token)
    assert isinstance(refused, Rejected)
    assert refused.reason == "urls_exist"


class GuardedMachine(member_group.ListMachine):
    """One that knows who may: whom the last command about them allows."""

    def refuse_operator(self, user: str) -> str:
        if not user:
            return "no_user"
        said = [command for command in self.commands if command.endswith(user.encode())]
        return "" if said and said[-1].startswith(b"allow") else "not_permitted"


def guarded(monkeypatch: pytest.MonkeyPatch) -> Asking:
    monkeypatch.setattr(member_group, "ListMachine", GuardedMachine)
    group = Asking()
    group.propose(group.leader, b"allow root")
    group.run(1_000 * MS)
    return group


@pytest.mark.parametrize("at_leader", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        AddMember(9, ("http://m9:1",), 1),
        RemoveMember(3),
        UpdateMember(3, ("http://moved:1",)),
        PromoteMember(3),
    ],
)
def test_who_asks_must_be_allowed_to(monkeypatch: pytest.MonkeyPatch, at_leader: bool, change: Any) -> None:
    group = guarded(monkeypatch)
    node = group.leader if at_leader else group.follower()
    before = group.members[node].raft.configuration
    for asker, reason in (("", "no_user"), ("somebody", "not_permitted")):
        token = group.ask(node, msgspec.structs.replace(change, asker=asker))
        group.run(1_000 * MS)
        refused = group.answer_of(token)
        assert isinstance(refused, Rejected) and refused.reason == reason
    assert group.members[node].raft.configuration == before
    token = group.ask(node, msgspec.structs.replace(change, asker="root"))
    group.run(1_000 * MS)
    done = group.answer_of(token)
    assert done is None or (isinstance(done, Rejected) and done.reason == "not_learner")


def test_a_right_that_is_taken_away_on_the_way_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for at a member that has not heard of it; the answer is the leader's."""
    group = guarded(monkeypatch)
    node = group.follower()
    group.isolate(node)
    group.propose(group.leader, b"forbid root")
    group.run(200 * MS)
    token = group.ask(node, UpdateMember(3, ("http://moved:1",), asker="root"))
    assert group.machines[node].refuse_operator("root") == "", "it knows nothing"  # type: ignore[attr-defined]
    group.heal()
    group.run(4_000 * MS)
    refused = group.answer_of(token)
    assert isinstance(refused, Rejected) and refused.reason == "not_permitted"


def test_a_new_leader_decides_nothing_before_it_knows_what_the_one_before_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = guarded(monkeypatch)
    leader = group.leader
    changes = group.members[leader]._changes
    token = group.ask(leader, UpdateMember(3, ("http://moved:1",), asker="root"))
    assert group.answers(token) == []
    asked: list[str] = []
    guard = changes._guard
    monkeypatch.setattr(changes, "_guard", lambda user: asked.append(user) or (guard(user) if guard else ""))
    other = group.ask(leader, UpdateMember(3, ("http://moved:2",), asker="root"))
    changes.turn(group.members[leader].raft.current_term - 1, group.now)
    assert not asked, "it was decided by a machine that may lag behind"
    group.run(1_000 * MS)
    assert asked and group.answer_of(other) is None


def test_a_repeated_message_changes_nothing_twice_and_gets_the_same_answer() -> None:
    group = Asking()
    group.repeat = lambda sender, to, message: 3 if isinstance(message, ChangeMembers | ChangeMembersReply) else 1
    token = group.ask(group.follower(), AddMember(4, ("http://m4:1",), 1))
    group.disks[4] = type(group.disks[1])()
    group.run(2_000 * MS)
    assert group.answer_of(token) is None
    refused = group.ask(group.follower(), RemoveMember(77))
    group.run(2_000 * MS)
    error = group.answer_of(refused)
    assert isinstance(error, Rejected)
    assert error.reason == "not_found"


def test_a_lost_request_is_sent_again_and_a_lost_answer_is_given_again() -> None:
    group = Asking()
    lost: list[object] = []

    def drop(sender: int, to: int, message: object) -> bool:
        if isinstance(message, ChangeMembers | ChangeMembersReply) and len(lost) < 3:
            lost.append(message)
            return len(lost) != 2
        return False

    group.drop = drop
    token = group.ask(group.follower(), UpdateMember(2, ("http://moved:1",)))
    group.run(4_500 * MS)
    assert [type(m) for m in lost] == [ChangeMembers, ChangeMembers, ChangeMembersReply]
    assert group.answer_of(token) is None


def test_a_new_leader_is_asked_when_the_old_one_did_nothing() -> None:
    group = Asking()
    old = group.leader
    node = group.follower()
    third = next(i for i in group.members if i not in (old, node))
    group.drop = lambda sender, to, message: isinstance(message, ChangeMembers) and to == old
    token = group.ask(node, UpdateMember(third, ("http://moved:1",)))
    group.settle()
    group.crash(old)
    group.run(4_000 * MS)
    assert group.leader != old
    assert group.answer_of(token) is None
    assert group.urls(node, third) == ("http://moved:1",)


def test_what_the_old_leader_did_counts_although_its_answer_never_came() -> None:
    group = Asking()
    old, node = group.leader, group.follower()
    group.disks[4] = type(group.disks[1])()
    group.drop = lambda sender, to, message: isinstance(message, ChangeMembersReply) and sender == old
    token = group.ask(node, AddMember(4, ("http://m4:1",), 1))
    group.settle()
    assert not group.answers(token)
    group.crash(old)
    group.run(5_000 * MS)
    assert group.answer_of(token) is None  # asked again, the new leader would say that there is one with this id
    assert 4 in group.members[node].raft.committed_configuration.learners


def test_without_a_leader_nothing_is_changed_and_the_error_says_so() -> None:
    group = Asking()
    node = group.follower()
    for other in [i for i in group.members if i != node]:
        group.crash(other)
    group.run(3_000 * MS)
    token = group.ask(node, UpdateMember(node, ("http://moved:1",)))
    group.run(9_000 * MS)
    error = group.answer_of(token)
    assert isinstance(error, NoLeader)
    assert error.outcome is Outcome.NOT_EXECUTED


def test_a_change_that_may_still_take_place_ends_as_unknown() -> None:
    group = Asking()
    leader = group.leader
    group.drop = lambda sender, to, message: isinstance(message, ChangeMembersReply | ChangeMembers)
    token = group.ask(group.follower(), UpdateMember(leader, ("http://moved:1",)))
    group.run(9_000 * MS)
    error = group.answer_of(token)
    assert isinstance(error, DeadlineExceeded)
    assert error.outcome is Outcome.UNKNOWN


def test_the_leader_hands_over_before_it_removes_itself_and_says_that_it_is_done() -> None:
    group = Asking()
    old = group.leader
    term = group.members[old].raft.current_term
    token = group.ask(old, RemoveMember(old))
    group.run(3_000 * MS)
    assert group.answer_of(token) is None
    assert group.members[old].halted
    (successor,) = [m.raft for i, m in group.members.items() if i != old and m.raft.is_leader]
    decided_in = successor.log.term(successor.configuration_index)
    assert decided_in is not None
    assert decided_in > term, "the old leader managed its own removal"


def test_a_new_leader_judges_nobody_before_it_has_heard_of_everybody() -> None:
    """Everyone looks alive to a leader of this moment; with a dead member, one removal more would end all progress."""
    group = Asking((1, 2, 3, 4, 5))
    first = group.leader
    dead = next(i for i in group.members if i != first)
    group.crash(dead)
    group.crash(first)
    for _ in range(4_000):
        group.run(1 * MS)
        if any(m.raft.is_leader for m in group.members.values()):
            break
    leader = group.leader
    target = next(i for i in group.members if i not in (dead, first, leader))
    token = group.ask(leader, RemoveMember(target))
    assert not group.answers(token), "judged in the moment of the election"
    group.run(3_000 * MS)
    refused = group.answer_of(token)
    assert isinstance(refused, Rejected)
    assert refused.reason == "unhealthy"
    assert not group.members[leader].raft.configuration.joint


@pytest.mark.parametrize("itself", [False, True])
def test_a_member_whose_process_is_gone_counts_as_gone_before_its_silence_says_so(itself: bool) -> None:
    group = Asking()
    leader = group.leader
    dead, other = (i for i in sorted(group.members) if i != leader)
    group.crash(dead)
    group.handle(leader, PeerDown(dead))
    term = group.members[leader].raft.current_term
    token = group.ask(leader, RemoveMember(leader if itself else other))
    group.run(3_000 * MS)
    refused = group.answer_of(token)
    assert isinstance(refused, Rejected)
    assert refused.reason == "unhealthy"
    assert group.members[leader].raft.current_term == term, "leadership was handed over for nothing"


def test_a_member_that_came_back_counts_again() -> None:
    group = Asking()
    leader = group.leader
    back, other = (i for i in sorted(group.members) if i != leader)
    group.crash(back)
    group.handle(leader, PeerDown(back))
    group.start(back)
    token = group.ask(leader, RemoveMember(other))
    group.run(3_000 * MS)
    assert group.answer_of(token) is None


def test_one_change_after_the_other_all_asked_for_at_once() -> None:
    group = Asking()
    tokens = [group.ask(node, UpdateMember(node, (f"http://n{node}:{n}",))) for n in range(3) for node in (1, 2, 3)]
    group.run(4_000 * MS)
    assert [group.answer_of(token) for token in tokens] == [None] * 9


def test_the_bound_on_changes_under_way_holds() -> None:
    group = Asking()
    node = group.follower()
    group.cut = {(node, i) for i in group.members}
    tokens = [group.ask(node, UpdateMember(node, ("http://a:1",))) for _ in range(CHANGES_PENDING_MAX + 1)]
    assert len(group.answers(tokens[-1])) == 1
    assert not group.answers(tokens[-2])


def test_garbage_and_strangers_change_nothing() -> None:
    group = Asking()
    leader = group.leader
    term = group.members[leader].raft.current_term
    before = group.members[leader].raft.configuration
    remove = encode_change(UpdateMember(leader, ("http://elsewhere:1",)))
    for sender, message in [
        (group.follower(), ChangeMembers(term=term, request=1, payload=b"\xc1")),
        (99, ChangeMembers(term=term, request=2, payload=remove)),
        (group.follower(), ChangeMembers(term=term - 1, request=3, payload=remove)),
        (group.follower(), ChangeMembersReply(term=term, request=4, reason="")),
    ]:
        group.handle(leader, MessageReceived(sender, message))
    group.run(1_000 * MS)
    assert group.members[leader].raft.configuration == before


@pytest.mark.parametrize("add", [True, False])
def test_an_answer_that_was_lost_is_the_same_when_it_is_given_again(add: bool) -> None:
    group = Asking()
    group.disks[4] = type(group.disks[1])()
    node, other = (i for i in sorted(group.members) if i != group.leader)
    change = AddMember(4, ("http://m4:1",), 1) if add else RemoveMember(other, strict=False)
    lost: list[object] = []
    group.drop = lambda sender, to, message: (
        isinstance(message, ChangeMembersReply) and len(lost) < 1 and lost.append(message) is None
    )
    token = group.ask(node, change)
    group.run(4_500 * MS)
    assert lost
    assert group.answer_of(token) is None


def test_a_leader_that_may_not_change_anything_yet_waits_and_does_not_spin() -> None:
    group = Asking()
    old = group.leader
    group.drop = lambda sender, to, message: isinstance(message, AppendEntriesReply)
    group.crash(old)
    group.run(4_000 * MS)
    leader = group.leader
    token = group.ask(leader, UpdateMember(leader, ("http://moved:1",)))  # it has committed nothing in its term
    assert not group.answers(token)
    group.drop = lambda sender, to, message: False
    group.run(3_000 * MS)
    assert group.answer_of(token) is None


def test_an_answer_waits_until_it_shows_where_it_was_asked_for() -> None:
    group = Asking()
    leader, node = group.leader, group.follower()
    held: list[Any] = []

    def hold(sender: int, to: int, message: object) -> bool:
        if to == node and isinstance(message, AppendEntries):
            held.append(message)
            return True
        return False

    group.drop = hold
    token = group.ask(node, UpdateMember(node, ("http://moved:1",)))
    group.settle()
    assert group.members[leader].raft.committed_configuration == group.members[leader].raft.configuration
    assert group.urls(leader, node) == ("http://moved:1",)
    assert held
    assert not group.answers(token), "it was answered before it shows here"
    group.drop = lambda sender, to, message: False
    group.run(2_000 * MS)
    assert group.answer_of(token) is None
    assert group.urls(node, node) == ("http://moved:1",)
