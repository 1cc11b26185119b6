"""Abuse of the client port: every bound is reached, the server lives on and holds little memory. On both HTTP/2
engines."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import h2.connection
import pytest
from tests.support.h2_client import PREFACE, SETTINGS, H2Client, frame, message_frame

from oarlock.api.grpc.status import Code
from oarlock.api.http2 import ENGINES, engine_factory
from oarlock.api.limits import Limits

ECHO = "/test.Test/Echo"
HEADERS, RST_STREAM, SETTINGS_FRAME, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
MIB = 1024 * 1024


async def alive(served: Any) -> None:
    """A new client gets its answer."""
    async with await H2Client.connect(served.url) as client:
        assert (await client.unary(ECHO, b"alive")).messages == [b"alive"]


async def raw(served: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = served.url.rpartition("//")[2].rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def read_to_end(reader: asyncio.StreamReader) -> bytes:
    """What the server still sends before it closes; an abort counts as a close."""
    data = b""
    try:
        async with asyncio.timeout(60):
            while more := await reader.read(65536):
                data += more
    except ConnectionError:
        pass  # cut off hard, which is fine
    return data


def goaway_code(data: bytes) -> int | None:
    """The error code of the last GOAWAY in a stream of frames."""
    code, at = None, 0
    while at + 9 <= len(data):
        size = int.from_bytes(data[at : at + 3], "big")
        if data[at + 3] == GOAWAY:
            code = int.from_bytes(data[at + 13 : at + 17], "big")
        at += 9 + size
    return code


def request_block() -> bytes:
    """A header block for a valid unary request, as an uncompressed HPACK encoder would write it."""
    out = b""
    for name, value in (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", ECHO.encode()),
        (b":authority", b"x"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ):
        out += b"\x00" + bytes((len(name),)) + name + bytes((len(value),)) + value
    return out


FLOODS = {
    "ping": frame(PING, 0, 0, b"12345678"),
    "settings": frame(SETTINGS_FRAME, 0, 0),
}


def test_what_is_left_of_a_large_answer_is_not_copied_at_every_frame() -> None:
    """An answer of 50 MiB kept the event loop for minutes."""
    from oarlock.api.http2 import own_engine

    engine = own_engine.OwnEngine(_Silent(), Limits())
    stream = own_engine.Stream(1, 1 << 30)
    engine._streams[1] = stream
    engine._window = 1 << 30
    whole = bytes(range(256)) * 4096
    engine.body(1, whole)
    sent = bytearray()
    while stream.body:
        for left in stream.body:
            assert left is whole or (isinstance(left, memoryview) and left.obj is whole)
        sent += engine.take(100_000)
    sent += engine.take(1 << 30)
    payload = bytearray()
    at = 0
    while at < len(sent):
        size = int.from_bytes(sent[at : at + 3], "big")
        if sent[at + 3] == 0:
            payload += sent[at + 9 : at + 9 + size]
        at += 9 + size
    assert payload == whole


class _Silent:
    """A sink that nothing is told to."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: None


@pytest.mark.parametrize("kind", FLOODS)
def test_control_frame_flood(run: Any, serving: Any, engine: str, kind: str) -> None:
    async def work() -> None:
        async with serving(engine, control_frames_per_s=200) as served:
            reader, writer = await raw(served)
            writer.write(PREFACE + SETTINGS + FLOODS[kind] * 20_000)
            data = await read_to_end(reader)
            assert goaway_code(data) in (11, None)
            assert served.refused("flood") + served.refused("protocol") + served.refused("pings") == 1
            assert len(data) < 200_000, "the flood was answered in full"
            writer.close()
            await alive(served)

    run(work())


def test_rapid_reset(run: Any, serving: Any, engine: str) -> None:
    """CVE-2023-44487: requests cancelled as soon as they are made."""

    async def work() -> None:
        async with serving(engine, control_frames_per_s=200) as served:
            reader, writer = await raw(served)
            writer.write(PREFACE + SETTINGS)
            block = request_block()
            for n in range(5_000):
                writer.write(
                    frame(HEADERS, END_HEADERS, 2 * n + 1, block) + frame(RST_STREAM, 0, 2 * n + 1, b"\0\0\0\x08")
                )
            await read_to_end(reader)
            assert served.refused("flood") + served.refused("protocol") == 1
            assert served.server.open_streams == 0
            writer.close()
            await alive(served)

    run(work())


