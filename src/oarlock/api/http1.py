"""The HTTP/1.1 side of the client port: the JSON gateway, /health, /version, /metrics and the like, served by uvicorn's
protocol class behind a guard that sets the limits which that class lacks."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import uvicorn
from starlette.applications import Starlette
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from oarlock import __version__
from oarlock.api import checks
from oarlock.api.backend import Backend
from oarlock.api.etcd.context import CLUSTER_VERSION, ETCD_VERSION
from oarlock.api.gateway import CrossOrigin, Gateway, description
from oarlock.api.limits import Limits
from oarlock.api.metrics import Metrics

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 60


class Http1Host(Protocol):
    """What a guard needs from the server around it."""

    limits: Limits
    stream_paths: frozenset[str]
    """Requests to these have no time in which they must be complete, and no size; what is not taken yet of them is
    bounded by who reads it."""

    def abuse(self, kind: str) -> None: ...
    def http1_opened(self, guard: Http1Guard) -> None: ...
    def http1_closed(self, guard: Http1Guard) -> None: ...


def make_application(
    backend: Backend, metrics: Metrics, gateway: Gateway, allowed_hosts: list[str], origins: Sequence[str]
) -> CrossOrigin:
    """The application. `allowed_hosts` are the Host headers that are served, `["*"]` for any (DNS rebinding is then
    possible, as with etcd's default); `origins` are those whose pages may use it (etcd's --cors)."""

    async def health(request: Request) -> Response:
        healthy, reason = await checks.health(
            backend,
            serializable=request.query_params.get("serializable") == "true",
            exclude=request.query_params.getlist("exclude"),
        )
        (metrics.health if healthy else metrics.health_failed).inc()
        body = json.dumps({"health": "true" if healthy else "false", "reason": reason}, separators=(",", ":"))
        return Response(body, status_code=200 if healthy else 503, media_type="application/json")

    async def version(request: Request) -> Response:
        # Clients take the parts of the first for numbers (etcd3gw): the build metadata of `ETCD_VERSION` stays out.
        plain = ETCD_VERSION.partition("+")[0]
        versions = {"etcdserver": plain, "etcdcluster": CLUSTER_VERSION, "oarlock": __version__}
        body = json.dumps(versions, separators=(",", ":"))
        return Response(body, media_type="application/json")

    async def show_metrics(request: Request) -> Response:
        return Response(metrics.text(), headers={"content-type": metrics.content_type})

    async def not_found(request: Request, error: Exception) -> Response:
        return Response("404 page not found\n", status_code=404, media_type="text/plain")

    described = json.dumps(description(ETCD_VERSION)).encode()

    async def openapi(request: Request) -> Response:
        return Response(described, media_type="application/json")

    others = Starlette(
        routes=[
            Route("/health", health),
            Route("/version", version),
            Route("/metrics", show_metrics),
            Route("/openapi.json", openapi),
            *checks.routes(backend),
        ],
        exception_handlers={404: not_found},
    )

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await (gateway if Gateway.has(scope["path"]) else others)(scope, receive, send)

    return CrossOrigin(TrustedHostMiddleware(application, allowed_hosts=allowed_hosts), origins)


def http1_factory(application: CrossOrigin, limits: Limits) -> Callable[[], asyncio.Protocol]:
    """Makes one protocol object for each connection: httptools' if it is installed, else h11's."""
    try:
        import httptools  # noqa: F401

        flavour = "httptools"
    except ImportError:
        flavour = "h11"
    config = uvicorn.Config(
        application,
        http=flavour,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        h11_max_incomplete_event_size=limits.http_header_bytes_max,
    )
    config.load()
    state = ServerState()

    def make() -> asyncio.Protocol:
        protocol: Any = config.http_protocol_class
        made: asyncio.Protocol = protocol(config=config, server_state=state, app_state={})
        return made

    return make


class Http1Guard(asyncio.Protocol):
    """Stands before uvicorn's protocol: bounds the size of a request's head and body, and the time for each."""

    def __init__(self, host: Http1Host, inner: asyncio.Protocol) -> None:
        self._host = host
        self._limits = host.limits
        self._inner: Any = inner
        self._transport: asyncio.Transport | None = None
        self._head_bytes = 0
        self._body_bytes = 0
        self._idle_s = 0.0
        self._busy_s = 0.0
        self._paused = False  # the client takes nothing of what is written
        self._paused_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its bases
        self._host.http1_opened(self)
        self._inner.connection_made(transport)

    def _busy(self) -> bool:
        cycle = self._inner.cycle
        return cycle is not None and not cycle.response_complete

    def _receiving(self) -> bool:
        """Whether the body of a request under way is incomplete, of one that has to be complete in time."""
        cycle = self._inner.cycle
        return self._busy() and cycle.more_body and cycle.scope["path"] not in self._host.stream_paths

    def data_received(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._busy():
            if self._receiving():
                self._body_bytes += len(data)
            if self._body_bytes > self._limits.http_body_bytes_max:
                self._cut(b"413 Content Too Large", "http-body")
                return
            self._inner.data_received(data)
            return
        self._head_bytes += len(data)
        if self._head_bytes > self._limits.http_header_bytes_max and b"\r\n\r\n" not in data:
            self._cut(b"431 Request Header Fields Too Large", "http-header")
            return
        self._inner.data_received(data)
        if self._busy() or self._inner.cycle is not None:
            self._head_bytes = 0
            self._body_bytes = 0
            self._idle_s = 0.0

    def eof_received(self) -> None:
        self._inner.eof_received()

    def pause_writing(self) -> None:
        self._paused = True
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._paused = False
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._inner.connection_lost(exc)
        self._host.http1_closed(self)

    def tick(self, elapsed_s: float) -> None:
        if self._busy():
            self._idle_s = 0.0
            self._busy_s = self._busy_s + elapsed_s if self._receiving() else 0.0
            if self._busy_s > self._limits.unfinished_request_s:
                self._cut(None, "http-slow")
            self._paused_s = self._paused_s + elapsed_s if self._paused else 0.0
            if self._paused_s > self._limits.stall_s:
                self._cut(None, "stalled")
            return
        self._busy_s = 0.0
        self._idle_s += elapsed_s
        # With part of a head received the keep-alive timer no longer runs: this is the one that does.
        if self._head_bytes:
            if self._idle_s > self._limits.handshake_s:
                self._cut(None, "http-slow")
        elif self._idle_s > KEEP_ALIVE_S and self._transport is not None:
            self._transport.close()  # kept for a next request that did not come: nobody's fault

    def _cut(self, status: bytes | None, reason: str) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        log.warning("client connection cut peer=%s reason=%s", transport.get_extra_info("peername"), reason)
        self._host.abuse(reason)
        if status is not None and not self._busy():
            transport.write(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            transport.close()
        else:
            transport.abort()

    def shut_down(self) -> None:
        """Close when the request under way is answered."""
        self._inner.shutdown()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
