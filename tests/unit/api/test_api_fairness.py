"""One client must not starve another: what is measured is the order in which requests are served, never a time.

Requests of several clients are put before their connections in one turn of the event loop, so what the sockets do has
no part in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import ngh2
import pytest
from tests.support.h2_client import PREFACE, SETTINGS, H2Client, frame, message_frame
from tests.support.single_backend import SingleBackend, make_machine

from oarlock.api import proto
from oarlock.api.grpc import Code, GrpcConnection, Method
from oarlock.api.http2 import connection as h2_connection
from oarlock.api.limits import Limits
from oarlock.api.metrics import Metrics
from oarlock.api.server import ApiServer, start_api


class _Transport(asyncio.Transport):
    """Takes everything, and remembers whether it is read."""

    def __init__(self, name: str) -> None:
        super().__init__({"peername": (name, 1)})
        self.reading = True
        self.written = bytearray()
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def get_write_buffer_size(self) -> int:
        return 0

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """The test hands bytes over to whoever it likes."""


class Client:
    """One connection whose bytes the test hands over itself."""

    def __init__(self, server: ApiServer, name: str) -> None:
        self.h2 = ngh2.Connection(ngh2.Role.CLIENT, ngh2.Configuration())
        self.h2.initiate_connection({ngh2.Setting.ENABLE_PUSH: 0})
        self.name = name
        self.connection = GrpcConnection(server)
        self.transport = _Transport(name)
        self.connection.connection_made(self.transport)
        self.connection.data_received(self.h2.data_to_send())
        self.exchange()

    def exchange(self) -> list[int]:
        """Take what was written; the streams that got an answer in full."""
        data, self.transport.written = bytes(self.transport.written), bytearray()
        self.h2.receive_data(data)
        return [e.stream_id for e in self.h2.events() if isinstance(e, ngh2.TrailersReceived)]

    def calls(self, count: int, path: str = "/test.Test/Note") -> bytes:
        """The bytes of so many requests, one after the other, each with its number."""
        out = bytearray()
        for number in range(count):
            stream = self.h2.send_request(
                [
                    (b":method", b"POST"),
                    (b":scheme", b"http"),
                    (b":path", path.encode()),
                    (b":authority", b"x"),
                    (b"content-type", b"application/grpc"),
                    (b"te", b"trailers"),
                ]
            )
            self.h2.send_data(stream, message_frame(f"{self.name}{number}".encode()), end_stream=True)
            out += self.h2.data_to_send()
        return bytes(out)


async def _with_server(work: Callable[[ApiServer, list[str]], Any], **limits: Any) -> None:
    served: list[str] = []

    def note(call: Any, message: bytes) -> None:
        served.append(message.decode())
        call.reply(message)

    methods = [Method("test.Test", "Note", unary=note)]
    server = await start_api(
        SingleBackend(make_machine()), [], Metrics(), limits=Limits(**limits), methods=methods, engine="ngh2"
    )
    try:
        await work(server, served)
    finally:
        for connection in list(server._http2):
            connection.connection_lost(None)
        await server.close(0)
        assert server.open_streams == 0 and not server._taking_turns


async def _until(condition: Callable[[], bool]) -> int:
    """Passes of the event loop until `condition` holds."""
    for passes in range(1000):
        if condition():
            return passes
        await asyncio.sleep(0)
    raise AssertionError("never")


def test_a_flood_does_not_come_before_everybody_else() -> None:
    """1000 requests of one client and one request of another, which came after them."""

    async def work(server: ApiServer, served: list[str]) -> None:
        limits = server.limits
        flood, light = Client(server, "flood"), Client(server, "light")
        flood.connection.data_received(flood.calls(1000))
        assert len(served) == limits.requests_per_turn_max
        assert not flood.transport.reading, "it is read on while its requests wait"
        light.connection.data_received(light.calls(1))
        assert served[-1] == "light0", "the light client waits for the flood"
        assert light.transport.reading
        await _until(lambda: len(served) == 1001)
        assert [s for s in served if s != "light0"] == [f"flood{n}" for n in range(1000)], "in order"
        assert flood.transport.reading
        for _ in range(3):
            await asyncio.sleep(0)  # the answers are written at the end of a turn
        assert len(flood.exchange()) == 1000

    asyncio.run(_with_server(work))


def test_light_clients_are_served_while_many_floods_wait() -> None:
    async def work(server: ApiServer, served: list[str]) -> None:
        limits = server.limits
        floods = [Client(server, f"f{n}-") for n in range(20)]
        for flood in floods:
            flood.connection.data_received(flood.calls(900))
        taken = server.open_streams + len(served)
        assert taken < 20 * 900, "nothing was refused"
        bound = limits.requests_per_turn_total_max + 20 * limits.requests_light_max
        assert len(served) <= bound, "the turn has no end"
        rounds = 0
        light = Client(server, "light")
        while any(flood.connection.waiting for flood in floods):
            before = len(served)
            light.connection.data_received(light.calls(1))
            assert len(served) == before + 1, "a light request waits"
            await asyncio.sleep(0)
            rounds += 1
            assert len(served) - before <= bound + 1
            # the floods take turns: none is far ahead of another
            shares = [sum(s.startswith(f.name) for s in served) for f in floods if f.connection.waiting]
            assert not shares or max(shares) - min(shares) <= 2 * limits.requests_per_turn_max, shares
        assert rounds >= 3
        assert len(served) == taken + rounds

    asyncio.run(_with_server(work))


def test_streams_are_not_held_up_by_a_flood_of_requests() -> None:
    """Keep-alives of leases come on streams: each message is handed over at once, whatever waits."""

    async def work(server: ApiServer, served: list[str]) -> None:
        flood, other = Client(server, "flood"), Client(server, "other")
        grant = proto.message("etcdserverpb.LeaseKeepAliveRequest")(ID=7).SerializeToString()
        stream = other.h2.send_request(
            [
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", b"/etcdserverpb.Lease/LeaseKeepAlive"),
                (b":authority", b"x"),
                (b"content-type", b"application/grpc"),
            ]
        )
        other.connection.data_received(other.h2.data_to_send())
        for _ in range(10):
            await asyncio.sleep(0)
        flood.connection.data_received(flood.calls(1000))
        other.h2.send_data(stream, message_frame(grant))
        other.connection.data_received(other.h2.data_to_send())
        answered = 0
        for _ in range(50):
            await asyncio.sleep(0)
            other.h2.receive_data(bytes(other.transport.written))
            other.transport.written.clear()
            if any(isinstance(event, ngh2.DataReceived) for event in other.h2.events()):
                answered = len(served)
                break
        assert 0 < answered < 1000, "the keep-alive waited for the flood, or got no answer"
        await _until(lambda: len(served) == 1000)

    asyncio.run(_with_server(work, requests_per_turn_max=20))


def test_waiting_requests_end_with_their_client() -> None:
    async def work(server: ApiServer, served: list[str]) -> None:
        flood = Client(server, "flood")
        flood.connection.data_received(flood.calls(1000))
        for stream in range(1, 2000, 2):
            flood.h2.reset_stream(stream, 8)
        before = len(served)
        flood.connection.data_received(flood.h2.data_to_send())
        await _until(lambda: not flood.connection.waiting)
        assert len(served) == before, "cancelled requests were served"
        assert server.open_streams == 0
        again = Client(server, "again")
        again.connection.data_received(again.calls(1000))
        again.connection.connection_lost(None)
        before = len(served)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(served) == before and not server._taking_turns

    asyncio.run(_with_server(work))


def test_nobody_holds_all_streams(run: Any, serving: Any) -> None:
    """Half of all requests under way, and more, are for those who have fewer than their equal share."""

    async def work() -> None:
        async with serving("ngh2", streams_total_max=40, requests_light_max=2) as served:
            async with await H2Client.connect(served.url) as greedy, await H2Client.connect(served.url) as other:
                assert (await other.unary("/test.Test/Echo", b"x")).code == 0  # it counts from now on
                held = [greedy.start("/test.Test/Wait") for _ in range(40)]
                for stream in held:
                    greedy.send(stream, message_frame(b"x"), end_stream=True)
                await served.until(lambda: served.refused("share") > 0, "the greedy one is stopped")
                await served.until(lambda: len(served.waiting) >= 20, "it has its share")
                assert len(served.waiting) == 20
                for _ in range(15):
                    assert (await other.unary("/test.Test/Echo", b"x")).code == 0
                refused = [s for s in held if greedy.answers[s].reset is not None]
                assert len(refused) == 20
                assert {greedy.answers[s].reset for s in refused} == {7}  # REFUSED_STREAM: safe to send again
                for call in served.waiting:
                    call.reply(b"")

    run(work())


PING = frame(6, 0, 0, b"12345678")


@pytest.mark.parametrize("busy", [False, True])
def test_pings_that_come_too_often(run: Any, serving: Any, engine: str, busy: bool) -> None:
    """As grpc-go with etcd's settings: three strikes, and a GOAWAY that clients know how to read."""

    async def work() -> None:
        async with serving(engine) as served:
            host, port = served.url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(PREFACE + SETTINGS)
            if busy:
                hold = await H2Client.connect(served.url)
                hold.send(hold.start("/test.Test/Wait"), message_frame(b"x"), end_stream=True)
                await served.until(lambda: bool(served.waiting), "the request is there")
                writer.close()
                reader, writer = hold.reader, hold.writer
                hold._task.cancel()
            for _ in range(h2_connection.PING_STRIKES_MAX + 1):
                writer.write(PING)
                await asyncio.sleep(0.02)
            assert served.refused("pings") == 0
            writer.write(PING)
            data = b""
            async with asyncio.timeout(60):
                while piece := await reader.read(65536):
                    data += piece
            assert served.refused("pings") == 1
            assert b"too_many_pings" in data
            writer.close()

    run(work())


