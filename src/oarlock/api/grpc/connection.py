"""gRPC on one HTTP/2 connection: requests to handlers, answers to streams. The unary path costs no task and no
future."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from typing import Any, Protocol, cast

from oarlock.api.grpc.call import HANDED_OVER, RESPONSE_HEADERS, TRAILERS_OK, Call, StreamCall
from oarlock.api.grpc.router import Method, Route, Router
from oarlock.api.grpc.status import Code, status_trailers
from oarlock.api.http2.connection import Http2Connection, Http2Host
from oarlock.api.http2.engine import ErrorCode, Headers

ROUTES_REMEMBERED_MAX = 64  # distinct header lists of one connection
INBOX_HELD_S_MAX = 10.0  # how long a handler that takes nothing may keep its whole connection from being read


class GrpcHost(Http2Host, Protocol):
    """What a gRPC connection needs from the server around it."""

    router: Router

    @property
    def open_connections(self) -> int:
        """Connections that requests may come from."""

    turn: int
    """Counts turns of the event loop, as far as they matter for taking turns."""

    turn_left: int
    """Requests, beyond the light ones, that may still be served in this turn."""

    def end_turn_soon(self) -> None:
        """Begin another turn in the next pass of the event loop."""

    def take_turns(self, connection: GrpcConnection) -> None:
        """Call `connection.serve_waiting` in coming turns until it has nothing that waits."""

    def watch_deadlines(self, connection: GrpcConnection) -> None:
        """Call `connection.expire(now)` every so often until it returns False."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run the handler of a streaming call as a task that the server owns."""


