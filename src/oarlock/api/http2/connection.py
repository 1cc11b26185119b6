"""The asyncio side of one HTTP/2 connection: reads, one write per turn, back-pressure, and the limits that need a
clock.

The layer above (gRPC) subclasses `Http2Connection` and implements `EngineSink`'s stream events.
"""

from __future__ import annotations

import asyncio
import logging
import re
from abc import ABC, abstractmethod
from typing import Protocol, cast

from oarlock.api.http2.authority import AuthorityMender
from oarlock.api.http2.engine import ConnectionFailed, EngineFactory, ErrorCode, Headers
from oarlock.api.limits import Limits

log = logging.getLogger(__name__)

_TEXT_AT_END = re.compile(rb"[ -~]{8,}\Z")  # a GOAWAY ends with what libnghttp2 has to say about the fault
PING_WITHOUT_REQUEST_S = 7200.0
PING_STRIKES_MAX = 2  # as grpc-go
WRITE_BYTES = 256 * 1024  # taken from the engine at a time; the transport's buffer holds at most about this


class Http2Host(Protocol):
    """What a connection needs from the server around it."""

    limits: Limits
    engine: EngineFactory
    open_streams: int
    """Requests under way on all connections."""

    unsent_bytes: int
    """Answer bytes waiting on all connections, as each last reported."""

    def flush_soon(self, connection: Http2Connection) -> None:
        """Call `connection.flush()` at the end of this turn."""

    def connection_opened(self, connection: Http2Connection) -> None: ...
    def connection_closed(self, connection: Http2Connection) -> None: ...
    def abuse(self, kind: str) -> None:
        """Count a connection or stream that was cut, by its reason."""


