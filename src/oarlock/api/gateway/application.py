"""The gateway as an ASGI application: a POST with a JSON body to a path of the table becomes a call of that RPC.

Every call goes to the handler that gRPC calls, with the table of rights before it. Who calls is told by the header
`Authorization` alone: a client certificate says nothing here. (CVE-2018-16886)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias

from oarlock.api import proto
from oarlock.api.gateway.convert import BadJson, Splitter, dump, fill, parse, show
from oarlock.api.gateway.paths import OLDER_PREFIX, PREFIX, Binding, bindings
from oarlock.api.grpc import Code, GrpcHost, Method, Route, RpcError
from oarlock.api.grpc.local import LocalConnection, LocalStream
from oarlock.api.grpc.router import parse_timeout

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

JSON: Final = b"application/json"
_METADATA_PREFIX: Final = b"grpc-metadata-"
_GRPC_CONTENT: Final = (b"grpc-metadata-content-type", b"application/grpc")

HTTP_STATUS: Final = {
    Code.OK: (200, "OK"),
    Code.CANCELLED: (408, "Request Timeout"),
    Code.UNKNOWN: (500, "Internal Server Error"),
    Code.INVALID_ARGUMENT: (400, "Bad Request"),
    Code.DEADLINE_EXCEEDED: (504, "Gateway Timeout"),
    Code.NOT_FOUND: (404, "Not Found"),
    Code.ALREADY_EXISTS: (409, "Conflict"),
    Code.PERMISSION_DENIED: (403, "Forbidden"),
    Code.RESOURCE_EXHAUSTED: (429, "Too Many Requests"),
    Code.FAILED_PRECONDITION: (400, "Bad Request"),
    Code.ABORTED: (409, "Conflict"),
    Code.OUT_OF_RANGE: (400, "Bad Request"),
    Code.UNIMPLEMENTED: (501, "Not Implemented"),
    Code.INTERNAL: (500, "Internal Server Error"),
    Code.UNAVAILABLE: (503, "Service Unavailable"),
    Code.DATA_LOSS: (500, "Internal Server Error"),
    Code.UNAUTHENTICATED: (401, "Unauthorized"),
}
"""The HTTP status that goes with each code, as with etcd."""


class ClientGone(Exception):
    """The client has closed the connection."""


class Gateway:
    """See the module. `methods` are those of the port, by (service, name)."""

    def __init__(self, host: GrpcHost, methods: MutableMapping[tuple[str, str], Method]) -> None:
        self._host = host
        self._limits = host.limits
        self._routes: dict[str, tuple[Binding, Method]] = {}
        for binding in bindings():
            for path in binding.paths:
                self._routes[path] = binding, methods[binding.service, binding.name]

    @staticmethod
    def has(path: str) -> bool:
        """Whether `path` is the gateway's to answer."""
        return path.startswith((PREFIX, OLDER_PREFIX))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path.startswith(OLDER_PREFIX):
            path = PREFIX + path.removeprefix(OLDER_PREFIX)
        found = self._routes.get(path)
        if found is None:
            await _plain(send, 404, b"Not Found\n")
            return
        if scope["method"] != "POST":
            await _plain(send, 405, b"Method Not Allowed\n", ((b"allow", b"POST"),))
            return
        binding, method = found
        client = scope.get("client")
        connection = LocalConnection(self._host, str(client), str(client[0]) if client else "?")
        try:
            route = _route(method, scope["headers"])
            if binding.streams:
                await self._stream(connection, binding, route, receive, send)
            else:
                await self._unary(connection, binding, route, receive, send)
        except BadJson as error:
            # A stream of requests breaks where etcd has no better code than Unknown.
            code = Code.UNKNOWN if binding.client_streams else Code.INVALID_ARGUMENT
            await _error(send, code, str(error))
        except RpcError as refusal:
            await _error(send, refusal.code, refusal.text)
        except ClientGone:
            pass
        finally:
            connection.leave()

    # -- unary
    async def _unary(
        self, connection: LocalConnection, binding: Binding, route: Route, receive: Receive, send: Send
    ) -> None:
        message = await self._one_message(binding, receive)
        assert route.method is not None
        answer = connection.unary(route.method, route, message).answer
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                answer.cancel()
                return
        finally:
            gone.cancel()
        response = proto.message(binding.response).FromString(answer.result())
        await _answer(send, 200, dump(show(response)), (_GRPC_CONTENT,))

    async def _one_message(self, binding: Binding, receive: Receive) -> bytes:
        """The body's first value as a message: what comes after it does not count, as with etcd."""
        splitter = Splitter(self._limits.json_depth_max)
        first: bytes | None = None
        size = 0
        more = True
        while more:
            data, more = await _body(receive)
            size += len(data)
            if size > self._limits.http_body_bytes_max:
                raise RpcError(Code.RESOURCE_EXHAUSTED, f"a body over {self._limits.http_body_bytes_max} bytes")
            if first is None:
                first = next(iter(splitter.feed(data)), None)
        if first is None:
            first = splitter.end()
        return _encoded(binding, first)

    # -- streams
    async def _stream(
        self, connection: LocalConnection, binding: Binding, route: Route, receive: Receive, send: Send
    ) -> None:
        assert route.method is not None
        if binding.client_streams:
            splitter = Splitter(self._limits.json_depth_max)
            first, more = await self._first_values(splitter, receive)
            messages = [_encoded(binding, value) for value in first[:1]]  # a bad one is refused before all else
            call = connection.stream(route.method, route)
            for message in messages:
                call.put(message)
            reading = asyncio.ensure_future(self._read(connection, call, binding, splitter, first[1:], more, receive))
        else:
            message = await self._one_message(binding, receive)
            call = connection.stream(route.method, route)
            call.put(message)
            call.end()
            reading = asyncio.ensure_future(_gone(receive))
        writing = asyncio.ensure_future(_write(call, binding, send))
        try:
            await asyncio.wait((reading, writing), return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
            else:
                reading.result()  # it ends when the client has gone, or by a fault of ours
        finally:
            reading.cancel()
            writing.cancel()
            await asyncio.gather(reading, writing, return_exceptions=True)

    async def _first_values(self, splitter: Splitter, receive: Receive) -> tuple[list[bytes], bool]:
        """What the body has until its first value is complete, and whether more may come."""
        while True:
            data, more = await _body(receive)
            values = self._feed(splitter, data)
            if not more:
                last = splitter.end() if not values else None
                return ([*values, last] if last is not None else values), bool(len(splitter))
            if values:
                return values, True

    def _feed(self, splitter: Splitter, data: bytes) -> list[bytes]:
        values = splitter.feed(data)
        if len(splitter) > self._limits.http_body_bytes_max:
            raise BadJson(f"a message over {self._limits.http_body_bytes_max} bytes")
        return values

    async def _read(
        self,
        connection: LocalConnection,
        call: LocalStream,
        binding: Binding,
        splitter: Splitter,
        values: list[bytes],
        more: bool,
        receive: Receive,
    ) -> None:
        """Hand over what else the client asks for, as fast as it is taken; return when the client has gone. Anything
        that is no request ends the requests, as with etcd, and not the stream."""
        try:
            while True:
                for value in values:
                    message = _encoded(binding, value)
                    await connection.wait_readable()
                    call.put(message)
                if not more:
                    break
                data, more = await _body(receive)
                values = self._feed(splitter, data)
                if not more and (last := splitter.end()) is not None:
                    values.append(last)
        except BadJson:
            pass
        except ClientGone:
            return
        call.end()
        await _gone(receive)


def _encoded(binding: Binding, value: bytes | None) -> bytes:
    message = proto.message(binding.request)()
    if value is not None:
        fill(message, parse(value))
    encoded: bytes = message.SerializeToString()
    return encoded


def _route(method: Method, headers: list[tuple[bytes, bytes]]) -> Route:
    """The call's metadata: `Authorization`, and what comes as `Grpc-Metadata-...`. Raises `RpcError`."""
    fields = dict(reversed(headers))
    metadata = {
        name.removeprefix(_METADATA_PREFIX): value
        for name, value in fields.items()
        if name.startswith(_METADATA_PREFIX)
    }
    authorization = fields.get(b"authorization")
    if authorization is not None:
        metadata[b"authorization"] = authorization
    timeout_s = None
    timeout = fields.get(b"grpc-timeout")
    if timeout is not None:
        timeout_s = parse_timeout(timeout)
        if timeout_s is None:
            raise RpcError(Code.INVALID_ARGUMENT, f"invalid grpc-timeout: {timeout[:100].decode('utf-8', 'replace')}")
    return Route(method, timeout_s, metadata.get(b"hasleader") == b"true", metadata=metadata)


async def _write(call: LocalStream, binding: Binding, send: Send) -> None:
    """Send each message as a line; what went wrong before the first has a status of its own, after it a last line."""
    response = proto.message(binding.response)
    begun = False
    try:
        while (message := await call.take()) is not None:
            if not begun:
                begun = True
                await _start(send, 200, ((b"content-type", JSON), _GRPC_CONTENT))
            line = dump({"result": show(response.FromString(message))}) + b"\n"
            await send({"type": "http.response.body", "body": line, "more_body": True})
    except RpcError as refusal:
        status, reason = HTTP_STATUS[refusal.code]
        line = dump(
            {
                "error": {
                    "grpc_code": int(refusal.code), "http_code": status, "message": refusal.text, "http_status": reason,
                }
            }
        )  # fmt: skip
        if not begun:
            await _answer(send, status, line)
            return
        await send({"type": "http.response.body", "body": line, "more_body": True})
    if not begun:
        await _start(send, 200, ((b"content-type", JSON),))
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _body(receive: Receive) -> tuple[bytes, bool]:
    """The next piece of the body, and whether more may come. Raises `ClientGone`."""
    event = await receive()
    if event["type"] != "http.request":
        raise ClientGone
    return event.get("body", b""), event.get("more_body", False)


async def _gone(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] == "http.request":
        pass


async def _start(send: Send, status: int, headers: tuple[tuple[bytes, bytes], ...]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})


async def _answer(send: Send, status: int, body: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
    length = (b"content-length", str(len(body)).encode("ascii"))
    await _start(send, status, ((b"content-type", JSON), length, *headers))
    await send({"type": "http.response.body", "body": body})


async def _error(send: Send, code: Code, text: str) -> None:
    await _answer(send, HTTP_STATUS[code][0], dump({"error": text, "code": int(code), "message": text}))


async def _plain(send: Send, status: int, body: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
    length = (b"content-length", str(len(body)).encode("ascii"))
    fixed = ((b"content-type", b"text/plain; charset=utf-8"), (b"x-content-type-options", b"nosniff"), length)
    await _start(send, status, (*fixed, *headers))
    await send({"type": "http.response.body", "body": body})
