"""The two text formats: what each event means, and that a bad line is named."""

from __future__ import annotations

import pytest

from oarlock.check import (
    UNKNOWN,
    Append,
    Cas,
    Get,
    MalformedHistory,
    Operation,
    Put,
    Read,
    Write,
    parse_jepsen_register,
    parse_kv_history,
)


def jepsen(*events: str) -> list[Operation]:
    return parse_jepsen_register([f"INFO  jepsen.util - {event}" for event in events])


def test_register_events() -> None:
    got = jepsen(
        "0\t:invoke\t:write\t4",
        "1\t:invoke\t:read\tnil",
        "0\t:ok\t:write\t4",
        "1\t:ok\t:read\t4",
        "1\t:invoke\t:cas\t[4 2]",
        "1\t:fail\t:cas\t[4 2]",
        "2\t:invoke\t:cas\t[4 1]",
        "2\t:ok\t:cas\t[4 1]",
    )
    assert [(one.call, one.result, one.start, one.end) for one in got] == [
        (Write(4), None, 1, 3),
        (Read(), 4, 2, 4),
        (Cas(4, 2), False, 5, 6),
        (Cas(4, 1), True, 7, 8),
    ]


def test_register_outcomes_that_are_not_known() -> None:
    got = jepsen(
        "0\t:invoke\t:write\t4",
        "0\t:info\t:write\t:timed-out",
        "1\t:invoke\t:read\tnil",
        "1\t:fail\t:read\t:timed-out",
        "2\t:invoke\t:cas\t[1 2]",
    )
    assert [(one.call, one.result, one.end) for one in got] == [(Write(4), UNKNOWN, None), (Cas(1, 2), UNKNOWN, None)]


def test_kv_events() -> None:
    got = parse_kv_history(
        [
            '{:process 0, :type :invoke, :f :put, :key "a", :value "x"}',
            '{:process 0, :type :ok, :f :put, :key "a", :value "x"}',
            '{:process 1, :type :invoke, :f :append, :key "b", :value "y"}',
            '{:process 0, :type :invoke, :f :get, :key "b", :value nil}',
            '{:process 0, :type :ok, :f :get, :key "b", :value ""}',
        ]
    )
    assert [(one.call, one.result, one.key) for one in got] == [
        (Put("x"), None, "a"),
        (Append("y"), UNKNOWN, "b"),
        (Get(), "", "b"),
    ]


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (["0\t:boom\t:read\tnil"], "line 1, column 23: not an event of a register: expected :invoke"),
        (["0\t:invoke\t:write\tfour"], "line 1, column 38: 'four' is not a number"),
        (["0\t:invoke\t:cas\t3"], r"line 1, column 36: a compare-and-set needs \[expected new\]"),
        (["0\t:ok\t:read\tnil"], "line 1, column 21: process 0 returns without a call"),
        (
            ["0\t:invoke\t:read\tnil", "0\t:invoke\t:read\tnil"],
            "line 2, column 21: process 0 calls while its call of line 1",
        ),
    ],
)
def test_bad_register_line_is_named(events: list[str], message: str) -> None:
    with pytest.raises(MalformedHistory, match=message):
        jepsen(*events)


def test_bad_kv_line_is_named() -> None:
    with pytest.raises(
        MalformedHistory, match="line 2, column 11: not an event of a key-value store: expected the number"
    ):
        parse_kv_history(["", "{:process 0}"])
