"""Mutual TLS: who holds a certificate of the authority is in the cluster only as the member whose name it carries."""

from __future__ import annotations

import asyncio
import datetime
import logging
import os
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from oarlock.errors import ConfigurationError
from oarlock.raft.messages import Heartbeat, Propose
from oarlock.transport import PeerAddress, PeerTls
from oarlock.transport.tls import carries, member_uri

Run = Callable[[Callable[[], Awaitable[None]]], None]
BEAT = Heartbeat(term=1, commit_index=0, round=1)
BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


class Authority:
    """Makes certificates in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.ca = folder / f"{name}.pem"
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self.start(subject, subject, self.key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self.ca.write_bytes(builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        self.subject = subject

    @staticmethod
    def start(subject: x509.Name, issuer: x509.Name, key: Any, days: int = 1) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
        builder = builder.serial_number(x509.random_serial_number())
        return builder.not_valid_before(now - datetime.timedelta(days=2)).not_valid_after(
            now + datetime.timedelta(days=days)
        )

    def issue(
        self, file: str, *names: x509.GeneralName, usages: tuple[x509.ObjectIdentifier, ...] = BOTH, days: int = 1,
        password: bytes | None = None,
    ) -> PeerTls:  # fmt: skip
        cert, key_file = self.write(file, *names, usages=usages, days=days, password=password)
        return PeerTls(str(cert), str(key_file), str(self.ca))

    def write(
        self, file: str, *names: x509.GeneralName, usages: tuple[x509.ObjectIdentifier, ...] = BOTH, days: int = 1,
        password: bytes | None = None,
    ) -> tuple[Path, Path]:  # fmt: skip
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, file)])
        builder = self.start(subject, self.subject, key.public_key(), days)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        cert, key_file = self.folder / f"{file}.pem", self.folder / f"{file}-key.pem"
        cert.write_bytes(builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        key_file.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        )
        return cert, key_file


def uri(name: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(member_uri(name))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


def test_members_with_their_own_certificates_talk(run: Run, kit: Any, authority: Authority) -> None:
    first, second = authority.issue("a", uri("m1")), authority.issue("b", x509.DNSName("m2"))

    async def test() -> None:
        async with kit.cluster(kit.Node(1, tls=first), kit.Node(2, tls=second)) as (a, b):
            bulk = [Propose(term=1, request=i, payload=bytes(300_000)) for i in range(20)]
            a.send(2, *bulk, BEAT)
            await kit.until(lambda: len(b.messages) == 21)
            assert [m for _, _, m in b.messages if m != BEAT] == bulk
            route = a.transport._routes[2].transport
            assert route.get_extra_info("ssl_object").version() == "TLSv1.3"

    run(test)


def test_a_certificate_of_another_member_is_refused_in_both_directions(
    run: Run, kit: Any, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """Signed by the right authority, but for m3: its holder must not pass for m2."""
    first, third = authority.issue("a", uri("m1")), authority.issue("c", uri("m3"), x509.DNSName("client.test"))

    async def test() -> None:
        thief = kit.Node(2, name="m3", tls=third)
        thief.transport.identity = type(thief.identity)(kit.CLUSTER, 2, 1002, "m2")
        async with kit.cluster(kit.Node(1, tls=first), thief, meet=False) as (a, b):
            a.transport.set_peers([PeerAddress(2, "m2", tuple(b.urls))])
            b.transport.set_peers([a.address])
            await kit.until(lambda: b.transport.stats()[1].last_error and a.transport.stats()[2].last_error)
            assert "the certificate does not carry the name 'm2'" in b.transport.stats()[1].last_error
            assert "DNS:client.test, URI:oarlock://member/m3" in a.transport.stats()[2].last_error
            assert not a.connected and a.messages == []
            a.send(2, BEAT)
            assert a.transport.stats()[2].dropped == 1

    with caplog.at_level(logging.WARNING, "oarlock"):
        run(test)
    assert any("reason=certificate" in r.message for r in caplog.records)


def test_a_member_cannot_take_another_ones_place_under_its_own_name(run: Run, kit: Any, authority: Authority) -> None:
    first, third = authority.issue("a", uri("m1")), authority.issue("c", uri("m3"))

    async def test() -> None:
        async with kit.cluster(kit.Node(1, tls=first), kit.Node(2, name="m3", tls=third), meet=False) as (a, b):
            b.transport.set_peers([a.address])
            # As member 2, whose name is known; as one whose name is not, while m3 is somebody else.
            a.transport.set_peers([PeerAddress(2, "m2", ())])
            await kit.until(lambda: "does not carry the name 'm2'" in b.transport.stats()[1].last_error)
            a.transport.set_peers([PeerAddress(2, "", ()), PeerAddress(3, "m3", ())])
            await kit.until(lambda: "the name 'm3' is that of member 3" in b.transport.stats()[1].last_error)
            a.transport.set_peers([PeerAddress(2, "", ())])
            await kit.until(lambda: a.connected == [(2, 1002)])

    run(test)


def test_a_stranger_that_is_admitted_still_needs_its_certificate(run: Run, kit: Any, authority: Authority) -> None:
    first, fourth, client = (
        authority.issue("a", uri("m1")),
        authority.issue("d", uri("m4")),
        authority.issue("x", uri("x")),
    )

    async def test() -> None:
        liar = kit.Node(5, name="x", tls=client)
        liar.transport.identity = type(liar.identity)(kit.CLUSTER, 5, 1005, "m5")
        node = kit.Node(1, tls=first, admit=lambda theirs: None)
        async with kit.cluster(node, kit.Node(4, tls=fourth), liar, meet=False) as (a, d, x):
            d.transport.set_peers([a.address])
            x.transport.set_peers([a.address])
            await kit.until(lambda: a.connected == [(4, 1004)])
            await kit.until(lambda: "does not carry the name 'm5'" in x.transport.stats()[1].last_error)
            assert a.connected == [(4, 1004)]

    run(test)


def test_another_authority_and_no_certificate_are_refused(
    run: Run, kit: Any, authority: Authority, tmp_path: Path
) -> None:
    first = authority.issue("a", uri("m1"))
    foreign = Authority(tmp_path, "foreign").issue("f", uri("m2"))

    async def test() -> None:
        async with kit.cluster(kit.Node(1, tls=first), kit.Node(2, tls=foreign), meet=False) as (a, b):
            a.transport.set_peers([b.address])
            await kit.until(lambda: "certificate verify failed" in a.transport.stats()[2].last_error)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            failures = a.transport.counters.handshake_failures
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", a.port, ssl=context)
                assert await reader.read() == b""
                writer.close()
            except OSError:
                pass
            await kit.until(lambda: a.transport.counters.handshake_failures > failures)
            assert not a.connected and not b.connected

    run(test)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_protocol_versions_are_refused(run: Run, kit: Any, authority: Authority) -> None:
    tls = authority.issue("a", uri("m1"))
    assert tls.server_context().minimum_version == tls.client_context().minimum_version == ssl.TLSVersion.TLSv1_2

    async def test() -> None:
        async with kit.cluster(kit.Node(1, tls=tls), meet=False) as (a,):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
            with pytest.raises(OSError):
                await asyncio.open_connection("127.0.0.1", a.port, ssl=context)
            await kit.until(lambda: a.transport.counters.handshake_failures == 1)

    run(test)


@pytest.mark.parametrize("data", [b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n", bytes(100)])
def test_who_does_not_finish_tls_is_closed(run: Run, kit: Any, authority: Authority, data: bytes) -> None:
    tls = authority.issue("a", uri("m1"))

    async def test() -> None:
        async with kit.cluster(kit.Node(1, tls=tls, limits=kit.quick(handshake_timeout_s=0.1)), meet=False) as (a,):
            reader, writer = await asyncio.open_connection("127.0.0.1", a.port)
            writer.write(data)
            try:
                await asyncio.wait_for(reader.read(), 120)
            except ConnectionError:
                pass
            writer.close()
            counters = a.transport.counters
            await kit.until(lambda: counters.handshake_failures + counters.handshake_timeouts == 1)
            assert not a.transport._pending and not a.transport._connections

    run(test)


def test_a_crowd_in_the_middle_of_tls_does_not_keep_a_member_out(run: Run, kit: Any, authority: Authority) -> None:
    first, second = authority.issue("a", uri("m1")), authority.issue("b", uri("m2"))

    async def test() -> None:
        limits = kit.quick(unauthenticated_max=8, handshake_timeout_s=30.0)
        async with kit.cluster(kit.Node(1, tls=first, limits=limits), kit.Node(2, tls=second), meet=False) as (a, b):
            crowd = [await asyncio.open_connection("127.0.0.1", a.port) for _ in range(30)]
            await kit.until(lambda: a.transport.counters.evicted >= 22)
            a.transport.set_peers([b.address])
            b.transport.set_peers([a.address])
            await kit.until(lambda: a.reaches(2) and b.reaches(1))
            for _, writer in crowd:
                writer.close()

    run(test)


def test_a_plain_url_beside_a_certificate_is_an_error(run: Run, kit: Any, authority: Authority) -> None:
    tls = authority.issue("a", uri("m1"))

    async def test() -> None:
        node = kit.Node(1, tls=tls)
        with pytest.raises(ConfigurationError, match="is plain although a peer certificate is given: write https"):
            await node.transport.listen(["http://127.0.0.1:0"])
        await node.transport.close()

    run(test)


def test_a_wrong_certificate_is_found_at_start(kit: Any, authority: Authority, tmp_path: Path) -> None:
    cases = [
        (authority.issue("other", uri("m2")), "not for this member.*does not carry the name.*URI:oarlock://member/m1"),
        (authority.issue("none"), "has none"),
        (authority.issue("server", uri("m1"), usages=BOTH[:1]), "allow both serverAuth and clientAuth"),
        (authority.issue("client", uri("m1"), usages=BOTH[1:]), "allow both serverAuth and clientAuth"),
        (PeerTls(*map(str, Authority(tmp_path, "foreign").write("f", uri("m1"))), str(authority.ca)), "signed by"),
    ]
    for tls, text in cases:
        with pytest.raises(ConfigurationError, match=text):
            kit.Node(1, tls=tls)
    with pytest.raises(ConfigurationError, match="has expired; issue a new one"):
        authority.issue("old", uri("m1"), days=-1)
    authority.issue("good", uri("m1")).check("m1")


def test_files_that_cannot_be_used_are_named(authority: Authority, tmp_path: Path) -> None:
    cert, key = map(str, authority.write("a", uri("m1")))
    _, other_key = map(str, authority.write("b", uri("m1")))
    _, locked = map(str, authority.write("c", uri("m1"), password=b"secret"))
    empty = tmp_path / "empty"
    empty.touch()
    ca, missing = str(authority.ca), str(tmp_path / "missing")
    for files, text in [
        ((missing, key, ca), "peer-cert-file .*missing cannot be read"),
        ((cert, missing, ca), "peer-key-file .*missing cannot be read"),
        ((cert, key, missing), "peer-trusted-ca-file .*missing cannot be read"),
        ((cert, key, str(empty)), "peer-trusted-ca-file .*empty has no usable certificate"),
        ((cert, other_key, ca), "b-key.pem is not the key of peer-cert-file"),
        ((cert, locked, ca), "the key is encrypted"),
        ((str(empty), key, ca), "empty with peer-key-file"),
    ]:
        with pytest.raises(ConfigurationError, match=text):
            PeerTls(*files)


def test_renewed_files_are_used_and_broken_ones_are_not(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    tls = authority.issue("a", uri("m1"))
    before = tls.server_context()
    assert tls.server_context() is before
    authority.write("a", uri("m1"))
    os.utime(tls.cert_file, ns=(1, 1))
    renewed = tls.server_context()
    assert renewed is not before
    Path(tls.cert_file).write_text("nonsense")
    with caplog.at_level(logging.WARNING, "oarlock"):
        assert tls.server_context() is renewed
    assert "the former ones stay" in caplog.text


def test_names_are_compared_whole() -> None:
    certificate = {"subjectAltName": (("URI", "oarlock://member/a%2Fb"), ("DNS", "c"), ("URI", "oarlock://member/"))}
    assert carries(certificate, "a/b") and carries(certificate, "c")
    for name in ("", "a", "b", "a%2Fb", "C", "c.d", "*"):
        assert not carries(certificate, name), name
    assert not carries({"subjectAltName": (("DNS", "*"), ("email", "a"), ("IP Address", "a"))}, "a")
    assert not carries(None, "a") and not carries({}, "a")
