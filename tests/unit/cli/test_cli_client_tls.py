"""Certificates of the client port: what cannot be used is named, and the flag decides whether clients need one."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from oarlock.cli.client_tls import client_tls
from oarlock.config import ServerConfig
from oarlock.errors import ConfigurationError
from oarlock.transport.tls_files import FollowingContext


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cert.pem (self-signed, so its own authority), key.pem, and locked.pem, the key under a passphrase."""
    directory = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "n1")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
    certificate = made.sign(key, hashes.SHA256())
    (directory / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    for file, lock in (
        ("key.pem", serialization.NoEncryption()),
        ("locked.pem", serialization.BestAvailableEncryption(b"passphrase")),
    ):
        text = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)
        (directory / file).write_bytes(text)
    (directory / "empty.pem").write_text("")
    return directory


def test_without_a_certificate_there_is_no_tls() -> None:
    assert client_tls(ServerConfig()) is None


@pytest.mark.parametrize("required", [False, True])
def test_an_authority_or_the_flag_makes_client_certificates_compulsory(files: Path, required: bool) -> None:
    cert, key = str(files / "cert.pem"), str(files / "key.pem")
    context = client_tls(ServerConfig(cert_file=cert, key_file=key, trusted_ca_file=cert, client_cert_auth=required))
    assert isinstance(context, FollowingContext)
    assert context.verify_mode is ssl.CERT_REQUIRED
    inner = context.source.server_context()
    assert inner.verify_mode is ssl.CERT_REQUIRED
    assert inner.minimum_version >= ssl.TLSVersion.TLSv1_2
    plain = client_tls(ServerConfig(cert_file=cert, key_file=key))
    assert plain is not None
    assert plain.verify_mode is ssl.CERT_NONE


@pytest.mark.parametrize(
    ("cert", "key", "authority", "says"),
    [
        ("absent.pem", "key.pem", "", "absent.pem"),
        ("cert.pem", "absent.pem", "", "absent.pem"),
        ("cert.pem", "locked.pem", "", "encrypted"),
        ("empty.pem", "key.pem", "", "cannot be used"),
        ("cert.pem", "key.pem", "absent.pem", "trusted-ca-file .*absent.pem"),
        ("cert.pem", "key.pem", "empty.pem", "trusted-ca-file .*empty.pem"),
    ],
)
def test_files_that_cannot_be_used_are_named(files: Path, cert: str, key: str, authority: str, says: str) -> None:
    config = ServerConfig(
        cert_file=str(files / cert),
        key_file=str(files / key),
        trusted_ca_file=str(files / authority) if authority else "",
    )
    with pytest.raises(ConfigurationError, match=says):
        client_tls(config)
