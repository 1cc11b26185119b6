"""One gRPC call, as its handler sees it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from oarlock.api.grpc.router import Method, Route
from oarlock.api.grpc.status import Code, RpcError, status_trailers

if TYPE_CHECKING:
    from oarlock.api.grpc.connection import GrpcConnection

log = logging.getLogger(__name__)

RESPONSE_HEADERS = ((b":status", b"200"), (b"content-type", b"application/grpc"))
TRAILERS_OK = ((b"grpc-status", b"0"), (b"grpc-message", b""))
HANDED_OVER = -1  # `Call.size` once the handler has the request


class Call:
    """A unary call. Its handler ends it, now or later, with one `reply` or `fail`; what comes after that is
    ignored, as is everything once the client has gone or its deadline has passed (`open` is False then)."""

    __slots__ = (
        "connection", "stream_id", "method", "route", "open", "due", "waited_s", "parts", "size", "answered",
        "identity", "admitted", "on_gone",
    )  # fmt: skip

    def __init__(self, connection: GrpcConnection, stream_id: int, method: Method, route: Route) -> None:
        self.connection = connection
        self.stream_id = stream_id
        self.method = method
        self.route = route
        self.open = True
        self.due: float | None = None  # loop time
        self.waited_s = 0.0  # since its headers, while the request is incomplete
        self.parts: bytearray | None = None  # of a request that comes in several frames
        self.size = 0  # of the whole request with its prefix, where known
        self.answered = False  # response headers are out
        self.identity: tuple[str, int] | None = None  # user and auth revision, where authentication is on
        self.admitted = 0  # the auth revision at which it was found that the call may be served
        self.on_gone: Callable[[], None] | None = None  # for a call that waits: it is over without our answer

    def metadata(self, name: bytes) -> bytes | None:
        """A request header, by its lower-case name."""
        return self.route.metadata.get(name)

    @property
    def need_leader(self) -> bool:
        """The client asked to be refused while there is no leader (metadata `hasleader`)."""
        return self.route.need_leader

    @property
    def request_ended(self) -> bool:
        """Whether all of the request has come."""
        return self.size == HANDED_OVER

    def reply(self, message: bytes) -> None:
        """End the call with a message and status OK."""
        if self.open:
            self.open = False
            self.connection.finish(self, message)

    def fail(self, code: Code, text: str) -> None:
        """End the call with a status."""
        if self.open:
            self.open = False
            if self.on_gone is not None:
                self.on_gone()
            codes = self.method.codes
            codes[code] = codes.get(code, 0) + 1
            self._tell(code, text)
            self.connection.forget(self)

    def _tell(self, code: Code, text: str) -> None:
        """Give the client the status that ends the call."""
        connection = self.connection
        trailers = status_trailers(code, text)
        if self.answered:
            connection.engine.trailers(self.stream_id, trailers)
        else:
            connection.engine.head(self.stream_id, RESPONSE_HEADERS + trailers, True)
            if not self.request_ended:
                connection.engine.reset(self.stream_id, 0)  # NO_ERROR: the rest of the request is not wanted
        connection.touch()

    def fail_for(self, error: Exception) -> None:
        """The outer edge of a call: it ends here with what its handler raised, and everything else goes on."""
        if isinstance(error, RpcError):
            self.fail(error.code, error.text)
        else:
            log.error("handler failed method=%s/%s", self.method.service, self.method.name, exc_info=error)
            self.fail(Code.INTERNAL, f"internal error: {type(error).__name__}")


class StreamCall(Call):
    """A streaming call: its handler is a coroutine that takes messages, sends messages, and ends the call by returning
    (OK) or by raising `RpcError`. It is cancelled when the client goes away."""

    __slots__ = ("_inbox", "_inbox_bytes", "_ended", "_waiter", "_holding", "held_s", "task", "partial")

    def __init__(self, connection: GrpcConnection, stream_id: int, method: Method, route: Route) -> None:
        super().__init__(connection, stream_id, method, route)
        self._inbox: deque[bytes] = deque()
        self._inbox_bytes = 0
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None
        self._holding = False  # the connection is not read because of us
        self.held_s = 0.0
        self.task: asyncio.Task[None] | None = None
        self.partial = bytearray()

    async def receive(self) -> bytes | None:
        """The next message, or None when the client has sent its last."""
        while not self._inbox:
            if self._ended:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        message = self._inbox.popleft()
        self._inbox_bytes -= len(message)
        if self._holding and self._inbox_bytes <= self.connection.limits.stream_inbox_bytes_max // 2:
            self.release()
        return message

    def receive_nowait(self) -> bytes | None:
        """The next message if it has come already."""
        if not self._inbox:
            return None
        message = self._inbox.popleft()
        self._inbox_bytes -= len(message)
        if self._holding and self._inbox_bytes <= self.connection.limits.stream_inbox_bytes_max // 2:
            self.release()
        return message

    async def send(self, message: bytes) -> None:
        """Send one message, after waiting for a slow reader. Raises `RpcError(CANCELLED)` when the call is over."""
        if not self.open:
            raise RpcError(Code.CANCELLED, "the client has cancelled the call")
        connection = self.connection
        self.send_headers()
        connection.engine.body(self.stream_id, b"\0" + len(message).to_bytes(4, "big") + message)
        connection.touch()
        await connection.wait_sendable(self.stream_id)

    def send_some(self, messages: Sequence[bytes]) -> bool:
        """Send messages without waiting; whether the reader keeps up. If not, `drained` returns when it has."""
        if not self.open:
            return False
        connection = self.connection
        self.send_headers()
        framed = [part for message in messages for part in (b"\0", len(message).to_bytes(4, "big"), message)]
        connection.engine.body(self.stream_id, b"".join(framed))
        connection.touch()
        return connection.sendable(self.stream_id)

    async def drained(self) -> None:
        """Return when the reader has taken what was sent, or most of it, or is gone."""
        await self.connection.wait_sendable(self.stream_id)

    def send_headers(self) -> None:
        """Send the response headers, if they are not out already, without a message."""
        if self.open and not self.answered:
            self.answered = True
            self.connection.engine.head(self.stream_id, RESPONSE_HEADERS, False)
            self.connection.touch()

    def finish_ok(self) -> None:
        if self.open:
            self.open = False
            self.method.succeeded += 1
            engine = self.connection.engine
            if not self.answered:
                engine.head(self.stream_id, RESPONSE_HEADERS + TRAILERS_OK, True)
            else:
                engine.trailers(self.stream_id, TRAILERS_OK)
            self.connection.forget(self)
            self.connection.touch()

    @property
    def request_ended(self) -> bool:
        return self._ended

    # -- the connection's side
    def put(self, message: bytes) -> None:
        self._inbox.append(message)
        self._inbox_bytes += len(message)
        if not self._holding and self._inbox_bytes > self.connection.limits.stream_inbox_bytes_max:
            self._holding = True
            self.held_s = 0.0
            self.connection.stop_reading()
        self._wake()

    def end(self) -> None:
        self._ended = True
        self._wake()

    @property
    def holding(self) -> bool:
        return self._holding

    def release(self) -> None:
        """Let the connection be read again, if we kept it from that."""
        if self._holding:
            self._holding = False
            self.connection.go_on_reading()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)
