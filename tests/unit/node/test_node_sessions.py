"""Client sessions and the other envelopes: exactly once, bounded, alike on every member. (diss. 6.3)"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from tests.support.member_group import MS, Group, ListMachine

from oarlock.errors import Outcome, Rejected
from oarlock.machines.base import Context
from oarlock.node.replica import MemberLimits, sessions
from oarlock.node.replica.directory import RECORD_BYTES_MAX, MemberRecord, decode_record, encode_record
from oarlock.node.replica.sessions import (
    RECORDS_MAX,
    REPLY_BYTES_MAX,
    SESSIONS_MAX,
    WINDOW_MAX,
    Envelope,
    SessionClosed,
    SessionExpired,
    SessionOpened,
    close_session,
    in_session,
    known_kind,
    open_session,
    plain,
    publish,
)
from oarlock.raft import events as raft_events


class State:
    """An envelope over a machine, fed entry by entry."""

    def __init__(self, machine: ListMachine | None = None) -> None:
        self.machine = machine if machine is not None else ListMachine()
        self.envelope = Envelope(self.machine)

    def apply(self, *commands: bytes, stamp: int = 1) -> list[Any]:
        index = self.machine.applied_index + 1
        results = self.envelope.apply(index, 1, stamp, commands)
        self.envelope.flush()
        return results

    def open(self, nonce: int = 1) -> int:
        (opened,) = self.apply(open_session(nonce))
        assert isinstance(opened, SessionOpened)
        return opened.session


def test_a_repeated_command_is_executed_once_and_gets_the_first_answer() -> None:
    state = State()
    session = state.open()
    command = in_session(session, 1, 1, b"x")
    assert state.apply(command) == [[0, b"x"]]
    assert state.apply(b"between", command) == [[1, b"between"], [0, b"x"]]
    assert state.machine.commands == [b"x", b"between"]


def test_a_command_repeated_within_one_entry_is_executed_once() -> None:
    state = State()
    session = state.open()
    command = in_session(session, 1, 1, b"x")
    assert state.apply(command, command) == [[0, b"x"], [0, b"x"]]
    assert state.machine.commands == [b"x"]


def test_order_of_sequence_numbers_does_not_matter() -> None:
    state = State()
    session = state.open()
    for sequence in (3, 1, 2, 3, 1):
        state.apply(in_session(session, sequence, 1, b"%d" % sequence))
    assert state.machine.commands == [b"3", b"1", b"2"]


def test_opening_again_with_the_same_nonce_gives_the_same_session() -> None:
    state = State()
    assert state.open(7) == state.open(7) != state.open(8)


def test_what_the_client_has_acknowledged_is_forgotten() -> None:
    state = State()
    session = state.open()
    state.apply(in_session(session, 1, 1, b"a"), in_session(session, 2, 2, b"b"))
    (result,) = state.apply(in_session(session, 1, 2, b"a"))
    assert isinstance(result, Rejected) and result.reason == "sequence_forgotten"
    assert state.machine.commands == [b"a", b"b"]


def test_the_window_of_outstanding_commands_is_bounded() -> None:
    state = State()
    session = state.open()
    (result,) = state.apply(in_session(session, 1 + WINDOW_MAX, 1, b"far"))
    assert isinstance(result, Rejected) and result.reason == "session_window"
    assert state.apply(in_session(session, WINDOW_MAX, 1, b"last")) == [[0, b"last"]]


def test_the_bytes_of_replies_are_bounded_but_the_command_stays_executed() -> None:
    state = State()
    session = state.open()
    large = b"x" * (REPLY_BYTES_MAX // 2)
    for sequence in (1, 2):
        state.apply(in_session(session, sequence, 1, large))
    assert state.apply(in_session(session, 1, 1, large)) == [[0, large]]
    (result,) = state.apply(in_session(session, 2, 1, large))
    assert isinstance(result, Rejected) and result.reason == "reply_not_kept" and result.outcome is Outcome.EXECUTED
    assert len(state.machine.commands) == 2
    assert sum(len(v) for v in state.machine.annex.values()) < 2 * REPLY_BYTES_MAX


def test_the_session_used_longest_ago_expires() -> None:
    state = State()
    first, second = state.open(1), state.open(2)
    state.apply(in_session(first, 1, 1, b"x"))  # now `second` is the oldest
    state.apply(*(open_session(100 + i) for i in range(SESSIONS_MAX - 1)))
    assert state.envelope.session_count == SESSIONS_MAX
    (expired,) = state.apply(in_session(second, 1, 1, b"y"))
    assert isinstance(expired, SessionExpired) and expired.session == second
    assert state.apply(in_session(first, 1, 1, b"x")) == [[0, b"x"]]
    assert len([k for k in state.machine.annex if k.startswith(sessions.SESSION_KEY)]) == SESSIONS_MAX


def test_a_closed_session_is_gone() -> None:
    state = State()
    session = state.open()
    assert state.apply(close_session(session), close_session(session)) == [SessionClosed(), SessionClosed()]
    (expired,) = state.apply(in_session(session, 1, 1, b"x"))
    assert isinstance(expired, SessionExpired)
    assert not state.machine.annex_items() or all(k == sessions.STAMP_KEY for k, _ in state.machine.annex_items())


def test_a_session_closed_later_in_its_entry_keeps_nothing() -> None:
    state = State()
    session = state.open()
    assert state.apply(in_session(session, 1, 1, b"x"), close_session(session)) == [[0, b"x"], SessionClosed()]
    assert state.envelope.session_count == 0


def test_sessions_survive_a_snapshot_and_the_order_of_use_does_too() -> None:
    one = State()
    ids = [one.open(0)]
    one.apply(in_session(ids[0], 1, 1, b"x"))
    ids += [one.open(n) for n in range(1, 5)]
    one.apply(in_session(ids[0], 1, 1, b"x"))  # a repetition is a use, too
    other = State()
    other.machine.restore(one.machine.applied_index, one.machine.capture().chunks())
    other.envelope.load()
    for state in (one, other):
        state.apply(*(open_session(100 + i) for i in range(SESSIONS_MAX - 4)))
        (expired,) = state.apply(in_session(ids[1], 1, 1, b"y"))
        assert isinstance(expired, SessionExpired)
        assert state.apply(in_session(ids[0], 1, 1, b"x")) == [[0, b"x"]]
    assert one.machine.encoded() == other.machine.encoded()


def test_the_time_of_entries_never_goes_back_not_even_over_a_restart() -> None:
    state = State()
    state.apply(b"a", stamp=10)
    state.apply(b"b", stamp=5)
    restarted = State(state.machine)
    restarted.apply(b"c", stamp=7)
    restarted.envelope.apply_empty(4, 1)
    restarted.apply(b"d", stamp=12)
    assert state.machine.times == [10, 10, 10, 12]
    assert restarted.envelope.stamp_ns == 12


def test_results_of_a_machines_own_classes_come_back_through_its_codec() -> None:
    class Result:
        def __init__(self, value: bytes) -> None:
            self.value = value

    class WithCodec(ListMachine):
        def apply(self, context: Context, commands: Sequence[bytes]) -> list[object]:
            super().apply(context, commands)
            return [Result(command) for command in commands]

        def encode_result(self, result: Any) -> bytes:
            value: bytes = result.value
            return value

        def decode_result(self, data: bytes) -> object:
            return Result(data)

    class WithoutCodec(ListMachine):
        def apply(self, context: Context, commands: Sequence[bytes]) -> list[object]:
            super().apply(context, commands)
            return [Result(command) for command in commands]

    state = State(WithCodec())
    command = in_session(state.open(), 1, 1, b"x")
    assert [state.apply(command)[0].value for _ in range(2)] == [b"x", b"x"]
    state = State(WithoutCodec())
    command = in_session(state.open(), 1, 1, b"x")
    assert state.apply(command)[0].value == b"x"
    assert isinstance(state.apply(command)[0], Rejected)


def test_commands_that_look_like_envelopes_reach_the_machine_as_they_are() -> None:
    state = State()
    odd = [b"", b"\x00", b"\x01abc", b"\x02", b"\x07z", b"\x08", b"plain"]
    results = state.apply(*(plain(command) for command in odd))
    assert [command for _, command in results] == odd == state.machine.commands


@pytest.mark.parametrize(
    "command", [b"\x00", b"\x00\xff\xff", b"\x00\x92\x09\x01", b"\x01\x92\x01", b"\x01\x92\x01\xc4\x01{"]
)
def test_malformed_envelopes_are_refused_alike(command: bytes) -> None:
    state = State()
    (result,) = state.apply(command)
    assert isinstance(result, Rejected) and result.reason == "malformed"
    assert state.machine.applied_index == 1


def test_a_kind_of_a_newer_version_stops_the_member() -> None:
    state = State()
    assert [known_kind(bytes([k])) for k in (0, 1, 2, 3, 7, 8, 255)] == [True, True, True, False, False, True, True]
    with pytest.raises(ValueError, match="upgrade this member"):
        state.apply(b"\x03later")


def test_published_records_are_bounded() -> None:
    state = State()
    for member in range(1, RECORDS_MAX + 3):
        state.apply(publish(member, encode_record(f"m{member}", [], ["http://c:1"])))
    assert len(state.envelope.records) == RECORDS_MAX
    assert state.envelope.record_of(1) is None and state.envelope.record_of(2) is None
    assert state.envelope.record_of(3) == MemberRecord("m3", (), ("http://c:1",))
    (result,) = state.apply(b"\x01" + msgspec.msgpack.encode([9, b'{"name":"' + b"x" * RECORD_BYTES_MAX + b'"}']))
    assert isinstance(result, Rejected)


def test_a_record_has_a_bound_and_a_form() -> None:
    assert decode_record(b"") == MemberRecord()
    assert decode_record(encode_record("n", ["http://a:1"])) == MemberRecord("n", ("http://a:1",), ())
    for bad in (b"{", b"[]", b'{"name":1}', b"x" * (RECORD_BYTES_MAX + 1)):
        with pytest.raises(ValueError):
            decode_record(bad)
    with pytest.raises(ValueError, match="at most"):
        encode_record("n", ["http://" + "h" * RECORD_BYTES_MAX])
    with pytest.raises(ValueError):
        encode_record("n" * 257, [])


def test_sessions_reach_a_member_by_snapshot() -> None:
    group = Group(limits=MemberLimits(snapshot_entries=3), tail_entries_max=1)
    leader = group.elect()
    behind = next(i for i in group.members if i != leader)
    group.isolate(behind)
    first = group.propose(leader, open_session(5))
    group.settle()
    opened = group.results[leader, first]
    assert isinstance(opened, SessionOpened)
    command = in_session(opened.session, 1, 1, b"once")
    for number in range(8):
        group.propose(leader, command if number == 0 else b"%d" % number)
        group.settle()
    group.heal()
    group.run(1_000 * MS)
    group.handle(group.leader, raft_events.TransferRequested(1, behind))
    group.run(1_000 * MS)
    assert group.leader == behind
    again = group.propose(behind, command)
    group.settle()
    assert group.results[behind, again] == [0, b"once"]
    assert len(group.applied()) == 1 and group.machines[behind].commands.count(b"once") == 1


def test_sessions_through_a_group_with_a_change_of_leader() -> None:
    """The client asks a second member because the first did not answer: it was executed all the same."""
    group = Group()
    old = group.elect()
    first = group.propose(old, open_session(99))
    group.settle()
    opened = group.results[old, first]
    assert isinstance(opened, SessionOpened)
    command = in_session(opened.session, 1, 1, b"once")
    asked = group.propose(old, command)
    group.settle()
    group.crash(old)
    new = group.elect()
    again = group.propose(new, command)
    group.settle()
    assert group.results[new, again] == group.results[old, asked] == [0, b"once"]
    assert group.machines[new].commands == [b"once"]
