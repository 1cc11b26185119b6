"""The JSON Lines form of histories. (docs/reference/check.md)

A line is an object: an *event* (it has a `type`) or a whole *operation* (it has a `start`); a file holds one kind only.
Events without a `time` happen in the order of their lines.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, Final

from oarlock.check.history import UNKNOWN, Operation
from oarlock.check.models import Append, Cas, Get, KeyValue, Model, Put, Read, Register, Swap, Write
from oarlock.check.parse import MalformedHistory

REGISTER_OPS: Final = ("read", "write", "cas", "swap")
KV_OPS: Final = ("get", "put", "append")
MODELS: Final[dict[str, Callable[[], Model]]] = {"register": Register, "kv": KeyValue}

_ARGUMENTS: Final[dict[str, tuple[str, ...]]] = {
    "read": (),
    "write": ("value",),
    "cas": ("expected", "value"),
    "swap": ("value",),
    "get": (),
    "put": ("value",),
    "append": ("value",),
}
_TYPES: Final = ("invoke", "ok", "fail", "info")
_CALL_FIELDS: Final = frozenset({"process", "op", "key", "value", "expected"})
_EVENT_FIELDS: Final = frozenset({"type", "process", "time", "result"})
_OPERATION_FIELDS: Final = _CALL_FIELDS | {"start", "end", "result"}
_DECODER: Final = json.JSONDecoder()


class _Line:
    """One line's object, which knows where its fields stand."""

    def __init__(self, number: int, text: str) -> None:
        self.number = number
        self.text = text
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise MalformedHistory(number, error.colno, f"not JSON: {error.msg}") from None
        if not isinstance(found, dict):
            raise MalformedHistory(number, 1, 'a line is a JSON object, such as {"type": "ok", "process": 0}')
        self.fields: dict[str, Any] = found

    def wrong(self, field: str, what: str) -> MalformedHistory:
        """`what` is wrong with a field, or with the line if it does not have it."""
        return MalformedHistory(self.number, self._columns().get(field, 1), what)

    def _columns(self) -> dict[str, int]:
        """Where the value of each field begins, counted from 1."""
        columns: dict[str, int] = {}
        text, at = self.text, self.text.index("{") + 1
        while True:
            while text[at] in " \t\r\n,":
                at += 1
            if text[at] == "}":
                return columns
            name, at = _DECODER.raw_decode(text, at)
            while text[at] in " \t\r\n:":
                at += 1
            columns[name] = at + 1
            _, at = _DECODER.raw_decode(text, at)

    def only(self, known: frozenset[str]) -> None:
        for field in self.fields:
            if field not in known:
                raise self.wrong(field, f"unknown field {field!r}; known are {', '.join(sorted(known))}")

    def process(self) -> int:
        found = self.fields.get("process")
        if not isinstance(found, int) or isinstance(found, bool) or found < 0:
            raise self.wrong("process", "`process` must be a number from 0: who asked")
        return found

    def number_at(self, field: str) -> float:
        found = self.fields.get(field)
        if not isinstance(found, int | float) or isinstance(found, bool):
            raise self.wrong(field, f"`{field}` must be a number: a reading of one clock for the whole history")
        return found

    def value(self, field: str) -> Hashable:
        return self._hashable(field, self.fields.get(field))

    def _hashable(self, field: str, value: Any) -> Hashable:
        if isinstance(value, list):
            return tuple(self._hashable(field, item) for item in value)
        if isinstance(value, dict):
            raise self.wrong(field, f"`{field}` must be null, a boolean, a number, a text or an array of these")
        return value  # type: ignore[no-any-return]

    def call(self) -> Hashable:
        op = self.fields.get("op")
        if op not in _ARGUMENTS:
            raise self.wrong("op", f"`op` must be one of {', '.join(_ARGUMENTS)}")
        for field in ("expected", "value"):
            if field in self.fields and field not in _ARGUMENTS[op]:
                raise self.wrong(field, f"`{op}` takes no `{field}`")
        for field in _ARGUMENTS[op]:
            if field not in self.fields:
                raise self.wrong("op", f"`{op}` needs `{field}`")
        value = self.value("value")
        if op in ("put", "append") and not isinstance(value, str):
            raise self.wrong("value", f"`{op}` takes a text")
        match op:
            case "read":
                return Read()
            case "write":
                return Write(value)
            case "cas":
                return Cas(self.value("expected"), value)
            case "swap":
                return Swap(value)
            case "get":
                return Get()
            case "put":
                return Put(str(value))
            case _:
                return Append(str(value))

    def result(self, call: Hashable) -> Hashable:
        found = self.value("result")
        if isinstance(call, Cas) and not isinstance(found, bool):
            raise self.wrong("result", "the result of `cas` is true or false")
        if isinstance(call, Get) and not isinstance(found, str):
            raise self.wrong("result", "the result of `get` is a text, empty for an absent key")
        if isinstance(call, Write | Put | Append):
            return None
        if "result" not in self.fields:
            raise self.wrong("type", f"`result` is missing: what did {_op_name(call)} answer?")
        return found


