"""The engine of our own (RFC 9113, the server's side), made for what gRPC clients send: HEADERS and DATA in one read.

Why there is one although libnghttp2 exists: docs/explanation/architecture.md, "Serving". Header blocks that repeat are
not decoded again, an answer is one join of ready bytes, and nothing is kept of a stream that was answered at once.

What a peer may cost is bounded here by windows, by one header block at a time with `CONTINUATIONS_MAX` pieces, and by
the list's size; frames that cost us something and the peer little are reported to `sink.on_control`, which counts.
"""

from __future__ import annotations

import re
import struct
from collections import deque
from collections.abc import Iterable
from typing import Final

from oarlock.api.http2.engine import PREFACE, ConnectionFailed, EngineSink, ErrorCode, Headers
from oarlock.api.http2.header_blocks import BadHeaderBlock, BlockDecoder, HeadersTooLarge, encode_block
from oarlock.api.limits import Limits

DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITISED: Final = 0x20

FRAME_HEAD_BYTES: Final = 9
FRAME_BYTES_MAX: Final = 16_384  # we never announce more, so no peer may send more (RFC 9113 4.2)
WINDOW_BYTES_DEFAULT: Final = 65_535
WINDOW_BYTES_MAX: Final = 2**31 - 1
CONTINUATIONS_MAX: Final = 8  # CONTINUATION frames of one header block
SETTINGS_PAIRS_MAX: Final = 32  # of one frame, as nghttp2: a new initial window goes through all streams
STREAM_ID_MAX: Final = 2**31 - 1
ANSWERS_REMEMBERED_MAX: Final = 64  # encoded header lists, of all connections
SMALL_BODY_BYTES: Final = FRAME_BYTES_MAX  # an answer up to this goes out as one piece if the windows allow it

_SETTINGS_MAX_CONCURRENT_STREAMS: Final = 0x3
_SETTINGS_INITIAL_WINDOW_SIZE: Final = 0x4
_SETTINGS_MAX_FRAME_SIZE: Final = 0x5
_SETTINGS_MAX_HEADER_LIST_SIZE: Final = 0x6

_HEAD: Final = struct.Struct(">BHBBI")
_PAIR: Final = struct.Struct(">HI")
_U32: Final = struct.Struct(">I")

_NAME: Final = re.compile(rb":?[!#$%&'*+\-.^_`|~0-9a-z]+\Z")
_BAD_VALUE: Final = re.compile(rb"[\x00\r\n]|\A[ \t]|[ \t]\Z")
_CONNECTION_FIELDS: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
_PSEUDO: Final = frozenset({b":method", b":scheme", b":path", b":authority"})
_NEEDED: Final = frozenset({b":method", b":scheme", b":path"})

_blocks: dict[tuple[tuple[bytes, bytes], ...], bytes] = {}  # what `encode_block` made of the header lists we send


class Stream:
    """A stream on which something is still to come or to go."""

    __slots__ = ("body", "body_bytes", "ended", "id", "length_left", "received", "trailers", "window")

    def __init__(self, stream_id: int, window: int) -> None:
        self.id = stream_id
        self.window = window  # what the peer lets us send
        self.received = 0  # bytes of its receive window that we have not granted back
        self.length_left = -1  # of the announced content-length; -1 if none was
        self.ended = False  # the request is complete
        self.body: deque[bytes | memoryview] | None = None  # of the answer, not sent yet
        self.body_bytes = 0
        self.trailers = b""  # the frame that ends the answer after its body


