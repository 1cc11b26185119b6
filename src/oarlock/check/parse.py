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


class MalformedHistory(ValueError):
    """A line is not of the format, or does not fit the lines before it. The text names the line."""


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
            raise MalformedHistory(f"line {number} is not an event of a register: {line.strip()!r}")
        process, kind, name, value = int(match[1]), match[2], match[3], match[4]
        if kind == "invoke":
            _begin(open_calls, number, process, _register_call(number, name, value))
            continue
        start, call = _end(open_calls, number, process)
        if kind == "info":
            operations.append(Operation(call=call, result=UNKNOWN, start=start, end=None, process=process))
        elif kind == "ok":
            result: Hashable = True if name == "cas" else (_register_value(number, value) if name == "read" else None)
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
            raise MalformedHistory(f"line {number} is not an event of a key-value store: {line.strip()!r}")
        process, kind, name, key, value = int(match[1]), match[2], match[3], match[4], match[5] or ""
        if kind == "invoke":
            call: Hashable = Get() if name == "get" else Put(value) if name == "put" else Append(value)
            _begin(open_calls, number, process, call)
            keys[process] = key
            continue
        start, call = _end(open_calls, number, process)
        result = value if name == "get" else None
        operations.append(
            Operation(call=call, result=result, start=start, end=number, process=process, key=keys[process])
        )
    return _with_unfinished(operations, open_calls, keys)


def _begin(open_calls: dict[int, tuple[int, Hashable]], number: int, process: int, call: Hashable) -> None:
    if process in open_calls:
        raise MalformedHistory(
            f"line {number}: process {process} calls while its call of line {open_calls[process][0]} is open"
        )
    open_calls[process] = (number, call)


def _end(open_calls: dict[int, tuple[int, Hashable]], number: int, process: int) -> tuple[int, Hashable]:
    try:
        return open_calls.pop(process)
    except KeyError:
        raise MalformedHistory(f"line {number}: process {process} returns without a call") from None


def _with_unfinished(
    operations: list[Operation], open_calls: dict[int, tuple[int, Hashable]], keys: dict[int, str]
) -> list[Operation]:
    for process, (start, call) in open_calls.items():
        key = keys.get(process)
        operations.append(Operation(call=call, result=UNKNOWN, start=start, end=None, process=process, key=key))
    operations.sort(key=lambda operation: operation.start)
    return operations


def _register_call(number: int, name: str, value: str) -> Hashable:
    if name == "read":
        return Read()
    if name == "write":
        return Write(_register_value(number, value))
    match = re.fullmatch(r"\[(\S+) (\S+)\]", value)
    if match is None:
        raise MalformedHistory(f"line {number}: a compare-and-set needs [expected new], not {value!r}")
    return Cas(_register_value(number, match[1]), _register_value(number, match[2]))


def _register_value(number: int, text: str) -> int | None:
    if text == "nil":
        return None
    try:
        return int(text)
    except ValueError:
        raise MalformedHistory(f"line {number}: {text!r} is not a number") from None
