"""JSON to messages and back, in the form that etcd's gateway has.

Bytes are base64, 64-bit integers decimal strings (numbers are taken too), enums names (numbers are taken too); fields
have their names from the schema (`range_end`; taken as `rangeEnd` too). What has its default value is left out of
answers.
Of requests, fields that are not known are ignored, `null` is the default, of a repeated field the last counts.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from functools import cache
from typing import Any, Final, NoReturn

from google.protobuf.descriptor import FieldDescriptor

_INT_RANGES: Final = {
    FieldDescriptor.TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_UINT64: (0, (1 << 64) - 1),
    FieldDescriptor.TYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.TYPE_ENUM: (-(1 << 31), (1 << 31) - 1),
}
_AS_STRING: Final = frozenset({FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT64})
_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,19})\Z")
_HALF_PAIR: Final = re.compile("[\ud800-\udfff]")
_SPACE: Final = b" \t\r\n"
_TOKEN: Final = re.compile(rb'["{}\[\]]')
_IN_STRING: Final = re.compile(rb'["\\]')
_SCALAR_END: Final = re.compile(rb"[\s{}\[\]\"]")


class BadJson(ValueError):
    """The body is no JSON, or no JSON of the message that is asked for. The text is for the client."""


class _Number(str):
    """A number as it was written: what it has to fit in is known later."""

    __slots__ = ()


def _no_constant(name: str) -> NoReturn:
    raise BadJson(f"{name} is no JSON value")


_DECODER: Final = json.JSONDecoder(
    parse_int=_Number, parse_float=_Number, parse_constant=_no_constant
)  # fmt: skip


class Splitter:
    """Cuts a body that comes in pieces into JSON values, without parsing one twice. Bounds how deep they are nested."""

    def __init__(self, depth_max: int) -> None:
        self._depth_max = depth_max
        self._buffer = bytearray()
        self._at = 0  # up to here it has been looked at
        self._depth = 0
        self._scalar = False  # inside a value that has no end of its own
        self._string = False  # inside a string

    def __len__(self) -> int:
        """Bytes of the value that is not complete yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """The values that `data` completes. Raises `BadJson` for one nested too deep."""
        buffer = self._buffer
        buffer += data
        found = []
        while (end := self._scan()) is not None:
            found.append(bytes(buffer[:end]))
            del buffer[:end]
            self._at = self._depth = 0
            self._scalar = False
        return found

    def end(self) -> bytes | None:
        """What is left when the body has ended: a last value, or None. Raises `BadJson` for half of one."""
        rest = bytes(self._buffer).strip(_SPACE)
        self._buffer.clear()
        if not rest:
            return None
        if not self._scalar:
            raise BadJson("unexpected EOF")
        return rest

    def _scan(self) -> int | None:
        """Where the first value ends, None if that is not known yet."""
        buffer = self._buffer
        if self._depth == 0 and not self._scalar:
            start = 0
            while start < len(buffer) and buffer[start] in _SPACE:
                start += 1
            del buffer[:start]
            if not buffer:
                return None
            if buffer[0] not in b'{["':
                self._scalar = True
        if self._scalar:
            found = _SCALAR_END.search(buffer, self._at)
            if found is None:
                self._at = len(buffer)
                return None
            return max(1, found.start())  # a bracket that closes nothing is a bad value of its own
        while True:
            token = (_IN_STRING if self._string else _TOKEN).search(buffer, self._at)
            if token is None:
                self._at = len(buffer)
                return None
            byte = buffer[token.start()]
            if byte == 0x5C:
                if token.end() == len(buffer):
                    self._at = token.start()
                    return None
                self._at = token.end() + 1  # what is escaped is not looked at
                continue
            self._at = token.end()
            if byte == 0x22:
                self._string = not self._string
            else:
                self._depth += 1 if byte in b"{[" else -1
                if self._depth > self._depth_max:
                    raise BadJson(f"JSON nested deeper than {self._depth_max} levels")
            if self._depth <= 0 and not self._string:
                return self._at


