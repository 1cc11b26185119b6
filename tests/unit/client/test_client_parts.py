"""Parts of the client that need no server: errors, ranges, frames that come in pieces, servers that break the rules."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest

from oarlock.api.grpc.status import Code
from oarlock.client import Client, Compacted, DeadlineExceeded, EtcdError, Outcome, Unavailable
from oarlock.client.channel import MESSAGE_BYTES_MAX
from oarlock.client.errors import error_of
from oarlock.client.model import RangeRequest, prefix_end


def test_errors_say_whether_the_request_may_have_run() -> None:
    assert error_of(Code.UNAVAILABLE, "x").outcome is Outcome.UNKNOWN
    assert error_of(Code.UNAVAILABLE, "x", sent=False).outcome is Outcome.NOT_EXECUTED
    assert error_of(Code.INVALID_ARGUMENT, "x").outcome is Outcome.NOT_EXECUTED
    assert error_of(Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests").outcome is Outcome.NOT_EXECUTED
    assert isinstance(error_of(Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted"), Compacted)


def test_the_end_of_a_prefix() -> None:
    assert prefix_end(b"a") == b"b"
    assert prefix_end(b"a\xff\xff") == b"b"
    assert prefix_end(b"\xff") == prefix_end(b"") == b"\0"


class Server(asyncio.Protocol):
    """Speaks HTTP/2 by the book; what it answers is up to the test."""

    def __init__(self, answer: Callable[[Server, int], None]) -> None:
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.answer = answer
        self.requests = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.h2.initiate_connection()
        self.transport.write(self.h2.data_to_send())

    def data_received(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.StreamEnded):
                self.requests += 1
                assert event.stream_id is not None
                self.answer(self, event.stream_id)
        if not self.transport.is_closing():
            self.transport.write(self.h2.data_to_send())

    def reply(self, stream_id: int, body: bytes, status: str = "0", text: str = "") -> None:
        self.h2.send_headers(stream_id, [(":status", "200"), ("content-type", "application/grpc")])
        self.h2.send_data(stream_id, body)
        self.h2.send_headers(stream_id, [("grpc-status", status), ("grpc-message", text)], end_stream=True)


def against(
    answer: Callable[[Server, int], None], use: Callable[[Client, list[Server]], Awaitable[None]], **options: Any
) -> None:
    async def run() -> None:
        made: list[Server] = []

        def factory() -> Server:
            made.append(Server(answer))
            return made[-1]

        listener = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        async with Client(f"127.0.0.1:{port}", **{"timeout": 60, **options}) as client:
            await use(client, made)
        listener.close()

    asyncio.run(run())


EMPTY_RANGE = b"\0\0\0\0\0"


def test_an_answer_in_pieces_is_one_message() -> None:
    def answer(server: Server, stream_id: int) -> None:
        server.h2.send_headers(stream_id, [(":status", "200"), ("content-type", "application/grpc")])
        for byte in EMPTY_RANGE:
            server.h2.send_data(stream_id, bytes([byte]))
        server.h2.send_headers(stream_id, [("grpc-status", "0")], end_stream=True)

    async def use(client: Client, servers: list[Server]) -> None:
        assert await client.get("a") is None

    against(answer, use)


def test_a_write_that_was_refused_unread_is_sent_again() -> None:
    seen: list[int] = []

    def answer(server: Server, stream_id: int) -> None:
        seen.append(stream_id)
        if len(seen) == 1:
            server.h2.reset_stream(stream_id, 7)  # REFUSED_STREAM: it was not looked at
        else:
            server.reply(stream_id, EMPTY_RANGE)

    async def use(client: Client, servers: list[Server]) -> None:
        assert await client.put("a", "b") is None
        assert len(seen) == 2

    against(answer, use)


def test_a_write_that_may_have_run_is_not_sent_again() -> None:
    seen: list[int] = []

    def answer(server: Server, stream_id: int) -> None:
        seen.append(stream_id)
        server.transport.abort()

    async def use(client: Client, servers: list[Server]) -> None:
        with pytest.raises(Unavailable) as error:
            await client.put("a", "b")
        assert error.value.outcome is Outcome.UNKNOWN
        assert len(seen) == 1
        with pytest.raises(EtcdError):
            await client.get("a", timeout=2)
        assert len(seen) > 2, "a read is asked again"

    against(answer, use)


def test_a_server_that_hangs_is_left() -> None:
    def answer(server: Server, stream_id: int) -> None:
        server.data_received = lambda data: None  # type: ignore[method-assign]

    async def use(client: Client, servers: list[Server]) -> None:
        with pytest.raises(EtcdError, match=r"ping|no answer"):
            await client.put("a", "b")

    against(answer, use, keepalive=0.1, keepalive_timeout=0.2)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"\0" + (MESSAGE_BYTES_MAX + 1).to_bytes(4, "big"), "at most"),
        (b"\1\0\0\0\1x", "compressed"),
        (b"\0\0\0\0\2\xff\xff", "."),
        (b"", "without an answer"),
    ],
)
def test_nonsense_is_an_error_and_takes_no_memory(body: bytes, text: str) -> None:
    async def use(client: Client, servers: list[Server]) -> None:
        with pytest.raises(Exception, match=text):
            await client.get("a", timeout=5)

    against(lambda server, stream_id: server.reply(stream_id, body), use)


def test_a_status_with_a_text_of_any_characters() -> None:
    async def use(client: Client, servers: list[Server]) -> None:
        with pytest.raises(EtcdError, match="caf\u00e9 50%") as error:
            await client.get("a")
        assert error.value.code is Code.INTERNAL

    against(lambda server, stream_id: server.reply(stream_id, b"", "13", "caf%C3%A9 50%25"), use)


def test_a_big_request_waits_for_room() -> None:
    """Far more than one flow-control window."""

    def answer(server: Server, stream_id: int) -> None:
        server.reply(stream_id, EMPTY_RANGE)

    received = 0

    async def use(client: Client, servers: list[Server]) -> None:
        nonlocal received
        original = Server.data_received

        def counting(server: Server, data: bytes) -> None:
            nonlocal received
            for event in server.h2.receive_data(data):
                if isinstance(event, h2.events.DataReceived) and event.stream_id is not None:
                    received += len(event.data)
                    server.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                if isinstance(event, h2.events.StreamEnded) and event.stream_id is not None:
                    server.answer(server, event.stream_id)
            server.transport.write(server.h2.data_to_send())

        Server.data_received = counting  # type: ignore[method-assign]
        try:
            await client.put("a", b"x" * 1_000_000)
        finally:
            Server.data_received = original  # type: ignore[method-assign]
        assert received > 1_000_000

    against(answer, use)


def test_a_request_that_does_not_come_in_time_says_so() -> None:
    async def use(client: Client, servers: list[Server]) -> None:
        client._keepalive = 60
        with pytest.raises((DeadlineExceeded, Unavailable)):
            await client.get("a", timeout=0.3)

    against(lambda server, stream_id: None, use)


def test_messages_are_private_to_us() -> None:
    assert RangeRequest.DESCRIPTOR.full_name == "etcdserverpb.RangeRequest"
    from google.protobuf import descriptor_pool

    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("etcdserverpb.RangeRequest")