def test_a_client_that_gets_answers_may_ping(run: Any, serving: Any, engine: str) -> None:
    """Clients of gRPC measure the way to the server with pings while they get data."""

    async def work() -> None:
        async with serving(engine) as served, await H2Client.connect(served.url) as client:
            for _ in range(12):
                assert (await client.unary("/test.Test/Echo", b"x")).code == 0
                client.h2.ping()
                client.flush()
            assert (await client.unary("/test.Test/Echo", b"x")).code == 0
            assert served.refused("pings") == 0

    run(work())


def test_a_client_may_ping_while_a_long_answer_comes(run: Any, serving: Any, engine: str) -> None:
    """As grpc-go does with every window of a big range: the answer was given once, and goes out in many pieces."""

    async def work() -> None:
        async with serving(engine) as served, await H2Client.connect(served.url) as client:
            stream = client.start("/test.Test/Echo")
            client.send(stream, message_frame(b"x" * 1_000_000), end_stream=True)
            answer, seen, pings = client.answers[stream], 0, 0
            async with asyncio.timeout(120):
                while not answer.ended.is_set():
                    if len(answer.body) > seen + 60_000:
                        seen = len(answer.body)
                        client.h2.ping()
                        client.flush()
                        pings += 1
                    await asyncio.sleep(0)
            assert answer.code == 0 and len(answer.body) > 1_000_000
            assert pings > 6
            assert served.refused("pings") == 0

    run(work())


