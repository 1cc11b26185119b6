"""One HTTP/2 connection to a server, and gRPC calls over it. Sans-I/O HTTP/2 by `h2`; one event loop.

A connection that does not answer a PING in time is closed and all of its calls fail, so nothing waits on a server that
has silently gone. One that the client leaves, or that its server is about to close (GOAWAY), takes no new calls and
closes when those under way have ended.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections import deque
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote_to_bytes, urlsplit

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from oarlock.api.grpc.status import Code
from oarlock.client.errors import EtcdError, error_of

MESSAGE_BYTES_MAX: Final = 64 << 20
"""The largest message that is read."""

STREAM_MESSAGES_MAX: Final = 1024
STREAM_BYTES_MAX: Final = 4 << 20
"""Messages of one stream, and their bytes, that may wait to be taken; then its flow-control window is opened no
further. The connection's window is opened all the same: who does not read one stream does not stop the others."""

WINDOW_BYTES: Final = 1 << 20
CONNECTION_WINDOW_BYTES: Final = 16 << 20
CLOSE_S: Final = 1.0
"""Seconds that a connection which we close may take to send what it still holds."""

RENEWALS_MAX: Final = 3
"""New tokens that one call may need: rights may change again while it gets one."""

_ENDPOINTS: Final = "it is host:port, http://host:port, https://host:port, unix://path or unixs://path"
_TIMEOUT_DIGITS_MAX: Final = 99_999_999  # of a grpc-timeout
_TIMEOUT_UNITS: Final = (("m", 1e3), ("S", 1.0), ("M", 1 / 60), ("H", 1 / 3600))

Metadata = tuple[tuple[str, str], ...]


class Stream:
    """One call. Messages come through `receive` until None; then `status` holds how it ended."""

    def __init__(self, channel: Channel, stream_id: int) -> None:
        self._channel = channel
        self.id = stream_id
        self._messages: deque[bytes] = deque()
        self._buffer = bytearray()
        self._waiting_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._unacknowledged = 0  # bytes of its window that we have not opened again
        self._trailers: dict[str, str] = {}
        self._http_status = ""
        self.error: EtcdError | None = None
        self.ended = False

    async def receive(self) -> bytes | None:
        """The next message, or None at the end. Raises `EtcdError` if the call ended with an error."""
        while not self._messages:
            if self.ended:
                if self.error is not None:
                    raise self.error
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        message = self._messages.popleft()
        self._waiting_bytes -= len(message)
        if self._room(2):
            self._acknowledge()
        return message

    def _room(self, part: int = 1) -> bool:
        """Whether less waits than this part of the bounds."""
        return len(self._messages) < STREAM_MESSAGES_MAX // part and self._waiting_bytes < STREAM_BYTES_MAX // part

    def _acknowledge(self) -> None:
        if self._unacknowledged >= WINDOW_BYTES // 4:  # in bigger steps: each is a frame
            length, self._unacknowledged = self._unacknowledged, 0
            self._channel.open_window(length, self)

    async def send(self, message: bytes, *, end: bool = False) -> None:
        """Send one message. Raises `EtcdError` if the call is over."""
        await self._channel.send(self, b"\0" + len(message).to_bytes(4, "big") + message, end)

    def cancel(self) -> None:
        """End the call now; the server is told."""
        if not self.ended:
            self._channel.reset(self)
            self.finish(error_of(Code.CANCELLED, "the call was cancelled"))

    # -- the channel's side

    def data(self, data: bytes, length: int) -> None:
        self._channel.received(length)
        self._unacknowledged += length
        buffer = self._buffer
        buffer += data
        while len(buffer) >= 5:
            size = int.from_bytes(buffer[1:5], "big")
            if buffer[0] or size > MESSAGE_BYTES_MAX:
                self._channel.reset(self)
                what = "compressed" if buffer[0] else f"of {size} bytes (at most {MESSAGE_BYTES_MAX})"
                self.finish(error_of(Code.INTERNAL, f"the server sent a message that is {what}"))
                return
            if len(buffer) < 5 + size:
                break
            self._messages.append(bytes(buffer[5 : 5 + size]))
            self._waiting_bytes += size
            del buffer[: 5 + size]
        if self._room():
            self._acknowledge()
        self._wake()

    def headers(self, headers: Any) -> None:
        for name, value in headers:
            if name == ":status":
                self._http_status = value
            else:
                self._trailers[name] = value

    def closed(self) -> None:
        """The server has sent everything."""
        text = self._trailers.get("grpc-status")
        if text is None or not (text.isascii() and text.isdigit()):
            self.finish(
                error_of(Code.UNKNOWN, f"the server ended the call without a status (HTTP {self._http_status or '?'})")
            )
            return
        code = int(text)
        message = unquote_to_bytes(self._trailers.get("grpc-message", "")).decode("utf-8", "replace")
        self.finish(error_of(Code(code) if code <= 16 else Code.UNKNOWN, message) if code else None)

    def finish(self, error: EtcdError | None) -> None:
        if not self.ended:
            self.ended = True
            self.error = error
            self._channel.forget(self)
            self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens: a host and a port, or the path of a socket."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def of(cls, endpoint: str) -> Address:
        """Raises `ValueError` for what is no endpoint. Its text does not repeat a password.

        >>> Address.of("[::1]:2379").authority, Address.of("unixs:///run/x").path, Address.of("db").authority
        ('[::1]:2379', '/run/x', 'db:2379')
        """
        try:
            parts = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
            port = parts.port
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"{endpoint!r} is no endpoint ({error}): {_ENDPOINTS}") from None
        if parts.username is not None or parts.password is not None:
            raise ValueError(f"an endpoint with a user in it: give user and password to Client; {_ENDPOINTS}")
        path = parts.netloc + parts.path
        if parts.scheme in ("unix", "unixs") and path:
            return cls(parts.scheme, "localhost", 0, path)
        named = parts.hostname and "," not in parts.netloc and parts.path in ("", "/")
        if parts.scheme in ("", "http", "https") and named:
            return cls(parts.scheme, parts.hostname or "", 2379 if port is None else port, "")
        raise ValueError(f"{endpoint!r} is no endpoint: {_ENDPOINTS}; several are a list")

    @property
    def authority(self) -> str:
        if self.path:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class _Http2(h2.connection.H2Connection):
    """`h2` takes GOAWAY for the end of the connection; it is the end of new calls (RFC 9113 6.8)."""

    def _receive_goaway_frame(self, frame: Any) -> Any:
        state, buffered = self.state_machine.state, bytes(self._data_to_send)
        answer = super()._receive_goaway_frame(frame)
        self.state_machine.state = state
        self._data_to_send += buffered
        return answer


