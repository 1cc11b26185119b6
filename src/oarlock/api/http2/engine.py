"""What a connection needs from an HTTP/2 library: bytes in, calls of the sink out; answers in, bytes out. No I/O.

Three engines implement it, and pass the same tests: `own` (ours, the default), `ngh2` (libnghttp2) and `h2`. They
grant receive windows back by themselves; what a connection may hold is bounded one layer up.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Protocol, TypeAlias

from oarlock.api.limits import Limits

Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
ENGINES = ("own", "ngh2", "h2")


class ErrorCode(IntEnum):
    """RFC 9113 section 7."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB


class ConnectionFailed(Exception):
    """The peer broke the protocol, or a limit; the connection is over. A GOAWAY may still be waiting in `take`."""


class EngineSink(Protocol):
    """Who is told what came in. Called from inside `Engine.feed`, and may answer from inside."""

    def on_request(self, stream_id: int, headers: Headers, end_stream: bool) -> None: ...
    def on_data(self, stream_id: int, data: bytes, end_stream: bool) -> None: ...
    def on_end(self, stream_id: int) -> None:
        """The request ended with trailers, which mean nothing to us."""

    def on_closed(self, stream_id: int, error_code: int) -> None:
        """The stream is over in both directions. `error_code` is 0 after an ordinary end."""

    def on_control(self, kind: str) -> None:
        """A frame that costs the peer little and us something: "settings", "ping" or "reset"."""

    def on_pong(self) -> None: ...
    def on_goaway(self) -> None: ...


class Engine(Protocol):
    """The server side of one HTTP/2 connection. Writing to a stream that is gone does nothing."""

    def feed(self, data: bytes) -> None:
        """Take bytes from the socket. Raises `ConnectionFailed`."""

    def take(self, amount: int) -> bytes:
        """At most `amount` bytes (or one frame more) to write to the socket; empty when there is nothing to send
        now."""

    def answer(
        self,
        stream_id: int,
        headers: Iterable[tuple[bytes, bytes]],
        body: bytes,
        trailers: Iterable[tuple[bytes, bytes]],
    ) -> None:
        """A whole response: headers, one body, trailers."""

    def head(self, stream_id: int, headers: Iterable[tuple[bytes, bytes]], end_stream: bool) -> None: ...
    def body(self, stream_id: int, data: bytes) -> None: ...
    def trailers(self, stream_id: int, headers: Iterable[tuple[bytes, bytes]]) -> None: ...
    def reset(self, stream_id: int, error_code: int) -> None:
        """End the stream now; of its answer only what is queued as `head` before is still sent."""

    def ping(self) -> None: ...

    def drain(self) -> None:
        """GOAWAY that refuses new streams and lets those under way end."""

    def fail(self, error_code: int, debug: bytes = b"") -> None:
        """GOAWAY that ends the connection; clients may read `debug`."""

    def unsent(self, stream_id: int = 0) -> int:
        """Body bytes queued and not yet taken, of one stream, or of all (0)."""

    @property
    def takes_any_authority(self) -> bool:
        """Whether a URL in place of an authority does not matter (see `authority`)."""

    @property
    def wants_write(self) -> bool:
        """Whether `take` may have something, or the connection may be at its end. May be true in vain."""

    @property
    def finished(self) -> bool:
        """Nothing more will be read; once `take` is empty the socket can be closed."""

    @property
    def faulty(self) -> bool:
        """`finished`, because of a fault of the peer that `feed` did not raise and only the GOAWAY tells of."""


EngineFactory: TypeAlias = Callable[[EngineSink, Limits], Engine]


def engine_factory(name: str | None = None) -> EngineFactory:
    """The engine called `name`, or the best one that is installed. Raises `ValueError` for an unknown or absent one."""
    if name is not None and name not in ENGINES:
        raise ValueError(f"HTTP/2 engine {name!r} is not known: choose one of {', '.join(ENGINES)}")
    problems: list[str] = []
    for candidate in ENGINES if name is None else (name,):
        try:
            module = importlib.import_module(f"oarlock.api.http2.{candidate}_engine")
        except ImportError as error:
            problems.append(f"{candidate}: {error}")
            continue
        factory: EngineFactory = module.make_engine
        return factory
    raise ValueError(f"no HTTP/2 engine can be loaded ({'; '.join(problems)}): install the package ngh2 or h2")
