"""Known vulnerabilities of etcd and its like, as tests: what each of them let through, tried here.

`COVERED` names for every one of them the tests that would go red, also where they stand elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from tests.support.auth_setup import CHEAP, MATRIX, ask, login, m, ok, people, txn
from tests.support.h2_client import H2Client, message_frame
from tests.support.single_backend import SingleBackend, make_machine

from oarlock.api.etcd.access import Access
from oarlock.api.etcd.passwords import Passwords
from oarlock.api.etcd.tokens import AuthOptions, JwtKeys
from oarlock.api.grpc import Code, RpcError
from oarlock.api.limits import Limits
from oarlock.api.metrics import Metrics
from oarlock.api.server import start_api
from oarlock.machines.kv.commands import Put, Txn, encode
from oarlock.machines.kv.commands_auth import UserAdd, UserChangePassword
from oarlock.machines.kv.visit import steps

ROOT = Path(__file__).parents[3]

COVERED: dict[str, tuple[str, ...]] = {
    "TOB-ETCD-002 (CVE-2020-15114): a URL that is one's own": ("tests/unit/config/test_config_validate.py",),
    "TOB-ETCD-006, 007 (CVE-2020-15112, -15106): lengths in the log": ("tests/unit/storage/test_storage_wal_rot.py",),
    "TOB-ETCD-008 (CVE-2020-15115): no policy of passwords": ("test_passwords", "test_guessing_is_slowed_down"),
    "CVE-2018-1098, -1099: other sites' pages": ("test_only_hosts_that_are_allowed",),
    "CVE-2018-16886: a certificate's name through the gateway": ("test_a_certificate_counts_on_grpc_only",),
    "CVE-2021-28235: passwords in logs": ("test_no_secret_is_written_anywhere", "tests/system/test_auth_system.py"),
    "CVE-2023-32082: keys of a lease": ("test_leases_of_others",),
    "CVE-2026-33413: calls without a check": ("test_calls_that_were_open", "test_every_rpc_for_everybody"),
    "CVE-2026-33343, -44283: nested transactions": ("test_nested_transactions",),
    "GHSA-xg4h-6gfc-h4m8: a watch of more than was checked": (
        "test_a_range_is_checked_as_it_is_used",
        "test_a_watch_ends_with_its_right",
    ),
    "GHSA-6vch-q96h-7gc3: handshakes that never end": ("test_a_tls_handshake_has_a_time",),
    "etcd#22134: quota of nested transactions": ("test_what_is_nested_counts",),
    "etcd#22148: bodies without a bound": ("tests/unit/api/test_api_http2.py",),
    "ADA-06 and others: tokens that stop the server": ("test_no_bytes_make_a_token_parser_fail", "test_jwt"),
    "etcd#14571: permissions of another state": ("test_state_survives_capture_restore_and_checkpoint",),
    "Consul CVE-2021-37219: any certificate on the peers' port": ("tests/unit/transport/test_transport_tls.py",),
    "PySyncObj: code from the network": ("tests/test_architecture.py",),
    "compressed messages that grow": ("test_no_message_is_decompressed",),
}


def test_every_one_has_its_tests() -> None:
    text = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for what, tests in COVERED.items():
        for test in tests:
            found = (ROOT / test).exists() if "/" in test else f"def {test}(" in text
            assert found, f"{what}: {test} is gone"


def test_calls_that_were_open(run: Any, serving: Any) -> None:
    """CVE-2026-33413."""

    async def work() -> None:
        async with serving("ngh2", auth=CHEAP) as served, await H2Client.connect(served.url) as client:
            shown = await people(client)
            for rpc, request, root_only in (
                ("KV/Compact", m("CompactionRequest", revision=1), True),
                ("Maintenance/Alarm", m("AlarmRequest", action=2), True),
                ("Cluster/MemberList", m("MemberListRequest"), False),
                ("Lease/LeaseGrant", m("LeaseGrantRequest", TTL=9), False),
                ("Lease/LeaseRevoke", m("LeaseRevokeRequest", ID=9), False),
                ("Lease/LeaseTimeToLive", m("LeaseTimeToLiveRequest", ID=9), False),
                ("Lease/LeaseLeases", m("LeaseLeasesRequest"), False),
                ("Lease/LeaseKeepAlive", m("LeaseKeepAliveRequest", ID=9), False),
            ):
                answer = await ask(client, rpc, request)
                assert answer.text == "etcdserver: user name is empty", rpc
                if root_only:
                    answer = await ask(client, rpc, request, shown["writer"])
                    assert answer.text == "etcdserver: permission denied", rpc

    run(work())


def test_nested_transactions(run: Any, serving: Any) -> None:
    """CVE-2026-33343 and CVE-2026-44283, up to the greatest depth."""

    async def work() -> None:
        async with serving("ngh2", auth=CHEAP) as served, await H2Client.connect(served.url) as client:
            shown = await people(client)
            await ok(client, "Lease/LeaseGrant", m("LeaseGrantRequest", TTL=60, ID=5), shown["root"])
            await ok(client, "KV/Put", m("PutRequest", key=b"z", lease=5), shown["root"])
            before = served.backend.machine.hash()
            for inner in (
                m("PutRequest", key=b"z"),
                m("PutRequest", key=b"b", lease=5),
                m("RangeRequest", key=b"z"),
                m("RangeRequest", key=b"a", range_end=b"\0"),
                m("DeleteRangeRequest", key=b"\0", range_end=b"\0"),
                m("TxnRequest", compare=[m("Compare", key=b"z")]),
            ):
                for depth in range(Limits().txn_depth_max - 1):
                    request = txn(inner)
                    for _ in range(depth):
                        request = txn(request)
                    answer = await ask(client, "KV/Txn", request, shown["writer"])
                    assert answer.text == "etcdserver: permission denied", request
            assert served.backend.machine.hash() == before

    run(work())


def test_a_range_is_checked_as_it_is_used(run: Any, serving: Any) -> None:
    """GHSA-xg4h-6gfc-h4m8: who may read one key watched every key after it, with one zero byte as the range's end."""

    async def work() -> None:
        async with serving("ngh2", auth=CHEAP) as served, await H2Client.connect(served.url) as client:
            shown = await people(client)
            grant = m("AuthRoleGrantPermissionRequest", name="r")
            grant.perm.key = b"one"
            await ok(client, "Auth/RoleGrantPermission", grant, shown["root"])
            access: Access = served.server.service.context.access
            identity = access.identify_token(shown["reader"].encode())
            assert access.may_read(identity, b"one", b"") is None
            for key, end in ((b"one", b"\0"), (b"one", b"onf"), (b"\0", b"\0"), (b"", b""), (b"", b"\0")):
                refused = access.may_read(identity, key, end)
                assert refused is not None and refused.code == Code.PERMISSION_DENIED, (key, end)
            assert access.may_read(None, b"one", b"").text == "etcdserver: user name is empty"  # type: ignore[union-attr]
            answer = await ask(client, "KV/Range", m("RangeRequest", key=b"one", range_end=b"\0"), shown["reader"])
            assert answer.code == Code.PERMISSION_DENIED

    run(work())


