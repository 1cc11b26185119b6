"""An etcd that speaks HTTP/2 and gRPC by the book and answers what a test says, when the test says."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

from oarlock.api import proto


def message(name: str, **fields: Any) -> Any:
    return proto.message(f"etcdserverpb.{name}")(**fields)


def framed(made: Any) -> bytes:
    data: bytes = made.SerializeToString()
    return b"\0" + len(data).to_bytes(4, "big") + data


class Call:
    """One call that has come. `method` is the last part of its path, `requests` what was sent so far."""

    def __init__(self, connection: Connection, stream_id: int, headers: dict[str, str]) -> None:
        self.connection = connection
        self.id = stream_id
        self.headers = headers
        self.method = headers[":path"].rpartition("/")[2]
        self.body = bytearray()
        self.open = True
        self._begun = False

    def messages(self, kind: str) -> list[Any]:
        """What was sent and not taken yet."""
        made = []
        while len(self.body) >= 5 and len(self.body) >= 5 + int.from_bytes(self.body[1:5], "big"):
            size = int.from_bytes(self.body[1:5], "big")
            made.append(proto.message(f"etcdserverpb.{kind}").FromString(bytes(self.body[5 : 5 + size])))
            del self.body[: 5 + size]
        return made

    def begin(self) -> None:
        if not self._begun:
            self._begun = True
            self.connection.h2.send_headers(self.id, [(":status", "200"), ("content-type", "application/grpc")])

    def send(self, *made: Any) -> None:
        self.begin()
        for each in made:
            self.connection.h2.send_data(self.id, framed(each))
        self.connection.flush()

    def end(self, status: int = 0, text: str = "") -> None:
        self.begin()
        self.connection.h2.send_headers(
            self.id, [("grpc-status", str(status)), ("grpc-message", text)], end_stream=True
        )
        self.connection.flush()

    def answer(self, made: Any) -> None:
        self.send(made)
        self.end()


class Connection(asyncio.Protocol):
    def __init__(self, server: FakeEtcd) -> None:
        self.server = server
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.calls: dict[int, Call] = {}
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.connections.append(self)
        self.server.connected.set()
        if not self.server.mute:
            self.h2.initiate_connection()
            self.h2.update_settings(self.server.settings)
            self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()

    def flush(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(self.h2.data_to_send())

    def data_received(self, data: bytes) -> None:
        if self.server.mute:
            return
        for event in self.h2.receive_data(data):
            match event:
                case h2.events.RequestReceived():
                    assert event.stream_id is not None and event.headers is not None
                    headers = {str(name): str(value) for name, value in event.headers}
                    call = self.calls[event.stream_id] = Call(self, event.stream_id, headers)
                    self.server.calls.append(call)
                    self.server.counts[call.method] += 1
                case h2.events.DataReceived():
                    assert event.stream_id is not None and event.data is not None
                    self.calls[event.stream_id].body += event.data
                    self.h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
                    if len(self.calls[event.stream_id].body) >= 5:
                        self.server.handle(self.calls[event.stream_id])
                case h2.events.StreamReset():
                    self.calls[event.stream_id].open = False
                case _:
                    pass
        self.flush()


class FakeEtcd:
    """`answers` has a function for each method; a call of any other hangs. `mute`: accept, and say nothing at all."""

    def __init__(self, answers: dict[str, Callable[[Call], None]] | None = None, *, mute: bool = False) -> None:
        self.answers = answers if answers is not None else {}
        self.mute = mute
        self.settings: dict[int, int] = {}
        self.connections: list[Connection] = []
        self.calls: list[Call] = []
        self.counts: Counter[str] = Counter()
        self.connected = asyncio.Event()
        self.came = asyncio.Condition()
        self.endpoint = ""

    def handle(self, call: Call) -> None:
        answer = self.answers.get(call.method)
        if answer is not None:
            answer(call)

    async def until(self, condition: Callable[[], object]) -> None:
        """Generous: tests wait for what must come."""
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.005)


@asynccontextmanager
async def serving(servers: Sequence[FakeEtcd], host: str = "127.0.0.1") -> AsyncIterator[list[str]]:
    """Listen; gives the endpoints."""
    loop = asyncio.get_running_loop()
    listeners = []
    try:
        for server in servers:

            def connect(server: FakeEtcd = server) -> Connection:
                return Connection(server)

            listeners.append(await loop.create_server(connect, host, 0))
            port = listeners[-1].sockets[0].getsockname()[1]
            server.endpoint = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        yield [server.endpoint for server in servers]
    finally:
        for listener in listeners:
            listener.close()
        for server in servers:
            for connection in server.connections:
                connection.transport.abort()


def put_answer(call: Call) -> None:
    call.answer(message("PutResponse"))


def range_answer(call: Call) -> None:
    call.answer(message("RangeResponse"))