def test_continuation_flood(run: Any, serving: Any, engine: str) -> None:
    """CVE-2024-24549 and its kin: a header block without end."""

    async def work() -> None:
        async with serving(engine) as served:
            reader, writer = await raw(served)
            writer.write(PREFACE + SETTINGS + frame(HEADERS, 0, 1, request_block()))
            piece = b"\x00\x01x\x7f\x00" + b"v" * 127
            for n in range(2_000):
                name = b"%08d" % n
                writer.write(frame(CONTINUATION, 0, 1, b"\x00\x08" + name + piece[3:]))
            await read_to_end(reader)
            assert served.refused("protocol") + served.refused("flood") == 1
            writer.close()
            await alive(served)

    run(work())


def test_header_list_too_large(run: Any, serving: Any, engine: str) -> None:
    async def work() -> None:
        async with serving(engine, header_list_bytes_max=8192) as served, await H2Client.connect(served.url) as client:
            assert (await client.unary(ECHO, b"x", [(b"x-fits", b"v" * 4000)])).code == 0
            stream_id = client.start(ECHO, [(b"x-%d" % n, b"v" * 4000) for n in range(4)])
            try:
                client.send(stream_id, message_frame(b""), end_stream=True)
                answer = await client.finish(stream_id)
                assert answer.code != 0
            except (OSError, RuntimeError):
                pass  # the whole connection was cut, which is as good
            await alive(served)

    run(work())


