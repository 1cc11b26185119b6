"""Servers that hang, go away, refuse or flood; one connection with many calls; a client that is closed meanwhile."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from tests.support.fake_etcd import Call, FakeEtcd, message, put_answer, range_answer, serving

from oarlock.client import Client, DeadlineExceeded, EtcdError, Outcome, Unavailable
from oarlock.client.channel import STREAM_BYTES_MAX, WINDOW_BYTES, Channel

pytestmark = pytest.mark.timeout(120)
SLOW = {"keepalive": 60.0, "attempt_timeout": 0.2, "connect_timeout": 0.3}


def synchronous(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))  # type: ignore[arg-type]

    return run


@synchronous
async def test_a_write_goes_elsewhere_if_an_endpoint_accepts_and_says_nothing() -> None:
    """As the port of a process that is stopped: the kernel takes the connection. Nothing was sent, so it is safe."""
    silent, good = FakeEtcd(mute=True), FakeEtcd({"Put": put_answer})
    async with serving([silent, good]) as endpoints, Client(endpoints, timeout=30, **SLOW) as client:
        await client.put("a", "b")
        assert good.counts["Put"] == 1
        await silent.until(lambda: silent.connections[0].lost.is_set())


@synchronous
async def test_after_a_write_without_an_answer_the_next_call_asks_another_member() -> None:
    stuck, good = FakeEtcd({}), FakeEtcd({"Put": put_answer})
    async with serving([stuck, good]) as endpoints, Client(endpoints, timeout=30, **SLOW) as client:
        with pytest.raises(DeadlineExceeded) as error:
            await client.put("a", "b", timeout=0.2)
        assert error.value.outcome is Outcome.UNKNOWN
        await client.put("a", "c", timeout=30)
        assert (stuck.counts["Put"], good.counts["Put"]) == (1, 1)


@synchronous
async def test_leaving_a_member_ends_no_other_call() -> None:
    held: list[Call] = []
    slow, good = FakeEtcd({"Put": held.append}), FakeEtcd({"Range": range_answer})
    async with serving([slow, good]) as endpoints, Client(endpoints, timeout=30, **SLOW) as client:
        write = asyncio.create_task(client.put("a", "b"))
        await slow.until(lambda: held)
        assert await client.get("a") is None  # the first member is silent for longer than an attempt may take
        assert good.counts["Range"] == 1
        put_answer(held[0])
        assert await write is None
        await slow.until(lambda: slow.connections[0].lost.is_set())  # left, and closed with its last call


@synchronous
async def test_more_calls_than_a_connection_takes_wait_for_their_turn() -> None:
    most = 0

    def answer(call: Call) -> None:
        nonlocal most
        most = max(most, sum(each.open for each in call.connection.calls.values()))

        def later() -> None:
            put_answer(call)
            call.open = False

        asyncio.get_running_loop().call_later(0.001, later)

    server = FakeEtcd({"Put": answer})
    server.settings = {3: 2}  # SETTINGS_MAX_CONCURRENT_STREAMS
    async with serving([server]) as endpoints, Client(endpoints, timeout=30, **SLOW) as client:
        await asyncio.gather(*(client.put("a", str(n)) for n in range(50)))
        assert server.counts["Put"] == 50 and len(server.connections) == 1 and most <= 2
        server.answers = {}
        stuck = [asyncio.create_task(client.put("a", "b")) for _ in range(2)]
        await server.until(lambda: server.counts["Put"] == 52)
        waiting = asyncio.create_task(client.put("a", "never", timeout=30))
        with pytest.raises(DeadlineExceeded) as error:
            await client.put("a", "never", timeout=0.1)
        assert error.value.outcome is Outcome.NOT_EXECUTED, "it never had its turn"
        server.answers = {"Put": put_answer}
        await asyncio.wait_for(waiting, 30)  # on the next connection: nothing of it was sent on the first
        for task in stuck:
            task.cancel()


@synchronous
async def test_a_server_that_goes_away_ends_what_it_has_begun() -> None:
    """GOAWAY names the last call that it looks at: that one is answered, later ones are for another connection."""
    held: list[Call] = []
    server = FakeEtcd({"Put": held.append})
    async with serving([server]) as endpoints, Client(endpoints, timeout=30, **SLOW) as client:
        first = asyncio.create_task(client.put("a", "1"))
        await server.until(lambda: len(held) == 1)
        second = asyncio.create_task(client.put("a", "2"))
        await server.until(lambda: len(held) == 2)
        server.answers = {"Put": put_answer}
        going = server.connections[0]
        go_away = b"\0\0\x08\x07\0\0\0\0\0" + held[0].id.to_bytes(4, "big") + b"\0\0\0\0"
        going.transport.write(go_away)
        await second
        assert server.counts["Put"] == 3 and len(server.connections) == 2
        put_answer(held[0])
        assert await first is None
        await server.until(going.lost.is_set)


@synchronous
async def test_a_large_answer_comes_whole_after_goaway() -> None:
    held: list[Call] = []
    server = FakeEtcd({"Range": held.append})
    value = bytes(WINDOW_BYTES * 3)
    options = {**SLOW, "attempt_timeout": 30.0}
    async with serving([server]) as endpoints, Client(endpoints, timeout=30, **options) as client:
        reading = asyncio.create_task(client.get("a"))
        await server.until(lambda: held)
        connection = server.connections[0]
        connection.transport.write(b"\0\0\x08\x07\0\0\0\0\0\x7f\xff\xff\xff\0\0\0\0")
        kv = {"key": b"a", "value": value, "mod_revision": 2}
        data = message("RangeResponse", kvs=[kv], count=1).SerializeToString()
        body = b"\0" + len(data).to_bytes(4, "big") + data
        held[0].begin()
        while body:
            room = min(connection.h2.local_flow_control_window(held[0].id), 16384)
            if room:
                connection.h2.send_data(held[0].id, body[:room])
                body = body[room:]
                connection.flush()
            await asyncio.sleep(0)
        held[0].end()
        found = await reading
        assert found is not None and found.value == value


@synchronous
async def test_streams_that_nobody_reads_stop_no_other_call_and_hold_a_bound() -> None:
    server = FakeEtcd({"Range": range_answer})
    async with serving([server]) as endpoints, Client(endpoints, timeout=30, **SLOW) as client:
        channel = await client.channel()
        piece = message("WatchResponse", events=[{"kv": {"key": b"k", "value": bytes(16_000)}}])
        for _ in range(24):
            stream = await channel.begin("/etcdserverpb.Watch/Watch", (), None)
            await stream.send(message("WatchRequest", progress_request={}).SerializeToString())
        await server.until(lambda: server.counts["Watch"] == 24)
        connection = server.connections[0]
        sent = dict.fromkeys(connection.calls, 0)
        idle = 0
        while idle < 200:  # until no window opens any more
            idle += 1
            for call in connection.calls.values():
                while connection.h2.local_flow_control_window(call.id) > 17_000:
                    call.send(piece)
                    sent[call.id] += 16_000
                    idle = 0
            await asyncio.sleep(0.001)
        most = STREAM_BYTES_MAX + 2 * WINDOW_BYTES
        assert all(STREAM_BYTES_MAX // 2 < size < most for size in sent.values()), sent
        assert await client.get("a", timeout=20) is None
        assert len(server.connections) == 1


@synchronous
async def test_a_stream_that_is_given_up_gives_its_window_back() -> None:
    server = FakeEtcd({"Range": range_answer})
    async with serving([server]) as endpoints, Client(endpoints, timeout=30, **SLOW) as client:
        channel = await client.channel()
        for round_number in range(40):  # 40 times what waits of one is more than the connection's window
            stream = await channel.begin("/etcdserverpb.Watch/Watch", (), None)
            await stream.send(message("WatchRequest", progress_request={}).SerializeToString())
            await server.until(lambda wanted=round_number + 1: server.counts["Watch"] == wanted)
            call = server.calls[-1]
            for _ in range(2000):
                if server.connections[0].h2.local_flow_control_window(call.id) > 1000:
                    call.send(message("WatchResponse", watch_id=7, cancel_reason="x" * 500))
            stream.cancel()
        assert await client.get("a", timeout=20) is None and len(server.connections) == 1


@synchronous
async def test_a_client_closed_while_it_connects_leaves_no_connection() -> None:
    server = FakeEtcd(mute=True)
    async with serving([server]) as endpoints:
        client = Client(endpoints, timeout=30, connect_timeout=30)
        call = asyncio.create_task(client.get("a"))
        await server.connected.wait()
        await client.aclose()
        connection = server.connections[0]
        connection.h2.initiate_connection()
        connection.flush()  # it comes about after all
        with pytest.raises(EtcdError, match="client is closed"):
            await call
        await server.until(connection.lost.is_set)
        with pytest.raises(EtcdError, match="client is closed") as error:
            await client.put("a", "b")
        assert error.value.outcome is Outcome.NOT_EXECUTED
        await client.aclose()


@synchronous
async def test_a_cancelled_call_leaves_nothing_behind() -> None:
    server = FakeEtcd({})
    async with serving([server]) as endpoints, Client(endpoints, timeout=30, **SLOW) as client:
        call = asyncio.create_task(client.put("a", "b"))
        await server.until(lambda: server.calls)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await server.until(lambda: not server.calls[0].open)
        channel = await client.channel()
        assert not channel._streams


@pytest.mark.parametrize("seconds", [1e6, 1e9, 1e15, math.inf])
def test_any_time_limit_is_one_that_grpc_can_say(seconds: float) -> None:
    @synchronous
    async def run() -> None:
        server = FakeEtcd({"Put": put_answer})
        async with serving([server]) as endpoints, Client(endpoints, timeout=seconds) as client:
            await client.put("a", "b")
            said = server.calls[-1].headers.get("grpc-timeout", "1H")
            assert len(said) <= 9 and said[:-1].isdigit() and said[-1] in "HMSmun"

    run()


@pytest.mark.parametrize(
    "arguments",
    [
        {"timeout": math.nan}, {"timeout": 0}, {"keepalive": -1}, {"endpoints": []}, {"endpoints": "h:99999"},
        {"endpoints": "h:x"}, {"endpoints": "ftp://h"}, {"endpoints": "h:1,g:2"}, {"endpoints": "http://"},
        {"endpoints": "unix://"}, {"user": "ann"},
    ],
)  # fmt: skip
def test_what_makes_no_client_is_said_at_once(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"give|endpoint"):
        Client(**arguments)


def test_an_endpoint_with_a_password_is_not_repeated() -> None:
    with pytest.raises(ValueError, match="user") as error:
        Client("http://ann:secret@host:1")
    assert "secret" not in str(error.value)


@synchronous
async def test_a_numeric_address_of_version_6() -> None:
    server = FakeEtcd({"Put": put_answer})
    try:
        async with serving([server], "::1") as endpoints, Client(endpoints) as client:
            await client.put("a", "b")
            assert server.calls[0].headers[":authority"] == endpoints[0]
    except OSError:
        pytest.skip("no IPv6 on this machine")


@synchronous
async def test_a_unix_socket_with_tls_is_never_spoken_to_in_the_clear(tmp_path: Path) -> None:
    heard = bytearray()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.read(3))
        writer.close()

    listener = await asyncio.start_unix_server(listen, tmp_path / "s")
    async with listener, Client(f"unixs://{tmp_path}/s", timeout=0.5) as client:
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await client.get("a")
    assert heard[:1] == b"\x16", "a TLS handshake"


@synchronous
async def test_a_token_under_an_older_revision_of_the_rights_is_renewed() -> None:
    """A JWT says under which rights it was given; etcd's own client asks for another when they have changed."""
    tokens: list[str] = []

    def authenticate(call: Call) -> None:
        tokens.append(f"t{len(tokens)}")
        call.answer(message("AuthenticateResponse", token=tokens[-1]))

    def put(call: Call) -> None:
        if call.headers.get("token") != "t1":
            call.end(3, "etcdserver: revision of auth store is old")
        else:
            put_answer(call)

    server = FakeEtcd({"Authenticate": authenticate, "Put": put})
    async with serving([server]) as endpoints, Client(endpoints, user="ann", password="x", timeout=30) as client:
        await asyncio.gather(*(client.put("a", "b") for _ in range(20)))
        assert server.counts["Authenticate"] == 2, "calls that need a token at the same time share it"


