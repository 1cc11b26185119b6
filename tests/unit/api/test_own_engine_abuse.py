"""What a peer may make our HTTP/2 engine do is counted and bounded, frame by frame; no sockets and no clock."""

from __future__ import annotations

import struct

import pytest
from tests.support.h2_client import PREFACE, SETTINGS, frame

from oarlock.api.http2.engine import ConnectionFailed, ErrorCode, Headers
from oarlock.api.http2.header_blocks import encode_block
from oarlock.api.http2.own_engine import (
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    SETTINGS_PAIRS_MAX,
    WINDOW_UPDATE,
    OwnEngine,
)
from oarlock.api.http2.own_engine import SETTINGS as SETTINGS_KIND
from oarlock.api.limits import Limits

REQUEST = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a/b"))
BLOCK = encode_block(REQUEST)


class Told:
    """A sink that notes what is reported to it."""

    def __init__(self) -> None:
        self.control: list[str] = []
        self.requests: list[int] = []
        self.ends: list[int] = []
        self.closed: list[int] = []

    def on_request(self, stream_id: int, headers: Headers, ended: bool) -> None:
        self.requests.append(stream_id)

    def on_data(self, stream_id: int, data: bytes, ended: bool) -> None:
        pass

    def on_end(self, stream_id: int) -> None:
        self.ends.append(stream_id)

    def on_closed(self, stream_id: int, error_code: int) -> None:
        self.closed.append(stream_id)

    def on_control(self, kind: str) -> None:
        self.control.append(kind)

    def on_pong(self) -> None:
        pass

    def on_goaway(self) -> None:
        pass


def begun() -> tuple[OwnEngine, Told]:
    told = Told()
    engine = OwnEngine(told, Limits())
    engine.feed(PREFACE + SETTINGS)
    engine.take(1 << 20)
    told.control.clear()
    return engine, told


@pytest.mark.parametrize("grant", [0, 2**31 - 1])
def test_a_client_that_makes_us_reset_its_streams_is_counted(grant: int) -> None:
    """Each request is begun and at once over, so no bound on streams holds (CVE-2025-8671, "MadeYouReset")."""
    engine, told = begun()
    for stream_id in (1, 3, 5):
        engine.feed(frame(HEADERS, END_HEADERS, stream_id, BLOCK))
        engine.feed(frame(WINDOW_UPDATE, 0, stream_id, struct.pack(">I", grant)))
    engine.feed(b"")
    assert told.requests == told.closed == [1, 3, 5]
    assert len(told.control) == 3


def test_a_settings_frame_changes_every_window_only_so_often() -> None:
    """Each initial window in it goes through all streams: 2,730 of them in one frame, counted as one, would hold the
    event loop up for long."""
    pair = struct.pack(">HI", 4, 65_535)
    engine, told = begun()
    engine.feed(frame(SETTINGS_KIND, 0, 0, pair * SETTINGS_PAIRS_MAX))
    assert told.control == ["settings"]
    with pytest.raises(ConnectionFailed, match="SETTINGS"):
        engine.feed(frame(SETTINGS_KIND, 0, 0, pair * (SETTINGS_PAIRS_MAX + 1)))
    assert engine.take(1 << 20)[-400:].find(struct.pack(">I", ErrorCode.ENHANCE_YOUR_CALM)) >= 0


def test_a_second_goaway_does_not_claim_streams_that_the_first_disowned() -> None:
    """The last stream id must not rise (RFC 9113 6.8)."""
    engine, told = begun()
    engine.feed(frame(HEADERS, END_HEADERS, 1, BLOCK))
    engine.drain()
    engine.feed(frame(HEADERS, END_HEADERS, 3, BLOCK))
    engine.take(1 << 20)
    engine.fail(ErrorCode.NO_ERROR)
    last = engine.take(1 << 20)
    assert told.requests == [1]
    assert last[3] == GOAWAY and struct.unpack_from(">I", last, 9) == (1,)


def test_a_request_has_one_length() -> None:
    """Of two that differ, a proxy before us may have believed the other one (RFC 9110 8.6)."""
    engine, told = begun()
    fields = (*REQUEST, (b"content-length", b"5"), (b"content-length", b"3"))
    engine.feed(frame(HEADERS, END_HEADERS, 1, encode_block(fields)))
    assert told.requests == [] and told.control == ["malformed request"]


@pytest.mark.parametrize("field", [(b"Grpc-Status", b"0"), (b"a b", b"c"), (b"a", b"b\r\nc: d"), (b":path", b"/")])
def test_trailers_are_fields_as_well(field: tuple[bytes, bytes]) -> None:
    """RFC 9113 8.2.1 knows no exception for them."""
    engine, told = begun()
    engine.feed(frame(HEADERS, END_HEADERS, 1, BLOCK))
    engine.feed(frame(HEADERS, END_HEADERS | END_STREAM, 1, encode_block((field,))))
    engine.feed(b"")
    assert told.ends == [] and told.closed == [1] and told.control == ["malformed request"]