def grpc_timeout(seconds: float) -> str:
    """A `grpc-timeout`, which has eight digits at most; empty for one that no server could tell from none.

    >>> grpc_timeout(5), grpc_timeout(0), grpc_timeout(1e6), grpc_timeout(float("inf"))
    ('5000m', '1m', '1000000S', '')
    """
    for unit, per_second in _TIMEOUT_UNITS:
        if seconds * per_second <= _TIMEOUT_DIGITS_MAX:
            return f"{max(1, int(seconds * per_second))}{unit}"
    return ""


class Channel(asyncio.Protocol):
    """A connection to `endpoint` (`host:port`, or a URL). Made by `connect`."""

    def __init__(self, authority: str, scheme: str, keepalive_s: float, keepalive_timeout_s: float) -> None:
        self._h2 = _Http2(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self._authority = authority
        self._scheme = scheme
        self._transport: asyncio.Transport | None = None
        self._streams: dict[int, Stream] = {}
        self._writable = asyncio.Event()
        self._writable.set()
        self._window: asyncio.Event = asyncio.Event()
        self._unacknowledged = 0  # bytes of the connection's window that we have not opened again
        self._slots: deque[asyncio.Future[None]] = deque()  # calls that wait until another has ended
        self._keepalive_s = keepalive_s
        self._keepalive_timeout_s = keepalive_timeout_s
        self._ping: asyncio.TimerHandle | None = None
        self._going_away = False
        self._greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def connect(
        cls,
        endpoint: str,
        tls: ssl.SSLContext | None,
        *,
        timeout_s: float,
        keepalive_s: float,
        keepalive_timeout_s: float,
        server_name: str = "",
    ) -> Channel:
        """Open a connection, and wait until the server has said that it speaks HTTP/2: one that accepts and then says
        nothing is found out before any request is sent to it. Raises `Unavailable`."""
        loop = asyncio.get_running_loop()
        channel: Channel | None = None
        try:
            address = Address.of(endpoint)
            host, port = address.host, address.port
            secure = address.scheme in ("https", "unixs") or (tls is not None and not address.scheme)
            context = (tls or ssl.create_default_context()) if secure else None
            if context is not None:
                context.set_alpn_protocols(["h2"])
            name = (server_name or host) if context is not None else None

            def make() -> Channel:
                return cls(address.authority, "https" if secure else "http", keepalive_s, keepalive_timeout_s)

            async with asyncio.timeout(timeout_s):
                if address.path:
                    _, channel = await loop.create_unix_connection(
                        make, address.path, ssl=context, server_hostname=name
                    )
                else:
                    _, channel = await loop.create_connection(make, host, port, ssl=context, server_hostname=name)
                await channel._greeted
        except (OSError, TimeoutError, ValueError, EtcdError) as error:
            if channel is not None:
                channel._fail("it was not needed")
            reason = error.text if isinstance(error, EtcdError) else str(error) or "no answer in time"
            text = f"{endpoint} cannot be reached: {reason}"
            raise error_of(Code.UNAVAILABLE, text, sent=False) from error
        except BaseException:
            if channel is not None:
                channel._fail("it was not needed")
            raise
        return channel

    @property
    def usable(self) -> bool:
        """Whether new calls may begin on it."""
        return self._open and not self._going_away

    @property
    def _open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    # -- calls

    async def begin(self, path: str, metadata: Metadata, timeout_s: float | None) -> Stream:
        """Begin a call, as soon as the server takes one more on this connection. Raises `Unavailable` if the
        connection has gone: nothing was sent then."""
        while self.usable and len(self._streams) >= self._h2.remote_settings.max_concurrent_streams:
            slot = asyncio.get_running_loop().create_future()
            self._slots.append(slot)
            try:
                await slot
            except asyncio.CancelledError:
                if slot in self._slots:
                    self._slots.remove(slot)
                else:
                    self._free_slot()  # it was ours, and we do not take it
                raise
        if not self.usable:
            raise error_of(Code.UNAVAILABLE, "the connection was closed", sent=False)
        headers = [
            (":method", "POST"),
            (":scheme", self._scheme),
            (":path", path),
            (":authority", self._authority),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("user-agent", "oarlock-python"),
            *metadata,
        ]
        if timeout_s is not None and (text := grpc_timeout(timeout_s)):
            headers.append(("grpc-timeout", text))
        try:
            stream_id = self._h2.get_next_available_stream_id()
            self._h2.send_headers(stream_id, headers)
        except h2.exceptions.ProtocolError as error:
            raise error_of(Code.UNAVAILABLE, f"no further call fits on the connection: {error}", sent=False) from error
        stream = Stream(self, stream_id)
        self._streams[stream_id] = stream
        return stream

    async def unary(self, path: str, message: bytes, metadata: Metadata, timeout_s: float | None) -> bytes:
        """One request, one answer."""
        stream: Stream | None = None
        try:
            async with asyncio.timeout(None if timeout_s is None or math.isinf(timeout_s) else timeout_s):
                stream = await self.begin(path, metadata, timeout_s)
                await stream.send(message, end=True)
                answer = await stream.receive()
                if answer is None:
                    raise error_of(Code.INTERNAL, "the server ended the call without an answer")
                while await stream.receive() is not None:
                    pass
                return answer
        except TimeoutError:
            sent = stream is not None
            raise error_of(Code.DEADLINE_EXCEEDED, f"no answer within {timeout_s:g} s", sent=sent) from None
        finally:
            if stream is not None:
                stream.cancel()

    async def send(self, stream: Stream, data: bytes, end: bool) -> None:
        view = memoryview(data)
        while True:
            if stream.ended:
                raise stream.error or error_of(Code.CANCELLED, "the call is over")
            try:
                room = min(self._h2.local_flow_control_window(stream.id), self._h2.max_outbound_frame_size)
                if room > 0 or not view:
                    piece = view[:room]
                    view = view[len(piece) :]
                    self._h2.send_data(stream.id, bytes(piece), end_stream=end and not view)
                    self._flush()
                    if not view:
                        break
                    await self._writable.wait()
                    continue
            except h2.exceptions.ProtocolError as error:
                raise stream.error or error_of(Code.UNAVAILABLE, f"the call is over: {error}") from error
            self._window.clear()
            self._flush()
            await self._window.wait()
        await self._writable.wait()

    def received(self, length: int) -> None:
        """So many bytes have come, on any stream."""
        self._unacknowledged += length
        if self._unacknowledged >= CONNECTION_WINDOW_BYTES // 4:
            length, self._unacknowledged = self._unacknowledged, 0
            self.open_window(length)

    def open_window(self, length: int, stream: Stream | None = None) -> None:
        """Let the server send so many bytes more: on this stream, or on the connection."""
        if self._open:
            try:
                self._h2.increment_flow_control_window(length, stream.id if stream is not None else None)
            except (h2.exceptions.ProtocolError, KeyError):
                return  # it has ended meanwhile
            self._flush()

    def reset(self, stream: Stream) -> None:
        if self._open:
            try:
                self._h2.reset_stream(stream.id, h2.errors.ErrorCodes.CANCEL)
            except h2.exceptions.ProtocolError:
                return  # both sides have ended it
            self._flush()

    def forget(self, stream: Stream) -> None:
        self._streams.pop(stream.id, None)
        self._window.set()
        self._free_slot()
        if self._going_away and not self._streams:
            self.close()

    def _free_slot(self) -> None:
        while self._slots:
            slot = self._slots.popleft()
            if not slot.done():
                slot.set_result(None)
                return

    def _free_slots(self) -> None:
        """All that wait look again whether they may begin."""
        while self._slots:
            self._free_slot()

    def retire(self) -> None:
        """Take no new calls, and close when those under way have ended. What waits for its turn is not sent."""
        self._going_away = True
        self._free_slots()
        if not self._streams:
            self.close()

    def close(self) -> None:
        """Close the connection; calls under way fail."""
        if self._transport is not None and not self._transport.is_closing():
            try:
                self._h2.close_connection()
                self._flush()
            except h2.exceptions.ProtocolError:
                pass  # it was closed by the other side
            self._transport.close()
            asyncio.get_running_loop().call_later(CLOSE_S, self._transport.abort)  # a peer that does not read

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's is one in all but its bases
        self._h2.initiate_connection()
        self._h2.update_settings(
            {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: WINDOW_BYTES, h2.settings.SettingCodes.ENABLE_PUSH: 0}
        )
        self._h2.increment_flow_control_window(CONNECTION_WINDOW_BYTES - 65535)
        self._flush()
        self._arm(self._keepalive_s, self._send_ping)

    def data_received(self, data: bytes) -> None:
        try:
            events = self._h2.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            self._fail(f"the server broke the protocol: {error}")
            return
        self._arm(self._keepalive_s, self._send_ping)
        for event in events:
            self._handle(event)
        self._flush()

    def _handle(self, event: Any) -> None:
        if isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged):
            self._window.set()
            if isinstance(event, h2.events.RemoteSettingsChanged):
                if not self._greeted.done():
                    self._greeted.set_result(None)
                self._free_slots()
            return
        if isinstance(event, h2.events.ConnectionTerminated):
            text = f"the server closed the connection ({event.error_code})"
            for stream_id, unread in list(self._streams.items()):
                if stream_id > (event.last_stream_id or 0):  # RFC 9113 6.8: it was not and will not be looked at
                    unread.finish(error_of(Code.UNAVAILABLE, text, sent=False))
            if event.error_code:
                self._fail(text)
            else:
                self.retire()
            return
        stream = self._streams.get(getattr(event, "stream_id", 0) or 0)
        if stream is None:
            return
        match event:
            case h2.events.DataReceived():
                stream.data(event.data, event.flow_controlled_length)
            case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                stream.headers(event.headers)
            case h2.events.StreamEnded():
                stream.closed()
            case h2.events.StreamReset():
                refused = event.error_code == h2.errors.ErrorCodes.REFUSED_STREAM
                stream.finish(
                    error_of(Code.UNAVAILABLE, f"the server reset the call ({event.error_code})", sent=not refused)
                )

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the connection was lost: {exc or 'the server closed it'}")

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _arm(self, delay_s: float, call: Any) -> None:
        if self._ping is not None:
            self._ping.cancel()
        self._ping = asyncio.get_running_loop().call_later(delay_s, call)

    def _send_ping(self) -> None:
        if not self._open:
            return  # it is being closed
        if not self._streams:
            self._arm(self._keepalive_s, self._send_ping)  # servers count pings without a call as abuse
            return
        self._h2.ping(b"oarlock ")
        self._flush()
        self._arm(self._keepalive_timeout_s, self._no_answer)

    def _no_answer(self) -> None:
        self._fail(f"the server has not answered a ping within {self._keepalive_timeout_s:g} s")

    def _fail(self, text: str) -> None:
        """End everything on this connection."""
        if self._ping is not None:
            self._ping.cancel()
            self._ping = None
        self._going_away = True
        if not self._greeted.done():
            self._greeted.set_exception(error_of(Code.UNAVAILABLE, text, sent=False))
            self._greeted.exception()  # nobody may wait for it any more
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        for stream in list(self._streams.values()):
            stream.finish(error_of(Code.UNAVAILABLE, text))
        self._writable.set()
        self._window.set()
        self.retire()
        if not self.closed.done():
            self.closed.set_result(None)