def test_a_watch_ends_with_its_right(run: Any, serving: Any) -> None:
    """Beyond etcd, whose watches outlive the right to them: nothing that happens after the change is told."""

    async def work() -> None:
        async with serving("ngh2", auth=CHEAP) as served, await H2Client.connect(served.url) as client:

            def responses(stream: int) -> list[Any]:
                return [m("WatchResponse").FromString(data) for data in client.answers[stream].messages]

            def watch(token: str | None, key: bytes, end: bytes, watch_id: int = 0) -> int:
                stream = client.start("/etcdserverpb.Watch/Watch", [(b"token", token.encode())] if token else [])
                create = m("WatchCreateRequest", key=key, range_end=end, watch_id=watch_id)
                client.send(stream, message_frame(m("WatchRequest", create_request=create).SerializeToString()))
                return stream

            early = watch(None, b"a", b"\0")  # of a time when everybody might see everything
            await served.until(lambda: len(responses(early)) == 1, "the watch is there")
            shown = await people(client)
            held = watch(shown["reader"], b"a", b"c")
            other = watch(shown["writer"], b"a", b"c")
            for wrong, reason in (
                (watch(shown["reader"], b"a", b"\0"), "PermissionDenied desc = etcdserver: permission denied"),
                (watch(None, b"a", b""), "InvalidArgument desc = etcdserver: user name is empty"),
                (watch("x.1", b"a", b""), "Unauthenticated desc = etcdserver: invalid auth token"),
            ):
                await served.until(lambda wrong=wrong: len(responses(wrong)) == 1, "an answer")
                (refused,) = responses(wrong)
                assert refused.created and refused.canceled and refused.watch_id == -1
                assert refused.cancel_reason == f"rpc error: code = {reason}"
            for stream in (held, other):
                await served.until(lambda stream=stream: len(responses(stream)) == 1, "the watch is there")
            await ok(client, "KV/Put", m("PutRequest", key=b"a", value=b"seen"), shown["writer"])
            for stream in (held, other):
                await served.until(lambda stream=stream: len(responses(stream)) == 2, "the event is there")
                assert responses(stream)[1].events[0].kv.value == b"seen"
            await served.until(lambda: len(responses(early)) == 2, "the early one is told")
            assert responses(early)[1].canceled and not responses(early)[1].events
            assert "user name is empty" in responses(early)[1].cancel_reason
            revoke = m("AuthUserRevokeRoleRequest", name="reader", role="r")
            await ok(client, "Auth/UserRevokeRole", revoke, shown["root"])
            await ok(client, "KV/Put", m("PutRequest", key=b"a", value=b"secret"), shown["writer"])
            await served.until(lambda: len(responses(held)) == 3, "the end is told")
            end = responses(held)[2]
            assert end.canceled and not end.events and "permission denied" in end.cancel_reason
            await served.until(lambda: len(responses(other)) == 3, "the other one goes on")
            assert responses(other)[2].events[0].kv.value == b"secret"
            assert b"secret" not in client.answers[held].body

    run(work())


