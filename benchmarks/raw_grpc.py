"""A gRPC client of a few hundred lines for the load generator: cheap first, and only what a unary call needs.

The load generator shares two cores with the servers it measures, so its own cost is a part of every figure. Here a
request is three joined byte strings and an answer three frame headers. It is a client for servers we start ourselves:
it keeps to HTTP/2 (RFC 9113) and HPACK (RFC 7541) in what it sends, and takes an answer with a message for a success,
since a gRPC error comes without one.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import Final

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_WINDOW_MAX: Final = 2**31 - 1
_WINDOW_DEFAULT: Final = 65535
_FRAME_MAX: Final = 16384
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM: Final = 1
_ACK: Final = 1
_HEADER_TABLE_SIZE: Final = 1
_RECEIVED_BEFORE_UPDATE: Final = 1 << 28

PUT: Final = "/etcdserverpb.KV/Put"
RANGE: Final = "/etcdserverpb.KV/Range"
TXN: Final = "/etcdserverpb.KV/Txn"
STATUS: Final = "/etcdserverpb.Maintenance/Status"


class CallFailed(Exception):
    """The server answered with an error, or the connection broke; whether the call was executed is not known."""


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def put_request(key: bytes, value: bytes) -> bytes:
    return field(1, key) + field(2, value)


def range_request(key: bytes, *, serializable: bool = False) -> bytes:
    return field(1, key) + (b"\x38\x01" if serializable else b"")


def txn_of_puts(items: list[tuple[bytes, bytes]]) -> bytes:
    """A transaction without conditions: put every item."""
    return b"".join(field(2, field(2, put_request(key, value))) for key, value in items)


def decode(message: bytes) -> dict[int, list[int | bytes]]:
    """Field number to values; integers for varints, bytes for the rest."""
    fields: dict[int, list[int | bytes]] = {}
    at = 0

    def number() -> int:
        nonlocal at
        result = shift = 0
        while True:
            byte = message[at]
            at += 1
            result |= (byte & 127) << shift
            if byte < 128:
                return result
            shift += 7

    while at < len(message):
        tag = number()
        value: int | bytes
        if tag & 7 == 0:
            value = number()
        elif tag & 7 == 2:
            length = number()
            value = message[at : at + length]
            at += length
        else:
            raise ValueError(f"wire type {tag & 7} is not used by etcd's messages")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _frame(length: int, kind: int, flags: int, stream: int) -> bytes:
    return struct.pack(">BHBBI", length >> 16, length & 0xFFFF, kind, flags, stream)


def _text(text: bytes) -> bytes:
    assert len(text) < 127, "a longer HPACK string needs a multi-byte length"
    return bytes([len(text)]) + text


class Wire:
    """One connection's protocol state, without I/O: `request` and `feed` fill `out`, which the owner sends."""

    def __init__(self, path: str) -> None:
        self._path = path.encode()
        self.out = bytearray(_PREFACE)
        settings = struct.pack(">HIHI", 4, _WINDOW_MAX, 2, 0)  # a window that never closes; no server push
        self.out += _frame(len(settings), _SETTINGS, 0, 0) + settings
        self.out += _frame(4, _WINDOW_UPDATE, 0, 0) + struct.pack(">I", _WINDOW_MAX - _WINDOW_DEFAULT)
        # The first block puts path, authority, content-type and te into the server's dynamic table, later ones name
        # them by index (65, 64, 63, 62), as every real client does.
        self._first_block: bytes | None = (
            b"\x83\x86\x44" + _text(self._path) + b"\x41" + _text(b"localhost") + b"\x5f" + _text(b"application/grpc")
            + b"\x40" + _text(b"te") + _text(b"trailers")
        )  # fmt: skip
        block = b"\x83\x86\xc1\xc0\xbf\xbe"
        self._block_head = struct.pack(">BHBB", 0, len(block), _HEADERS, 4)
        self._block = block
        self._next_stream = 1
        self._window = _WINDOW_DEFAULT
        self._waiting: list[bytes] = []
        self._buffer = b""
        self._messages: dict[int, bytes] = {}
        self._received = 0
        self.closed = False

    def request(self, message: bytes, path: str | None = None) -> int:
        """Begin a call (of the connection's path unless another is named); returns its stream number."""
        if len(message) + 5 > _WINDOW_DEFAULT:
            raise ValueError(f"a message of {len(message)} bytes does not fit a stream's window of {_WINDOW_DEFAULT}")
        stream = self._next_stream
        self._next_stream += 2
        if self._first_block is not None:
            block, self._first_block = self._first_block, None
            head = _frame(len(block), _HEADERS, 4, stream) + block
            if path is not None and path.encode() != self._path:
                raise ValueError("the first call of a connection uses the connection's path")
        elif path is None or path.encode() == self._path:
            head = self._block_head + struct.pack(">I", stream) + self._block
        else:
            block = b"\x83\x86\x04" + _text(path.encode()) + b"\xc0\xbf\xbe"
            head = _frame(len(block), _HEADERS, 4, stream) + block
        length = len(message) + 5
        self.out += head
        body = b"\0" + struct.pack(">I", len(message)) + message
        if length <= _FRAME_MAX and length <= self._window and not self._waiting:
            self._window -= length
            self.out += _frame(length, _DATA, _END_STREAM, stream) + body
            return stream
        for at in range(0, length, _FRAME_MAX):
            chunk = body[at : at + _FRAME_MAX]
            last = at + _FRAME_MAX >= length
            self._waiting.append(_frame(len(chunk), _DATA, _END_STREAM if last else 0, stream) + chunk)
        self._send_waiting()
        return stream

    def open_stream(self, messages: list[bytes]) -> None:
        """Begin a streaming call as the connection's first one, with these requests; more may follow."""
        assert self._first_block is not None, "the first call of a connection"
        block, self._first_block = self._first_block, None
        body = b"".join(b"\0" + struct.pack(">I", len(message)) + message for message in messages)
        if len(body) > _FRAME_MAX:
            raise ValueError(f"{len(body)} bytes of requests do not fit one frame of {_FRAME_MAX}")
        self.out += _frame(len(block), _HEADERS, 4, self._next_stream) + block
        self.out += _frame(len(body), _DATA, 0, self._next_stream) + body
        self.out += _frame(0, _SETTINGS, _ACK, 0)  # whatever the server's say, for who does not `feed`
        self._window -= len(body)
        self._next_stream += 2

    def _send_waiting(self) -> None:
        """Send what the connection's window lets through. (Messages stay below the 64 KiB of a stream's window.)"""
        while self._waiting and len(self._waiting[0]) - 9 <= self._window:
            data = self._waiting.pop(0)
            self._window -= len(data) - 9
            self.out += data

    def feed(self, received: bytes) -> list[tuple[int, bytes | None]]:
        """Take what arrived; returns the calls that ended, as stream and message (`None` for an error)."""
        data = self._buffer + received if self._buffer else received
        ended: list[tuple[int, bytes | None]] = []
        at = 0
        size = len(data)
        messages = self._messages
        while size - at >= 9:
            length = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
            end = at + 9 + length
            if end > size:
                break
            kind = data[at + 3]
            if kind == _HEADERS:
                if data[at + 4] & _END_STREAM:
                    stream = int.from_bytes(data[at + 5 : at + 9], "big")
                    ended.append((stream, messages.pop(stream, None)))
            elif kind == _DATA:
                stream = int.from_bytes(data[at + 5 : at + 9], "big")
                content = data[at + 9 : end]
                messages[stream] = messages[stream] + content if stream in messages else content
                self._received += length
            else:
                self._control(kind, data[at + 4], data[at + 5 : at + 9], data[at + 9 : end], ended)
            at = end
        self._buffer = data[at:]
        if self._received > _RECEIVED_BEFORE_UPDATE:
            self.out += _frame(4, _WINDOW_UPDATE, 0, 0) + struct.pack(">I", self._received)
            self._received = 0
        return ended

    def _control(
        self, kind: int, flags: int, stream: bytes, content: bytes, ended: list[tuple[int, bytes | None]]
    ) -> None:
        if kind == _WINDOW_UPDATE and stream == b"\0\0\0\0":
            self._window += int.from_bytes(content, "big")
            self._send_waiting()
        elif kind == _SETTINGS and not flags & _ACK:
            for at in range(0, len(content), 6):
                setting, value = struct.unpack_from(">HI", content, at)
                if setting == _HEADER_TABLE_SIZE and value < 4096:
                    raise CallFailed(f"the server's header table has only {value} bytes; this client relies on 4096")
            self.out += _frame(0, _SETTINGS, _ACK, 0)
        elif kind == _PING and not flags & _ACK:
            self.out += _frame(8, _PING, _ACK, 0) + content
        elif kind == _GOAWAY:
            self.closed = True
        elif kind == _RST_STREAM:
            number = int.from_bytes(stream, "big")
            self._messages.pop(number, None)
            ended.append((number, None))


