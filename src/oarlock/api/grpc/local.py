"""Calls that do not come over HTTP/2: the same handlers, limits and counters, for another way to ask (`api.gateway`).

A `LocalConnection` stands for one request of another protocol. It is a `GrpcConnection` that no socket ever feeds, so
that handlers see what they always see.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from oarlock.api.grpc.call import HANDED_OVER, Call, StreamCall
from oarlock.api.grpc.connection import GrpcConnection, GrpcHost
from oarlock.api.grpc.router import Method, Route
from oarlock.api.grpc.status import Code, RpcError


class LocalConnection(GrpcConnection):
    """One request from `peer`. Nobody is known by a certificate here: whoever comes through a gateway shows a token.
    (CVE-2018-16886)"""

    def __init__(self, host: GrpcHost, peer: str, peer_host: str) -> None:
        super().__init__(host)
        self.peer = peer
        self.peer_host = peer_host
        self._may_read = asyncio.Event()
        self._may_read.set()

    def certificate_user(self) -> str:
        return ""

    def stop_reading(self) -> None:
        self._may_read.clear()

    def go_on_reading(self) -> None:
        self._may_read.set()

    async def wait_readable(self) -> None:
        """Return when the handler has taken enough of what it was sent."""
        await self._may_read.wait()

    def unary(self, method: Method, route: Route, message: bytes) -> LocalCall:
        """Begin a unary call. Raises `RpcError` for one that the port has no room for."""
        self._admit(method, len(message))
        call = LocalCall(self, 1, method, route)
        self._begin(call)
        call.size = HANDED_OVER
        self._handle(call, message)
        return call

    def stream(self, method: Method, route: Route) -> LocalStream:
        """Begin a streaming call; messages come with `put`, then `end`. Raises as `unary`."""
        self._admit(method, 0)
        call = LocalStream(self, 1, method, route)
        self._begin(call)
        call.task = self._grpc_host.spawn(self._run(call))
        return call

    def _admit(self, method: Method, size: int) -> None:
        host, limits = self.host, self.limits
        if size > limits.grpc_message_bytes_max:
            raise RpcError(
                Code.RESOURCE_EXHAUSTED,
                f"grpc: received message larger than max ({size} vs. {limits.grpc_message_bytes_max})",
            )
        if host.open_streams >= limits.streams_total_max:
            host.abuse("streams")
            raise RpcError(Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests")
        if host.unsent_bytes > limits.unsent_bytes_total_max:
            host.abuse("unsent")
            raise RpcError(Code.RESOURCE_EXHAUSTED, "answers wait to be read: read them first")
        method.started += 1

    def _begin(self, call: Call) -> None:
        self.host.open_streams += 1
        self._calls[call.stream_id] = call
        timeout_s = call.route.timeout_s
        if timeout_s is not None:
            call.due = asyncio.get_running_loop().time() + timeout_s
            self._with_deadline[call.stream_id] = call
            self._grpc_host.watch_deadlines(self)

    def leave(self) -> None:
        """The client has gone: calls that are open are cancelled."""
        for call in list(self._calls.values()):
            if isinstance(call, LocalStream):
                call.drop()
        self.on_lost()


class LocalCall(Call):
    """A unary call whose answer is waited for with `result`."""

    __slots__ = ("_answer",)

    def __init__(self, connection: GrpcConnection, stream_id: int, method: Method, route: Route) -> None:
        super().__init__(connection, stream_id, method, route)
        self._answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    @property
    def answer(self) -> asyncio.Future[bytes]:
        """The answer's message, or an `RpcError`."""
        return self._answer

    def reply(self, message: bytes) -> None:
        if self.open:
            self.open = False
            self.method.succeeded += 1
            self.connection.forget(self)
            if not self._answer.done():
                self._answer.set_result(message)

    def _tell(self, code: Code, text: str) -> None:
        if not self._answer.done():
            self._answer.set_exception(RpcError(code, text))


class LocalStream(StreamCall):
    """A streaming call whose messages are taken with `take`. What waits is bounded as on a gRPC stream: a handler goes
    on when its reader does."""

    __slots__ = ("_outbox", "_outbox_bytes", "_taker", "_senders", "_status")

    def __init__(self, connection: GrpcConnection, stream_id: int, method: Method, route: Route) -> None:
        super().__init__(connection, stream_id, method, route)
        self._outbox: deque[bytes] = deque()
        self._outbox_bytes = 0
        self._taker: asyncio.Future[None] | None = None
        self._senders: list[asyncio.Future[None]] = []
        self._status: RpcError | None = None

    async def take(self) -> bytes | None:
        """The next message; None when the call has ended well. Raises `RpcError` when it has not."""
        while not self._outbox:
            if not self.open:
                if self._status is not None:
                    raise self._status
                return None
            self._taker = asyncio.get_running_loop().create_future()
            await self._taker
        message = self._outbox.popleft()
        self._account(-len(message))
        if self._outbox_bytes < self.connection.limits.stream_unsent_bytes:
            self._wake_senders()
        return message

    def drop(self) -> None:
        """Nobody takes anything any more."""
        self._outbox.clear()
        self._account(-self._outbox_bytes)
        self._wake_senders()

    def _account(self, change: int) -> None:
        self._outbox_bytes += change
        self.connection.host.unsent_bytes += change

    def _wake_senders(self) -> None:
        senders, self._senders = self._senders, []
        for sender in senders:
            if not sender.done():
                sender.set_result(None)

    def _wake_taker(self) -> None:
        taker = self._taker
        if taker is not None:
            self._taker = None
            if not taker.done():
                taker.set_result(None)

    def _put_out(self, message: bytes) -> None:
        self.answered = True
        self._outbox.append(message)
        self._account(len(message))
        self._wake_taker()

    # -- the handler's side
    async def send(self, message: bytes) -> None:
        if not self.open:
            raise RpcError(Code.CANCELLED, "the client has cancelled the call")
        self._put_out(message)
        await self.drained()

    def send_some(self, messages: Sequence[bytes]) -> bool:
        if not self.open:
            return False
        for message in messages:
            self._put_out(message)
        return self._outbox_bytes < self.connection.limits.stream_unsent_bytes

    async def drained(self) -> None:
        while self.open and self._outbox_bytes >= self.connection.limits.stream_unsent_bytes:
            sender: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._senders.append(sender)
            await sender

    def send_headers(self) -> None:
        """A gateway's answer begins with its first message."""

    def finish_ok(self) -> None:
        if self.open:
            self.open = False
            self.method.succeeded += 1
            self.connection.forget(self)
            self._wake_taker()

    def _tell(self, code: Code, text: str) -> None:
        self._status = RpcError(code, text)
        self._wake_taker()
        self._wake_senders()


__all__ = ["LocalCall", "LocalConnection", "LocalStream"]