def test_leases_of_others(run: Any, serving: Any) -> None:
    """CVE-2023-32082, and what the fix of CVE-2026-33413 adds: renewing and listing."""

    async def work() -> None:
        async with serving("ngh2", auth=CHEAP) as served, await H2Client.connect(served.url) as client:
            shown = await people(client)
            await ok(client, "Lease/LeaseGrant", m("LeaseGrantRequest", TTL=60, ID=5), shown["root"])
            await ok(client, "KV/Put", m("PutRequest", key=b"z", lease=5), shown["root"])
            for rpc, request in (
                ("Lease/LeaseTimeToLive", m("LeaseTimeToLiveRequest", ID=5, keys=True)),
                ("Lease/LeaseLeases", m("LeaseLeasesRequest")),
                ("Lease/LeaseRevoke", m("LeaseRevokeRequest", ID=5)),
                ("Lease/LeaseKeepAlive", m("LeaseKeepAliveRequest", ID=5)),
            ):
                answer = await ask(client, rpc, request, shown["writer"])
                assert answer.text == "etcdserver: permission denied", rpc
                assert not answer.body
            await ok(client, "Lease/LeaseTimeToLive", m("LeaseTimeToLiveRequest", ID=5), shown["writer"])
            for rpc, request in (
                ("Lease/LeaseTimeToLive", m("LeaseTimeToLiveRequest", ID=5, keys=True)),
                ("Lease/LeaseLeases", m("LeaseLeasesRequest")),
                ("Lease/LeaseRevoke", m("LeaseRevokeRequest", ID=5)),
            ):
                await ok(client, rpc, request, shown["root"])

    run(work())


def test_a_certificate_counts_on_grpc_only(run: Any, serving: Any) -> None:
    """CVE-2018-16886: the JSON gateway has one function for who calls, and it takes no certificate."""

    async def work(asked: bool) -> None:
        options = AuthOptions(bcrypt_cost=4, certificate_users=asked)
        async with serving("ngh2", auth=options) as served, await H2Client.connect(served.url) as client:
            await people(client)
            get = m("RangeRequest", key=b"z")
            for connection in served.server._http2:
                connection._certificate_user = "root"  # as if TLS had verified one
            answer = await ask(client, "KV/Range", get)
            assert answer.text == ("" if asked else "etcdserver: user name is empty")
            for header in (b"token", b"authorization"):
                answer = await ask(client, "KV/Range", get, "x.1", header)
                assert answer.text == "etcdserver: invalid auth token", (
                    "a wrong token is not made good by a certificate"
                )
            access: Access = served.server.service.context.access
            with pytest.raises(RpcError, match="invalid auth token"):
                access.identify_token(b"")

    run(work(True))
    run(work(False))
    gateway = (ROOT / "src/oarlock/api/http1.py").read_text()
    assert "identify_certificate" not in gateway and "certificate_user" not in gateway


def test_no_secret_is_written_anywhere(run: Any, serving: Any, caplog: pytest.LogCaptureFixture) -> None:
    """CVE-2021-28235: no password, hash or token in a log line, a `repr` or the group's log."""
    caplog.set_level(logging.DEBUG)
    proposed: list[bytes] = []

    async def work() -> None:
        async with serving("ngh2", auth=CHEAP) as served, await H2Client.connect(served.url) as client:
            real_propose = served.backend.propose

            def propose(command: bytes, done: Any) -> None:
                proposed.append(command)
                real_propose(command, done)

            served.server.service.context.propose = propose
            shown = await people(client)
            change = m("AuthUserChangePasswordRequest", name="reader", password="another password")
            await ok(client, "Auth/UserChangePassword", change, shown["root"])
            for password in ("another password", "a wrong password"):
                await ask(client, "Auth/Authenticate", m("AuthenticateRequest", name="reader", password=password))
            await ask(client, "KV/Range", m("RangeRequest", key=b"a"), shown["writer"] + "1")
            hashed = served.backend.machine.auth.user("reader").password
            secrets = ["password", hashed.decode(), *(token.partition(".")[0] for token in shown.values())]
            service = served.server.service
            things = [
                service, service.context, service.context.access, service.context.access.tokens, Passwords(Limits()),
                UserAdd("u", hashed), UserChangePassword("u", hashed), served.backend.machine.auth.user("reader"),
                JwtKeys("HS256", hashed, hashed), served.backend.machine.auth,
            ]  # fmt: skip
            logs = "\n".join(record.getMessage() for record in caplog.records)
            assert "authentication failed" in logs and "auth change=" in logs, "the log says who tried what"
            for secret in secrets:
                for thing in things:
                    said = (
                        repr(thing).replace("UserChangePassword", "").replace("Passwords(", "").replace("_password", "")
                    )
                    assert secret not in said, f"{secret} in {said}"
                if secret != "password":
                    assert secret not in logs
            for secret in ("reader's", "root's", "another password", "wrong password"):
                assert secret not in logs
                assert all(secret.encode() not in command for command in proposed)
            assert proposed
            for token in shown.values():
                assert all(token.partition(".")[0].encode() not in command for command in proposed)

    run(work())


