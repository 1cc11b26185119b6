"""`oarlock pki`: what it makes passes the strictest verifier, and what it is told wrong it says."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from click.testing import CliRunner

from oarlock.cli.pki import pki
from oarlock.errors import ConfigurationError


def run(*arguments: str) -> str:
    result = CliRunner().invoke(pki, list(arguments), catch_exceptions=False, standalone_mode=False)
    return result.output


@pytest.fixture
def directory(tmp_path: Path) -> str:
    path = str(tmp_path / "pki")
    run("init", "--dir", path)
    return path


@pytest.mark.parametrize("crl", [False, True])
def test_a_strict_client_takes_a_members_certificate(directory: str, crl: bool) -> None:
    """Python 3.13's default context is strict (RFC 5280): without an authority key identifier it takes nothing."""
    run("member", "n1", "--dir", directory)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(f"{directory}/n1.pem", f"{directory}/n1-key.pem")

    def shake() -> None:
        client = ssl.create_default_context(cafile=f"{directory}/ca.pem")
        client.verify_flags |= ssl.VERIFY_X509_STRICT
        if crl:
            client.load_verify_locations(f"{directory}/crl.pem")
            client.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        sides = (
            client.wrap_bio(to_client, to_server, server_hostname="localhost"),
            server.wrap_bio(to_server, to_client, server_side=True),
        )
        for _ in range(10):
            for side in sides:
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    pass
        assert sides[0].version()

    shake()
    if crl:
        run("revoke", "--dir", directory, f"{directory}/n1.pem")
        with pytest.raises(ssl.SSLCertVerificationError, match="revoked"):
            shake()


@pytest.mark.parametrize("name", ["", "x" * 65, "../evil", "a/b", ".", "..", "a\nb", "a\0b"])
def test_a_name_that_cannot_be_is_refused_before_anything_is_written(directory: str, name: str) -> None:
    before = sorted(Path(directory).parent.rglob("*"))
    with pytest.raises(ConfigurationError, match="name"):
        run("member", "--dir", directory, "--", name)
    if name not in (".", ".."):  # a client's file is called client-...
        with pytest.raises(ConfigurationError, match="name"):
            run("client", "--dir", directory, "--", name)
    assert sorted(Path(directory).parent.rglob("*")) == before


@pytest.mark.parametrize("host", ["", "a b", "h:2379", "http://h", "\ud800", "x" * 70 + "\u00fc"])
def test_a_host_that_is_none_is_refused(directory: str, host: str) -> None:
    with pytest.raises(ConfigurationError, match="host name"):
        run("member", "n1", "--dir", directory, "--host", host)


def test_a_host_in_any_script(directory: str) -> None:
    run("member", "n1", "--dir", directory, "--host", "b\u00fccher.example", "--host", "::1")
    assert b"BEGIN CERTIFICATE" in Path(directory, "n1.pem").read_bytes()


def test_an_authority_is_made_once_and_whole(directory: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="another directory"):
        run("init", "--dir", directory)
    Path(directory, "ca-key.pem").rename(tmp_path / "kept")
    with pytest.raises(ConfigurationError, match="another directory"):
        run("init", "--dir", directory)
    assert not Path(directory, "ca-key.pem").exists(), "a key beside another's certificate"
    with pytest.raises(ConfigurationError, match="name"):
        run("init", "--dir", str(tmp_path / "other"), "--name", "")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be made"):
        run("init", "--dir", str(tmp_path / "file"))


def test_what_a_crash_has_left_is_in_nobodys_way(directory: str) -> None:
    run("member", "n1", "--dir", directory)
    Path(directory, "crl.pem.new").write_bytes(b"half")
    assert "1 certificates" in run("revoke", "--dir", directory, f"{directory}/n1.pem")