class OwnEngine:
    """See `engine.Engine`."""

    __slots__ = (
        "_block", "_block_flags", "_block_pieces", "_block_stream", "_buffer", "_closed", "_decoder", "_drained",
        "_failed", "_frame_max", "_going", "_goodbye", "_last_id", "_limits", "_out", "_out_bytes", "_preface_left",
        "_queued_bytes", "_ready", "_received", "_settled", "_sink", "_stream_window", "_streams", "_trailers_block",
        "_trailers_said", "_window", "_headers_block", "_headers_said",
    )  # fmt: skip

    def __init__(self, sink: EngineSink, limits: Limits) -> None:
        self._sink = sink
        self._limits = limits
        self._decoder = BlockDecoder(limits.header_list_bytes_max)
        self._streams: dict[int, Stream] = {}
        self._last_id = 0  # the highest that the peer has opened
        self._buffer = b""  # an incomplete frame
        self._preface_left = len(PREFACE)
        self._block = b""  # header block fragments until END_HEADERS
        self._block_flags = 0
        self._block_pieces = 0
        self._block_stream = 0  # 0: no header block is open
        self._settled = False  # the peer's first SETTINGS have come
        self._frame_max = FRAME_BYTES_MAX  # what the peer takes in one frame
        self._stream_window = WINDOW_BYTES_DEFAULT  # what the peer lets us send on a new stream
        self._window = WINDOW_BYTES_DEFAULT  # and on all together
        self._received = 0  # bytes of the connection's receive window that we have not granted back
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._ready: dict[int, Stream] = {}  # streams with a body to send, in turn
        self._queued_bytes = 0  # of all their bodies
        self._closed: list[tuple[int, int]] = []  # streams that ended since the sink was last told
        self._going = False  # we have said GOAWAY
        self._goodbye = False  # the peer has
        self._drained = STREAM_ID_MAX  # the highest stream that our GOAWAY still served
        self._failed = False
        # Most answers begin and end with the same tuples as the one before: no need to look their blocks up.
        self._headers_said: Iterable[tuple[bytes, bytes]] = ()
        self._headers_block = b""
        self._trailers_said: Iterable[tuple[bytes, bytes]] = ()
        self._trailers_block = b""
        settings = b"".join(
            _PAIR.pack(number, value)
            for number, value in (
                (_SETTINGS_MAX_CONCURRENT_STREAMS, limits.streams_per_connection_max),
                (_SETTINGS_INITIAL_WINDOW_SIZE, limits.stream_window_bytes),
                (_SETTINGS_MAX_HEADER_LIST_SIZE, limits.header_list_bytes_max),
            )
        )
        self._put(_frame(SETTINGS, 0, 0, settings))
        extra = limits.connection_window_bytes - WINDOW_BYTES_DEFAULT
        if extra > 0:
            self._put(_frame(WINDOW_UPDATE, 0, 0, _U32.pack(extra)))

    # ------------------------------------------------------------ in

    def feed(self, data: bytes) -> None:
        if self._closed:
            self._tell_closed()
        if self._failed:
            return
        if self._preface_left:
            wanted = PREFACE[len(PREFACE) - self._preface_left :]
            if data[: len(wanted)] != wanted[: len(data)]:
                self._fail(ErrorCode.PROTOCOL_ERROR, "the connection does not begin with HTTP/2's preface")
            taken = min(len(data), len(wanted))
            self._preface_left -= taken
            data = data[taken:]
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        at, size = 0, len(data)
        head = _HEAD.unpack_from
        while size - at >= FRAME_HEAD_BYTES:
            high, low, kind, flags, stream_id = head(data, at)
            length = high << 16 | low
            if length > FRAME_BYTES_MAX:
                self._fail(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes (at most {FRAME_BYTES_MAX})")
            start = at + FRAME_HEAD_BYTES
            end = start + length
            if end > size:
                break
            at = end
            stream_id &= STREAM_ID_MAX
            if self._block_stream and (kind != CONTINUATION or stream_id != self._block_stream):
                self._fail(ErrorCode.PROTOCOL_ERROR, "a header block was interrupted by another frame")
            if kind == HEADERS:
                self._headers(flags, stream_id, data[start:end])
            elif kind == DATA:
                self._data(flags, stream_id, data[start:end])
            else:
                self._other(kind, flags, stream_id, data[start:end])
            if self._is_over():
                return
        if at < size:
            self._buffer = data[at:] if at else data

    def _is_over(self) -> bool:
        """Whether the sink has ended the connection while it was told of a frame."""
        return self._failed

    def _headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not self._settled:
            self._fail(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        if not stream_id & 1:
            self._fail(ErrorCode.PROTOCOL_ERROR, f"a request on stream {stream_id}")
        if flags & (PADDED | PRIORITISED):
            payload = self._unpadded(flags, stream_id, payload)
        if flags & END_HEADERS:
            self._request(flags, stream_id, payload)
        else:
            self._block, self._block_flags, self._block_stream, self._block_pieces = payload, flags, stream_id, 0

    def _continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not self._block_stream:
            self._fail(ErrorCode.PROTOCOL_ERROR, "a CONTINUATION of nothing")
        self._block_pieces += 1
        self._block += payload
        if self._block_pieces > CONTINUATIONS_MAX or len(self._block) > self._limits.header_list_bytes_max:
            self._fail(ErrorCode.ENHANCE_YOUR_CALM, f"a header block in over {CONTINUATIONS_MAX} CONTINUATION frames")
        if flags & END_HEADERS:
            self._block_stream = 0
            block, self._block = self._block, b""
            self._request(self._block_flags, stream_id, block)

    def _unpadded(self, flags: int, stream_id: int, payload: bytes) -> bytes:
        start, padding = 0, 0
        if flags & PADDED:
            if not payload:
                self._fail(ErrorCode.FRAME_SIZE_ERROR, "a padded frame without its padding's length")
            start, padding = 1, payload[0]
        if flags & PRIORITISED:
            if len(payload) < start + 5:
                self._fail(ErrorCode.FRAME_SIZE_ERROR, "a HEADERS frame ends inside its priority")
            if _U32.unpack_from(payload, start)[0] & STREAM_ID_MAX == stream_id:
                self._fail(ErrorCode.PROTOCOL_ERROR, f"stream {stream_id} depends on itself")
            start += 5
        if start + padding > len(payload):
            self._fail(ErrorCode.PROTOCOL_ERROR, "more padding than frame")
        return payload[start : len(payload) - padding]

    def _request(self, flags: int, stream_id: int, block: bytes) -> None:
        """A header block is complete: it opens a stream, or ends a request as its trailers."""
        headers = self._decoder.known(block)
        fault = ""
        if headers is None:
            try:
                headers = self._decoder.decode(block)
            except BadHeaderBlock as error:
                self._fail(ErrorCode.COMPRESSION_ERROR, str(error))
                return
            except HeadersTooLarge as large:
                headers, fault = (), str(large)
            if not fault and stream_id > self._last_id:
                fault = request_fault(headers)
                if not fault:
                    self._decoder.remember(block, headers)
        ended = flags & END_STREAM != 0
        if stream_id <= self._last_id:
            self._trailers(stream_id, headers, ended, fault)
            return
        self._last_id = stream_id
        if stream_id > self._drained:
            return  # opened before our GOAWAY came there: the client knows that it may ask somebody else
        if fault:
            self._rst(stream_id, ErrorCode.PROTOCOL_ERROR)
            self._sink.on_control("malformed request")
            return
        if len(self._streams) >= self._limits.streams_per_connection_max:
            self._rst(stream_id, ErrorCode.REFUSED_STREAM)
            self._sink.on_control("refused stream")
            return
        stream = self._streams[stream_id] = Stream(stream_id, self._stream_window)
        stream.ended = ended
        for name, value in headers:
            if name == b"content-length":
                stream.length_left = int(value)
                if ended and stream.length_left:
                    self._stream_fault(stream)
                    return
        self._sink.on_request(stream_id, headers, ended)

    def _trailers(self, stream_id: int, headers: Headers, ended: bool, fault: str) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            self._sink.on_control("late headers")  # of a stream that we have ended already
        elif stream.ended:
            self._end(stream, ErrorCode.STREAM_CLOSED)
            self._sink.on_control("headers after the end")
        elif fault or not ended or stream.length_left > 0 or trailers_fault(headers):
            self._stream_fault(stream)
        else:
            stream.ended = True
            self._sink.on_end(stream_id)

    def _data(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id or stream_id > self._last_id:
            self._fail(ErrorCode.PROTOCOL_ERROR, f"DATA on stream {stream_id}, which is not open")
        size = len(payload)  # padding counts, too (RFC 9113 6.1)
        if size:
            limits = self._limits
            self._received += size
            window = max(limits.connection_window_bytes, WINDOW_BYTES_DEFAULT)
            if self._received > window:
                self._fail(ErrorCode.FLOW_CONTROL_ERROR, "more data than the connection's window")
            if self._received * 2 >= window:
                self._put(_frame(WINDOW_UPDATE, 0, 0, _U32.pack(self._received)))
                self._received = 0
        if flags & PADDED:
            payload = self._unpadded(PADDED, stream_id, payload)
        ended = flags & END_STREAM != 0
        stream = self._streams.get(stream_id)
        if stream is None:
            return  # what was on its way when we ended the stream
        if stream.ended:
            self._end(stream, ErrorCode.STREAM_CLOSED)
            self._sink.on_control("data after the end")
            return
        if not size and not ended:
            self._sink.on_control("empty data")
            return
        if stream.length_left >= 0:
            stream.length_left -= len(payload)
            if stream.length_left < 0 or (ended and stream.length_left):
                self._stream_fault(stream)
                return
        if ended:
            stream.ended = True
        else:
            stream.received += size
            window = max(self._limits.stream_window_bytes, WINDOW_BYTES_DEFAULT)
            if stream.received > window:
                self._end(stream, ErrorCode.FLOW_CONTROL_ERROR)
                self._sink.on_control("data beyond the window")
                return
            if stream.received * 2 >= self._limits.stream_window_bytes:
                self._put(_frame(WINDOW_UPDATE, 0, stream_id, _U32.pack(stream.received)))
                stream.received = 0
        self._sink.on_data(stream_id, payload, ended)

    def _other(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if not self._settled and kind != SETTINGS:
            self._fail(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        if kind == WINDOW_UPDATE:
            self._window_update(stream_id, payload)
        elif kind == CONTINUATION:
            self._continuation(flags, stream_id, payload)
        elif kind == RST_STREAM:
            if len(payload) != 4:
                self._fail(ErrorCode.FRAME_SIZE_ERROR, f"RST_STREAM of {len(payload)} bytes")
            if not stream_id or stream_id > self._last_id:
                self._fail(ErrorCode.PROTOCOL_ERROR, f"RST_STREAM of stream {stream_id}, which is not open")
            self._sink.on_control("reset")
            stream = self._streams.get(stream_id)
            if stream is not None:
                self._forget(stream)
                self._sink.on_closed(stream_id, _U32.unpack(payload)[0])
        elif kind == SETTINGS:
            self._settings(flags, stream_id, payload)
        elif kind == PING:
            if stream_id or len(payload) != 8:
                self._fail(ErrorCode.FRAME_SIZE_ERROR if not stream_id else ErrorCode.PROTOCOL_ERROR, "a broken PING")
            if flags & ACK:
                self._sink.on_pong()
            else:
                self._put(_frame(PING, ACK, 0, payload))
                self._sink.on_control("ping")
        elif kind == GOAWAY:
            if stream_id or len(payload) < 8:
                self._fail(ErrorCode.FRAME_SIZE_ERROR if not stream_id else ErrorCode.PROTOCOL_ERROR, "a broken GOAWAY")
            self._goodbye = True
            self._sink.on_goaway()
        elif kind == PRIORITY:
            if not stream_id:
                self._fail(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
            if len(payload) != 5:
                self._fail(ErrorCode.FRAME_SIZE_ERROR, f"PRIORITY of {len(payload)} bytes")
        elif kind == PUSH_PROMISE:
            self._fail(ErrorCode.PROTOCOL_ERROR, "a client pushes nothing")
        # frames of unknown types mean nothing to us (RFC 9113 4.1)

    def _settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            self._fail(ErrorCode.PROTOCOL_ERROR, f"SETTINGS on stream {stream_id}")
        if len(payload) % 6 or (flags & ACK and payload):
            self._fail(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
        if flags & ACK:
            if not self._settled:
                self._fail(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            return
        if len(payload) > SETTINGS_PAIRS_MAX * _PAIR.size:
            self._fail(ErrorCode.ENHANCE_YOUR_CALM, f"SETTINGS of {len(payload)} bytes")
        self._settled = True
        for number, value in _PAIR.iter_unpack(payload):
            if number == _SETTINGS_INITIAL_WINDOW_SIZE:
                if value > WINDOW_BYTES_MAX:
                    self._fail(ErrorCode.FLOW_CONTROL_ERROR, f"an initial window of {value} bytes")
                change = value - self._stream_window
                self._stream_window = value
                for stream in self._streams.values():
                    stream.window += change
                    if stream.window > WINDOW_BYTES_MAX:
                        self._fail(ErrorCode.FLOW_CONTROL_ERROR, "a window beyond all bounds")
            elif number == _SETTINGS_MAX_FRAME_SIZE:
                if not FRAME_BYTES_MAX <= value < 1 << 24:
                    self._fail(ErrorCode.PROTOCOL_ERROR, f"a maximal frame size of {value}")
                self._frame_max = min(value, FRAME_BYTES_MAX)
            elif number == 0x2 and value > 1:
                self._fail(ErrorCode.PROTOCOL_ERROR, f"SETTINGS_ENABLE_PUSH of {value}")
        self._put(_frame(SETTINGS, ACK, 0, b""))
        self._sink.on_control("settings")

    def _window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            self._fail(ErrorCode.FRAME_SIZE_ERROR, f"WINDOW_UPDATE of {len(payload)} bytes")
        grant = _U32.unpack(payload)[0] & WINDOW_BYTES_MAX
        if not stream_id:
            if not grant or self._window + grant > WINDOW_BYTES_MAX:
                self._fail(
                    ErrorCode.FLOW_CONTROL_ERROR if grant else ErrorCode.PROTOCOL_ERROR, f"a grant of {grant} bytes"
                )
            self._window += grant
            return
        if stream_id > self._last_id:
            self._fail(ErrorCode.PROTOCOL_ERROR, f"WINDOW_UPDATE of stream {stream_id}, which is not open")
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if not grant or stream.window + grant > WINDOW_BYTES_MAX:
            self._end(stream, ErrorCode.FLOW_CONTROL_ERROR if grant else ErrorCode.PROTOCOL_ERROR)
            # A request begun and reset at the client's wish, as with RST_STREAM (CVE-2025-8671).
            self._sink.on_control("impossible window")
            return
        stream.window += grant

    # ------------------------------------------------------------ out

    def take(self, amount: int) -> bytes:
        out = self._out
        if self._out_bytes <= amount:
            if not self._queued_bytes and not self._ready:
                if not out:
                    return b""
                data = out[0] if len(out) == 1 else b"".join(out)
                self._out = []
                self._out_bytes = 0
                return data
            self._pump(amount)
            out = self._out
        if self._out_bytes <= amount:
            data = b"".join(out)
            self._out = []
            self._out_bytes = 0
            return data
        size = count = 0
        while size < amount:
            size += len(out[count])
            count += 1
        data = b"".join(out[:count])
        self._out = out[count:]
        self._out_bytes -= size
        return data

    def _pump(self, amount: int) -> None:
        """Move bodies into frames, a frame of each stream in turn, until `amount` is there or the windows are used
        up."""
        ready = self._ready
        blocked: list[Stream] = []
        while ready and self._out_bytes < amount:
            stream = ready.pop(next(iter(ready)))
            body = stream.body
            if body:
                room = min(self._window, stream.window, self._frame_max)
                if room <= 0:
                    blocked.append(stream)
                    continue
                piece = body.popleft()
                if len(piece) > room:
                    # A view, for a copy of the rest at every frame would take minutes for 50 MiB.
                    rest = piece if isinstance(piece, memoryview) else memoryview(piece)
                    body.appendleft(rest[room:])
                    piece = rest[:room]
                size = len(piece)
                self._window -= size
                stream.window -= size
                stream.body_bytes -= size
                self._queued_bytes -= size
                self._put(_frame(DATA, 0, stream.id, piece))
            if body:
                ready[stream.id] = stream
            elif stream.trailers:
                self._put(stream.trailers)
                self._sent_end(stream)
        for stream in blocked:
            ready[stream.id] = stream

    def answer(
        self,
        stream_id: int,
        headers: Iterable[tuple[bytes, bytes]],
        body: bytes,
        trailers: Iterable[tuple[bytes, bytes]],
    ) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            return  # the peer has reset the stream: nobody waits for this answer
        size = len(body)
        if headers is not self._headers_said or not isinstance(headers, tuple):  # a list may have changed meanwhile
            self._headers_said, self._headers_block = headers, _block_of(headers)
        if trailers is not self._trailers_said or not isinstance(trailers, tuple):
            self._trailers_said, self._trailers_block = trailers, _block_of(trailers)
        first, last = self._headers_block, self._trailers_block
        if size > SMALL_BODY_BYTES or size > self._window or size > stream.window or stream.body is not None:
            self._put(_frame(HEADERS, END_HEADERS, stream_id, first))
            self.body(stream_id, body)
            self._finish(stream, _frame(HEADERS, END_HEADERS | END_STREAM, stream_id, last))
            return
        self._window -= size
        stream.window -= size
        out = b"".join(
            (
                _HEAD.pack(0, len(first), HEADERS, END_HEADERS, stream_id),
                first,
                _HEAD.pack(0, size, DATA, 0, stream_id),
                body,
                _HEAD.pack(0, len(last), HEADERS, END_HEADERS | END_STREAM, stream_id),
                last,
            )
        )
        self._out.append(out)
        self._out_bytes += len(out)
        self._sent_end(stream)

    def head(self, stream_id: int, headers: Iterable[tuple[bytes, bytes]], end_stream: bool) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            return  # as in `answer`
        block = _block_of(headers)
        flags = END_STREAM if end_stream else 0
        self._put(_header_frames(flags, stream_id, block))
        if end_stream:
            self._sent_end(stream)

    def body(self, stream_id: int, data: bytes) -> None:
        stream = self._streams.get(stream_id)
        if stream is None or not data:
            return  # as in `answer`
        if stream.body is None:
            stream.body = deque()
        stream.body.append(data)
        stream.body_bytes += len(data)
        self._queued_bytes += len(data)
        self._ready[stream_id] = stream

    def trailers(self, stream_id: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._finish(stream, _header_frames(END_STREAM, stream_id, _block_of(headers)))

    def _finish(self, stream: Stream, frame: bytes) -> None:
        """The answer ends with `frame`, after what is left of its body."""
        if stream.body:
            stream.trailers = frame
        else:
            self._put(frame)
            self._sent_end(stream)

    def _sent_end(self, stream: Stream) -> None:
        """Our side has said everything. The stream is over if the other side has, too."""
        if stream.ended:
            self._forget(stream)
            self._closed.append((stream.id, 0))
        # else what the client still says is read and dropped, until it ends or is reset by the layer above

    def reset(self, stream_id: int, error_code: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._end(stream, error_code)

    def _end(self, stream: Stream, error_code: int) -> None:
        self._forget(stream)
        self._rst(stream.id, error_code)
        self._closed.append((stream.id, error_code))

    def _stream_fault(self, stream: Stream) -> None:
        """The request is malformed (RFC 9113 8.1.1)."""
        self._end(stream, ErrorCode.PROTOCOL_ERROR)
        self._sink.on_control("malformed request")

    def _forget(self, stream: Stream) -> None:
        del self._streams[stream.id]
        if stream.body is not None:
            self._ready.pop(stream.id, None)
            self._queued_bytes -= stream.body_bytes

    def _tell_closed(self) -> None:
        closed, self._closed = self._closed, []
        for stream_id, error_code in closed:
            self._sink.on_closed(stream_id, error_code)

    def _rst(self, stream_id: int, error_code: int) -> None:
        self._put(_frame(RST_STREAM, 0, stream_id, _U32.pack(error_code)))

    def _put(self, frame: bytes) -> None:
        self._out.append(frame)
        self._out_bytes += len(frame)

    def ping(self) -> None:
        self._put(_frame(PING, 0, 0, b"oarlock?"))

    def drain(self) -> None:
        if not self._going:
            self._going = True
            self._drained = self._last_id
            self._put(_frame(GOAWAY, 0, 0, _PAIR_GOAWAY.pack(self._last_id, 0)))

    def fail(self, error_code: int, debug: bytes = b"") -> None:
        self._goaway(error_code, debug.decode("ascii"))

    def _goaway(self, error_code: int, text: str) -> None:
        if not self._failed:
            self._failed = self._going = True
            last_id = min(self._last_id, self._drained)  # what a GOAWAY before this one disowned stays so
            self._put(_frame(GOAWAY, 0, 0, _PAIR_GOAWAY.pack(last_id, error_code) + text.encode()))

    def _fail(self, error_code: int, text: str) -> None:
        """The peer broke the protocol: say so to it, and to whoever feeds us."""
        self._goaway(error_code, text)
        raise ConnectionFailed(text)

    def unsent(self, stream_id: int = 0) -> int:
        if stream_id:
            stream = self._streams.get(stream_id)
            return stream.body_bytes if stream is not None else 0
        return self._queued_bytes + self._out_bytes

    @property
    def takes_any_authority(self) -> bool:
        return True

    @property
    def wants_write(self) -> bool:
        return self._out_bytes > 0 or self._queued_bytes > 0 or self.finished

    @property
    def finished(self) -> bool:
        return self._failed or ((self._going or self._goodbye) and not self._streams)

    @property
    def faulty(self) -> bool:
        return False


_PAIR_GOAWAY: Final = struct.Struct(">II")


def _frame(kind: int, flags: int, stream_id: int, payload: bytes | memoryview) -> bytes:
    size = len(payload)
    return _HEAD.pack(size >> 16, size & 0xFFFF, kind, flags, stream_id) + payload


def _header_frames(flags: int, stream_id: int, block: bytes) -> bytes:
    """HEADERS with as many CONTINUATION frames as the block needs."""
    if len(block) <= FRAME_BYTES_MAX:
        return _frame(HEADERS, flags | END_HEADERS, stream_id, block)
    frames = [_frame(HEADERS, flags, stream_id, block[:FRAME_BYTES_MAX])]
    for at in range(FRAME_BYTES_MAX, len(block), FRAME_BYTES_MAX):
        last = END_HEADERS if at + FRAME_BYTES_MAX >= len(block) else 0
        frames.append(_frame(CONTINUATION, last, stream_id, block[at : at + FRAME_BYTES_MAX]))
    return b"".join(frames)


def _block_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    fields = headers if isinstance(headers, tuple) else tuple(headers)
    block = _blocks.get(fields)
    if block is None:
        block = encode_block(fields)
        if len(_blocks) >= ANSWERS_REMEMBERED_MAX:
            _blocks.clear()
        _blocks[fields] = block
    return block


def request_fault(headers: Headers) -> str:
    """What makes a header list no request, or "". (RFC 9113 8.2, 8.3)

    >>> request_fault(((b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/"), (b"Te", b"trailers")))
    "field name b'Te'"
    """
    pseudo: set[bytes] = set()
    regular = measured = False
    for name, value in headers:
        if not _NAME.match(name):
            return f"field name {name[:40]!r}"
        if _BAD_VALUE.search(value):
            return f"value of field {name[:40]!r}"
        if name[0] == 0x3A:
            if regular or name in pseudo or name not in _PSEUDO:
                return f"pseudo-header {name[:40]!r}"
            pseudo.add(name)
            continue
        regular = True
        if name in _CONNECTION_FIELDS or (name == b"te" and value != b"trailers"):
            return f"field {name[:40]!r} of another version of HTTP"
        if name == b"content-length":
            if measured or not (value.isdigit() and len(value) <= 18):
                return "content-length"
            measured = True
    missing = _NEEDED - pseudo
    return f"no {min(missing)!r}" if missing else ""


def trailers_fault(headers: Headers) -> str:
    """What makes a header list no trailers, or "". (RFC 9113 8.1, 8.2.1)

    >>> trailers_fault(((b"x-checksum", b"7"), (b":path", b"/")))
    "field name b':path'"
    """
    for name, value in headers:
        if name[:1] == b":" or not _NAME.match(name):
            return f"field name {name[:40]!r}"
        if _BAD_VALUE.search(value):
            return f"value of field {name[:40]!r}"
    return ""


def make_engine(sink: EngineSink, limits: Limits) -> OwnEngine:
    return OwnEngine(sink, limits)
