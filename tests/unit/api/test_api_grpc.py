"""gRPC on our server: framing, status, deadlines, streaming. Each test on both HTTP/2 engines."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.support.h2_client import H2Client, message_frame

from oarlock.api.grpc.router import parse_timeout
from oarlock.api.grpc.status import Code, encode_message

ECHO = "/test.Test/Echo"


def test_unary_calls(run: Any, serving: Any, engine: str) -> None:
    async def work() -> None:
        async with serving(engine) as served, await H2Client.connect(served.url) as client:
            for message in (b"", b"x", b"y" * 20_000, b"z" * 1_500_000):
                answer = await client.unary(ECHO, message)
                assert (answer.code, answer.messages) == (0, [message])
                assert answer.headers[b"content-type"] == b"application/grpc"
            answers = await asyncio.gather(*(client.unary(ECHO, b"%d" % n) for n in range(200)))
            assert [a.messages for a in answers] == [[b"%d" % n] for n in range(200)]

    run(work())


def test_a_message_in_pieces_of_every_size(run: Any, serving: Any, engine: str) -> None:
    async def work() -> None:
        async with serving(engine) as served, await H2Client.connect(served.url) as client:
            whole = message_frame(b"0123456789")
            for cut in range(1, len(whole)):
                stream_id = client.start(ECHO)
                client.send(stream_id, whole[:cut])
                await asyncio.sleep(0)
                client.send(stream_id, whole[cut:], end_stream=cut % 2 == 0)
                if cut % 2:
                    client.send(stream_id, b"", end_stream=True)
                answer = await client.finish(stream_id)
                assert (answer.code, answer.messages) == (0, [b"0123456789"]), cut

    run(work())


@pytest.mark.parametrize(
    ("data", "code", "text"),
    [
        (b"", Code.INTERNAL, "the request has no message"),
        (b"\0\0\0", Code.INTERNAL, "ends inside its message"),
        (message_frame(b"abc")[:-1], Code.INTERNAL, "ends inside its message"),
        (message_frame(b"abc") + b"\0", Code.INTERNAL, "more than one message"),
        (message_frame(b"a") + message_frame(b"b"), Code.INTERNAL, "more than one message"),
        (message_frame(b"abc", flag=1), Code.UNIMPLEMENTED, "compressed flag"),
        (message_frame(b"abc", flag=255), Code.INTERNAL, "unexpected payload format 255"),
        (b"\0\xff\xff\xff\xff", Code.RESOURCE_EXHAUSTED, "received message larger than max (4294967295 vs. 2097152)"),
        (b"\0" + (2097153).to_bytes(4, "big"), Code.RESOURCE_EXHAUSTED, "larger than max (2097153 vs. 2097152)"),
    ],
)
def test_malformed_unary_requests(run: Any, serving: Any, engine: str, data: bytes, code: Code, text: str) -> None:
    async def work() -> None:
        async with serving(engine) as served, await H2Client.connect(served.url) as client:
            stream_id = client.start(ECHO)
            client.send(stream_id, data, end_stream=True)
            answer = await client.finish(stream_id)
            assert answer.code == code
            assert text in answer.text
            assert (await client.unary(ECHO, b"alive")).messages == [b"alive"]

    run(work())


def test_a_too_large_request_is_refused_before_its_bytes_come(run: Any, serving: Any, engine: str) -> None:
    async def work() -> None:
        async with serving(engine) as served, await H2Client.connect(served.url) as client:
            stream_id = client.start(ECHO)
            client.send(stream_id, b"\0" + (2097153).to_bytes(4, "big") + b"x" * 100)
            answer = await client.finish(stream_id)
            assert answer.code == Code.RESOURCE_EXHAUSTED
            assert answer.reset == 0, "the rest should be declined with RST_STREAM(NO_ERROR)"

    run(work())


@pytest.mark.parametrize(
    ("path", "extra", "code", "text"),
    [
        ("/test.Test/Nothing", (), Code.UNIMPLEMENTED, "unknown method Nothing for service test.Test"),
        ("/no.Such/Thing", (), Code.UNIMPLEMENTED, "unknown service no.Such"),
        ("/nothing", (), Code.UNIMPLEMENTED, 'malformed method name: "/nothing"'),
        (
            ECHO,
            ((b"grpc-encoding", b"gzip"),),
            Code.UNIMPLEMENTED,
            'Decompressor is not installed for grpc-encoding "gzip"',
        ),
        (ECHO, ((b"grpc-timeout", b"1x"),), Code.INTERNAL, "malformed grpc-timeout"),
        (ECHO, ((b"grpc-timeout", b"123456789S"),), Code.INTERNAL, "malformed grpc-timeout"),
    ],
)
def test_refused_requests(run: Any, serving: Any, engine: str, path: str, extra: Any, code: Code, text: str) -> None:
    async def work() -> None:
        async with serving(engine) as served, await H2Client.connect(served.url) as client:
            answer = await client.unary(path, b"m", extra)
            assert answer.code == code
            assert text in answer.text

    run(work())


def test_what_is_not_grpc(run: Any, serving: Any, engine: str) -> None:
    async def work() -> None:
        async with serving(engine) as served, await H2Client.connect(served.url) as client:
            answer = await client.finish(client.start(ECHO, content_type=b"text/html", end_stream=True))
            assert answer.headers[b":status"] == b"415"
            answer = await client.finish(client.start(ECHO, content_type=b"application/grpcx", end_stream=True))
            assert answer.headers[b":status"] == b"415"
            answer = await client.finish(client.start(ECHO, method=b"GET", end_stream=True))
            assert answer.headers[b":status"] == b"405"
            assert (await client.unary(ECHO, b"x", ((b"x-more", b"1"),))).code == 0

    run(work())


def test_handler_errors(run: Any, serving: Any, engine: str, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        async with serving(engine) as served, await H2Client.connect(served.url) as client:
            answer = await client.unary("/test.Test/Fail", "100 % naïve\n".encode())
            assert (answer.code, answer.text) == (Code.ABORTED, "100 % naïve\n")
            answer = await client.unary("/test.Test/Broken", b"")
            assert (answer.code, answer.text) == (Code.INTERNAL, "internal error: ZeroDivisionError")

    run(work())
    assert "on purpose" in caplog.text


def test_deadline(run: Any, serving: Any, engine: str) -> None:
    async def work() -> None:
        async with serving(engine) as served, await H2Client.connect(served.url) as client:
            answer = await client.unary("/test.Test/Wait", b"", ((b"grpc-timeout", b"20m"),))
            assert (answer.code, answer.text) == (Code.DEADLINE_EXCEEDED, "context deadline exceeded")
            served.waiting[0].reply(b"too late")  # must change nothing
            stream_id = client.start("/test.Test/Deaf", ((b"grpc-timeout", b"20m"),))
            assert (await client.finish(stream_id)).code == Code.DEADLINE_EXCEEDED
            assert (await client.unary(ECHO, b"x", ((b"grpc-timeout", b"5S"),))).code == 0

    run(work())


def test_a_cancelled_call_is_forgotten(run: Any, serving: Any, engine: str) -> None:
    async def work() -> None:
        async with serving(engine) as served, await H2Client.connect(served.url) as client:
            stream_id = client.start("/test.Test/Wait")
            client.send(stream_id, message_frame(b""), end_stream=True)
            await served.until(lambda: served.server.open_streams == 1, "the call is open")
            client.h2.reset_stream(stream_id)
            client.flush()
            await served.until(lambda: served.server.open_streams == 0, "the call is forgotten")
            assert not served.waiting[0].open
            served.waiting[0].reply(b"nobody hears this")
            assert (await client.unary(ECHO, b"x")).code == 0

    run(work())


def test_streaming(run: Any, serving: Any, engine: str) -> None:
    async def work() -> None:
        async with serving(engine) as served, await H2Client.connect(served.url) as client:
            stream_id = client.start("/test.Test/Chat")
            for n in range(100):
                client.send(stream_id, message_frame(b"%d" % n * 100))
            client.send(stream_id, message_frame(b"x")[:3])
            client.send(stream_id, message_frame(b"x")[3:], end_stream=True)
            answer = await client.finish(stream_id)
            assert answer.messages == [b"%d" % n * 100 for n in range(100)] + [b"x"]
            assert answer.code == 0
            stream_id = client.start("/test.Test/Chat")
            client.send(stream_id, message_frame(b"hello") + message_frame(b"fail"))
            answer = await client.finish(stream_id)
            assert (answer.messages, answer.code, answer.text) == ([b"hello"], Code.ABORTED, "as asked")
            assert (await client.finish(client.start("/test.Test/Chat", end_stream=True))).code == 0
            stream_id = client.start("/test.Test/Chat")
            client.send(stream_id, message_frame(b"abc")[:-1], end_stream=True)
            assert (await client.finish(stream_id)).code == Code.INTERNAL

    run(work())


def test_a_stream_ends_with_its_connection(run: Any, serving: Any, engine: str) -> None:
    async def work() -> None:
        async with serving(engine) as served:
            async with await H2Client.connect(served.url) as client:
                client.start("/test.Test/Deaf")
                await served.until(lambda: served.server.open_streams == 1, "the call is open")
            await served.until(
                lambda: served.server.open_streams == 0 and served.server.connections == 0, "all is gone"
            )

    run(work())


def test_counters(run: Any, serving: Any, engine: str) -> None:
    async def work() -> None:
        async with serving(engine) as served, await H2Client.connect(served.url) as client:
            await client.unary(ECHO, b"")
            await client.unary("/test.Test/Fail", b"")
            text = served.metrics.text().decode()
            assert 'grpc_server_handled_total{grpc_code="OK",grpc_method="Echo",grpc_service="test.Test"} 1.0' in text
            assert (
                'grpc_server_handled_total{grpc_code="Aborted",grpc_method="Fail",grpc_service="test.Test"} 1.0' in text
            )
            assert 'grpc_server_started_total{grpc_method="Echo",grpc_service="test.Test"} 1.0' in text

    run(work())


def test_status_text_encoding() -> None:
    assert encode_message("plain") == b"plain"
    assert encode_message("a%b") == b"a%25b"
    assert encode_message("\x7f\n") == b"%7F%0A"
    assert len(encode_message("x" * 100_000)) == 4096


def test_timeouts() -> None:
    assert parse_timeout(b"1H") == 3600
    assert parse_timeout(b"99999999n") == pytest.approx(0.099999999)
    for bad in (b"", b"S", b"1", b"1.5S", b" 1S", b"123456789S", b"\xff1S"):
        assert parse_timeout(bad) is None