def address(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.rpartition(":")
    return host, int(port)


class BlockingClient:
    """One call at a time over one connection, for set-up, probes and failover. `timeout` in seconds for each call."""

    def __init__(self, endpoint: str, path: str, *, timeout: float = 5.0) -> None:
        self.endpoint = endpoint
        self.timeout = timeout
        self.wire = Wire(path)
        try:
            self.socket = socket.create_connection(address(endpoint), timeout=timeout)
        except OSError as error:
            raise CallFailed(f"{endpoint}: {error}") from error
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> BlockingClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def call(self, message: bytes) -> bytes:
        """Send and wait; returns the answer's message. Raises `CallFailed`."""
        return self.call_many([message])[0]

    def call_many(self, messages: list[bytes]) -> list[bytes]:
        """Send all at once and wait for all answers. Raises `CallFailed` if any failed."""
        wire = self.wire
        streams = [wire.request(message) for message in messages]
        answers: dict[int, bytes | None] = {}
        deadline = time.monotonic() + self.timeout
        try:
            while len(answers) < len(streams):
                if wire.out:
                    self.socket.sendall(wire.out)
                    wire.out.clear()
                left = deadline - time.monotonic()
                if left <= 0:
                    raise CallFailed(f"{self.endpoint}: no answer within {self.timeout:g} s")
                self.socket.settimeout(left)
                received = self.socket.recv(1 << 16)
                if not received:
                    raise CallFailed(f"{self.endpoint}: the connection was closed")
                answers.update(wire.feed(received))
        except OSError as error:
            raise CallFailed(f"{self.endpoint}: {error}") from error
        results = [answers[stream] for stream in streams]
        good = [result[5:] for result in results if result is not None]
        if len(good) < len(results):
            raise CallFailed(f"{self.endpoint}: {len(results) - len(good)} of {len(results)} calls were refused")
        return good


def status(endpoint: str, *, timeout: float = 1.0) -> tuple[int, int, int, int] | None:
    """(member id, leader id, committed index, applied index) of a member; `None` while it does not answer."""
    try:
        with BlockingClient(endpoint, STATUS, timeout=timeout) as client:
            fields = decode(client.call(b""))
    except CallFailed:
        return None
    header = fields[1][0]
    assert isinstance(header, bytes), "field 1 of every answer is its header"
    numbers = [decode(header).get(2, [0])[0], *(fields.get(number, [0])[0] for number in (4, 5, 7))]
    member, leader, committed, applied = (number for number in numbers if isinstance(number, int))
    return member, leader, committed, applied