class GrpcConnection(Http2Connection):
    """See the module."""

    def __init__(self, host: GrpcHost) -> None:
        super().__init__(host)
        self._grpc_host = host
        self._router = host.router
        self._calls: dict[int, Call] = {}
        self._routes: dict[Headers, Route] = {}
        self._last_headers: Headers = ()
        self._last_route = Route(None)
        self._partial_bytes = 0
        self._with_deadline: dict[int, Call] = {}
        self._turn = 0
        self._served = 0  # requests in turn `_turn`
        self._waiting: deque[tuple[Call, bytes]] = deque()  # whole requests, for a later turn
        self._light_max = host.limits.requests_light_max
        self._per_turn_max = host.limits.requests_per_turn_max

    # -- requests
    def on_request(self, stream_id: int, headers: Headers, end_stream: bool) -> None:
        if headers == self._last_headers:  # most clients repeat themselves; comparing costs half of what hashing does
            route = self._last_route
        else:
            route = self._find_route(headers)
        method = route.method
        if method is None:
            self._refuse(stream_id, route.code, route.text, end_stream, route.http_status)
            return
        host = self.host
        if host.open_streams >= self.limits.streams_total_max:
            host.abuse("streams")
            self.engine.reset(stream_id, ErrorCode.REFUSED_STREAM)
            self.touch()
            return
        if host.open_streams * 2 >= self.limits.streams_total_max and self._has_its_share():
            host.abuse("share")
            self.engine.reset(stream_id, ErrorCode.REFUSED_STREAM)
            self.touch()
            return
        if host.unsent_bytes and self.congested:
            host.abuse("unsent")
            self._refuse(
                stream_id,
                Code.RESOURCE_EXHAUSTED,
                f"answers for over {self.limits.unsent_bytes_max} bytes wait to be read: read them first",
                end_stream,
            )
            return
        host.open_streams += 1
        method.started += 1
        call: Call
        if method.unary is not None:
            call = self._calls[stream_id] = Call(self, stream_id, method, route)
        else:
            call = self._calls[stream_id] = StreamCall(self, stream_id, method, route)
        if route.timeout_s is not None:
            call.due = asyncio.get_running_loop().time() + route.timeout_s
            self._with_deadline[stream_id] = call
            self._grpc_host.watch_deadlines(self)
        if isinstance(call, StreamCall):
            call.task = self._grpc_host.spawn(self._run(call))
        if end_stream:
            self.on_end(stream_id)

    def _has_its_share(self) -> bool:
        """Whether this connection has as many requests under way as every one could have, were all alike. The last
        tenth is for those that have few."""
        own, total = len(self._calls), self.limits.streams_total_max
        if own < self._light_max:
            return False
        return own >= total // max(1, self._grpc_host.open_connections) or self.host.open_streams * 10 >= total * 9

    def _find_route(self, headers: Headers) -> Route:
        route = self._routes.get(headers)
        if route is None:
            route = self._router.route(headers)
            if len(self._routes) >= ROUTES_REMEMBERED_MAX:
                self._routes.clear()
            self._routes[headers] = route
        self._last_headers = headers
        self._last_route = route
        return route

    def on_data(self, stream_id: int, data: bytes, end_stream: bool) -> None:
        call = self._calls.get(stream_id)
        if call is None:
            return  # refused, answered or cancelled before its data came
        handler = call.method.unary
        if handler is None:
            self._stream_data(cast(StreamCall, call), data, end_stream)
            return
        if end_stream and call.parts is None:
            size = len(data)
            if size >= 5 and data[0] == 0 and int.from_bytes(data[1:5], "big") == size - 5:
                if size - 5 > self.limits.grpc_message_bytes_max:
                    self._too_large(call, size - 5)
                    return
                self._run_unary(call, data[5:])
                return
        self._collect(call, data)
        if end_stream and call.open:
            self.on_end(stream_id)

    def _collect(self, call: Call, data: bytes) -> None:
        """Keep a piece of an incomplete unary request, and refuse it as soon as its prefix says too much."""
        parts = call.parts
        if parts is None:
            parts = call.parts = bytearray()
        had = len(parts)
        parts += data
        self._partial_bytes += len(data)
        if len(parts) >= 5:
            if parts[0] != 0:
                self._compressed(call, parts[0])
                return
            size = int.from_bytes(parts[1:5], "big")
            if size > self.limits.grpc_message_bytes_max:
                self._too_large(call, size)
                return
            if len(parts) > size + 5:
                self._broken(call, "more than one message in a unary request")
                return
            if had < 5:
                call.size = size + 5
        if self._partial_bytes > self.limits.unfinished_request_bytes_max:
            self.host.abuse("unfinished")
            call.fail(
                Code.RESOURCE_EXHAUSTED,
                f"unfinished requests of one connection exceed "
                f"{self.limits.unfinished_request_bytes_max} bytes: send fewer large requests at once",
            )

    def on_end(self, stream_id: int) -> None:
        call = self._calls.get(stream_id)
        if call is None:
            return
        if isinstance(call, StreamCall):
            if call.partial:
                self._broken(call, "the request ends inside a message")
                return
            call.end()
            return
        parts = call.parts
        if not parts:
            self._broken(call, "the request has no message")
        elif len(parts) < 5 or len(parts) != call.size:
            self._broken(call, "the request ends inside its message")
        else:
            self._partial_bytes -= len(parts)
            call.parts = None
            self._run_unary(call, bytes(memoryview(parts)[5:]))

    def _run_unary(self, call: Call, message: bytes) -> None:
        """Serve a whole request, or let it wait where this connection or all of them have had their turn."""
        call.size = HANDED_OVER
        host = self._grpc_host
        if self._turn != host.turn:
            self._turn = host.turn
            self._served = 0
        served = self._served = self._served + 1
        if served > self._light_max or self._waiting:
            host.end_turn_soon()
            if self._waiting or served > self._per_turn_max or host.turn_left <= 0:
                if not self._waiting:
                    self.stop_reading()
                    host.take_turns(self)
                self._waiting.append((call, message))
                return
            host.turn_left -= 1
        self._handle(call, message)

    def serve_waiting(self, most: int) -> int:
        """Serve at most so many of the requests that wait, in order. How many it were; `waiting` says what is left."""
        count = 0
        while self._waiting and count < most:
            call, message = self._waiting.popleft()
            if call.open:  # else the client has gone, or its time is over
                count += 1
                self._handle(call, message)
        if not self._waiting:
            self.go_on_reading()
        return count

    @property
    def waiting(self) -> int:
        """Whole requests that wait for their turn."""
        return len(self._waiting)

    def has_requests(self) -> bool:
        return bool(self._calls)

    def _handle(self, call: Call, message: bytes) -> None:
        handler = call.method.unary
        assert handler is not None
        try:
            handler(call, message)
        except Exception as error:  # the outer edge of a call: it ends here, the connection goes on
            call.fail_for(error)

    def _stream_data(self, call: StreamCall, data: bytes, end_stream: bool) -> None:
        partial = call.partial
        partial += data
        start = 0
        available = len(partial)
        while available - start >= 5:
            if partial[start] != 0:
                self._compressed(call, partial[start])
                return
            size = int.from_bytes(partial[start + 1 : start + 5], "big")
            if size > self.limits.grpc_message_bytes_max:
                self._too_large(call, size)
                return
            if available - start < size + 5:
                break
            call.put(bytes(memoryview(partial)[start + 5 : start + 5 + size]))
            start += 5 + size
        if start:
            del partial[:start]
        if end_stream:
            self.on_end(call.stream_id)

    async def _run(self, call: StreamCall) -> None:
        """The outer edge of a streaming call's task."""
        handler = call.method.stream
        assert handler is not None
        try:
            await handler(call)
        except Exception as error:  # the outer edge of a call: it ends here, the connection goes on
            call.fail_for(error)
        else:
            call.finish_ok()
        finally:
            call.task = None
            if call.open:  # cancelled by the server's end
                call.fail(Code.UNAVAILABLE, "etcdserver: server stopped")

    def on_closed(self, stream_id: int, error_code: int) -> None:
        call = self._calls.get(stream_id)
        if call is not None:  # not answered yet: the client has given up
            call.open = False
            self._cancel(call)
            self.forget(call)

    def on_lost(self) -> None:
        self._waiting.clear()
        for call in list(self._calls.values()):
            call.open = False
            self._cancel(call)
            self.forget(call)

    @staticmethod
    def _cancel(call: Call) -> None:
        codes = call.method.codes
        codes[Code.CANCELLED] = codes.get(Code.CANCELLED, 0) + 1
        if call.on_gone is not None:
            call.on_gone()
        if isinstance(call, StreamCall) and call.task is not None:
            call.task.cancel()

    # -- answers
    def finish(self, call: Call, message: bytes) -> None:
        """End a unary call with `message`. Called by `Call.reply`, once."""
        host = self.host
        if host.unsent_bytes and self.congested:
            host.abuse("unsent")
            call.open = True
            call.fail(Code.RESOURCE_EXHAUSTED, "answers wait to be read: read them first")
            return
        call.method.succeeded += 1
        self._answered = True
        stream_id = call.stream_id
        self.engine.answer(stream_id, RESPONSE_HEADERS, b"\0" + len(message).to_bytes(4, "big") + message, TRAILERS_OK)
        if len(message) > 16384 and self._transport is not None:  # a big answer counts before it is flushed
            host.unsent_bytes += len(message)
            self._unsent_reported += len(message)
        if self._calls.pop(stream_id, None) is not None:
            host.open_streams -= 1
            if call.due is not None:
                self._with_deadline.pop(stream_id, None)
        if not self._flush_planned and not self._in_turn:
            self._flush_planned = True
            host.flush_soon(self)

    def forget(self, call: Call) -> None:
        """The call is over: nothing of it stays here."""
        if self._calls.pop(call.stream_id, None) is None:
            return
        self.host.open_streams -= 1
        self._with_deadline.pop(call.stream_id, None)
        if call.parts is not None:
            self._partial_bytes -= len(call.parts)
            call.parts = None
        if isinstance(call, StreamCall):
            call.release()
            call.end()

    def _refuse(self, stream_id: int, code: Code, text: str, ended: bool, http_status: bytes = b"200") -> None:
        headers = ((b":status", http_status), (b"content-type", b"application/grpc"), *status_trailers(code, text))
        self.engine.head(stream_id, headers, True)
        if not ended:
            self.engine.reset(stream_id, ErrorCode.NO_ERROR)  # the rest of the request is not wanted
        self.touch()

    def _too_large(self, call: Call, size: int) -> None:
        call.fail(
            Code.RESOURCE_EXHAUSTED,
            f"grpc: received message larger than max ({size} vs. {self.limits.grpc_message_bytes_max})",
        )

    def _compressed(self, call: Call, flag: int) -> None:
        if flag == 1:
            call.fail(Code.UNIMPLEMENTED, "grpc: the compressed flag is set, but only identity encoding is served")
        else:
            call.fail(Code.INTERNAL, f"grpc: received unexpected payload format {flag}")

    def _broken(self, call: Call, what: str) -> None:
        call.fail(Code.INTERNAL, f"grpc: malformed request: {what}")

    # -- clocks
    def expire(self, now: float) -> bool:
        """End the calls whose deadline has passed; whether any with a deadline are left."""
        if not self._with_deadline:
            return False
        for call in [c for c in self._with_deadline.values() if c.due is not None and c.due <= now]:
            task = call.task if isinstance(call, StreamCall) else None
            call.fail(Code.DEADLINE_EXCEEDED, "context deadline exceeded")
            if task is not None:
                task.cancel()
        return bool(self._with_deadline)

    def tick(self, elapsed_s: float) -> None:
        super().tick(elapsed_s)
        for call in list(self._calls.values()):
            if isinstance(call, StreamCall):
                if call.holding:
                    call.held_s += elapsed_s
                    if call.held_s > INBOX_HELD_S_MAX:
                        self.host.abuse("inbox")
                        task = call.task
                        call.fail(Code.RESOURCE_EXHAUSTED, "requests on this stream come faster than they are handled")
                        if task is not None:
                            task.cancel()
            elif call.size != HANDED_OVER:
                call.waited_s += elapsed_s
                if call.waited_s > self.limits.unfinished_request_s:
                    self.host.abuse("unfinished")
                    call.fail(
                        Code.DEADLINE_EXCEEDED,
                        f"the request was not complete after {self.limits.unfinished_request_s:g} s",
                    )

    @property
    def calls_open(self) -> int:
        return len(self._calls)


__all__ = ["GrpcConnection", "GrpcHost", "Method", "Route"]
