"""One HTTP/2 connection to a server, and gRPC calls over it. Sans-I/O HTTP/2 by `h2`; one event loop.

A connection that does not answer a PING in time is closed and all of its calls fail, so nothing waits on a server that
has silently gone.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
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
"""Messages of one stream that may wait to be taken; then its flow-control window is opened no further."""

WINDOW_BYTES: Final = 1 << 20
CONNECTION_WINDOW_BYTES: Final = 16 << 20

Metadata = tuple[tuple[str, str], ...]


class Stream:
    """One call. Messages come through `receive` until None; then `status` holds how it ended."""

    def __init__(self, channel: Channel, stream_id: int) -> None:
        self._channel = channel
        self.id = stream_id
        self._messages: deque[bytes] = deque()
        self._buffer = bytearray()
        self._waiter: asyncio.Future[None] | None = None
        self._unacknowledged = 0
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
        if self._unacknowledged and len(self._messages) < STREAM_MESSAGES_MAX // 2:
            self._channel.acknowledge(self, self._unacknowledged)
            self._unacknowledged = 0
        return message

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
            del buffer[: 5 + size]
        if len(self._messages) < STREAM_MESSAGES_MAX:
            self._channel.acknowledge(self, length)
        else:
            self._unacknowledged += length
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
        if text is None or not text.isdigit():
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


class Channel(asyncio.Protocol):
    """A connection to `endpoint` (`host:port`, or a URL). Made by `connect`."""

    def __init__(self, authority: str, keepalive_s: float, keepalive_timeout_s: float) -> None:
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self._authority = authority
        self._transport: asyncio.Transport | None = None
        self._streams: dict[int, Stream] = {}
        self._writable = asyncio.Event()
        self._writable.set()
        self._window: asyncio.Event = asyncio.Event()
        self._keepalive_s = keepalive_s
        self._keepalive_timeout_s = keepalive_timeout_s
        self._ping: asyncio.TimerHandle | None = None
        self._going_away = False
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
        """Open a connection. Raises `Unavailable`."""
        parts = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
        loop = asyncio.get_running_loop()
        secure = parts.scheme == "https" or (tls is not None and parts.scheme != "http")
        context = (tls or ssl.create_default_context()) if secure else None
        if context is not None:
            context.set_alpn_protocols(["h2"])
        try:
            async with asyncio.timeout(timeout_s):
                if parts.scheme in ("unix", "unixs"):
                    _, channel = await loop.create_unix_connection(
                        lambda: cls("localhost", keepalive_s, keepalive_timeout_s), parts.netloc + parts.path
                    )
                else:
                    host, port = parts.hostname or "127.0.0.1", parts.port or 2379
                    _, channel = await loop.create_connection(
                        lambda: cls(f"{host}:{port}", keepalive_s, keepalive_timeout_s),
                        host,
                        port,
                        ssl=context,
                        server_hostname=(server_name or host) if context is not None else None,
                    )
        except (OSError, TimeoutError, ValueError) as error:
            text = f"{endpoint} cannot be reached: {str(error) or 'no answer in time'}"
            raise error_of(Code.UNAVAILABLE, text, sent=False) from error
        return channel

    @property
    def usable(self) -> bool:
        """Whether new calls may begin on it."""
        return self._transport is not None and not self._transport.is_closing() and not self._going_away

    # -- calls

    def begin(self, path: str, metadata: Metadata, timeout_s: float | None) -> Stream:
        """Begin a call. Raises `Unavailable` if the connection has gone: nothing was sent then."""
        if not self.usable:
            raise error_of(Code.UNAVAILABLE, "the connection was closed", sent=False)
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", self._authority),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("user-agent", "oarlock-python"),
            *metadata,
        ]
        if timeout_s is not None:
            headers.append(("grpc-timeout", f"{max(1, int(timeout_s * 1000))}m"))
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
        stream = self.begin(path, metadata, timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                await stream.send(message, end=True)
                answer = await stream.receive()
                if answer is None:
                    raise error_of(Code.INTERNAL, "the server ended the call without an answer")
                while await stream.receive() is not None:
                    pass
                return answer
        except TimeoutError:
            raise error_of(Code.DEADLINE_EXCEEDED, f"no answer within {timeout_s:g} s") from None
        finally:
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

    def acknowledge(self, stream: Stream, length: int) -> None:
        """Let the server send more."""
        if length and self.usable:
            try:
                self._h2.acknowledge_received_data(length, stream.id)
            except (h2.exceptions.ProtocolError, KeyError):
                return  # the stream has ended meanwhile
            self._flush()

    def reset(self, stream: Stream) -> None:
        if self._transport is not None and not self._transport.is_closing():
            try:
                self._h2.reset_stream(stream.id, h2.errors.ErrorCodes.CANCEL)
            except h2.exceptions.ProtocolError:
                return  # both sides have ended it
            self._flush()

    def forget(self, stream: Stream) -> None:
        self._streams.pop(stream.id, None)
        self._window.set()
        if self._going_away and not self._streams:
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
            return
        if isinstance(event, h2.events.ConnectionTerminated):
            self._going_away = True
            if not self._streams or event.error_code:
                self._fail(f"the server closed the connection ({event.error_code})")
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
        if not self.usable or not self._streams:
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
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        for stream in list(self._streams.values()):
            stream.finish(error_of(Code.UNAVAILABLE, text))
        self._writable.set()
        self._window.set()
        if not self.closed.done():
            self.closed.set_result(None)
