"""The engine over `ngh2` (libnghttp2)."""

from __future__ import annotations

from collections.abc import Iterable

import ngh2
from ngh2 import DataReceived, RequestReceived, StreamClosed

from oarlock.api.http2.engine import ConnectionFailed, EngineSink
from oarlock.api.limits import Limits

CONTINUATIONS_MAX = 8  # CONTINUATION frames of one header block


class Ngh2Engine:
    """See `engine.Engine`."""

    __slots__ = ("_connection", "_sink", "_data_to_send", "_receive", "_events", "_ready", "_headed", "_ending")

    def __init__(self, sink: EngineSink, limits: Limits) -> None:
        configuration = ngh2.Configuration(
            max_inbound_header_list_size=limits.header_list_bytes_max,
            max_continuations=CONTINUATIONS_MAX,
            max_outbound_ack=limits.control_frames_per_s,
            stream_reset_rate_limit=(limits.control_frames_per_s, limits.control_frames_per_s),
        )
        connection = ngh2.Connection(ngh2.Role.SERVER, configuration)
        connection.initiate_connection(
            {
                ngh2.Setting.MAX_CONCURRENT_STREAMS: limits.streams_per_connection_max,
                ngh2.Setting.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
                ngh2.Setting.MAX_HEADER_LIST_SIZE: limits.header_list_bytes_max,
            }
        )
        connection.set_local_window_size(limits.connection_window_bytes)
        self._connection = connection
        self._sink = sink
        self._ready = b""  # taken from ngh2 already, because what came next would have overtaken it
        self._headed = 0  # the stream of the last complete `head`
        self._ending = False  # one of the two sides has asked for the end
        self._receive = connection.receive_data
        self._events = connection.events
        self._data_to_send = connection.data_to_send

    def feed(self, data: bytes) -> None:
        failure: ngh2.NGH2Error | None = None
        try:
            self._receive(data)
        except ngh2.NGH2Error as error:
            failure = error  # events before the fault still count
        sink = self._sink
        for event in self._events():
            if isinstance(event, DataReceived):
                sink.on_data(event.stream_id, event.data, event.end_stream)
            elif isinstance(event, StreamClosed):
                sink.on_closed(event.stream_id, event.error_code)
            elif isinstance(event, RequestReceived):
                sink.on_request(event.stream_id, event.headers, event.end_stream)
            else:
                self._rare(event)
        if failure is not None:
            raise ConnectionFailed(str(failure)) from failure

    def _rare(self, event: ngh2.Event) -> None:
        match event:
            case ngh2.TrailersReceived():
                self._sink.on_end(event.stream_id)
            case ngh2.StreamReset():
                self._sink.on_control("reset")
            case ngh2.PingReceived():
                self._sink.on_control("ping")
            case ngh2.SettingsReceived():
                self._sink.on_control("settings")
            case ngh2.PingAcknowledged():
                self._sink.on_pong()
            case ngh2.GoAwayReceived():
                self._ending = True
                self._sink.on_goaway()
            case _:
                pass  # window updates, priorities and alternative services change nothing for us

    def take(self, amount: int) -> bytes:
        if self._ready:
            ready, self._ready = self._ready, b""
            return ready + self._data_to_send(amount)
        return self._data_to_send(amount)

    def answer(
        self,
        stream_id: int,
        headers: Iterable[tuple[bytes, bytes]],
        body: bytes,
        trailers: Iterable[tuple[bytes, bytes]],
    ) -> None:
        connection = self._connection
        try:
            connection.send_response(stream_id, headers)
            connection.send_data(stream_id, body)
            connection.send_trailers(stream_id, trailers)
        except ngh2.NGH2Error:
            return  # the peer has reset the stream, or the connection is closing: nobody waits for this answer

    def head(self, stream_id: int, headers: Iterable[tuple[bytes, bytes]], end_stream: bool) -> None:
        try:
            self._connection.send_response(stream_id, headers, end_stream=end_stream)
        except ngh2.NGH2Error:
            return  # as in `answer`
        if end_stream:
            self._headed = stream_id

    def body(self, stream_id: int, data: bytes) -> None:
        try:
            self._connection.send_data(stream_id, data)
        except ngh2.NGH2Error:
            return  # as in `answer`

    def trailers(self, stream_id: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        try:
            self._connection.send_trailers(stream_id, headers)
        except ngh2.NGH2Error:
            return  # as in `answer`

    def reset(self, stream_id: int, error_code: int) -> None:
        if self._headed == stream_id:
            self._ready += self._data_to_send()  # libnghttp2 drops what it has queued for a stream that is reset
        try:
            self._connection.reset_stream(stream_id, error_code)
        except ngh2.NGH2Error:
            return  # as in `answer`

    def ping(self) -> None:
        self._connection.ping()

    def drain(self) -> None:
        self._ending = True
        try:
            self._connection.send_goaway(0)
        except ngh2.NGH2Error:
            return  # already closing

    def fail(self, error_code: int, debug: bytes = b"") -> None:
        self._ending = True
        try:
            if debug:
                self._connection.send_goaway(error_code, debug_data=debug)
                return
            self._connection.terminate_connection(error_code)
        except ngh2.NGH2Error:
            return  # already closing

    def unsent(self, stream_id: int = 0) -> int:
        try:
            return self._connection.queued_body_size(stream_id or None)
        except ngh2.NGH2Error:
            return 0  # the stream is gone and its bytes with it

    @property
    def takes_any_authority(self) -> bool:
        return False

    @property
    def wants_write(self) -> bool:
        connection = self._connection
        return connection.want_write or not connection.want_read or bool(self._ready)

    @property
    def finished(self) -> bool:
        return not self._connection.want_read

    @property
    def faulty(self) -> bool:
        return not self._ending and not self._connection.want_read


def make_engine(sink: EngineSink, limits: Limits) -> Ngh2Engine:
    return Ngh2Engine(sink, limits)
