"""Which handler a request goes to, worked out once for each distinct header list."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from oarlock.api.grpc.status import Code

if TYPE_CHECKING:
    from oarlock.api.grpc.call import Call, StreamCall
    from oarlock.api.http2.engine import Headers

UnaryHandler: TypeAlias = "Callable[[Call, bytes], None]"
StreamHandler: TypeAlias = "Callable[[StreamCall], Awaitable[None]]"

TIMEOUT_DIGITS_MAX = 8
_TIMEOUT_UNITS_S = {72: 3600.0, 77: 60.0, 83: 1.0, 109: 1e-3, 117: 1e-6, 110: 1e-9}  # H M S m u n


class Method:
    """One RPC. Exactly one of `unary` and `stream` is set. The counters are read by the metrics."""

    __slots__ = ("service", "name", "unary", "stream", "started", "succeeded", "codes")

    def __init__(
        self, service: str, name: str, *, unary: UnaryHandler | None = None, stream: StreamHandler | None = None
    ) -> None:
        assert (unary is None) != (stream is None), f"{service}/{name} needs one handler"
        self.service = service
        self.name = name
        self.unary = unary
        self.stream = stream
        self.started = 0
        self.succeeded = 0
        self.codes: dict[Code, int] = {}  # of the calls that did not succeed

    @property
    def path(self) -> bytes:
        return f"/{self.service}/{self.name}".encode("ascii")


@dataclass(slots=True)
class Route:
    """What a header list asks for. With `method` None the call is refused with `code` and `text`."""

    method: Method | None
    timeout_s: float | None = None
    need_leader: bool = False
    code: Code = Code.OK
    text: str = ""
    http_status: bytes = b"200"
    metadata: Mapping[bytes, bytes] = field(default_factory=dict)


class Router:
    """All methods of a server."""

    def __init__(self, methods: Iterable[Method]) -> None:
        self.methods: dict[bytes, Method] = {method.path: method for method in methods}
        self.services = frozenset(method.service for method in self.methods.values())

    def route(self, headers: Headers) -> Route:
        """What `headers` ask for. Never raises."""
        fields = dict(reversed(headers))  # of repeated fields the first counts
        path = fields.get(b":path", b"")
        content_type = fields.get(b"content-type", b"")
        if fields.get(b":method") != b"POST":
            return Route(
                None,
                code=Code.INTERNAL,
                http_status=b"405",
                text=f"a gRPC request is a POST, not {_shown(fields.get(b':method', b''))}",
            )
        if content_type != b"application/grpc" and not content_type.startswith(
            (b"application/grpc+", b"application/grpc;")
        ):
            return Route(
                None,
                code=Code.INVALID_ARGUMENT,
                http_status=b"415",
                text=f"invalid gRPC request content-type {_shown(content_type)}",
            )
        encoding = fields.get(b"grpc-encoding", b"identity")
        if encoding not in (b"identity", b""):
            return Route(
                None,
                code=Code.UNIMPLEMENTED,
                text=f"grpc: Decompressor is not installed for grpc-encoding {_shown(encoding)}",
            )
        timeout_s: float | None = None
        timeout = fields.get(b"grpc-timeout")
        if timeout is not None:
            timeout_s = parse_timeout(timeout)
            if timeout_s is None:
                return Route(
                    None, code=Code.INTERNAL, http_status=b"400", text=f"malformed grpc-timeout: {_shown(timeout)}"
                )
        method = self.methods.get(path)
        if method is None:
            service, slash, name = path.decode("utf-8", "replace").removeprefix("/").rpartition("/")
            if not slash:
                text = f"malformed method name: {_shown(path)}"
            elif service in self.services:
                text = f"unknown method {name} for service {service}"
            else:
                text = f"unknown service {service}"
            return Route(None, code=Code.UNIMPLEMENTED, text=text)
        return Route(method, timeout_s=timeout_s, need_leader=fields.get(b"hasleader") == b"true", metadata=fields)


def parse_timeout(value: bytes) -> float | None:
    """A `grpc-timeout` in seconds, None if it is malformed.

    >>> parse_timeout(b"250m"), parse_timeout(b"5"), parse_timeout(b"-1S")
    (0.25, None, None)
    """
    digits = value[:-1]
    unit = _TIMEOUT_UNITS_S.get(value[-1]) if value else None
    if unit is None or not digits.isdigit() or len(digits) > TIMEOUT_DIGITS_MAX:
        return None
    return int(digits) * unit


def _shown(value: bytes) -> str:
    return '"' + value[:200].decode("utf-8", "replace") + '"'
