"""One gRPC call to a member from the command line: blocking, over h2, unary or with a stream of answers."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

MESSAGE_BYTES_MAX: Final = 8 << 20
READ_BYTES: Final = 1 << 18
WINDOW_BYTES: Final = 8 << 20


class CallFailed(Exception):
    """A call ended with another status than OK, or could not be made (`code` -1)."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """`host:port`, `http://host:port` or `https://host:port`, with the files for TLS."""

    url: str
    cacert: str = ""
    cert: str = ""
    key: str = ""
    insecure: bool = False

    def connect(self, timeout_s: float) -> tuple[socket.socket, str]:
        """An open connection and its authority. Raises `CallFailed`."""
        url = self.url if "://" in self.url else ("https://" if self.cacert or self.cert else "http://") + self.url
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "localhost", parts.port or 2379
        except ValueError as error:
            raise CallFailed(-1, f"endpoint {self.url!r} makes no sense: {error}") from error
        try:
            sock = socket.create_connection((host, port), timeout=timeout_s)
            if parts.scheme == "https":
                sock = self._context().wrap_socket(sock, server_hostname=host)
        except (OSError, ValueError) as error:
            raise CallFailed(-1, f"cannot reach {url}: {error}") from error
        return sock, f"{host}:{port}"

    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.cacert or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2"])
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.cert:
            context.load_cert_chain(self.cert, self.key or None)
        return context


class GrpcConnection:
    """One connection; calls one after the other. A context manager."""

    def __init__(self, endpoint: Endpoint, *, timeout_s: float) -> None:
        self._sock, self._authority = endpoint.connect(timeout_s)
        self._secure = isinstance(self._sock, ssl.SSLSocket)
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(WINDOW_BYTES)
        self._send()

    def __enter__(self) -> GrpcConnection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sock.close()

    def _send(self) -> None:
        self._sock.sendall(self._h2.data_to_send())

    def unary(self, method: str, request: bytes, metadata: Iterable[tuple[str, str]] = ()) -> bytes:
        """The one answer. Raises `CallFailed`."""
        answers = list(self.stream(method, request, metadata))
        if len(answers) != 1:
            raise CallFailed(-1, f"{method} gave {len(answers)} answers")
        return answers[0]

    def stream(self, method: str, request: bytes, metadata: Iterable[tuple[str, str]] = ()) -> Iterator[bytes]:
        """Every answer of `method` (`service/name`). Raises `CallFailed`, also after some answers."""
        try:
            yield from self._stream(method, request, metadata)
        except (OSError, h2.exceptions.ProtocolError) as error:
            raise CallFailed(-1, f"the connection to {self._authority} failed: {error}") from error

    def _stream(self, method: str, request: bytes, metadata: Iterable[tuple[str, str]]) -> Iterator[bytes]:
        number = self._h2.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "https" if self._secure else "http"),
            (":authority", self._authority),
            (":path", f"/{method}"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *metadata,
        ]
        self._h2.send_headers(number, headers)
        self._h2.send_data(number, b"\0" + len(request).to_bytes(4, "big") + request, end_stream=True)
        self._send()
        found: dict[str, str] = {}
        buffer = bytearray()
        ended = False
        while not ended:
            data = self._sock.recv(READ_BYTES)
            if not data:
                raise ConnectionResetError("it was closed in the middle of an answer")
            for event in self._h2.receive_data(data):
                ended = self._take(event, found, buffer) or ended
            self._send()
            yield from _messages(buffer)
        code = int(found.get("grpc-status", "-1"))
        if code != 0:
            text = unquote(found.get("grpc-message", "")) or f"HTTP status {found.get(':status', 'unknown')}"
            raise CallFailed(code, text)
        if buffer:
            raise CallFailed(-1, "the answer ends in the middle of a message")

    def _take(self, event: Any, found: dict[str, str], buffer: bytearray) -> bool:
        """Take one event; whether the call is over."""
        match event:
            case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                found.update((str(name), str(value)) for name, value in event.headers or ())
            case h2.events.DataReceived():
                buffer += event.data or b""
                self._h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
            case h2.events.StreamEnded():
                return True
            case h2.events.StreamReset() | h2.events.ConnectionTerminated():
                raise CallFailed(-1, f"the server ended the call (HTTP/2 error {event.error_code})")
        return False


def _messages(buffer: bytearray) -> Iterator[bytes]:
    """Take the whole messages off the front of `buffer`."""
    while len(buffer) >= 5:
        size = int.from_bytes(buffer[1:5], "big")
        if size > MESSAGE_BYTES_MAX or buffer[0]:
            raise CallFailed(-1, f"an answer of {size} bytes, or compressed: not of a member of ours")
        if len(buffer) < 5 + size:
            return
        message = bytes(buffer[5 : 5 + size])
        del buffer[: 5 + size]
        yield message