@synchronous
async def test_what_is_no_key_or_condition_is_told_before_it_is_sent() -> None:
    async with Client("127.0.0.1:1") as client:
        with pytest.raises(TypeError, match="bytes or str, not int"):
            await client.put("a", 7)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="prefix=True"):
            await client.range()
        with pytest.raises(ValueError, match="prefix=True"):
            await client.delete("")
        with pytest.raises(ValueError, match="prefix=True"):
            client.watch()
        with pytest.raises(ValueError, match="not both"):
            await client.range("a", prefix=True, range_end="b")
        with pytest.raises(TypeError, match="conditions are like"):
            await client.txn(when=[True])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="Put, Get"):
            await client.txn(then=["put"])  # type: ignore[list-item]
        for ttl in (0, -1, 10**10):
            with pytest.raises(ValueError, match="at least one second"):
                client.lease(ttl)
        with pytest.raises(TypeError, match="whole seconds"):
            client.lease(1.5)  # type: ignore[arg-type]


@synchronous
async def test_a_channel_closed_in_the_middle_of_a_ping() -> None:
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
    server = FakeEtcd({})
    async with serving([server]) as endpoints:
        channel = await Channel.connect(endpoints[0], None, timeout_s=5, keepalive_s=0.01, keepalive_timeout_s=5)
        stream = await channel.begin("/etcdserverpb.Watch/Watch", (), None)
        server.connections[0].transport.pause_reading()
        channel.close()
        await asyncio.wait({channel.closed}, timeout=10)
        assert channel.closed.done() and stream.ended
    assert not problems
