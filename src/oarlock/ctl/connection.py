"""One HTTP/2 connection to a member and gRPC calls over it, blocking: what a program needs that asks and ends.

h2 does the framing. Several calls may be open at once; whoever waits for one takes in what comes for all. A connection
that stays silent is asked whether it lives, so nothing waits on a member that has silently gone.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from oarlock.ctl.failures import CallError

if TYPE_CHECKING:
    import ssl

UNKNOWN: Final = 2
DEADLINE_EXCEEDED: Final = 4
INTERNAL: Final = 13
UNAVAILABLE: Final = 14

RESPONSE_BYTES_MAX: Final = (1 << 31) - 1
"""The longest answer that is read, as etcdctl."""

READ_BYTES: Final = 1 << 18
WINDOW_BYTES: Final = 4 << 20
IO_SECONDS: Final = 20.0
"""How long a write, or the rest of a TLS record, may take."""

PING_SECONDS_MIN: Final = 10.0
"""Members count more frequent pings as abuse."""

Metadata = tuple[tuple[str, str], ...]


class Tls(NamedTuple):
    """The files for TLS, and whether it is used where an endpoint does not say."""

    cacert: str = ""
    cert: str = ""
    key: str = ""
    skip_verify: bool = False
    wanted: bool = False

    def context(self) -> ssl.SSLContext:
        """Raises `OSError` or `ssl.SSLError` for files that cannot be used."""
        import ssl

        context = ssl.create_default_context(cafile=self.cacert or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2"])
        if self.skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.cert:
            context.load_cert_chain(self.cert, self.key or None)
        return context


class Endpoint(NamedTuple):
    """Where a member is: `host:port`, a URL, or `unix:///path`."""

    text: str
    tls: Tls = Tls()
    ping_s: float = PING_SECONDS_MIN
    ping_timeout_s: float = 6.0

    def connect(self, timeout_s: float) -> tuple[socket.socket, str, bool]:
        """An open connection, its authority, whether it is secure. Raises `OSError` or `ValueError`."""
        parts = urlsplit(self.text if "://" in self.text else f"//{self.text}")
        secure = parts.scheme in ("https", "unixs") or (parts.scheme != "http" and self.tls.wanted)
        if parts.scheme in ("unix", "unixs"):
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(timeout_s)
            host, authority = "localhost", "localhost"
            self._open(sock, parts.netloc + parts.path)
        else:
            if not parts.hostname or not parts.port:
                raise ValueError("an endpoint is HOST:PORT, http://HOST:PORT or https://HOST:PORT")
            host, authority = parts.hostname, parts.netloc.rpartition("@")[2]
            sock = socket.create_connection((host, parts.port), timeout=timeout_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if secure:
            try:
                sock = self.tls.context().wrap_socket(sock, server_hostname=host)
            except BaseException:
                sock.close()
                raise
        sock.settimeout(IO_SECONDS)
        return sock, authority, secure

    @staticmethod
    def _open(sock: socket.socket, path: str) -> None:
        try:
            sock.connect(path)
        except BaseException:
            sock.close()
            raise


class Call:
    """One call. `receive` gives its messages and then None; how it ended otherwise is a `CallError`."""

    def __init__(self, connection: Connection, number: int) -> None:
        self._connection = connection
        self.number = number
        self.messages: deque[bytes] = deque()
        self.headers: dict[str, str] = {}
        self.buffer = bytearray()
        self.error: CallError | None = None
        self.ended = False

    def send(self, message: bytes, *, end: bool = False, deadline: float | None = None) -> None:
        self._connection.send(self, b"\0" + len(message).to_bytes(4, "big") + message, end, deadline)

    def receive(self, deadline: float | None = None) -> bytes | None:
        """The next message; None at the end. Raises `CallError`, DEADLINE_EXCEEDED when the deadline
        (`time.monotonic()`) passes first: the call is still open then."""
        while not self.messages:
            if self.error is not None:
                raise self.error
            if self.ended:
                return None
            if not self._connection.pump(deadline):
                raise CallError(DEADLINE_EXCEEDED, "context deadline exceeded")
        return self.messages.popleft()

    def rest(self, deadline: float | None = None) -> Iterator[bytes]:
        """All further messages."""
        while (message := self.receive(deadline)) is not None:
            yield message

    def cancel(self) -> None:
        """End the call now; the member is told."""
        self._connection.cancel(self)

    # -- the connection's side

    def data(self, data: bytes) -> None:
        self.buffer += data
        at = 0
        while len(self.buffer) >= at + 5:
            length = int.from_bytes(self.buffer[at + 1 : at + 5], "big")
            if self.buffer[at] or length > RESPONSE_BYTES_MAX:
                what = "is compressed" if self.buffer[at] else f"has {length} bytes"
                self.error = CallError(INTERNAL, f"the answer {what}, which this client does not read")
                self.cancel()
                return
            if len(self.buffer) < at + 5 + length:
                break
            self.messages.append(bytes(self.buffer[at + 5 : at + 5 + length]))
            at += 5 + length
        if at:
            del self.buffer[:at]

    def finish(self) -> None:
        """The member has sent everything."""
        self.ended = True
        status = self.headers.get("grpc-status", "")
        if not status.isdigit():
            http = self.headers.get(":status", "unknown")
            text = f"the server ended the call without a status (HTTP status {http})"
            self.error = CallError(UNKNOWN, text, hint="is this the client port of a member?")
        elif status != "0":
            self.error = CallError(int(status), unquote(self.headers.get("grpc-message", "")) or f"status {status}")
        elif self.buffer:
            self.error = CallError(INTERNAL, "the answer ends in the middle of a message")


class Connection:
    """An open connection. Raises `CallError` UNAVAILABLE, not sent, if it cannot be made."""

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        try:
            self.sock, self._authority, self._secure = endpoint.connect(timeout_s)
        except TimeoutError:
            raise CallError(UNAVAILABLE, f"{endpoint.text}: no connection within {timeout_s:g} s", sent=False) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise CallError(UNAVAILABLE, f"{endpoint.text}: {reason}", sent=False) from error
        self.endpoint = endpoint
        self._calls: dict[int, Call] = {}
        self._heard = time.monotonic()
        self._asked = False
        self.broken: CallError | None = None
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._h2.initiate_connection()
        settings: dict[h2.settings.SettingCodes | int, int] = {
            h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: WINDOW_BYTES,
            h2.settings.SettingCodes.ENABLE_PUSH: 0,
        }
        self._h2.update_settings(settings)
        self._h2.increment_flow_control_window(WINDOW_BYTES)

    def close(self) -> None:
        self.sock.close()

    def begin(self, method: str, metadata: Metadata = (), timeout_s: float | None = None) -> Call:
        """Begin a call of `package.Service/Method`. Raises `CallError`."""
        headers = [
            (":method", "POST"),
            (":scheme", "https" if self._secure else "http"),
            (":path", f"/{method}"),
            (":authority", self._authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", "oarlockctl"),
            *metadata,
        ]
        if timeout_s is not None:
            headers.append(("grpc-timeout", f"{max(1, min(int(timeout_s * 1000), 99_999_999))}m"))
        if self.broken is not None:
            raise self.broken
        try:
            number = self._h2.get_next_available_stream_id()
            self._h2.send_headers(number, headers)
        except h2.exceptions.ProtocolError as error:
            raise CallError(UNAVAILABLE, f"{self.endpoint.text}: {error}", sent=False) from error
        call = self._calls[number] = Call(self, number)
        return call

    def unary(self, method: str, request: bytes, metadata: Metadata, deadline: float) -> bytes:
        """The one answer. Raises `CallError`."""
        call = self.begin(method, metadata, max(0.001, deadline - time.monotonic()))
        try:
            call.send(request, end=True, deadline=deadline)
            answers = list(call.rest(deadline))
        except BaseException:
            call.cancel()
            raise
        if len(answers) != 1:
            raise CallError(INTERNAL, f"{method} gave {len(answers)} answers")
        return answers[0]

    def send(self, call: Call, data: bytes, end: bool, deadline: float | None) -> None:
        view = memoryview(data)
        while True:
            if call.error is not None:
                raise call.error
            if call.ended:
                return  # the answer came before the whole of the question
            try:
                room = min(self._h2.local_flow_control_window(call.number), self._h2.max_outbound_frame_size)
                if room > 0:
                    piece, view = view[:room], view[room:]
                    self._h2.send_data(call.number, piece.tobytes(), end_stream=end and not view)
            except h2.exceptions.ProtocolError as error:
                raise CallError(UNAVAILABLE, f"{self.endpoint.text}: {error}") from error
            self._flush()
            if not view and room > 0:
                return
            if room <= 0 and not self.pump(deadline):
                raise CallError(DEADLINE_EXCEEDED, "context deadline exceeded")

    def cancel(self, call: Call) -> None:
        self._calls.pop(call.number, None)
        if not call.ended and self.broken is None:
            call.ended = True
            try:
                self._h2.reset_stream(call.number, h2.errors.ErrorCodes.CANCEL)
                self._flush()
            except (h2.exceptions.ProtocolError, CallError):
                return  # it is over anyway

    def ready(self) -> bool:
        """Whether there is something to take in without waiting for the socket."""
        pending = getattr(self.sock, "pending", None)
        return bool(self._secure and pending is not None and pending())

    def pump(self, deadline: float | None = None, also: int | None = None) -> bool:
        """Take in what comes, once; false if nothing came before the deadline, or if `also` (a file descriptor) became
        readable first. A broken connection ends every call on it with an error."""
        if self.broken is not None:
            raise self.broken
        self._flush()
        while not self.ready():
            now = time.monotonic()
            ask_at = self._heard + (self.endpoint.ping_timeout_s if self._asked else self._ping_s())
            until = ask_at if deadline is None else min(ask_at, deadline)
            waiting: list[Any] = [self.sock] if also is None else [self.sock, also]
            readable, _, _ = select.select(waiting, [], [], max(0.0, until - now))
            if self.sock in readable:
                break
            if readable or (deadline is not None and time.monotonic() >= deadline):
                return False
            if time.monotonic() >= ask_at:
                self._ask()
        try:
            data = self.sock.recv(READ_BYTES)
        except TimeoutError:
            return True
        except OSError as error:
            self._break(error.strerror or str(error))
            return True
        if not data:
            self._break("the server closed the connection")
            return True
        self._heard, self._asked = time.monotonic(), False
        try:
            for event in self._h2.receive_data(data):
                self._take(event)
        except h2.exceptions.ProtocolError as error:
            self._break(f"this is not HTTP/2: {error}")
            return True
        self._flush()
        return True

    def _ping_s(self) -> float:
        return max(PING_SECONDS_MIN, self.endpoint.ping_s)

    def _ask(self) -> None:
        if self._asked:
            self._break(f"no answer to a ping within {self.endpoint.ping_timeout_s:g} s")
            raise self.broken or AssertionError("it was just broken")
        self._asked, self._heard = True, time.monotonic()
        self._h2.ping(b"oarlock ")
        self._flush()

    def _take(self, event: Any) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            self._break(f"the server closed the connection (HTTP/2 error {event.error_code})")
            return
        call = self._calls.get(getattr(event, "stream_id", 0) or 0)
        match event:
            case h2.events.DataReceived():
                self._h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
                if call is not None:
                    call.data(event.data or b"")
            case h2.events.ResponseReceived() | h2.events.TrailersReceived() if call is not None:
                call.headers.update((str(name), str(value)) for name, value in event.headers or ())
            case h2.events.StreamEnded() if call is not None:
                del self._calls[call.number]
                call.finish()
            case h2.events.StreamReset() if call is not None:
                del self._calls[call.number]
                call.ended = True
                refused = event.error_code == h2.errors.ErrorCodes.REFUSED_STREAM
                text = f"{self.endpoint.text}: the server reset the call (HTTP/2 error {event.error_code})"
                call.error = call.error or CallError(UNAVAILABLE, text, sent=not refused)
            case _:
                pass

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if not data:
            return
        try:
            self.sock.sendall(data)
        except OSError as error:
            self._break(error.strerror or str(error))
            raise self.broken or AssertionError("it was just broken") from error

    def _break(self, reason: str) -> None:
        self.broken = CallError(UNAVAILABLE, f"{self.endpoint.text}: {reason}")
        for call in self._calls.values():
            call.ended = True
            call.error = call.error or self.broken
        self._calls.clear()
        self.sock.close()