def test_only_hosts_that_are_allowed() -> None:
    """CVE-2018-1099 (DNS rebinding): the name in Host must be one of ours."""

    async def work() -> None:
        backend = SingleBackend(make_machine())
        server = await start_api(backend, ["http://127.0.0.1:0"], Metrics(), allowed_hosts=["localhost"])
        port = int(server.addresses[0].rpartition(":")[2])
        try:
            for host, status in (("localhost", b"200"), (f"localhost:{port}", b"200"), ("evil.example", b"400")):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(f"GET /version HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                assert (await reader.read()).split()[1] == status, host
                writer.close()
        finally:
            await server.close(0)

    asyncio.run(work())


def _certificate(directory: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = directory / "cert.pem", directory / "key.pem"
    certificate_file.write_bytes(certificate.public_bytes(Encoding.PEM))
    key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return certificate_file, key_file


def test_a_tls_handshake_has_a_time(tmp_path: Path) -> None:
    """GHSA-6vch-q96h-7gc3: a client that connects and says nothing, or half of its first word."""
    certificate, key = _certificate(tmp_path)

    async def work() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        limits = Limits(handshake_s=0.2)
        server = await start_api(SingleBackend(make_machine()), ["https://127.0.0.1:0"], Metrics(), context, limits)
        port = int(server.addresses[0].rpartition(":")[2])
        try:
            for said in (b"", b"\x16\x03\x01\x02"):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(said)
                async with asyncio.timeout(60):
                    assert await reader.read() == b""
                writer.close()
        finally:
            await server.close(0)

    asyncio.run(work())


def test_what_is_nested_counts() -> None:
    """etcd#22134: whoever adds up sizes goes through all of a transaction."""
    inner = Txn([], [Put(b"a", b"12345")], [Put(b"b", b"678")])
    whole = Txn([], [Txn([], [], [inner])], [Put(b"c", b"9")])
    assert sum(len(step.value) for step in steps(whole) if isinstance(step, Put)) == 9
    assert len(encode(whole)) > 9


def test_no_message_is_decompressed(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("ngh2") as served, await H2Client.connect(served.url) as client:
            for extra, flag in (([(b"grpc-encoding", b"gzip")], 1), ([], 1)):
                stream = client.start("/etcdserverpb.KV/Range", extra)
                client.send(stream, message_frame(b"\x1f\x8b" + b"\0" * 20, flag), end_stream=True)
                answer = await client.finish(stream)
                assert answer.code == Code.UNIMPLEMENTED

    run(work())


def test_login_names_are_any_text(run: Any, serving: Any) -> None:
    """Names that are no text, are empty, are long, or look like something else."""

    async def work() -> None:
        async with serving("ngh2", auth=CHEAP) as served, await H2Client.connect(served.url) as client:
            shown = await people(client)
            for name in ("", "root ", "ROOT", "root\0", "\n", "é", "x" * 100_000, "../root", "%s%s"):
                request = m("AuthenticateRequest", name=name, password="x")
                assert "authentication failed" in (await ask(client, "Auth/Authenticate", request)).text
            answer = await client.unary("/etcdserverpb.Auth/Authenticate", b"\x0a\x02\xff\xfe")
            assert answer.code == Code.INTERNAL and "unmarshalling" in answer.text
            added = m("AuthUserAddRequest", name="\0 ü\n", password="password")
            await ok(client, "Auth/UserAdd", added, shown["root"])
            request = m("AuthenticateRequest", name="\0 ü\n", password="password")
            await ok(client, "Auth/Authenticate", request)
            assert await login(client, "root")
            assert len(MATRIX) > 50

    run(work())
