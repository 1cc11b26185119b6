"""The stored forms of the key-value machine, by hand: they are on its hottest path.

A key-value is stored as the protobuf encoding of etcd's `mvccpb.KeyValue` (key 1, create_revision 2, mod_revision 3,
version 4, value 5, lease 6; ascending, zero fields left out), byte for byte what protobuf libraries write, so that the
answer to a range is a join of stored bytes.
"""

from __future__ import annotations

from typing import NamedTuple

_ONE_OR_TWO = tuple(bytes((n,)) if n < 0x80 else bytes((n & 0x7F | 0x80, n >> 7)) for n in range(1 << 14))
_CONTINUED = tuple(bytes((n & 0x7F | 0x80, n >> 7 | 0x80)) for n in range(1 << 14))

INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1


def varint(number: int) -> bytes:
    """A base-128 varint; a negative int64 as protobuf has it, in ten bytes.

    >>> varint(300).hex(), len(varint(-1))
    ('ac02', 10)
    """
    if number < 0:
        number += 1 << 64
    elif number < 1 << 14:
        return _ONE_OR_TWO[number]
    if number < 1 << 28:
        return _CONTINUED[number & 0x3FFF] + _ONE_OR_TWO[number >> 14]
    parts: list[bytes] = []
    while number >= 1 << 14:
        parts.append(_CONTINUED[number & 0x3FFF])
        number >>= 14
    parts.append(_ONE_OR_TWO[number])
    return b"".join(parts)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The varint at `at`, and the place behind it. Raises `IndexError` where the bytes end."""
    byte = data[at]
    at += 1
    if byte < 0x80:
        return byte, at
    number, shift = byte & 0x7F, 7
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7


class KeyValue(NamedTuple):
    """A stored key-value, taken apart."""

    key: bytes
    create_revision: int
    mod_revision: int
    version: int
    value: bytes
    lease: int


def encode_key_value(
    key: bytes, create_revision: int, mod_revision: int, version: int, value: bytes, lease: int
) -> bytes:
    parts: list[bytes] = []
    if key:
        parts += (b"\x0a", varint(len(key)), key)
    if create_revision:
        parts += (b"\x10", varint(create_revision))
    if mod_revision:
        parts += (b"\x18", varint(mod_revision))
    if version:
        parts += (b"\x20", varint(version))
    if value:
        parts += (b"\x2a", varint(len(value)), value)
    if lease:
        parts += (b"\x30", varint(lease))
    return b"".join(parts)


def decode_key_value(record: bytes) -> KeyValue:
    """The inverse of `encode_key_value`. Raises `ValueError` for what that does not write."""
    key = value = b""
    numbers = [0, 0, 0, 0, 0, 0, 0]
    at, size, last = 0, len(record), 0
    try:
        while at < size:
            tag = record[at]
            field = tag >> 3
            if field <= last:
                raise ValueError(f"field {field} after field {last}")
            last = field
            number, at = read_varint(record, at + 1)
            if tag in (0x0A, 0x2A):
                if at + number > size:
                    raise ValueError(f"field {field} is cut off")
                data = record[at : at + number]
                at += number
                if field == 1:
                    key = data
                else:
                    value = data
            elif tag in (0x10, 0x18, 0x20, 0x30):
                numbers[field] = number if number <= INT64_MAX else number - (1 << 64)
            else:
                raise ValueError(f"unknown tag {tag:#x}")
    except IndexError:
        raise ValueError("the record is cut off") from None
    return KeyValue(key, numbers[2], numbers[3], numbers[4], value, numbers[6])


def key_of(record: bytes) -> bytes:
    """The key of a stored key-value."""
    size, at = read_varint(record, 1)
    return record[at : at + size]


def mod_revision_of(record: bytes) -> int:
    """The mod revision of a stored key-value, without looking at the rest."""
    size, at = read_varint(record, 1)
    at += size + 1
    while record[at] >= 0x80:  # the create revision
        at += 1
    return read_varint(record, at + 2)[0]


def _behind_version(record: bytes) -> int:
    """Where the value begins if there is one: behind the key, the two revisions and the version."""
    size, at = read_varint(record, 1)
    at += size
    for _ in range(3):  # create revision, mod revision, version: none of them is ever zero
        at += 1
        while record[at] >= 0x80:
            at += 1
        at += 1
    return at


def lease_of(record: bytes) -> int:
    """The lease of a stored key-value, 0 if it has none, without looking at the rest."""
    at = _behind_version(record)
    end = len(record)
    if at < end and record[at] == 0x2A:
        size, at = read_varint(record, at + 1)
        at += size
    if at == end:
        return 0
    lease, _ = read_varint(record, at + 1)
    return lease if lease <= INT64_MAX else lease - (1 << 64)


def without_value(record: bytes) -> bytes:
    """The stored key-value with an empty value."""
    at = _behind_version(record)
    if at == len(record) or record[at] != 0x2A:
        return record
    size, behind = read_varint(record, at + 1)
    return record[:at] + record[behind + size :]