def parse_jsonl(lines: Iterable[str], model: str | None = None) -> tuple[str, list[Operation]]:
    """Read a history, and say which model it is for: `register` or `kv`, unless `model` has decided that already.

    Raises `MalformedHistory`, with line and column, for anything that is not a history of that model.
    """
    operations: list[Operation] = []
    events: _Events | None = None
    kind = ""
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        line = _Line(number, text)
        found = "events" if "type" in line.fields else "operations" if "start" in line.fields else ""
        if not found:
            raise MalformedHistory(number, 1, "neither an event (it would have a `type`) nor an operation (`start`)")
        if kind and found != kind:
            raise MalformedHistory(number, 1, f"the lines before are {kind}: a history holds one kind of line")
        kind = found
        if found == "events":
            events = events or _Events()
            call = events.take(line)
        else:
            operations.append(_operation(line))
            call = operations[-1].call
        if call is not None:
            of = "register" if _op_name(call) in REGISTER_OPS else "kv"
            model = model or of
            if of != model:
                raise line.wrong("op", f"`{_op_name(call)}` is not an operation of the model {model}")
    if events is not None:
        operations = events.operations()
    operations.sort(key=lambda operation: operation.start)
    return model or "register", operations


def dump_jsonl(operations: Iterable[Operation]) -> Iterator[str]:
    """The lines of a history, one operation each; what a `Recorder` wrote down, for `oarlock check`.

    Raises `TypeError` for calls of another model, and for values that JSON has no form for.
    """
    for operation in operations:
        call = operation.call
        line: dict[str, Any] = {"process": operation.process, "op": _op_name(call)}
        if operation.key is not None:
            line["key"] = operation.key
        for field in _ARGUMENTS[line["op"]]:
            line[field] = getattr(call, field)
        line["start"] = operation.start
        if operation.end is not None:
            line["end"] = operation.end
            if not isinstance(call, Write | Put | Append):
                line["result"] = operation.result
        yield json.dumps(line)


def _op_name(call: Hashable) -> str:
    name = type(call).__name__.lower()
    if name not in _ARGUMENTS:
        raise TypeError(f"the format knows {', '.join(_ARGUMENTS)}, not {call!r}")
    return name


def _operation(line: _Line) -> Operation:
    line.only(_OPERATION_FIELDS)
    process, call, start = line.process(), line.call(), line.number_at("start")
    if line.fields.get("end") is None:
        if line.fields.get("result") is not None:
            raise line.wrong("result", "an operation without an `end` has no result: nobody saw one")
        return Operation(call=call, result=UNKNOWN, start=start, end=None, process=process, key=line.value("key"))
    end = line.number_at("end")
    if end < start:
        raise line.wrong("end", f"the operation ends at {end:g}, before it starts at {start:g}")
    return Operation(call=call, result=line.result(call), start=start, end=end, process=process, key=line.value("key"))


class _Events:
    """Puts calls and returns together."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[int, float, Hashable, Hashable]] = {}  # process -> line, time, call, key
        self._done: list[Operation] = []
        self._last = float("-inf")
        self._timed: bool | None = None

    def take(self, line: _Line) -> Hashable:
        """One event. Returns the call if it is one."""
        kind = line.fields["type"]
        if kind not in _TYPES:
            raise line.wrong("type", f"`type` must be one of {', '.join(_TYPES)}")
        line.only(_EVENT_FIELDS | _CALL_FIELDS)
        process, now = line.process(), self._time(line)
        if kind == "invoke":
            if process in self._open:
                raise line.wrong(
                    "process", f"process {process} calls while its call of line {self._open[process][0]} is open"
                )
            call = line.call()
            self._open[process] = (line.number, now, call, line.value("key"))
            return call
        if process not in self._open:
            raise line.wrong("process", f"process {process} returns without a call")
        _, start, call, key = self._open.pop(process)
        if "op" in line.fields and line.fields["op"] != _op_name(call):
            raise line.wrong("op", f"process {process} has called `{_op_name(call)}`")
        if kind == "ok":
            self._done.append(
                Operation(call=call, result=line.result(call), start=start, end=now, process=process, key=key)
            )
        elif kind == "info":
            self._done.append(Operation(call=call, result=UNKNOWN, start=start, end=None, process=process, key=key))
        return None

    def _time(self, line: _Line) -> float:
        timed = "time" in line.fields
        if self._timed is not None and timed != self._timed:
            raise line.wrong("time", "either every event has a `time`, or none has: then their order counts")
        self._timed = timed
        now = line.number_at("time") if timed else line.number
        if now < self._last:
            raise line.wrong("time", f"time goes back from {self._last:g} to {now:g}: sort the events")
        self._last = now
        return now

    def operations(self) -> list[Operation]:
        """Everything; a call without a return has an unknown outcome."""
        left = [
            Operation(call=call, result=UNKNOWN, start=start, end=None, process=process, key=key)
            for process, (_, start, call, key) in self._open.items()
        ]
        return [*self._done, *left]
