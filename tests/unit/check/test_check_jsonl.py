"""Histories as JSON Lines: what a line means, that reading undoes writing, and that errors name the place."""

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
    Swap,
    Write,
    dump_jsonl,
    parse_jsonl,
)


def test_events() -> None:
    model, got = parse_jsonl(
        [
            '{"type": "invoke", "process": 0, "op": "write", "key": "x", "value": 1}',
            '{"type": "invoke", "process": 1, "op": "cas", "key": "x", "expected": 1, "value": [2, "b"]}',
            "",
            '{"type": "ok", "process": 0}',
            '{"type": "ok", "process": 1, "result": false}',
            '{"type": "invoke", "process": 0, "op": "read", "key": "x"}',
            '{"type": "fail", "process": 0}',
            '{"type": "invoke", "process": 0, "op": "swap", "key": "x", "value": null}',
            '{"type": "info", "process": 0}',
            '{"type": "invoke", "process": 0, "op": "read"}',
        ]
    )
    assert model == "register"
    assert [(o.call, o.result, o.start, o.end, o.key) for o in got] == [
        (Write(1), None, 1, 4, "x"),
        (Cas(1, (2, "b")), False, 2, 5, "x"),
        (Swap(None), UNKNOWN, 8, None, "x"),
        (Read(), UNKNOWN, 10, None, None),
    ]


def test_times_go_before_lines() -> None:
    _, got = parse_jsonl(
        [
            '{"type": "invoke", "process": 3, "op": "get", "key": "k", "time": 0.5}',
            '{"type": "ok", "process": 3, "result": "", "time": 0.75}',
        ],
    )
    assert got == [Operation(call=Get(), result="", start=0.5, end=0.75, process=3, key="k")]


def test_what_is_written_is_read() -> None:
    history = [
        Operation(call=Put("v"), result=None, start=1, end=2, process=0, key="a"),
        Operation(call=Append("w"), result=UNKNOWN, start=3, end=None, process=1, key="a"),
        Operation(call=Get(), result="vw", start=4, end=5.5, process=2, key="b"),
    ]
    assert parse_jsonl(dump_jsonl(history)) == ("kv", history)
    register = [
        Operation(call=Cas(None, 2), result=True, start=1, end=2),
        Operation(call=Swap("x"), result=2, start=2, end=3),
        Operation(call=Read(), result=("a", 1), start=3, end=4),
    ]
    assert parse_jsonl(dump_jsonl(register)) == ("register", register)


EVENT = '{"type": "invoke", "process": 0, "op": "write", "value": 1}'
OPERATION = '{"process": 0, "op": "write", "value": 1, "start": 1, "end": 2}'


@pytest.mark.parametrize(
    ("lines", "line", "column", "what"),
    [
        (["{"], 1, 2, "not JSON"),
        (['{"process": 0, "op" "read"}'], 1, 21, "not JSON"),
        (["[1]"], 1, 1, "a line is a JSON object"),
        (['{"process": 0}'], 1, 1, "neither an event"),
        ([EVENT, OPERATION], 2, 1, "the lines before are events"),
        (['{"type": "call", "process": 0}'], 1, 10, "`type` must be one of"),
        (['{"type": "invoke", "process": "a", "op": "read"}'], 1, 31, "`process` must be a number"),
        (['{"type": "invoke", "process": 0, "op": "reed"}'], 1, 40, "`op` must be one of"),
        (['{"type": "invoke", "process": 0, "op": "read", "valeu": 1}'], 1, 57, "unknown field 'valeu'"),
        (['{"type": "invoke", "process": 0, "op": "read", "value": 1}'], 1, 57, "`read` takes no `value`"),
        (['{"type": "invoke", "process": 0, "op": "cas", "value": 1}'], 1, 40, "`cas` needs `expected`"),
        (['{"type": "invoke", "process": 0, "op": "write", "value": {"a": 1}}'], 1, 58, "must be null, a boolean"),
        (['{"type": "invoke", "process": 0, "op": "put", "value": 1}'], 1, 56, "`put` takes a text"),
        ([EVENT, EVENT], 2, 31, "calls while its call of line 1 is open"),
        (['{"type": "ok", "process": 4}'], 1, 27, "returns without a call"),
        (['{"type": "invoke", "process": 0, "op": "read"}', '{"type": "ok", "process": 0}'], 2, 10, "is missing"),
        ([EVENT, '{"type": "ok", "process": 0, "time": 2}'], 2, 38, "every event has a `time`, or none"),
        (
            [EVENT[:-1] + ', "time": 5}', '{"type": "ok", "process": 0, "time": 2}'],
            2,
            38,
            "time goes back from 5 to 2",
        ),
        ([EVENT, '{"type": "ok", "process": 0, "op": "read"}'], 2, 36, "process 0 has called `write`"),
        (['{"process": 0, "op": "read", "start": 2, "end": 1}'], 1, 49, "ends at 1, before it starts at 2"),
        (['{"process": 0, "op": "read", "start": 2, "result": 1}'], 1, 52, "without an `end` has no result"),
        ([EVENT, '{"type": "invoke", "process": 1, "op": "get"}'], 2, 40, "not an operation of the model register"),
    ],
)
def test_a_wrong_line_is_named(lines: list[str], line: int, column: int, what: str) -> None:
    with pytest.raises(MalformedHistory, match=what) as caught:
        parse_jsonl(lines)
    assert (caught.value.line, caught.value.column) == (line, column), str(caught.value)


def test_a_call_of_another_model_is_not_written() -> None:
    with pytest.raises(TypeError, match="the format knows"):
        list(dump_jsonl([Operation(call="beep", result=None, start=1, end=2)]))
