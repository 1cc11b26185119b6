"""Readers of two text formats in which histories are published.

Both give one line to an event. The line number serves as the clock: only the order of events matters.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from typing import Final

from oarlock.check.history import UNKNOWN, Operation
from oarlock.check.models import Append, Cas, Get, Put, Read, Write

_REGISTER_LINE: Final = re.compile(
    r"^INFO\s+jepsen\.util\s+-\s+(\d+)\s+:(invoke|ok|fail|info)\s+:(read|write|cas)\s+(.*?)\s*$"
)
_KV_LINE: Final = re.compile(
    r'^\{:process (\d+), :type :(invoke|ok), :f :(get|put|append), :key "([^"]*)", :value (?:nil|"([^"]*)")\}\s*$'
)
# The same lines in pieces, each with what it is, to say where a line goes wrong.
_REGISTER_PIECES: Final = (
    (r"INFO\s+jepsen\.util\s+-\s+", "`INFO jepsen.util - `"),
    (r"\d+\s+", "the number of a process"),
    (r":(invoke|ok|fail|info)\s+", ":invoke, :ok, :fail or :info"),
    (r":(read|write|cas)\s+", ":read, :write or :cas, and a value"),
)
_KV_PIECES: Final = (
    (r"\{:process ", "`{:process `"),
    (r"\d+, :type ", "the number of a process, then `, :type `"),
    (r":(invoke|ok), :f ", ":invoke or :ok, then `, :f `"),
    (r":(get|put|append), :key ", ":get, :put or :append, then `, :key `"),
    (r'"[^"]*", :value ', "a quoted key, then `, :value `"),
    (r'(nil|"[^"]*")\}\s*$', "nil or a quoted text, then `}` and the end of the line"),
)


class MalformedHistory(ValueError):
    """A line is not of the format, or does not fit the lines before it. `line` and `column` count from 1."""

    def __init__(self, line: int, column: int, what: str) -> None:
        super().__init__(f"line {line}, column {column}: {what}")
        self.line = line
        self.column = column
        self.what = what


def parse_jepsen_register(lines: Iterable[str]) -> list[Operation]:
    """Read a Jepsen log of one register (`INFO jepsen.util - process, :type, :operation, value`).

    `:info` leaves the outcome unknown, so does a call without an end. A failed compare-and-set is an observation (the
    value was another); a failed read tells nothing; a failed write did not happen. Raises `MalformedHistory`.
    """
    operations: list[Operation] = []
    open_calls: dict[int, tuple[int, Hashable]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = _REGISTER_LINE.match(line)
        if match is None:
            raise _not_an_event(number, line, "a register", _REGISTER_PIECES)
        process, kind, name, value = int(match[1]), match[2], match[3], match[4]
        if kind == "invoke":
            _begin(
                open_calls, number, match.start(1) + 1, process, _register_call(number, match.start(4) + 1, name, value)
            )
            continue
        start, call = _end(open_calls, number, match.start(1) + 1, process)
        if kind == "info":
            operations.append(Operation(call=call, result=UNKNOWN, start=start, end=None, process=process))
        elif kind == "ok":
            result: Hashable = (
                True
                if name == "cas"
                else (_register_value(number, match.start(4) + 1, value) if name == "read" else None)
            )
            operations.append(Operation(call=call, result=result, start=start, end=number, process=process))
        elif name == "cas":
            operations.append(Operation(call=call, result=False, start=start, end=number, process=process))
    return _with_unfinished(operations, open_calls, {})


def parse_kv_history(lines: Iterable[str]) -> list[Operation]:
    """Read a history of a store with get, put and append (`{:process 0, :type :ok, :f :get, :key "k", :value "v"}`).

    Raises `MalformedHistory`.
    """
    operations: list[Operation] = []
    open_calls: dict[int, tuple[int, Hashable]] = {}
    keys: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = _KV_LINE.match(line)
        if match is None:
            raise _not_an_event(number, line, "a key-value store", _KV_PIECES)
        process, kind, name, key, value = int(match[1]), match[2], match[3], match[4], match[5] or ""
        if kind == "invoke":
            call: Hashable = Get() if name == "get" else Put(value) if name == "put" else Append(value)
            _begin(open_calls, number, match.start(1) + 1, process, call)
            keys[process] = key
            continue
        start, call = _end(open_calls, number, match.start(1) + 1, process)
        result = value if name == "get" else None
        operations.append(
            Operation(call=call, result=result, start=start, end=number, process=process, key=keys[process])
        )
    return _with_unfinished(operations, open_calls, keys)


def _not_an_event(number: int, line: str, of: str, pieces: tuple[tuple[str, str], ...]) -> MalformedHistory:
    """What to say of a line that does not match: where it stops to, and what was expected there."""
    at = 0
    for pattern, what in pieces:
        match = re.compile(pattern).match(line, at)
        if match is None:
            return MalformedHistory(number, at + 1, f"not an event of {of}: expected {what}")
        at = match.end()
    return MalformedHistory(number, at + 1, f"not an event of {of}")


def _begin(open_calls: dict[int, tuple[int, Hashable]], number: int, column: int, process: int, call: Hashable) -> None:
    if process in open_calls:
        raise MalformedHistory(
            number, column, f"process {process} calls while its call of line {open_calls[process][0]} is open"
        )
    open_calls[process] = (number, call)


def _end(open_calls: dict[int, tuple[int, Hashable]], number: int, column: int, process: int) -> tuple[int, Hashable]:
    try:
        return open_calls.pop(process)
    except KeyError:
        raise MalformedHistory(number, column, f"process {process} returns without a call") from None


def _with_unfinished(
    operations: list[Operation], open_calls: dict[int, tuple[int, Hashable]], keys: dict[int, str]
) -> list[Operation]:
    for process, (start, call) in open_calls.items():
        key = keys.get(process)
        operations.append(Operation(call=call, result=UNKNOWN, start=start, end=None, process=process, key=key))
    operations.sort(key=lambda operation: operation.start)
    return operations


def _register_call(number: int, column: int, name: str, value: str) -> Hashable:
    if name == "read":
        return Read()
    if name == "write":
        return Write(_register_value(number, column, value))
    match = re.fullmatch(r"\[(\S+) (\S+)\]", value)
    if match is None:
        raise MalformedHistory(number, column, f"a compare-and-set needs [expected new], not {value!r}")
    return Cas(
        _register_value(number, column + match.start(1), match[1]),
        _register_value(number, column + match.start(2), match[2]),
    )


def _register_value(number: int, column: int, text: str) -> int | None:
    if text == "nil":
        return None
    try:
        return int(text)
    except ValueError:
        raise MalformedHistory(number, column, f"{text!r} is not a number") from None