def test_hpack_bomb(run: Any, serving: Any, engine: str) -> None:
    """One big entry in the dynamic table, named a thousand times."""

    async def work() -> None:
        async with serving(engine) as served:
            reader, writer = await raw(served)
            bomb = (
                request_block()
                + b"\x40\x01x\x7f"
                + bytes((0x80 + (3900 - 127) % 128, (3900 - 127) // 128))
                + b"v" * 3900
            )
            writer.write(PREFACE + SETTINGS + frame(HEADERS, END_HEADERS | END_STREAM, 1, bomb + b"\xbe" * 8000))
            data = await asyncio.wait_for(reader.read(65536), 60)
            assert data
            writer.close()
            await alive(served)

    run(work())


@pytest.mark.parametrize(
    "frames",
    [
        frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\0"),
        frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 2,
        frame(0, 0, 1, b"x"),
        frame(0, 0, 0, b"x"),
        frame(HEADERS, END_HEADERS, 2, request_block()),
        frame(HEADERS, END_HEADERS, 0, request_block()),
        frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff"),
        frame(SETTINGS_FRAME, 0, 0, b"\0\x04\xff\xff\xff\xff"),
        frame(SETTINGS_FRAME, 0, 0, b"123"),
        frame(SETTINGS_FRAME, 0, 1),
        frame(PING, 0, 0, b"1234567"),
        frame(CONTINUATION, END_HEADERS, 1, request_block()),
        b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
        frame(5, END_HEADERS, 1, b"\0\0\0\x02"),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=range(15),
)
def test_broken_frames_end_the_connection(run: Any, serving: Any, engine: str, frames: bytes) -> None:
    async def work() -> None:
        async with serving(engine) as served:
            reader, writer = await raw(served)
            writer.write(PREFACE + SETTINGS + frames)
            await read_to_end(reader)
            writer.close()
            assert served.refused("protocol") == 1
            await alive(served)

    run(work())


def test_unknown_frames_and_priorities_are_ignored(run: Any, serving: Any, engine: str) -> None:
    async def work() -> None:
        async with serving(engine) as served:
            reader, writer = await raw(served)
            block = request_block()
            writer.write(
                PREFACE
                + SETTINGS
                + frame(0xFA, 0xFF, 1, b"whatever")
                + frame(2, 0, 3, b"\0\0\0\0\x10")
                + frame(HEADERS, END_HEADERS, 1, block)
                + frame(0, END_STREAM, 1, message_frame(b"hi"))
            )
            data = b""
            async with asyncio.timeout(60):
                while message_frame(b"hi") not in data:
                    data += await reader.read(65536)
            writer.close()

    run(work())


def test_too_many_streams_on_one_connection(run: Any, serving: Any, engine: str) -> None:
    async def work() -> None:
        async with serving(engine, streams_per_connection_max=10) as served:
            reader, writer = await raw(served)
            writer.write(PREFACE + SETTINGS + frame(SETTINGS_FRAME, ACK, 0))
            await reader.read(65536)
            for n in range(30):
                writer.write(frame(HEADERS, END_HEADERS, 2 * n + 1, request_block()))
            async with asyncio.timeout(60):
                while True:
                    assert served.server.open_streams <= 10
                    data = await reader.read(65536)
                    if not data or data[3] in (RST_STREAM, GOAWAY):
                        break
            writer.close()
            await alive(served)

    run(work())


def test_too_many_streams_in_all(run: Any, serving: Any, engine: str) -> None:
    async def work() -> None:
        async with (
            serving(engine, streams_total_max=8) as served,
            await H2Client.connect(served.url) as one,
            await H2Client.connect(served.url) as two,
        ):
            open_ones = [one.start("/test.Test/Wait") for _ in range(8)]
            await served.until(lambda: served.server.open_streams == 8, "eight are open")
            refused = await two.unary(ECHO, b"x")
            assert refused.reset == 7, "REFUSED_STREAM tells the client that nothing has happened"
            assert served.refused("streams") == 1
            one.h2.reset_stream(open_ones[0])
            one.flush()
            await served.until(lambda: served.server.open_streams == 7, "one is free")
            assert (await two.unary(ECHO, b"x")).code == 0

    run(work())


def test_too_many_connections(run: Any, serving: Any, engine: str) -> None:
    async def work() -> None:
        async with serving(engine, connections_max=3) as served:
            held = [await raw(served) for _ in range(3)]
            await served.until(lambda: served.server.connections == 3, "three are open")
            reader, writer = await raw(served)
            assert await read_to_end(reader) == b""
            writer.close()
            assert served.refused("connections") == 1
            for _, other in held:
                other.close()
            await served.until(lambda: served.server.connections == 0, "all are closed")
            await alive(served)

    run(work())


@pytest.mark.parametrize("sent", [b"", b"P", PREFACE[:-1], PREFACE, b"GE", b"GET / HTTP/1.1\r\nHost: x\r\n", b"\0" * 3])
def test_half_open_connections_are_closed(
    run: Any, serving: Any, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        async with serving("ngh2", handshake_s=0.5) as served:
            reader, writer = await raw(served)
            writer.write(sent)
            await read_to_end(reader)
            assert sum(served.refused(r) for r in ("handshake", "http-slow", "garbage")) == 1
            writer.close()
            await alive(served)

    run(work())
    assert "client connection cut" in caplog.text


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"SSH-2.0-OpenSSH_9\r\n",
        b"\0\0\0\0",
        b"hello there\n",
        b"\xff" * 5000,
    ],
)
def test_garbage_is_cut_at_once(run: Any, serving: Any, garbage: bytes) -> None:
    async def work() -> None:
        async with serving("ngh2") as served:
            reader, writer = await raw(served)
            writer.write(garbage)
            await read_to_end(reader)
            assert served.refused("garbage") == 1
            writer.close()
            await alive(served)

    run(work())


def test_a_dripping_client(run: Any, serving: Any, engine: str) -> None:
    """A request that comes a byte at a time is served; one that never ends is given up."""

    async def work() -> None:
        async with serving(engine, unfinished_request_s=4) as served:
            reader, writer = await raw(served)
            for byte in (
                PREFACE
                + SETTINGS
                + frame(HEADERS, END_HEADERS, 1, request_block())
                + frame(0, END_STREAM, 1, message_frame(b"drip"))
            ):
                writer.write(bytes((byte,)))
                await writer.drain()
            data = b""
            async with asyncio.timeout(60):
                while message_frame(b"drip") not in data:
                    data += await reader.read(65536)
            writer.close()
            async with await H2Client.connect(served.url) as client:
                stream_id = client.start(ECHO)
                client.send(stream_id, message_frame(b"never ends")[:-1])
                silent = client.start(ECHO)
                assert (await client.finish(stream_id)).code == Code.DEADLINE_EXCEEDED
                assert (await client.finish(silent)).code == Code.DEADLINE_EXCEEDED
            assert served.refused("unfinished") == 2

    run(work())


def test_unfinished_requests_are_bounded(run: Any, serving: Any, engine: str) -> None:
    async def work() -> None:
        async with (
            serving(engine, unfinished_request_bytes_max=300_000) as served,
            await H2Client.connect(served.url) as client,
        ):
            streams = []
            for _ in range(4):
                stream_id = client.start(ECHO)
                client.send(stream_id, message_frame(b"x" * 150_000)[:-1])
                streams.append(stream_id)
            answers = [await client.finish(s) for s in streams[2:3]]
            assert answers[0].code == Code.RESOURCE_EXHAUSTED
            assert served.refused("unfinished") >= 1
            await alive(served)

    run(work())


def test_a_reader_that_grants_no_window(run: Any, serving: Any, engine: str) -> None:
    """Answers that nobody takes are bounded, whatever is asked for; the connection is cut when nothing moves."""

    async def work() -> None:
        async with serving(engine, unsent_bytes_max=2 * MIB, stall_s=4) as served:
            client = await H2Client.connect(served.url, auto_window=False)
            async with client:
                streams = []
                for _ in range(10):
                    stream_id = client.start("/test.Test/Big")
                    client.send(stream_id, message_frame(b"%d" % MIB), end_stream=True)
                    streams.append(stream_id)
                refused = streams[5:]
                for stream_id in refused:
                    answer = await client.finish(stream_id)
                    assert answer.code == Code.RESOURCE_EXHAUSTED
                assert 0 < served.server.unsent_bytes <= 4 * MIB
                await asyncio.wait_for(client.closed.wait(), 60)
            assert served.refused("stalled") == 1
            await served.until(lambda: served.server.unsent_bytes == 0, "nothing is held")

    run(work())


def test_a_reader_that_reads_nothing(run: Any, serving: Any, engine: str, pours: list[int]) -> None:
    """The socket itself is full: the stream's handler waits, and the connection is cut when nothing moves."""

    async def work() -> None:
        async with serving(engine, stall_s=4) as served:
            client = await H2Client.connect(served.url)
            async with client:
                client.h2.set_local_window_size(2**31 - 1)
                client.flush()
                stream_id = client.start("/test.Test/Pour", end_stream=False)
                client.h2.set_local_window_size(2**31 - 1, stream_id=stream_id)
                client.writer.transport.pause_reading()  # type: ignore[attr-defined]
                client.send(stream_id, message_frame(b"go"))
                await served.until(lambda: served.server.open_streams == 1, "the call is open")
                connection = next(iter(served.server._http2))
                await served.until(lambda: connection._writing_paused, "the socket is full")
                assert connection._reading_stops == 1, "who takes no answers may ask nothing more"
                await served.until(lambda: served.refused("stalled") == 1, "it was cut")
                assert len(pours) * 65536 < 64 * MIB, "the handler was never made to wait"
            await served.until(lambda: served.server.connections == 0, "it is gone")
            await alive(served)

    run(work())


def test_a_slow_reader_gets_everything(run: Any, serving: Any, engine: str) -> None:
    async def work() -> None:
        async with serving(engine) as served, await H2Client.connect(served.url) as client:
            answer = await client.unary("/test.Test/Big", b"%d" % (8 * MIB))
            assert answer.messages == [b"z" * (8 * MIB)]
            assert answer.code == 0

    run(work())


def test_a_handler_that_takes_nothing_stops_the_reading(run: Any, serving: Any, engine: str) -> None:
    async def work() -> None:
        async with (
            serving(engine, stream_inbox_bytes_max=100_000) as served,
            await H2Client.connect(served.url) as client,
        ):
            stream_id = client.start("/test.Test/Deaf")
            for _ in range(1000):
                client.send(stream_id, message_frame(b"x" * 10_000))
            await served.until(lambda: served.server.open_streams == 1, "the call is open")
            connection = next(iter(served.server._http2))
            await served.until(lambda: connection._reading_stops == 1, "the connection is not read")
            call = next(iter(connection._calls.values()))
            assert call._inbox_bytes < 100_000 + 70_000 + 65_536 * 4
            connection.tick(11)
            assert served.refused("inbox") == 1
            assert connection._reading_stops == 0
            assert (await client.finish(stream_id)).code == Code.RESOURCE_EXHAUSTED
            await alive(served)

    run(work())


def test_keepalive(run: Any, serving: Any, engine: str) -> None:
    async def work() -> None:
        async with serving(engine, keepalive_interval_s=1, keepalive_timeout_s=4) as served:
            reader, writer = await raw(served)
            writer.write(PREFACE + SETTINGS)
            async with await H2Client.connect(served.url) as healthy:
                data = await read_to_end(reader)  # we never answer the PING
                assert frame(PING, 0, 0, b"")[3:5] in data
                assert served.refused("keepalive") == 1
                writer.close()
                assert (await healthy.unary(ECHO, b"x")).code == 0

    run(work())


def test_shutdown_lets_calls_end(run: Any, serving: Any, engine: str) -> None:
    async def work() -> None:
        async with (
            serving(engine) as served,
            await H2Client.connect(served.url) as client,
            await H2Client.connect(served.url) as idle,
        ):
            stream_id = client.start("/test.Test/Wait")
            client.send(stream_id, message_frame(b""), end_stream=True)
            stream = client.start("/test.Test/Deaf")
            await served.until(lambda: len(served.waiting) == 1 and served.server.open_streams == 2, "both are open")
            closing = asyncio.get_running_loop().create_task(served.server.close(60))
            await asyncio.wait_for(idle.closed.wait(), 60)
            ended = await client.finish(stream)
            assert (ended.code, ended.text) == (Code.UNAVAILABLE, "etcdserver: server stopped")
            served.waiting[0].reply(b"done")
            assert (await client.finish(stream_id)).messages == [b"done"]
            await closing
            assert client.goaway == 0
            with pytest.raises(OSError):
                await raw(served)

    run(work())


def test_shutdown_does_not_wait_for_ever(run: Any, serving: Any, engine: str) -> None:
    async def work() -> None:
        async with serving(engine) as served, await H2Client.connect(served.url) as client:
            client.send(client.start("/test.Test/Wait"), message_frame(b""), end_stream=True)
            await served.until(lambda: len(served.waiting) == 1, "it is open")
            _, writer = await raw(served)
            await served.server.close(0.05)
            writer.close()
            assert served.server.connections == 0
            served.waiting[0].reply(b"too late")

    run(work())


def test_random_and_mutated_bytes(run: Any, serving: Any, engine: str) -> None:
    """400 connections of noise: random bytes, and a good conversation with some bytes changed, cut out or doubled."""
    chance = random.Random(4711)
    good = (
        PREFACE
        + SETTINGS
        + frame(HEADERS, END_HEADERS, 1, request_block())
        + frame(0, END_STREAM, 1, message_frame(b"hello"))
        + frame(PING, 0, 0, b"12345678")
        + frame(HEADERS, END_HEADERS, 3, request_block())
        + frame(RST_STREAM, 0, 3, b"\0\0\0\x08")
        + frame(WINDOW_UPDATE, 0, 0, b"\0\0\x10\0")
        + frame(HEADERS, END_HEADERS | END_STREAM, 5, request_block())
    )

    def mutate() -> bytes:
        if chance.random() < 0.2:
            return PREFACE[: chance.randrange(25)] + chance.randbytes(chance.randrange(200))
        data = bytearray(good)
        for _ in range(chance.randrange(1, 6)):
            at = chance.randrange(len(PREFACE), len(data))
            match chance.randrange(4):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    data[at] ^= 1 << chance.randrange(8)
                case 2:
                    del data[at : at + chance.randrange(1, 12)]
                case _:
                    data[at:at] = data[at : at + chance.randrange(1, 30)]
        return bytes(data)

    async def one(served: Any) -> None:
        reader, writer = await raw(served)
        try:
            writer.write(mutate())
            writer.write_eof()
            await read_to_end(reader)
        except ConnectionError:
            pass  # cut off while we were still writing
        finally:
            writer.close()

    async def work() -> None:
        failures: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        async with serving(engine) as served:
            for _ in range(20):
                await asyncio.gather(*(one(served) for _ in range(20)))
            await served.until(lambda: served.server.connections == 0, "all are closed")
            await alive(served)
        assert not failures

    run(work())


def test_choice_of_engine() -> None:
    class Sink:
        def __getattr__(self, name: str) -> Any:
            return lambda *arguments: None

    for name in ENGINES:
        assert engine_factory(name)(Sink(), Limits()).take(1000), "the server's SETTINGS"
    assert engine_factory() is engine_factory("own")
    with pytest.raises(ValueError, match="'h3' is not known: choose one of own, ngh2, h2"):
        engine_factory("h3")


def test_the_fallback_is_taken_when_ngh2_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "oarlock.api.http2.own_engine", None)
    monkeypatch.setitem(sys.modules, "oarlock.api.http2.ngh2_engine", None)
    assert engine_factory() is engine_factory("h2")
    monkeypatch.setitem(sys.modules, "oarlock.api.http2.h2_engine", None)
    with pytest.raises(ValueError, match="install the package ngh2 or h2"):
        engine_factory()
    assert h2.connection.H2Connection is not None


def test_limits_must_be_positive() -> None:
    with pytest.raises(ValueError, match="streams_total_max is 0: it must be greater than zero"):
        Limits(streams_total_max=0)
