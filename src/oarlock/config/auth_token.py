"""etcd's `--auth-token`: `simple`, or `jwt,sign-method=RS256,priv-key=FILE,pub-key=FILE,ttl=10m`."""

from __future__ import annotations

from dataclasses import dataclass

from oarlock.config.values import parse_duration

SIGN_METHODS = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "HS256", "HS384", "HS512",
)  # fmt: skip
_KEYS = ("sign-method", "priv-key", "pub-key", "ttl")
TTL_MS_DEFAULT = 300_000


@dataclass(frozen=True, slots=True)
class AuthToken:
    """`kind` is `simple` or `jwt`; the rest is for `jwt`. At least one of the files is named."""

    kind: str
    sign_method: str = ""
    private_file: str = ""
    public_file: str = ""
    ttl_ms: int = TTL_MS_DEFAULT


def parse_auth_token(text: str) -> AuthToken:
    """Read the option. Raises `ValueError` saying what is expected.

    >>> parse_auth_token("jwt,sign-method=ES256,priv-key=k.pem").ttl_ms
    300000
    """
    kind, *rest = text.split(",")
    if kind == "simple" and not rest:
        return AuthToken("simple")
    if kind != "jwt":
        raise ValueError(f"{text!r} is neither simple nor jwt,sign-method=...,priv-key=...,pub-key=...,ttl=...")
    values: dict[str, str] = {}
    for part in rest:
        name, equals, value = part.partition("=")
        if not equals or name not in _KEYS or not value:
            raise ValueError(f"{part!r} is none of {', '.join(key + '=...' for key in _KEYS)}")
        if name in values:
            raise ValueError(f"{name} is given twice")
        values[name] = value
    method = values.get("sign-method", "")
    if method not in SIGN_METHODS:
        raise ValueError(f"sign-method {method!r} is none of {', '.join(SIGN_METHODS)}")
    if not (values.get("priv-key") or values.get("pub-key")):
        raise ValueError("jwt needs priv-key=FILE, or pub-key=FILE to check tokens only")
    if method.startswith("HS") and not values.get("priv-key"):
        raise ValueError(f"{method} signs with a secret: name its file as priv-key=FILE")
    ttl_ms = parse_duration(values["ttl"]) if "ttl" in values else TTL_MS_DEFAULT
    if ttl_ms < 1000:
        raise ValueError("ttl must be at least 1s")
    return AuthToken("jwt", method, values.get("priv-key", ""), values.get("pub-key", ""), ttl_ms)
