"""The JSON gateway: its table, JSON and messages, calls, streams, who may, and its bounds."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from tests.support.auth_setup import CHEAP, people
from tests.support.h2_client import H2Client
from tests.support.single_backend import SingleBackend, make_machine

from oarlock.api import proto
from oarlock.api.gateway import paths
from oarlock.api.gateway.convert import BadJson, Splitter, dump, fill, parse, show
from oarlock.api.gateway.openapi import description
from oarlock.api.grpc.local import LocalConnection
from oarlock.api.http2 import Http2Connection
from oarlock.api.metrics import Metrics
from oarlock.api.server import start_api
from oarlock.errors import NoLeader
from oarlock.node.metrics import NodeMetrics

DEPTH = 64
UNALIKE = ("MemberAdd", "MemberUpdate", "Lock", "Campaign", "LeaseGrant")
"""They wait, choose ids at random, or are more than a backend of one member has."""


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def exchange(url: str, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of one request, as far as the server sends within 20 s."""
    host, _, port = url.rpartition("//")[2].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    data = await asyncio.wait_for(reader.read(), 120)
    writer.close()
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    return int(lines[0].split(" ")[1]), headers, body


def request(path: str, body: Any = b"{}", method: str = "POST", **headers: str) -> bytes:
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    lines = {"host": "x", "connection": "close", "content-length": str(len(body)), **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


async def post(url: str, path: str, body: Any = b"{}", **headers: str) -> tuple[int, Any]:
    status, fields, answer = await exchange(url, request(path, body, **headers))
    assert fields["content-type"] == "application/json", answer
    return status, json.loads(answer)


class Streaming:
    """An open request whose lines come one by one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, url: str, path: str, *messages: Any, more: bool = False) -> Streaming:
        host, _, port = url.rpartition("//")[2].rpartition(":")
        stream = cls(*await asyncio.open_connection(host, int(port)))
        stream.writer.write(f"POST {path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        stream.ask(b"".join(json.dumps(message).encode() for message in messages))
        if not more:
            stream.writer.write(b"0\r\n\r\n")
        return stream

    def ask(self, text: bytes) -> None:
        self.writer.write(f"{len(text):x}\r\n".encode() + text + b"\r\n")

    async def head(self) -> int:
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 120)
        return int(head.split(b" ")[1])

    async def line(self) -> Any:
        size = int(await asyncio.wait_for(self.reader.readline(), 120), 16)
        data = await self.reader.readexactly(size + 2)
        return json.loads(data) if size else None


# -- the table
def test_the_table_is_whole() -> None:
    methods = {key for key in proto.rpcs() if key[0] not in paths.GRPC_ONLY}
    assert {(b.service, b.name) for b in paths.bindings()} == methods
    every = [path for binding in paths.bindings() for path in binding.paths]
    assert len(every) == len(set(every)) == len(methods) + 3, "three calls of Lease have a second path"


@pytest.mark.parametrize("change", ["a method without a path", "a path without a method"])
def test_a_gap_in_the_table_is_an_error(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    table = dict(paths.PATHS)
    if change == "a method without a path":
        del table["etcdserverpb.KV", "Txn"]
    else:
        table["etcdserverpb.KV", "Nothing"] = ("/v3/kv/nothing",)
    monkeypatch.setattr(paths, "PATHS", table)
    with pytest.raises(LookupError, match=r"Txn|nothing"):
        paths.bindings.__wrapped__()


def test_every_unary_path_answers_as_grpc_does(run: Any, serving: Any) -> None:
    """An empty message on every path: code, text and response are those of the same call over gRPC."""

    async def work() -> None:
        async with serving("own", auth=CHEAP) as left, serving("own", auth=CHEAP) as right:
            async with await H2Client.connect(right.url) as client:
                for binding in paths.bindings():
                    if binding.streams or binding.name in UNALIKE:
                        continue
                    for path in binding.paths:
                        status, shown = await post(left.url, path)
                        answer = await client.unary(f"/{binding.service}/{binding.name}", b"")
                        if answer.code:
                            assert status >= 400, (path, shown)
                            assert shown == {"error": answer.text, "code": answer.code, "message": answer.text}, path
                        else:
                            response = proto.message(binding.response).FromString(answer.messages[0])
                            same = json_format.MessageToDict(response, preserving_proto_field_name=True)
                            assert (status, shown) == (200, same), path

    run(work())


# -- JSON
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES, st.lists(st.integers(1, 9)), st.sampled_from(["", " ", "\r\n"]))
def test_a_body_is_cut_alike_however_it_comes(value: Any, sizes: list[int], space: str) -> None:
    body = (space + json.dumps([value]) + space + json.dumps({"k": value}) + space + "null").encode()
    splitter, found, at = Splitter(DEPTH), [], 0
    for size in [*sizes, len(body)]:
        found += splitter.feed(body[at : at + size])
        at += size
    last = splitter.end()
    assert last is not None
    assert [json.loads(text) for text in [*found, last]] == [[value], {"k": value}, None]


@pytest.mark.parametrize("depth", [DEPTH, DEPTH + 1])
def test_depth_is_bounded(depth: int) -> None:
    text = b'{"compare":' * depth + b"1" + b"}" * depth
    if depth <= DEPTH:
        assert Splitter(DEPTH).feed(text) == [text]
    else:
        with pytest.raises(BadJson, match="deeper"):
            Splitter(DEPTH).feed(text)


def test_half_a_value_is_an_error() -> None:
    for text in (b"{", b'{"a', b'{"a\\', b"[1,", b'"'):
        splitter = Splitter(DEPTH)
        assert splitter.feed(text) == []
        with pytest.raises(BadJson, match="EOF"):
            splitter.end()


def txn_request() -> Any:
    message = proto.message("etcdserverpb.TxnRequest")()
    compare = message.compare.add(key=b"\xff\x00", target=1, result=3)
    compare.create_revision = 0
    message.success.add().request_put.CopyFrom(proto.message("etcdserverpb.PutRequest")(key=b"k", lease=-(2**63)))
    message.success.add().request_txn.failure.add().request_range.SetInParent()
    return message


@pytest.mark.parametrize("names", [True, False], ids=["as in the schema", "camelCase"])
def test_json_is_protobufs(names: bool) -> None:
    """Our conversion and the library's agree, both ways."""
    header = {"cluster_id": 2**64 - 1, "revision": 2**63 - 1}
    status = proto.message("etcdserverpb.StatusResponse")(header=header, dbSize=5, errors=["<é>"], isLearner=True)
    alarm = proto.message("etcdserverpb.AlarmResponse")(alarms=[{"memberID": 7, "alarm": 2}])
    for message in (txn_request(), status, alarm, proto.message("etcdserverpb.HashResponse")(hash=2**32 - 1)):
        library = json_format.MessageToDict(message, preserving_proto_field_name=names)
        if names:
            assert show(message) == library
            assert json.loads(dump(show(message))) == library
        copy = type(message)()
        fill(copy, parse(json.dumps(library).encode()))
        assert copy == message


GOOD: list[tuple[str, dict[str, Any]]] = [
    ('{"limit":"5"}', {"limit": 5}), ('{"limit":5}', {"limit": 5}), ('{"limit":null,"key":null}', {}),
    ('{"nosuch":[1,{"a":2}],"limit":1}', {"limit": 1}), ('{"sort_order":"DESCEND"}', {"sort_order": 2}),
    ('{"sort_order":77}', {"sort_order": 77}), ('{"range_end":"AA==","rangeEnd":"YQ=="}', {"range_end": b"a"}),
    ('{"rangeEnd":"YQ==","range_end":"AA=="}', {"range_end": b"a"}), ('{"key":"YQ==","key":"Yg=="}', {"key": b"b"}),
    ('{"KEY":"YQ=="}', {}), ("null", {}), ('{"key":"YQ\\n=="}', {"key": b"a"}),
    ('{"limit":-9223372036854775808}', {"limit": -(2**63)}),
]  # fmt: skip
BAD = [
    "[1]", '"x"', "5", "tru", "{'key':1}", '{"key":"YQ==",}', '{"limit":5.0}', '{"limit":1e1}', '{"limit":"x"}',
    '{"limit":9223372036854775808}', '{"limit":true}', '{"limit":""}', '{"limit":[]}', '{"limit":NaN}', '{"key":1}',
    '{"key":"!!"}', '{"key":"YQ"}', '{"key":"YWFh="}', '{"key":"YQ======"}',
    '{"key":"_-8="}', '{"key":{}}', '{"serializable":"true"}', '{"serializable":1}',
    '{"sort_order":"2"}', '{"sort_order":"NOPE"}', '{"sort_order":true}', '{"sort_order":1.5}', '{"limit":'
    + "9" * 5000 + "}",
]  # fmt: skip


@pytest.mark.parametrize(("text", "fields"), GOOD, ids=[text for text, _ in GOOD])
def test_what_is_taken(text: str, fields: dict[str, Any]) -> None:
    message = proto.message("etcdserverpb.RangeRequest")()
    fill(message, parse(text.encode()))
    assert message == proto.message("etcdserverpb.RangeRequest")(**fields)


@pytest.mark.parametrize("text", BAD, ids=[text[:40] for text in BAD])
def test_what_is_refused(text: str) -> None:
    with pytest.raises(BadJson):
        fill(proto.message("etcdserverpb.RangeRequest")(), parse(text.encode()))


# -- calls
def test_refusals_of_bodies(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("own", http_body_bytes_max=4096, json_depth_max=8) as served:
            for body in (b"{", b"[1]", b'{"key":"!"}', b"[" * 9 + b"]" * 9):
                status, shown = await post(served.url, "/v3/kv/range", body)
                assert (status, shown["code"]) == (400, 3), body
                assert shown["error"] == shown["message"] != ""
            status, shown = await post(served.url, "/v3/watch", b"[1]")
            assert (status, shown["code"]) == (500, 2)
            long = request("/v3/kv/put", {"key": "YQ==", "value": b64(b"v" * 4000)})
            assert await post(served.url, "/v3/kv/range", {"key": "YQ=="}) == (200, await header(served))
            status, _, answer = await exchange(served.url, long)
            assert (status, json.loads(answer)["code"]) == (429, 8), answer
            status, fields, _ = await exchange(served.url, request("/v3/kv/range", method="GET"))
            assert (status, fields["allow"]) == (405, "POST")
            assert (await exchange(served.url, request("/v3/kv/nothing")))[0] == 404
            assert (await exchange(served.url, request("/v3alpha/kv/range")))[0] == 404
            assert (await post(served.url, "/v3beta/kv/range", {"key": "YQ=="}))[0] == 200

    async def header(served: Any) -> Any:
        return (await post(served.url, "/v3/kv/range", {"key": "YQ=="}))[1]

    run(work())


def test_one_call_too_many(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("own", streams_total_max=1) as served:
            stream = await Streaming.open(served.url, "/v3/watch", {"create_request": {"key": "YQ=="}})
            assert await stream.head() == 200
            assert (await post(served.url, "/v3/kv/range", {"key": "YQ=="}))[0] == 429
            assert served.refused("streams") == 1
            stream.writer.close()
            await served.until(lambda: served.server.open_streams == 0, "the stream is over")
            assert (await post(served.url, "/v3/kv/range", {"key": "YQ=="}))[0] == 200

    run(work())


def test_a_fault_of_the_cluster_has_its_status(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("own") as served:
            served.backend.fail_with = NoLeader()
            status, shown = await post(served.url, "/v3/kv/put", {"key": "YQ=="})
            assert (status, shown["code"], shown["error"]) == (503, 14, "etcdserver: no leader")
            served.backend.fail_with = None
            served.backend.hold = True
            status, shown = await post(served.url, "/v3/kv/put", {"key": "YQ=="}, grpc_timeout="100m")
            assert (status, shown["code"]) == (504, 4)
            assert (await post(served.url, "/v3/kv/put", {"key": "YQ=="}, grpc_timeout="1y"))[0] == 400

    run(work())


def test_a_client_that_leaves_ends_its_call(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("own") as served:
            for lease in ("1", "2"):
                await post(served.url, "/v3/lease/grant", {"ID": lease, "TTL": "60"})
            await post(served.url, "/v3/lock/lock", {"name": "bA==", "lease": "1"})
            waiting = await Streaming.open(served.url, "/v3/lock/lock", {"name": "bA==", "lease": "2"})
            await served.until(lambda: served.server.open_streams == 1, "the second waits for the lock")
            waiting.writer.close()
            await served.until(lambda: served.server.open_streams == 0, "and is gone")

    run(work())


# -- streams
def test_watch(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("own") as served:
            watch = {"create_request": {"key": b64(b"a"), "range_end": b64(b"c")}}
            stream = await Streaming.open(served.url, "/v3/watch", watch, more=True)
            assert await stream.head() == 200
            assert (await stream.line())["result"]["created"] is True
            await post(served.url, "/v3/kv/put", {"key": b64(b"b"), "value": b64(b"1")})
            event = (await stream.line())["result"]["events"][0]
            assert event["kv"] == {
                "key": b64(b"b"), "create_revision": "2", "mod_revision": "2", "version": "1", "value": b64(b"1"),
            }  # fmt: skip
            stream.ask(b'{"progress_requ')  # requests come as they like, also in pieces
            stream.ask(b'est":{}} {"create_request":{"key":"eg=="}}')
            assert (await stream.line())["result"]["watch_id"] == "-1"
            assert (await stream.line())["result"]["watch_id"] == "1"
            stream.ask(b"{'bad")  # ends the requests, as with etcd, and not the watch
            stream.ask(b"'}")
            await post(served.url, "/v3/kv/deleterange", {"key": b64(b"b")})
            assert (await stream.line())["result"]["events"][0]["type"] == "DELETE"
            hub = served.backend.machine.watches
            assert hub.watcher_count == 2
            stream.writer.close()
            await served.until(lambda: hub.watcher_count == 0, "who leaves watches nothing")

    run(work())


def test_keepalive_observe_snapshot(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("own") as served:
            await post(served.url, "/v3/lease/grant", {"ID": "5", "TTL": "60"})
            stream = await Streaming.open(served.url, "/v3/lease/keepalive", {"ID": 5}, {"ID": "6"})
            assert await stream.head() == 200
            first, second = (await stream.line())["result"], (await stream.line())["result"]
            assert (first["ID"], first["TTL"], second["ID"], "TTL" in second) == ("5", "60", "6", False)
            assert await stream.line() is None, "it ends when the requests have ended"
            stream.writer.close()

            observing = await Streaming.open(served.url, "/v3/election/observe", {"name": "ZQ=="})
            await post(served.url, "/v3/election/campaign", {"name": "ZQ==", "lease": "5", "value": b64(b"me")})
            assert await observing.head() == 200
            assert (await observing.line())["result"]["kv"]["value"] == b64(b"me")
            observing.writer.close()

            snapshot = await Streaming.open(served.url, "/v3/maintenance/snapshot", {})
            assert await snapshot.head() == 200
            blobs = []
            while (line := await snapshot.line()) is not None:
                blobs.append(base64.b64decode(line["result"]["blob"]))
            assert len(blobs) >= 2
            assert len(blobs[-1]) == 32
            snapshot.writer.close()

    run(work())


def test_a_stream_that_fails_says_so(run: Any, serving: Any) -> None:
    """Before the first line by its status, after it by a last line."""

    async def work() -> None:
        async with serving("own") as served:
            served.backend.fail_with = NoLeader()
            status, shown = await post(served.url, "/v3/maintenance/snapshot")
            assert status == 503
            assert shown["error"] == {
                "grpc_code": 14, "http_code": 503, "message": "etcdserver: no leader",
                "http_status": "Service Unavailable",
            }  # fmt: skip
            served.backend.fail_with = None
            stream = await Streaming.open(served.url, "/v3/watch", {"create_request": {"key": "YQ=="}})
            assert await stream.head() == 200
            await stream.line()
            closing = asyncio.ensure_future(served.server.close(5))
            assert (await stream.line())["error"]["grpc_code"] == 14
            assert await stream.line() is None
            stream.writer.close()
            await closing

    run(work())


def test_a_connection_kept_for_nothing_is_closed_without_blame(
    run: Any, serving: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Patroni and others keep connections for a next request, which may never come: that is no abuse to warn of."""

    async def work() -> None:
        async with serving("own") as served:
            reader, writer = await asyncio.open_connection(*served.url.removeprefix("http://").rsplit(":", 1))
            writer.write(b"GET /version HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            await served.until(lambda: served.server.connections == 1, "it is kept")
            monkeypatch.setattr("oarlock.api.http1.KEEP_ALIVE_S", 0.1)
            await asyncio.wait_for(reader.read(), 30)
            writer.close()
            assert served.refused("http-slow") == 0
        assert "cut" not in caplog.text

    run(work())


def test_only_an_incomplete_request_is_cut(run: Any, serving: Any) -> None:
    """A watch and a call that waits may take any time; a body that does not come may not."""

    async def work() -> None:
        async with serving("own", unfinished_request_s=0.5) as served:
            for lease in ("1", "2"):
                await post(served.url, "/v3/lease/grant", {"ID": lease, "TTL": "60"})
            key = (await post(served.url, "/v3/lock/lock", {"name": "bA==", "lease": "1"}))[1]["key"]
            watching = await Streaming.open(served.url, "/v3/watch", {"create_request": {"key": b64(b"w")}}, more=True)
            waiting = await Streaming.open(served.url, "/v3/lock/lock", {"name": "bA==", "lease": "2"})
            slow = await Streaming.open(served.url, "/v3/kv/put", {"key": b64(b"a")}, more=True)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await slow.head()
            assert served.refused("http-slow") == 1
            await asyncio.sleep(1.5)
            assert served.refused("http-slow") == 1, "and nobody else"
            await post(served.url, "/v3/lock/unlock", {"key": key})
            assert await waiting.head() == 200
            await post(served.url, "/v3/kv/put", {"key": b64(b"w")})
            assert await watching.head() == 200
            await watching.line()
            assert (await watching.line())["result"]["events"]
            for stream in (watching, waiting, slow):
                stream.writer.close()

    run(work())


def test_a_reader_that_does_not_read_holds_no_more_than_it_may(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("own", stream_unsent_bytes=1000) as served:
            method = next(m for m in served.server.router.methods.values() if m.name == "Pour")
            connection = LocalConnection(served.server, "?", "?")
            route = served.server.router.route(((b":path", b"/x"),))
            stream = connection.stream(method, route)
            stream.put(b"")
            await served.until(lambda: served.server.unsent_bytes > 0, "it pours")
            for _ in range(50):
                await asyncio.sleep(0)
            assert served.server.unsent_bytes == 65536, "one message, and then it waits"
            assert await stream.take() is not None
            await served.until(lambda: served.server.unsent_bytes == 65536, "and goes on when that is taken")
            connection.leave()
            assert served.server.unsent_bytes == 0

    run(work())


# -- who may
def test_tokens(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("own", auth=CHEAP) as served:
            async with await H2Client.connect(served.url) as client:
                shown = await people(client)
            get, put = {"key": b64(b"b")}, {"key": b64(b"b"), "value": ""}
            status, answer = await post(served.url, "/v3/kv/range", get)
            assert (status, answer["error"]) == (400, "etcdserver: user name is empty")
            status, answer = await post(served.url, "/v3/kv/range", get, authorization="nonsense")
            assert (status, answer["code"]) == (401, 16)
            for prefix in ("", "Bearer "):
                assert (await post(served.url, "/v3/kv/range", get, authorization=prefix + shown["reader"]))[0] == 200
            status, answer = await post(served.url, "/v3/kv/put", put, authorization=shown["reader"])
            assert (status, answer["code"], answer["error"]) == (403, 7, "etcdserver: permission denied")
            assert (await post(served.url, "/v3/kv/put", put, authorization=shown["writer"]))[0] == 200
            status, answer = await post(
                served.url, "/v3/auth/authenticate", {"name": "writer", "password": "writer's password"}
            )
            assert (await post(served.url, "/v3/kv/put", put, authorization=answer["token"]))[0] == 200
            stream = await Streaming.open(served.url, "/v3/watch", {"create_request": get})
            assert await stream.head() == 200
            line = (await stream.line())["result"]
            assert line["canceled"] is True
            assert "user name is empty" in line["cancel_reason"] or "permission denied" in line["cancel_reason"]
            stream.writer.close()

    run(work())


def test_nobody_is_known_by_a_certificate(run: Any, serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """CVE-2018-16886: on gRPC a certificate is a user, through the gateway it is not."""
    monkeypatch.setattr(Http2Connection, "certificate_user", lambda connection: "root")

    async def work() -> None:
        async with serving("own", auth=replace(CHEAP, certificate_users=True)) as served:
            async with await H2Client.connect(served.url) as client:
                await people(client)
                assert (await client.unary("/etcdserverpb.Auth/UserList", b"")).code == 0, "by its certificate"
            status, answer = await post(served.url, "/v3/auth/user/list")
            assert (status, answer["error"]) == (400, "etcdserver: user name is empty")

    run(work())


# -- browsers
def test_browsers(run: Any) -> None:
    async def work() -> None:
        server = await start_api(
            SingleBackend(make_machine()), ["http://127.0.0.1:0"], Metrics(), cors=["http://page.example"]
        )
        url = server.addresses[0]
        body = {"key": "YQ=="}
        try:
            good = await exchange(url, request("/v3/kv/put", body, origin="http://page.example"))
            assert (good[0], good[1]["access-control-allow-origin"]) == (200, "http://page.example")
            before = server.service.context.kv.revision
            bad = await exchange(url, request("/v3/kv/put", body, origin="http://evil.example"))
            assert bad[0] == 403
            assert "access-control-allow-origin" not in bad[1]
            assert server.service.context.kv.revision == before, "what was refused was not done"
            assert (await exchange(url, request("/v3/kv/put", body)))[0] == 200, "no browser"
            assert (await exchange(url, request("/v3/kv/put", body, origin="http://x")))[0] == 200, "our own page"
            asked = await exchange(url, request("/v3/kv/put", b"", method="OPTIONS", origin="http://page.example"))
            assert (asked[0], "POST" in asked[1]["access-control-allow-methods"]) == (200, True)
        finally:
            await server.close(0.1)

    run(work())


def test_any_origin_and_rebinding(run: Any) -> None:
    async def work() -> None:
        server = await start_api(
            SingleBackend(make_machine()), ["http://127.0.0.1:0"], Metrics(), allowed_hosts=["good.example"]
        )
        url = server.addresses[0]
        try:
            put = request("/v3/kv/put", {"key": "YQ=="}, host="rebound.example")
            assert (await exchange(url, put))[0] == 400
            good = await exchange(url, request("/v3/kv/put", {"key": "YQ=="}, host="good.example", origin="http://p"))
            assert (good[0], good[1]["access-control-allow-origin"]) == (200, "*")
        finally:
            await server.close(0.1)

    run(work())


# -- is it well
def test_checks(run: Any, serving: Any) -> None:
    async def get(served: Any, path: str) -> tuple[int, str]:
        status, _, body = await exchange(served.url, request(path, b"", method="GET"))
        return status, body.decode()

    async def work() -> None:
        async with serving("own") as served:
            assert await get(served, "/livez") == (200, "ok\n")
            every = "[+]data_corruption ok\n[+]linearizable_read ok\n[+]non_learner ok\n[+]serializable_read ok\nok\n"
            assert await get(served, "/readyz?verbose") == (200, every)
            served.backend.fail_with = NoLeader()
            status, text = await get(served, "/readyz")
            assert (status, "[-]linearizable_read failed: " in text) == (503, True)
            assert await get(served, "/readyz?exclude=linearizable_read") == (200, "ok\n")
            assert await get(served, "/readyz?allowlist=non_learner&verbose") == (200, "[+]non_learner ok\nok\n")
            assert (await get(served, "/readyz/linearizable_read"))[0] == 503
            assert await get(served, "/livez/serializable_read") == (200, "ok\n"), "it lives without a leader"
            served.backend.fail_with = None
            served.backend.is_learner = True
            assert (await get(served, "/readyz/non_learner"))[0] == 503
            served.backend.quarantined = True
            assert (await get(served, "/readyz/data_corruption"))[0] == 503
            for path in ("/debug/vars", "/debug/pprof/", "/readyz/nothing"):
                assert (await get(served, path))[0] == 404, path

    run(work())


def test_what_the_node_counts() -> None:
    counts = NodeMetrics()
    counts.proposals, counts.proposals_completed, counts.proposals_failed, counts.proposals_overloaded = 9, 5, 1, 2
    counts.leader_changes = 3
    for seconds in (0.0002, 0.003, 60.0):
        counts.fsync.add(seconds)
    metrics = Metrics()
    metrics.watch_node(counts)
    for name, labels, value in (
        ("etcd_server_proposals_pending", {}, 3), ("etcd_server_proposals_failed_total", {}, 3),
        ("etcd_server_leader_changes_seen_total", {}, 3),
        ("etcd_disk_wal_fsync_duration_seconds_bucket", {"le": "0.004"}, 2),
        ("etcd_disk_wal_fsync_duration_seconds_bucket", {"le": "+Inf"}, 3),
        ("etcd_disk_wal_fsync_duration_seconds_sum", {}, 60.0032),
    ):  # fmt: skip
        assert metrics.registry.get_sample_value(name, labels) == pytest.approx(value), name
    assert b"process_cpu_seconds_total" in metrics.text()


# -- the description
def test_openapi(run: Any, serving: Any) -> None:
    validator = pytest.importorskip("openapi_spec_validator")
    document = description("3.5.0")
    validator.validate(document)
    assert set(document["paths"]) == {path for binding in paths.bindings() for path in binding.paths}
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert references == set(document["components"]["schemas"])

    async def work() -> None:
        async with serving("own") as served:
            _, _, body = await exchange(served.url, request("/openapi.json", b"", method="GET"))
            assert json.loads(body)["paths"] == document["paths"]

    run(work())


def test_the_description_in_the_docs_is_the_program_s() -> None:
    page = Path(__file__).parents[3] / "docs" / "reference" / "openapi.json"
    from oarlock.cli.openapi import text

    assert page.read_text() == text(), "docs/reference/openapi.json is stale: run `oarlock openapi` into it"
