"""A small HTTP/2 and gRPC client for tests: it can do what well-behaved clients do not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType

import ngh2

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One raw HTTP/2 frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big") + payload


def message_frame(message: bytes, flag: int = 0) -> bytes:
    """A gRPC message with its prefix."""
    return bytes((flag,)) + len(message).to_bytes(4, "big") + message


@dataclass
class Answer:
    """What came back on one stream."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    trailers: dict[bytes, bytes] = field(default_factory=dict)
    reset: int | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def code(self) -> int | None:
        raw = self.trailers.get(b"grpc-status", self.headers.get(b"grpc-status"))
        return None if raw is None else int(raw)

    @property
    def text(self) -> str:
        from urllib.parse import unquote

        return unquote((self.trailers.get(b"grpc-message") or self.headers.get(b"grpc-message") or b"").decode())

    @property
    def messages(self) -> list[bytes]:
        out, at = [], 0
        while at < len(self.body):
            size = int.from_bytes(self.body[at + 1 : at + 5], "big")
            out.append(bytes(self.body[at + 5 : at + 5 + size]))
            at += 5 + size
        return out


class H2Client:
    """One connection. Use it as `async with await H2Client.connect(url) as client`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, auto_window: bool) -> None:
        self.reader = reader
        self.writer = writer
        self.h2 = ngh2.Connection(ngh2.Role.CLIENT, ngh2.Configuration(auto_window_update=auto_window))
        self.answers: dict[int, Answer] = {}
        self.goaway: int | None = None
        self.closed = asyncio.Event()
        self.h2.initiate_connection({ngh2.Setting.ENABLE_PUSH: 0})
        self.flush()
        self._task = asyncio.get_running_loop().create_task(self._read())

    @classmethod
    async def connect(cls, url: str, *, auto_window: bool = True) -> H2Client:
        host, _, port = url.rpartition("//")[2].rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        return cls(reader, writer, auto_window=auto_window)

    async def __aenter__(self) -> H2Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._task.cancel()
        self.writer.transport.abort()
        await asyncio.gather(self._task, return_exceptions=True)

    def flush(self) -> None:
        data = self.h2.data_to_send()
        if data:
            self.writer.write(data)

    async def _read(self) -> None:
        try:
            while data := await self.reader.read(65536):
                self.h2.receive_data(data)
                self._events()
                self.flush()
        except (ConnectionError, ngh2.NGH2Error):
            pass  # the server has cut us off, which tests provoke
        finally:
            self._events()
            self.closed.set()
            for answer in self.answers.values():
                answer.ended.set()

    def _events(self) -> None:
        for event in self.h2.events():
            match event:
                case ngh2.ResponseReceived():
                    self.answers[event.stream_id].headers = dict(event.headers)
                    if event.end_stream:
                        self.answers[event.stream_id].ended.set()
                case ngh2.DataReceived():
                    self.answers[event.stream_id].body += event.data
                case ngh2.TrailersReceived():
                    self.answers[event.stream_id].trailers = dict(event.headers)
                    self.answers[event.stream_id].ended.set()
                case ngh2.StreamReset():
                    self.answers[event.stream_id].reset = event.error_code
                case ngh2.StreamClosed():
                    self.answers[event.stream_id].ended.set()
                case ngh2.GoAwayReceived():
                    self.goaway = event.error_code

    def start(
        self,
        path: str,
        extra: Iterable[tuple[bytes, bytes]] = (),
        *,
        end_stream: bool = False,
        content_type: bytes = b"application/grpc",
        method: bytes = b"POST",
    ) -> int:
        """Open a stream; returns its id."""
        headers = [
            (b":method", method),
            (b":scheme", b"http"),
            (b":path", path.encode()),
            (b":authority", b"localhost"),
            (b"content-type", content_type),
            (b"te", b"trailers"),
            *extra,
        ]
        stream_id = self.h2.send_request(headers, end_stream=end_stream)
        self.answers[stream_id] = Answer()
        self.flush()
        return stream_id

    def send(self, stream_id: int, data: bytes, *, end_stream: bool = False) -> None:
        self.h2.send_data(stream_id, data, end_stream=end_stream)
        self.flush()

    async def finish(self, stream_id: int, timeout: float = 10) -> Answer:
        """Wait for the end of a stream."""
        answer = self.answers[stream_id]
        await asyncio.wait_for(answer.ended.wait(), timeout)
        return answer

    async def unary(self, path: str, message: bytes, extra: Iterable[tuple[bytes, bytes]] = ()) -> Answer:
        stream_id = self.start(path, extra)
        self.send(stream_id, message_frame(message), end_stream=True)
        return await self.finish(stream_id)

    async def stream(self, path: str, messages: Iterable[bytes], extra: Iterable[tuple[bytes, bytes]] = ()) -> Answer:
        """Send all messages and the end of the stream, and wait for its end."""
        stream_id = self.start(path, extra)
        self.send(stream_id, b"".join(message_frame(message) for message in messages), end_stream=True)
        return await self.finish(stream_id)
