"""What a server's answers look like to a Python program, and how transactions are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from oarlock.api import proto

RangeRequest: Final = proto.message("etcdserverpb.RangeRequest")
PutRequest: Final = proto.message("etcdserverpb.PutRequest")
DeleteRangeRequest: Final = proto.message("etcdserverpb.DeleteRangeRequest")
TxnRequest: Final = proto.message("etcdserverpb.TxnRequest")
CompareMessage: Final = proto.message("etcdserverpb.Compare")
RequestOp: Final = proto.message("etcdserverpb.RequestOp")

Text = bytes | str
"""Keys and values are bytes; a str is its UTF-8."""


def raw(text: Text) -> bytes:
    if isinstance(text, str):
        return text.encode()
    if isinstance(text, bytes | bytearray | memoryview):
        return bytes(text)
    raise TypeError(f"keys and values are bytes or str, not {type(text).__name__}")


def span(key: Text, prefix: bool, range_end: Text) -> tuple[bytes, bytes]:
    """The first key and the end of a range. An empty key without an end would mean the one key `\\0` to a server.

    >>> span("a", False, ""), span("a", True, ""), span("", True, ""), span("", False, "c")
    ((b'a', b''), (b'a', b'b'), (b'\\x00', b'\\x00'), (b'\\x00', b'c'))
    """
    start, end = raw(key), raw(range_end)
    if prefix and end:
        raise ValueError("give prefix=True or a range_end, not both")
    if not start and not end and not prefix:
        raise ValueError("the key is empty: give one, or prefix=True for all keys")
    return start or b"\0", prefix_end(start) if prefix else end


def prefix_end(prefix: bytes) -> bytes:
    """The end of the range of all keys that begin with `prefix`.

    >>> prefix_end(b"ab"), prefix_end(b"a\\xff"), prefix_end(b"")
    (b'ac', b'b', b'\\x00')
    """
    for at in range(len(prefix) - 1, -1, -1):
        if prefix[at] < 0xFF:
            return prefix[:at] + bytes([prefix[at] + 1])
    return b"\0"


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as it was at one revision."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int

    @property
    def text(self) -> str:
        """The value as UTF-8."""
        return self.value.decode()


@dataclass(frozen=True, slots=True)
class Deleted:
    """What a deletion did."""

    count: int
    previous: tuple[KeyValue, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Page:
    """The answer to a range: `more` if a limit cut it, `count` of all keys in the range."""

    items: tuple[KeyValue, ...]
    count: int
    more: bool
    revision: int


@dataclass(frozen=True, slots=True)
class Event:
    """One change that a watch saw. `kind` is "put" or "delete"."""

    kind: str
    kv: KeyValue
    previous: KeyValue | None

    @property
    def is_create(self) -> bool:
        return self.kind == "put" and self.kv.create_revision == self.kv.mod_revision


def key_value(message: Any) -> KeyValue:
    return KeyValue(
        message.key, message.value, message.create_revision, message.mod_revision, message.version, message.lease
    )


# ------------------------------------------------------------------ transactions as expressions

_TARGETS: Final = {"version": 0, "create_revision": 1, "mod_revision": 2, "value": 3, "lease": 4}
_RESULTS: Final = {"==": 0, ">": 1, "<": 2, "!=": 3}


@dataclass(frozen=True, slots=True)
class Condition:
    """A comparison for `Txn`: made by writing it, `Key("a").value == "x"`."""

    key: bytes
    target: str
    result: str
    operand: bytes | int
    range_end: bytes = b""

    def message(self) -> Any:
        made = CompareMessage(
            key=self.key, target=_TARGETS[self.target], result=_RESULTS[self.result], range_end=self.range_end
        )
        setattr(made, self.target, self.operand)
        return made

    def __bool__(self) -> bool:
        raise TypeError("a condition is for Txn.when(...): it has no truth of its own here, the server decides it")


class _Field:
    """One property of a key, to be compared."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, key: bytes, range_end: bytes, target: str) -> None:
        self._key, self._range_end, self._target = key, range_end, target

    def _condition(self, result: str, operand: object) -> Condition:
        if self._target == "value":
            if not isinstance(operand, bytes | str):
                raise TypeError(f"a value is compared with bytes or str, not {type(operand).__name__}")
            return Condition(self._key, self._target, result, raw(operand), self._range_end)
        if not isinstance(operand, int):
            raise TypeError(f"{self._target} is compared with an int, not {type(operand).__name__}")
        return Condition(self._key, self._target, result, operand, self._range_end)

    def __eq__(self, other: object) -> Condition:  # type: ignore[override]
        return self._condition("==", other)

    def __ne__(self, other: object) -> Condition:  # type: ignore[override]
        return self._condition("!=", other)

    def __gt__(self, other: object) -> Condition:
        return self._condition(">", other)

    def __lt__(self, other: object) -> Condition:
        return self._condition("<", other)