def parse(text: bytes) -> Any:
    """One JSON value, its numbers as they were written. Raises `BadJson`."""
    try:
        value, _ = _DECODER.raw_decode(text.decode("utf-8", "replace"))
    except json.JSONDecodeError as error:
        raise BadJson(f"invalid JSON: {error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise BadJson("JSON nested too deep") from error
    return value


@cache
def _plan(descriptor: Any) -> dict[str, Any]:
    """The fields of a message by each of their JSON names."""
    names = {field.name: field for field in descriptor.fields}
    return names | {field.json_name: field for field in descriptor.fields}


def fill(message: Any, value: Any, path: str = "") -> None:
    """Set the fields of `message` from a JSON value. Raises `BadJson`."""
    if value is None:
        return
    if not isinstance(value, dict):
        raise BadJson(f"{path or 'the body'} has to be an object, not {_kind(value)}")
    plan = _plan(message.DESCRIPTOR)
    chosen: dict[str, tuple[Any, Any]] = {}
    for name, item in value.items():
        field = plan.get(name)
        if field is not None and (field.name not in chosen or name == field.json_name):
            chosen[field.name] = field, item  # where a field comes under both of its names, etcd takes this one
    for name, (field, item) in chosen.items():
        where = f"{path}.{name}" if path else name
        if item is None:
            continue
        if not is_repeated(field):
            _set(message, field, item, where)
            continue
        if not isinstance(item, list):
            raise BadJson(f"{where} has to be an array, not {_kind(item)}")
        target = getattr(message, name)
        for number, element in enumerate(item):
            if field.message_type is not None:
                fill(target.add(), element, f"{where}[{number}]")
            elif element is not None:
                target.append(_scalar(field, element, f"{where}[{number}]"))


def is_repeated(field: Any) -> bool:
    repeated = getattr(field, "is_repeated", None)  # newer libraries warn of `label`
    return bool(field.label == FieldDescriptor.LABEL_REPEATED if repeated is None else repeated)


def _set(message: Any, field: Any, item: Any, where: str) -> None:
    if field.message_type is not None:
        target = getattr(message, field.name)
        target.SetInParent()
        fill(target, item, where)
    else:
        setattr(message, field.name, _scalar(field, item, where))


def _scalar(field: Any, item: Any, where: str) -> Any:
    kind = field.type
    if kind == FieldDescriptor.TYPE_ENUM and isinstance(item, str) and not isinstance(item, _Number):
        number = field.enum_type.values_by_name.get(item)
        if number is None:
            raise BadJson(f"{where}: unknown value {item[:100]!r} for enum {field.enum_type.full_name}")
        return number.number
    if kind in _INT_RANGES:
        low, high = _INT_RANGES[kind]
        if not isinstance(item, str) or not _INTEGER.match(item) or not low <= int(item) <= high:
            raise BadJson(f"{where} has to be an integer from {low} to {high}")
        return int(item)
    if kind == FieldDescriptor.TYPE_BOOL:
        if not isinstance(item, bool):
            raise BadJson(f"{where} has to be true or false, not {_kind(item)}")
        return item
    if not isinstance(item, str) or isinstance(item, _Number):
        raise BadJson(f"{where} has to be a string, not {_kind(item)}")
    if kind == FieldDescriptor.TYPE_STRING:
        return _HALF_PAIR.sub("\ufffd", item)  # half of a surrogate pair is no text
    assert kind == FieldDescriptor.TYPE_BYTES, f"{field.full_name} has a type that the gateway does not know"
    text = item.replace("\n", "").replace("\r", "")
    if len(text) % 4 or "=" in text[:-2]:  # the library takes more padding than there should be
        raise BadJson(f"{where}: illegal base64 data: its length is {len(text)}")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadJson(f"{where}: illegal base64 data: {error}") from error


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    for kind, name in (
        (bool, "a truth value"), (_Number, "a number"), (str, "a string"), (list, "an array"), (dict, "an object"),
    ):  # fmt: skip
        if isinstance(value, kind):
            return name
    raise AssertionError(f"JSON has no {type(value).__name__}")


def show(message: Any) -> dict[str, Any]:
    """A message as the value that `json.dumps` takes."""
    shown: dict[str, Any] = {}
    for field, value in message.ListFields():
        if is_repeated(field):
            shown[field.name] = [_shown(field, item) for item in value]
        else:
            shown[field.name] = _shown(field, value)
    return shown


def _shown(field: Any, value: Any) -> Any:
    kind = field.type
    if field.message_type is not None:
        return show(value)
    if kind == FieldDescriptor.TYPE_BYTES:
        return base64.b64encode(value).decode("ascii")
    if kind in _AS_STRING:
        return str(value)
    if kind == FieldDescriptor.TYPE_ENUM:
        name = field.enum_type.values_by_number.get(value)
        return value if name is None else name.name
    return value


def dump(value: Any) -> bytes:
    """JSON as it is sent."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