def test_pings_at_a_decent_pace(run: Any, serving: Any, engine: str) -> None:
    async def work() -> None:
        async with serving(engine, keepalive_min_s=0.001) as served, await H2Client.connect(served.url) as client:
            stream = client.start("/test.Test/Wait")
            client.send(stream, message_frame(b"x"), end_stream=True)
            await served.until(lambda: bool(served.waiting), "the request is there")
            for _ in range(10):
                client.h2.ping()
                client.flush()
                await asyncio.sleep(0.01)
            served.waiting[0].reply(b"y")
            assert (await client.finish(stream)).code == Code.OK
            assert served.refused("pings") == 0

    run(work())


def test_one_host_does_not_take_all_connections() -> None:
    async def work(server: ApiServer, served: list[str]) -> None:
        opened: dict[str, list[Any]] = {}

        def connect(host: str) -> bool:
            sniffer, transport = server._accept(), _Transport(host)
            sniffer.connection_made(transport)
            if not transport.closed:
                opened.setdefault(host, []).append(sniffer)
            return not transport.closed

        def leave(host: str, count: int) -> None:
            for _ in range(count):
                opened[host].pop().connection_lost(None)

        taken = sum(connect("greedy") for _ in range(200))
        assert taken == 90, "the last tenth is for others"
        assert all(connect("a") for _ in range(4)) and all(connect("b") for _ in range(4)), "few are always served"
        assert not connect("greedy")
        leave("greedy", 40)
        assert server._hosts == {"greedy": 50, "a": 4, "b": 4}
        assert not connect("greedy"), "it has more than its third"
        leave("greedy", 20)
        assert connect("greedy")
        # What a connection turns out to speak is no way around.
        sniffer = opened["a"].pop()
        sniffer.data_received(PREFACE + SETTINGS)
        assert server._hosts["a"] == 4 and server.open_connections == 1
        next(iter(server._http2)).connection_lost(None)
        assert server._hosts["a"] == 3
        for host, sniffers in opened.items():
            leave(host, len(sniffers))
        assert not server._hosts and not server._from

    asyncio.run(_with_server(work, connections_max=100, connections_light_max=5))
