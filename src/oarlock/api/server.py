"""The client port: gRPC and HTTP/1.1 on the same sockets, told apart by their first bytes."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Coroutine, Sequence
from typing import Any, cast
from urllib.parse import urlsplit

from oarlock.api.backend import Backend
from oarlock.api.etcd import CLUSTER_VERSION, ETCD_VERSION, EtcdService
from oarlock.api.etcd.compactor import AutoCompaction
from oarlock.api.etcd.tokens import AuthOptions
from oarlock.api.gateway import Gateway, stream_paths
from oarlock.api.grpc import GrpcConnection, Method, Router
from oarlock.api.http1 import Http1Guard, http1_factory, make_application
from oarlock.api.http2 import Http2Connection, engine_factory
from oarlock.api.http2.engine import PREFACE
from oarlock.api.limits import Limits
from oarlock.api.metrics import Metrics
from oarlock.errors import ConfigurationError

log = logging.getLogger(__name__)

TICK_S = 1.0
DEADLINE_TICK_S = 0.05
BACKLOG = 1024
HTTP1_REQUEST_LINE_START_MAX = 24  # bytes after which a first line that is no HTTP method is garbage


class ApiServer:
    """A running client port. Made by `start_api`."""

    def __init__(
        self,
        backend: Backend,
        metrics: Metrics,
        limits: Limits,
        engine: str | None,
        allowed_hosts: Sequence[str],
        methods: Sequence[Method],
        auth: AuthOptions,
        compaction: AutoCompaction | None,
        cors: Sequence[str],
    ) -> None:
        self.limits = limits
        self.engine = engine_factory(engine)
        self.metrics = metrics
        self.open_streams = 0
        self.unsent_bytes = 0
        self.turn = 1
        self.turn_left = limits.requests_per_turn_total_max
        self._turn_ends = False
        self._taking_turns: dict[GrpcConnection, None] = {}  # served longest ago first
        self._backend_flush_soon = backend.flush_soon
        self._to_flush: list[Http2Connection] = []
        self.service = EtcdService(backend, limits, auth, compaction)
        served = {(m.service, m.name) for m in methods}
        all_methods = [m for m in self.service.methods() if (m.service, m.name) not in served] + list(methods)
        self.service.protect(all_methods)
        self.router = Router(all_methods)
        metrics.watch_backend(backend, ETCD_VERSION, CLUSTER_VERSION, limits.quota_bytes)
        metrics.watch_methods(all_methods)
        self.stream_paths = stream_paths()
        gateway = Gateway(self, {(m.service, m.name): m for m in all_methods})
        self._make_http1 = http1_factory(make_application(backend, metrics, gateway, list(allowed_hosts), cors), limits)
        self._loop = asyncio.get_running_loop()
        self._listeners: list[asyncio.Server] = []
        self.addresses: list[str] = []
        """The URLs that are listened on, with the ports that were chosen for port 0."""

        self._from: dict[object, str] = {}  # the host of every connection
        self._hosts: dict[str, int] = {}  # and how many each has
        self._sniffers: set[_Sniffer] = set()
        self._http2: set[Http2Connection] = set()
        self._http1: set[Http1Guard] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._with_deadlines: set[GrpcConnection] = set()
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._ticked_at = self._loop.time()
        self._ticker = self._loop.call_later(TICK_S, self._tick)
        self._idle: asyncio.Event = asyncio.Event()
        self._closing = False

    # -- life
    async def listen(self, url: str, tls: ssl.SSLContext | None) -> None:
        """Listen on `url`: http://host:port, https://host:port (with `tls`) or unix:///path. Raises
        `ConfigurationError` for another form, `OSError` if the address cannot be had."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigurationError(f"listen URL {url!r} is malformed: {error}") from error
        if parts.scheme not in ("http", "https", "unix"):
            raise ConfigurationError(f"listen URL {url!r} must begin with http://, https:// or unix://")
        if parts.scheme == "https" and tls is None:
            raise ConfigurationError(
                f"listen URL {url!r} needs a certificate: give --cert-file and --key-file, or use http://"
            )
        context = tls if parts.scheme == "https" else None
        if context is not None:
            context.set_alpn_protocols(["h2", "http/1.1"])
        timeout = self.limits.handshake_s if context is not None else None
        if parts.scheme == "unix":
            path = parts.netloc + parts.path
            listener = await self._loop.create_unix_server(self._accept, path, backlog=BACKLOG)
            self.addresses.append(f"unix://{path}")
        else:
            if port is None or not parts.hostname:
                raise ConfigurationError(f"listen URL {url!r} needs a host and a port")
            listener = await self._loop.create_server(
                self._accept, parts.hostname, port, ssl=context, ssl_handshake_timeout=timeout, backlog=BACKLOG
            )
            bound = listener.sockets[0].getsockname()
            host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
            self.addresses.append(f"{parts.scheme}://{host}:{bound[1]}")
        self._listeners.append(listener)

    async def close(self, drain_s: float = 1.0) -> None:
        """Stop listening, end streaming calls, let unary calls end for at most `drain_s`, close everything.
        Idempotent."""
        if self._closing:
            return
        self._closing = True
        for listener in self._listeners:
            listener.close()
        for sniffer in list(self._sniffers):
            sniffer.abort()
        for task in list(self._tasks):
            task.cancel()
        for guard in list(self._http1):
            guard.shut_down()
        for connection in list(self._http2):
            connection.drain()
        if self.connections:
            self._idle.clear()
            try:
                await asyncio.wait_for(self._idle.wait(), drain_s)
            except TimeoutError:
                log.info("client connections cut at shutdown count=%d", self.connections)
        for held in self._all():
            held.abort()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self._ticker.cancel()
        self.service.close()
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
        while self.connections:  # noqa: ASYNC110
            await asyncio.sleep(0)  # the aborted transports report in the next turn

    @property
    def connections(self) -> int:
        """Open connections of all kinds."""
        return len(self._sniffers) + len(self._http2) + len(self._http1)

    def _accept(self) -> asyncio.Protocol:
        return _Sniffer(self)

    # -- what connections ask of their host
    def flush_soon(self, connection: Http2Connection) -> None:
        """One request to the backend for all connections of a turn."""
        waiting = self._to_flush
        waiting.append(connection)
        if len(waiting) == 1:
            self._backend_flush_soon(self._flush_all)

    @property
    def open_connections(self) -> int:
        return len(self._http2)

    def end_turn_soon(self) -> None:
        """Reading goes on between two turns: those who ask for little are served before those who wait."""
        if not self._turn_ends:
            self._turn_ends = True
            self._loop.call_soon(self._begin_turn)

    def take_turns(self, connection: GrpcConnection) -> None:
        self._taking_turns[connection] = None

    def _begin_turn(self) -> None:
        self._turn_ends = False
        self.turn += 1
        left = self.limits.requests_per_turn_total_max
        waiting = self._taking_turns
        if waiting:
            each = max(self.limits.requests_light_max, min(left // len(waiting), self.limits.requests_per_turn_max))
            for connection in list(waiting):
                if left <= 0:
                    break
                del waiting[connection]
                left -= connection.serve_waiting(each)
                if connection.waiting:
                    waiting[connection] = None
            if waiting:
                self.end_turn_soon()
        self.turn_left = left

    def _flush_all(self) -> None:
        waiting, self._to_flush = self._to_flush, []
        for connection in waiting:
            connection.flush()

    def abuse(self, kind: str) -> None:
        self.metrics.connections_cut.labels(kind).inc()

    def connection_opened(self, connection: Http2Connection) -> None:
        self._http2.add(connection)

    def connection_closed(self, connection: Http2Connection) -> None:
        self._http2.discard(connection)
        if isinstance(connection, GrpcConnection):
            self._with_deadlines.discard(connection)
            self._taking_turns.pop(connection, None)
        self._left(connection)
        self._closed_one()

    def http1_opened(self, guard: Http1Guard) -> None:
        self._http1.add(guard)

    def http1_closed(self, guard: Http1Guard) -> None:
        self._http1.discard(guard)
        self._left(guard)
        self._closed_one()

    def sniffer_opened(self, sniffer: _Sniffer, host: str) -> bool:
        """Whether there is room for one more connection, from this host."""
        if self._closing or self.connections >= self.limits.connections_max:
            self.abuse("connections")
            return False
        if self.connections * 2 >= self.limits.connections_max and self._has_its_share(host):
            self.abuse("host")
            return False
        self._sniffers.add(sniffer)
        self._from[sniffer] = host
        self._hosts[host] = self._hosts.get(host, 0) + 1
        return True

    def _has_its_share(self, host: str) -> bool:
        """Whether this host has as many connections as every one could have, were all alike. The last tenth is for
        those that have few."""
        own, most = self._hosts.get(host, 0), self.limits.connections_max
        if own < self.limits.connections_light_max:
            return False
        others = len(self._hosts) + (host not in self._hosts)
        return own >= most // others or self.connections * 10 >= most * 9

    def sniffer_became(self, sniffer: _Sniffer, protocol: asyncio.Protocol) -> None:
        """What the connection speaks is known: `protocol` has it from now on."""
        self._from[protocol] = self._from.pop(sniffer, "")

    def sniffer_done(self, sniffer: _Sniffer) -> None:
        self._sniffers.discard(sniffer)
        self._left(sniffer)
        self._closed_one()

    def _left(self, protocol: object) -> None:
        host = self._from.pop(protocol, None)
        if host is not None:
            self._hosts[host] = left = self._hosts.get(host, 1) - 1
            if left <= 0:
                del self._hosts[host]

    def _closed_one(self) -> None:
        if self._closing and not self.connections:
            self._idle.set()

    def make_http1(self) -> Http1Guard:
        return Http1Guard(self, self._make_http1())

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def watch_deadlines(self, connection: GrpcConnection) -> None:
        self._with_deadlines.add(connection)
        if self._deadline_timer is None:
            self._deadline_timer = self._loop.call_later(DEADLINE_TICK_S, self._expire)

    # -- clocks
    def _expire(self) -> None:
        now = self._loop.time()
        for connection in list(self._with_deadlines):
            if not connection.expire(now):
                self._with_deadlines.discard(connection)
        self._deadline_timer = self._loop.call_later(DEADLINE_TICK_S, self._expire) if self._with_deadlines else None

    def _tick(self) -> None:
        now = self._loop.time()
        elapsed, self._ticked_at = now - self._ticked_at, now
        self._ticker = self._loop.call_later(TICK_S, self._tick)
        self.service.refresh()
        for held in self._all():
            held.tick(elapsed)

    def _all(self) -> list[Http2Connection | Http1Guard | _Sniffer]:
        return [*self._http2, *self._http1, *self._sniffers]


class _Sniffer(asyncio.Protocol):
    """A connection of which too little has been read to tell what it speaks."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._age_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its bases
        name = transport.get_extra_info("peername")
        host = str(name[0]) if isinstance(name, tuple) and name else ""
        if not self._server.sniffer_opened(self, host):
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer = self._buffer + data
        if buffer.startswith(PREFACE):
            self._become(GrpcConnection(self._server))
        elif PREFACE.startswith(buffer):
            return
        elif _looks_like_http1(buffer):
            self._become(self._server.make_http1())
        else:
            self._cut("garbage", "the first bytes are neither HTTP/2 nor HTTP/1.1")

    def _become(self, protocol: asyncio.Protocol) -> None:
        transport = self._transport
        assert transport is not None
        buffer, self._buffer = self._buffer, b""
        self._server.sniffer_became(self, protocol)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        self._server.sniffer_done(self)
        protocol.data_received(buffer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._server.sniffer_done(self)

    def tick(self, elapsed_s: float) -> None:
        self._age_s += elapsed_s
        if self._age_s > self._server.limits.handshake_s:
            self._cut("handshake", f"no request within {self._server.limits.handshake_s:g} s")

    def _cut(self, kind: str, why: str) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        log.warning(
            "client connection cut peer=%s reason=%s detail=%s", transport.get_extra_info("peername"), kind, why
        )
        self._server.abuse(kind)
        transport.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def _looks_like_http1(buffer: bytes) -> bool:
    """Whether `buffer` may begin a request line: a method in capitals, then a space."""
    method, _, _ = buffer[:HTTP1_REQUEST_LINE_START_MAX].partition(b" ")
    return method.isalpha() and method.isupper() and len(method) < HTTP1_REQUEST_LINE_START_MAX


async def start_api(
    backend: Backend,
    listeners: Sequence[str],
    metrics: Metrics,
    tls: ssl.SSLContext | None = None,
    limits: Limits | None = None,
    *,
    engine: str | None = None,
    allowed_hosts: Sequence[str] = ("*",),
    methods: Sequence[Method] = (),
    auth: AuthOptions | None = None,
    compaction: AutoCompaction | None = None,
    cors: Sequence[str] = ("*",),
) -> ApiServer:
    """Serve `backend` on all `listeners` (URLs; port 0 picks a free one, see `ApiServer.addresses`).

    `metrics` is for this server alone. `engine` is one of `ENGINES`, None for the first that loads. `methods` are
    further RPCs, or replacements of ours. `auth` says how clients prove who they are, `compaction` when history is
    dropped by itself, `cors` which pages in browsers may use the HTTP side. Raises `ConfigurationError` for a malformed
    URL, `ValueError` for an unknown engine, `OSError` if an address cannot be had; nothing is left listening then.
    """
    server = ApiServer(
        backend, metrics, limits or Limits(), engine, allowed_hosts, methods, auth or AuthOptions(), compaction, cors
    )
    try:
        for url in listeners:
            await server.listen(url, tls)
    except BaseException:
        await server.close(0)
        raise
    return server
