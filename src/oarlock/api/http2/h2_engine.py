"""The engine over `h2` (pure Python; ten to twenty times the CPU of ngh2). h2 does not queue what the peer's window
does not admit, so this engine does."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from oarlock.api.http2.engine import PREFACE, ConnectionFailed, EngineSink, ErrorCode
from oarlock.api.limits import Limits

PUMPED_BYTES_MAX = 256 * 1024  # given to h2 before the socket has taken it: h2 itself would buffer a whole window
FRAME_BYTES_MAX = 16384
FRAME_HEADER_BYTES = 9

_GONE = (h2.exceptions.ProtocolError, KeyError)  # the stream or connection has ended under the writer


class _Outbox:
    """What one stream still has to send: body pieces, then perhaps trailers."""

    __slots__ = ("pieces", "size", "trailers")

    def __init__(self) -> None:
        self.pieces: deque[bytes] = deque()
        self.size = 0
        self.trailers: list[tuple[bytes, bytes]] | None = None


class H2Engine:
    """See `engine.Engine`."""

    def __init__(self, sink: EngineSink, limits: Limits) -> None:
        configuration = h2.config.H2Configuration(client_side=False, header_encoding=None)
        connection = h2.connection.H2Connection(configuration)
        codes = h2.settings.SettingCodes
        connection.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                codes.MAX_CONCURRENT_STREAMS: limits.streams_per_connection_max,
                codes.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
                codes.MAX_HEADER_LIST_SIZE: limits.header_list_bytes_max,
            },
        )
        connection.max_inbound_frame_size = connection.local_settings.max_frame_size
        connection.decoder.max_header_list_size = limits.header_list_bytes_max
        connection.initiate_connection()
        connection.increment_flow_control_window(limits.connection_window_bytes - 65535)
        self._connection = connection
        self._sink = sink
        self._out: dict[int, _Outbox] = {}
        self._unsent = 0
        self._ready = bytearray()
        self._pumped = 0
        self._pump_waits = False
        self._frame_header = b""
        self._skip = len(PREFACE)  # bytes until the next frame header
        self._finished = False
        self._draining = False
        self._open: set[int] = set()

    def feed(self, data: bytes) -> None:
        if self._finished:
            return
        self._check_frame_sizes(data)
        try:
            events = self._connection.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            self._finished = True
            raise ConnectionFailed(f"{type(error).__name__}: {error}") from error
        except (ValueError, IndexError, KeyError, UnicodeError) as error:  # frames that hyperframe or hpack fail on
            self.fail(ErrorCode.PROTOCOL_ERROR)
            raise ConnectionFailed(f"{type(error).__name__}: {error}") from error
        for event in events:
            self._dispatch(event)

    def _check_frame_sizes(self, data: bytes) -> None:
        """Refuse a frame that is too large by its header: h2 would wait, and hold memory, for all of it."""
        at, size = 0, len(data)
        while at < size:
            if self._skip:
                step = min(self._skip, size - at)
                self._skip -= step
                at += step
                continue
            step = FRAME_HEADER_BYTES - len(self._frame_header)
            header = self._frame_header + data[at : at + step]
            at += step
            if len(header) < FRAME_HEADER_BYTES:
                self._frame_header = header
                return
            self._frame_header = b""
            self._skip = int.from_bytes(header[:3], "big")
            if self._skip > FRAME_BYTES_MAX:
                self.fail(ErrorCode.FRAME_SIZE_ERROR)
                raise ConnectionFailed(f"frame of {self._skip} bytes, more than {FRAME_BYTES_MAX}")

    def _dispatch(self, event: h2.events.Event) -> None:
        sink = self._sink
        match event:
            case h2.events.RequestReceived():
                stream_id = event.stream_id
                self._open.add(stream_id)
                headers = tuple((bytes(name), bytes(value)) for name, value in event.headers)
                sink.on_request(stream_id, headers, event.stream_ended is not None)
            case h2.events.DataReceived():
                if event.flow_controlled_length:
                    try:
                        self._connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    except _GONE:
                        return  # reset in the same batch of frames
                sink.on_data(event.stream_id, event.data, event.stream_ended is not None)
            case h2.events.TrailersReceived():
                sink.on_end(event.stream_id)
            case h2.events.StreamReset():
                sink.on_control("reset")
                self._forget(event.stream_id, int(event.error_code))
            case h2.events.RemoteSettingsChanged():
                sink.on_control("settings")
                self._pump_all()
            case h2.events.PingReceived():
                sink.on_control("ping")
            case h2.events.PingAckReceived():
                sink.on_pong()
            case h2.events.WindowUpdated():
                if event.stream_id:
                    self._pump(event.stream_id)
                else:
                    self._pump_all()
            case h2.events.ConnectionTerminated():
                # h2 would refuse everything from here on; the peer only asked to open no further streams.
                self._draining = True
                self._connection.state_machine.state = h2.connection.ConnectionState.SERVER_OPEN
                sink.on_goaway()
            case _:
                pass  # the end of a stream is a flag of the events above

    def take(self, amount: int) -> bytes:
        ready = self._ready
        ready += self._connection.data_to_send()
        self._pumped = 0
        while self._pump_waits and len(ready) < amount:
            self._pump_waits = False
            self._pump_all()
            ready += self._connection.data_to_send()
            self._pumped = 0
        if len(ready) <= amount:
            data = bytes(ready)
            ready.clear()
        else:
            data = bytes(ready[:amount])
            del ready[:amount]
        return data

    def answer(
        self,
        stream_id: int,
        headers: Iterable[tuple[bytes, bytes]],
        body: bytes,
        trailers: Iterable[tuple[bytes, bytes]],
    ) -> None:
        self.head(stream_id, headers, False)
        self.body(stream_id, body)
        self.trailers(stream_id, trailers)

    def head(self, stream_id: int, headers: Iterable[tuple[bytes, bytes]], end_stream: bool) -> None:
        try:
            self._connection.send_headers(stream_id, list(headers), end_stream=end_stream)
        except _GONE:
            return
        if end_stream:
            self._forget(stream_id, 0)

    def body(self, stream_id: int, data: bytes) -> None:
        if stream_id not in self._open:
            return
        outbox = self._out.get(stream_id)
        if outbox is None:
            outbox = self._out[stream_id] = _Outbox()
        outbox.pieces.append(data)
        outbox.size += len(data)
        self._unsent += len(data)
        self._pump(stream_id)

    def trailers(self, stream_id: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        if stream_id not in self._open:
            return
        outbox = self._out.get(stream_id)
        if outbox is None:
            outbox = self._out[stream_id] = _Outbox()
        outbox.trailers = list(headers)
        self._pump(stream_id)

    def _pump(self, stream_id: int) -> None:
        """Send what the peer's windows admit."""
        outbox = self._out.get(stream_id)
        if outbox is None:
            return
        connection = self._connection
        try:
            pieces = outbox.pieces
            while pieces:
                if self._pumped >= PUMPED_BYTES_MAX:
                    self._pump_waits = True
                    return
                window = min(connection.local_flow_control_window(stream_id), connection.max_outbound_frame_size)
                if window <= 0:
                    return
                piece = pieces[0]
                if len(piece) <= window:
                    pieces.popleft()
                else:
                    pieces[0] = piece[window:]
                    piece = piece[:window]
                connection.send_data(stream_id, piece)
                self._pumped += len(piece)
                outbox.size -= len(piece)
                self._unsent -= len(piece)
            if outbox.trailers is not None:
                connection.send_headers(stream_id, outbox.trailers, end_stream=True)
                self._forget(stream_id, 0)
        except _GONE:
            self._forget(stream_id, int(ErrorCode.CANCEL))

    def _pump_all(self) -> None:
        for stream_id in list(self._out):
            self._pump(stream_id)

    def _forget(self, stream_id: int, error_code: int) -> None:
        outbox = self._out.pop(stream_id, None)
        if outbox is not None:
            self._unsent -= outbox.size
        if stream_id in self._open:
            self._open.discard(stream_id)
            self._sink.on_closed(stream_id, error_code)
        if self._draining and not self._open:
            self._finished = True

    def reset(self, stream_id: int, error_code: int) -> None:
        try:
            self._connection.reset_stream(stream_id, error_code)
        except _GONE:
            pass  # already gone: what is left is to forget it
        self._forget(stream_id, error_code)

    def ping(self) -> None:
        self._connection.ping(b"oarlock.")

    def drain(self) -> None:
        self._draining = True
        # Through h2's own method the connection could send nothing more, not even the answers under way.
        self._ready += self._connection.data_to_send() + _goaway(self._connection.highest_inbound_stream_id, 0)
        if not self._open:
            self._finished = True

    def fail(self, error_code: int, debug: bytes = b"") -> None:
        if not self._finished:
            self._finished = True
            self._ready += self._connection.data_to_send()
            self._ready += _goaway(self._connection.highest_inbound_stream_id, error_code, debug)

    def unsent(self, stream_id: int = 0) -> int:
        if not stream_id:
            return self._unsent
        outbox = self._out.get(stream_id)
        return outbox.size if outbox is not None else 0

    @property
    def takes_any_authority(self) -> bool:
        return False

    @property
    def wants_write(self) -> bool:
        return True

    @property
    def finished(self) -> bool:
        return self._finished

    @property
    def faulty(self) -> bool:
        return False  # a fault of the peer is always raised by `feed`


def _goaway(last_stream_id: int, error_code: int, debug: bytes = b"") -> bytes:
    payload = last_stream_id.to_bytes(4, "big") + error_code.to_bytes(4, "big") + debug
    return len(payload).to_bytes(3, "big") + b"\x07\x00\x00\x00\x00\x00" + payload


def make_engine(sink: EngineSink, limits: Limits) -> H2Engine:
    return H2Engine(sink, limits)
