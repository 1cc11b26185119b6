"""How clients prove who they are, from the options and the key files that they name."""

from __future__ import annotations

from typing import Any

from oarlock.api.etcd.tokens import AuthOptions, JwtKeys
from oarlock.config import ServerConfig
from oarlock.config.auth_token import AuthToken, parse_auth_token
from oarlock.errors import ConfigurationError


def auth_options(config: ServerConfig) -> AuthOptions:
    """Raises `ConfigurationError` for keys that cannot be read, do not fit the method or do not fit each other."""
    try:
        token = parse_auth_token(config.auth_token)
    except ValueError as error:
        raise ConfigurationError(f"auth-token: {error}") from error
    return AuthOptions(
        token_ttl_s=float(config.auth_token_ttl),
        jwt=_jwt_keys(token) if token.kind == "jwt" else None,
        bcrypt_cost=config.bcrypt_cost,
        password_length_min=config.password_length_min,
        certificate_users=config.client_cert_auth,
    )


def _jwt_keys(token: AuthToken) -> JwtKeys:
    try:
        import jwt
        from cryptography.hazmat.primitives import serialization
    except ImportError as error:
        raise ConfigurationError(
            f'auth-token jwt needs the package {error.name}: pip install "oarlock[security]"'
        ) from error
    private_bytes = _read("priv-key", token.private_file)
    public_bytes = _read("pub-key", token.public_file)
    private: Any = None
    public: Any = None
    ttl_s = token.ttl_ms / 1000
    if token.sign_method.startswith("HS"):
        if len(private_bytes) < 16:
            raise ConfigurationError(f"auth-token: the secret in {token.private_file} is shorter than 16 bytes")
        return JwtKeys(token.sign_method, private_bytes, private_bytes, ttl_s)
    try:
        if private_bytes:
            private = serialization.load_pem_private_key(private_bytes, None)
        if public_bytes:
            public = serialization.load_pem_public_key(public_bytes)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"auth-token: a key file holds no usable PEM key: {error}") from error
    if private is not None:
        own = private.public_key()
        if public is not None and _pem(public) != _pem(own):
            raise ConfigurationError(
                f"auth-token: {token.public_file} is not the public key of {token.private_file}: give both of one pair"
            )
        public = own
    # Sign or check once, so that a key of another kind shows at the start and not at the first login.
    try:
        algorithm = jwt.get_algorithm_by_name(token.sign_method)
        algorithm.prepare_key(public)
        if private is not None:
            algorithm.sign(b"try", algorithm.prepare_key(private))
    except (jwt.PyJWTError, TypeError, ValueError, AttributeError) as error:
        raise ConfigurationError(f"auth-token: the keys do not fit sign-method {token.sign_method}: {error}") from error
    return JwtKeys(token.sign_method, private, public, ttl_s)


def _pem(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    data: bytes = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return data


def _read(what: str, path: str) -> bytes:
    if not path:
        return b""
    try:
        with open(path, "rb") as file:
            return file.read(1 << 20)
    except OSError as error:
        raise ConfigurationError(f"auth-token: {what} {path} cannot be read: {error.strerror}") from error
