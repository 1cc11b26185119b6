"""The hot paths of etcd's messages by hand: the simplest shape of the most frequent requests, and all answers of the KV
service, whose key-values the machine already holds encoded. Everything else goes through `protobuf`.

A decoder here either recognises exactly the bytes that a canonical encoder writes for a simple request, or returns
None and the caller uses `protobuf`; so it cannot disagree with it.
"""

from __future__ import annotations

from collections.abc import Sequence

from oarlock.machines.kv.commands import DeleteResult, PutResult, RangeResult, TxnResult

_ONE = tuple(bytes((n,)) for n in range(128))
U64_MASK = 2**64 - 1


def varint(n: int) -> bytes:
    """`n` (-2**63 .. 2**64 - 1) as a protobuf varint."""
    if 0 <= n < 128:
        return _ONE[n]
    if 0 <= n < 16384:
        return bytes((n & 0x7F | 0x80, n >> 7))
    if 0 <= n < 2097152:
        return bytes((n & 0x7F | 0x80, n >> 7 & 0x7F | 0x80, n >> 14))
    n &= U64_MASK
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def decode_put(data: bytes) -> tuple[bytes, bytes] | None:
    """Key and value of a PutRequest that holds nothing else; None for any other bytes."""
    size = len(data)
    if size < 2 or data[0] != 0x0A:
        return None
    length = data[1]
    start = 2
    if length >= 0x80:
        if size < 3 or not 0 < data[2] < 0x80:
            return None
        length += (data[2] << 7) - 0x80
        start = 3
    end = start + length
    if end + 2 > size or data[end] != 0x12:
        return None
    key = data[start:end]
    length = data[end + 1]
    start = end + 2
    if length >= 0x80:
        if start >= size:
            return None
        length += (data[start] << 7) - 0x80
        start += 1
        if length >= 16384:
            if start >= size or not 0 < data[start] < 0x80:
                return None
            length += (data[start] << 14) - 0x4000
            start += 1
    if start + length != size:
        return None
    return key, data[start:]


def decode_get(data: bytes) -> bytes | None:
    """The key of a RangeRequest for one key, at the present revision, linearizable; None for any other bytes."""
    size = len(data)
    if size < 3 or data[0] != 0x0A or data[1] != size - 2 or data[1] >= 0x80:
        return None
    return data[2:]


class HeaderEncoder:
    """ResponseHeaders of one member: cluster and member id are encoded once, the term once for each term."""

    __slots__ = ("_prefix", "_term", "_suffix")

    def __init__(self, cluster_id: int, member_id: int) -> None:
        self._prefix = _uint(0x08, cluster_id) + _uint(0x10, member_id)
        self._term = 0
        self._suffix = b""

    def encode(self, revision: int, term: int) -> bytes:
        """The header as field 1 of a response."""
        if term != self._term:
            self._term = term
            self._suffix = _uint(0x20, term)
        body = self._prefix + (b"\x18" + varint(revision) if revision else b"") + self._suffix
        return b"\x0a" + _ONE[len(body)] + body


def _uint(tag: int, n: int) -> bytes:
    return _ONE[tag] + varint(n) if n else b""


def _field(tag: bytes, body: bytes) -> bytes:
    return tag + varint(len(body)) + body


def inner_header(revision: int) -> bytes:
    """The header of an answer inside a transaction: it carries the revision only."""
    body = _uint(0x18, revision)
    return b"\x0a" + _ONE[len(body)] + body


def put_response(header: bytes, result: PutResult) -> bytes:
    if result.prev_kv is None:
        return header
    return header + _field(b"\x12", result.prev_kv)


def delete_response(header: bytes, result: DeleteResult) -> bytes:
    parts = [header, _uint(0x10, result.deleted)]
    for kv in result.prev_kvs:
        parts += (b"\x1a", varint(len(kv)), kv)
    return b"".join(parts)


def get_response(header: bytes, kv: bytes | None) -> bytes:
    """The answer to a Range of one key."""
    if kv is None:
        return header
    return header + b"\x12" + varint(len(kv)) + kv + b"\x20\x01"


def range_response(header: bytes, result: RangeResult) -> bytes:
    return header + key_values(result.kvs) + range_end(result)


def key_values(kvs: Sequence[bytes]) -> bytes:
    """Key-values as fields of a RangeResponse."""
    parts: list[bytes] = []
    for kv in kvs:
        parts += (b"\x12", varint(len(kv)), kv)
    return b"".join(parts)


def range_end(result: RangeResult) -> bytes:
    """What comes after the key-values."""
    return (b"\x18\x01" if result.more else b"") + _uint(0x20, result.count)


NO_HEADER = b"\x0a\x00"
"""The header of a transaction inside another one."""


def txn_begin(result: TxnResult) -> bytes:
    return b"\x10\x01" if result.succeeded else b""


def txn_op(response: RangeResult | PutResult | DeleteResult | TxnResult, body: bytes) -> bytes:
    """One operation's response, which `body` is, as a field of a TxnResponse."""
    match response:
        case RangeResult():
            tag = b"\x0a"
        case PutResult():
            tag = b"\x12"
        case DeleteResult():
            tag = b"\x1a"
        case _:
            tag = b"\x22"
    return _field(b"\x1a", _field(tag, body))


def txn_response(header: bytes, result: TxnResult) -> bytes:
    parts = [header, txn_begin(result)]
    last: object = None
    for response in result.responses:
        if response is last:  # puts that have nothing more to say than others of their transaction
            parts.append(parts[-1])
            continue
        last = response
        match response:
            case RangeResult():
                body = range_response(inner_header(response.revision), response)
            case PutResult():
                body = put_response(inner_header(response.revision), response)
            case DeleteResult():
                body = delete_response(inner_header(response.revision), response)
            case _:
                body = txn_response(NO_HEADER, response)
        parts.append(txn_op(response, body))
    return b"".join(parts)
