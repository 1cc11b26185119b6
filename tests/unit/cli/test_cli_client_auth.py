"""`--auth-token` and its key files: what is taken, and what stops the start with a reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from oarlock.api.etcd.tokens import JwtTokens
from oarlock.cli.client_auth import auth_options
from oarlock.config import ServerConfig
from oarlock.config.auth_token import parse_auth_token
from oarlock.errors import ConfigurationError
from oarlock.machines.kv.machine import KvMachine

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def write(path: Path, key: Any) -> Path:
    if hasattr(key, "private_bytes"):
        data = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    else:
        data = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    path.write_bytes(data)
    return path


def options_of(text: str) -> Any:
    return auth_options(replace(ServerConfig(), auth_token=text))


def test_the_default_is_etcds() -> None:
    options = auth_options(ServerConfig())
    assert (options.jwt, options.token_ttl_s, options.bcrypt_cost) == (None, 300.0, 10)
    assert not options.certificate_users


@pytest.mark.parametrize(
    ("method", "key"),
    [
        ("RS256", RSA),
        ("PS512", RSA),
        ("ES256", ec.generate_private_key(ec.SECP256R1())),
        ("ES384", ec.generate_private_key(ec.SECP384R1())),
        ("EdDSA", ed25519.Ed25519PrivateKey.generate()),
    ],
    ids=["RS256", "PS512", "ES256", "ES384", "EdDSA"],
)
def test_every_kind_of_key(tmp_path: Path, method: str, key: Any) -> None:
    private = write(tmp_path / "key.pem", key)
    public = write(tmp_path / "pub.pem", key.public_key())
    for text in (f"priv-key={private}", f"priv-key={private},pub-key={public},ttl=1h"):
        options = options_of(f"jwt,sign-method={method},{text}")
        both = JwtTokens(KvMachine.in_memory().auth, options.jwt, 10)
        checking = options_of(f"jwt,sign-method={method},pub-key={public}")
        other = JwtTokens(KvMachine.in_memory().auth, checking.jwt, 10)
        token = both.make("u", 1)
        assert token is not None
        assert both.resolve(token.encode()) == other.resolve(token.encode()) == ("u", 1)
        assert other.make("u", 1) is None
        assert "PrivateKey" not in repr(options)


def test_a_shared_secret(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"0123456789abcdef0123456789abcdef")
    tokens = JwtTokens(
        KvMachine.in_memory().auth, options_of(f"jwt,sign-method=HS256,priv-key={secret},ttl=2s").jwt, 10
    )
    token = tokens.make("u", 1)
    assert token is not None and tokens.resolve(token.encode()) == ("u", 1)
    secret.write_bytes(b"short")
    with pytest.raises(ConfigurationError, match="shorter than 16 bytes"):
        options_of(f"jwt,sign-method=HS256,priv-key={secret}")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "neither simple nor jwt"),
        ("simple,x=y", "neither simple nor jwt"),
        ("JWT", "neither simple nor jwt"),
        ("jwt", "sign-method ''"),
        ("jwt,sign-method=none,priv-key=x", "sign-method 'none'"),
        ("jwt,sign-method=RS256", "needs priv-key"),
        ("jwt,sign-method=HS256,pub-key=x", "signs with a secret"),
        ("jwt,sign-method=RS256,priv-key=x,priv-key=y", "given twice"),
        ("jwt,sign-method=RS256,priv-key", "is none of"),
        ("jwt,sign-method=RS256,other=1,priv-key=x", "is none of"),
        ("jwt,sign-method=RS256,priv-key=x,ttl=5", "a duration with its unit"),
        ("jwt,sign-method=RS256,priv-key=x,ttl=5ms", "at least 1s"),
    ],
)
def test_what_is_no_auth_token(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_auth_token(text)
    with pytest.raises(ConfigurationError, match="auth-token: .*" + reason):
        options_of(text)


def test_keys_that_cannot_be_used(tmp_path: Path) -> None:
    good = write(tmp_path / "rsa.pem", RSA)
    other = write(tmp_path / "other.pem", rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key())
    curve = write(tmp_path / "ec.pem", ec.generate_private_key(ec.SECP256R1()))
    junk = tmp_path / "junk.pem"
    junk.write_text("no key")
    for text, reason in (
        (f"priv-key={tmp_path}/absent", "absent cannot be read"),
        (f"priv-key={junk}", "no usable PEM key"),
        (f"priv-key={good},pub-key={other}", "is not the public key of"),
        (f"priv-key={curve}", "do not fit sign-method RS256"),
    ):
        with pytest.raises(ConfigurationError, match=reason):
            options_of(f"jwt,sign-method=RS256,{text}")