class Key:
    """A key in the conditions of a transaction: `Key("a").value == "x"`, `Key("a").version > 3`, `~Key("a").exists`.

    With `prefix`, or `range_end`, a condition must hold for every key there is in the range.
    """

    def __init__(self, key: Text, *, prefix: bool = False, range_end: Text = b"") -> None:
        self.key, end = span(key, prefix, range_end)
        self.value = _Field(self.key, end, "value")
        self.version = _Field(self.key, end, "version")
        self.create_revision = _Field(self.key, end, "create_revision")
        self.mod_revision = _Field(self.key, end, "mod_revision")
        self.lease = _Field(self.key, end, "lease")

    @property
    def exists(self) -> Condition:
        return self.create_revision > 0

    @property
    def missing(self) -> Condition:
        return self.create_revision == 0


@dataclass(frozen=True, slots=True)
class Put:
    """A write within a transaction."""

    key: Text
    value: Text
    lease: int = 0
    previous: bool = False

    def message(self) -> Any:
        return RequestOp(
            request_put=PutRequest(key=raw(self.key), value=raw(self.value), lease=self.lease, prev_kv=self.previous)
        )


@dataclass(frozen=True, slots=True)
class Get:
    """A read within a transaction."""

    key: Text
    prefix: bool = False
    range_end: Text = b""
    limit: int = 0

    def message(self) -> Any:
        key, end = span(self.key, self.prefix, self.range_end)
        return RequestOp(request_range=RangeRequest(key=key, range_end=end, limit=self.limit))


@dataclass(frozen=True, slots=True)
class Delete:
    """A deletion within a transaction."""

    key: Text
    prefix: bool = False
    range_end: Text = b""
    previous: bool = False

    def message(self) -> Any:
        key, end = span(self.key, self.prefix, self.range_end)
        return RequestOp(request_delete_range=DeleteRangeRequest(key=key, range_end=end, prev_kv=self.previous))


@dataclass(frozen=True, slots=True)
class Txn:
    """If all of `when` hold, do `then`, else `otherwise`; at one revision, all or nothing.

    Txn(when=[Key("a").value == "1"], then=[Put("a", "2")], otherwise=[Get("a")])
    """

    when: Sequence[Condition] = ()
    then: Sequence[Put | Get | Delete | Txn] = ()
    otherwise: Sequence[Put | Get | Delete | Txn] = ()

    def request(self) -> Any:
        for name, kinds in (
            ("when", Condition),
            ("then", Put | Get | Delete | Txn),
            ("otherwise", Put | Get | Delete | Txn),
        ):
            for each in getattr(self, name):
                if not isinstance(each, kinds):
                    raise TypeError(
                        f"{name} has {each!r}: "
                        + (
                            'conditions are like Key("a").value == "x"'
                            if name == "when"
                            else "operations are Put, Get, Delete and Txn"
                        )
                    )
        return TxnRequest(
            compare=[condition.message() for condition in self.when],
            success=[op.message() for op in self.then],
            failure=[op.message() for op in self.otherwise],
        )

    def message(self) -> Any:
        return RequestOp(request_txn=self.request())


@dataclass(frozen=True, slots=True)
class TxnResult:
    """`succeeded` says whether the conditions held; `results` has one thing for each operation done: a `Page` for a
    `Get`, the previous `KeyValue` or None for a `Put`, a `Deleted`, a `TxnResult`."""

    succeeded: bool
    results: tuple[Page | KeyValue | Deleted | TxnResult | None, ...]
    revision: int


def page(response: Any, revision: int) -> Page:
    return Page(tuple(map(key_value, response.kvs)), response.count, response.more, revision)


def deleted(response: Any, revision: int) -> Deleted:
    return Deleted(response.deleted, tuple(map(key_value, response.prev_kvs)), revision)


def txn_result(response: Any, revision: int) -> TxnResult:
    results: list[Page | KeyValue | Deleted | TxnResult | None] = []
    for each in response.responses:
        match each.WhichOneof("response"):
            case "response_range":
                results.append(page(each.response_range, revision))
            case "response_put":
                put = each.response_put
                results.append(key_value(put.prev_kv) if put.HasField("prev_kv") else None)
            case "response_delete_range":
                results.append(deleted(each.response_delete_range, revision))
            case _:
                results.append(txn_result(each.response_txn, revision))
    return TxnResult(response.succeeded, tuple(results), revision)
