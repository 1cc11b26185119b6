"""The mending of authorities: whatever the bytes are cut into, and whatever else is in them."""

from __future__ import annotations

import hpack
import pytest

from oarlock.api.http2.authority import (
    CONTINUATION,
    END_HEADERS,
    HEADER_BLOCK_BYTES_MAX,
    HEADERS,
    PADDED,
    PRIORITY,
    AuthorityMender,
)
from oarlock.api.http2.engine import ConnectionFailed

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes(3) + b"\x04\x00" + bytes(4)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def fields(authority: bytes, more: int = 0) -> list[tuple[bytes, bytes]]:
    return [(b":method", b"POST"), (b":authority", authority), (b"x-number", b"%d" % more)]


def conversation(authority: bytes, count: int = 3) -> tuple[bytes, list[list[tuple[bytes, bytes]]]]:
    """A client's bytes with `count` requests, and their header lists."""
    encoder = hpack.Encoder()
    lists = [fields(authority, number) for number in range(count)]
    out = PREFACE + SETTINGS
    for number, headers in enumerate(lists):
        out += frame(HEADERS, END_HEADERS, 2 * number + 1, encoder.encode(headers))
        out += frame(0, 1, 2 * number + 1, b"body %d" % number)
    return out, lists


def read(data: bytes) -> list[list[tuple[bytes, bytes]]]:
    """What an engine would make of it."""
    assert data.startswith(PREFACE)
    decoder, at, found, block = hpack.Decoder(), len(PREFACE), [], b""
    while at < len(data):
        size, kind, flags = int.from_bytes(data[at : at + 3], "big"), data[at + 3], data[at + 4]
        payload, at = data[at + 9 : at + 9 + size], at + 9 + size
        if kind in (HEADERS, CONTINUATION):
            block += payload
            if flags & END_HEADERS:
                found.append([(bytes(n), bytes(v)) for n, v in decoder.decode(block, raw=True)])
                block = b""
    return found


def test_a_plain_authority_passes_untouched_and_is_not_looked_at_again() -> None:
    data, _ = conversation(b"127.0.0.1:2379")
    mender = AuthorityMender(65536)
    assert mender.feed(data) == data
    assert mender.idle


@pytest.mark.parametrize("step", [1, 2, 7, 50, 10_000])
@pytest.mark.parametrize("authority", [b"http://127.0.0.1:2379", b"https://h:1/path?q", b"h:1/x", b"plain:1"])
def test_every_cut_of_the_bytes_gives_the_same(authority: bytes, step: int) -> None:
    data, lists = conversation(authority)
    mender = AuthorityMender(65536)
    out = b"".join(mender.feed(data[at : at + step]) for at in range(0, len(data), step))
    host = authority.partition(b"://")[2] or authority
    want = host.partition(b"/")[0]
    assert read(out) == [[(n, want if n == b":authority" else v) for n, v in headers] for headers in lists]
    assert out.count(b"body ") == 3


def test_padding_priority_and_continuations() -> None:
    block = hpack.Encoder().encode(fields(b"http://h:1"))
    first, second = block[:3], block[3:]
    payload = b"\x02" + bytes(5) + first + bytes(2)
    data = PREFACE + frame(HEADERS, PADDED | PRIORITY, 1, payload) + frame(CONTINUATION, END_HEADERS, 1, second)
    assert read(AuthorityMender(65536).feed(data)) == [fields(b"h:1")]


def test_a_long_block_is_sent_on_in_several_frames() -> None:
    headers = [(b":authority", b"http://h:1"), (b"x", bytes(range(32, 127)) * 400)]
    block = hpack.Encoder().encode(headers, huffman=False)
    data = PREFACE + frame(HEADERS, 0, 1, block[:16_384])
    data += frame(CONTINUATION, 0, 1, block[16_384:32_768]) + frame(CONTINUATION, END_HEADERS, 1, block[32_768:])
    assert read(AuthorityMender(65536).feed(data)) == [[(b":authority", b"h:1"), headers[1]]]


@pytest.mark.parametrize(
    "bad",
    [
        frame(HEADERS, END_HEADERS, 0, b"x"),
        frame(HEADERS, END_HEADERS | PADDED, 1, b""),
        frame(HEADERS, END_HEADERS | PADDED, 1, b"\x09a"),
        frame(HEADERS, END_HEADERS | PRIORITY, 1, b"abc"),
        frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"),
        frame(HEADERS, 0, 1, b"\x82") + frame(0, 0, 1, b""),
        b"\xff\xff\xff" + bytes(6),
    ],
)
def test_what_is_malformed_goes_to_the_engine_as_it_is(bad: bytes) -> None:
    mender = AuthorityMender(65536)
    assert mender.feed(PREFACE + bad + b"rest") == PREFACE + bad + b"rest"
    assert mender.idle


def test_an_endless_header_block_is_refused() -> None:
    mender = AuthorityMender(65536)
    mender.feed(PREFACE + frame(HEADERS, 0, 1, bytes(16_000)))
    with pytest.raises(ConnectionFailed, match=str(HEADER_BLOCK_BYTES_MAX)):
        for _ in range(10):
            mender.feed(frame(CONTINUATION, 0, 1, bytes(16_000)))
