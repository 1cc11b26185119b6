"""The etcd services: validation, errors, and what a backend's failures become."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path
from typing import Any

import pytest
from tests.support.h2_client import Answer, H2Client
from tests.support.single_backend import CLUSTER_ID, MEMBER_ID, SingleBackend, make_machine

from oarlock import errors as raft_errors
from oarlock.api import proto
from oarlock.api.backend import MemberView
from oarlock.api.grpc.status import Code
from oarlock.api.limits import Limits
from oarlock.api.metrics import Metrics
from oarlock.api.server import start_api
from oarlock.errors import ConfigurationError

_SERVICES = {name: service for service, names in proto.services().items() for name in names}


def m(name: str, **fields: Any) -> Any:
    return proto.message(f"etcdserverpb.{name}")(**fields)


async def ask(client: H2Client, rpc: str, request: Any, extra: Any = ()) -> Answer:
    return await client.unary(f"/{_SERVICES[rpc]}/{rpc}", request.SerializeToString(), extra)


async def get(client: H2Client, rpc: str, request: Any, response: str, extra: Any = ()) -> Any:
    answer = await ask(client, rpc, request, extra)
    assert (answer.code, answer.text) == (0, "")
    return proto.message(f"etcdserverpb.{response}").FromString(answer.messages[0])


def nested(depth: int) -> Any:
    txn = m("TxnRequest")
    inner = txn
    for _ in range(depth):
        inner = inner.success.add().request_txn
    inner.success.add().request_put.key = b"deep"
    return txn


def many(count: int) -> Any:
    txn = m("TxnRequest")
    for n in range(count):
        txn.success.add().request_put.key = b"%d" % n
    return txn


def split(outer: int, inner: int) -> Any:
    """A nested transaction of `inner` operations among `outer` ones."""
    txn = many(outer - 1)
    for n in range(inner):
        txn.success.add().request_txn.success.add().request_put.key = b"i%d" % n if n == 0 else b""
        if n == 0:
            nested_txn = txn.success[-1].request_txn
        else:
            del txn.success[-1]
            nested_txn.success.add().request_put.key = b"i%d" % n
    return txn


def twice() -> Any:
    txn = m("TxnRequest")
    for _ in range(2):
        txn.success.add().request_put.key = b"same"
    return txn


def put_and_delete() -> Any:
    txn = m("TxnRequest")
    txn.failure.add().request_put.key = b"b"
    txn.failure.add().request_delete_range.CopyFrom(m("DeleteRangeRequest", key=b"a", range_end=b"c"))
    return txn


def keyless_compare() -> Any:
    txn = m("TxnRequest")
    txn.compare.add().version = 1
    return txn


@pytest.mark.parametrize(
    ("rpc", "request_", "code", "text"),
    [
        ("Put", m("PutRequest"), Code.INVALID_ARGUMENT, "etcdserver: key is not provided"),
        (
            "Put",
            m("PutRequest", key=b"k", value=b"v", ignore_value=True),
            Code.INVALID_ARGUMENT,
            "etcdserver: value is provided",
        ),
        (
            "Put",
            m("PutRequest", key=b"k", lease=1, ignore_lease=True),
            Code.INVALID_ARGUMENT,
            "etcdserver: lease is provided",
        ),
        ("Put", m("PutRequest", key=b"k", ignore_value=True), Code.INVALID_ARGUMENT, "etcdserver: key not found"),
        (
            "Put",
            m("PutRequest", key=b"k", value=b"x" * (1536 * 1024)),
            Code.INVALID_ARGUMENT,
            "etcdserver: request is too large",
        ),
        (
            "Put",
            m("PutRequest", key=b"k", value=b"x" * (2048 * 1024 - 9)),
            Code.INVALID_ARGUMENT,
            "etcdserver: request is too large",
        ),
        (
            "Put",
            m("PutRequest", key=b"k", value=b"x" * (2048 * 1024)),
            Code.RESOURCE_EXHAUSTED,
            "grpc: received message larger than max (2097160 vs. 2097152)",
        ),
        ("Range", m("RangeRequest"), Code.INVALID_ARGUMENT, "etcdserver: key is not provided"),
        (
            "Range",
            m("RangeRequest", key=b"k", revision=99),
            Code.OUT_OF_RANGE,
            "etcdserver: mvcc: required revision is a future revision",
        ),
        (
            "Range",
            m("RangeRequest", key=b"k", revision=1),
            Code.OUT_OF_RANGE,
            "etcdserver: mvcc: required revision has been compacted",
        ),
        ("Range", m("RangeRequest", key=b"k", sort_order=7), Code.INVALID_ARGUMENT, "etcdserver: invalid sort option"),
        (
            "Range",
            m("RangeRequest", key=b"k", sort_target=99),
            Code.INVALID_ARGUMENT,
            "etcdserver: invalid sort option",
        ),
        ("DeleteRange", m("DeleteRangeRequest"), Code.INVALID_ARGUMENT, "etcdserver: key is not provided"),
        (
            "DeleteRange",
            m("DeleteRangeRequest", key=b"k" * 1600000),
            Code.INVALID_ARGUMENT,
            "etcdserver: request is too large",
        ),
        (
            "Compact",
            m("CompactionRequest", revision=99),
            Code.OUT_OF_RANGE,
            "etcdserver: mvcc: required revision is a future revision",
        ),
        (
            "Compact",
            m("CompactionRequest", revision=-1),
            Code.OUT_OF_RANGE,
            "etcdserver: mvcc: required revision has been compacted",
        ),
        ("Txn", many(129), Code.INVALID_ARGUMENT, "etcdserver: too many operations in txn request"),
        ("Txn", split(100, 29), Code.INVALID_ARGUMENT, "etcdserver: too many operations in txn request"),
        ("Txn", nested(8), Code.INVALID_ARGUMENT, "etcdserver: too many operations in txn request"),
        ("Txn", nested(1000), Code.INTERNAL, "grpc: error unmarshalling request: "),
        ("Txn", twice(), Code.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request"),
        ("Txn", put_and_delete(), Code.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request"),
        ("Txn", keyless_compare(), Code.INVALID_ARGUMENT, "etcdserver: key is not provided"),
        (
            "LeaseGrant",
            m("LeaseGrantRequest", TTL=9_000_000_001),
            Code.OUT_OF_RANGE,
            "etcdserver: too large lease TTL",
        ),
        ("LeaseRevoke", m("LeaseRevokeRequest", ID=5), Code.NOT_FOUND, "etcdserver: requested lease not found"),
        ("Put", m("PutRequest", key=b"k", lease=5), Code.NOT_FOUND, "etcdserver: requested lease not found"),
        ("Alarm", m("AlarmRequest", action=1, alarm=9), Code.INVALID_ARGUMENT, "etcdserver: unknown alarm or action"),
        ("Alarm", m("AlarmRequest", action=7), Code.INVALID_ARGUMENT, "etcdserver: unknown alarm or action"),
    ],
)
def test_refusals(run: Any, serving: Any, rpc: str, request_: Any, code: Code, text: str) -> None:
    async def work() -> None:
        async with serving("ngh2") as served, await H2Client.connect(served.url) as client:
            for n in range(3):
                await get(client, "Put", m("PutRequest", key=b"old", value=b"%d" % n), "PutResponse")
            await get(client, "Compact", m("CompactionRequest", revision=3), "CompactionResponse")
            answer = await ask(client, rpc, request_)
            assert answer.code == code
            assert answer.text.startswith(text)
            after = await get(client, "Range", m("RangeRequest", key=b"\0", range_end=b"\0"), "RangeResponse")
            assert (after.header.revision, after.count) == (4, 1), "a refused request changed something"

    run(work())


def test_the_limits_themselves_are_allowed(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("ngh2") as served, await H2Client.connect(served.url) as client:
            await get(client, "Txn", many(128), "TxnResponse")
            await get(client, "Txn", split(100, 28), "TxnResponse")
            await get(client, "Txn", nested(7), "TxnResponse")
            largest = m("PutRequest", key=b"k", value=b"x" * (1536 * 1024 - 18 - 7))
            assert largest.ByteSize() == 1536 * 1024 - 18
            await get(client, "Put", largest, "PutResponse")
            largest.value += b"x"
            assert (await ask(client, "Put", largest)).text == "etcdserver: request is too large"

    run(work())


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (raft_errors.NoLeader(), Code.UNAVAILABLE, "etcdserver: no leader"),
        (raft_errors.Overloaded("proposals_max", 5), Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests"),
        (raft_errors.DeadlineExceeded(), Code.UNAVAILABLE, "etcdserver: request timed out"),
        (raft_errors.LeadershipLost(), Code.UNAVAILABLE, "etcdserver: leader changed"),
        (raft_errors.ProposalDropped(), Code.UNAVAILABLE, "etcdserver: leader changed"),
        (raft_errors.NotLeader(3), Code.UNAVAILABLE, "etcdserver: leader changed"),
        (raft_errors.Stopped(), Code.UNAVAILABLE, "etcdserver: server stopped"),
        (raft_errors.SyncFailed("x"), Code.UNAVAILABLE, "etcdserver: server stopped"),
    ],
)
@pytest.mark.parametrize("how", ["answered", "raised"])
def test_errors_of_the_group(
    run: Any, serving: Any, error: raft_errors.RaftError, code: Code, text: str, how: str
) -> None:
    async def work() -> None:
        async with serving("ngh2") as served, await H2Client.connect(served.url) as client:
            if how == "answered":
                served.backend.fail_with = error
            else:
                served.backend.refuse_with = error
            for rpc, request in (
                ("Put", m("PutRequest", key=b"k")),
                ("Range", m("RangeRequest", key=b"k")),
                ("Range", m("RangeRequest", key=b"k", limit=1)),
                ("Txn", many(1)),
                ("Txn", m("TxnRequest", success=[m("RequestOp", request_range=m("RangeRequest", key=b"k"))])),
                ("DeleteRange", m("DeleteRangeRequest", key=b"k")),
                ("Compact", m("CompactionRequest", revision=1)),
                ("MemberList", m("MemberListRequest", linearizable=True)),
            ):
                answer = await ask(client, rpc, request)
                assert (answer.code, answer.text) == (code, text), rpc
            serializable = await get(client, "Range", m("RangeRequest", key=b"k", serializable=True), "RangeResponse")
            assert serializable.header.revision == 1

    run(work())


def test_header_fields(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("ngh2") as served, await H2Client.connect(served.url) as client:
            for term in (2, 2, 300):
                served.backend.term = term
                header = (await get(client, "Put", m("PutRequest", key=b"k"), "PutResponse")).header
                assert (header.cluster_id, header.member_id, header.raft_term) == (CLUSTER_ID, MEMBER_ID, term)
            assert header.revision == 4

    run(work())


def test_reads_of_one_turn_share_a_barrier_and_wait_for_it(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("ngh2") as served, await H2Client.connect(served.url) as client:
            served.backend.hold = True
            reads = [client.start("/etcdserverpb.KV/Range") for _ in range(20)]
            message = m("RangeRequest", key=b"k").SerializeToString()
            for stream_id in reads:
                client.h2.send_data(stream_id, b"\0" + len(message).to_bytes(4, "big") + message, end_stream=True)
            client.flush()
            await served.until(lambda: len(served.backend.held) >= 1, "a barrier was asked for")
            assert len(served.backend.held) == 1
            client.h2.reset_stream(reads[0])
            client.flush()
            await served.until(lambda: served.server.open_streams == 19, "one reader has gone")
            assert not any(client.answers[s].ended.is_set() for s in reads[1:]), "answered before the barrier"
            served.backend.held[0]()
            for stream_id in reads[1:]:
                assert (await client.finish(stream_id)).code == 0

    run(work())


def test_has_leader_metadata(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("ngh2") as served, await H2Client.connect(served.url) as client:
            wanted = ((b"hasleader", b"true"),)
            assert (await ask(client, "Put", m("PutRequest", key=b"k"), wanted)).code == 0
            served.backend.leader = 0
            for rpc, request in (
                ("Put", m("PutRequest", key=b"k")),
                ("Range", m("RangeRequest", key=b"k")),
                ("Txn", many(1)),
            ):
                answer = await ask(client, rpc, request, wanted)
                assert (answer.code, answer.text) == (Code.UNAVAILABLE, "etcdserver: no leader"), rpc
            assert (await ask(client, "Put", m("PutRequest", key=b"k"))).code == 0

    run(work())


def test_a_learner_serves_serializable_reads_only(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("ngh2") as served, await H2Client.connect(served.url) as client:
            served.backend.is_learner = True
            served.server.service.refresh()
            for rpc, request in (
                ("Put", m("PutRequest", key=b"k")),
                ("Range", m("RangeRequest", key=b"k")),
                ("Txn", many(1)),
                ("MemberList", m("MemberListRequest", linearizable=True)),
            ):
                answer = await ask(client, rpc, request)
                assert answer.text == "etcdserver: rpc not supported for learner", rpc
            assert (await ask(client, "Range", m("RangeRequest", key=b"k", serializable=True))).code == 0
            assert (await get(client, "Status", m("StatusRequest"), "StatusResponse")).isLearner

    run(work())


def test_cluster_and_maintenance(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("ngh2") as served, await H2Client.connect(served.url) as client:
            served.backend.view_members += (MemberView(7, "second", ("http://p",), ("http://c",), True),)
            listed = await get(client, "MemberList", m("MemberListRequest"), "MemberListResponse")
            assert [(x.ID, x.name, list(x.peerURLs), list(x.clientURLs), x.isLearner) for x in listed.members][1] == (
                7,
                "second",
                ["http://p"],
                ["http://c"],
                True,
            )
            status = await get(client, "Status", m("StatusRequest"), "StatusResponse")
            assert (status.leader, status.raftTerm, status.dbSize, status.dbSizeInUse) == (MEMBER_ID, 2, 4096, 2048)
            assert not status.errors
            assert (await ask(client, "MoveLeader", m("MoveLeaderRequest", targetID=7))).code == 0
            answer = await ask(client, "MoveLeader", m("MoveLeaderRequest", targetID=99))
            assert (answer.code, answer.text) == (Code.FAILED_PRECONDITION, "etcdserver: bad leader transferee")
            served.backend.leader = 7
            answer = await ask(client, "MoveLeader", m("MoveLeaderRequest", targetID=7))
            assert (answer.code, answer.text) == (Code.FAILED_PRECONDITION, "etcdserver: not leader")
            served.backend.leader = 0
            assert list((await get(client, "Status", m("StatusRequest"), "StatusResponse")).errors) == [
                "etcdserver: no leader"
            ]

    run(work())


def test_health_service(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("ngh2") as served, await H2Client.connect(served.url) as client:
            assert (await client.unary("/grpc.health.v1.Health/Check", b"")).messages == [b"\x08\x01"]
            answer = await client.unary("/grpc.health.v1.Health/Check", b"\x0a\x01x")
            assert (answer.code, answer.text) == (Code.NOT_FOUND, "unknown service")
            stream_id = client.start("/grpc.health.v1.Health/Watch")
            client.send(stream_id, b"\0\0\0\0\0", end_stream=True)
            await served.until(lambda: client.answers[stream_id].messages == [b"\x08\x01"], "the state is sent")

    run(work())


# -- HTTP/1.1 on the same port


async def http(url: str, request: bytes, context: ssl.SSLContext | None = None) -> bytes:
    host, _, port = url.rpartition("//")[2].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    writer.write(request)
    data = await asyncio.wait_for(reader.read(), 120)
    writer.close()
    return data


def simple(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()


def test_http1(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("ngh2") as served:
            answer = await http(served.url, simple("/health"))
            assert answer.startswith(b"HTTP/1.1 200")
            assert answer.endswith(b'{"health":"true","reason":""}')
            version = json.loads((await http(served.url, simple("/version"))).rpartition(b"\r\n\r\n")[2])
            assert version["etcdcluster"] == "3.5.0"
            assert version["etcdserver"].startswith("3.5.")
            text = await http(served.url, simple("/metrics"))
            for name in (
                b"etcd_server_has_leader 1.0",
                b"etcd_server_is_leader 1.0",
                b"etcd_debugging_mvcc_current_revision 1.0",
                b"etcd_server_proposals_committed_total 1.0",
                b"grpc_server_started_total{",
            ):
                assert name in text, name
            assert (await http(served.url, simple("/nothing"))).startswith(b"HTTP/1.1 404")
            assert (await http(served.url, simple("/health", "POST"))).startswith(b"HTTP/1.1 405")
            served.backend.fail_with = raft_errors.NoLeader()
            answer = await http(served.url, simple("/health"))
            assert answer.startswith(b"HTTP/1.1 503")
            assert b'"health":"false","reason":"QGET ERROR' in answer
            assert (await http(served.url, simple("/health?serializable=true"))).startswith(b"HTTP/1.1 200")
            served.backend.leader = 0
            assert b'"reason":"RAFT NO LEADER"' in await http(served.url, simple("/health"))
            served.backend.leader, served.backend.errors = MEMBER_ID, ("alarm:NOSPACE",)
            assert b'"reason":"alarm:NOSPACE"' in await http(served.url, simple("/health?serializable=true"))
            assert b'"health":"true"' in await http(served.url, simple("/health?serializable=true&exclude=NOSPACE"))

    run(work())


def test_tls(run: Any, tmp_path: Path) -> None:
    """Both protocols over TLS on one port; a client that says nothing is cut after the handshake time."""
    pytest.importorskip("cryptography")
    certificate, key = make_certificate(tmp_path)

    async def work() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server = await start_api(
            SingleBackend(make_machine()), ["https://127.0.0.1:0"], Metrics(), context, Limits(handshake_s=4)
        )
        try:
            url = server.addresses[0]
            assert url.startswith("https://127.0.0.1:")
            trusting = ssl.create_default_context(cafile=str(certificate))
            assert (await http(url, simple("/health"), trusting)).startswith(b"HTTP/1.1 200")
            trusting.set_alpn_protocols(["h2"])
            host, _, port = url.rpartition("//")[2].rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port), ssl=trusting)
            assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
            async with H2Client(reader, writer, auto_window=True) as client:
                assert (await get(client, "Put", m("PutRequest", key=b"k"), "PutResponse")).header.revision == 2
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"\x16\x03\x01\x02\x00")  # the beginning of a ClientHello, and no more
            assert await asyncio.wait_for(reader.read(), 120) == b""
            writer.close()
        finally:
            await server.close(0.1)

    run(work())


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (directory / "cert.pem").write_bytes(built.public_bytes(serialization.Encoding.PEM))
    (directory / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return directory / "cert.pem", directory / "key.pem"


def test_http1_limits(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("ngh2", http_header_bytes_max=4096, http_body_bytes_max=4096) as served:
            head = b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"x: " + b"y" * 10_000
            assert (await http(served.url, head)).startswith(b"HTTP/1.1 431")
            assert served.refused("http-header") == 1
            assert (await http(served.url, b"GET /health HTTP/9\r\n\r\n")).startswith(b"HTTP/1.1 400")
            assert (await http(served.url, simple("/health"))).startswith(b"HTTP/1.1 200")

    run(work())


def test_host_allow_list(run: Any) -> None:
    async def work() -> None:
        server = await start_api(
            SingleBackend(make_machine()), ["http://127.0.0.1:0"], Metrics(), allowed_hosts=["good.example"]
        )
        try:
            assert (await http(server.addresses[0], simple("/health"))).startswith(b"HTTP/1.1 400")
            good = b"GET /health HTTP/1.1\r\nHost: good.example\r\nConnection: close\r\n\r\n"
            assert (await http(server.addresses[0], good)).startswith(b"HTTP/1.1 200")
        finally:
            await server.close(0.1)

    run(work())


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("ftp://127.0.0.1:1", "must begin with http://, https:// or unix://"),
        ("http://127.0.0.1", "needs a host and a port"),
        ("http://127.0.0.1:notaport", "is malformed"),
        ("https://127.0.0.1:0", "needs a certificate"),
    ],
)
def test_bad_listen_urls(run: Any, url: str, text: str) -> None:
    async def work() -> None:
        with pytest.raises(ConfigurationError, match=text):
            await start_api(SingleBackend(make_machine()), ["http://127.0.0.1:0", url], Metrics())

    run(work())


def test_unix_socket_and_several_listeners(run: Any, tmp_path: Path) -> None:
    async def work() -> None:
        server = await start_api(
            SingleBackend(make_machine()),
            ["http://127.0.0.1:0", f"unix://{tmp_path}/s", "http://localhost:0"],
            Metrics(),
        )
        try:
            assert server.addresses[1] == f"unix://{tmp_path}/s"
            reader, writer = await asyncio.open_unix_connection(f"{tmp_path}/s")
            writer.write(simple("/health"))
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
            writer.close()
            assert (await http(server.addresses[2], simple("/health"))).startswith(b"HTTP/1.1 200")
        finally:
            await server.close(0.1)

    run(work())