class Http2Connection(asyncio.Protocol, ABC):
    """One client connection after its preface was recognised.

    `reading_stops` counts the reasons for not reading (a full socket, a full inbox); it is read only at zero.
    """

    def __init__(self, host: Http2Host) -> None:
        self.host = host
        self.limits = host.limits
        self.engine = host.engine(self, host.limits)
        self._mender: AuthorityMender | None = None
        if not self.engine.takes_any_authority:
            self._mender = AuthorityMender(host.limits.header_list_bytes_max)
        self.peer = "?"
        self.peer_host = "?"  # without the port: one client may have many connections
        self._transport: asyncio.Transport | None = None
        self._flush_planned = False
        self._in_turn = False
        self._writing_paused = False
        self._reading_stops = 0
        self._settled = False  # the peer's SETTINGS have come
        self._heard = True
        self._age_s = 0.0
        self._silent_s = 0.0
        self._ping_due_s: float | None = None
        self._stalled_s = 0.0
        self._taken_bytes = 0
        self._taken_at_tick = 0
        self._unsent_reported = 0
        self._control_frames = 0
        self._pinged_at = float("-inf")  # loop time
        self._ping_strikes = 0
        self._answered = False  # since the last ping
        self._certificate_user: str | None = None  # not asked for yet
        self._drain_waiters: list[asyncio.Future[None]] = []

    # -- asyncio.Protocol
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its bases
        name = self._transport.get_extra_info("peername")
        self.peer = str(name)
        self.peer_host = str(name[0]) if isinstance(name, tuple) and name else self.peer
        self.host.connection_opened(self)
        self.flush()

    def data_received(self, data: bytes) -> None:
        self._heard = True
        self._in_turn = True
        try:
            if self._mender is not None:
                data = self._mender.feed(data)
                if self._mender.idle:
                    self._mender = None
            self.engine.feed(data)
        except ConnectionFailed as failure:
            self._in_turn = False
            self._cut("protocol", str(failure), None)
            return
        self._in_turn = False
        if self.engine.wants_write:
            self.flush()

    def eof_received(self) -> bool:
        return False  # a client that closes its sending side wants nothing more from HTTP/2

    def pause_writing(self) -> None:
        self._writing_paused = True
        self.stop_reading()  # a client that takes no answers gets to ask nothing more

    def resume_writing(self) -> None:
        self._writing_paused = False
        self.go_on_reading()
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.host.unsent_bytes -= self._unsent_reported
        self._unsent_reported = 0
        self.host.connection_closed(self)
        self.on_lost()
        self._wake_senders()

    # -- for the layer above
    def on_lost(self) -> None:
        """The connection is gone: let go of everything."""

    @abstractmethod
    def on_request(self, stream_id: int, headers: Headers, end_stream: bool) -> None:
        """A request's headers came; with `end_stream` it has no body."""

    @abstractmethod
    def on_data(self, stream_id: int, data: bytes, end_stream: bool) -> None:
        """A piece of a request's body came."""

    @abstractmethod
    def on_end(self, stream_id: int) -> None:
        """The client has said everything on this stream (trailers ended it)."""

    @abstractmethod
    def on_closed(self, stream_id: int, error_code: int) -> None:
        """The stream is gone, whoever ended it."""

    def touch(self) -> None:
        """Something was given to the engine: write it at the end of this turn."""
        self._answered = True
        if not self._flush_planned and not self._in_turn:
            self._flush_planned = True
            self.host.flush_soon(self)

    def flush(self) -> None:
        """Write what the engine has, as far as the socket takes it."""
        self._flush_planned = False
        transport = self._transport
        if transport is None or self._writing_paused:
            return
        engine = self.engine
        written = b""
        while True:
            data = engine.take(WRITE_BYTES)
            size = len(data)
            if not size:
                break
            written = data
            self._taken_bytes += size
            transport.write(data)
            if size < WRITE_BYTES or self._writing_paused:
                break
        unsent = engine.unsent()
        if unsent < self._unsent_reported:
            self._answered = True  # more of a long answer has gone out, for which the client may measure the way
        if unsent or self._unsent_reported:
            self.host.unsent_bytes += unsent - self._unsent_reported
            self._unsent_reported = unsent
        if self._drain_waiters:
            self._wake_senders()
        if engine.finished and self._may_close(transport):
            if engine.faulty:
                text = _TEXT_AT_END.search(written)
                self._report("protocol", text.group().decode("ascii") if text else "HTTP/2 protocol error")
            transport.close()

    def _may_close(self, transport: asyncio.Transport) -> bool:
        return not self._writing_paused and not transport.is_closing()

    @property
    def congested(self) -> bool:
        """Whether further answers should be refused because this peer, or all peers together, do not read theirs."""
        limits = self.limits
        return self._unsent_reported > limits.unsent_bytes_max or self.host.unsent_bytes > limits.unsent_bytes_total_max

    def certificate_user(self) -> str:
        """The common name of the client's certificate, which TLS has verified; empty if it showed none."""
        if self._certificate_user is None:
            transport = self._transport
            certificate = transport.get_extra_info("peercert") if transport is not None else None
            subject = certificate.get("subject", ()) if certificate else ()
            names = [value for field in subject for name, value in field if name == "commonName"]
            self._certificate_user = names[0] if names else ""
        return self._certificate_user

    @property
    def lost(self) -> bool:
        return self._transport is None

    def sendable(self, stream_id: int) -> bool:
        """Whether `wait_sendable` would return at once, for a connection that is not gone."""
        return not self._writing_paused and self.engine.unsent(stream_id) < self.limits.stream_unsent_bytes

    async def wait_sendable(self, stream_id: int) -> None:
        """Return when less than `stream_unsent_bytes` of the stream wait to be sent, or the connection is gone."""
        while self._transport is not None and (
            self._writing_paused or self.engine.unsent(stream_id) >= self.limits.stream_unsent_bytes
        ):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._drain_waiters.append(waiter)
            await waiter

    def _wake_senders(self) -> None:
        waiters, self._drain_waiters = self._drain_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def stop_reading(self) -> None:
        self._reading_stops += 1
        if self._reading_stops == 1 and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def go_on_reading(self) -> None:
        self._reading_stops -= 1
        if self._reading_stops == 0 and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def drain(self) -> None:
        """Take no new requests; close after the last answer."""
        self.engine.drain()
        self.flush()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # -- limits
    def on_control(self, kind: str) -> None:
        if kind == "settings":
            self._settled = True
        elif kind == "ping" and self._too_many_pings():
            self._cut("pings", "pings come too often", ErrorCode.ENHANCE_YOUR_CALM, b"too_many_pings")
            return
        self._control_frames += 1
        if self._control_frames == self.limits.control_frames_per_s:
            self._cut(
                "flood",
                f"more than {self.limits.control_frames_per_s} control frames a second, last {kind}",
                ErrorCode.ENHANCE_YOUR_CALM,
            )

    @abstractmethod
    def has_requests(self) -> bool:
        """Whether requests are under way."""

    def _too_many_pings(self) -> bool:
        """grpc-go's rule, which clients' keep-alive settings are made for."""
        now = asyncio.get_running_loop().time()
        since, self._pinged_at = now - self._pinged_at, now
        if self._answered:
            self._answered = False
            self._ping_strikes = 0
        elif since < (self.limits.keepalive_min_s if self.has_requests() else PING_WITHOUT_REQUEST_S):
            self._ping_strikes += 1
        return self._ping_strikes > PING_STRIKES_MAX

    def on_pong(self) -> None:
        self._ping_due_s = None

    def on_goaway(self) -> None:
        """The client opens no further streams; it closes when it has its answers."""

    def tick(self, elapsed_s: float) -> None:
        """Called about once a second by the server."""
        limits = self.limits
        self._control_frames = 0
        self._age_s += elapsed_s
        if not self._settled and self._age_s > limits.handshake_s:
            self._cut("handshake", f"no SETTINGS frame within {limits.handshake_s:g} s", ErrorCode.SETTINGS_TIMEOUT)
            return
        self._silent_s = 0.0 if self._heard else self._silent_s + elapsed_s
        self._heard = False
        if self._ping_due_s is not None:
            self._ping_due_s -= elapsed_s
            if self._silent_s == 0.0:
                self._ping_due_s = None
            elif self._ping_due_s <= 0:
                self._cut("keepalive", f"no answer to a PING within {limits.keepalive_timeout_s:g} s", None)
                return
        elif self._silent_s >= limits.keepalive_interval_s:
            self._ping_due_s = limits.keepalive_timeout_s
            self.engine.ping()
            self.flush()
        waiting = self._writing_paused or self._unsent_reported > 0
        if waiting and self._taken_bytes == self._taken_at_tick:
            self._stalled_s += elapsed_s
            if self._stalled_s > limits.stall_s:
                self._cut(
                    "stalled", f"took none of its {self._unsent_reported} waiting bytes for {limits.stall_s:g} s", None
                )
        else:
            self._stalled_s = 0.0
        self._taken_at_tick = self._taken_bytes

    def _report(self, kind: str, why: str) -> None:
        log.warning("client connection cut peer=%s reason=%s detail=%s", self.peer, kind, why)
        self.host.abuse(kind)

    def _cut(self, kind: str, why: str, error_code: ErrorCode | None, debug: bytes = b"") -> None:
        """End the connection: log, count, say GOAWAY where the socket takes it."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._report(kind, why)
        if error_code is not None:
            self.engine.fail(error_code, debug)
        if self._writing_paused:
            transport.abort()
            return
        data = self.engine.take(WRITE_BYTES)
        if data:
            transport.write(data)
        if transport.get_write_buffer_size():
            transport.abort()
        else:
            transport.close()
