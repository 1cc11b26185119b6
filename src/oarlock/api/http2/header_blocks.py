"""Header compression (RFC 7541), as a server needs it: requests decoded, answers written without state of their own.

A client repeats itself: once its fields are in the dynamic table, each request is the same few bytes. So a block that
changed nothing in the table is remembered with the headers it stood for, until something does change the table.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from oarlock.api.http2.engine import Headers

TABLE_BYTES_MAX: Final = 4096  # we never announce another size (RFC 9113 6.5.2)
ENTRY_OVERHEAD_BYTES: Final = 32  # counted for each field (RFC 7541 4.1)
BLOCKS_REMEMBERED_MAX: Final = 64
INTEGER_BYTES_MAX: Final = 5  # after the prefix: more than any size or index that can be right
STRINGS_REMEMBERED_MAX: Final = 256  # decoded Huffman strings of one connection
STRING_REMEMBERED_BYTES_MAX: Final = 128

_STATIC: Final = tuple((bytes(name), bytes(value)) for name, value in HeaderTable.STATIC_TABLE)
_STATIC_COUNT: Final = len(_STATIC)
_STATUS_200: Final = b"\x88"
_NAMES: Final = {name: index for index, (name, _) in reversed(list(enumerate(_STATIC, 1)))}


class BadHeaderBlock(Exception):
    """The block is not one, so the table of the other side is unknown from now on: the connection is over."""


class HeadersTooLarge(Exception):
    """The decoded list passes its bound."""


class BlockDecoder:
    """The dynamic table of one connection, and what its blocks decode to."""

    __slots__ = ("_blocks", "_bytes", "_bytes_max", "_list_bytes_max", "_strings", "_table", "remembers")

    def __init__(self, list_bytes_max: int) -> None:
        self._list_bytes_max = list_bytes_max
        self._table: deque[tuple[bytes, bytes]] = deque()  # the newest entry first
        self._bytes = 0
        self._bytes_max = TABLE_BYTES_MAX
        self._blocks: dict[bytes, Headers] = {}
        self._strings: dict[bytes, bytes] = {}
        self.remembers = True

    def known(self, block: bytes) -> Headers | None:
        """The headers of a block that came before, if the table is still as it was then."""
        return self._blocks.get(block)

    def remember(self, block: bytes, headers: Headers) -> None:
        """Keep a checked block for `known`, if decoding it changed nothing."""
        if self.remembers:
            if len(self._blocks) >= BLOCKS_REMEMBERED_MAX:
                self._blocks.clear()
            self._blocks[block] = headers

    def decode(self, block: bytes) -> Headers:
        """Raises `BadHeaderBlock`, or `HeadersTooLarge` after the whole block has been taken into the table."""
        self.remembers = True
        fields: list[tuple[bytes, bytes]] = []
        at, end = 0, len(block)
        left = self._list_bytes_max
        while at < end:
            first = block[at]
            if first & 0x80:  # an indexed field
                index, at = _integer(block, at, 0x7F)
                entry = self._entry(index)
            elif first & 0xE0 == 0x20:  # a new size of the table: only before the first field
                size, at = _integer(block, at, 0x1F)
                if size > TABLE_BYTES_MAX or fields:
                    raise BadHeaderBlock("a header table size that was not agreed on")
                self._changed()
                self._bytes_max = size
                self._evict(size)
                continue
            else:
                inserts = first & 0x40
                index, at = _integer(block, at, 0x3F if inserts else 0x0F)
                if index:
                    name = self._entry(index)[0]
                else:
                    name, at = self._string(block, at, end)
                value, at = self._string(block, at, end)
                entry = (name, value)
                if inserts:
                    self._insert(entry)
            left -= len(entry[0]) + len(entry[1]) + ENTRY_OVERHEAD_BYTES
            if left >= 0:
                fields.append(entry)
        if left < 0:
            raise HeadersTooLarge(f"a header list over {self._list_bytes_max} bytes")
        return tuple(fields)

    def _entry(self, index: int) -> tuple[bytes, bytes]:
        if 0 < index <= _STATIC_COUNT:
            return _STATIC[index - 1]
        at = index - _STATIC_COUNT - 1
        if not 0 <= at < len(self._table):
            raise BadHeaderBlock(f"header index {index} is not in the table")
        return self._table[at]

    def _insert(self, entry: tuple[bytes, bytes]) -> None:
        self._changed()
        size = len(entry[0]) + len(entry[1]) + ENTRY_OVERHEAD_BYTES
        self._evict(self._bytes_max - size)
        if size <= self._bytes_max:
            self._table.appendleft(entry)
            self._bytes += size

    def _evict(self, size: int) -> None:
        """Drop the oldest entries until at most `size` bytes are left."""
        table = self._table
        while table and self._bytes > size:
            name, value = table.pop()
            self._bytes -= len(name) + len(value) + ENTRY_OVERHEAD_BYTES

    def _changed(self) -> None:
        self.remembers = False
        if self._blocks:
            self._blocks.clear()

    def _string(self, block: bytes, at: int, end: int) -> tuple[bytes, int]:
        if at >= end:
            raise BadHeaderBlock("a header block ends inside a field")
        huffman = block[at] & 0x80
        length, at = _integer(block, at, 0x7F)
        stop = at + length
        if stop > end:
            raise BadHeaderBlock("a header block ends inside a field")
        raw = block[at:stop]
        if not huffman:
            return raw, stop
        text = self._strings.get(raw)
        if text is None:
            try:
                text = bytes(decode_huffman(raw))
            except Exception as error:  # hpack's own error, whatever its version calls it
                raise BadHeaderBlock(f"Huffman code: {error}") from error
            if length <= STRING_REMEMBERED_BYTES_MAX:
                if len(self._strings) >= STRINGS_REMEMBERED_MAX:
                    self._strings.clear()
                self._strings[raw] = text
        return text, stop


def _integer(block: bytes, at: int, mask: int) -> tuple[int, int]:
    """The integer whose prefix is the low bits `mask` of the byte at `at`, and where the next thing begins. (5.1)"""
    value = block[at] & mask
    at += 1
    if value < mask:
        return value, at
    shift = 0
    for position in range(at, min(at + INTEGER_BYTES_MAX, len(block))):
        byte = block[position]
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position + 1
        shift += 7
    raise BadHeaderBlock("an integer without an end, or beyond all bounds")


def encode_block(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A header block that leaves the other side's table alone: fields as literals without indexing."""
    out = bytearray()
    for name, value in fields:
        if name == b":status" and value == b"200":
            out += _STATUS_200
            continue
        index = _NAMES.get(name, 0)
        _put_integer(out, index, 0x0F)
        if not index:
            _put_integer(out, len(name), 0x7F)
            out += name
        _put_integer(out, len(value), 0x7F)
        out += value
    return bytes(out)


def _put_integer(out: bytearray, value: int, mask: int) -> None:
    if value < mask:
        out.append(value)
        return
    out.append(mask)
    value -= mask
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
